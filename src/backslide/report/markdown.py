"""report.md from a run's folder."""

from __future__ import annotations

import math
from pathlib import Path

import jinja2

from backslide.files import write_text
from backslide.report.summary import Summary, accuracies, loss_span
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
    environment.filters.update(
        percent=percent, points=points, number=number, level=level, fine=fine, amount=amount, accepted=accepted
    )
    template = environment.get_template("report.md.j2")
    final = {outcome.id for outcome in summary.final.outcomes} if summary.final is not None else None
    return template.render(
        summary=summary,
        verdict=summary.verdict,
        diagnosis=summary.diagnosis,
        setup=summary.setup,
        config=summary.config,
        loss=loss_span(summary.losses),
        base=accuracies(summary.baseline, final),
    )


class Safe(str):
    """Text that the report itself made."""


def percent(share: float | None) -> Safe:
    """A share as a percentage, one decimal."""
    return Safe("–" if share is None else f"{share:.1%}")


def points(share: float | None) -> Safe:
    """A signed share in percentage points; infinite bounds as words."""
    if share is None:
        return Safe("any")
    if not math.isfinite(share):
        return Safe("any")
    # `stats.paired.OPEN_ZERO`: above 0, and no size.
    return Safe("&gt;0" if 0 < share < 1e-9 else f"{share * 100:+.1f}".replace("-", "−"))


def amount(value: float | None, unit: str) -> Safe:
    """A drop or bound: a share in percentage points, or drift in nats a token."""
    if unit != "drift" or value is None or not math.isfinite(value) or 0 < value < 1e-9:
        return points(value)
    return Safe(f"{value:+.3f}".replace("-", "−"))


def accepted(tolerance: float, unit: str) -> Safe:
    """A tolerance."""
    return Safe(f"{tolerance:g} nats a token") if unit == "drift" else percent(tolerance)


def fine(size: float, unit: str) -> Safe:
    """A small drop."""
    return Safe(f"{size:.2g} nats a token") if unit == "drift" else Safe(f"{size * 100:.2g} points")


def number(value: float | None, digits: int = 2) -> Safe:
    """A number, grouped where it is whole."""
    if value is None:
        return Safe("–")
    return Safe(f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}")


def level(value: float) -> Safe:
    """An error probability."""
    return Safe(f"{value:.2g}")
