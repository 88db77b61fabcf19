"""The guard's state machine: losses and verdicts in, events out. No framework, no torch, no clock.

State is frozen; each function gives the next state and the events to write down. An event is a dictionary with
`event` and `step`, a line of `events.jsonl`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backslide.guard.policy import Action, Policy, decide
from backslide.stats.sequential import spending
from backslide.verdict import Level, Verdict, Zone, broken

Event = dict[str, Any]

GATE_SHARE = 0.5
"""Share of α that is kept for the one look at the gate half; the looks at the monitor half share the rest."""

TESTS = ("exact", "joint")
"""How α is kept over the looks; see `backslide.Guard`."""

LOSSES = ("loss", "eval_loss", "grad_norm", "reward")
"""What is taken from a trainer's log."""


@dataclass(frozen=True)
class State:
    """What the guard knows of a run."""

    looks: tuple[int, ...]
    """Planned steps, all of them, before the first."""
    alpha: float
    """Probability of a false `regressed` over the whole run."""
    planned: int = 0
    """Looks that α is shared by; 0: those of `looks`. One more where the best checkpoint is loaded at the end, and of a
    resumed run as many as were planned when it began."""
    lost: int = 0
    """Looks that were taken after the checkpoint that the run was resumed from, and will be taken again: they had
    their share of α."""
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
    def spent(self) -> bool:
        """Whether all planned looks were taken, so that a further one has no α left."""
        return len(self.done) + self.lost >= self.shares

    @property
    def looks_alpha(self) -> float:
        """What all looks at the monitor half share."""
        return self.alpha * (1 - GATE_SHARE)

    @property
    def level(self) -> Level:
        """Error probabilities of one look at the monitor half: equal shares over the planned looks."""
        share = spending(self.looks_alpha, self.shares).init().level(1)
        return Level(fail=share, passing=self.alpha)

    @property
    def gate_level(self) -> Level:
        """Error probabilities of the look at the gate half."""
        return Level(fail=self.alpha * GATE_SHARE, passing=self.alpha)

    def due(self, step: int) -> bool:
        """Whether to look after `step`; a look that a resumed run has done already is not due again."""
        return step in self.looks and step not in self.done


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


def on_look(state: State, step: int, verdict: Verdict, policy: Policy) -> tuple[State, list[Event], Action | None]:
    """Take the verdict of a look at the monitor half, and decide."""
    events: list[Event] = [{"event": "look", "step": step, "zone": verdict.zone, "verdict": verdict.to_dict()}]
    first = verdict.zone is Zone.REGRESSED and state.regressed_at is None
    state = dataclasses.replace(
        state,
        done=(*state.done, step),
        zones=(*state.zones, verdict.zone),
        regressed_at=step if first else state.regressed_at,
    )
    action = decide(policy, verdict)
    if action is not None:
        events.append({"event": "action", "step": step, "action": action.kind, "reason": action.reason})
    return state, events, action


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
