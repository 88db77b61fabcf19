"""The guard on the real small model: one run of each kind, and a rollback that mends."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from backslide.guard.callback import Guard
from backslide.models import BUILTIN, load_model
from backslide.rundir import RunFolder
from backslide.scoring.engine import Settings
from backslide.suite.suite import Suite
from backslide.verdict import Zone

pytestmark = pytest.mark.real

SHORT = Settings(max_new_tokens=12)
"""The first words of a reply: most of a look's time goes into them, one after the other."""

FASTEST = "auto"
"""bf16, where the machine has it; a CPU that emulates it would take hours."""

COMMON: dict[str, Any] = {
    "max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    "bf16": False, "save_strategy": "no", "dataloader_pin_memory": False, "logging_steps": 1, "learning_rate": 1e-4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from backslide.guard import cache

    place = tmp_path_factory.getbasetemp() / "baselines"
    monkeypatch.setattr(cache, "cache_folder", lambda: place)
    yield


def part(count: int) -> Suite:
    """Questions that the model replies to, most of what it knows best: replies are what a look spends its time on."""
    items = Suite.repertoire().sample(count).items
    chosen = [item for item in items if item.capability == "short_answers"]
    return Suite(name="short", items=(*chosen, *(item for item in items if item.kind == "open")))


@pytest.fixture(scope="module")
def suite() -> Suite:
    """Enough to see that a look was made."""
    return part(8)


def lora() -> LoraConfig:
    return LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")


def trainer_of(kind: str, folder: Path, guard: Guard) -> Any:
    loaded = load_model(BUILTIN, dtype=FASTEST)
    known: dict[str, Any] = {"processing_class": loaded.tokenizer, "callbacks": [guard]}
    more = {"output_dir": str(folder), **COMMON}
    ask, told = [{"role": "user", "content": "A latte, please."}], [{"role": "assistant", "content": "Here you are."}]
    if kind in ("sft full", "sft lora"):
        data = Dataset.from_list([{"messages": [*ask, *told]}] * 8)
        peft = lora() if kind == "sft lora" else None
        return SFTTrainer(loaded.model, SFTConfig(**more), train_dataset=data, peft_config=peft, **known)
    if kind == "dpo":
        pair = {"prompt": ask, "chosen": told, "rejected": [{"role": "assistant", "content": "No."}]}
        data = Dataset.from_list([pair] * 8)
        return DPOTrainer(loaded.model, args=DPOConfig(**more), train_dataset=data, peft_config=lora(), **known)
    more |= {"num_generations": 2, "max_completion_length": 8}
    return GRPOTrainer(
        loaded.model, reward_funcs=lambda completions, **_: [float(len(c[0]["content"])) for c in completions],
        args=GRPOConfig(**more), train_dataset=Dataset.from_list([{"prompt": ask}] * 8), peft_config=lora(), **known,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sft full", "sft lora", "dpo", "grpo"])
def test_a_run_of_each_kind(tmp_path: Path, suite: Suite, kind: str) -> None:
    guard = Guard(suite, every=1, settings=SHORT, say=lambda _: None)
    trainer_of(kind, tmp_path, guard).train()
    assert [look.step for look in guard.looks] == [1, 2] and guard.verdict is not None
    assert guard.baseline is not None and guard.final is not None
    assert "Paris" in guard.baseline.replies["conversation/capital-france"]
    assert "Paris" in guard.final.replies["conversation/capital-france"], "two steps forget nothing"
    assert guard.verdict.zone is not Zone.REGRESSED


def test_a_loop_of_ones_own(tmp_path: Path, suite: Suite) -> None:
    loaded = load_model(BUILTIN, dtype=FASTEST)
    model = loaded.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    tokens = loaded.tokenizer("One flat white, to go.", return_tensors="pt").input_ids
    guard = Guard(suite, every=1, settings=SHORT, run_dir=tmp_path, say=lambda _: None)
    guard.before_training(model, loaded.tokenizer, steps=2, optimizer=optimizer)
    for step in (1, 2):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        guard.after_step(step, loss.item())
    assert guard.finish().zone is not Zone.REGRESSED and "Paris" in guard.final.replies["conversation/capital-france"]  # type: ignore[union-attr]


def test_a_rollback_mends_what_a_bad_rate_had_broken(tmp_path: Path) -> None:
    text = (importlib.resources.files("backslide.demo") / "data" / "train.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()[:3]]
    loaded = load_model(BUILTIN, dtype=FASTEST)
    guard = Guard(part(40), every=4, settings=SHORT, on_regression="rollback", lr_factor=0.001, say=lambda _: None)
    args = SFTConfig(
        output_dir=str(tmp_path), **{**COMMON, "max_steps": 8, "learning_rate": 1e-3, "per_device_train_batch_size": 3},
        lr_scheduler_type="constant", max_length=128,
    )  # fmt: skip
    trainer = SFTTrainer(
        loaded.model, args, train_dataset=Dataset.from_list(rows), processing_class=loaded.tokenizer, callbacks=[guard]
    )
    trainer.train()
    assert guard.regressed_at is not None and guard.verdict is not None
    assert guard.verdict.zone is not Zone.REGRESSED and "Paris" in guard.final.replies["conversation/capital-france"]  # type: ignore[union-attr]
    actions = [event for event in RunFolder(tmp_path / "backslide").events() if event["event"] == "action"]
    assert actions[0]["action"] == "rollback" and actions[0]["rate_after"] == pytest.approx(1e-6)
