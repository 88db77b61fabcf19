"""Two records in, a verdict out: which tests are made, at which levels, and what they add up to.

Every capability is seen in one or two *measures*. Right-or-wrong items give a drop in accuracy (exact McNemar); where
each of them has a probability on the gold choice too, that gives a second, finer drop (betting on bounded means).
Text gives a drop in bits per byte (paired t). Open items with a reference give drift: by how much the base's own
replies became less probable (nats a token, clipped; betting on bounded means). Where items come in clusters, the
clusters are what is independent, and tests for clusters take the place of those for items. The KL to the base on these
replies stands beside their drift and decides nothing.

*Fail.* All tests of a look, those of all items together among them, share its α by Holm's procedure, so a false
`regressed` has probability at most α whatever is true of the others. The lower bounds are at α over the number of
tests: all of them together hold with probability 1 - α, too.

*Pass.* Each capability must pass, which needs no correction (intersection-union).

*Which measure decides.* The tolerance is one of accuracy, so accuracy decides wherever it can. Where it is undecided,
the probability on the gold choice can prove a loss, for which it may need fewer items; it never passes a capability,
since answers can be lost while the mean probability stays. What is said names the measure. A drop that is no larger
than rounding makes it (`backslide.noise`) is no regression in either. A capability of which nothing was asked is
`undecided`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backslide import noise
from backslide.drops import DRIFT_LIMIT, Absent, Drops, Pairs, groups, kl_between
from backslide.record import Outcome, Record
from backslide.stats.bounded import bounded_interval, bounded_p_value
from backslide.stats.means import mean_interval, mean_p_value
from backslide.stats.multiplicity import holm
from backslide.stats.paired import OPEN_ZERO, Interval, hard_interval, mcnemar_exact
from backslide.stats.power import items_to_decide
from backslide.verdict import CapabilityVerdict, Level, Measure, Tolerance, Verdict, Zone, overall

MOST_REPLIES = 20_000
"""Replies at which the search for how many would decide ends."""

FEWEST_TEXTS = 50
"""Texts from which a t bound of skewed drops is not too far off to decide anything; see `docs/statistics.md`."""


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
    leave_out: Collection[str] = (),
) -> Verdict:
    """Compare two records item by item.

    Args:
        baseline: measured before training; may cover more items than the candidate.
        candidate: what is judged.
        tolerance: the drop that is accepted.
        level: error probabilities of this look.
        alarms: of a sequential test, in place of this look's own tests of "nothing was lost".
        leave_out: ids of items that were found in the training data; they are not judged, and the claim says so. A
            capability of which none is left is `undecided`.

    Raises:
        MismatchError: the records were not measured on the same requests under the same conditions.
    """
    tolerance, level = tolerance or Tolerance(), level or Level()
    found = groups(baseline, candidate, leave_out)
    tests = [drops for group in found.all for drops in group.drops]
    p_values = [_p_value(drops) for drops in tests]
    share = level.fail / max(len(tests), 1)
    steps = holm(p_values, level.fail) if tests else None
    decided = iter(zip(p_values, steps.rejected, steps.levels, strict=True) if steps is not None else ())
    rows = []
    for group in found.all:
        measures = []
        accepted = tolerance.of(group.drops[0].measure)
        for drops in group.drops:
            p_value, rejected, tested_at = next(decided)
            tested = _Tested(p_value, rejected, tested_at, None)
            if alarms is not None:
                proven = group.name in alarms.proven and group is not found.pooled and drops is group.drops[-1]
                tested = _Tested(None, proven, alarms.level, alarms.method)
            measures.append(_measure(drops, tested, accepted, share, level.passing, baseline.header.noise))
        rows.append(_row(group.name, group.pairs, measures, accepted, group.drops[0]))
    pooled = rows.pop() if found.pooled is not None else None
    rows += [_absent(capability, tolerance, share, level) for capability in found.absent]
    zone, reasons = overall(rows, pooled)
    return Verdict(
        zone=zone,
        capabilities=tuple(rows),
        pooled=pooled,
        claim=_claim(candidate, rows, level, alarms, len(tests), found.left_out),
        reasons=reasons,
        part=candidate.header.part,
        step=candidate.header.step,
    )


def _claim(
    candidate: Record,
    rows: Sequence[CapabilityVerdict],
    level: Level,
    alarms: Alarms | None,
    tests: int,
    left_out: int,
) -> str:
    where = {"monitor": "the monitor half", "gate": "the sealed gate half"}.get(candidate.header.part, "all items")
    if alarms is None:
        alarm = f"false alarms at most {level.fail:.3g} over {tests} tests of this look"
    else:
        alarm = f"false alarms at most {alarms.level:.3g} over the looks so far ({alarms.method})"
    inexact = " (asymptotically for bits per byte)" if any(row.unit == "bits per byte" for row in rows) else ""
    leaked = f"; {_count(left_out)} left out, found in the training data" if left_out else ""
    drift = (
        f" Drift says how much less probable the base's own replies became, clipped to {DRIFT_LIMIT:g} nats a token: "
        "that the model speaks otherwise, not that it is worse."
    )
    return (
        f"{sum(row.items for row in rows)} items of the suite {candidate.header.suite} ({where}{leaked}), taken as a "
        f"sample of what each capability stands for; {alarm}, false passes at most {level.passing:.3g} a "
        f"capability{inexact}."
    ) + (drift if any(row.unit == "drift" for row in rows) else "")


@dataclass(frozen=True)
class _Tested:
    """What was said of "nothing was lost" in one measure."""

    p_value: float | None
    rejected: bool
    level: float
    method: str | None
    """None: the measure's own test."""


