"""Two records in, a verdict out: which tests are made, at which levels, and what they add up to.

Every capability is seen in one or two *measures*. Right-or-wrong items give a drop in accuracy (exact McNemar); where
each of them has a probability on the gold choice too, that gives a second, finer drop (betting on bounded means).
Text gives a drop in bits per byte (paired t). Where items come in clusters, the clusters are what is independent,
and tests for clusters take the place of those for items.

*Fail.* All tests of a look, those of all items together among them, share its α by Holm's procedure, so a false
`regressed` has probability at most α whatever is true of the others. The lower bounds are at α over the number of
tests: all of them together hold with probability 1 - α, too.

*Pass.* Each capability must pass, which needs no correction (intersection-union). A capability with two measures
spends half of its level on each.

*Which measure decides.* The tolerance is one of accuracy, so accuracy decides wherever it can; where it is undecided,
the probability on the gold choice decides, which needs fewer items. What is said names the measure. A drop that is no
larger than rounding makes it (`backslide.noise`) is no regression in either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backslide import noise
from backslide.record import Outcome, Record, pair
from backslide.stats.bounded import bounded_interval, bounded_p_value
from backslide.stats.means import mean_interval, mean_p_value
from backslide.stats.multiplicity import holm
from backslide.stats.paired import OPEN_ZERO, Interval, hard_interval, mcnemar_exact
from backslide.stats.power import items_to_decide
from backslide.verdict import POOLED, CapabilityVerdict, Level, Measure, Tolerance, Verdict, Zone, overall

Pairs = Sequence[tuple[Outcome, Outcome]]


@dataclass(frozen=True)
class Drops:
    """The paired drops of one capability in one measure, items in the order of their ids."""

    measure: str
    values: NDArray[np.float64]
    """Shape (items,); accuracy: -1, 0 or 1; probability: in [-1, 1]; bits per byte: share of the baseline's mean."""
    clusters: NDArray[np.int64] | None
    """Number of each item's cluster; None where every item stands for itself."""


@dataclass(frozen=True)
class Alarms:
    """What a sequential test over the looks of a run has proven, which then stands for the tests of a look."""

    proven: frozenset[str]
    """Capabilities in which something was lost."""
    level: float
    """Probability of a false one over the run so far."""
    method: str


def judge(
    baseline: Record,
    candidate: Record,
    *,
    tolerance: Tolerance | None = None,
    level: Level | None = None,
    alarms: Alarms | None = None,
) -> Verdict:
    """Compare two records item by item.

    Args:
        baseline: measured before training; may cover more items than the candidate.
        candidate: what is judged.
        tolerance: the drop that is accepted.
        level: error probabilities of this look.
        alarms: of a sequential test, in place of this look's own tests of "nothing was lost".

    Raises:
        MismatchError: the records were not measured on the same requests under the same conditions.
    """
    tolerance, level = tolerance or Tolerance(), level or Level()
    groups = _groups(baseline, candidate)
    tests = [drops for _, _, of in groups for drops in of]
    p_values = [_p_value(drops) for drops in tests]
    share = level.fail / max(len(tests), 1)
    steps = holm(p_values, level.fail) if tests else None
    decided = iter(zip(p_values, steps.rejected, steps.levels, strict=True) if steps is not None else ())
    rows = []
    for name, members, of in groups:
        measures = []
        accepted = tolerance.bits_per_byte if of[0].measure == "bits per byte" else tolerance.accuracy
        for drops in of:
            p_value, rejected, tested_at = next(decided)
            method = None
            if alarms is not None:
                rejected, tested_at, method = name in alarms.proven and drops is of[-1], alarms.level, alarms.method
            measures.append(
                _measure(
                    drops, p_value, rejected, accepted, share, level.passing / len(of), baseline.header.noise,
                    tested_at, method,
                )
            )  # fmt: skip
        rows.append(_row(name, members, measures, accepted))
    pooled = rows.pop() if groups and groups[-1][0] == POOLED else None
    zone, reasons = overall(rows, pooled)
    count = sum(row.items for row in rows)
    where = {"monitor": "the monitor half", "gate": "the sealed gate half"}.get(candidate.header.part, "all items")
    over = f"{len(tests)} tests of this look" if alarms is None else "the looks so far"
    claim = (
        f"{count} items of the suite {candidate.header.suite} ({where}), taken as a sample of what each capability "
        f"stands for; false alarms at most {level.fail if alarms is None else alarms.level:.3g} over {over}, "
        f"false passes at most {level.passing:.3g} a capability."
    )
    return Verdict(
        zone=zone,
        capabilities=tuple(rows),
        pooled=pooled,
        claim=claim,
        reasons=reasons,
        part=candidate.header.part,
        step=candidate.header.step,
    )


