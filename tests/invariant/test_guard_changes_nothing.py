"""A guard that only watches changes nothing in the training: same losses and weights bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

from backslide.guard.callback import Guard
from backslide.suite.item import ChoiceItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer

SUITE = Suite(
    "s", tuple(ChoiceItem(id=f"c{i}", capability="c", prompt=f"{i}?", choices=("a", "b"), gold=0) for i in range(12))
)


def train(folder: Path, *, lora: bool, guarded: bool) -> tuple[list[float], dict[str, torch.Tensor], torch.Tensor]:
    set_seed(1)
    model: Any = tiny_model()
    # Dropout draws from the generator at every step, so that a disturbed one shows.
    model.config.attention_dropout = 0.3
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"]))
    tokenizer = tiny_tokenizer()
    rows = [tokenizer(f"example {i} of some text").input_ids[:20] for i in range(16)]
    data = [{"input_ids": row, "labels": row} for row in rows]
    args = TrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    callbacks = [Guard(SUITE, every=2, run_dir=folder / "run", say=lambda _: None)] if guarded else []
    trainer = Trainer(model, args, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()


@pytest.mark.parametrize("lora", [False, True])
def test_a_watching_guard_changes_nothing(tmp_path: Path, lora: bool) -> None:
    alone = train(tmp_path / "alone", lora=lora, guarded=False)
    watched = train(tmp_path / "watched", lora=lora, guarded=True)
    assert len(alone[0]) == 6 and watched[0] == alone[0]
    assert all(torch.equal(watched[1][name], weight) for name, weight in alone[1].items())
    assert torch.equal(watched[2], alone[2])
