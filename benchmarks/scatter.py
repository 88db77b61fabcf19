"""One small plot as SVG, by hand: groups of points, each a colour in the legend.

A group is a cloud with its mean, to which an arrow may lead from a state before, or a series with a line through it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

COLOURS = ("#111111", "#0969da", "#cf222e", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a", "#0f8a8a", "#d4622a",
           "#6e7f14", "#4c2889")  # fmt: skip
LEFT, TOP, WIDE, HIGH, LEGEND = 70, 46, 430, 300, 230
"""Pixels: the corner of the axes, their size, and the width beside them for the legend."""


@dataclass(frozen=True)
class Group:
    """Points of one kind, drawn as small dots with a large one at their mean; or a series, see `ordered`."""

    name: str
    points: Sequence[tuple[float, float]]
    before: Sequence[tuple[float, float]] = ()
    """Where they came from: an arrow leads from the mean of these to the mean of the points."""
    ordered: bool = False
    """A series: a line leads through the points as they come, and none of them, nor their mean, stands out."""
    labels: Sequence[str] = ()
    """Of a series: words beside its points, one each; an empty one is not drawn."""


def scatter(groups: Sequence[Group], *, title: str, x: str, y: str, line: tuple[float, str] | None = None) -> str:
    """The plot as the text of an SVG file.

    Args:
        groups: at least one, each with at least one point.
        title: words over the plot.
        x: words at the axis to the right.
        y: words at the axis upwards.
        line: a height at which a dashed line runs, and its name.

    Raises `ValueError` where there is nothing to draw, or a label too many or too few.
    """
    everything = [point for group in groups for point in (*group.points, *group.before)]
    if not everything or not all(group.points for group in groups):
        raise ValueError("a plot needs groups, and each of them a point")
    for group in groups:
        if group.labels and not (group.ordered and len(group.labels) == len(group.points)):
            raise ValueError(f"{group.name} has {len(group.labels)} labels; a series has one for each of its points")
    heights = [point[1] for point in everything] + ([line[0]] if line else [])
    low_x, high_x, ticks_x = _axis([point[0] for point in everything])
    low_y, high_y, ticks_y = _axis(heights)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        right = (point[0] - low_x) / (high_x - low_x)
        up = (point[1] - low_y) / (high_y - low_y)
        return LEFT + right * WIDE, TOP + (1 - up) * HIGH

    width, height, bottom = LEFT + WIDE + LEGEND, TOP + HIGH + 54, TOP + HIGH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#57606a"/></marker></defs>',
        f'<text x="{LEFT}" y="24" font-size="14">{escape(title)}</text>',
    ]
    for tick in ticks_x:
        spot = at((tick, low_y))[0]
        parts += [_line(spot, TOP, spot, bottom, "#eaeef2"), _text(spot, bottom + 18, f"{tick:g}", "middle")]
    for tick in ticks_y:
        spot = at((low_x, tick))[1]
        parts += [_line(LEFT, spot, LEFT + WIDE, spot, "#eaeef2"), _text(LEFT - 8, spot + 4, f"{tick:g}", "end")]
    parts += [
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDE}" height="{HIGH}" fill="none" stroke="#57606a"/>',
        _text(LEFT + WIDE / 2, bottom + 42, x, "middle"),
        f'<text transform="translate(18 {TOP + HIGH / 2}) rotate(-90)" text-anchor="middle">{escape(y)}</text>',
    ]
    if line:
        spot = at((low_x, line[0]))[1]
        parts += [
            _line(LEFT, spot, LEFT + WIDE, spot, "#57606a", ' stroke-dasharray="5 4"'),
            _text(LEFT + WIDE - 6, spot - 6, line[1], "end"),
        ]
    for place, group in enumerate(groups):
        colour = COLOURS[place % len(COLOURS)]
        before, points = [at(point) for point in group.before], [at(point) for point in group.points]
        parts += _series(points, group.labels, colour) if group.ordered else _cloud(points, before, colour)
        row = TOP + 12 + 20 * place
        parts.append(f'<circle cx="{LEFT + WIDE + 22}" cy="{row}" r="6" fill="{colour}" fill-opacity="0.75"/>')
        parts.append(_text(LEFT + WIDE + 36, row + 4, group.name, "start"))
    return "\n".join([*parts, "</svg>", ""])


def _cloud(spots: Sequence[tuple[float, float]], before: Sequence[tuple[float, float]], colour: str) -> list[str]:
    """A small dot at each place and a large one at their mean, with an arrow from the mean of where they came from."""
    parts, own = [], _mean(spots)
    if before and math.dist(came := _mean(before), own) > 12:
        # It ends at the rim of the dot.
        short = 1 - 7 / math.dist(came, own)
        tip = (came[0] + short * (own[0] - came[0]), came[1] + short * (own[1] - came[1]))
        parts.append(_line(*came, *tip, "#57606a", ' marker-end="url(#tip)"'))
        parts.append(f'<circle cx="{came[0]:.1f}" cy="{came[1]:.1f}" r="4" fill="white" stroke="{colour}"/>')
    if len(spots) > 1:
        parts += [f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.5" fill="{colour}"/>' for cx, cy in spots]
    return [*parts, f'<circle cx="{own[0]:.1f}" cy="{own[1]:.1f}" r="6" fill="{colour}" fill-opacity="0.75"/>']


def _series(spots: Sequence[tuple[float, float]], labels: Sequence[str], colour: str) -> list[str]:
    """A line through the places, a dot at each, and the labels above them to the right."""
    path = " ".join(f"{cx:.1f},{cy:.1f}" for cx, cy in spots)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-opacity="0.6"/>']
    parts += [f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="{colour}" fill-opacity="0.75"/>' for cx, cy in spots]
    for (cx, cy), words in zip(spots, labels, strict=False):
        if words:
            parts.append(
                f'<text x="{cx + 5:.1f}" y="{cy - 5:.1f}" font-size="9" fill="{colour}">{escape(words)}</text>'
            )
    return parts


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return fmean(point[0] for point in points), fmean(point[1] for point in points)


def _axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Bounds with a margin, and round ticks inside of them: about five, at steps of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1
    low, high = low - margin, high + margin
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return low, high, [round(number * step, 10) for number in range(first, last + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
