"""The paired drops of two records: by capability, in each measure that its items allow."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backslide.record import Outcome, Record, pair
from backslide.stats.divergence import coarse_kl
from backslide.verdict import POOLED

Pairs = Sequence[tuple[Outcome, Outcome]]

DRIFT_LIMIT = 2.0
"""Nats a token to which the drift of an item is clipped, in both directions. A reply that became e² = 7.4 times less
probable with every token is gone; how far it is gone is not counted, so that a few replies do not make the mean, and
bounds of bounded means hold (`stats.bounded`). With the usual tolerance of 0.1 one reply in twenty may be gone."""

UNITS = {"accuracy": "", "bits per byte": " (text)", "drift": " (drift)"}
"""What a capability can be judged in, and what its row is called besides where an earlier one has a row, too."""


@dataclass(frozen=True)
class Drops:
    """The paired drops of one capability in one measure, items in the order of their ids."""

    measure: str
    values: NDArray[np.float64]
    """Shape (items,); accuracy: -1, 0 or 1; probability: in [-1, 1]; bits per byte: share of the baseline's mean;
    drift: nats a token of the reference, in [-`DRIFT_LIMIT`, `DRIFT_LIMIT`]."""
    clusters: NDArray[np.int64] | None
    """Number of each item's cluster; None where every item stands for itself."""


@dataclass(frozen=True)
class Group:
    """A capability, or all items together: its pairs of outcomes, and its drops by measure, the finest last."""

    name: str
    pairs: Pairs
    drops: tuple[Drops, ...]


@dataclass(frozen=True)
class Absent:
    """A capability of which nothing is judged."""

    name: str
    unit: str
    """What it would be judged in."""
    left_out: bool
    """Whether its items are there, and all of them were left out."""


@dataclass(frozen=True)
class Groups:
    """All that is judged."""

    capabilities: tuple[Group, ...]
    pooled: Group | None
    """All items with a right answer, where several capabilities have such items."""
    absent: tuple[Absent, ...]
    """Capabilities of the baseline of which no item of the candidate is judged."""
    left_out: int
    """Items of the candidate that were not to be judged."""

    @property
    def all(self) -> tuple[Group, ...]:
        """The capabilities, then all items together."""
        return (*self.capabilities, self.pooled) if self.pooled is not None else self.capabilities


def paired_drops(baseline: Record, candidate: Record, leave_out: Collection[str] = ()) -> dict[str, Drops]:
    """Of each capability the drops in its finest measure: what a sequential test over a run takes at each look.

    Raises `MismatchError` as `groups` does.
    """
    return {group.name: group.drops[-1] for group in groups(baseline, candidate, leave_out).capabilities}


def groups(baseline: Record, candidate: Record, leave_out: Collection[str] = ()) -> Groups:
    """Pair the outcomes of two records and sort them by capability.

    Args:
        baseline: measured before training; may cover more items than the candidate.
        candidate: what is compared with it.
        leave_out: ids of items that are measured and not judged, such as those that are in the training data.

    Raises:
        MismatchError: the records were not measured on the same requests under the same conditions.
    """
    excluded = frozenset(leave_out)
    asked_of_both = [both for both in pair(baseline, candidate) if both[1].unit is not None]
    pairs = [both for both in asked_of_both if both[1].id not in excluded]
    units: dict[str, set[str]] = {}
    for old in baseline.outcomes:
        if old.unit is not None:
            units.setdefault(old.capability, set()).add(old.unit)

    def name(outcome: Outcome) -> str:
        # Units cannot be averaged: a capability that is seen in several is judged in as many rows.
        first = next(unit for unit in UNITS if unit in units.get(outcome.capability, {outcome.unit}))
        return outcome.capability + ("" if outcome.unit == first else UNITS[str(outcome.unit)])

    found: dict[str, list[tuple[Outcome, Outcome]]] = {}
    for old, new in pairs:
        found.setdefault(name(new), []).append((old, new))
    capabilities = tuple(_group(of, members) for of, members in found.items())
    hard = [both for both in pairs if both[1].correct is not None]
    several = sum(group.drops[0].measure == "accuracy" for group in capabilities) > 1
    gone = {name(new) for _, new in asked_of_both if new.id in excluded}
    known = {name(old): old.unit for old in baseline.outcomes if old.unit is not None}
    return Groups(
        capabilities,
        _group(POOLED, hard, pooled=True) if several else None,
        tuple(Absent(of, unit, of in gone) for of, unit in known.items() if of not in found),
        len(asked_of_both) - len(pairs),
    )


def kl_between(old: Outcome, new: Outcome) -> float | None:
    """KL(baseline ‖ candidate) of the next token along a reference: at least so many nats a token.

    A mean over the reference's tokens, each predicted after the reference's own tokens before it. Tokens that are not
    among the likeliest of both are taken for one, so it is a lower bound (`stats.divergence`). None where one of the
    two has not kept them, or has kept another number of them.
    """
    if not old.likeliest or len(old.likeliest) != len(new.likeliest):
        return None
    (p_ids, p_logs), (q_ids, q_logs) = (
        (np.array([ids for ids, _ in of]), np.array([logs for _, logs in of], dtype=float))
        for of in (old.likeliest, new.likeliest)
    )
    if p_ids.shape != q_ids.shape or p_logs.shape != q_logs.shape:
        return None
    return float(coarse_kl(p_ids, p_logs, q_ids, q_logs).mean())


def _group(name: str, members: Pairs, *, pooled: bool = False) -> Group:
    # One order, whatever the record's: sums of floats and the item that is named depend on it.
    ordered = sorted(members, key=lambda both: both[1].id)
    return Group(name, ordered, tuple(_drops(ordered, pooled)))


def _drops(members: Pairs, pooled: bool) -> list[Drops]:
    if members[0][1].kind == "text":
        both = [(old.bits_per_byte, new.bits_per_byte, new) for old, new in members]
        finite = [(old, new, item) for old, new, item in both if old is not None and new is not None]
        values = np.array([(old, new) for old, new, _ in finite], dtype=float).reshape(-1, 2)
        scale = float(values[:, 0].mean()) if len(values) else math.nan
        # Nothing is relative to 0 bits; what cannot be compared is "no data", never a pass.
        rises = (values[:, 1] - values[:, 0]) / scale if scale > 0 else np.empty(0)
        return [Drops("bits per byte", rises, _clusters([item for _, _, item in finite][: len(rises)]))]
    if members[0][1].unit == "drift":
        said = [(old.nats_per_token, new.nats_per_token, new) for old, new in members]
        known = [(old, new, item) for old, new, item in said if old is not None and new is not None]
        drift = np.clip([new - old for old, new, _ in known], -DRIFT_LIMIT, DRIFT_LIMIT)
        return [Drops("drift", drift, _clusters([item for _, _, item in known]))]
    clusters = _clusters([new for _, new in members])
    hard = np.array([float(bool(old.correct)) - float(bool(new.correct)) for old, new in members])
    found = [Drops("accuracy", hard, clusters)]
    soft = [old.p - new.p for old, new in members if old.p is not None and new.p is not None]
    # All items together are there to see a loss that is spread thinly: one test of them is enough.
    if len(soft) == len(members) and not pooled:
        found.append(Drops("probability", np.array(soft), clusters))
    return found


def _clusters(items: Sequence[Outcome]) -> NDArray[np.int64] | None:
    # Names of clusters and ids of single items never meet: each item without a cluster is one of its own.
    names = [(item.cluster is not None, item.cluster or item.id) for item in items]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names]) if len(numbers) < len(items) else None
