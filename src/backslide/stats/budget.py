"""Looks on a budget: score a capability's items one by one in random order, and stop as soon as enough is known.

The claim is about the suite's own items and no others. The N items of a capability are a fixed finite population
with drops D_1..D_N in [-1, 1]; what is random is the order alone, drawn *anew at every look, after the model state to
be judged is fixed*. So nothing is assumed of the model, the training or the looks before: the training may have been
steered by them, and the errors of several looks and capabilities add up (share alpha out with `spending`, whose p
values may be the `p_lost` of here). Once all N items are scored there is no sampling error left at all.

Two questions are asked at a time, each with a betting process (Waudby-Smith and Ramdas 2024, JRSS B 86:1, section 5;
2020, NeurIPS 33:20204):

- *lost*: is "mean drop <= 0" refuted? Wrongly with probability at most alpha.
- *clear*: is "mean drop > tolerance" refuted? Wrongly with probability at most beta.

*The process.* Let S be the sum of the first t - 1 drops. If the mean of all N is at most m, then the mean of the
N - t + 1 drops that are left is at most

    m_t = (N m - S) / (N - t + 1),

and the next drop is drawn from them at random, so E[D_t - m_t | the past] <= 0. With bets 0 <= l_t <= 1 / (1 + m_t)
that depend on the past alone, every factor 1 + l_t (D_t - m_t) is >= 0 and its mean is <= 1: the product is a
nonnegative supermartingale that starts at 1, and so is an average of such products. It ever reaches 1 / alpha with
probability at most alpha (Ville 1939). *clear* is the same with all signs turned: drops -D_t, bound -tolerance. The
bound holds at every moment and so wherever the user stops. If m_t < -1, no drops that are left can make the mean as
low as m: the hypothesis is refuted with certainty, and the item after which this is so is the last one needed.

*The bets* are c / (1 + m_t) for the fixed shares c of `SHARES`, and the wealth is the average over them by `WEIGHTS`:
whatever the flip rate and the drop, one of the shares is not far from the best, and the average lags behind the best
by -log of its weight at most. Deviation from the source: there the bets follow the drops seen so far; an average
over fixed shares needs no start-up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backslide.stats.paired import FloatArray, check_level
from backslide.stats.sequential import SequentialTest, exactly, positive, same_test

SHARES = (0.08, 0.2, 0.35, 0.5, 0.65, 0.9)
"""Bets as shares of the largest one that cannot go below zero; each < 1, so that no wealth is ever lost entirely."""

WEIGHTS = (0.1, 0.15, 0.2, 0.25, 0.2, 0.1)
"""Start of each share's wealth; they sum to 1."""

_ROUNDING = 1e-12  # times N: sums of drops nearer than this to a bound are taken to lie on it
_LEAST_ROOM = 1e-9  # of 1 + m_t; below it rounding would decide what a factor is, so no bet is made


