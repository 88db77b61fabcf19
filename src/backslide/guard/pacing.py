"""How much a look may take: step times and scoring times of this run, measured, against its budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from backslide.guard import schedule
from backslide.record import Record
from backslide.scoring.engine import Scorer
from backslide.scoring.ranks import Ranks


class Pacer:
    """The clock of a guarded run.

    Args:
        scorer: has the packs, and what each took if the baseline was measured here.
        model: the model, as the scorer is to be asked for packs.
        baseline: its cost stands in where no pack was timed here.
        budget: share of the training's time; None: each look takes the whole half.
        whole: whether a look takes the whole half or nothing.
        ranks: the processes that share a look out.
    """

    def __init__(
        self,
        scorer: Scorer,
        model: Any,
        baseline: Record,
        *,
        budget: float | None,
        whole: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.budget, self._whole = budget, whole
        self._ranks = ranks or Ranks()
        capability = {item.id: item.capability for item in scorer.suite.items}
        packs = scorer.packs(model, "monitor")
        timed = [scorer.seconds.get(pack.items) for pack in packs]
        cost = baseline.header.cost
        # A baseline from elsewhere: seconds a token, replies' tokens counted as they are dealt out.
        tokens = sum(pack.tokens for part in ("monitor", "gate") for pack in scorer.packs(model, part))
        rate = cost.get("seconds", 0.0) / max(tokens, 1)
        shared = self._ranks.size if self._ranks.split else 1
        # What all processes took for all of it is shared already; a pack that was timed was timed by one.
        seconds = [pack.tokens * rate if t is None else t / shared for pack, t in zip(packs, timed, strict=True)]
        # By tokens, not by seconds: the order must be the same when the run is resumed.
        kinds = [[capability[id] for id in sorted(pack.items)] for pack in packs]
        order = schedule.in_order(kinds, [pack.tokens for pack in packs])
        self._packs = [packs[place].items for place in order]
        self._costs = [seconds[place] for place in order]
        self._scorer, self._shared = scorer, shared
        # A look takes so long beside its packs, and its packs so many times what they took at the baseline.
        self._fixed, self._scale = 0.0, 1.0
        self._began: float | None = None
        self._steps = 0
        self._first = self._rest = 0.0
        self.spent = 0.0
        """Seconds that looks took so far."""

    @property
    def step(self) -> float | None:
        """Seconds of a training step, the first one left out where there are more; None before the first."""
        if self._steps == 0:
            return None
        return self._first if self._steps == 1 else self._rest / (self._steps - 1)

    def step_begins(self) -> None:
        """A training step begins."""
        self._began = time.perf_counter()

    def step_ends(self) -> None:
        """It has ended."""
        if self._began is None:
            return
        took = time.perf_counter() - self._began
        self._began = None
        self._steps += 1
        if self._steps == 1:
            self._first = took
        else:
            self._rest += took

    def take(self, number: int, looks: int, steps: int | None, *, always: bool = False) -> frozenset[str] | None:
        """The items of look `number` of `looks` planned ones; None: all of the half; empty: it is passed over,
        unless it is `always` to be made.

        All processes must call it; all get what the first one decides.
        """
        if self.budget is None or self.step is None:
            return None
        costs = [cost * self._scale for cost in self._costs]
        pace = schedule.Pace(
            budget=self.budget,
            # Where the length is not known, what was trained so far has to pay for what was looked at so far.
            steps=steps if steps is not None else self._steps,
            step=self.step,
            spent=self.spent,
        )
        needed = always or (schedule.must_look(number, looks) if steps is not None else number == 1)
        allowance = pace.allowance(looks - number + 1 if steps is not None else 1) - self._fixed
        count = schedule.choose(costs, [len(pack) for pack in self._packs], allowance, needed=needed)
        if self._whole:
            count = len(costs) if count == len(costs) or needed else 0
        count = self._ranks.agreed(count)
        if count == len(costs):
            return None
        return frozenset(id for pack in self._packs[:count] for id in pack)

    def looked(self, items: Sequence[str], seconds: float) -> None:
        """A look at `items` took so long: what the next one will take is reckoned from that."""
        self.spent += seconds
        taken = set(items)
        of = [(pack, cost) for pack, cost in zip(self._packs, self._costs, strict=True) if pack <= taken]
        expected = sum(cost for _, cost in of)
        spent = sum(self._scorer.seconds.get(pack, 0.0) for pack, _ in of) / self._shared
        if expected > 0 and spent > 0:
            self._scale = spent / expected
            self._fixed = max(0.0, seconds - spent)
