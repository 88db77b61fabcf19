"""Which point of a line is taken: the lowest target loss among the points that keep the abilities. No torch.

The line is looked at on a grid of 32 steps. Two shapes are assumed, both of which a line between a base and its
fine-tune mostly has: abilities are kept up to some point and not beyond it, and the target's loss falls to one lowest
point and rises behind it (where the tuned model fits its few examples too well). Then the best point is the lower of
the two, and few points need be measured. Where the shapes do not hold, what is taken still kept the abilities and has
the lowest loss of all points that were seen to keep them; it may not be the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from backslide.errors import ConfigError
from backslide.stats.paired import hard_interval
from backslide.verdict import CapabilityVerdict, Level, Tolerance, Verdict, Zone, main_row

GRID = 32
"""Steps of the line."""
COARSE = 8
"""Steps of the grid between the first points whose loss is measured."""
FLIPS = 0.1
"""Share of the items that change where a fine-tune did little; what `backslide power` assumes as well."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    chosen: int | None
    """Step of the grid, from 1; None: no point may be taken."""
    reason: str
    """Why, in a sentence."""


def search(look: Callable[[int], bool], loss: Callable[[int], float] | None) -> Found:
    """Search the line.

    Args:
        look: measures the abilities at a step of the grid, from 1 to `GRID`, and says whether they are kept; asked
            once a step.
        loss: measures the target's loss at a step, from 0; infinite where it is not a number. None: it is not known,
            and the largest step that keeps the abilities is taken.
    """
    losses: dict[int, float] = {}
    # The tuned model itself: what there is to repair.
    kept = {GRID: look(GRID)}
    top = GRID
    if loss is not None:
        top = lowest(loss, losses)
        if top == 0:
            return Found(None, "on held-out data no point of the line is better than the base")
    if top not in kept:
        kept[top] = look(top)
    low, high = (top, top) if kept[top] else (0, top)
    while high - low > 1:
        middle = (low + high) // 2
        kept[middle] = look(middle)
        low, high = (middle, high) if kept[middle] else (low, middle)
    good = [step for step, is_kept in kept.items() if is_kept and step <= top]
    if not good:
        return Found(None, "no point of the line keeps the abilities")
    if loss is None:
        return Found(max(good), "the farthest from the base that keeps the abilities")
    known = {step: losses[step] if step in losses else loss(step) for step in good}
    losses |= known
    # Of equal losses the one nearer to the base.
    best = min(good, key=lambda step: (known[step], step))
    if known[best] >= losses[0]:
        return Found(None, "no point that keeps the abilities is better on held-out data than the base")
    return Found(best, "the lowest held-out loss of those that keep the abilities")


def lowest(loss: Callable[[int], float], losses: dict[int, float]) -> int:
    """The step with the lowest loss, found from coarse to fine; what is measured is put into `losses`."""

    def measured(step: int) -> float:
        if step not in losses:
            losses[step] = loss(step)
        return losses[step]

    best, width = min(range(0, GRID + 1, COARSE), key=measured), COARSE
    while width > 1:
        width //= 2
        near = [step for step in (best - width, best, best + width) if 0 <= step <= GRID]
        best = min(near, key=measured)
    return best


@dataclass(frozen=True)
class Keeping:
    """What it is to keep the abilities on the monitor half: no loss proven, and little enough lost altogether.

    No capability may be proven regressed. And of all items together (of the only capability; where the units differ,
    of each) the upper bound of the drop must be within the tolerance. Where there are too few items for that, so that
    `FLIPS` of them changing, as many for the better as for the worse, would put the bound beyond the tolerance, it is
    the mean drop that must be within it, as for a state that a guard rolls back to. Which of the two is decided once,
    by the number of items: a point with fewer changes is never held to more than one with many.
    """

    bounds: Mapping[str, bool]
    """Of each row that counts, whether its bound is asked for."""
    tolerance: Tolerance

    @classmethod
    def of(cls, unchanged: Verdict, tolerance: Tolerance, level: Level) -> Keeping:
        """Made from the verdict on the base against itself. Raises `ConfigError` where nothing can be judged."""
        rows = _counting(unchanged)
        if not rows:
            raise ConfigError(
                "the suite's monitor half has no item with a verdict; name a suite that has, with --suite"
            )
        return cls({row.capability: _provable(row, tolerance, level) for row in rows}, tolerance)

    @property
    def note(self) -> str | None:
        """What the user should know; None where the bound is asked for."""
        few = [name for name, provable in self.bounds.items() if not provable]
        if not few:
            return None
        return (
            f"{few[0]}: too few items in the monitor half to prove a drop within the tolerance where {FLIPS:.0%} of "
            "them change; the mean drop is held to it instead"
        )

    def kept(self, verdict: Verdict) -> bool:
        """Whether a look says so."""
        if verdict.zone is Zone.REGRESSED:
            return False
        for row in _counting(verdict):
            value = row.upper if self.bounds.get(row.capability, False) else row.drop
            if value is None or value > self.tolerance.of(row.unit):
                return False
        return True


def _provable(row: CapabilityVerdict, tolerance: Tolerance, level: Level) -> bool:
    if row.upper is None or row.upper > tolerance.of(row.unit):
        return False
    if row.unit != "accuracy":
        return True
    independent = row.clusters or row.items
    each = math.ceil(FLIPS * independent / 2)
    bound = hard_interval(independent, each, each, alpha_lower=level.passing, alpha_upper=level.passing)
    return bound.upper <= tolerance.accuracy


def _counting(verdict: Verdict) -> tuple[CapabilityVerdict, ...]:
    row = main_row(verdict)
    return (row,) if row is not None else verdict.capabilities
