"""Is what was lost knowledge, or only the form of the replies?

An item that is generated and matched can be lost in two ways: the model no longer knows the answer, or it knows it and
says it in a form that the matcher does not take. Log-likelihoods tell them apart: where the model still finds the
accepted answer likelier than the answers of other questions, it still knows it (see `backslide.scoring.probe`).

Only items count that were answered right before and are answered wrong now, and whose accepted answer was preferred
before. The share of these in which it is preferred still has an exact interval (Clopper and Pearson, Biometrika 26,
1934, 404).

A model that has forgotten everything prefers the right one of four answers by chance in a quarter of the items, and
one that remembers what sort of thing is asked for in more. So the share is a sign, and `format` asks that it be above
one half beyond doubt.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from scipy.stats import beta

from backslide.record import Outcome, Record

CONFIDENCE = 0.95
"""Of the interval, two-sided."""
PART = 0.2
"""Share from which both are part of a loss, beyond doubt."""


@dataclass(frozen=True)
class Knowledge:
    """What became of the answers that are no longer given."""

    lost: int
    """Items answered right before and wrong now, of those with log-likelihoods in both records."""
    counted: int
    """Of these, the ones whose accepted answer was preferred before."""
    known: int
    """Of these, the ones in which it is preferred still."""
    low: float
    """Lower bound of known / counted."""
    high: float
    """Upper bound."""
    chance: float
    """The share to expect of a model that picks an answer blindly."""

    @property
    def kind(self) -> str:
        """`format`, `knowledge`, `both` or `unclear`.

        `format`: the share that is still known is above one half, beyond doubt. `knowledge`: below it. `both`: neither,
        and each has a part of `PART` at least. `unclear`: too few items to tell.
        """
        if self.counted and self.low > 0.5:
            return "format"
        if self.counted and self.high < 0.5:
            return "knowledge"
        return "both" if self.low > PART and self.high < 1 - PART else "unclear"

    def to_dict(self) -> dict[str, Any]:
        """The evidence as JSON can hold it."""
        return {**dataclasses.asdict(self), "kind": self.kind}


def compare(baseline: Record, *candidates: Record) -> Knowledge | None:
    """What the log-likelihoods say of the items of `candidates`, records of the same weights on different items.

    None where no lost item has log-likelihoods in both.
    """
    after = {outcome.id: outcome for candidate in candidates for outcome in candidate.outcomes}
    pairs = [(baseline.by_id[id], new) for id, new in after.items() if id in baseline.by_id]
    asked = [(old, new) for old, new in pairs if _asked(old) and _asked(new) and len(old.scores) == len(new.scores)]
    lost = [(old, new) for old, new in asked if old.correct and not new.correct]
    if not lost:
        return None
    counted = [(old, new) for old, new in lost if _prefers(old)]
    known = sum(_prefers(new) for _, new in counted)
    low, high = exact_interval(known, len(counted))
    choices = [1 / len(new.scores) for _, new in counted or lost]
    return Knowledge(len(lost), len(counted), known, low, high, math.fsum(choices) / len(choices))


def exact_interval(hits: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper–Pearson: all shares that neither one-sided exact test rejects at half the level; 0 to 1 of no trials."""
    if not 0 <= hits <= trials:
        raise ValueError(f"{hits} hits of {trials} trials: from 0 to all of them are needed")
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.isf(tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def _asked(outcome: Outcome) -> bool:
    """Whether an answer was scored beside others, and all of it is finite."""
    return outcome.kind == "answer" and len(outcome.scores) > 1 and outcome.finite


def _prefers(outcome: Outcome) -> bool:
    """Whether the accepted answer, the first, is likelier than every other one."""
    first, *others = (score for score in outcome.scores if score is not None)
    return first > max(others)
