"""Joint sign-flip: false alarms over all looks and capabilities, with the dependence measured and not just endured.

A *unit* is what carries a sign of its own: an item, or a cluster of items that share a source.
Unit u has a trajectory X_u: its drops (a cluster: the sums of its items' drops) at looks 1..K. Let e_0 = (1, ..., 1)
and e_1, ..., e_B be independent vectors of fair signs, one sign per unit, drawn once for the whole run. *Run* b is
the set of trajectories e_bu X_u; run 0 is the one observed. At look k each run has the statistic

    M_bk = max over capabilities c of T_bkc,
    T_bkc = (sum over u in c of e_bu X_uk) / sqrt(sum over u in c of X_uk^2),

and the cutoff c_k is the smallest number such that at most m_k = floor(alpha (k / K) (B + 1)) of the B + 1 runs have
crossed at this look or an earlier one; to cross is M_bk > c_k, strictly. Run 0 crossing is the alarm.

*Level.* Assume joint sign symmetry: X = (X_u) and (s_u X_u) have the same distribution for every vector s of signs;
units independent of each other, each with a trajectory as likely as its mirror image, are enough. Then X can be
written as (s_u Y_u), with s uniform and independent of Y, and run b is (e_bu s_u Y_u). Given Y, the products
s, e_1 s, ..., e_B s are independent and uniform, so the B + 1 runs are exchangeable. Which runs have crossed by look
k is decided by all runs together without regard to their numbers, so run 0 is among them with probability
E[crossed] / (B + 1) <= m_k / (B + 1) <= alpha k / K. This is exact at every number of items, of looks and of draws:
more draws buy power, not validity (Besag and Clifford 1989, Biometrika 76:633; Hemerik and Goeman 2018, TEST
27:811). Ties, which only keep runs from crossing, are on the safe side. The probability is over data and signs; the
seed must not be chosen by looking at the data. The sums are taken in the same order of additions for all runs, so
this holds for floating-point numbers, too.

*Without symmetry.* "The mean drop is 0 at every look" does not imply symmetry: where most items are right at the
baseline, there are many that can be lost, each seldom, and few that can be won, each often. Given |X| the sums of
signs have the covariances sum_u X_uk X_ul over looks, which is what the observed sums have in the limit of many
independent units, so the level holds asymptotically (Romano 1990, JASA 85:686, for one look). How far this carries
is measured in `tests/validity/`.

*After the first alarm* the flipped runs go on as if the observed one had not crossed and were still waiting: they fill
its place among the m_k. This touches nothing before or at the first alarm, and so not the level. Had the observed run
kept its place, a further capability would be compared with one run too few: it would have to exceed the second largest
where it should exceed the largest (measured: capabilities that lost nothing named in 6% of the runs).

*Which capability.* The level is that of "an alarm, although nothing was lost anywhere". Naming each capability whose
own T is above the cutoff reuses a cutoff made for the largest of all (Westfall and Young 1993), which is larger than
the cutoff for those that lost nothing alone would be at one look; over several looks this is not proven, only
measured.

Sources: sign-flip tests, Fisher (1935); error spending, Lan and DeMets (1983, Biometrika 70:659), here with the
spending function alpha k / K; resampling whole trajectories for a group-sequential test as in the project's reference
(statistics.md). Our deviation: the observed run is one of the runs, which makes a finite number of draws exact.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backslide.stats.paired import FloatArray, IntArray, check_level
from backslide.stats.sequential import SequentialTest, check_looks, exactly, positive, same_test

_CHUNK = 64  # rows of eight units at a time; what is gathered then stays in the cache
_ONES = 255  # the byte in which all eight signs are +1


@dataclass(frozen=True, slots=True)
class SignFlipState:
    """Where a joint sign-flip test stands. Raises `ValueError` for values that cannot be.

    The signs themselves are not kept: they are drawn anew from the seed at every look.
    """

    alpha: float
    """Level of the whole run."""
    looks: int
    """Planned number of looks."""
    units: tuple[int, ...]
    """Signs of each capability: its items, or its clusters."""
    draws: int
    """Runs with flipped signs, beside the observed one."""
    seed: int
    """Of the signs."""
    crossed: bytes
    """A bit for each run with flipped signs (packed, high bit first): has it ever crossed?"""
    rarest: bytes
    """For each run, the observed one first (32-bit little-endian): the smallest number, over the looks so far, of
    runs at least as extreme as it."""
    look: int = 0
    """Looks taken so far."""
    alarm_at: int | None = None
    """The look at which the observed run crossed, counted from 1."""

    def __post_init__(self) -> None:
        check_level("alpha", self.alpha)
        positive("looks", self.looks, "plan at least one look")
        positive("draws", self.draws, "draw some signs")
        check_looks(self.look, self.alarm_at, self.looks)
        if len(self.crossed) != (self.draws + 7) // 8 or len(self.rarest) != 4 * (self.draws + 1):
            raise ValueError(f"crossed and rarest must hold the runs of {self.draws} draws: the state was cut")

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON can hold it."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**row, "units": list(self.units), "crossed": self.crossed.hex(), "rarest": self.rarest.hex()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> SignFlipState:
        """The inverse of `to_dict`. Raises `ValueError` where the dictionary is no such state."""
        row = exactly(cls, row)
        runs = {name: bytes.fromhex(row[name]) for name in ("crossed", "rarest")}
        return cls(**{**row, **runs, "units": tuple(row["units"])})


@dataclass(frozen=True, slots=True)
class SignFlipDecision:
    """What one look says."""

    look: int
    """Counted from 1."""
    alarm: bool
    """Whether the observed run crosses at this look; after the first alarm: whether it would."""
    above: tuple[bool, ...]
    """For each capability, whether its own statistic is above the cutoff."""
    cutoff: float
    """The statistic that has to be exceeded at this look; inf where few draws leave nothing to spend yet."""
    statistics: tuple[float, ...]
    """T of each capability: sum of its drops over the root of the sum of their squares, by unit; about standard
    normal where nothing was lost. -inf where no drop differs from 0: no evidence."""
    spent: float
    """Share of alpha that may have been spent by now, alpha k / K."""
    p_value: float
    """Share of the runs that have, at some look so far, been as extreme among all runs as the observed one at its
    most extreme; over all capabilities. A valid p value at a look fixed beforehand; for reports, it does not decide."""


def joint_sign_flip(
    alpha: float, looks: int, units: Sequence[int | ArrayLike], *, draws: int = 1000, seed: int = 0
) -> SequentialTest[SignFlipState, Sequence[ArrayLike], SignFlipDecision]:
    """Group-sequential sign-flip test over all looks and capabilities at once; more power than `spending`.

    `update` takes the drops of a look, one array of shape (items,) for each capability, baseline minus candidate,
    in any unit (T has none); the same items in the same order at every look. It raises `ValueError` for another
    number of items, for drops that are not finite and for more looks than planned. The method, its assumption
    and its proof are in the docstring of this module: exact at every n if each unit's trajectory of drops is as
    likely as its mirror image, otherwise asymptotic.

    Args:
        alpha: level of the whole run, in (0, 0.5].
        looks: planned number of looks, >= 1.
        units: for each capability its number of items, or, where items share a source, the cluster of each item
            (any integers, shape (items,)). Capabilities share no cluster: the same number in two of them means two.
        draws: runs with flipped signs; alpha (draws + 1) >= 1, else there could be no alarm. With fewer than
            looks / alpha, early looks have nothing to spend.
        seed: of the signs, >= 0; to be fixed before the data are seen.

    Raises:
        ValueError: an argument outside its range.
    """
    check_level("alpha", alpha)
    looks = positive("looks", looks, "plan at least one look")
    draws = positive("draws", draws, "draw some signs")
    if Fraction(alpha) * (draws + 1) < 1:
        raise ValueError(f"draws (={draws}) must be at least 1 / alpha - 1 (alpha={alpha}): else no run can ever cross")
    if operator.index(seed) < 0:
        raise ValueError(f"seed (={seed}) must be >= 0")
    if len(units) == 0:
        raise ValueError("units (=[]) must have one entry per capability: there is nothing to test")
    clusters = [_clusters(c, unit) for c, unit in enumerate(units)]
    counts = tuple(int(of_item.max()) + 1 for of_item in clusters)
    none = np.packbits(np.zeros(draws, dtype=bool)).tobytes()
    start = SignFlipState(
        alpha, looks, counts, draws, operator.index(seed), none, np.full(draws + 1, draws + 1, dtype="<u4").tobytes()
    )

    def update(state: SignFlipState, drops: Sequence[ArrayLike]) -> tuple[SignFlipState, SignFlipDecision]:
        same_test(start, state, ("alpha", "looks", "units", "draws", "seed"))
        if state.look >= looks:
            raise ValueError(f"looks (={looks}) are all taken: a further one was not planned")
        if len(drops) != len(clusters):
            raise ValueError(f"drops (length {len(drops)}) must have one array per capability ({len(clusters)})")
        sums = [_sums(c, d, of_item) for c, (d, of_item) in enumerate(zip(drops, clusters, strict=True))]
        statistics = np.stack([flipped(s, draws, seed, c) for c, s in enumerate(sums)])
        return _cross(state, statistics)

    return SequentialTest(lambda: start, update)


def _cross(state: SignFlipState, statistics: FloatArray) -> tuple[SignFlipState, SignFlipDecision]:
    """One look: which runs cross. `statistics` has shape (capabilities, draws + 1), the observed run first."""
    look, runs = state.look + 1, state.draws + 1
    largest = statistics.max(axis=0)
    observed, others = float(largest[0]), largest[1:]
    crossed = np.unpackbits(np.frombuffer(state.crossed, dtype=np.uint8), count=state.draws).astype(bool)
    free = np.append(np.sort(others[~crossed])[::-1], -np.inf)  # from the largest on; -inf: the observed run's place
    room = allowed(state.alpha, look, state.looks, runs) - int(np.count_nonzero(crossed))
    cutoff = float(free[room - 1]) if room > 0 else math.inf
    alarm = observed > cutoff  # the observed run is among the `room` largest that have not crossed yet, with no tie
    waiting = state.alarm_at is None and not alarm
    crossed |= others > (max(free[room], observed) if waiting else free[room])
    as_extreme = runs - np.searchsorted(np.sort(largest), largest, side="left")
    rarest = np.minimum(np.frombuffer(state.rarest, dtype="<u4"), as_extreme).astype("<u4")
    after = dataclasses.replace(
        state,
        look=look,
        crossed=np.packbits(crossed).tobytes(),
        rarest=rarest.tobytes(),
        alarm_at=look if alarm and state.alarm_at is None else state.alarm_at,
    )
    decision = SignFlipDecision(
        look=look,
        alarm=alarm,
        above=tuple((statistics[:, 0] > cutoff).tolist()),
        cutoff=cutoff,
        statistics=tuple(statistics[:, 0].tolist()),
        spent=state.alpha * look / state.looks,
        p_value=float(np.count_nonzero(rarest <= rarest[0])) / runs,
    )
    return after, decision


def allowed(alpha: float, look: int, looks: int, runs: int) -> int:
    """How many of the runs may have crossed by this look: floor(alpha (look / looks) runs), without rounding up."""
    return math.floor(Fraction(alpha) * look * runs / looks)


def flipped(sums: FloatArray, draws: int, seed: int, capability: int) -> FloatArray:
    """T of one capability in the observed run (first) and in the runs with flipped signs; shape (draws + 1,).

    Eight units share a byte of random signs, and a table has the sum of the eight for each of the 256 bytes; so
    the signs are looked up, never multiplied. Every entry and every run is added up in the same order.
    """
    if not sums.any():
        return np.full(draws + 1, -np.inf)
    signs = sign_bytes(sums.size, draws, seed, capability)
    padded = np.zeros(8 * len(signs))
    padded[: sums.size] = _scaled(sums)
    groups = padded.reshape(-1, 8)
    table = np.zeros((len(groups), 1))
    for j in range(8):  # bit j of the byte is the sign of unit j: set is +1
        table = np.concatenate([table - groups[:, j : j + 1], table + groups[:, j : j + 1]], axis=1)
    total = np.zeros(draws + 1)
    for first in range(0, len(groups), _CHUNK):
        index = signs[first : first + _CHUNK].astype(np.intp)
        index += 256 * np.arange(first, first + len(index))[:, None]
        total += table.ravel()[index].sum(axis=0)
    result: FloatArray = total / math.sqrt(float(np.square(padded).sum()))
    return result


def sign_bytes(units: int, draws: int, seed: int, capability: int) -> NDArray[np.uint8]:
    """Signs, eight units a byte; shape (ceil(units / 8), draws + 1), all +1 in the first column.

    The raw output of PCG64, which NumPy promises never to change, with a stream for each capability.
    """
    groups = -(-units // 8)
    stream = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(capability,)))
    raw = stream.random_raw(-(-groups * draws // 8)).astype("<u8").view(np.uint8)
    signs = np.full((groups, draws + 1), _ONES, dtype=np.uint8)
    signs[:, 1:] = raw[: groups * draws].reshape(groups, draws)
    return signs


def _clusters(capability: int, unit: int | ArrayLike) -> IntArray:
    """Cluster of each item, renumbered from 0 in the order of their numbers; each item its own for a count."""
    labels = np.asarray(unit)
    if labels.dtype.kind not in "iu" or labels.ndim > 1:
        raise ValueError(f"units[{capability}] must be a number of items or the cluster number of each, all integers")
    if labels.ndim == 0:
        return np.arange(positive(f"units[{capability}]", int(labels), "leave out a capability without items"))
    if labels.size == 0:
        raise ValueError(f"units[{capability}] (=[]) must have at least one item: leave out a capability without items")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64).reshape(-1)


def _sums(capability: int, drops: ArrayLike, of_item: IntArray) -> FloatArray:
    d = np.asarray(drops, dtype=np.float64)
    if d.shape != of_item.shape:
        raise ValueError(f"drops[{capability}] (shape {d.shape}) must have shape {of_item.shape}: one drop per item")
    if not np.isfinite(d).all():
        i = int(np.argmin(np.isfinite(d)))
        raise ValueError(f"drops[{capability}][{i}] (={d[i]}) must be finite: drop or repair items without a score")
    sums: FloatArray = np.bincount(of_item, weights=_scaled(d)).astype(np.float64, copy=False)
    return sums


def _scaled(d: FloatArray) -> FloatArray:
    """Divided by a power of two, which is exact, so that sums and squares neither overflow nor vanish."""
    result: FloatArray = np.ldexp(d, -int(np.frexp(np.abs(d).max())[1]))
    return result
