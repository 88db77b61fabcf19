"""What a cure did: the looks and losses before and after it, as an event. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backslide.verdict import Verdict, main_row


@dataclass
class Cured:
    """The cures that wait for the next look, which measures their effect."""

    cures: tuple[str, ...] = ()
    step: int = 0
    drop: float | None = None
    loss: float | None = None

    def by(self, cures: Sequence[str], step: int, verdict: Verdict, losses: Sequence[Mapping[str, Any]]) -> None:
        """Cures were brought in after the look at `step`."""
        self.cures, self.step, self.drop, self.loss = tuple(cures), step, _drop(verdict), _loss(losses)

    def effect(self, step: int, verdict: Verdict, losses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The event of the first look after them; none where nothing waits."""
        if not self.cures:
            return []
        drop, loss, cures = _drop(verdict), _loss(losses), list(self.cures)
        says = (
            f"{', '.join(cures)} after step {self.step}: the drop went from {_percent(self.drop)} to {_percent(drop)}, "
            f"the loss on the new task from {_number(self.loss)} to {_number(loss)}"
        )
        event = {
            "event": "effect", "step": step, "of": self.step, "cures": cures, "drop_before": self.drop,
            "drop_after": drop, "loss_before": self.loss, "loss_after": loss, "says": says,
        }  # fmt: skip
        self.cures = ()
        return [event]


def _drop(verdict: Verdict) -> float | None:
    row = main_row(verdict)
    return None if row is None else row.drop


def _loss(losses: Sequence[Mapping[str, Any]]) -> float | None:
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
