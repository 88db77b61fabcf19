"""What a cure did: the look and the loss after it beside those before, as an event. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backslide.verdict import Verdict, main_row

Losses = Sequence[Mapping[str, Any]]
"""The loss events of a run, in order."""


@dataclass
class Cured:
    """The cures whose effect is still to be seen."""

    cures: tuple[str, ...] = ()
    step: int = 0
    drop: float | None = None
    loss: float | None = None
    seen: tuple[int, float | None] | None = None
    """Step and drop of the look after them, which waits for the loss of the same weights."""

    def by(self, cures: Sequence[str], step: int, verdict: Verdict, losses: Losses) -> None:
        """Cures were brought in after the look at `step`."""
        self.cures, self.step, self.seen = tuple(cures), step, None
        self.drop, self.loss = _drop(verdict), _loss(losses)

    def looked(self, step: int, verdict: Verdict) -> None:
        """The next look was made."""
        if self.cures and self.seen is None:
            self.seen = (step, _drop(verdict))

    def effect(self, losses: Losses, *, last: bool = False) -> list[dict[str, Any]]:
        """The event, once there are a look and a held-out loss of after the cures; each once.

        Args:
            losses: so far.
            last: no later loss will be of these weights, so it is the last one since the cures, or none.
        """
        if not self.cures or self.seen is None:
            return []
        at, drop = self.seen
        evaluated = [event["step"] for event in losses if event.get("eval_loss") is not None]
        if evaluated and evaluated[-1] < at and not last:
            return []
        loss, cures = _loss([event for event in losses if event["step"] > self.step]), list(self.cures)
        says = (
            f"{', '.join(cures)} after step {self.step}: the drop went from {_percent(self.drop)} to {_percent(drop)}, "
            f"the loss on the new task from {_number(self.loss)} to {_number(loss)}"
        )
        event = {
            "event": "effect", "step": at, "of": self.step, "cures": cures, "drop_before": self.drop,
            "drop_after": drop, "loss_before": self.loss, "loss_after": loss, "says": says,
        }  # fmt: skip
        self.cures, self.seen = (), None
        return [event]


def _drop(verdict: Verdict) -> float | None:
    row = main_row(verdict)
    return None if row is None else row.drop


def _loss(losses: Losses) -> float | None:
    """The last held-out loss; of a run that has none, the last training loss."""
    for name in ("eval_loss", "loss"):
        for event in reversed(losses):
            if event.get(name) is not None:
                return float(event[name])
    return None


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
