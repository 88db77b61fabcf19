"""The target's curves, and what they show: fell or not, flat at the end, turned, diverged.

A training loss is a number per batch, so it is noisy; a held-out loss is a mean over one fixed set, so it hardly is.
Every rule therefore compares medians of several points with the noise that the curve itself shows, and none turns on
a single outlier where there are enough points to tell (six training losses, four held-out ones). Losses may be zero
or negative, as those of policy-gradient and preference methods are: sizes are taken relative to the largest absolute
value of a curve, never to its first.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = tuple[tuple[int, float], ...]
"""Step and value, by step."""

LARGEST = 1e30
"""What is larger is no loss any more, and counts as not finite."""
LEARNED = 0.02
"""Share of a curve's size from which a change counts, whatever the noise."""
RISE = 0.03
"""Share of a held-out curve's size that it stands above its lowest where it overfits."""
FEW = 6
"""Points from which a curve of single batches tells its noise; of fewer the first and the last are compared."""
FEW_CHANGE = 0.10
"""Share of the size that a curve of `FEW` or less batches has to change, since its noise is not known."""
WINDOW = 3
"""Points of a median at least: one outlier does not move it."""
SURE = 3.0
"""Standard errors that a difference of medians has to pass."""
TREND = 2.6
"""Standard normal deviates of a trend that is proven; six points reach it where all are in order."""
MOST = 300
"""Points of which all pairs are compared; longer curves are put together into medians of as many blocks."""
FLAT_SHARE = 0.1
"""Share of the whole fall within which the last third is flat."""


class Way(str, Enum):
    """Which way a curve went."""

    FELL = "fell"
    FLAT = "flat"
    ROSE = "rose"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Losses:
    """The target's curves over a run."""

    train: Points = ()
    """Step and training loss: of a batch, or the mean over the batches since the last one."""
    held_out: Points = ()
    """Step and loss on held-out data; step 0 is the base model."""
    rewards: Points = ()
    """Step and mean reward, of methods that have one; higher is better. They tell learning better than the loss does,
    which is near zero by construction there."""
    not_finite: tuple[int, ...] = ()
    """Steps at which a loss was not a finite number."""

    @property
    def best(self) -> Points:
        """The held-out losses where there are at least two, else the training losses."""
        return self.held_out if len(self.held_out) > 1 else self.train


def losses_of(events: Iterable[Mapping[str, Any]]) -> Losses:
    """The curves in a run's events. What was logged after the checkpoint that a run was resumed from is left out."""
    series: dict[str, dict[int, float | None]] = {"loss": {}, "eval_loss": {}, "reward": {}}
    for event in events:
        kind, step = event.get("event"), event.get("step")
        if not isinstance(step, int):
            continue
        if kind == "resumed":
            series = {name: {at: v for at, v in of.items() if at <= step} for name, of in series.items()}
        if kind == "loss":
            for name, of in series.items():
                if name in event:
                    # What is not finite is written as null.
                    of[step] = float(event[name]) if is_number(event[name]) else None
    finite = {name: tuple((at, v) for at, v in sorted(of.items()) if v is not None) for name, of in series.items()}
    bad = sorted({at for name in ("loss", "eval_loss") for at, v in series[name].items() if v is None})
    return Losses(finite["loss"], finite["eval_loss"], finite["reward"], tuple(bad))


def clean(points: Iterable[tuple[int, float]]) -> Points:
    """The finite points by step; of several at one step the last."""
    return tuple(sorted({int(step): float(value) for step, value in points if is_number(value)}.items()))


def noise(values: Sequence[float]) -> float:
    """Standard deviation of the noise of a smooth curve; 0 for fewer than five points, which do not tell.

    From second differences, as Gasser, Sroka and Jennen-Steinmetz (Biometrika 73, 1986) take it: they cancel a
    slope, and y[i-1] - 2 y[i] + y[i+1] of noise alone has variance 6 σ². Deviation: 1.4826 times the median of their
    absolute values in place of the mean of squares, so that outliers do not count.
    """
    if len(values) < 5:
        return 0.0
    return float(1.4826 * np.median(np.abs(np.diff(np.asarray(values, dtype=float), 2))) / math.sqrt(6))


