"""The joint sign-flip test over the looks of a run, fed with records: power mode of the guard.

A pair of a frozen state and a pure function, as the tests of `backslide.stats` are; a resumed run feeds the records
that it finds, and stands where it stood.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass

from backslide.drops import paired_drops
from backslide.judge import Alarms
from backslide.record import Record
from backslide.stats.signflip_sequential import SignFlipState, joint_sign_flip

DRAWS = 1000
METHOD = "joint sign-flip over all looks and capabilities, exact under sign symmetry, else asymptotic"


@dataclass(frozen=True)
class Joint:
    """Where the test stands."""

    alpha: float
    """Probability of a false alarm over all looks."""
    looks: int
    """Planned looks."""
    state: SignFlipState | None = None
    """None before the first look."""


def on_record(joint: Joint, baseline: Record, record: Record, leave_out: Collection[str] = ()) -> tuple[Joint, Alarms]:
    """Take a look's record; what it proves stands in place of the look's own tests.

    Each capability enters with its finest measure; the row of all items is not tested. A look with a score that is not
    finite, where the baseline has one, is judged by that alone: it proves nothing here, and its share of α is not
    spent. Items of `leave_out` are not looked at, and must be the same at all looks of a run.
    """
    drops = {name: of for name, of in paired_drops(baseline, record, leave_out).items() if len(of.values)}
    judged = [outcome for outcome in record.outcomes if outcome.id not in leave_out]
    broken = any(not outcome.finite and baseline.by_id[outcome.id].finite for outcome in judged)
    if broken or not drops:
        return joint, Alarms(frozenset(), joint.alpha, METHOD)
    units = [len(of.values) if of.clusters is None else of.clusters for of in drops.values()]
    # Enough draws that the first look has something to spend.
    draws = max(DRAWS, math.ceil(joint.looks / joint.alpha))
    test = joint_sign_flip(joint.alpha, joint.looks, units, draws=draws)
    state, decision = test.update(joint.state or test.init(), [of.values for of in drops.values()])
    proven = frozenset(name for name, above in zip(drops, decision.above, strict=True) if above)
    return dataclasses.replace(joint, state=state), Alarms(proven, decision.spent, METHOD)