@dataclass(frozen=True, slots=True)
class BudgetState:
    """Where a look at one capability stands. Raises `ValueError` for values that cannot be."""

    items: int
    """N, all items of the capability; each is scored at most once."""
    alpha: float
    """Largest probability of `lost` where the mean drop of all N items is <= 0."""
    beta: float
    """Largest probability of `clear` where the mean drop of all N items is > tolerance."""
    tolerance: float
    """The drop that is accepted, in [0, 1)."""
    scored: int = 0
    """Items scored so far."""
    total: float = 0.0
    """Sum of their drops."""
    wealth_lost: tuple[float, ...] = (0.0,) * len(SHARES)
    """Natural log of each share's wealth against "mean drop <= 0"."""
    wealth_clear: tuple[float, ...] = (0.0,) * len(SHARES)
    """The same against "mean drop > tolerance"."""
    peak_lost: float = 0.0
    """Natural log of the largest average wealth so far, >= 0."""
    peak_clear: float = 0.0
    """The same against "mean drop > tolerance"."""
    lost_at: int | None = None
    """Number of items after which "mean drop <= 0" was refuted."""
    clear_at: int | None = None
    """Number of items after which "mean drop > tolerance" was refuted."""

    def __post_init__(self) -> None:
        positive("items", self.items, "a capability without items cannot be looked at")
        check_level("alpha", self.alpha)
        check_level("beta", self.beta)
        if not 0.0 <= self.tolerance < 1.0:
            raise ValueError(f"tolerance (={self.tolerance}) must be in [0, 1): pass a share, 0.03 for 3 points")
        if not 0 <= self.scored <= self.items:
            raise ValueError(f"scored (={self.scored}) must be from 0 to items (={self.items})")
        if not len(self.wealth_lost) == len(self.wealth_clear) == len(SHARES):
            raise ValueError(f"wealth_lost and wealth_clear must have one number per share ({len(SHARES)})")

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON can hold it."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**row, "wealth_lost": list(self.wealth_lost), "wealth_clear": list(self.wealth_clear)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> BudgetState:
        """The inverse of `to_dict`. Raises `ValueError` where the dictionary is no such state."""
        row = exactly(cls, row)
        return cls(**{**row, **{name: tuple(row[name]) for name in ("wealth_lost", "wealth_clear")}})


@dataclass(frozen=True, slots=True)
class BudgetDecision:
    """What is known after so many items, about the mean drop of the suite's own N items."""

    scored: int
    """Items scored so far."""
    lost: bool
    """Whether "mean drop <= 0" is refuted: something was lost."""
    clear: bool
    """Whether "mean drop > tolerance" is refuted. Both can be true: a drop between 0 and the tolerance."""
    lost_at: int | None
    """Number of items after which `lost` was decided, counted over all batches; None: it is not."""
    clear_at: int | None
    """Number of items after which `clear` was decided; None: it is not."""
    decided_at: int | None
    """The earlier of the two: no item after this one was needed."""
    p_lost: float
    """p value against "mean drop <= 0", valid at every moment: one over the largest wealth so far, in (0, 1]; 0 where
    the scored items alone prove it."""
    p_clear: float
    """p value against "mean drop > tolerance", likewise."""
    mean: float
    """Mean drop of the items scored so far; of all N once they all are. NaN before the first."""
    census: bool
    """Whether all N items are scored: then there is no sampling error."""


def budget(
    items: int, *, alpha: float, beta: float, tolerance: float
) -> SequentialTest[BudgetState, ArrayLike, BudgetDecision]:
    """One look at one capability, item by item without replacement, until it is clear or something was lost.

    `update` takes the drops of the next batch in the order in which the items were scored, shape (n,), each in
    [-1, 1], hard or soft; how the items are cut into batches changes nothing. The order must be uniformly random,
    and drawn anew at each look. It raises `ValueError` for drops that are not finite or outside [-1, 1], and for
    more items than there are. Claims, method and sources are in the docstring of this module; exact at every N.

    Args:
        items: N, items of the capability, >= 1.
        alpha: level of `lost`, in (0, 0.5]: this capability's share at this look.
        beta: level of `clear`, in (0, 0.5].
        tolerance: the drop that is accepted, a share in [0, 1).

    Raises:
        ValueError: an argument outside its range.
    """
    start = BudgetState(items, alpha, beta, tolerance)

    def update(state: BudgetState, drops: ArrayLike) -> tuple[BudgetState, BudgetDecision]:
        same_test(start, state, ("items", "alpha", "beta", "tolerance"))
        return _score(state, _checked(drops, state))

    return SequentialTest(lambda: start, update)