def noise_of_few(values: Sequence[float]) -> float:
    """The same for a curve on a fixed set, of few points with little noise: 0 below ten, whose curvature hides it.

    The smallest that is found when each point in turn is left out: one outlier is in three of a handful of second
    differences.
    """
    if len(values) < 10:
        return 0.0
    return min(noise([*values[:k], *values[k + 1 :]]) for k in range(len(values)))


def slope(points: Points) -> float:
    """Theil–Sen: the median of the slopes of all pairs of points (Sen, JASA 63, 1968, 1379)."""
    x, y = (_blocks(part) for part in zip(*points, strict=True))
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def trend(values: Sequence[float]) -> float:
    """Mann and Kendall's test of a trend, as a standard normal deviate (Mann, Econometrica 13, 1945, 245)."""
    data = _blocks(values)
    first, second = np.triu_indices(len(data), 1)
    score = float(np.sign(data[second] - data[first]).sum())
    spread = math.sqrt(len(data) * (len(data) - 1) * (2 * len(data) + 5) / 18)
    return (abs(score) - 1) / spread * math.copysign(1, score) if score else 0.0


def way(points: Iterable[tuple[int, float]]) -> Way:
    """Which way a curve of single batches went from its beginning to its end.

    The median of its beginning against that of the last third. The beginning is the first `WINDOW` points; where that
    shows nothing the first tenth, which sees a slow fall in much noise, and then the first third. The difference counts
    beyond `SURE` standard errors of the noise (more where it is known from few points) and `LEARNED` of the curve's
    size. Else a trend counts, where the order of the points proves one (`trend` beyond `TREND`). With fewer than `FEW`
    points only the first and the last can be compared: they must differ by `FEW_CHANGE` of the size.
    """
    values = [value for _, value in clean(points)]
    if len(values) < 2:
        return Way.UNKNOWN
    if len(values) < FEW:
        change, size = values[-1] - values[0], _size(values)
        known = _way(change, FEW_CHANGE * size)
        # A small difference of two batches says nothing.
        return Way.UNKNOWN if known is Way.FLAT else known
    last = max(WINDOW, len(values) // 3)
    # The noise of few points is itself uncertain: 4 second differences at the least.
    sure = SURE * (1 + 4 / len(values))
    for first in sorted({WINDOW, max(WINDOW, len(values) // 10), last}):
        change = float(np.median(values[-last:]) - np.median(values[:first]))
        found = _way(change, max(sure * _error(noise(values), first, last), LEARNED * _size(values)))
        if found is not Way.FLAT:
            return found
    # A steep curve of few points looks like noise to second differences, and is still in order.
    change = slope(tuple(enumerate(values))) * (len(values) - 1)
    return _way(change, LEARNED * _size(values)) if abs(trend(values)) >= TREND else Way.FLAT


def way_held_out(points: Iterable[tuple[int, float]]) -> Way:
    """Which way a curve on a fixed set went: its first value, the base model's, against the median of its end."""
    values = [value for _, value in clean(points)]
    if len(values) < 2:
        return Way.UNKNOWN
    last = WINDOW if len(values) > WINDOW else 1
    change = float(np.median(values[-last:])) - values[0]
    return _way(change, max(SURE * noise_of_few(values), LEARNED * _size(values)))


def learned(losses: Losses) -> bool | None:
    """Whether the target was learnt; None where too little is known. Rewards decide, then held-out, then training."""
    if len(clean(losses.rewards)) > 1:
        found = way((step, -reward) for step, reward in losses.rewards)
    elif len(clean(losses.held_out)) > 1:
        found = way_held_out(losses.held_out)
    else:
        found = way(losses.train)
    return None if found is Way.UNKNOWN else found is Way.FELL


def turned_at(losses: Losses) -> int | None:
    """The step from which the held-out loss rose while the training loss fell: overfitting; None where it did not.

    The held-out loss stands above its lowest by more than `RISE` of its size and more than its noise, the
    training loss fell over the run and did not rise since. From four held-out points on, this must hold whichever
    of them but the first is left out.
    """
    held = clean(losses.held_out)
    if len(held) < 2 or way(losses.train) is not Way.FELL:
        return None
    # The lowest of several values is below their mean by chance, too.
    floor = (SURE + 1) * noise_of_few([value for _, value in held])
    turn = _rise(held, floor)
    if turn is not None and len(held) >= 4:
        without = [_rise(held[:k] + held[k + 1 :], floor) for k in range(1, len(held))]
        turn = None if None in without else turn
    if turn is None or way(p for p in losses.train if p[0] >= turn) is Way.ROSE:
        return None
    return turn


def converged(losses: Losses) -> bool | None:
    """Whether the curves are flat over their last third, within their noise; None where too little is known.

    The training loss must have fallen (of a method with rewards, these must have risen). The Theil–Sen change over the
    last third, by steps, is at most `SURE` standard errors or `LEARNED` of the size, and at most `FLAT_SHARE` of the
    whole fall; where the noise could hide a quarter of the fall, nothing is known. A held-out loss that is known
    at four steps or more must not have moved over its last three, either.
    """
    rewards = clean(losses.rewards)
    flat = _flat(clean((s, -r) for s, r in rewards) if len(rewards) > 1 else clean(losses.train))
    held = [value for _, value in clean(losses.held_out)]
    if flat and len(held) >= 4:
        return abs(held[-1] - held[-WINDOW]) <= max(LEARNED * _size(held), SURE * noise_of_few(held))
    return flat


def diverged(losses: Losses) -> bool:
    """Whether a loss is not finite, or the training loss ended well above its start, beyond its noise.

    Well above: the median of the last tenth (three points at least) over that of the first three by a tenth of the
    curve's size and by four standard errors. With three to five points, both of the last two must stand above the
    first by half of the size. The loss of a method with rewards rises while it learns, so only its finiteness counts.
    """
    if losses.not_finite or any(not is_number(value) for _, value in (*losses.train, *losses.held_out)):
        return True
    values = [value for _, value in clean(losses.train)]
    if len(clean(losses.rewards)) > 1 or len(values) < 3:
        return False
    if len(values) < FEW:
        return min(values[-2:]) - values[0] > 0.5 * _size(values)
    last = max(WINDOW, len(values) // 10)
    rise = float(np.median(values[-last:]) - np.median(values[:WINDOW]))
    return rise > max(4 * _error(noise(values), WINDOW, last), 0.1 * _size(values))


def _flat(points: Points) -> bool | None:
    values = [value for _, value in points]
    found = way(points)
    if len(values) < 3 * WINDOW or found is Way.UNKNOWN:
        return None
    if found is not Way.FELL:
        return False
    begin, end = points[0][0], points[-1][0]
    tail = tuple(point for point in points if point[0] >= end - (end - begin) / 3)
    if len(tail) < WINDOW:
        return None
    steps = np.array([step for step, _ in tail], dtype=float)
    span = steps[-1] - steps[0]
    own = [value for _, value in tail]
    sigma = noise(own if len(own) >= 2 * FEW else values)
    error = sigma / math.sqrt(float(((steps - steps.mean()) ** 2).sum())) * span
    fall = float(np.median(values[:WINDOW]) - np.median(own))
    if 2 * error > 0.25 * fall:
        return None
    change = abs(slope(tail)) * span
    return bool(change <= max(SURE * error, LEARNED * _size(values)) and change <= FLAT_SHARE * fall)


def _rise(points: Points, floor: float) -> int | None:
    """The step of the lowest value, where the last one stands well above it."""
    turn, lowest = min(points, key=lambda point: point[1])
    rise = points[-1][1] - lowest
    return turn if rise > max(floor, RISE * _size([value for _, value in points])) else None


def _blocks(values: Sequence[float]) -> NDArray[np.float64]:
    """Medians of at most `MOST` blocks of neighbours, as long as each other but for one point."""
    data = np.asarray(values, dtype=float)
    if len(data) <= MOST:
        return data
    return np.array([np.median(block) for block in np.array_split(data, MOST)])


def _way(change: float, threshold: float) -> Way:
    if abs(change) <= threshold:
        return Way.FLAT
    return Way.FELL if change < 0 else Way.ROSE


def _error(sigma: float, first: int, last: int) -> float:
    """Standard error of a difference of two medians; a median's is √(π/2) times a mean's."""
    return sigma * math.sqrt(math.pi / 2 * (1 / first + 1 / last))


def _size(values: Sequence[float]) -> float:
    """The largest absolute value but one, so that no outlier makes all else small."""
    ordered = sorted(map(abs, values))
    return ordered[-1] if len(ordered) < FEW else ordered[-2]


def is_number(value: object) -> bool:
    """Whether a value is a number that a curve can hold."""
    # By comparison: math.isfinite() raises for whole numbers beyond the floats. NumPy's numbers are real, too.
    number: Any = value
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and bool(abs(number) <= LARGEST)
