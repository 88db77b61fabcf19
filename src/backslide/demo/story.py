"""Two fine-tunes of one small chat model on the same dialogues: one keeps what the model could do, one forgets. Then
the one that forgot is repaired, and made again under a guard that acts.

Nothing is typed in: every number on the screen is computed from the runs' folders. All runs are in fp32, the one dtype
that is fast enough on every CPU, so that one baseline serves them all.
"""

from __future__ import annotations

import importlib.resources
import time
from pathlib import Path
from typing import Any

from rich.text import Text

from backslide.config import DataSection, GuardSection, ModelSection, OutputSection, TrainSection, TuneConfig
from backslide.data import TrainingData
from backslide.demo.mark import Mark
from backslide.demo.mending import mend, trained
from backslide.demo.screen import Screen, heading
from backslide.errors import ConfigError
from backslide.files import write_text
from backslide.models import BUILTIN, load_model
from backslide.record import Record
from backslide.report.summary import Summary, accuracies
from backslide.report.terminal import accuracy_table, replies_table, runs_table, verdict_table
from backslide.report.text import plain
from backslide.scoring.engine import Scorer, Settings
from backslide.suite.item import OpenItem
from backslide.suite.suite import Suite
from backslide.verdict import Zone
from backslide.version import __version__

SETTINGS = Settings(max_new_tokens=24)
STEPS, EVERY, BATCH = 24, 12, 3
DIALOGUES = 3
"""Seen again and again, as few examples are. `docs/LOG.md` has what more dialogues do: less harm, at the same rate."""

EACH = 18
"""Items of a capability, so that the story is told within eight minutes in fp32 on two cores without AVX-512."""

RUNS: dict[str, dict[str, Any]] = {
    "conservative": {"method": "lora", "learning_rate": 5e-5, "scheduler": "linear"},
    "aggressive": {"method": "full", "learning_rate": 5e-4, "scheduler": "constant"},
}
"""LoRA with r = 8 and α = 16 (the defaults of `[lora]`), and all weights at ten times the rate, kept up."""

EXPECTED = {"conservative": (Zone.RETAINED, Zone.UNDECIDED), "aggressive": (Zone.REGRESSED,)}
"""What the story says; where a run ends otherwise, the demo says so and fails."""


def tell(screen: Screen, out: Path, *, dialogues: int = DIALOGUES, suite: Suite | None = None) -> bool:
    """Run the demo; True where all ended as the story says.

    One that was interrupted in the same folder goes on: what it had measured and trained is not made again.

    Args:
        screen: where it is told.
        out: folder in which `conservative`, `aggressive`, `auto` and `repaired` are made.
        dialogues: how many of the 64 customer-support dialogues are trained on.
        suite: what the model is asked. Default: of the bundled repertoire, `EACH` items of every capability.

    Raises:
        ConfigError: there are not so many dialogues.
    """
    begin = time.perf_counter()
    asked = ""
    if suite is None:
        whole = Suite.repertoire()
        suite, asked = whole.sample(EACH), f" of the {len(whole.items)} in the repertoire"
    train, held_out = _dialogues(out, dialogues)
    mark = Mark(out, {"version": __version__, "dialogues": dialogues, "suite": suite.hash})
    if mark.goes_on:
        screen.say(f"{out}: goes on with the demo that was interrupted there")
    heading(screen, "1. What the base model can do", f"{BUILTIN}, {len(suite.items)} items{asked}, before any training")
    baseline = _baseline(screen, suite, mark)
    configs = {name: _config(name, out / name, train, held_out) for name in RUNS}
    runs = {
        name: _run(screen, number, name, config, suite, baseline, mark)
        for number, (name, config) in enumerate(configs.items(), start=2)
    }
    heading(screen, "4. Side by side", "the verdict is given on the gate half, which the runs never saw before")
    screen.show(runs_table(runs))
    for name, summary in runs.items():
        screen.show(Text(f"{name}, capability by capability", style="bold"))
        screen.show(verdict_table(summary.verdict))
    screen.show(replies_table([summary.replies for summary in runs.values()], list(runs)))
    for name, summary in runs.items():
        _explain(screen, name, summary)
    mended = mend(screen, out, configs["aggressive"], suite, SETTINGS, runs["aggressive"], mark)
    screen.show(Text("Written:", style="bold"))
    for run in (*(summary.run for summary in runs.values()), mended.again.run):
        screen.show(f"  {run.page}")
    screen.show(f"  {mended.repaired.out / 'backslide' / 'report.html'}")
    mark.end()
    screen.show(f"\nDone in {time.perf_counter() - begin:.0f} s.")
    verdicts = {name: summary.verdict for name, summary in runs.items()}
    other = {f"{name} run": verdict for name, verdict in verdicts.items() if verdict.zone not in EXPECTED[name]}
    other |= mended.failed
    for name, verdict in other.items():
        screen.show(Text(f"The {name} ended otherwise than the story says: {verdict}", style="bold red"))
    return not other