def _score(state: BudgetState, d: FloatArray) -> tuple[BudgetState, BudgetDecision]:
    n = state.items
    sums = np.cumsum(np.concatenate([[state.total], d]))  # one after the other, so that batches change nothing
    before = state.scored + np.arange(d.size)  # items scored before each of the batch
    left = n - before - 1  # items left after it
    lost, peak_lost, lost_now = _bet(state.wealth_lost, d, (0.0 - sums[:-1]) / (left + 1), state.alpha)
    clear, peak_clear, clear_now = _bet(
        state.wealth_clear, -d, (sums[:-1] - n * state.tolerance) / (left + 1), state.beta
    )
    # Even if all items that are left were won (lost), the mean would be above 0 (at most the tolerance).
    lost_now |= sums[1:] - left > _ROUNDING * n
    clear_now |= sums[1:] + left <= n * (state.tolerance + _ROUNDING)
    after = dataclasses.replace(
        state,
        scored=state.scored + d.size,
        total=float(sums[-1]),
        wealth_lost=lost,
        wealth_clear=clear,
        peak_lost=max(state.peak_lost, peak_lost),
        peak_clear=max(state.peak_clear, peak_clear),
        lost_at=_first(state.lost_at, before, lost_now),
        clear_at=_first(state.clear_at, before, clear_now),
    )
    return after, _decision(after)


def _bet(
    wealth: tuple[float, ...], d: FloatArray, m: FloatArray, level: float
) -> tuple[tuple[float, ...], float, NDArray[np.bool_]]:
    """Wealth of each share after the batch (log), the largest average (log), and where it has reached 1 / level.

    `d` and `m` (the largest possible mean of what is left) have shape (n,).
    """
    room = np.maximum(1.0 + m, 0.0)[:, None]  # <= 0: refuted already, and no bet is needed
    factor = np.divide((d - m)[:, None], room, out=np.zeros((d.size, 1)), where=room > _LEAST_ROOM)
    # A drop that no remaining item can have under the hypothesis gives a factor below -1 by rounding at most.
    steps = np.log1p(np.asarray(SHARES) * np.maximum(factor, -1.0))
    path = np.cumsum(np.concatenate([np.asarray(wealth)[None, :], steps]), axis=0)
    top = path.max(axis=1)
    # No matrix product: the order of its sums may depend on the length of the batch.
    average = top + np.log((np.exp(path - top[:, None]) * np.asarray(WEIGHTS)).sum(axis=1))
    return tuple(path[-1].tolist()), float(average.max()), average[1:] >= -math.log(level)


def _first(earlier: int | None, before: NDArray[np.int64], now: NDArray[np.bool_]) -> int | None:
    if earlier is not None or not now.any():
        return earlier
    return int(before[np.argmax(now)]) + 1


def _decision(state: BudgetState) -> BudgetDecision:
    left = state.items - state.scored
    lost, clear = state.lost_at, state.clear_at
    certain_lost = state.total - left > _ROUNDING * state.items
    certain_clear = state.total + left <= state.items * (state.tolerance + _ROUNDING)
    return BudgetDecision(
        scored=state.scored,
        lost=lost is not None,
        clear=clear is not None,
        lost_at=lost,
        clear_at=clear,
        decided_at=min((at for at in (lost, clear) if at is not None), default=None),
        p_lost=0.0 if certain_lost else min(1.0, math.exp(-state.peak_lost)),
        p_clear=0.0 if certain_clear else min(1.0, math.exp(-state.peak_clear)),
        mean=state.total / state.scored if state.scored else math.nan,
        census=left == 0,
    )


def _checked(drops: ArrayLike, state: BudgetState) -> FloatArray:
    d = np.asarray(drops, dtype=np.float64)
    if d.ndim != 1:
        raise ValueError(f"drops (shape {d.shape}) must have shape (n,): one drop per item, in the order scored")
    bad = np.flatnonzero(~((d >= -1.0) & (d <= 1.0)))  # NaN too
    if bad.size:
        i = int(bad[0])
        raise ValueError(f"drops[{i}] (={d[i]}) must be in [-1, 1]: budget looks are for outcomes in [0, 1]")
    if state.scored + d.size > state.items:
        raise ValueError(
            f"drops (length {d.size}) would make {state.scored + d.size} items scored of {state.items}: score each once"
        )
    return d
