"""The scoring engine against lm-eval's HF backend, on the same requests in one run.

    python benchmarks/scoring.py [--data ../shared/data/benchmarks] [--docs 300] [--only "ARC-Easy 0-shot"] [--out FILE]

Prints a table of measured ratios and of what came out equal. Both sides start from text: tokenisation is included,
and on our side planning and the check of the model's layout. lm-eval runs at the batch size that is fastest on the
first documents of the task. Our side runs before and after lm-eval's; its time is the mean of the two, so that a
machine that slows down in between favours neither.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval_tasks import CASES, Case, task
from rich.console import Console
from rich.table import Table

from backslide.models import BUILTIN, load_model
from backslide.scoring.harness import EngineLM
from backslide.scoring.plan import plan
from backslide.scoring.requests import Request

SIZES = (1, 2, 4, 8, 16, 32, 64)
CALLS = {"loglikelihood": "loglikelihood", "multiple_choice": "loglikelihood", "generate_until": "generate_until"}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def ask(lm: Any, instances: list[Any]) -> Any:
    kind = CALLS[instances[0].request_type]
    return getattr(lm, kind)(instances, disable_tqdm=True)


def best_size(model: Any, tokenizer: Any, instances: list[Any], docs: int) -> int:
    """The batch size at which lm-eval is fastest on the first documents."""
    few = [instance for instance in instances if instance.doc_id < docs]
    times: dict[int, float] = {}
    for size in SIZES:
        times[size] = timed(lambda size=size: ask(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size), few))[0]
        if times[size] > 1.3 * min(times.values()):
            break
    return min(times, key=lambda size: times[size])


def compare(loaded: Any, instances: list[Any], theirs: list[Any], ours: list[Any]) -> dict[str, Any]:
    """What came out equal, request by request and document by document."""
    if instances[0].request_type == "generate_until":
        return {"replies equal": sum(a == b for a, b in zip(theirs, ours, strict=True)), "of": len(ours)}
    found: dict[str, Any] = {
        "largest difference": max(abs(a[0] - b[0]) for a, b in zip(theirs, ours, strict=True)),
        "beyond 1e-4": sum(abs(a[0] - b[0]) > 1e-4 for a, b in zip(theirs, ours, strict=True)),
        "greedy flags differ": sum(a[1] != b[1] for a, b in zip(theirs, ours, strict=True)),
        "of": len(ours),
    }
    metrics: list[dict[str, Any]] = []
    for results in (theirs, ours):
        by_doc: dict[int, list[Any]] = {}
        for instance, result in zip(instances, results, strict=True):
            by_doc.setdefault(instance.doc_id, []).append(result)
        per_doc = [loaded.process_results(loaded.eval_docs[doc], answers) for doc, answers in by_doc.items()]
        best = [max(range(len(a)), key=lambda k, a=a: a[k][0]) for a in by_doc.values()]
        metrics.append(
            {
                "best choice": best,
                **{key: [row[key] for row in per_doc] for key in ("acc", "acc_norm") if key in per_doc[0]},
            }
        )
    for key in metrics[0]:
        found[f"{key} differs"] = sum(a != b for a, b in zip(metrics[0][key], metrics[1][key], strict=True))
    found["acc"] = sum(float(a) for a in metrics[1]["acc"]) / len(metrics[1]["acc"])
    return found


def measure(case: Case, model: Any, tokenizer: Any, data: Path, docs: int, tuning: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        loaded = task(case, data, Path(folder), case.docs or docs)
        instances = loaded.instances
        first, ours = timed(lambda: ask(EngineLM(model, tokenizer), instances))
        size = best_size(model, tokenizer, instances, tuning)
        lm_eval, theirs = timed(lambda: ask(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size), instances))
        second, again = timed(lambda: ask(EngineLM(model, tokenizer), instances))
        assert ours == again, "the engine must say the same twice"
        return {
            "task": case.name,
            "lm-eval seconds": lm_eval,
            "batch size": size,
            "seconds": [first, second],
            "ratio": lm_eval / ((first + second) / 2),
            "at least": case.at_least,
            "ideal": case.ideal,
            **compare(loaded, instances, theirs, ours),
        }


def half_precision(data: Path, docs: int) -> dict[str, float]:
    """bf16: how far lm-eval is from itself at two batch sizes, the engine from either, and each from fp32.

    lm-eval takes the log-softmax in the dtype of the model unless it is told otherwise, the engine in fp32; `fp32
    softmax` is lm-eval told so. The truth is the same bf16 weights, computed in fp32.
    """
    loaded = load_model(BUILTIN, dtype="bfloat16")
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in (CASES[0], CASES[1]):
            instances = task(case, data, Path(folder), docs).instances
            scores: dict[str, list[Any]] = {}
            for size in (1, 16):
                for name, options in ((str(size), {}), (f"{size}, fp32 softmax", {"softmax_dtype": "float32"})):
                    lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=size, **options)
                    scores[name] = ask(lm, instances)
            scores["ours"] = ask(EngineLM(loaded.model, loaded.tokenizer), instances)
            scores["truth"] = ask(EngineLM(copy.deepcopy(loaded.model).float(), loaded.tokenizer), instances)
            for a, b in (
                ("1", "16"), ("1", "ours"), ("16", "ours"),
                ("1, fp32 softmax", "16, fp32 softmax"), ("1, fp32 softmax", "ours"), ("16, fp32 softmax", "ours"),
                ("1", "truth"), ("16", "truth"), ("1, fp32 softmax", "truth"), ("ours", "truth"),
            ):  # fmt: skip
                gaps = [abs(x[0] - y[0]) for x, y in zip(scores[a], scores[b], strict=True)]
                found[f"{case.name}: {a} and {b}, largest"] = max(gaps)
                found[f"{case.name}: {a} and {b}, root mean square"] = math.sqrt(sum(g * g for g in gaps) / len(gaps))
    return found


def adapters(data: Path, docs: int, rounds: int = 4) -> dict[str, float]:
    """bf16, LoRA of rank 16 on all linear layers against the bare model, turn by turn."""
    from peft import LoraConfig, get_peft_model

    bare, other = load_model(BUILTIN, dtype="bfloat16"), load_model(BUILTIN, dtype="bfloat16")
    config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(other.model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        instances = task(CASES[0], data, Path(folder), docs).instances
        sides = {
            "bare": EngineLM(bare.model, bare.tokenizer),
            "adapter": EngineLM(adapted, bare.tokenizer),
            "adapter off": EngineLM(adapted, bare.tokenizer, adapters=False),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(rounds + 1):
            for name, lm in sides.items():
                seconds, _ = timed(lambda lm=lm: ask(lm, instances))
                if turn:
                    times[name].append(seconds)
    mean = {name: sum(values) / rounds for name, values in times.items()}
    return {**mean, "adapter / bare": mean["adapter"] / mean["bare"], "off / bare": mean["adapter off"] / mean["bare"]}


def peak(side: str, data: Path, docs: int) -> int:
    """Bytes beyond the loaded model at the peak of the 5-shot task; run in a process of its own (Linux)."""
    loaded = load_model(BUILTIN, dtype="float32")
    case = CASES[1]
    with tempfile.TemporaryDirectory() as folder:
        instances = task(case, data, Path(folder), docs).instances
        ask(EngineLM(loaded.model, loaded.tokenizer), instances[:4])  # what torch allocates once is not counted
        lm = EngineLM(loaded.model, loaded.tokenizer)
        if side != "ours":
            lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=int(side))
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = status("VmRSS")
        ask(lm, instances)
        return status("VmHWM") - before


def status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory(data: Path, size: int, docs: int = 60) -> dict[str, float]:
    found: dict[str, float] = {}
    for side in ("ours", str(size)):
        command = [sys.executable, __file__, "--data", str(data), "--docs", str(docs), "--peak", side]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found["ours" if side == "ours" else "lm-eval"] = float(done.stdout.split()[-1])
    return {**found, "share": found["ours"] / found["lm-eval"]}


def planning() -> dict[str, float]:
    """Seconds to plan 100,000 requests of 100 tokens."""
    import random

    drawn = random.Random(0)
    requests = []
    for item in range(25_000):
        context = tuple(drawn.randrange(49_000) for _ in range(92))
        for choice in range(4):
            targets = tuple(drawn.randrange(49_000) for _ in range(8))
            requests.append(Request(f"item {item}", choice, (context + targets)[:-1], targets))
    drawn.shuffle(requests)
    sizes = {"row_tokens": 256, "batch_tokens": 2048}
    trees, _ = timed(lambda: plan(requests, **sizes))
    flat, _ = timed(lambda: plan(requests, **sizes, tree=False))
    return {"trees": trees, "plain rows": flat}


def show(console: Console, found: list[dict[str, Any]]) -> None:
    table = Table(
        "task",
        "at least",
        "measured",
        "ideal",
        "lm-eval s (batch)",
        "ours s",
        "max |Δ log p|",
        "differ: greedy / best / acc / acc_norm",
    )
    for row in found:
        ideal = f"{row['ideal']}×" if row["ideal"] else "-"
        if "replies equal" in row:
            gap, differ = "-", f"replies equal: {row['replies equal']} of {row['of']}"
        else:
            gap = f"{row['largest difference']:.1e}"
            keys = ("greedy flags differ", "best choice differs", "acc differs", "acc_norm differs")
            differ = " / ".join(str(row.get(key, "-")) for key in keys)
        ours = sum(row["seconds"]) / 2
        measured = f"{row['ratio']:.2f}×" + ("" if row["ratio"] >= row["at least"] else " (short)")
        table.add_row(
            row["task"],
            f"{row['at least']}×",
            measured,
            ideal,
            f"{row['lm-eval seconds']:.1f} ({row['batch size']})",
            f"{ours:.1f}",
            gap,
            differ,
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("BACKSLIDE_DATA", "../shared/data")) / "benchmarks"
    )
    parser.add_argument("--docs", type=int, default=300)
    parser.add_argument("--tuning", type=int, default=24, help="documents on which lm-eval's batch size is chosen")
    parser.add_argument(
        "--only", action="append", help="a task's name, planning, memory, adapters or bf16; may be given again"
    )
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if not options.data.is_dir():
        raise SystemExit(f"{options.data}: no such folder; it holds the benchmarks' data (--data)")
    if options.peak:
        print(peak(options.peak, options.data, options.docs))
        return
    console = Console(width=180)
    loaded = load_model(BUILTIN, dtype="float32")
    with torch.no_grad():
        loaded.model(input_ids=torch.zeros(4, 256, dtype=torch.long))  # what the first pass of a process costs once
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "tasks": []}
    for case in CASES:
        if options.only and case.name not in options.only:
            continue
        row = measure(case, loaded.model, loaded.tokenizer, options.data, options.docs, options.tuning)
        found["tasks"].append(row)
        console.print_json(json.dumps(row), indent=None)
    size = next((row["batch size"] for row in found["tasks"] if "first_n" in row["task"]), 4)
    more: dict[str, Callable[[], Any]] = {
        "planning": planning,
        "memory": lambda: memory(options.data, size),
        "adapters": lambda: adapters(options.data, 100),
        "bf16": lambda: half_precision(options.data, 100),
    }
    found |= {name: call() for name, call in more.items() if not options.only or name in options.only}
    show(console, found["tasks"])
    console.print_json(json.dumps({key: value for key, value in found.items() if key != "tasks"}))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
