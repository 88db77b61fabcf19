"""What a run that is resumed did before: which of it the weights still stand on, and what has had its α. No torch.

A run may be resumed from any of its checkpoints, several times. Its events are a log of all its lives; `past` follows
the line of those that led to the present weights, and keeps account of every look that was ever tested, also of those
on weights that are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Past:
    """A run's history, as it matters after being resumed at a step."""

    line: tuple[Mapping[str, Any], ...] = ()
    """The events that led to the present weights, in order."""
    tested: tuple[tuple[int, str, float], ...] = ()
    """Step, model fingerprint and α of each look since the plan was made, each once."""
    ended: bool = False
    """Whether the run came to its end under this plan, and its gate half was judged."""
    stretches: int = 1
    """Plans that the run has had, each with an α of its own."""
    spent: float = 0.0
    """Seconds that looks in the line took."""

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """The events of a kind in the line."""
        return [event for event in self.line if event.get("event") == kind]

    @property
    def gone(self) -> tuple[tuple[int, str, float], ...]:
        """Looks that were tested on weights that are no part of the line."""
        kept = {(event.get("step"), event.get("model")) for event in self.of("look")}
        return tuple(look for look in self.tested if look[:2] not in kept)

    @property
    def broke(self) -> str | None:
        """Why the run cannot pass, unless it went back to sound weights since."""
        reason: str | None = None
        for event in self.line:
            if event.get("event") == "broke":
                reason = str(event.get("reason"))
            elif event.get("event") == "action" and event.get("mends"):
                reason = None
        return reason

    @property
    def back(self) -> tuple[int, int] | None:
        """Of the last rollback after which no look was taken: its step, and the step it went back to."""
        for event in reversed(self.line):
            if event.get("event") == "action" and event.get("back_to") is not None:
                return int(event["step"]), int(event["back_to"])
            if event.get("event") == "look":
                return None
        return None


def past(events: Sequence[Mapping[str, Any]], step: int) -> Past:
    """Follow a run's events to `step`, from which it is resumed now."""
    line: list[Mapping[str, Any]] = []
    tested: dict[tuple[int, str], float] = {}
    ended, stretches = False, 1
    for event in events:
        kind, at = event.get("event"), event.get("step")
        if not isinstance(at, int):
            continue
        if kind == "resumed":
            line = [before for before in line if before["step"] <= at]
            if event.get("anew"):
                tested, ended, stretches = {}, False, stretches + 1
            continue
        line.append(event)
        if kind == "look":
            alpha = event.get("alpha")
            # The same weights at the same step are the same look, in however many lives they came by.
            tested.setdefault((at, str(event.get("model"))), float(alpha) if isinstance(alpha, (int, float)) else 0.0)
        ended |= kind == "end"
    kept = [event for event in line if event["step"] <= step and event.get("event") not in ("opened", "gate", "end")]
    seconds = [event.get("seconds") for event in kept if event.get("event") == "look"]
    return Past(
        tuple(kept),
        tuple((at, model, alpha) for (at, model), alpha in tested.items()),
        ended,
        stretches,
        sum(float(s) for s in seconds if isinstance(s, (int, float))),
    )
