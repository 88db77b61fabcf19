"""What the contestants of `peers.py` share: the case that they are given, the plain run, and how far each has come."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RATE, RANK, ALPHA = 2e-3, 8, 16
"""Of every contestant that lets it be set: a rate at which LoRA clearly forgets here."""
STEPS, BATCH, LENGTH = 30, 4, 128
"""As `benchmarks/guard.py` has them; rows of training are their product."""
BUILTIN = "smollm2-135m-instruct"
EACH = 44
"""Items of a capability, of the suite by which all are scored."""
PLAIN = {"trainer": "TRL", "targets": "all-linear", "schedule": "constant", "dtype": "bfloat16"}
"""The settings of `trainer_of`, in the words of a result."""


@dataclass(frozen=True)
class Case:
    """What every contestant is given."""

    folder: Path

    @property
    def data(self) -> Path:
        """A folder of the shape of ../shared/data, with the rows of training alone."""
        return self.folder

    @property
    def file(self) -> Path:
        """The rows of training: STEPS × BATCH dialogues, one epoch."""
        return self.folder / "dialogues" / "taskmaster4.jsonl"

    @property
    def base(self) -> Path:
        """The folder of the base model."""
        return Path((self.folder / "base.txt").read_text("utf-8"))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of training."""
        return lines_of(self.file)

    @property
    def validation(self) -> Path:
        """Other dialogues, that nobody trains on or is scored by: for a cure that chooses by a held-out loss."""
        return self.folder / "validation.jsonl"

    def rehearsal(self) -> list[dict[str, Any]]:
        """The base's own replies to questions of general interest: what stands for its former training data."""
        return lines_of(self.folder.parent / "rehearsal.jsonl")


@dataclass
class Stage:
    """How far a contestant has come, for the record of one that fails."""

    name: str = "start"


stage = Stage()


class OutOfTimeError(BaseException):
    """The limit of CPU time is reached; no `except Exception` of other people's code may swallow it."""


def trainer_of(case: Case, folder: Path, seed: int, guard: Any = None) -> Any:
    """The run of `benchmarks/guard.py` on the case's rows; equal for equal seeds."""
    from guard import BATCH as batch
    from guard import LENGTH as length
    from guard import STEPS as steps
    from guard import trainer
    from transformers import set_seed

    if (steps, batch, length) != (STEPS, BATCH, LENGTH):
        raise RuntimeError(f"benchmarks/guard.py has {steps} steps of {batch} rows of {length} tokens; change STEPS …")
    set_seed(seed)
    return trainer(case.data, folder / "trainer", guard, method="lora", rate=RATE, steps=STEPS, seed=seed)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; in the peers' environment too."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