def _counts(drops: Drops) -> tuple[int, int]:
    return int((drops.values > 0).sum()), int((drops.values < 0).sum())


def _p_value(drops: Drops) -> float:
    if drops.measure == "bits per byte":
        return mean_p_value(drops.values, clusters=drops.clusters)
    if drops.measure == "accuracy" and drops.clusters is None:
        return mcnemar_exact(*_counts(drops))
    return bounded_p_value(drops.values / _reach(drops), clusters=drops.clusters)


def _reach(drops: Drops) -> float:
    """The largest drop that there can be, by which it is divided to be in [-1, 1]."""
    return DRIFT_LIMIT if drops.measure == "drift" else 1.0


def _interval(drops: Drops, alpha_lower: float, alpha_upper: float) -> Interval:
    values, clusters = drops.values, drops.clusters
    if drops.measure == "bits per byte":
        return mean_interval(values, alpha_lower=alpha_lower, alpha_upper=alpha_upper, clusters=clusters)
    if drops.measure == "accuracy" and clusters is None:
        lost, won = _counts(drops)
        return hard_interval(len(values), lost, won, alpha_lower=alpha_lower, alpha_upper=alpha_upper)
    reach = _reach(drops)
    found = bounded_interval(values / reach, alpha_lower=alpha_lower, alpha_upper=alpha_upper, clusters=clusters)
    if reach == 1.0:
        return found
    lower = found.lower if 0 < found.lower <= OPEN_ZERO else found.lower * reach
    return dataclasses.replace(found, lower=lower, upper=found.upper * reach)


