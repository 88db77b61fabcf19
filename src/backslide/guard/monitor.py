"""The guard's state machine: losses and verdicts in, events out. No framework, no torch, no clock.

State is frozen; each function gives the next state and the events to write down. An event is a dictionary with
`event` and `step`, a line of `events.jsonl`.

α of the looks is shared out by their place in the plan: at look i of K, i/K of it may have been spent in all. A look
that was passed over leaves its share to the next, and the last one may take what is left; the errors of all looks add
up to α at most, whatever the looks depend on (Bonferroni). Of a run whose length is not known, look k has 1/(k(k+1)).
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backslide.guard.policy import Action, Policy, decide
from backslide.stats.sequential import open_ended
from backslide.verdict import Level, Verdict, Zone, broken

Event = dict[str, Any]

GATE_SHARE = 0.5
"""Share of α that is kept for the one look at the gate half; the looks at the monitor half share the rest."""

TESTS = ("exact", "joint")
"""How α is kept over the looks; see `backslide.Guard`."""

LOSSES = ("loss", "eval_loss", "grad_norm", "reward")
"""What is taken from a trainer's log."""

_NOTHING = 1e-12
"""Share of α below which nothing is left to test at; sums of shares have rounding."""


@dataclass(frozen=True)
class State:
    """What the guard knows of a run."""

    looks: tuple[int, ...]
    """Planned steps, all of them, before the first; empty where the length of the run is not known."""
    alpha: float
    """Probability of a false `regressed` over the whole run."""
    planned: int = 0
    """Looks that α is shared by; 0: those of `looks`. One more where the best checkpoint is loaded at the end, and of a
    resumed run as many as were planned when it began."""
    open: bool = False
    """Whether the length of the run is not known."""
    spent: float = 0.0
    """What looks have spent of `looks_alpha`."""
    waiting: tuple[tuple[int, str, float], ...] = ()
    """Step, model fingerprint and α of looks that were tested before the run was resumed, on weights that it does not
    stand on. The same weights come by again as a rule, and then it is the same look; other weights make it another one,
    and its α is gone."""
    done: tuple[int, ...] = ()
    """Steps looked at."""
    zones: tuple[Zone, ...] = ()
    """What each look said."""
    regressed_at: int | None = None
    """Step of the first look that proved a regression."""
    broke: str | None = None
    """Why the run cannot pass any more, such as a loss that is not finite."""

    @property
    def shares(self) -> int:
        """Number of looks that α is shared by."""
        return self.planned or len(self.looks)

    @property
    def looks_alpha(self) -> float:
        """What all looks at the monitor half share."""
        return self.alpha * (1 - GATE_SHARE)

    def place(self, step: int, *, last: bool = False) -> int:
        """Which of the planned looks one at `step` is, from 1. The last one of a run stands for all that are left."""
        return self.shares if last else min(max(bisect.bisect_right(self.looks, step), 1), self.shares)

    def share(self, step: int, *, last: bool = False) -> float:
        """α of a look at `step`; 0 where nothing is left for it."""
        if self.open:
            return open_ended(self.looks_alpha).init().level(len(self.done) + len(self.waiting) + 1)
        upto = self.looks_alpha * self.place(step, last=last) / self.shares
        left = upto - self.spent - sum(alpha for at, _, alpha in self.waiting if last or at <= step)
        return left if left > _NOTHING * self.alpha else 0.0

    def level(self, step: int, *, last: bool = False) -> Level | None:
        """Error probabilities of a look at the monitor half at `step`; None where no α is left for it."""
        share = self.share(step, last=last)
        return Level(fail=share, passing=self.alpha) if share else None

    @property
    def gate_level(self) -> Level:
        """Error probabilities of the look at the gate half."""
        return Level(fail=self.alpha * GATE_SHARE, passing=self.alpha)

    def due(self, step: int) -> bool:
        """Whether to look after `step`; a look that a resumed run has done already is not due again."""
        place = bisect.bisect_left(self.looks, step)
        return place < len(self.looks) and self.looks[place] == step and (not self.done or step > self.done[-1])


def on_log(state: State, step: int, log: Mapping[str, Any]) -> tuple[State, list[Event]]:
    """Take the losses out of a trainer's log, NumPy's numbers too."""
    values = {k: log[k] for k in LOSSES if isinstance(log.get(k), numbers.Real)}
    if not values:
        return state, []
    finite = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
    events: list[Event] = [{"event": "loss", "step": step, **finite}]
    bad = [k for k in ("loss", "eval_loss") if k in finite and finite[k] is None]
    if bad and state.broke is None:
        reason = f"the {'training' if bad[0] == 'loss' else 'held-out'} loss is {values[bad[0]]} at step {step}"
        state = dataclasses.replace(state, broke=reason)
        events.append({"event": "broke", "step": step, "reason": reason})
    return state, events


def again(state: State, step: int, model: str) -> State:
    """A look that waited comes by again with the same weights: its α is its own again."""
    return dataclasses.replace(state, waiting=tuple(w for w in state.waiting if w[:2] != (step, model)))


def kept(state: State, step: int, zone: Zone, share: float) -> State:
    """A look of before the run was resumed, whose weights it stands on."""
    first = zone is Zone.REGRESSED and state.regressed_at is None
    return dataclasses.replace(
        state,
        spent=state.spent + share,
        done=(*state.done, step),
        zones=(*state.zones, zone),
        regressed_at=step if first else state.regressed_at,
    )


def on_look(
    state: State, step: int, verdict: Verdict, policy: Policy, *, last: bool = False
) -> tuple[State, list[Event], Action | None]:
    """Take the verdict of a look at the monitor half, and decide."""
    end = not state.open and bool(state.looks) and step >= state.looks[-1]
    share = state.share(step, last=last)
    look: Event = {"event": "look", "step": step, "zone": verdict.zone, "alpha": share, "verdict": verdict.to_dict()}
    return kept(state, step, verdict.zone, share), [look], decide(policy, verdict, end=end)


def conclude(state: State, last: Verdict | None, gate: Verdict | None) -> Verdict:
    """The verdict on the final model.

    The gate half decides, for it steered nothing. A regression that the monitor half proved on the same final
    weights stands beside it: both are inside the run's α. A run that broke, and one whose gate half was not
    measured, cannot pass.
    """
    step = last.step if last is not None else None
    if state.broke is not None:
        return broken(state.broke, step=step)
    if gate is None:
        if last is not None and last.zone is Zone.REGRESSED:
            return last
        return broken("the gate half was not measured", zone=Zone.UNDECIDED, step=step)
    if gate.zone is not Zone.REGRESSED and last is not None and last.zone is Zone.REGRESSED:
        reasons = tuple(f"monitor half: {reason}" for reason in last.reasons)
        claim = f"Gate half: {gate.claim} Monitor half, which decided: {last.claim} Together at most {state.alpha:.3g}."
        more = tuple(f"gate half: {reason}" for reason in gate.reasons)
        return dataclasses.replace(gate, zone=Zone.REGRESSED, reasons=(*reasons, *more), claim=claim, beside=last)
    return gate
