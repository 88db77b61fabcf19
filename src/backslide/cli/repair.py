"""What `backslide repair` shows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from backslide.cli.screen import Screen

if TYPE_CHECKING:
    from backslide.cure.repair import Repaired


def show_repaired(screen: Screen, repaired: Repaired) -> None:
    """The line, the verdict, what came back and what was kept; or why nothing was shipped."""
    from backslide.openings import warning
    from backslide.report.line import line_table
    from backslide.report.terminal import headline, verdict_table
    from backslide.report.text import plain

    verdict, balance = repaired.verdict, repaired.balance
    screen.show(line_table(repaired.points, repaired.at))
    if verdict.capabilities:
        screen.show(verdict_table(verdict))
    screen.show(headline(verdict))
    if repaired.at is not None:
        for line in balance.lines:
            screen.show(plain(line))
    if verdict.capabilities:
        screen.show(verdict.claim)
    if spent := warning(verdict.opening):
        screen.show(spent)
    if repaired.at is None:
        screen.show(f"nothing was shipped; what was measured is in {repaired.out / 'backslide'}")
    else:
        screen.show(f"→ {repaired.out}")
    screen.result(
        {
            "out": str(repaired.out),
            "shipped": repaired.at is not None,
            "at": repaired.at,
            "line": [point.to_dict() for point in repaired.points],
            "balance": {
                **dataclasses.asdict(balance),
                "accuracy_back": balance.back,
                "gain_kept": balance.kept,
                "gain_of_best": balance.of_best,
            },
            "verdict": verdict.to_dict(),
        }
    )
