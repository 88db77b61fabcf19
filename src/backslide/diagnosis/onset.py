"""Since which step an ability falls: a change point in the paired drops over the looks, with its uncertainty.

The drop is 0 up to the change point τ and then rises: at once (a step), or along a ramp to a plateau, the broken stick
among them (Muggeo, Statistics in Medicine 22, 2003, 3055). The likelihood of τ is integrated over the height and the
length of the ramp and over how the looks hang together (Berger, Liseo and Wolpert, Statistical Science 14, 1999, 1);
with every τ of the run as likely beforehand that gives its posterior (Smith, Biometrika 62, 1975, 407), and its
region of highest density is the uncertainty.

Looks ask the same items again, so their errors are not independent: on real traces drops at neighbouring looks
correlate by 0.7 to 0.97. A profile likelihood, which takes the correlation that fits best, is far too sure of itself
on 3 to 20 looks (`docs/LOG.md`); hence the integral. Errors are taken as Gaussian, with the standard errors that the
verdicts tell. What the regions cover is measured by simulation (`tests/unit/test_onset.py`, `docs/diagnosis.md`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp
from scipy.stats import norm

from backslide.verdict import CapabilityVerdict, Measure, Verdict

LEVEL = 0.95
"""Posterior probability of the region, and of a fall from which on one is seen."""
PLACES = 8
"""Candidates for τ between two looks, their first step among them."""
RAMPS = tuple(0.03 * 1.2**k for k in range(20))
"""Lengths of the ramp as shares of the run, up to nearly 1; together as likely beforehand as a step."""
LASTING = (0.0, 0.3, 0.6)
"""Shares of the errors' variance that are common to all looks, as likely as each other beforehand."""
FADING = (0.0, 0.3, 0.6)
"""Correlations of the rest of it at neighbouring looks; at two looks' distance the square, and so on."""
MOST_LOOKS = 60
"""Looks whose likelihood is computed at most; of more, those around the fall and some of the rest."""
METHOD = "posterior of a step or ramp in the paired drops, integrated over its size and the looks' correlation"


@dataclass(frozen=True)
class Point:
    """What a look saw."""

    step: int
    drop: float
    """Mean paired drop against the baseline; positive is worse."""
    error: float
    """Its standard error."""


@dataclass(frozen=True)
class Onset:
    """When an ability began to fall."""

    of: str
    """The capability, or all items together."""
    measure: str
    """`accuracy`, `probability`, `bits per byte` or `drift`."""
    after: int
    """The last look (0: the baseline) before the fall most likely began."""
    before: int
    """The look after it."""
    step: float
    """The likeliest step: the mean of τ between these two looks."""
    probability: float
    """That it began between these two looks."""
    low: float
    """It began at this step at the earliest, at `level`."""
    high: float
    """And at this step at the latest."""
    level: float
    """Probability of `low` to `high`."""
    seen: bool
    """Whether the looks show a fall at all, at `level`; where not, `low` to `high` is the whole run."""
    looks: int
    """Number of looks that it rests on."""
    method: str

    def to_dict(self) -> dict[str, Any]:
        """The onset as JSON can hold it."""
        return dataclasses.asdict(self)


def find_onset(looks: Iterable[tuple[int, Verdict]], *, level: float = LEVEL) -> Onset | None:
    """When the ability that shows its loss most clearly began to fall.

    Of all rows and measures in the looks' verdicts the one is taken whose drop is the most standard errors above 0 at
    the last look. None where no look has a drop.
    """
    series: dict[tuple[str, str], dict[int, Point]] = {}
    for step, verdict in looks:
        rows = [*verdict.capabilities, *([verdict.pooled] if verdict.pooled is not None else [])]
        for row in rows:
            for measure in row.measures:
                error = standard_error(row, measure)
                if step > 0 and measure.drop is not None and error is not None:
                    series.setdefault((row.capability, measure.name), {})[step] = Point(step, measure.drop, error)
    if not series:
        return None
    last = max(step for points in series.values() for step in points)
    current = {key: points for key, points in series.items() if last in points}
    (of, measure_name), points = max(current.items(), key=lambda pair: pair[1][last].drop / pair[1][last].error)
    found = change_point(list(points.values()), level=level)
    return dataclasses.replace(found, of=of, measure=measure_name)


def standard_error(row: CapabilityVerdict, measure: Measure) -> float | None:
    """The standard error of a measure's drop; None where the verdict does not tell it.

    Of accuracy from the flips, √(lost + won + 1 − (lost − won)²/n) / n, where the 1 keeps a look without a flip from
    being certain. Else from the nearer bound and its level as if it were Gaussian, which the bounds of betting, wider
    than they need be, make larger than it is.
    """
    if measure.name == "accuracy" and row.clusters is None and row.lost is not None and row.won is not None:
        if not row.items:
            return None
        flips = row.lost + row.won + 1 - (row.lost - row.won) ** 2 / row.items
        return math.sqrt(max(flips, 1.0)) / row.items
    if measure.drop is None:
        return None
    found = []
    if measure.upper is not None and measure.upper > measure.drop:
        found.append((measure.upper - measure.drop) / float(norm.isf(min(measure.alpha_upper, 0.45))))
    # A bound that was lifted to "above 0" says no size (`stats.paired.OPEN_ZERO`).
    if measure.lower is not None and measure.lower < measure.drop and not 0 < measure.lower < 1e-9:
        found.append((measure.drop - measure.lower) / float(norm.isf(min(measure.alpha_lower, 0.45))))
    return min(found) if found else None


