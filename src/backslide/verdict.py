"""What a verdict is. `backslide.judge` makes one from two records.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from backslide.errors import ConfigError, RecordError

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
    """The drop that is accepted. Raises `ConfigError` for values that are not between 0 and 1 (drift: 2)."""

    accuracy: float = 0.03
    """Share of a capability's items."""
    bits_per_byte: float = 0.02
    """Relative to the baseline's mean."""
    drift: float = 0.1
    """Nats a token: how much less probable the base's own replies may become. At 0.1 each of their tokens has, in the
    geometric mean, 90% of the probability that it had."""

    def __post_init__(self) -> None:
        for name in ("accuracy", "bits_per_byte"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ConfigError(f"tolerance of {name} is {value!r}, a share from 0 to below 1 is needed (0.03)")
        if not isinstance(self.drift, (int, float)) or not 0 <= self.drift < 2:
            raise ConfigError(f"tolerance of drift is {self.drift!r}, nats a token from 0 to below 2 are needed (0.1)")

    def of(self, unit: str) -> float:
        """The tolerance in a unit: `accuracy`, `bits per byte` or `drift`."""
        return float(getattr(self, unit.replace(" ", "_")))


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
class Measure:
    """One way to see a drop in a capability: what was seen, how it was tested, and what follows."""

    name: str
    """`accuracy`, `probability` (on the gold choice), `bits per byte` (relative to the baseline's mean), or `drift`
    (nats a token of the base's own replies)."""
    drop: float | None
    """Mean paired drop; positive is worse. None: nothing to compare."""
    lower: float | None
    """Lower bound of the drop at `alpha_lower`; None: minus infinity."""
    upper: float | None
    """Upper bound of the drop at `alpha_upper`; None: infinity."""
    p_value: float | None
    """One-sided, of "nothing was lost" at this look; None where a test over several looks stands in its place."""
    tested_at: float
    """Level at which "nothing was lost" was tested: α of this look, shared out by Holm's procedure."""
    alpha_lower: float
    """α of this look over the number of its tests: all lower bounds hold together with probability 1 - α."""
    alpha_upper: float
    method: str
    """The test and the interval."""
    exact: bool
    """Whether the levels hold at every number of items; else they are asymptotic."""
    floor: float
    """The drop that rounding alone may make; less is never a regression."""
    zone: Zone
    """What this measure says by itself."""


@dataclass(frozen=True, kw_only=True)
class CapabilityVerdict:
    """The verdict on one capability."""

    capability: str
    zone: Zone
    decided_by: str | None
    """Name of the measure that decided; None for `undecided`, or where a score is not finite."""
    unit: str
    """`accuracy`, `bits per byte`, or `drift`."""
    items: int
    clusters: int | None
    """Independent groups of items, where items share passages or templates; None: each item for itself."""
    baseline: float | None
    """Mean of the baseline in `unit`; for `drift`, negative log-likelihood of its own replies, in nats a token."""
    candidate: float | None
    tolerance: float
    lost: int | None
    """Items right before and wrong now."""
    won: int | None
    """Items wrong before and right now."""
    main: Measure
    """The drop in `unit`."""
    soft: Measure | None
    """The drop in the probability on the gold choice, where every item has one."""
    reason: str
    items_to_decide: int | None = None
    """How many items like these would decide an undecided verdict."""
    kl: float | None = None
    """For `drift`: KL to the base along its own replies, in nats a token, at least; it decides nothing. None elsewhere,
    and where the records do not tell (see `backslide.drops.kl_between`)."""

    @property
    def drop(self) -> float | None:
        """Mean paired drop in `unit`; positive is worse."""
        return self.main.drop

    @property
    def lower(self) -> float | None:
        """Lower bound of `drop`."""
        return self.main.lower

    @property
    def upper(self) -> float | None:
        """Upper bound of `drop`."""
        return self.main.upper

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All that was tested, the one in `unit` first."""
        return (self.main,) if self.soft is None else (self.main, self.soft)


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
    beside: Verdict | None = None
    """The look at the monitor half, where that and not the gate half proved a regression of the final model."""
    opening: int | None = None
    """Which opening of the gate half in the run's folder this was, from 1; the α is for one. None: of no folder."""

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
            beside = None if row.get("beside") is None else cls.from_dict(row["beside"])
            fixed = {**row, "zone": Zone(row["zone"]), "capabilities": tuple(rows), "pooled": pooled, "beside": beside}
            return cls(**{**fixed, "reasons": tuple(row["reasons"])})
        except (KeyError, TypeError, ValueError) as bad:
            raise RecordError(f"is no verdict of this version of backslide: {bad}") from None


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


def overall(rows: Sequence[CapabilityVerdict], pooled: CapabilityVerdict | None) -> tuple[Zone, tuple[str, ...]]:
    """The zone of a model and why, from its capabilities and the row of all items together."""
    if not rows:
        return Zone.UNDECIDED, (
            "the suite has no item with a verdict; add choice, answer or text items, or open items with a reference",
        )
    judged = [*rows, pooled] if pooled is not None else list(rows)
    for zone in (Zone.REGRESSED, Zone.UNDECIDED):
        # The row of all items can fail a model, never pass or delay it.
        named = [row for row in (judged if zone is Zone.REGRESSED else rows) if row.zone is zone]
        if named:
            return zone, tuple(f"{row.capability}: {row.reason}" for row in named)
    proven = "1 capability" if len(rows) == 1 else f"{len(rows)} capabilities"
    drifting = [row.unit == "drift" for row in rows]
    # Of drift alone nothing is known to be lost or kept: it is a change, not a loss.
    did = "drifted from the base by" if all(drifting) else "lost, or drifted by," if any(drifting) else "lost"
    return Zone.RETAINED, (f"no capability {did} more than its tolerance ({proven} proven)",)


def _capability(row: Mapping[str, Any]) -> CapabilityVerdict:
    main, soft = _measure(row["main"]), None if row["soft"] is None else _measure(row["soft"])
    return CapabilityVerdict(**{**row, "zone": Zone(row["zone"]), "main": main, "soft": soft})


def _measure(row: Mapping[str, Any]) -> Measure:
    return Measure(**{**row, "zone": Zone(row["zone"])})