def _measure(
    drops: Drops,
    tested: _Tested,
    tolerance: float,
    alpha_lower: float,
    alpha_upper: float,
    rounding: Mapping[str, float],
) -> Measure:
    interval = _interval(drops, alpha_lower, alpha_upper)
    drop = float(drops.values.mean()) if len(drops.values) else None
    floor = noise.floor(rounding, drops.measure, len(drops.values))
    lower = interval.lower
    if tested.rejected and lower <= 0:
        # Holm's procedure, or the looks before, prove more than the bound of this look: above 0, and no size.
        lower = OPEN_ZERO
    few = drops.measure == "bits per byte" and len(drops.values) < FEWEST_TEXTS
    zone = Zone.UNDECIDED
    if few:
        lower = -math.inf
    elif interval.upper <= tolerance:
        zone = Zone.RETAINED
    elif tested.rejected and drop is not None and drop > floor:
        zone = Zone.REGRESSED
    return Measure(
        name=drops.measure,
        drop=drop,
        lower=lower if math.isfinite(lower) else None,
        upper=interval.upper if math.isfinite(interval.upper) and not few else None,
        p_value=tested.p_value,
        tested_at=tested.level,
        alpha_lower=alpha_lower,
        alpha_upper=alpha_upper,
        method=interval.method if tested.method is None else f"{tested.method}; {interval.method}",
        exact=interval.exact and tested.method is None,
        floor=floor,
        zone=zone,
    )


def _replies_to_decide(drops: Drops, tolerance: float, main: Measure) -> int | None:
    """About how many replies like these would decide, found by repeating them; None: not even `MOST_REPLIES`."""

    def decide(size: int) -> bool:
        more = _interval(Drops(drops.measure, np.resize(drops.values, size), None), main.alpha_lower, main.alpha_upper)
        return more.upper <= tolerance or (more.lower > 0 and (main.drop or 0.0) > main.floor)

    few, enough = len(drops.values), 2 * len(drops.values)
    while not decide(enough):
        few, enough = enough, 2 * enough
        if enough > MOST_REPLIES:
            return None
    for _ in range(4):  # to about a sixteenth
        middle = (few + enough) // 2
        few, enough = (few, middle) if middle > few and decide(middle) else (middle, enough)
    return enough


def _row(name: str, members: Pairs, measures: list[Measure], tolerance: float, drops: Drops) -> CapabilityVerdict:
    main, soft = measures[0], measures[1] if len(measures) > 1 else None
    deciding = main if main.zone is not Zone.UNDECIDED else None
    if deciding is None and soft is not None and soft.zone is Zone.REGRESSED:
        # The tolerance is one of accuracy: that the probability kept within it says nothing of the answers.
        deciding = soft
    zone = deciding.zone if deciding is not None else Zone.UNDECIDED
    hard = main.name == "accuracy"
    lost = sum(bool(old.correct) and not new.correct for old, new in members) if hard else None
    won = sum(not old.correct and bool(new.correct) for old, new in members) if hard else None
    before = [_value(old, main.name) for old, _ in members]
    after = [_value(new, main.name) for _, new in members]
    known = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    clusters = len({item.cluster or (item.id,) for _, item in members})
    needed = None
    if zone is Zone.UNDECIDED and lost is not None and won is not None and clusters == len(members):
        needed = items_to_decide(
            len(members), lost, won, tolerance=tolerance, alpha_fail=main.alpha_lower, alpha_pass=main.alpha_upper
        )
    elif main.name == "bits per byte" and len(known) < FEWEST_TEXTS:
        needed = FEWEST_TEXTS
    elif main.name == "drift" and zone is Zone.UNDECIDED and clusters == len(members) == len(drops.values):
        needed = _replies_to_decide(drops, tolerance, main)
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
        kl=_kl(members) if main.name == "drift" else None,
    )
    now_broken = [new.id for old, new in members if old.finite and not new.finite]
    already_broken = [old.id for old, _ in members if not old.finite]
    if now_broken:
        reason = f"{_count(len(now_broken))} with a log-likelihood that is not finite, such as {now_broken[0]!r}"
        return dataclasses.replace(row, zone=Zone.REGRESSED, decided_by=None, reason=reason, items_to_decide=None)
    if already_broken and zone is Zone.RETAINED:
        reason = f"the baseline itself has {_count(len(already_broken))} that are not finite"
        return dataclasses.replace(row, zone=Zone.UNDECIDED, decided_by=None, reason=reason)
    return row


