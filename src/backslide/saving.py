"""The trained model into the run's folder: whole, and before it is judged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from backslide.errors import RunError
from backslide.models import Loaded, name_base, quiet


def save(model: Any, loaded: Loaded, target: Path) -> None:
    """Save the model, or its adapter: as a whole, or what was there stays."""
    beside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    with quiet():
        model.save_pretrained(beside)
        loaded.tokenizer.save_pretrained(beside)
    if (beside / "adapter_config.json").exists():
        name_base(beside, loaded.name)
    if target.exists():
        shutil.rmtree(target)
    beside.rename(target)


class SaveModel(TrainerCallback):  # type: ignore[misc]
    """Saves the trained model before it is judged, so that a verdict is never there without its model.

    Args:
        trainer: whose model it is.
        loaded: what was loaded before training: its name and its tokenizer.
        target: the folder.
    """

    def __init__(self, trainer: Any, loaded: Loaded, target: Path) -> None:
        self._trainer, self._loaded, self._target = trainer, loaded, target

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Come before all others at the end."""
        # Before the guard, which has put itself first.
        callbacks = self._trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save it. Raises `RunError` where that cannot be done."""
        if not state.is_world_process_zero:
            return
        try:
            save(self._trainer.model, self._loaded, self._target)
        except Exception as bad:
            # Whatever torch, safetensors and the system make of a full disk.
            why = " ".join(str(getattr(bad, "strerror", None) or bad).split())[:300]
            raise RunError(
                f"{self._target}: the trained model cannot be saved: {why}; make room, and give the same command: it "
                "goes on from the last checkpoint"
            ) from bad
