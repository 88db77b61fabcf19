"""Small SVG figures of a run, drawn here: what a page needs without a script, a font or a file from elsewhere.

Colours are those of the page's style sheet (classes), so that they follow a dark screen; words are escaped. A value
that is missing or not finite leaves a gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDE, HIGH = 640, 220
"""Size of the axes of a chart in pixels; the page scales it."""
LEFT, TOP, RIGHT, BOTTOM = 56, 30, 16, 40
"""Margins around them."""
MOST_POINTS = 600
"""Points of a curve that are drawn at most."""
SPIKE, FEW = 5.0, 20
"""A value that lies so many times the span of the lower 95% above these is cut off, where there are enough to tell."""
BAR = (140, 14)
"""Size of the bar of an interval."""
INK = {
    "one": "#0969da", "two": "#bc4c00", "grid": "#d1d9e0", "level": "#59636e", "mark": "#cf222e", "zero": "#59636e",
    "bound": "#59636e",
}  # fmt: skip
"""Colours where no style sheet reaches a figure: in a mail, or in a page made for print."""

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values over the steps of a run."""

    name: str
    points: Points
    style: str
    """Class in the style sheet: `one`, `two`."""
    bounds: Sequence[tuple[float, float | None, float | None]] = ()
    """Of some steps the lower and the upper bound; None: open."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened at a step."""

    step: float
    word: str


def chart(
    curves: Sequence[Curve],
    *,
    title: str,
    unit: str,
    span: tuple[float, float],
    marks: Sequence[Mark] = (),
    levels: Sequence[tuple[float, str]] = (),
) -> str:
    """Curves over steps as an SVG element; an empty text where no curve has a finite point.

    Args:
        curves: drawn in this order, each named in the legend.
        title: what is drawn, for a reader and for one who listens.
        unit: of the values.
        span: first and last step of the axis.
        marks: steps with a word beside a vertical line.
        levels: values with a name (or none) beside a dashed line.
    """
    curves = [curve for curve in curves if any(_finite(value) for _, value in curve.points)]
    if not curves:
        return ""
    values = [float(value) for curve in curves for _, value in curve.points if _finite(value) and value is not None]
    # Open bounds run out of the figure; finite ones are in it.
    values += [
        edge for curve in curves for row in curve.bounds for edge in row[1:] if edge is not None and _finite(edge)
    ]
    values += [value for value, _ in levels]
    low_x, high_x = span[0], max(span[1], span[0] + 1)
    low_y, high_y, ticks = axis(_without_spikes(values))

    def x(step: float) -> float:
        return LEFT + (step - low_x) / (high_x - low_x) * WIDE

    def y(value: float) -> float:
        # What lies above or below the figure is drawn at its edge.
        return TOP + (1 - min(max((value - low_y) / (high_y - low_y), 0.0), 1.0)) * HIGH

    bottom, width, height = TOP + HIGH, LEFT + WIDE + RIGHT, TOP + HIGH + BOTTOM
    parts = [
        f'<svg class="chart" role="img" viewBox="0 0 {width} {height}"><title>{escape(title)}</title>',
        f'<text x="{LEFT}" y="16">{escape(title)}, {escape(unit)}</text>',
    ]
    for tick in ticks:
        parts += [_line("grid", LEFT, y(tick), LEFT + WIDE, y(tick)), _text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end")]
    for tick in axis([low_x, high_x], margin=0.0)[2]:
        if tick == int(tick):
            parts.append(_text(x(tick), bottom + 16, f"{tick:g}", "middle"))
    parts.append(_text(LEFT + WIDE, bottom + 34, "step", "end"))
    for value, name in levels:
        parts.append(_line("level", LEFT, y(value), LEFT + WIDE, y(value)))
        if name:
            parts.append(_text(LEFT + WIDE, y(value) - 4, name, "end"))
    for place, mark in enumerate(marks):
        # Words of neighbouring marks stand on different lines.
        parts.append(_line("mark", x(mark.step), TOP, x(mark.step), bottom))
        side = "end" if x(mark.step) > LEFT + 0.7 * WIDE else "start"
        shift = -4 if side == "end" else 4
        parts.append(_text(x(mark.step) + shift, TOP + 12 + 13 * (place % 4), mark.word, side))
    legend = LEFT
    for curve in curves:
        parts.append(_line(curve.style, legend, bottom + 30, legend + 18, bottom + 30))
        parts.append(_text(legend + 24, bottom + 34, curve.name, "start"))
        legend += 7 * len(curve.name) + 48
    for curve in curves:
        for step, lower, upper in curve.bounds:
            ends = [y(e) if e is not None and _finite(e) else edge for e, edge in ((lower, bottom), (upper, TOP))]
            parts.append(_line(f"{curve.style} bound", x(step), ends[0], x(step), ends[1]))
        for run in _runs(_thin(curve.points)):
            path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in run)
            parts.append(f'<polyline class="{curve.style}" fill="none" stroke="{INK[curve.style]}" points="{path}"/>')
            if len(curve.points) <= 60:
                dot = f'<circle class="{curve.style}" fill="{INK[curve.style]}"'
                parts += [f'{dot} cx="{x(step):.1f}" cy="{y(value):.1f}" r="3"/>' for step, value in run]
    return "".join([*parts, "</svg>"])


