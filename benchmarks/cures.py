"""What each cure buys and costs on a real model: one small file a run, and the table of them all.

    python benchmarks/cures.py run [--only PREFIX,PREFIX] [--minutes 60]
    python benchmarks/cures.py again [--only PREFIX,PREFIX] [--minutes 60]
    python benchmarks/cures.py list
    python benchmarks/cures.py table
    python benchmarks/cures.py rounding

SmolLM2-135M in bf16 on the dialogues of `--data` (default: ../shared/data); target = loss on held-out dialogues.
Retention on ARC-Easy, PIQA and `EACH` items of each capability of the repertoire. Each run leaves
benchmarks/results/cures/NAME.json; one that is there already is not made again, and `run` goes on where it was
interrupted. Where the CPU has no bf16, its products are made in fp32 (`half.py`), and the files say so. `again` trains
those once more that were made before the KL to the base was measured on old text (`cures_again.py`). `table` writes the
table and the plot into docs/ from the files that are there; `rounding` prints how many of the base's weights are too
large for a step of full fine-tuning to change them in bf16.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from cures_data import BATCH, BUILD, HELD_OUT, LENGTH, dialogues, original, suites
from cures_kl import divergences
from cures_plan import FORGETS, RESULTS, Run, planned, runs
from cures_table import publish
from half import quicken
from torch.nn.functional import log_softmax
from transformers import PrinterCallback, TrainerCallback

from backslide.cure.anchor import Anchor
from backslide.cure.line import open_line
from backslide.cure.replay import Replay
from backslide.cure.synthesis import synthesise
from backslide.files import write_json
from backslide.guard.callback import Guard
from backslide.models import BUILTIN, load_model, quiet
from backslide.record import Record, pair
from backslide.scoring.engine import Scorer

# One run.


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="cures-") as folder:
        yield Path(folder)
    gc.collect()


def records(data: Path, model: Any, tokenizer: Any) -> dict[str, Record]:
    """What a model does on all suites."""
    return {name: Scorer(suite, model, tokenizer).measure(model, part="all") for name, suite in suites(data).items()}


def base(data: Path) -> dict[str, Record]:
    """The same of the base, measured once and kept in build/."""
    paths = {name: BUILD / f"base-{name}-{suite.hash[:12]}.jsonl" for name, suite in suites(data).items()}
    if not all(path.is_file() for path in paths.values()):
        loaded = load_model(BUILTIN, dtype="bfloat16")
        for name, record in records(data, loaded.model, loaded.tokenizer).items():
            record.save(paths[name])
    return {name: Record.load(path) for name, path in paths.items()}


def trainer(data: Path, folder: Path, run: Run, guard: Guard | None) -> Any:
    """The fine-tune of a run, with its cures."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = dialogues(data)[:-HELD_OUT]
    random.Random(run.seed).shuffle(rows)
    loaded = load_model(BUILTIN, dtype="bfloat16")
    disable_progress_bar()
    cuda = torch.cuda.is_available()
    args = SFTConfig(
        output_dir=str(folder), learning_rate=run.rate, max_steps=run.steps, per_device_train_batch_size=BATCH,
        max_length=LENGTH, lr_scheduler_type="constant", seed=run.seed, bf16=False, gradient_checkpointing=False,
        use_cpu=not cuda, dataloader_pin_memory=cuda, logging_steps=5, save_strategy="no", report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    lora = LoraConfig(r=run.rank, lora_alpha=2 * run.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with quiet():
        made = SFTTrainer(
            loaded.model, args=args, train_dataset=Dataset.from_list(rows), processing_class=loaded.tokenizer,
            peft_config=lora if run.method == "lora" else None, callbacks=[guard] if guard is not None else [],
        )  # fmt: skip
    made.remove_callback(PrinterCallback)
    return made


def cured(data: Path, folder: Path, run: Run) -> tuple[Any, Guard | None]:
    """The trainer of a run with its replay, anchor and guard."""
    suite, cures, guard = suites(data)["repertoire"], {}, None
    auto = run.policy == "auto"
    if run.policy is not None:
        guard = Guard(
            suite, looks=5, quiet=True, on_regression=run.policy,
            replay=(lambda: cures["replay"].more()) if auto else None,
            anchor=(lambda: cures["anchor"].more()) if auto else None,
        )  # fmt: skip
    made = trainer(data, folder, run, guard)
    rows: list[Any] = original(data) if run.source == "own" else []
    anchored = rows
    if not rows and (run.replay or run.anchor or auto):
        said = synthesise(made.model, made.processing_class, out=folder / "replies.jsonl", suite=suite)
        rows, anchored = list(said.rows), [*said.rows, *said.unended]
    if run.replay or auto:
        cures["replay"] = Replay(rows, run.replay, seed=run.seed, suite=suite).attach(made)
    if run.anchor or auto:
        cures["anchor"] = Anchor(anchored, run.anchor, seed=run.seed, max_length=LENGTH, suite=suite).attach(made)
    return made, guard


@torch.no_grad()
def held_out(data: Path, model: Any, before: Any, tokenizer: Any) -> dict[str, float]:
    """Loss of the new task, and KL to the base (0 where none is given) on it, in nats a token."""
    loss = kl = tokens = 0.0
    for row in dialogues(data)[-HELD_OUT:]:
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_tensors="pt")["input_ids"]
        ids = ids[:, :LENGTH].to(model.device)
        now = log_softmax(model(ids).logits[0, :-1].float(), -1)
        loss -= float(now.gather(1, ids[0, 1:, None]).sum())
        if before is not None:
            then = log_softmax(before(ids).logits[0, :-1].float(), -1)
            kl += float((then.exp() * (then - now)).sum())
        tokens += ids.shape[1] - 1
    return {"loss": loss / tokens, "kl": kl / tokens}


def moved(model: Any, before: Any) -> float:
    """How far the weights went, as a share of their length."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    new = dict(model.named_parameters())
    far = long = 0.0
    for name, old in before.named_parameters():
        far += float((new[name].detach().double() - old.detach().double()).square().sum())
        long += float(old.detach().double().square().sum())
    return math.sqrt(far / long)


def compared(old: Record, new: Record) -> dict[str, Any]:
    """Accuracy before and after, what was lost and won, and bits per byte of the texts."""
    pairs = pair(old, new)
    rated = [(a, b) for a, b in pairs if a.correct is not None]
    texts = [(a.bits_per_byte, b.bits_per_byte) for a, b in pairs if a.bits_per_byte is not None]
    found: dict[str, Any] = {
        "items": len(rated),
        "before": fmean(bool(a.correct) for a, _ in rated),
        "after": fmean(bool(b.correct) for _, b in rated),
        "lost": sum(bool(a.correct) and not b.correct for a, b in rated),
        "won": sum(not a.correct and bool(b.correct) for a, b in rated),
    }
    if texts:
        found["bits"] = [fmean(a for a, _ in texts), fmean(b for _, b in texts if b is not None)]
    return found


class Checkpoints(TrainerCallback):
    """The target's loss at each look of a guard: what the states that a run went through would have been worth."""

    def __init__(self, data: Path, guard: Guard, tokenizer: Any) -> None:
        self.data, self.guard, self.tokenizer = data, guard, tokenizer
        self.found: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure, where the guard has just looked."""
        if len(self.guard.looks) == len(self.found):
            return
        was = model.training
        loss = held_out(self.data, model.eval(), None, self.tokenizer)["loss"]
        model.train(was)
        self.found.append({"step": state.global_step, "zone": self.guard.looks[-1].zone.value, "loss": loss})


def tuned(data: Path, seed: int) -> Path:
    """The adapter that the run `FORGETS` left, kept in build/ and trained where it is not there."""
    folder = BUILD / f"tuned-{seed}"
    if not (folder / "adapter_config.json").is_file():
        with scratch() as place:
            made = trainer(data, place, Run(group="rate", **FORGETS, seed=seed), None)
            made.train()
            made.save_model(str(folder))
    return folder


def result_of(data: Path, run: Run, model: Any, tokenizer: Any) -> dict[str, Any]:
    """What a model that a run left does."""
    baseline = base(data)
    found = {name: compared(baseline[name], new) for name, new in records(data, model, tokenizer).items()}
    before = load_model(BUILTIN, dtype="bfloat16").model
    target, start = held_out(data, model, before, tokenizer), held_out(data, before, None, tokenizer)
    return {
        **asdict(run), "retention": found, "target": {"before": start["loss"], "after": target["loss"]},
        "kl_new": target["kl"], **divergences(data, model), "moved": moved(model, before),
    }  # fmt: skip


def measure(data: Path, run: Run) -> dict[str, Any]:
    """Make a run and measure what it left."""
    begin = time.perf_counter()
    with scratch() as folder:
        if run.alpha is not None:
            open_line(BUILTIN, str(tuned(data, run.seed))).write(folder / "point", run.alpha)
            point = load_model(folder / "point", dtype="bfloat16")
            return {**result_of(data, run, point.model, point.tokenizer), "seconds": time.perf_counter() - begin}
        made, guard = cured(data, folder, run)
        checkpoints = None
        if guard is not None and run.policy == "warn":
            checkpoints = Checkpoints(data, guard, made.processing_class)
            made.add_callback(checkpoints)
        trained = time.perf_counter()
        made.train()
        trained = time.perf_counter() - trained
        if run == Run(group="rate", **FORGETS, seed=run.seed):
            made.save_model(str(BUILD / f"tuned-{run.seed}"))
        result: dict[str, Any] = {"seconds_training": trained}
        if guard is not None:
            assert guard.verdict is not None and guard.run is not None
            kinds = ("action", "tried", "effect")
            result["verdict"] = guard.verdict.zone.value
            result["events"] = [e["says"] for e in guard.run.events() if e["event"] in kinds]
            result["looks"] = [{"step": look.step, "zone": look.zone.value} for look in guard.looks]
            result["checkpoints"] = checkpoints.found if checkpoints is not None else None
        result |= result_of(data, run, made.model.eval(), made.processing_class)
    return {**result, "seconds": time.perf_counter() - begin}


def rounding() -> dict[float, float]:
    """Share of the base's weights that a step of the size of each full run's rate, up or down, leaves as they are.

    Adam's first steps are of that size; later ones are mostly smaller.
    """
    rates = sorted(point.rate for point in planned(group="rate", method="full"))
    model = load_model(BUILTIN, dtype="bfloat16").model
    weights = [weight.detach() for weight in model.parameters()]
    kept = dict.fromkeys(rates, 0)
    for weight in weights:
        for rate in rates:
            kept[rate] += sum(int((weight + step == weight).sum()) for step in (rate, -rate))
    return {rate: count / 2 / sum(weight.numel() for weight in weights) for rate, count in kept.items()}


def main() -> None:
    """Read the arguments and do as they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "again", "list", "table", "rounding"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--only", default="", help="runs whose name begins with one of these, commas between")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so many")
    asked = parser.parse_args()
    if asked.what == "table":
        print(publish())
        return
    if asked.what == "rounding":
        print(", ".join(f"{rate:g}: {share:.0%}" for rate, share in rounding().items()))
        return
    if asked.what in ("run", "again"):
        for folder in ("dialogues", "benchmarks"):
            if not (asked.data / folder).is_dir():
                raise SystemExit(f"{asked.data}: has no {folder}; give the folder with --data")
    end, wide = time.monotonic() + 60 * asked.minutes, asked.what in ("run", "again") and quicken()
    prefixes = tuple(asked.only.split(","))
    said = {"bf16": "in fp32"} if wide else {}
    if asked.what == "again":
        from cures_again import again, missing

        for wanted in missing(prefixes).values():
            if time.monotonic() < end:
                again(asked.data, wanted, **said)
        return
    for run in runs():
        path = RESULTS / f"{run.name}.json"
        if not run.name.startswith(prefixes):
            continue
        if asked.what == "list":
            print(run.name, "done" if path.exists() else "")
        elif not path.exists() and time.monotonic() < end:
            found = measure(asked.data, run) | said
            RESULTS.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
            kept = found["retention"]["repertoire"]
            print(
                f"{run.name}: target {found['target']['before']:.3f} → {found['target']['after']:.3f}, repertoire "
                f"{kept['before']:.1%} → {kept['after']:.1%}, {found['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
