"""Runs of a tiny model with replay, that keep each batch that the model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import (
    DataCollatorForLanguageModeling,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from backslide.cure.replay import Replay
from backslide.testing import tiny_model, tiny_tokenizer

NEW = [f"new example {i} of some text, {'long ' * (i % 5)}" for i in range(22)]
OLD = [{"text": f"OLD {'words ' * (i % 4)}{i}"} for i in range(7)]
CHAT = [
    {"messages": [{"role": "user", "content": f"Why {i}?"}, {"role": "assistant", "content": f"Since {i}." * (i + 1)}]}
    for i in range(5)
]
PAIRS = [{"prompt": f"Q{i}: ", "completion": f"OLD A{i}"} for i in range(5)]


class Stream(IterableDataset):
    """New rows of tokens in the data's own order."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        yield from self.rows


class Raise(TrainerCallback):
    """Raises the ratio at a step, as a guard may."""

    def __init__(self, replay: Replay, step: int = 3) -> None:
        self.replay, self.step = replay, step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.replay.more()


def tokens(texts: list[str]) -> list[dict[str, Any]]:
    tokenizer = tiny_tokenizer()
    return [{"input_ids": tokenizer(text).input_ids, "attention_mask": [1] * len(text)} for text in texts]


def make(
    folder: Path,
    *,
    replay: Replay | None = None,
    kind: str = "trainer",
    data: Any = None,
    callbacks: Any = (),
    collator: Any = None,
    **settings: Any,
) -> Any:
    """A trainer; its `seen` are the batches, as lists, and the number of their items as the loss was divided by."""
    set_seed(1)
    model: Any = tiny_model()
    model.config.attention_dropout = 0.3
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    tokenizer = tiny_tokenizer()
    options: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 3, "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "dataloader_pin_memory": False, "learning_rate": 1e-3, "logging_steps": 1,
        "save_strategy": "steps", "save_steps": 2, "max_steps": 6, **settings,
    }  # fmt: skip
    if kind == "sft":
        if data is None:
            data = Dataset.from_dict({"text": NEW})
        args: Any = SFTConfig(**{"gradient_checkpointing": False, **options})
        trainer: Any = SFTTrainer(
            model, args, train_dataset=data, eval_dataset=Dataset.from_dict({"text": NEW[:4]}),
            processing_class=tokenizer, callbacks=[*callbacks],
        )  # fmt: skip
    else:
        rows = tokens(NEW)
        if data == "stream":
            data = Stream(rows)
        trainer = Trainer(
            model, TrainingArguments(**options), train_dataset=rows if data is None else data, eval_dataset=rows[:4],
            data_collator=collator or DataCollatorForLanguageModeling(tokenizer, mlm=False),
            processing_class=tokenizer, callbacks=[*callbacks],
        )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.seen = []
    step = trainer.training_step

    def noted(model: Any, inputs: Any, items: Any = None) -> Any:
        shown = {key: value.tolist() for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        trainer.seen.append({**shown, "items": None if items is None else float(items)})
        return step(model, inputs, items)

    trainer.training_step = noted
    if replay is not None:
        replay.attach(trainer)
    return trainer


def texts(batch: dict[str, Any]) -> list[str]:
    """The rows of a batch as text, padding apart."""
    tokenizer = tiny_tokenizer()
    masks = batch.get("attention_mask") or [[1] * len(row) for row in batch["input_ids"]]
    rows = zip(batch["input_ids"], masks, strict=True)
    return [tokenizer.decode([t for t, m in zip(row, mask, strict=True) if m]) for row, mask in rows]


def counted(seen: list[dict[str, Any]]) -> tuple[int, int]:
    """Tokens of old and of new rows."""
    rows = [row for batch in seen for row in texts(batch)]
    size = [len(tiny_tokenizer()(row).input_ids) for row in rows]
    old = sum(n for n, row in zip(size, rows, strict=True) if "OLD" in row)
    return old, sum(size) - old


def weights(trainer: Any) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in trainer.model.state_dict().items()}
