"""report.html from a run's folder: one file that needs nothing else, no script, no network.

What comes from outside (names, replies, ids) is shown as text: Jinja2 escapes it, and the page's own policy forbids
scripts and anything from elsewhere, should that ever fail.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from backslide.report.figures import Curve, Mark, chart, interval
from backslide.report.format import Safe
from backslide.report.summary import Look, Summary
from backslide.report.template import fill
from backslide.report.text import plain
from backslide.verdict import CapabilityVerdict


def render(summary: Summary) -> str:
    """The report of a run as a page."""
    return fill(
        "report.html.j2",
        summary,
        # Control characters and overrides of writing direction are no matter of HTML's escapes.
        shown=_shown,
        autoescape=True,
        filters={"lines": _lines},
        charts=[Markup(figure) for figure in (_losses(summary), _drops(summary)) if figure],
        bars=[(title, rows, [Markup(_bar(row, rows)) for row in rows]) for title, rows in summary.tables],
    )


def _shown(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    # What the filters made is numbers and entities.
    return Markup(str(value)) if isinstance(value, Safe) else plain(str(value), limit=4000)


def _lines(text: str) -> Markup:
    """A reply with its own lines and indents: code reads as code."""
    lines = [line.expandtabs(4) for line in text[:4000].splitlines()]
    return Markup("\n").join(" " * (len(line) - len(line.lstrip(" "))) + plain(line, limit=4000) for line in lines)


def _losses(summary: Summary) -> str:
    """The target's curves."""
    train, held_out = summary.losses.train, summary.losses.held_out
    curves = [Curve(name="training", points=train, style="one"), Curve(name="held-out", points=held_out, style="two")]
    return chart(curves, title="Loss on the new task", unit="nats a token", span=_span(summary), marks=_marks(summary))


def _drops(summary: Summary) -> str:
    """What the looks saw of all items together, with their bounds."""
    seen: list[tuple[Look, CapabilityVerdict]] = [(look, row) for look in summary.looks if (row := look.main)]
    units = {row.unit for _, row in seen}
    if len(units) != 1:
        return ""  # no looks, or no one row that stands for all
    drift = units == {"drift"}
    scale = 1.0 if drift else 100.0

    def scaled(value: float | None) -> float | None:
        return None if value is None else value * scale

    points = [(0.0, 0.0), *((float(look.step), scaled(row.drop)) for look, row in seen)]
    bounds = [(float(look.step), scaled(row.lower), scaled(row.upper)) for look, row in seen]
    last = seen[-1][1]
    return chart(
        [Curve(name="drop and its bounds", points=points, style="one", bounds=bounds)],
        title=f"Drop against the base, {plain(last.capability, 40)}, on the monitor half",
        unit="nats a token" if drift else "points",
        span=_span(summary),
        marks=_marks(summary),
        levels=[(0.0, ""), (scale * last.tolerance, "tolerance")],
    )


def _span(summary: Summary) -> tuple[float, float]:
    """The steps of all charts."""
    steps: list[float] = [step for step, _ in (*summary.losses.train, *summary.losses.held_out)]
    steps += [look.step for look in summary.looks] + [mark.step for mark in _marks(summary)]
    return 0.0, max(steps, default=1.0)


def _marks(summary: Summary) -> list[Mark]:
    """What happened, a mark a step."""
    words: dict[int, list[str]] = {}
    if summary.diagnosis.regressed_at is not None:
        words[summary.diagnosis.regressed_at] = ["regression proven"]
    for done in summary.actions:
        if done.acted:
            words.setdefault(done.step, []).append(plain(done.kind.replace("_", " "), 40))
    return [Mark(step=step, word=", ".join(words[step])) for step in sorted(words)]


def _bar(row: CapabilityVerdict, rows: tuple[CapabilityVerdict, ...]) -> str:
    """The interval of a row, on one scale for all rows of its unit."""
    sizes = [
        abs(value)
        for other in rows
        if other.unit == row.unit
        for value in (other.drop, other.lower, other.upper, other.tolerance)
        if value is not None
    ]
    return interval(
        row.drop, row.lower, row.upper, reach=max(sizes, default=0.0), tolerance=row.tolerance, zone=str(row.zone)
    )
