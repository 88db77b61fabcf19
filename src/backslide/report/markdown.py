"""report.md from a run's folder."""

from __future__ import annotations

from pathlib import Path

import jinja2

from backslide.files import write_text
from backslide.report.format import FILTERS, Safe
from backslide.report.summary import Summary, loss_span
from backslide.report.text import markdown
from backslide.rundir import RunFolder


def write_report(run: RunFolder) -> Path:
    """Write the run's `report.md` and return its path. Raises `RecordError` for a run without a verdict."""
    write_text(run.report, render(Summary.of(run)))
    return run.report


def render(summary: Summary) -> str:
    """The report of a run as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("backslide.report"),
        # Every value goes through the Markdown filter, ours as well: model names and item ids are text from outside.
        finalize=lambda value: value if isinstance(value, Safe) else markdown(str(value), limit=4000),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS)
    template = environment.get_template("report.md.j2")
    return template.render(
        summary=summary,
        verdict=summary.verdict,
        diagnosis=summary.diagnosis,
        account=summary.account,
        setup=summary.setup,
        config=summary.config,
        loss=loss_span(summary.losses),
    )