def _kl(members: Pairs) -> float | None:
    """Mean over the items of which it is known."""
    known = [kl for kl in (kl_between(old, new) for old, new in members) if kl is not None]
    return math.fsum(known) / len(known) if known else None


def _value(outcome: Outcome, unit: str) -> float | None:
    if unit == "accuracy":
        return float(bool(outcome.correct))
    return outcome.nats_per_token if unit == "drift" else outcome.bits_per_byte


def _amount(value: float, unit: str) -> str:
    """A drop or a bound in words."""
    return f"{value:.3f} nats a token" if unit == "drift" else f"{value:.1%}"


def _seen(measure: Measure, lost: int | None, won: int | None, items: int) -> str:
    flips = f"lost {lost} and won {won} of {items} items"
    if measure.name == "accuracy":
        return flips
    if measure.drop is None:
        return "no text to compare"
    if measure.name == "drift":
        way = "less" if measure.drop > 0 else "more"
        return (
            f"the base's own replies became {way} probable by {_amount(abs(measure.drop), 'drift')} on {items} prompts"
        )
    way = "fell" if measure.drop > 0 else "rose"
    if measure.name == "probability":
        return f"the probability of the right choice {way} by {abs(measure.drop) * 100:.1f} points ({flips})"
    return f"bits per byte {'rose' if measure.drop > 0 else 'fell'} by {abs(measure.drop):.1%} on {items} texts"


def _reason(measure: Measure, seen: str, tolerance: float, needed: int | None) -> str:
    drift = measure.name == "drift"
    noun = "drift" if drift else "drop"
    if measure.zone is Zone.RETAINED:
        assert measure.upper is not None
        most, seen_most = _amount(tolerance, measure.name), _amount(measure.upper, measure.name)
        return f"{seen}; a {noun} of more than {most} is ruled out (at most {seen_most})"
    if measure.zone is Zone.REGRESSED:
        sized = measure.lower is not None and measure.lower >= 5e-4
        size = f" (at least {_amount(measure.lower or 0.0, measure.name)})" if sized else ""
        what = "that it fell" if measure.name == "probability" else "that something was lost"
        return f"{seen}; {'drift from the base' if drift else what} is proven{size}"
    if measure.name == "bits per byte" and needed is not None:
        return f"{seen}; bounds need at least {needed} texts"
    upper = f"up to {_amount(measure.upper, measure.name)}" if measure.upper is not None else "of any size"
    if measure.drop is not None and 0 < measure.drop <= measure.floor:
        return f"{seen}; that is no more than rounding makes it here, and a {noun} {upper} is possible"
    more = f"; about {needed} items like these would decide" if needed else ""
    # Without a p value the test was one over the looks, or none was left.
    proven = "none is proven" if measure.p_value is not None else "the test over the looks proves none"
    return f"{seen}; a {noun} {upper} is possible and {proven}{more}"


def _absent(capability: Absent, tolerance: Tolerance, share: float, level: Level) -> CapabilityVerdict:
    """The row of a capability of which nothing is judged here: never a pass."""
    unit = capability.unit
    main = Measure(
        name=unit, drop=None, lower=None, upper=None, p_value=None, tested_at=share, alpha_lower=share,
        alpha_upper=level.passing, method="no data", exact=True, floor=0.0, zone=Zone.UNDECIDED,
    )  # fmt: skip
    reason = "it has no item here; add items, so that each half has some"
    if capability.left_out:
        reason = "all its items here were found in the training data; add others, or train without them"
    return CapabilityVerdict(
        capability=capability.name, zone=Zone.UNDECIDED, decided_by=None, unit=unit, items=0, clusters=None,
        baseline=None, candidate=None, tolerance=tolerance.of(unit), lost=None, won=None, main=main, soft=None,
        reason=reason,
    )  # fmt: skip


def _count(items: int) -> str:
    return f"{items} item" + ("" if items == 1 else "s")
