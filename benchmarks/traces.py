"""Real traces: SmolLM2 forgets while it is fine-tuned, measured item by item at many steps on two benchmarks.

    python benchmarks/traces.py [--data ../shared/data] [--items 500] [--out benchmarks/results/traces.json]

Full fine-tuning on customer dialogues at several learning rates; at each look every item's probability on the gold
choice and whether it is right. `tests/validity` resamples the file to find how many items each test needs to prove a
drop that really happened. A run that is in the file already is not made again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import torch

from backslide.files import dump, read_json, write_text
from backslide.models import BUILTIN, load_model
from backslide.scoring.engine import Scorer, Settings
from backslide.suite.item import ChoiceItem
from backslide.suite.suite import Suite

TASKS = ("arc_easy", "piqa")
RATES = (5e-4, 1e-3, 2e-3)
STEPS, EVERY = 60, 6
BATCH, LENGTH = 4, 128


def suite(data: Path, task: str, items: int) -> Suite:
    """The first items of a benchmark, as a suite; they are not kept anywhere."""
    rows = [json.loads(line) for line in (data / "benchmarks" / f"{task}.jsonl").read_text("utf-8").splitlines()]
    return Suite(
        task,
        tuple(
            ChoiceItem(
                id=f"{task}/{number}",
                capability=task,
                prompt=row["query"].removeprefix("Question:").strip(),
                choices=tuple(row["choices"]),
                gold=row["gold"],
            )
            for number, row in enumerate(rows[: 2 * items])
            if len(set(row["choices"])) == len(row["choices"]) and all(c.strip() for c in row["choices"])
        )[:items],
    )


def look(scorers: dict[str, Scorer], model: Any) -> dict[str, dict[str, list[float]]]:
    """Of each task, for each item in order: probability on the gold choice, and 1 where it is right."""
    found = {}
    for task, scorer in scorers.items():
        outcomes = scorer.measure(model).outcomes
        found[task] = {"p": [round(o.p or 0.0, 4) for o in outcomes], "right": [int(bool(o.correct)) for o in outcomes]}
    return found


def run(rate: float, seed: int, data: Path, items: int) -> dict[str, Any]:
    """One fine-tune in fp32, scored in bf16 as it would be loaded."""
    loaded = load_model(BUILTIN, dtype="float32")
    model, tokenizer = loaded.model, loaded.tokenizer
    scored = copy.deepcopy(model).to(torch.bfloat16).eval()
    scorers = {t: Scorer(suite(data, t, items), scored, tokenizer, Settings(chat=False)) for t in TASKS}
    dialogues = [json.loads(line) for line in (data / "dialogues/taskmaster4.jsonl").read_text("utf-8").splitlines()]
    rows = [
        tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"][:LENGTH]
        for row in dialogues
    ]
    random.Random(seed).shuffle(rows)
    pad = tokenizer.pad_token_id or 0
    looks = [{"step": 0, "loss": None, **look(scorers, scored)}]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    model.train()
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - (step - 1) / STEPS)
        batch = rows[(step - 1) * BATCH : step * BATCH]
        longest = max(map(len, batch))
        tokens = torch.tensor([r + [pad] * (longest - len(r)) for r in batch])
        labels = torch.tensor([r + [-100] * (longest - len(r)) for r in batch])
        loss = model(input_ids=tokens, attention_mask=(labels != -100).long(), labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % EVERY == 0:
            with torch.no_grad():
                for mine, theirs in zip(scored.parameters(), model.parameters(), strict=True):
                    mine.copy_(theirs)
            looks.append({"step": step, "loss": round(loss.item(), 3), **look(scorers, scored)})
    return {"rate": rate, "seed": seed, "items": items, "looks": looks}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("BACKSLIDE_DATA", "../shared/data")))
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/traces.json")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"{options.data}: no such folder; it holds benchmarks and dialogues (--data)")
    runs: list[dict[str, Any]] = read_json(options.out)["runs"] if options.out.exists() else []
    for seed in range(options.seeds):
        for rate in RATES:
            if any((r["rate"], r["seed"], r["items"]) == (rate, seed, options.items) for r in runs):
                continue
            begin = time.perf_counter()
            runs.append(run(rate, seed, options.data, options.items))
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_text(options.out, dump({"runs": runs}) + "\n")
            for entry in runs[-1]["looks"]:
                shares = {t: sum(entry[t]["right"]) / len(entry[t]["right"]) for t in TASKS}
                means = {t: sum(entry[t]["p"]) / len(entry[t]["p"]) for t in TASKS}
                print(f"{rate:g} step {entry['step']}: loss {entry['loss']}, right {shares}, p {means}", flush=True)
            print(f"rate {rate:g}, seed {seed}: {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
