"""What `backslide doctor` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backslide.cli.screen import Screen

if TYPE_CHECKING:
    from backslide.doctor import Examination


def show_examination(screen: Screen, found: Examination) -> None:
    """The facts, then what would break, what would mislead, and what is good to know."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from backslide.doctor.findings import LEVELS
    from backslide.report.text import plain

    facts = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    for name, value in found.facts:
        facts.add_row(Text(plain(name)), Text(plain(value)))
    screen.show(facts)
    styles = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for finding in found.findings:
        mend = f" → {plain(finding.mend)}" if finding.mend else ""
        screen.show(
            Text.assemble(
                (finding.level, styles[finding.level]), f" {plain(finding.about)}: {plain(finding.says)}{mend}"
            )
        )
    told = ", ".join(f"{(n := found.count(level))} {level}{'' if n == 1 else 's'}" for level in LEVELS)
    screen.show(
        f"{told}; {'the run would break' if found.broken else 'nothing would break that can be seen from here'}"
    )
    screen.result(
        {
            "broken": found.broken,
            "facts": dict(found.facts),
            "findings": [finding.to_dict() for finding in found.findings],
        }
    )
