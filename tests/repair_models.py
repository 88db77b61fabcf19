"""Tiny models that were trained, in the folders that a repair is given; and a base with its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from backslide.gate import take_baseline
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer

TEXTS = [{"text": f"Customer: question {i:02}? Agent: answer {i:02}."} for i in range(16)]
"""The first twelve to learn from, the others held out."""
WIDE: dict[str, Any] = {"tolerance": 0.2, "drift": 0.5}
"""What a suite of 160 items can be held to."""


def trained(model: Any, *, rate: float = 1e-2, steps: int = 8) -> Any:
    """`model`, taught some of `TEXTS` too hard, in place."""
    tokenizer = tiny_tokenizer()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        for row in TEXTS[:6]:
            ids = torch.tensor([[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]])
            (model(input_ids=ids, labels=ids).loss / 6).backward()
        optimizer.step()
    return model.eval()


def saved(model: Any, folder: Path, **how: Any) -> str:
    """A model's folder, with a tokenizer."""
    model.save_pretrained(folder, **how)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def adapter(folder: Path, base: str, *, rate: float = 3e-2, **config: Any) -> str:
    """A trained LoRA adapter on the tiny model, that names `base`."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    saved(trained(get_peft_model(tiny_model(), LoraConfig(**{**fields, **config})), rate=rate), folder)
    row = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**row, "base_model_name_or_path": base}))
    return str(folder)


def run_of(folder: Path, base: str, suite: Suite, model: Any, **numbers: float) -> RunFolder:
    """The folder of a run that left `model` in `model`, with the record of its base."""
    suite.save(folder / "suite.jsonl")
    run = RunFolder(folder)
    run.begin({"suite": str(folder / "suite.jsonl"), "suite_hash": suite.hash, "alpha": 0.05, "tolerance": 0.03,
               "tolerance_drift": 0.1, **numbers})  # fmt: skip
    take_baseline(base, run.baseline, suite=suite, dtype="float32")
    saved(model, folder / "model")
    return run


def files(folder: Path) -> dict[str, bytes]:
    """All that lies below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def outcomes(path: Path) -> Any:
    """What a record says."""
    return Record.load(path).outcomes
