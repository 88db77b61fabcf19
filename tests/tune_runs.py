"""Runs of `tune` on a tiny model, for the tests of what they go through; also run as a script, to be killed for good.

    python tune_runs.py FOLDER BASE KIND [--kill WHERE] [--checkpoints N]

KIND is one of `KINDS`; WHERE is a step, `checkpoint` (in the middle of writing the second one) or `gate`.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from backslide.config import TuneConfig
from backslide.files import write_lines
from backslide.tune import Tuned, tune
from guard_runs import SMALL, suite

KINDS: dict[str, dict[str, dict[str, Any]]] = {
    # Dropout, data in another order each epoch, and losses of held-out rows at the looks.
    "lora": {"train": {"method": "lora", "learning_rate": 1e-2, "gradient_accumulation": 2}, "lora": {"dropout": 0.1}},
    "full": {"train": {"method": "full", "learning_rate": 1e-2, "scheduler": "cosine"}},
    # It acts at its first looks and again after step 8.
    "auto": {
        "train": {"method": "full", "learning_rate": 0.3, "scheduler": "constant"},
        "cure": {"replay": 0.25, "on_regression": "auto"},
    },
    "anchor": {"train": {"method": "full", "learning_rate": 1e-2}, "cure": {"anchor": 0.5}},
    "rollback": {
        "train": {"method": "lora", "learning_rate": 0.3, "scheduler": "constant"},
        "guard": {"on_regression": "rollback"},
    },
}
STEPS = 12


def config(folder: Path, base: Path | str, kind: str, **sections: dict[str, Any]) -> TuneConfig:
    write_lines(folder / "train.jsonl", [{"text": f"Question {i:02}? Answer {i:02}."} for i in range(14)])
    write_lines(folder / "held.jsonl", [{"text": f"Question {i:02}? Answer {i:02}."} for i in range(14, 18)])
    write_lines(folder / "old.jsonl", [{"text": f"There were {i} mice in a house." * (i % 3 + 1)} for i in range(20)])
    content: dict[str, dict[str, Any]] = {
        "model": {"base": str(base), "dtype": "float32"},
        "data": {"train": str(folder / "train.jsonl"), "held_out": str(folder / "held.jsonl")},
        "train": {"steps": STEPS, "batch_size": 2, "max_length": 64},
        "guard": {"every": 3, "cache": False},
        "output": {"dir": str(folder / "run"), "checkpoints": 3},
    }
    if KINDS[kind].get("cure"):
        content["cure"] = {"data": str(folder / "old.jsonl")}
    for more in (KINDS[kind], sections):
        for name, section in more.items():
            content[name] = {**content.get(name, {}), **section}
    return TuneConfig.from_dict(content)


def run(setup: TuneConfig, **more: Any) -> tuple[Tuned, list[str]]:
    said: list[str] = []
    return tune(setup, suite=suite(), settings=SMALL, say=said.append, **more), said


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(TrainerCallback):
    """Kills the process in the middle of the step that follows `step` others."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            kill()


def main() -> None:
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("base")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--kill", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)

    trained: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "training":
            trained.append(done)
        # The baseline is of both halves.
        if asked.kill == "gate" and trained and what == "gate half" and 2 * done > total:
            kill()

    if asked.kill == "checkpoint":
        whole = Trainer._save_rng_state

        def half(trainer: Any, folder: str) -> None:
            if len(list(Path(folder).parent.glob("checkpoint-*"))) > 1:
                kill()
            whole(trainer, folder)

        Trainer._save_rng_state = half
    callbacks = [Killer(int(asked.kill))] if asked.kill.isdecimal() else []
    run(config(asked.folder, asked.base, asked.kind), callbacks=callbacks, progress=progress)


if __name__ == "__main__":
    main()