def paired_drops(baseline: Record, candidate: Record) -> dict[str, Drops]:
    """Of each capability the drops in its finest measure: what a sequential test over a run takes at each look.

    Raises `MismatchError` as `judge` does.
    """
    return {name: of[-1] for name, _, of in _groups(baseline, candidate) if name != POOLED}


def _groups(baseline: Record, candidate: Record) -> list[tuple[str, Pairs, list[Drops]]]:
    """Capabilities, and last the row of all items where there are several; each with its drops by measure."""
    pairs = [both for both in pair(baseline, candidate) if both[1].kind != "open"]
    asked = {new.capability for _, new in pairs if new.kind != "text"}
    groups: dict[str, list[tuple[Outcome, Outcome]]] = {}
    for old, new in pairs:
        # Accuracy and bits per byte cannot be averaged: a capability with both kinds is judged in two rows.
        suffix = " (text)" if new.kind == "text" and new.capability in asked else ""
        groups.setdefault(new.capability + suffix, []).append((old, new))
    hard = [both for both in pairs if both[1].correct is not None]
    if sum(1 for members in groups.values() if members[0][1].correct is not None) > 1:
        groups[POOLED] = hard
    # One order, whatever the record's: sums of floats and the item that is named depend on it.
    ordered = {name: sorted(members, key=lambda both: both[1].id) for name, members in groups.items()}
    return [(name, members, _drops(name, members)) for name, members in ordered.items()]


def _drops(name: str, members: Pairs) -> list[Drops]:
    if members[0][1].kind == "text":
        both = [(old.bits_per_byte, new.bits_per_byte, new) for old, new in members]
        finite = [(old, new, item) for old, new, item in both if old is not None and new is not None]
        values = np.array([(old, new) for old, new, _ in finite], dtype=float).reshape(-1, 2)
        scale = float(values[:, 0].mean()) if len(values) else math.nan
        # Nothing is relative to 0 bits; what cannot be compared is "no data", never a pass.
        rises = (values[:, 1] - values[:, 0]) / scale if scale > 0 else np.empty(0)
        return [Drops("bits per byte", rises, _clusters([item for _, _, item in finite][: len(rises)]))]
    clusters = _clusters([new for _, new in members])
    hard = np.array([float(bool(old.correct)) - float(bool(new.correct)) for old, new in members])
    found = [Drops("accuracy", hard, clusters)]
    soft = [old.p - new.p for old, new in members if old.p is not None and new.p is not None]
    # All items together are there to see a loss that is spread thinly: one test of them is enough.
    if len(soft) == len(members) and name != POOLED:
        found.append(Drops("probability", np.array(soft), clusters))
    return found


def _clusters(items: Sequence[Outcome]) -> NDArray[np.int64] | None:
    # Names of clusters and ids of single items never meet: each item without a cluster is one of its own.
    names = [(item.cluster is not None, item.cluster or item.id) for item in items]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names]) if len(numbers) < len(items) else None


def _counts(drops: Drops) -> tuple[int, int]:
    return int((drops.values > 0).sum()), int((drops.values < 0).sum())


def _p_value(drops: Drops) -> float:
    if drops.measure == "bits per byte":
        return mean_p_value(drops.values, clusters=drops.clusters)
    if drops.measure == "accuracy" and drops.clusters is None:
        return mcnemar_exact(*_counts(drops))
    return bounded_p_value(drops.values, clusters=drops.clusters)


def _interval(drops: Drops, alpha_lower: float, alpha_upper: float) -> Interval:
    values, clusters = drops.values, drops.clusters
    if drops.measure == "bits per byte":
        return mean_interval(values, alpha_lower=alpha_lower, alpha_upper=alpha_upper, clusters=clusters)
    if drops.measure == "accuracy" and clusters is None:
        lost, won = _counts(drops)
        return hard_interval(len(values), lost, won, alpha_lower=alpha_lower, alpha_upper=alpha_upper)
    return bounded_interval(values, alpha_lower=alpha_lower, alpha_upper=alpha_upper, clusters=clusters)


