"""What `backslide tune` and `backslide report` show of a run that has ended."""

from __future__ import annotations

from pathlib import Path

from backslide.cli.repair import show_account
from backslide.cli.screen import Screen


def show_run(screen: Screen, folder: Path) -> None:
    """The verdict, what happened and what to change; of a repair its own account."""
    from backslide.report.summary import Summary
    from backslide.report.terminal import headline, loss_line, verdict_table
    from backslide.report.text import plain
    from backslide.rundir import RunFolder

    summary = Summary.of(RunFolder(folder))
    if summary.account is not None:
        show_account(screen, folder, summary, summary.account)
        return
    screen.show(verdict_table(summary.verdict))
    screen.show(headline(summary.verdict))
    if spent := summary.opened_again:
        screen.show(spent)
    if line := loss_line(summary):
        screen.show(line)
    if summary.diagnosis.regressed_at is not None:
        screen.show(f"regression proven at step {summary.diagnosis.regressed_at}")
    for cause in summary.diagnosis.causes:
        screen.show(f"cause: {plain(cause.name)}: {plain(cause.evidence)}")
    for line in summary.diagnosis.advice:
        screen.show(f"- {plain(line)}")
    screen.show(f"→ {summary.run.page}, report.md and junit.xml")
    screen.result(
        {
            "run": str(folder),
            "openings": summary.openings,
            "regressed_at": summary.diagnosis.regressed_at,
            "advice": list(summary.diagnosis.advice),
            "diagnosis": summary.diagnosis.to_dict(),
            "repair": None,
            "verdict": summary.verdict.to_dict(),
        }
    )
