"""What `backslide repair` shows, and `backslide report` of a repair."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from backslide.cli.screen import Screen

if TYPE_CHECKING:
    from backslide.cure.repair import Repaired
    from backslide.report.account import Account
    from backslide.report.summary import Summary


def show_repaired(screen: Screen, repaired: Repaired) -> None:
    """The line, the verdict, what came back and what was kept; or why nothing was shipped."""
    from backslide.openings import warning
    from backslide.report.line import line_table
    from backslide.report.summary import Summary
    from backslide.report.terminal import headline, verdict_table
    from backslide.report.text import plain
    from backslide.rundir import RunFolder

    account = Summary.of(RunFolder(repaired.out / "backslide")).account
    advice = account.advice if account is not None else ()
    verdict, balance = repaired.verdict, repaired.balance
    screen.show(line_table(repaired.points, repaired.at))
    if verdict.capabilities:
        screen.show(verdict_table(verdict))
    screen.show(headline(verdict))
    for line in balance.lines:
        screen.show(plain(line))
    if verdict.capabilities:
        screen.show(verdict.claim)
    if spent := warning(verdict.opening):
        screen.show(spent)
    for line in advice:
        screen.show(f"- {plain(line)}")
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
            "advice": list(advice),
            "verdict": verdict.to_dict(),
        }
    )


def show_account(screen: Screen, folder: Path, summary: Summary, account: Account) -> None:
    """A repair that has ended, from its folder."""
    from backslide.report.line import line_table
    from backslide.report.terminal import headline, verdict_table
    from backslide.report.text import plain

    screen.show(line_table(summary.points, summary.config.get("chosen")))
    if summary.verdict.capabilities:
        screen.show(verdict_table(summary.verdict))
    screen.show(headline(summary.verdict))
    if spent := summary.opened_again:
        screen.show(spent)
    for line in account.story:
        screen.show(plain(line))
    for line in account.advice:
        screen.show(f"- {plain(line)}")
    screen.show(f"→ {summary.run.page}, report.md and junit.xml")
    screen.result(
        {
            "run": str(folder),
            "openings": summary.openings,
            "regressed_at": None,
            "advice": list(account.advice),
            "diagnosis": None,
            "repair": account.to_dict(),
            "verdict": summary.verdict.to_dict(),
        }
    )