def change_point(points: Sequence[Point], *, level: float = LEVEL) -> Onset:
    """The change point of a series of drops, with step 0 and drop 0 in front of it.

    Raises `ValueError` for no points, steps below 1 or twice the same, or errors that are not positive.
    """
    points = sorted(points, key=lambda point: point.step)
    every = [point.step for point in points]
    if not points or every[0] < 1 or len(set(every)) < len(every):
        raise ValueError(f"steps are {every}, different ones from 1 are needed")
    if not all(math.isfinite(point.drop) and math.isfinite(point.error) and point.error > 0 for point in points):
        raise ValueError(
            f"drops {[p.drop for p in points]} with errors {[p.error for p in points]}: finite ones are needed, errors "
            "above 0"
        )
    if len(points) <= MOST_LOOKS:
        return _posterior(points, level)
    # The work grows with the square of the looks: few tell where the fall is, and the others of there are added.
    last = points[-1]
    coarse = _evenly(points, MOST_LOOKS // 2)
    seen = _posterior(coarse, level)
    gap = math.ceil(last.step / len(coarse))
    near = [point for point in points if seen.low - gap <= point.step <= seen.high + gap]
    chosen = {point.step: point for point in (*coarse, *_evenly(near, MOST_LOOKS // 2))}
    return dataclasses.replace(_posterior([chosen[step] for step in sorted(chosen)], level), looks=len(points))


def _evenly(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many of the points, evenly over them, the last among them."""
    if len(points) <= most:
        return list(points)
    places = np.linspace(len(points) - 1, 0, most).round().astype(int)
    return [points[place] for place in sorted(set(places.tolist()))]


def _posterior(points: Sequence[Point], level: float) -> Onset:
    """The change point of sound points in the order of their steps."""
    steps = np.array([point.step for point in points], dtype=float)
    drops = np.array([point.drop for point in points], dtype=float)
    errors = np.array([point.error for point in points], dtype=float)
    edges = np.concatenate([[0.0], steps])
    # From each look, included, to the next, excluded: then the next look is the first with a loss. Shape (T,).
    places = np.concatenate([np.linspace(a, b, PLACES, endpoint=False) for a, b in zip(edges[:-1], steps, strict=True)])
    widths = np.repeat(np.diff(edges) / PLACES, PLACES)
    fall, nothing = _likelihood(steps, drops, errors, places)
    weights = fall + np.log(widths / steps[-1])
    total = float(logsumexp(weights))
    posterior = np.exp(weights - total)
    # Of huge likelihoods the logarithm of the sum is rounded.
    posterior /= posterior.sum()
    seen = total - nothing >= math.log(level / (1 - level))
    # The region of highest density; of equal ones the earlier place first.
    order = np.argsort(-posterior / widths, kind="stable")
    count = int(np.searchsorted(np.cumsum(posterior[order]), level)) + 1
    inside = np.sort(order[:count])
    mass = posterior.reshape(-1, PLACES)
    gap = int(mass.sum(axis=1).argmax())
    middle = (places + widths / 2).reshape(-1, PLACES)[gap]
    return Onset(
        of="",
        measure="",
        after=int(edges[gap]),
        before=int(steps[gap]),
        step=float((middle * mass[gap]).sum() / mass[gap].sum()),
        probability=min(1.0, float(mass[gap].sum())),
        low=float(places[inside[0]]) if seen else 0.0,
        high=float(places[inside[-1]] + widths[inside[-1]]) if seen else float(steps[-1]),
        level=level,
        seen=bool(seen),
        looks=len(points),
        method=METHOD,
    )


def _likelihood(
    steps: NDArray[np.float64], drops: NDArray[np.float64], errors: NDArray[np.float64], places: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Logarithms of the integrated likelihood of each place, and of no fall, up to one constant."""
    shape = _shapes(steps, places) / errors  # (R, T, K)
    data = drops / errors
    ramp = np.log([0.5, *[0.5 / len(RAMPS)] * len(RAMPS)])
    distance = np.abs(np.subtract.outer(np.arange(len(steps)), np.arange(len(steps))))
    # A single look has nothing to hang together with.
    kinds = [(a, b) for a in LASTING for b in FADING] if len(steps) > 1 else [(0.0, 0.0)]
    falls, nothings = [], []
    for lasting, fading in kinds:
        correlation = lasting + (1 - lasting) * np.power(fading, distance)
        inverse = np.linalg.inv(correlation)
        weighted = inverse @ data
        base = -0.5 * float(np.linalg.slogdet(correlation)[1] + data @ weighted)
        cross = shape @ weighted  # (R, T)
        square = np.einsum("rtk,kl,rtl->rt", shape, inverse, shape, optimize=True)
        # A height h from 0 to 1, each as likely: the integral of exp(h·cross - h²·square/2).
        root = np.sqrt(square)
        mass = _log_mass(-cross / root, (square - cross) / root)
        falls.append(base + cross**2 / (2 * square) + 0.5 * np.log(2 * math.pi / square) + mass)
        nothings.append(base)
    fall = logsumexp(np.stack(falls), axis=0) - math.log(len(kinds))
    return logsumexp(fall + ramp[:, None], axis=0), float(logsumexp(nothings) - math.log(len(kinds)))


def _log_mass(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the standard normal probability between two bounds, in whichever tail is the smaller."""
    flip = low + high > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    above, below = log_ndtr(high), log_ndtr(low)
    return np.asarray(above + np.log1p(-np.exp(below - above)))


def _shapes(steps: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The drop at each look for a height of 1, of a step and of each ramp. Shape (1 + ramps, places, looks)."""
    since = steps[None, :] - places[:, None]  # (T, K)
    ramps = [np.clip(since / (ramp * steps[-1]), 0, 1) for ramp in RAMPS]
    return np.stack([(since > 0).astype(float), *ramps])
