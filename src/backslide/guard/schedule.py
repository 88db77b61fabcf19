"""When to look, and how much: planned before training, within a share of its time. Pure; no clock, no torch.

*When.* The number of looks is fixed before the first step, because the statistics share α over it. Half of the looks
are spread evenly over the run, half by the logarithm of the step, since most damage comes early: look i of K is at the
step s with

    F(s) = ½ · log(1 + s/20) / log(1 + S/20) + ½ · s/S = i/K,

S being the last step. The last step always has a look.

*How much.* A look of a budgeted run takes as many packs of the monitor half as its allowance pays: what is left of the
budget over the looks that are left. Step times and scoring times are measured, outcomes play no part in it, so the
tests stay valid. A look whose allowance pays for too few items is passed over, and its share of α and of time goes to
the next ones; but `FEWEST_LOOKS` of them are taken whatever they cost. The baseline and the judgement at the end take
the suite as it is and are no part of the budget: that much a model costs that is measured once before and once after.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from backslide.errors import ConfigError

BUDGET = 0.05
"""Share of the training's time that looking may take, where the user says nothing."""

EARLY = 20
"""Steps below which looks are spread evenly, beyond which by the logarithm."""

FEWEST_LOOKS = 3
"""Looks that are taken whatever they cost: a run that was not looked at was not watched."""

FEWEST_ITEMS = 60
"""Items with a verdict that each of these takes at least."""

WORTHWHILE = 240
"""Items with a verdict (or half of all, where that is less) below which any other look is passed over: few large looks
see more than many small ones."""


def count_looks(max_steps: int) -> int:
    """Looks of a run where the user names neither their number nor their distance: 4 to 16, by the logarithm."""
    return min(16, max(4, round(1.5 * math.log2(max(max_steps, 4) / 4))))


def plan_looks(max_steps: int, *, every: int | None = None, looks: int | None = None) -> tuple[int, ...]:
    """The steps after which to look, the last step always among them.

    With `every`, each multiple of it. Otherwise `looks` of them (by default `count_looks`), denser at the beginning.

    Raises `ConfigError` for numbers below 1, or when both are given.
    """
    if max_steps < 1:
        raise ConfigError(f"the run has {max_steps} steps, at least 1 is needed; set max_steps or more data")
    if every is not None and looks is not None:
        raise ConfigError(f"every = {every} and looks = {looks} are both given; one of them decides")
    for name, value in (("every", every), ("looks", looks)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"{name} is {value!r}, a whole number from 1 is needed")
    if every is not None:
        return tuple(sorted({*range(every, max_steps + 1, every), max_steps}))
    count = count_looks(max_steps) if looks is None else looks
    return tuple(sorted({_at(i / count, max_steps) for i in range(1, count + 1)}))


def check_budget(budget: float | None) -> float | None:
    """The budget itself, or `ConfigError` where it is no share."""
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        raise ConfigError(f"budget is {budget!r}, a share of the training's time above 0 and up to 1 is needed (0.05)")
    return float(budget)


@dataclass(frozen=True)
class Pace:
    """What is known of a run's times. Seconds."""

    budget: float
    """Share of the training's time that looks may take together."""
    steps: int
    """Of the whole run."""
    step: float
    """One training step."""
    spent: float
    """On looks so far."""

    @property
    def total(self) -> float:
        """What looks may take in all."""
        return self.budget * self.steps * self.step

    def allowance(self, looks_left: int) -> float:
        """Seconds for the look that is due, which is one of `looks_left`."""
        return (self.total - self.spent) / max(looks_left, 1)


def choose(costs: Sequence[float], items: Sequence[int], allowance: float, *, needed: bool) -> int:
    """How many of the packs, in their order, a look takes; 0 passes it over.

    Args:
        costs: seconds of each pack.
        items: items with a verdict in each pack.
        allowance: seconds.
        needed: whether the look is taken whatever it costs.
    """
    wanted = FEWEST_ITEMS if needed else max(FEWEST_ITEMS, min(WORTHWHILE, sum(items) / 2))
    least = count = 0
    seen, spent = 0, 0.0
    for number, (cost, more) in enumerate(zip(costs, items, strict=True), start=1):
        spent += cost
        seen += more
        if not least and (seen >= wanted or number == len(costs)):
            least = number
        if spent <= allowance:
            count = number
    if count >= least:
        return count
    return least if needed else 0


def must_look(number: int, looks: int) -> bool:
    """Whether look `number` of `looks`, from 1, is one of the few that are taken whatever they cost."""
    # The first, the last, and what lies evenly between.
    return number in {1 + round((looks - 1) * i / (FEWEST_LOOKS - 1)) for i in range(FEWEST_LOOKS)}


def next_look(last: int) -> int:
    """Of a run whose length is not known: the step of the look after the one at `last`, ever further apart."""
    return max(last + 10, math.ceil(1.4 * last))


def in_order(packs: Sequence[Sequence[str]], costs: Sequence[float]) -> list[int]:
    """Packs in the order in which looks of growing size take them, so that all capabilities grow alike.

    Always the pack that adds most for its cost to the sum over capabilities of the root of the share taken: the first
    items of a capability count most. The order is the same at every look, so a smaller look is a part of a larger one.

    Args:
        packs: the capability of each item of each pack.
        costs: of each pack, above 0.
    """
    counts = [Counter(pack) for pack in packs]
    whole = sum(counts, Counter())
    taken: Counter[str] = Counter()
    left = list(range(len(packs)))
    order: list[int] = []

    def gain(place: int) -> float:
        added = 0.0
        for name, more in counts[place].items():
            before, after = taken[name] / whole[name], (taken[name] + more) / whole[name]
            added += math.sqrt(after) - math.sqrt(before)
        return added / max(costs[place], 1e-9)

    while left:
        best = max(left, key=lambda place: (gain(place), -place))
        left.remove(best)
        order.append(best)
        taken += counts[best]
    return order


def _at(share: float, last: int) -> int:
    """The step at which F is `share`, by bisection; F rises, so it is the only one."""
    low, high = 0.0, float(last)
    for _ in range(60):
        middle = (low + high) / 2
        early = math.log1p(middle / EARLY) / math.log1p(last / EARLY)
        low, high = (middle, high) if early / 2 + middle / last / 2 < share else (low, middle)
    return min(last, max(1, round(high)))
