"""Guarded runs of a tiny model, for the tests of what a run goes through; also run as a script, to be killed.

    python guard_runs.py FOLDER [--kill WHAT] [--resume] [--every N]

WHAT is a place: `baseline`, `look 2`, `step 5`, `gate`; the process kills itself there, for good (SIGKILL).
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from backslide.guard.callback import Guard
from backslide.scoring.engine import Scorer, Settings
from backslide.suite.item import AnswerItem, ChoiceItem, Item, OpenItem, TextItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer

STEPS = 7

# Passes so small that a look is many of them.
SMALL = Settings(row_tokens=64, batch_tokens=128, max_new_tokens=4)


@functools.cache
def suite() -> Suite:
    """Items that the tiny model gets right, so that there is something to lose: the gold is its own answer."""
    letters = tuple("abcd")

    def ask(number: int, gold: int) -> ChoiceItem:
        prompt = f"{number} and {number * 7}?"
        return ChoiceItem(id=f"c{number}", capability="pq"[number % 2], prompt=prompt, choices=letters, gold=gold)

    model, tokenizer = tiny_model(), tiny_tokenizer()
    blind = Scorer(Suite("x", tuple(ask(i, 0) for i in range(120))), model, tokenizer, SMALL).measure(model).by_id
    items: list[Item] = [ask(i, int(np.argmax(blind[f"c{i}"].scores))) for i in range(120)]  # type: ignore[arg-type]
    items += [AnswerItem(id=f"a{i}", capability="p", prompt=f"{i}?", answers=("x",)) for i in range(6)]
    items += [TextItem(id=f"t{i}", capability="t", text="It was a bright cold day."[i:]) for i in range(6)]
    return Suite("many", (*items, OpenItem(id="o", capability="o", prompt="Why?")))


def make(
    folder: Path, guard: Guard | None, *extra: TrainerCallback, cls: Any = Trainer, model: Any = None, **more: Any
) -> Any:
    """A trainer whose data are shuffled and whose model drops out at random."""
    set_seed(1)
    if model is None:
        model = tiny_model()
        model.config.attention_dropout = 0.3
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
    tokenizer = tiny_tokenizer()
    rows = [tokenizer(f"example {i} of some text").input_ids[:20] for i in range(16)]
    settings: dict[str, Any] = {"max_steps": STEPS, "save_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, **more}
    args = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, report_to="none", disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    trainer = cls(
        model, args, train_dataset=[{"input_ids": row, "labels": row} for row in rows], processing_class=tokenizer,
        eval_dataset=[{"input_ids": row, "labels": row} for row in rows[:4]], data_collator=collate,
        callbacks=[*([guard] if guard is not None else []), *extra],
    )  # fmt: skip
    # It prints, which a test of a full disk must not be ended by.
    trainer.remove_callback(PrinterCallback)
    return trainer


def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in batch]) for key in ("input_ids", "labels")}


class Killer(TrainerCallback):
    """Kills the process at a place; `progress` is to be called with what the guard says it is doing."""

    def __init__(self, place: str | None) -> None:
        self.place, self.last, self.halves = place, ("", 0), 0

    def progress(self, what: str, done: int, total: int) -> None:
        if what != self.last[0] or done <= self.last[1]:
            self.halves += what == "monitor half"
        self.last = (what, done)
        # The monitor half is measured for the baseline first, then for each look.
        where = "baseline" if self.halves == 1 else "gate" if what == "gate half" else f"look {self.halves - 1}"
        if where == self.place and 2 * done > total:
            self.kill()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.place == f"step {state.global_step}":
            self.kill()

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill")
    parser.add_argument("--resume", help="checkpoint")
    parser.add_argument("--every", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    killer = Killer(asked.kill)
    guard = Guard(suite(), every=asked.every, settings=SMALL, cache=False, say=print, progress=killer.progress)
    make(asked.folder, guard, killer).train(resume_from_checkpoint=asked.resume)


if __name__ == "__main__":
    main()
