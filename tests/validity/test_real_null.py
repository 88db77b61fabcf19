"""Nothing happens to a real model, twenty looks long: no alarm may be raised.

Once it is trained at learning rate 0 with dropout on, watched by the guard; once it is scored in bf16 in twenty other
batch sizes, which is rounding and nothing else.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from backslide.errors import ModelError
from backslide.guard.callback import Guard
from backslide.guard.joint import Joint, on_record
from backslide.judge import judge
from backslide.models import BUILTIN, load_model
from backslide.scoring.engine import Scorer, Settings
from backslide.suite.suite import Suite
from backslide.verdict import Level, Zone

LOOKS = 20
pytestmark = pytest.mark.filterwarnings("ignore")


def loaded(dtype: str) -> Any:
    try:
        return load_model(BUILTIN, dtype=dtype)
    except ModelError as missing:
        pytest.skip(f"the small real model is not here: {missing}")


def suite(*capabilities: str) -> Suite:
    whole = Suite.repertoire().sample(70)
    return Suite("part", tuple(item for item in whole.items if item.capability in capabilities))


def test_learning_rate_zero_with_dropout(report: Any, tmp_path: Path) -> None:
    base = loaded("float32")
    model, tokenizer = base.model, base.tokenizer
    model.config.attention_dropout = 0.2
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    rows = [tokenizer(f"Order {i}: one latte, please.")["input_ids"] for i in range(40)]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=LOOKS, per_device_train_batch_size=2, learning_rate=0.0, logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        remove_unused_columns=False,
    )  # fmt: skip

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        tokens = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in batch])
        return {"input_ids": tokens, "labels": tokens}

    guard = Guard(suite("arithmetic", "world_facts"), every=1, run_dir=tmp_path / "run", say=lambda _: None)
    trainer = Trainer(
        model, args, train_dataset=[{"input_ids": row} for row in rows], processing_class=tokenizer,
        data_collator=collate, callbacks=[guard],
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(set(losses)) == LOOKS, "dropout is on: no two losses are alike"
    alarms = [look.step for look in guard.looks if look.zone is Zone.REGRESSED]
    holds = "broken" if alarms else "holds"
    report("alarms of a real null: learning rate 0, dropout on", "SmolLM2, fp32", 0, len(alarms), LOOKS, holds)
    assert len(guard.looks) == LOOKS and not alarms
    assert guard.verdict is not None and guard.verdict.zone is not Zone.REGRESSED


def test_the_base_in_other_batch_sizes(report: Any) -> None:
    base = loaded("bfloat16")
    chosen = suite("arithmetic", "common_sense", "science", "world_facts")
    first = Scorer(chosen, base.model, base.tokenizer).baseline(base.model, part="monitor")
    level = Level(fail=0.05 / LOOKS)
    state = Joint(alpha=0.05, looks=LOOKS)
    alarms, crossed, changed = 0, 0, 0
    for look in range(LOOKS):
        sizes = Settings(row_tokens=32 + 24 * look, batch_tokens=256 + 128 * look)
        again = Scorer(chosen, base.model, base.tokenizer, sizes).measure(base.model, part="monitor")
        again = dataclasses.replace(again, header=dataclasses.replace(again.header, conditions=first.header.conditions))
        changed += again.outcomes != first.outcomes
        alarms += judge(first, again, level=level).zone is Zone.REGRESSED
        state, proven = on_record(state, first, again)
        crossed += judge(first, again, level=level, alarms=proven).zone is Zone.REGRESSED
    assert changed > LOOKS // 2, "other batches give other last digits, else this test says nothing"
    for test, count in (("exact", alarms), ("joint", crossed)):
        claim = f"alarms of a real null: base against base in other batch sizes, {test} test"
        report(claim, "SmolLM2, bf16", 0, count, LOOKS, "broken" if count else "holds")
    assert not alarms and not crossed
