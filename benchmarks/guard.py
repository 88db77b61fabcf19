"""The guard on real runs: what watching costs, and whether it sees what a full evaluation afterwards proves.

    python benchmarks/guard.py overhead [--steps 200]
    python benchmarks/guard.py memory
    python benchmarks/guard.py detection [--method lora] [--only full-0.0005-0]
    python benchmarks/guard.py table

SmolLM2-135M on the dialogues of `--data` (default: ../shared/data/dialogues). Each run of `detection` leaves a small
file in benchmarks/results/guard/; one that is there already is not made again, and `table` prints them all.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from backslide.files import read_json, write_json
from backslide.guard.callback import Guard
from backslide.judge import judge
from backslide.models import BUILTIN, load_model, quiet
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.suite.suite import Suite
from backslide.verdict import Level, Zone, main_row

RESULTS = Path(__file__).parent / "results" / "guard"
RATES = {"full": (1e-5, 5e-5, 2e-4, 5e-4, 1e-3), "lora": (1e-4, 5e-4, 1e-3, 2e-3, 5e-3)}
SEEDS = (0, 1, 2)
STEPS, BATCH, LENGTH, LOOKS, EACH = 30, 4, 128, 5, 120
"""Of a run of `detection`; it asks `EACH` items of every capability, so that a run takes minutes."""


def trainer(
    data: Path, folder: Path, guard: Guard | None, *, method: str, rate: float, steps: int, seed: int = 0, **more: Any
) -> SFTTrainer:
    """A fine-tune on dialogues, in bf16: of LoRA's weights (which are fp32), or of all.

    Full fine-tuning in bf16 rounds small updates away, so the lowest rates here change little; in fp32 a run takes four
    times as long on a CPU.
    """
    rows = [json.loads(line) for line in (data / "dialogues/taskmaster4.jsonl").read_text("utf-8").splitlines()]
    random.Random(seed).shuffle(rows)
    loaded = load_model(BUILTIN, dtype="bfloat16")
    disable_progress_bar()
    args = SFTConfig(
        output_dir=str(folder),
        learning_rate=rate,
        max_steps=steps,
        per_device_train_batch_size=more.pop("batch", BATCH),
        max_length=LENGTH,
        lr_scheduler_type="constant",
        seed=seed,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with quiet():
        made = SFTTrainer(
            loaded.model,
            args=args,
            train_dataset=Dataset.from_list([{"messages": row["messages"]} for row in rows]),
            processing_class=loaded.tokenizer,
            peft_config=lora if method == "lora" else None,
            callbacks=[guard] if guard is not None else [],
        )
    made.remove_callback(PrinterCallback)
    return made


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="guard-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()


# What it costs.


class Clocked(Guard):
    """A guard that takes the time of all that it does between the first step and the last, and of its beginning."""

    clocked = 0.0

    def _clocked(self, event: Any, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return event(*args, **kwargs)
        finally:
            self.clocked += time.perf_counter() - begin

    def on_train_begin(self, *args: Any, **kwargs: Any) -> Any:
        """Clocked: the baseline is in it."""
        return self._clocked(super().on_train_begin, *args, **kwargs)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> Any:
        """Clocked."""
        return self._clocked(super().on_step_begin, *args, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> Any:
        """Clocked."""
        return self._clocked(super().on_log, *args, **kwargs)

    def on_step_end(self, *args: Any, **kwargs: Any) -> Any:
        """Clocked: looks are in it."""
        return self._clocked(super().on_step_end, *args, **kwargs)


def timed(data: Path, method: str, steps: int, guard_of: Any) -> tuple[float, float, list[dict[str, Any]]]:
    """Seconds of a run without its baseline and the judgement at its end, those of the guard in it, and its events."""
    with scratch() as folder:
        guard = guard_of(folder) if guard_of is not None else None
        made = trainer(data, folder, guard, method=method, rate=1e-4, steps=steps)
        begin = time.perf_counter()
        made.train()
        seconds = time.perf_counter() - begin
        events = RunFolder(folder / "backslide").events() if guard is not None else []
    base, end = (sum(e["seconds"] for e in events if e["event"] == kind) for kind in ("baseline", "gate"))
    # What trainers log within a look is clocked twice: some milliseconds.
    return seconds - base - end, guard.clocked - base if guard is not None else 0.0, events


def overhead(data: Path, steps: int, methods: list[str], shapes: list[str]) -> None:
    """Seconds of plain and guarded runs of one seed, in turn, in one process.

    `guard` is the time of all that the guard does over the training's own time, both of one run, so that it holds on
    a machine that has other things to do as well, and `looking` that of its looks; `ratio` compares two runs, which
    differ by several percent even on a quiet one. All are without baseline and judgement at the end (`end`).
    """
    known: dict[str, Any] = {
        "plain": None,
        "default": lambda folder: Clocked(quiet=True),
        "every10": lambda folder: Clocked(every=10, quiet=True),
    }
    print(f"\n{steps} steps of {BATCH} dialogues of up to {LENGTH} tokens, {torch.get_num_threads()} threads")
    heads = f"{'seconds':>8} {'ratio':>7} {'looks':>6} {'items a look':>13} {'looking':>9} {'guard':>7}"
    heads += f" {'baseline':>9} {'end':>8}"
    print(f"{'method':8} {'run':8} {heads}", flush=True)
    for method in methods:
        plain: float | None = None
        for name in shapes:
            seconds, watching, events = timed(data, method, steps, known[name])
            plain = seconds if name == "plain" else plain
            looks = [e for e in events if e["event"] == "look"]
            items = [e["items"] for e in looks]
            spent, base, end = (
                sum(e["seconds"] for e in events if e["event"] == kind) for kind in ("look", "baseline", "gate")
            )
            shown = f"{min(items)}-{max(items)}" if items else ""
            ratio = f"{seconds / plain:7.3f}" if plain is not None else f"{'':7}"
            print(
                f"{method:8} {name:8} {seconds:8.1f} {ratio} {len(looks):6} {shown:>13} "
                f"{spent / (seconds - watching):9.1%} {watching / (seconds - watching):7.1%} {base:8.1f}s {end:7.1f}s",
                flush=True,
            )


def memory(data: Path) -> None:
    """Peak resident memory of runs with and without a guard, each in a process of its own."""
    print("\npeak resident memory of a run of 6 steps, MiB")
    for method in ("lora", "full"):
        found = {}
        for name in ("plain", "watch", "rollback"):
            child = os.fork()
            if child == 0:
                with scratch() as folder:
                    guard = None
                    if name != "plain":
                        policy = "rollback" if name == "rollback" else "warn"
                        # What a look takes beside the weights is a batch, however many items there are.
                        suite = Suite.repertoire().sample(24)
                        guard = Guard(suite, looks=2, cache=False, quiet=True, on_regression=policy)
                    trainer(data, folder, guard, method=method, rate=1e-4, steps=6).train()
                os._exit(0)
            usage = os.wait4(child, 0)[2]
            found[name] = usage.ru_maxrss / 1024
        extra = {name: found[name] - found["plain"] for name in ("watch", "rollback")}
        print(
            f"{method:6} plain {found['plain']:7.0f}   watching {extra['watch']:+7.0f}   "
            f"with rollback {extra['rollback']:+7.0f}",
            flush=True,
        )


# Whether it sees.


def detect(data: Path, method: str, rate: float, seed: int) -> dict[str, Any]:
    """One guarded run; a full evaluation of its final model at one look; and what the looks said before."""
    with scratch() as folder:
        guard = Guard(Suite.repertoire().sample(EACH), looks=LOOKS, quiet=True)
        begin = time.perf_counter()
        trainer(data, folder, guard, method=method, rate=rate, steps=STEPS, seed=seed).train()
        seconds = time.perf_counter() - begin
        run = RunFolder(folder / "backslide")
        last, final, baseline = run.steps()[-1], Record.load(run.final), Record.load(run.baseline)
        whole = Record(final.header, (*last.outcomes, *(o for o in final.outcomes if o.kind != "open")))
        judged = {"gate half": judge(baseline, final), "both halves": judge(baseline, whole, level=Level(fail=0.05))}
        losses = [e for e in run.events() if e["event"] == "loss" and e.get("loss") is not None]
    looks = []
    for look in guard.looks:
        row = main_row(look)
        assert row is not None
        looks.append({"step": look.step, "zone": look.zone.value, "lost": row.lost, "won": row.won})
    assert guard.verdict is not None
    return {
        "method": method,
        "rate": rate,
        "seed": seed,
        "steps": STEPS,
        "items": len(baseline.outcomes),
        "alarm": guard.regressed_at,
        "verdict": guard.verdict.zone.value,
        "full": {
            name: {"zone": v.zone.value, "drop": None if (r := main_row(v)) is None else r.drop, "reason": v.reasons[0]}
            for name, v in judged.items()
        },
        "looks": looks,
        "loss": [losses[0]["loss"], losses[-1]["loss"]] if losses else None,
        "seconds": round(seconds, 1),
    }


def detection(data: Path, only: str | None, methods: list[str]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    # The rates that forget most first, one seed after the other: an early end leaves a table that says something.
    for seed in SEEDS:
        for place in range(5)[::-1]:
            for method in methods:
                rate = RATES[method][place]
                name = f"{method}-{rate:g}-{seed}"
                path = RESULTS / f"{name}.json"
                if path.exists() or (only is not None and name != only):
                    continue
                found = detect(data, method, rate, seed)
                write_json(path, found)
                print(name, found["alarm"], found["verdict"], found["full"], f"{found['seconds']} s", flush=True)


def onset(run: dict[str, Any]) -> int | None:
    """The step from which the abilities fell: of the first look from which on the drop stays above a fifth of its top.

    The drop is that in right answers, all items together.
    """
    drops = [(look["step"], look["lost"] - look["won"]) for look in run["looks"]]
    top = max(drop for _, drop in drops)
    if top <= 0:
        return None
    for place, (step, _) in enumerate(drops):
        if all(drop > top / 5 for _, drop in drops[place:]):
            return int(step)
    return None


def table() -> None:
    runs = [read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    heads = f"{'loss':>12} {'lost/won':>9} {'alarmed at':>14} {'proven after':>13} {'drop':>7}"
    print(f"\n{'method':7} {'rate':>7} {'seeds':>5} {heads}")
    for method, rates in RATES.items():
        for rate in rates:
            group = [r for r in runs if (r["method"], r["rate"]) == (method, rate)]
            if not group:
                continue
            last = [r["looks"][-1] for r in group]
            flips = f"{sum(x['lost'] for x in last)}/{sum(x['won'] for x in last)}"
            alarms = ", ".join(str(r["alarm"] or "–") for r in group)
            proven = sum(r["full"]["both halves"]["zone"] == "regressed" for r in group)
            drop = statistics.mean(r["full"]["both halves"]["drop"] for r in group)
            loss = statistics.mean(r["loss"][1] for r in group)
            first = statistics.mean(r["loss"][0] for r in group)
            print(
                f"{method:7} {rate:7g} {len(group):5} {first:5.2f} → {loss:4.2f} {flips:>9} {alarms:>14} "
                f"{proven:>9} of {len(group)} {drop:7.1%}"
            )
    for arbiter in ("gate half", "both halves"):
        lost = [r for r in runs if r["full"][arbiter]["zone"] == Zone.REGRESSED]
        kept = [r for r in runs if r["full"][arbiter]["zone"] == Zone.RETAINED]
        seen = sum(r["alarm"] is not None for r in lost)
        rest = [r for r in runs if r not in lost and r not in kept]
        print(
            f"\nfull evaluation on the {arbiter}: {len(lost)} of {len(runs)} runs proven regressed, {seen} of them "
            f"alarmed during training; {len(kept)} proven retained, "
            f"{sum(r['alarm'] is not None for r in kept)} alarmed; "
            f"{len(rest)} undecided, {sum(r['alarm'] is not None for r in rest)} of them alarmed"
        )
        for r in lost:
            if r["alarm"] is None:
                print(f"  not alarmed: {r['method']} {r['rate']:g} seed {r['seed']}: {r['full'][arbiter]['reason']}")
    delays = [r["alarm"] - start for r in runs if r["alarm"] is not None and (start := onset(r)) is not None]
    if delays:
        print(
            f"\nmedian delay from onset to alarm: {statistics.median(delays):g} steps of {STEPS} ({len(delays)} alarms)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "memory", "detection", "table"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--method", choices=("lora", "full"), action="append")
    parser.add_argument("--run", choices=("plain", "default", "every10"), action="append")
    parser.add_argument("--only")
    asked = parser.parse_args()
    if asked.what != "table" and not (asked.data / "dialogues").is_dir():
        raise SystemExit(f"{asked.data}: has no dialogues; give the folder with --data")
    if asked.what == "overhead":
        overhead(
            asked.data, asked.steps, asked.method or ["lora", "full"], asked.run or ["plain", "default", "every10"]
        )
    elif asked.what == "memory":
        memory(asked.data)
    elif asked.what == "detection":
        detection(asked.data, asked.only, asked.method or ["full", "lora"])
        table()
    else:
        table()


if __name__ == "__main__":
    main()
