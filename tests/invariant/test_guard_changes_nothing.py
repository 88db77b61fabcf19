"""A guard that only watches changes nothing in the training: same losses, weights and checkpoints, bit for bit."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

from backslide.guard.callback import Guard
from backslide.suite.item import AnswerItem, ChoiceItem, Item, OpenItem, TextItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer

ITEMS: list[Item] = [
    ChoiceItem(id=f"c{i}", capability="c", prompt=f"{i}?", choices=("a", "b"), gold=0) for i in range(12)
]
ITEMS += [AnswerItem(id=f"a{i}", capability="a", prompt=f"{i}?", answers=("x",)) for i in range(4)]
ITEMS += [TextItem(id=f"t{i}", capability="t", text="It was a bright cold day."[i:]) for i in range(4)]
ITEMS += [OpenItem(id="o", capability="o", prompt="Why?")]
SUITE = Suite("s", tuple(ITEMS))
STEPS = 6


def train(folder: Path, *, lora: bool, guarded: bool, bf16: bool = False) -> dict[str, Any]:
    """What a run leaves behind; dropout and shuffling draw random numbers at every step."""
    set_seed(1)
    model: Any = tiny_model()
    model.config.attention_dropout = 0.3
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"]))
    tokenizer = tiny_tokenizer()
    rows = [tokenizer(f"example {i} of some text").input_ids[:20] for i in range(16)]
    order: list[int] = []

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        order.extend(row["number"] for row in batch)
        # The user's own code may draw from any generator.
        random.random(), np.random.rand()
        tokens = torch.tensor([row["input_ids"] for row in batch])
        return {"input_ids": tokens, "labels": tokens}

    args = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1,
        save_steps=4, report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        remove_unused_columns=False, bf16=bf16,
    )  # fmt: skip
    guard = Guard(SUITE, every=1, run_dir=folder.parent / "run", say=lambda _: None)
    trainer = Trainer(
        model, args, train_dataset=[{"input_ids": row, "number": i} for i, row in enumerate(rows)],
        processing_class=tokenizer, data_collator=collate, callbacks=[guard] if guarded else [],
    )  # fmt: skip
    trainer.train()
    if guarded:
        assert [look.step for look in guard.looks] == [1, 2, 3, 4, 5, 6] and guard.verdict is not None
    log = [{k: v for k, v in entry.items() if "loss" in k or k == "grad_norm"} for entry in trainer.state.log_history]
    checkpoint = folder / "checkpoint-4"
    kept = ("model.safetensors", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    return {
        "losses": [entry for entry in log if entry],
        "order": order,
        "weights": {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "checkpoint": {n: digest(checkpoint / n) for n in kept if (checkpoint / n).is_file()},
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("lora", "bf16"), [(False, False), (True, False), (False, True)])
def test_a_watching_guard_changes_nothing(tmp_path: Path, lora: bool, bf16: bool) -> None:
    alone = train(tmp_path / "alone", lora=lora, guarded=False, bf16=bf16)
    watched = train(tmp_path / "watched", lora=lora, guarded=True, bf16=bf16)
    assert len([entry for entry in alone["losses"] if "loss" in entry]) == STEPS
    assert len(alone["checkpoint"]) == 4
    assert sorted(alone["order"][:16]) != alone["order"][:16], "the data is shuffled, else order proves nothing"
    for name, value in alone.items():
        assert watched[name] == value, name


def test_the_comparison_notices_one_more_random_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above could not fail if nothing in the run drew random numbers."""
    alone = train(tmp_path / "alone", lora=False, guarded=False)
    original = Guard.on_step_end

    def greedy(self: Guard, *args: Any, **kwargs: Any) -> Any:
        torch.rand(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Guard, "on_step_end", greedy)
    watched = train(tmp_path / "watched", lora=False, guarded=True)
    assert watched["losses"] != alone["losses"] and watched["weights"] != alone["weights"]
