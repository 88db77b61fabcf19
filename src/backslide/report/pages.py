"""All pages of a run, rebuilt from its folder."""

from __future__ import annotations

from pathlib import Path

from backslide.files import write_text
from backslide.report import html, junit, markdown
from backslide.report.summary import Summary
from backslide.rundir import RunFolder


def write_pages(run: RunFolder) -> tuple[Path, ...]:
    """Write the run's `report.html`, `report.md` and `junit.xml`, and return their paths.

    All are made before the first is written. Raises `RecordError` for a run without a verdict.
    """
    summary = Summary.of(run)
    pages = {run.page: html.render(summary), run.report: markdown.render(summary), run.junit: junit.render(summary)}
    for path, text in pages.items():
        write_text(path, text)
    return tuple(pages)