def _baseline(screen: Screen, suite: Suite, mark: Mark) -> Record:
    loaded = load_model(BUILTIN, dtype="float32", say=screen.say)
    scorer = Scorer(suite, loaded.model, loaded.tokenizer, SETTINGS)
    header = scorer.header(loaded.model, name=BUILTIN)
    journal = mark.journal(header, screen.say)
    try:
        record = scorer.measure(
            loaded.model, header=header, probe=True, known=journal.known(), keep=journal.keep, progress=screen.progress
        )
    finally:
        journal.close(done=False)
    for item in suite.items:
        if isinstance(item, OpenItem):
            screen.show(Text.assemble(("  Q  ", "bold"), item.prompt))
            screen.show(Text.assemble(("  A  ", "bold"), plain(record.replies.get(item.id, ""), 200)))
    screen.show(accuracy_table(accuracies(record)))
    return record


def _run(
    screen: Screen, number: int, name: str, config: TuneConfig, suite: Suite, baseline: Record, mark: Mark
) -> Summary:
    how = "LoRA r=8, alpha 16" if config.train.method == "lora" else "full fine-tuning"
    rows = len(TrainingData.load(config.data.train).rows)
    title = f"{number}. {'A conservative' if name == 'conservative' else 'An aggressive'} fine-tune"
    heading(screen, title, f"{how}, learning rate {config.train.rate:g}, on {rows} customer-support dialogues")
    summary = trained(screen, config, suite, baseline, SETTINGS, mark)
    train, made, planned = summary.losses.train, summary.setup.get("steps"), summary.setup.get("max_steps")
    if train:
        screen.show(f"  training loss {train[0][1]:.2f} → {train[-1][1]:.2f} in {made} steps")
    if summary.diagnosis.regressed_at is not None:
        early = (
            f"; the guard stopped the run there, {planned - made} steps early"
            if summary.stopped_at and planned is not None and made is not None
            else ""
        )
        screen.show(Text(f"  Regression proven at step {summary.diagnosis.regressed_at}{early}.", style="bold red"))
    return summary


def _explain(screen: Screen, name: str, summary: Summary) -> None:
    screen.show(Text(f"What happened in the {name} run", style="bold"))
    for sentence in summary.diagnosis.story:
        screen.show(f"  {sentence}")
    if summary.diagnosis.causes:
        screen.show("  Likely causes, the likeliest first:")
        for cause in summary.diagnosis.causes:
            screen.show(f"  - {cause.name}: {cause.evidence}")
    if summary.diagnosis.advice:
        screen.show("  What to change:")
        for line in summary.diagnosis.advice:
            screen.show(f"  - {line}")
    screen.show()


def _config(name: str, folder: Path, train: Path, held_out: Path) -> TuneConfig:
    return TuneConfig(
        model=ModelSection(base=BUILTIN, dtype="float32"),
        data=DataSection(train=str(train), held_out=str(held_out)),
        train=TrainSection(**RUNS[name], steps=STEPS, batch_size=BATCH, max_length=128),
        guard=GuardSection(every=EVERY, on_regression="stop"),
        output=OutputSection(dir=str(folder)),
    )


def _dialogues(out: Path, count: int) -> tuple[Path, Path]:
    """Copy the training data into `out`, so that the runs' configurations can be used again."""
    data = importlib.resources.files("backslide.demo") / "data"
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    if not 1 <= count <= len(lines):
        raise ConfigError(f"--dialogues is {count}, a number from 1 to {len(lines)} is needed")
    train, held_out = out / "dialogues.jsonl", out / "held_out.jsonl"
    write_text(train, "".join(lines[:count]))
    write_text(held_out, (data / "heldout.jsonl").read_text(encoding="utf-8"))
    return train, held_out