def _measure(
    drops: Drops, p_value: float, rejected: bool, tolerance: float, alpha_lower: float, alpha_upper: float,
    rounding: Mapping[str, float], tested_at: float, method: str | None,
) -> Measure:  # fmt: skip
    interval = _interval(drops, alpha_lower, alpha_upper)
    drop = float(drops.values.mean()) if len(drops.values) else None
    floor = noise.floor(rounding, drops.measure, len(drops.values))
    lower = interval.lower
    if rejected and lower <= 0:
        # Holm's procedure, or the looks before, prove more than the bound of this look: above 0, and no size.
        lower = OPEN_ZERO
    zone = Zone.UNDECIDED
    if interval.upper <= tolerance:
        zone = Zone.RETAINED
    elif rejected and drop is not None and drop > floor:
        zone = Zone.REGRESSED
    return Measure(
        name=drops.measure,
        drop=drop,
        lower=lower if math.isfinite(lower) else None,
        upper=interval.upper if math.isfinite(interval.upper) else None,
        p_value=p_value,
        tested_at=tested_at,
        alpha_lower=alpha_lower,
        alpha_upper=alpha_upper,
        method=interval.method if method is None else f"{method}; {interval.method}",
        exact=interval.exact and method is None,
        floor=floor,
        zone=zone,
    )


def _row(name: str, members: Pairs, measures: list[Measure], tolerance: float) -> CapabilityVerdict:
    deciding = next((m for m in measures if m.zone is not Zone.UNDECIDED), None)
    zone = deciding.zone if deciding is not None else Zone.UNDECIDED
    main, soft = measures[0], measures[1] if len(measures) > 1 else None
    hard = main.name == "accuracy"
    lost = sum(bool(old.correct) and not new.correct for old, new in members) if hard else None
    won = sum(not old.correct and bool(new.correct) for old, new in members) if hard else None
    before = [_value(old, hard) for old, _ in members]
    after = [_value(new, hard) for _, new in members]
    known = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    clusters = len({item.cluster or (item.id,) for _, item in members})
    needed = None
    if zone is Zone.UNDECIDED and lost is not None and won is not None:
        needed = items_to_decide(
            len(members), lost, won, tolerance=tolerance, alpha_fail=main.alpha_lower, alpha_pass=main.alpha_upper
        )
    row = CapabilityVerdict(
        capability=name,
        zone=zone,
        decided_by=deciding.name if deciding is not None else None,
        unit=main.name,
        items=len(members),
        clusters=clusters if clusters < len(members) else None,
        baseline=math.fsum(a for a, _ in known) / len(known) if known else None,
        candidate=math.fsum(b for _, b in known) / len(known) if known else None,
        tolerance=tolerance,
        lost=lost,
        won=won,
        main=main,
        soft=soft,
        reason=_reason(deciding or main, _seen(deciding or main, lost, won, len(known)), tolerance, needed),
        items_to_decide=needed,
    )
    now_broken = [new.id for old, new in members if old.finite and not new.finite]
    already_broken = [old.id for old, _ in members if not old.finite]
    if now_broken:
        reason = f"{_count(now_broken)} with a log-likelihood that is not finite, such as {now_broken[0]!r}"
        return dataclasses.replace(row, zone=Zone.REGRESSED, decided_by=None, reason=reason, items_to_decide=None)
    if already_broken and zone is Zone.RETAINED:
        reason = f"the baseline itself has {_count(already_broken)} that are not finite"
        return dataclasses.replace(row, zone=Zone.UNDECIDED, decided_by=None, reason=reason)
    return row


def _value(outcome: Outcome, hard: bool) -> float | None:
    return float(bool(outcome.correct)) if hard else outcome.bits_per_byte


def _seen(measure: Measure, lost: int | None, won: int | None, items: int) -> str:
    flips = f"lost {lost} and won {won} of {items} items"
    if measure.name == "accuracy":
        return flips
    if measure.drop is None:
        return "no text to compare"
    way = "fell" if measure.drop > 0 else "rose"
    if measure.name == "probability":
        return f"the probability of the right choice {way} by {abs(measure.drop) * 100:.1f} points ({flips})"
    return f"bits per byte {'rose' if measure.drop > 0 else 'fell'} by {abs(measure.drop):.1%} on {items} texts"


def _reason(measure: Measure, seen: str, tolerance: float, needed: int | None) -> str:
    if measure.zone is Zone.RETAINED:
        assert measure.upper is not None
        return f"{seen}; a drop of more than {tolerance:.1%} is ruled out (at most {measure.upper:.1%})"
    if measure.zone is Zone.REGRESSED:
        size = f" (at least {measure.lower:.1%})" if measure.lower is not None and measure.lower >= 5e-4 else ""
        return f"{seen}; that something was lost is proven{size}"
    more = f"; about {needed} items like these would decide" if needed else ""
    upper = f"up to {measure.upper:.1%}" if measure.upper is not None else "of any size"
    return f"{seen}; a drop {upper} is possible and none is proven{more}"


def _count(ids: Sequence[Any]) -> str:
    return f"{len(ids)} item" + ("" if len(ids) == 1 else "s")
