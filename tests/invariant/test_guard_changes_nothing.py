"""A guard that only watches changes nothing in the training: same losses, weights and checkpoints, bit for bit."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from trl import SFTConfig, SFTTrainer

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
EPOCHS, STEPS = 2, 12
"""24 examples, 2 at a time, two passes accumulated."""


def train(folder: Path, *, kind: str, lora: bool, guarded: bool, bf16: bool = False, **options: Any) -> dict[str, Any]:
    """What a run of two epochs leaves behind; dropout and shuffling draw random numbers at every step."""
    set_seed(1)
    model: Any = tiny_model()
    model.config.attention_dropout = 0.3
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    adapter = LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    tokenizer = tiny_tokenizer()
    order: list[str] = []

    class Notes(TrainerCallback):
        """The user's own code may draw from any generator."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            order.append(f"{random.random()} {np.random.rand()}")

    common: dict[str, Any] = {
        "output_dir": str(folder), "num_train_epochs": EPOCHS, "per_device_train_batch_size": 2, "learning_rate": 1e-3,
        "logging_steps": 2, "save_steps": 5, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "dataloader_pin_memory": False, "bf16": bf16, "eval_strategy": "steps", "eval_steps": 3,
        "gradient_accumulation_steps": 2, "gradient_checkpointing": False,
    }  # fmt: skip
    guard = Guard(SUITE, every=1, run_dir=folder.parent / "run", say=lambda _: None, **options)
    callbacks = [Notes(), *([guard] if guarded else [])]
    texts = [f"example {i} of some text" for i in range(24)]
    if kind == "sft":
        data = Dataset.from_dict({"text": texts})
        trainer: Any = SFTTrainer(
            model, SFTConfig(**common), train_dataset=data, eval_dataset=data.select(range(4)),
            processing_class=tokenizer, peft_config=adapter if lora else None, callbacks=callbacks,
        )  # fmt: skip
    else:
        rows = [tokenizer(text).input_ids[:20] for text in texts]
        data = [{"input_ids": row, "labels": row} for row in rows]
        trainer = Trainer(
            get_peft_model(model, adapter) if lora else model, TrainingArguments(**common), train_dataset=data,
            eval_dataset=data[:4], processing_class=tokenizer, data_collator=collate, callbacks=callbacks,
        )  # fmt: skip
    trainer.train()
    if guarded:
        assert guard.looks[-1].step == STEPS and guard.verdict is not None
        assert len(guard.looks) == STEPS or "budget" in options
    model = trainer.model
    timing = ("runtime", "per_second", "backslide/")
    log = [{k: v for k, v in e.items() if not any(t in k for t in timing)} for e in trainer.state.log_history]
    kept = ("model.safetensors", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    saved = sorted(folder.glob("checkpoint-*"))
    return {
        # Every number that the trainer logged: losses, gradient norms, rates, TRL's averages.
        "logs": [entry for entry in log if set(entry) - {"epoch", "step"}],
        "order": order,
        "weights": {name: value.float().numpy().tobytes() for name, value in model.state_dict().items()},
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "gradients": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "checkpoints": {f"{f.name}/{n}": digest(f / n) for f in saved for n in kept if (f / n).is_file()},
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
    }


def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in batch]) for key in ("input_ids", "labels")}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


CASES = [
    ("trainer", False, False), ("trainer", True, False), ("trainer", False, True),
    ("sft", False, False), ("sft", True, False), ("sft", True, True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "lora", "bf16"), CASES)
def test_a_watching_guard_changes_nothing(tmp_path: Path, kind: str, lora: bool, bf16: bool) -> None:
    alone = train(tmp_path / "alone", kind=kind, lora=lora, guarded=False, bf16=bf16)
    watched = train(tmp_path / "watched", kind=kind, lora=lora, guarded=True, bf16=bf16)
    assert len([entry for entry in alone["logs"] if "loss" in entry]) == STEPS // 2
    assert len([entry for entry in alone["logs"] if "eval_loss" in entry]) == STEPS // 3
    assert len(alone["checkpoints"]) == 3 * 4 and len(alone["order"]) == STEPS
    for name, value in alone.items():
        assert watched[name] == value, name


def test_neither_does_one_that_keeps_what_it_could_go_back_to(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", kind="trainer", lora=False, guarded=False)
    # Nothing is lost at this tolerance of proof, so it never goes back.
    kept = train(tmp_path / "kept", kind="trainer", lora=False, guarded=True, on_regression="rollback", alpha=1e-6)
    for name, value in alone.items():
        assert kept[name] == value, name


def test_nor_one_that_looks_within_a_budget(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", kind="sft", lora=True, guarded=False)
    kept = train(tmp_path / "kept", kind="sft", lora=True, guarded=True, budget=1.0)
    for name, value in alone.items():
        assert kept[name] == value, name


def test_the_comparison_notices_one_more_random_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above could not fail if nothing in the run drew random numbers."""
    alone = train(tmp_path / "alone", kind="trainer", lora=False, guarded=False)
    original = Guard.on_step_end

    def greedy(self: Guard, *args: Any, **kwargs: Any) -> Any:
        torch.rand(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Guard, "on_step_end", greedy)
    watched = train(tmp_path / "watched", kind="trainer", lora=False, guarded=True)
    assert watched["logs"] != alone["logs"] and watched["weights"] != alone["weights"]
