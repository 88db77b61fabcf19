"""Checkpoints of `backslide tune`: what a run that was killed goes on from. They change nothing in the training.

When one is written: by time, so that all of them together take `SHARE` of it; or, where the user says how many, at even
distances. A checkpoint that cannot be written is said, and ends no training.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from backslide import resume
from backslide.resume import keep_snapshot, prune, seal
from backslide.rundir import CHECKPOINTS, RunFolder
from backslide.scoring.ranks import Ranks

SHARE = 0.03
"""Of the training's time."""
KEPT = 2
"""Whole ones on the disk: the newest, and the one before in case it is damaged. While one is written, too."""
BYTES_A_SECOND = 500e6
SECONDS = 0.2
"""What the first one is taken to cost, beside its bytes; later ones cost what the one before did."""


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Writes the checkpoints of one run.

    Args:
        folder: of the run.
        number: how many over the run, at least 1; None: by time.
        say: told where one could not be written.
    """

    def __init__(self, folder: Path, number: int | None, say: Callable[[str], None]) -> None:
        self._run, self._folder = folder, folder / CHECKPOINTS
        self._number, self._say = number, say
        self._steps: frozenset[int] = frozenset()
        self._since = self._began = 0.0
        self._cost = self._bytes = 0.0
        self._writing: Path | None = None
        self._failing = False
        self._ranks = Ranks()
        self.spent = 0.0
        """Seconds that they took."""

    def attach(self, trainer: Any) -> None:
        """Write those of `trainer`. To be called last: what others write into a checkpoint must be there first."""
        self._trainer = trainer
        # On this very trainer, not on its class.
        trainer._save_checkpoint = self._save
        trainer.add_callback(self)

    @property
    def last(self) -> int | None:
        """Step of the newest that is whole; None while there is none."""
        whole = [p for p in resume.checkpoints(self._folder) if (p / resume.WHOLE).exists()]
        return resume.step_of(whole[-1]) if whole else None

    def remove(self, *, keep: bool) -> None:
        """The run has ended: they are of no more use, unless they are to be kept."""
        there = bool(resume.checkpoints(self._folder))
        if self._ranks.first and RunFolder(self._run).verdict() is not None and not (keep and there):
            shutil.rmtree(self._folder, ignore_errors=True)

    # Events of the training.

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Plan them."""
        self._ranks = Ranks.here()
        if self._ranks.first:
            for path in resume.checkpoints(self._folder):
                if resume.step_of(path) > state.global_step:
                    # One that was passed over; what comes now is another life of the run.
                    shutil.rmtree(path, ignore_errors=True)
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        # With the two moments of AdamW.
        self._bytes = 3.0 * trained
        self._cost = SECONDS + self._bytes / BYTES_A_SECOND
        self._steps = planned(self._number or 0, state.max_steps, max(1, state.logging_steps))
        self._since = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for one where it is due."""
        step = state.global_step
        # Only where the loss is logged, or its mean since the last line would be lost. Not at the end: transformers
        # makes one step more from a checkpoint of the last one.
        if step >= state.max_steps or control.should_training_stop or step % max(1, state.logging_steps):
            return control
        waited = time.monotonic() - self._since
        due = step in self._steps if self._number is not None else waited >= self._cost / SHARE
        control.should_save |= self._ranks.agreed(due)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All have written their part: say that it is whole."""
        place, self._writing = self._writing, None
        replays = getattr(self._trainer, "_backslide_replay", None) is not None
        written = place is not None and (not replays or any(place.glob("replay*.json")))
        # Not before the other processes have written theirs.
        if not all(self._ranks.gather(written)):
            if place is not None:
                self._lost(place, OSError("a part of it is missing"))
            return
        assert place is not None
        if self._ranks.first:
            try:
                keep_snapshot(self._run, place)
                self._bytes = float(seal(place))
                prune(self._folder, KEPT)
            except OSError as bad:
                self._lost(place, bad)
                return
        self._failing, self._since = False, time.monotonic()
        self._cost = self._since - self._began
        self.spent += self._cost

    # In place of the trainer's own.

    def _save(self, model: Any, trial: Any = None) -> None:
        trainer, self._writing = self._trainer, None
        if trainer.control.should_training_stop:
            return  # since it was asked for: the guard acted on the loss that was just logged
        self._began = time.monotonic()
        place = self._folder / f"checkpoint-{trainer.state.global_step}"
        try:
            if self._ranks.first:
                self._folder.mkdir(parents=True, exist_ok=True)
                # Of another life: what is in it would mix with what is written now.
                shutil.rmtree(place, ignore_errors=True)
                prune(self._folder, KEPT - 1)
                free = shutil.disk_usage(self._folder).free
                if free < 1.05 * self._bytes:
                    raise OSError(f"it takes {self._bytes / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free")
            # Not TRL's, which writes a card besides.
            Trainer._save_checkpoint(trainer, model, trial)
            if self._ranks.first:
                # A pickle of the arguments; nothing reads it.
                (place / "training_args.bin").unlink(missing_ok=True)
        except Exception as bad:
            # Whatever torch, safetensors and the system make of a full disk.
            self._lost(place, bad)
        else:
            self._writing = place

    def _lost(self, place: Path, bad: BaseException) -> None:
        shutil.rmtree(place, ignore_errors=True)
        self._since = time.monotonic()
        if self._failing:
            return
        self._failing = True
        why = " ".join(str(getattr(bad, "strerror", None) or bad).split())[:200]
        last = self.last
        then = f"goes on at step {last}" if last is not None else "begins anew"
        self._say(
            f"{place}: this checkpoint could not be written: {why}; the training goes on, and if it is interrupted "
            f"{then}; make room (not said again until one is written)"
        )


def planned(number: int, steps: int, every: int) -> frozenset[int]:
    """The steps after which `number` checkpoints are written, at even distances, each a multiple of `every`."""
    places = {-(-i * steps // ((number + 1) * every)) * every for i in range(1, number + 1)}
    return frozenset(step for step in places if 0 < step < steps)