def interval(
    drop: float | None, lower: float | None, upper: float | None, *, reach: float, tolerance: float, zone: str
) -> str:
    """A drop with its bounds as a bar, 0 in the middle and the tolerance as a tick; an empty text without a drop.

    Args:
        drop: the mean.
        lower: its lower bound; None: open.
        upper: its upper bound; None: open.
        reach: the value at either end of the bar; what lies beyond is cut.
        tolerance: the drop that is accepted.
        zone: class in the style sheet.
    """
    if drop is None or not _finite(drop) or reach <= 0:
        return ""
    wide, high = BAR
    middle = high / 2

    def x(value: float | None, open_end: float) -> float:
        share = open_end if value is None or not _finite(value) else max(-1.0, min(1.0, value / reach))
        return wide / 2 * (1 + share)

    return "".join([
        f'<svg class="bar {escape(zone)}" role="img" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}">',
        "<title>the drop and its bounds; the long line is 0, the dashed one the tolerance</title>",
        _line("zero", wide / 2, 0, wide / 2, high),
        _line("level", x(tolerance, 1.0), 1, x(tolerance, 1.0), high - 1),
        _line("bound", x(lower, -1.0), middle, x(upper, 1.0), middle),
        f'<circle cx="{x(drop, 0.0):.1f}" cy="{middle:g}" r="4"/></svg>',
    ])  # fmt: skip


def axis(values: Sequence[float], margin: float = 0.08) -> tuple[float, float, list[float]]:
    """Bounds with a margin, and round ticks inside: about five, at steps of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    room = margin * (high - low) or (0.1 * abs(high) or 0.1 if low == high else 0.0)
    low, high = low - room, high + room
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * factor for factor in (1, 2, 5) if power * factor >= rough), power * 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return low, high, [round(number * step, 12) for number in range(first, last + 1)]


def _without_spikes(values: Sequence[float]) -> list[float]:
    """The values that the axis is made for: a loss that blew up once would press all others flat."""
    ordered = sorted(values)
    most = ordered[int(0.95 * (len(ordered) - 1))]
    room = SPIKE * max(most - ordered[0], 1e-9)
    return [value for value in ordered if value <= most + room] if len(ordered) >= FEW else ordered


def _thin(points: Points) -> Points:
    """Every k-th point and the last, so that at most `MOST_POINTS` are left."""
    every = -(-len(points) // MOST_POINTS)
    thin = list(points[::every])
    return thin if not points or thin[-1] == points[-1] else [*thin, points[-1]]


def _runs(points: Points) -> list[list[tuple[float, float]]]:
    """The stretches without a gap."""
    found: list[list[tuple[float, float]]] = [[]]
    for step, value in points:
        if value is None or not _finite(value):
            found.append([])
        else:
            found[-1].append((step, value))
    return [run for run in found if run]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    ink = INK[style.partition(" ")[0]]
    return f'<line class="{style}" stroke="{ink}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
