"""The table of what was promised and what was measured; printed at the end, and written as JSON where asked for."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from simulate import Report

OUT = "BACKSLIDE_VALIDITY_OUT"
"""Environment variable that names a file to which the table is written as JSON."""


@dataclass(frozen=True)
class Row:
    """One promise, and what a simulation measured."""

    claim: str
    """What is promised, such as "false alarms, spending + McNemar"."""
    setting: str
    """Sizes and rates that it was measured at."""
    bound: float | None
    """The promised value; None: for information only."""
    measured: float
    """In the unit of `bound`."""
    replicates: int
    """How many runs, or items, or calls were counted."""
    verdict: str
    """`holds`, `broken` or `for information`."""


_rows = pytest.StashKey[list[Row]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_rows] = []


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    rows = request.config.stash[_rows]

    def add(claim: str, setting: str, bound: float | None, measured: float, replicates: int, verdict: str) -> None:
        bound = None if bound is None else float(bound)
        rows.append(Row(claim, setting, bound, float(measured), int(replicates), verdict))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[_rows]
    if not rows:
        return
    cells = [("claim", "setting", "promised", "measured", "replicates", "verdict")]
    for row in rows:
        bound = "-" if row.bound is None else f"{row.bound:.4g}"
        cells.append((row.claim, row.setting, bound, f"{row.measured:.4g}", str(row.replicates), row.verdict))
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    terminalreporter.section("validity")
    for line in cells:
        texts = [
            cell.rjust(w) if 2 <= i <= 4 else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        terminalreporter.write_line("  ".join(texts).rstrip())
    if out := os.environ.get(OUT):
        # Tests run in a folder of their own; a relative name means the folder that pytest was started in.
        path = Path(config.invocation_params.dir, out)
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
