"""Many looks at one run: false alarms are counted over all looks and all capabilities together.

Each test is a pair of pure functions over frozen state, as optimizers are in optax:

    test = spending(alpha=0.05, looks=20)
    state = test.init()
    state, decision = test.update(state, p_values)  # once for each look

A state can be written down between any two looks (`to_dict`, which JSON can hold, and `from_dict`, its exact
inverse); a run that is resumed from it goes on as if it had never stopped.

| test | looks | exact | takes |
|---|---|---|---|
| `spending` | planned | yes, if the p values are | p values, one per capability |
| `open_ended` | not known | yes, if the p values are | p values, one per capability |
| `signflip_sequential.joint_sign_flip` | planned | under joint sign symmetry, else asymptotic | drops, item by item |
| `budget.budget` | within one look | yes, about the suite's own items | drops in a fresh random order |

The same items come back at every look, so the looks depend on each other in an unknown way. `spending` and
`open_ended` hold whatever that dependence is; `joint_sign_flip` measures it and loses less power to it. A claim about
the *domain* that the items are a sample of holds only while what the looks say does not steer the training; hence the
sealed gate half. A claim about the suite's own items (`budget`) holds at every look, steered or not.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from numpy.typing import ArrayLike

from backslide.stats.multiplicity import holm
from backslide.stats.paired import check_level

S = TypeVar("S")
X = TypeVar("X")
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class SequentialTest(Generic[S, X, D]):
    """A pair of pure functions: the state before the first look, and the step from one look to the next."""

    init: Callable[[], S]
    """Gives the state before the first look."""
    update: Callable[[S, X], tuple[S, D]]
    """Takes a state and what was seen, and gives the next state and the decision; changes neither argument."""


# -- spending -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpendingState:
    """Where a test of `spending` or `open_ended` stands. Raises `ValueError` for values that cannot be."""

    alpha: float
    """Level of the whole run."""
    weights: tuple[float, ...] | None
    """Share of alpha for each planned look; None: open-ended, 1 / (k (k + 1)) at look k."""
    look: int = 0
    """Looks taken so far."""
    alarm_at: int | None = None
    """The first look with an alarm, counted from 1."""

    def __post_init__(self) -> None:
        check_level("alpha", self.alpha)
        if self.weights is not None:
            _check_weights(self.weights)
        check_looks(self.look, self.alarm_at, None if self.weights is None else len(self.weights))

    def level(self, look: int) -> float:
        """Level of a look, counted from 1: its share of alpha. Raises `ValueError` beyond the planned ones."""
        if self.weights is None:
            return self.alpha / (look * (look + 1))
        if not 1 <= look <= len(self.weights):
            raise ValueError(f"look (={look}) must be in 1..{len(self.weights)}, the looks that were planned")
        return self.alpha * self.weights[look - 1]

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON can hold it."""
        return {
            "alpha": self.alpha,
            "weights": None if self.weights is None else list(self.weights),
            "look": self.look,
            "alarm_at": self.alarm_at,
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> SpendingState:
        """The inverse of `to_dict`. Raises `ValueError` where the dictionary is no such state."""
        row = exactly(cls, row)
        return cls(**{**row, "weights": None if row["weights"] is None else tuple(row["weights"])})


@dataclass(frozen=True, slots=True)
class SpendingDecision:
    """What one look says."""

    look: int
    """Counted from 1."""
    alarm: bool
    """Whether at least one capability has lost something."""
    rejected: tuple[bool, ...]
    """For each capability, whether "nothing was lost" is rejected."""
    level: float
    """Level of this look, shared by its capabilities."""
    levels: tuple[float, ...]
    """Level at which each capability was decided (see `Holm.levels`)."""
    adjusted: tuple[float, ...]
    """p values adjusted for capabilities and looks: the smallest alpha of a whole run with these shares at which
    the capability is rejected at this look; in [0, 1]."""


def spending(
    alpha: float, looks: int, weights: Sequence[float] | None = None
) -> SequentialTest[SpendingState, ArrayLike, SpendingDecision]:
    """A planned number of looks: alpha / looks at each (or by weight), and Holm over the capabilities of a look.

    `update` takes the p values of a look, shape (capabilities,), one-sided for "nothing was lost", each valid at
    its own look; it raises `ValueError` for p values outside [0, 1] and for more looks than planned. At most alpha
    for one or more false rejections in the whole run, whatever the dependence (Bonferroni over looks, Holm 1979
    within), wherever the user stops.

    Args:
        alpha: level of the whole run, in (0, 0.5].
        looks: planned number of looks, >= 1.
        weights: share of alpha for each look, shape (looks,), each >= 0, sum <= 1; None: equal shares.

    Raises:
        ValueError: an argument outside its range.
    """
    looks = positive("looks", looks, "plan at least one look")
    shares = (1.0 / looks,) * looks if weights is None else tuple(float(w) for w in weights)
    if len(shares) != looks:
        raise ValueError(f"weights (length {len(shares)}) must have one share per look ({looks})")
    start = SpendingState(alpha, shares)
    return SequentialTest(lambda: start, lambda state, p: _spend(start, state, p))


def open_ended(alpha: float) -> SequentialTest[SpendingState, ArrayLike, SpendingDecision]:
    """An unknown number of looks: alpha / (k (k + 1)) at look k, which sums to alpha over all k; else as `spending`.

    The price is paid at late looks: at the 20th it is 21 times stricter than `spending` over 20 looks.

    Raises:
        ValueError: alpha outside (0, 0.5].
    """
    start = SpendingState(alpha, None)
    return SequentialTest(lambda: start, lambda state, p: _spend(start, state, p))


def _spend(start: SpendingState, state: SpendingState, p_values: ArrayLike) -> tuple[SpendingState, SpendingDecision]:
    same_test(start, state, ("alpha", "weights"))
    look = state.look + 1
    level = state.level(look)
    share = level / state.alpha
    if share > 0:
        result = holm(p_values, level)
        rejected, levels = result.rejected, result.levels
        adjusted = tuple(min(1.0, p / share) for p in result.adjusted)
    else:  # a look that was given nothing to spend
        count = len(holm(p_values, state.alpha).rejected)
        rejected, levels, adjusted = (False,) * count, (0.0,) * count, (1.0,) * count
    alarm = any(rejected)
    first = look if alarm and state.alarm_at is None else state.alarm_at
    decision = SpendingDecision(look, alarm, rejected, level, levels, adjusted)
    return dataclasses.replace(state, look=look, alarm_at=first), decision


# -- shared ---------------------------------------------------------------------------------------------------


def exactly(cls: type, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row, if its keys are exactly the fields of the dataclass. Raises `ValueError` otherwise."""
    names = {field.name for field in dataclasses.fields(cls)}
    if set(row) != names:
        raise ValueError(f"keys of the row (={sorted(row)}) must be those of {cls.__name__} ({sorted(names)})")
    return dict(row)


def same_test(start: object, state: object, names: Sequence[str]) -> None:
    """Refuse a state that was made by a test with other arguments. Raises `ValueError`."""
    for name in names:
        mine, theirs = getattr(start, name), getattr(state, name)
        if mine != theirs:
            raise ValueError(f"{name} of the state (={theirs}) must be that of the test ({mine}): go on with the same")


def positive(name: str, value: int, mend: str) -> int:
    """Refuse a number below 1. Raises `ValueError`; `TypeError` for what is no integer."""
    value = operator.index(value)
    if value < 1:
        raise ValueError(f"{name} (={value}) must be >= 1: {mend}")
    return value


def _check_weights(weights: tuple[float, ...]) -> None:
    if not weights or not all(0.0 <= w <= 1.0 for w in weights):
        raise ValueError(f"weights (={weights}) must be shares of alpha in [0, 1], one per look")
    if math.fsum(weights) > 1.0 + 1e-12:
        raise ValueError(f"weights (sum {math.fsum(weights)}) must sum to at most 1: they share out alpha")


def check_looks(look: int, alarm_at: int | None, looks: int | None) -> None:
    """Refuse a place in the looks that cannot be. Raises `ValueError`."""
    if look < 0 or (looks is not None and look > looks):
        raise ValueError(f"look (={look}) must be from 0 to the planned looks ({looks})")
    if alarm_at is not None and not 1 <= alarm_at <= look:
        raise ValueError(f"alarm_at (={alarm_at}) must be one of the looks taken so far (1..{look})")
