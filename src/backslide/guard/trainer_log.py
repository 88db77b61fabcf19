"""What a look found, into the trainer's own log, where TensorBoard, W&B, MLflow and trackio find it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer

from backslide.verdict import Verdict, Zone, main_row

PREFIX = "backslide/"
"""Of all that the guard logs."""

GUARDED = "backslide_guarded_loss"
"""The target's held-out loss, infinite where the last look proved a regression: for `metric_for_best_model`."""

_NAMES = {"accuracy": "accuracy", "bits per byte": "bits_per_byte", "drift": "nats_per_token"}
"""What a look's mean is logged as: of drift the base's own replies, and how much that changed is the `drop`."""


def numbers_of(verdict: Verdict) -> dict[str, float]:
    """A look as plain numbers, which is what trackers take."""
    found: dict[str, float | int | None] = {
        "regressed": float(verdict.zone is Zone.REGRESSED),
        "retained": float(verdict.zone is Zone.RETAINED),
    }
    row = main_row(verdict)
    if row is not None:
        mean = _NAMES[row.unit]
        found |= {mean: row.candidate, "drop": row.drop, "lost": row.lost, "won": row.won, "items": row.items}
        if row.soft is not None:
            found["drop_probability"] = row.soft.drop
        found["kl"] = row.kl
    for capability in verdict.capabilities:
        found[f"{capability.capability}/{_NAMES[capability.unit]}"] = capability.candidate
        found[f"{capability.capability}/drop"] = capability.drop
        found[f"{capability.capability}/kl"] = capability.kl
    return {PREFIX + name: float(v) for name, v in found.items() if v is not None and math.isfinite(v)}


def add_guarded_loss(metrics: dict[str, Any], *, regressed: bool) -> dict[str, float]:
    """Put the guarded loss beside each held-out loss of an evaluation; gives what was added."""
    added = {}
    for name in [name for name in metrics if name.startswith("eval_") and name.endswith("loss")]:
        loss = metrics[name]
        if name.endswith(GUARDED) or not isinstance(loss, (int, float)):
            continue
        # NaN compares as neither better nor worse; as infinity it is never the best.
        added[name[: -len("loss")] + GUARDED] = math.inf if regressed or math.isnan(loss) else float(loss)
    metrics |= added
    return added


def is_guarded(metric: str | None) -> bool:
    """Whether a `metric_for_best_model` is the guarded loss."""
    return metric is not None and metric.endswith(GUARDED)


def find_trainer(callback: Any) -> Any:
    """The trainer that is calling `callback` at this moment, from the frames of the call; None where there is none.

    A callback is not told its trainer, and only the trainer's `log` reaches all trackers.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer) and callback in owner.callback_handler.callbacks:
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def log(trainer: Any, state: Any, values: Mapping[str, float]) -> None:
    """Log `values` for the present step.

    By `transformers.Trainer.log` itself: TRL's trainers override it to hand out, and forget, the averages that they
    collect for their own next line. The console is left out: the guard says its own line there.
    """
    if trainer is None:
        state.log_history.append({**values, "epoch": state.epoch, "step": state.global_step})
        return
    handler, control = trainer.callback_handler, trainer.control
    told, should_log = handler.callbacks, control.should_log
    handler.callbacks = [c for c in told if not isinstance(c, (PrinterCallback, ProgressCallback))]
    try:
        Trainer.log(trainer, dict(values))
    finally:
        handler.callbacks = told
        # Logging would take the training's own line of this step for done.
        control.should_log = should_log


def forget_loss(trainer: Any) -> None:
    """Let the trainer's running loss start anew after weights were given back: NaN minus NaN would stay NaN."""
    running = getattr(trainer, "_tr_loss", None)
    if running is not None and not bool(running.isfinite()):
        running.zero_()
