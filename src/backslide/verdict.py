"""Baseline record and candidate record in, verdict out: was something lost?

For each capability, with the interval of the mean paired drop (baseline minus candidate, positive is worse):

- `retained`: the upper bound is at most the tolerance: proven, not "no significant difference";
- `regressed`: the lower bound is above 0, and `retained` is not proven;
- `undecided`: neither; the verdict says how many items would decide it.

Overall: `regressed` if any capability is, else `undecided` if any is, else `retained`. All items together are tested
as one more member of the family, so that a loss spread over many capabilities is seen as well; they can fail a model
but never pass it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from backslide.errors import ConfigError, RecordError
from backslide.record import Outcome, Record, pair
from backslide.stats.means import mean_interval
from backslide.stats.paired import Interval, hard_interval, mcnemar_exact
from backslide.stats.power import items_to_decide

POOLED = "all items"
"""Name of the row in which every item with a right answer is tested together."""


class Zone(str, Enum):
    """What can be said of a capability, or of a model."""

    RETAINED = "retained"
    REGRESSED = "regressed"
    UNDECIDED = "undecided"

    def __str__(self) -> str:
        return self.value

    @property
    def exit_code(self) -> int:
        """0 retained, 1 regressed, 3 undecided."""
        return {Zone.RETAINED: 0, Zone.REGRESSED: 1, Zone.UNDECIDED: 3}[self]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The drop that is accepted. Raises `ConfigError` for values that are not between 0 and 1."""

    accuracy: float = 0.03
    """Share of a capability's items."""
    bits_per_byte: float = 0.02
    """Relative to the baseline's mean."""

    def __post_init__(self) -> None:
        for name in ("accuracy", "bits_per_byte"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ConfigError(f"tolerance of {name} is {value!r}, a share from 0 to below 1 is needed (0.03)")


@dataclass(frozen=True, kw_only=True)
class Level:
    """Error probabilities of one look. Raises `ConfigError` for values outside (0, 0.5]."""

    fail: float = 0.05
    """Of a false `regressed`, over all capabilities of this look together."""
    passing: float = 0.05
    """Of a false `retained`, for each capability. All must pass, which needs no correction (intersection–union)."""

    def __post_init__(self) -> None:
        for name in ("fail", "passing"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value <= 0.5:
                raise ConfigError(f"alpha is {value!r}, a probability above 0 and up to 0.5 is needed (0.05)")


@dataclass(frozen=True, kw_only=True)
class CapabilityVerdict:
    """The verdict on one capability."""

    capability: str
    zone: Zone
    unit: str
    """`accuracy`, or `bits per byte` (drops are then relative to the baseline's mean)."""
    items: int
    baseline: float | None
    """Mean of the baseline in `unit`."""
    candidate: float | None
    drop: float | None
    """Mean paired drop; positive is worse."""
    lower: float | None
    """Lower bound of the drop at `alpha_fail`; None: minus infinity."""
    upper: float | None
    """Upper bound of the drop at `alpha_pass`; None: infinity."""
    alpha_fail: float
    alpha_pass: float
    p_value: float | None
    """One-sided, of "nothing was lost"; None where the interval alone decides."""
    tolerance: float
    lost: int | None
    """Items right before and wrong now."""
    won: int | None
    """Items wrong before and right now."""
    soft_drop: float | None
    """Mean drop of the probability on the gold choice; shown beside the hard one, does not decide."""
    method: str
    exact: bool
    reason: str
    items_to_decide: int | None = None
    """How many items like these would decide an undecided verdict."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Was something lost between two records?"""

    zone: Zone
    capabilities: tuple[CapabilityVerdict, ...]
    pooled: CapabilityVerdict | None
    """All items with a right answer together; None where there are none."""
    claim: str
    """What the verdict covers, in one sentence."""
    reasons: tuple[str, ...]
    """Why, in plain words; the first is the main one."""
    part: str
    step: int | None = None

    @property
    def exit_code(self) -> int:
        """0 retained, 1 regressed, 3 undecided."""
        return self.zone.exit_code

    def __str__(self) -> str:
        return f"{self.zone}: {self.reasons[0]}"

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Verdict:
        """The inverse of `to_dict`. Raises `RecordError` where the dictionary is no verdict."""
        try:
            rows = [_capability(r) for r in row["capabilities"]]
            pooled = None if row["pooled"] is None else _capability(row["pooled"])
            fixed = {**row, "zone": Zone(row["zone"]), "capabilities": tuple(rows), "pooled": pooled}
            return cls(**{**fixed, "reasons": tuple(row["reasons"])})
        except (KeyError, TypeError, ValueError) as bad:
            raise RecordError(f"is no verdict of this version of backslide: {bad}") from None


def judge(
    baseline: Record,
    candidate: Record,
    *,
    tolerance: Tolerance | None = None,
    level: Level | None = None,
) -> Verdict:
    """Compare two records item by item.

    Args:
        baseline: measured before training; may cover more items than the candidate.
        candidate: what is judged.
        tolerance: the drop that is accepted.
        level: error probabilities of this look. `level.fail` is divided by the number of tests
            (Bonferroni: capabilities, and all items together where there are several).

    Raises:
        MismatchError: the records were not measured on the same requests under the same conditions.
    """
    tolerance, level = tolerance or Tolerance(), level or Level()
    pairs = pair(baseline, candidate)
    groups: dict[str, list[tuple[Outcome, Outcome]]] = {}
    for old, new in pairs:
        if new.kind != "open":
            # Accuracy and bits per byte cannot be averaged: a capability with both kinds is judged in two rows.
            suffix = " (text)" if new.kind == "text" and _mixed(pairs, new.capability) else ""
            groups.setdefault(new.capability + suffix, []).append((old, new))
    hard = [(old, new) for old, new in pairs if new.correct is not None]
    with_pooled = sum(1 for members in groups.values() if members[0][1].correct is not None) > 1
    tests = len(groups) + with_pooled
    alpha = level.fail / max(tests, 1)
    rows = tuple(_judge(name, members, tolerance, alpha, level.passing) for name, members in groups.items())
    pooled = _judge(POOLED, hard, tolerance, alpha, level.passing) if with_pooled else None
    zone, reasons = _overall(rows, pooled)
    count = sum(row.items for row in rows)
    where = {"monitor": "the monitor half", "gate": "the sealed gate half"}.get(candidate.header.part, "all items")
    claim = (
        f"{count} items of the suite {candidate.header.suite} ({where}), taken as a sample of what each capability "
        f"stands for; false alarms at most {level.fail:.3g} over {tests} tests of this look, "
        f"false passes at most {level.passing:.3g} a capability."
    )
    return Verdict(
        zone=zone,
        capabilities=rows,
        pooled=pooled,
        claim=claim,
        reasons=reasons,
        part=candidate.header.part,
        step=candidate.header.step,
    )


def broken(reason: str, *, zone: Zone = Zone.REGRESSED, part: str = "none", step: int | None = None) -> Verdict:
    """A verdict that needs no statistics: the run broke (`regressed`), or nothing was measured (`undecided`)."""
    return Verdict(
        zone=zone, capabilities=(), pooled=None, claim="No items were compared.", reasons=(reason,), part=part,
        step=step,
    )  # fmt: skip


def main_row(verdict: Verdict) -> CapabilityVerdict | None:
    """The row that stands for all: of all items together, else of the only capability."""
    if verdict.pooled is not None:
        return verdict.pooled
    return verdict.capabilities[0] if len(verdict.capabilities) == 1 else None


def _judge(
    name: str, pairs: Sequence[tuple[Outcome, Outcome]], tolerance: Tolerance, alpha_fail: float, alpha_pass: float
) -> CapabilityVerdict:
    # One order, whatever the record's: sums of floats and the item that is named depend on it.
    pairs = sorted(pairs, key=lambda both: both[1].id)
    now_broken = [new.id for old, new in pairs if old.finite and not new.finite]
    already_broken = [old.id for old, _ in pairs if not old.finite]
    levels = {"alpha_lower": alpha_fail, "alpha_upper": alpha_pass}
    if pairs[0][1].kind == "text":
        row = _text(name, pairs, tolerance.bits_per_byte, levels)
    else:
        row = _hard(name, pairs, tolerance.accuracy, levels)
    if now_broken:
        reason = f"{_count(now_broken, 'item')} with a log-likelihood that is not finite, such as {now_broken[0]!r}"
        return dataclasses.replace(row, zone=Zone.REGRESSED, reason=reason, items_to_decide=None)
    if already_broken and row.zone is Zone.RETAINED:
        reason = f"the baseline itself has {_count(already_broken, 'item')} that are not finite"
        return dataclasses.replace(row, zone=Zone.UNDECIDED, reason=reason)
    return row


def _hard(
    name: str, pairs: Sequence[tuple[Outcome, Outcome]], tolerance: float, levels: dict[str, float]
) -> CapabilityVerdict:
    before = np.array([bool(old.correct) for old, _ in pairs])
    after = np.array([bool(new.correct) for _, new in pairs])
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    interval = hard_interval(len(pairs), lost, won, **levels)
    p_value = mcnemar_exact(lost, won)
    soft = [old.p - new.p for old, new in pairs if old.p is not None and new.p is not None]
    zone = _zone(interval, tolerance)
    needed = None
    if zone is Zone.UNDECIDED:
        needed = items_to_decide(
            len(pairs), lost, won, tolerance=tolerance, alpha_fail=levels["alpha_lower"],
            alpha_pass=levels["alpha_upper"],
        )  # fmt: skip
    return CapabilityVerdict(
        capability=name,
        zone=zone,
        unit="accuracy",
        items=len(pairs),
        baseline=float(before.mean()),
        candidate=float(after.mean()),
        drop=float(before.mean() - after.mean()),
        lower=interval.lower,
        upper=interval.upper,
        alpha_fail=levels["alpha_lower"],
        alpha_pass=levels["alpha_upper"],
        p_value=p_value,
        tolerance=tolerance,
        lost=lost,
        won=won,
        soft_drop=math.fsum(soft) / len(soft) if soft else None,
        method=interval.method,
        exact=interval.exact,
        reason=_reason(zone, interval, tolerance, f"lost {lost} and won {won} of {len(pairs)} items", needed),
        items_to_decide=needed,
    )


def _text(
    name: str, pairs: Sequence[tuple[Outcome, Outcome]], tolerance: float, levels: dict[str, float]
) -> CapabilityVerdict:
    both = [(old.bits_per_byte, new.bits_per_byte) for old, new in pairs]
    values = np.array([(old, new) for old, new in both if old is not None and new is not None]).reshape(-1, 2)
    scale = float(values[:, 0].mean()) if len(values) else math.nan
    # Nothing is relative to 0 bits; what cannot be compared is "no data", never a pass.
    rises = (values[:, 1] - values[:, 0]) / scale if scale > 0 else np.empty(0)
    interval = mean_interval(rises, **levels)
    zone = _zone(interval, tolerance)
    seen = f"bits per byte rose by {rises.mean():.1%} on {len(rises)} texts" if len(rises) else "no text to compare"
    return CapabilityVerdict(
        capability=name,
        zone=zone,
        unit="bits per byte",
        items=len(pairs),
        baseline=scale if len(values) else None,
        candidate=float(values[:, 1].mean()) if len(values) else None,
        drop=float(rises.mean()) if len(rises) else None,
        lower=interval.lower if math.isfinite(interval.lower) else None,
        upper=interval.upper if math.isfinite(interval.upper) else None,
        alpha_fail=levels["alpha_lower"],
        alpha_pass=levels["alpha_upper"],
        p_value=None,
        tolerance=tolerance,
        lost=None,
        won=None,
        soft_drop=None,
        method=interval.method,
        exact=interval.exact,
        reason=_reason(zone, interval, tolerance, seen, None),
    )


def _zone(interval: Interval, tolerance: float) -> Zone:
    if interval.upper <= tolerance:
        return Zone.RETAINED
    return Zone.REGRESSED if interval.lower > 0 else Zone.UNDECIDED


def _reason(zone: Zone, interval: Interval, tolerance: float, seen: str, needed: int | None) -> str:
    if zone is Zone.RETAINED:
        return f"{seen}; a drop of more than {tolerance:.1%} is ruled out (at most {interval.upper:.1%})"
    if zone is Zone.REGRESSED:
        return f"{seen}; that something was lost is proven (at least {max(interval.lower, 0):.1%})"
    more = f"; about {needed} items like these would decide" if needed else ""
    upper = f"up to {interval.upper:.1%}" if math.isfinite(interval.upper) else "of any size"
    return f"{seen}; a drop {upper} is possible and none is proven{more}"


def _overall(rows: Sequence[CapabilityVerdict], pooled: CapabilityVerdict | None) -> tuple[Zone, tuple[str, ...]]:
    if not rows:
        return Zone.UNDECIDED, ("the suite has no item with a verdict; add choice, answer or text items",)
    judged = [*rows, pooled] if pooled is not None else list(rows)
    for zone in (Zone.REGRESSED, Zone.UNDECIDED):
        # The row of all items can fail a model, never pass or delay it.
        named = [row for row in (judged if zone is Zone.REGRESSED else rows) if row.zone is zone]
        if named:
            return zone, tuple(f"{row.capability}: {row.reason}" for row in named)
    return Zone.RETAINED, (f"no capability lost more than its tolerance ({_count(rows, 'capability')} proven)",)


def _mixed(pairs: Sequence[tuple[Outcome, Outcome]], capability: str) -> bool:
    return len({new.kind == "text" for _, new in pairs if new.capability == capability and new.kind != "open"}) > 1


def _count(things: Sequence[object], noun: str) -> str:
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{len(things)} {noun if len(things) == 1 else plural}"


def _capability(row: Mapping[str, Any]) -> CapabilityVerdict:
    return CapabilityVerdict(**{**row, "zone": Zone(row["zone"])})
