"""report.md from a run's folder."""

from __future__ import annotations

from pathlib import Path

from backslide.files import write_text
from backslide.report.format import Safe
from backslide.report.summary import Summary
from backslide.report.template import fill
from backslide.report.text import markdown
from backslide.rundir import RunFolder


def write_report(run: RunFolder) -> Path:
    """Write the run's `report.md` and return its path. Raises `RecordError` for a run without a verdict."""
    write_text(run.report, render(Summary.of(run)))
    return run.report


def render(summary: Summary) -> str:
    """The report of a run as Markdown."""
    return fill(
        "report.md.j2",
        summary,
        # Every value goes through the Markdown filter, ours as well: model names and item ids are text from outside.
        shown=lambda value: value if isinstance(value, Safe) else markdown(str(value), limit=4000),
        autoescape=False,
    )
