"""The demo's third act: what forgot is repaired without training, and trained again under a guard that acts."""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from backslide.config import CureSection, OutputSection, TuneConfig
from backslide.cure.repair import Repaired, repair
from backslide.cure.target import TargetLoss
from backslide.data import TrainingData
from backslide.demo.mark import Mark
from backslide.demo.screen import Screen, heading
from backslide.errors import BusyError, ConfigError
from backslide.files import write_text
from backslide.models import load_model
from backslide.record import Record
from backslide.report.line import line_table
from backslide.report.summary import Reply, Summary
from backslide.report.terminal import headline, outcomes_table, replies_table
from backslide.report.text import plain
from backslide.rundir import RunFolder
from backslide.scoring.engine import Settings
from backslide.suite.suite import Suite
from backslide.tune import tune
from backslide.verdict import Verdict, Zone

PROMPTS = "prompts.jsonl"
"""What the base replies to: of the bundled prompts some that it answers in a line, so that it takes seconds. Replay and
anchor would practise it; of two looks the second is the last, at which only the weights are mended, so here they hardly
ever come in."""


@dataclass(frozen=True)
class Mended:
    """The outcomes of the act."""

    repaired: Repaired
    again: Summary

    @property
    def failed(self) -> dict[str, Verdict]:
        """What ended otherwise than the story says: both are to be sound."""
        found = {"repair": self.repaired.verdict} if self.repaired.at is None else {}
        return found | ({"auto run": self.again.verdict} if self.again.verdict.zone is Zone.REGRESSED else {})


def mend(
    screen: Screen, out: Path, config: TuneConfig, suite: Suite, settings: Settings, forgot: Summary, mark: Mark
) -> Mended:
    """Repair the run that forgot, and train it again with `on_regression = "auto"`.

    Args:
        screen: where it is told.
        out: the demo's folder; `repaired` and `auto` are made in it.
        config: of the run that forgot.
        suite: what was asked.
        settings: how it was asked.
        forgot: the run that forgot.
        mark: of the story.
    """
    heading(screen, "5. The model that forgot, repaired", "no training: the line from the base to it is searched")
    repaired = _repaired(screen, out / "repaired", config.model.base, forgot, suite)
    rate = config.train.rate
    heading(screen, "6. The same fine-tune under a guard that acts",
            f'learning rate {rate:g} as before, on_regression = "auto": the guard cures')  # fmt: skip
    again = _again(screen, out / "auto", config, suite, settings, forgot, mark)
    heading(screen, "7. What came of it", "what is left of the abilities, and what was learnt of the new task")
    _show(screen, config, forgot, repaired, again)
    return Mended(repaired, again)


def _repaired(screen: Screen, out: Path, base: str, forgot: Summary, suite: Suite) -> Repaired:
    def again() -> Repaired:
        tuned = str(forgot.run.path / "model")
        return repair(base, tuned, out, suite=suite, say=screen.say, progress=screen.progress)

    try:
        done = again()
    except BusyError:
        raise
    except ConfigError:
        if not (out / "backslide" / "run.json").is_file():
            raise
        # An earlier demo's, of other weights. Renamed first, so that no half of it is ever left at its place.
        old = out.with_name(f".{out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        shutil.rmtree(old)
        done = again()
    screen.show(line_table(done.points, done.at))
    if done.at is None:
        screen.show(headline(done.verdict))
    else:
        for line in done.balance.lines:
            screen.show(f"  {plain(line)}")
    return done


def _again(
    screen: Screen, out: Path, config: TuneConfig, suite: Suite, settings: Settings, forgot: Summary, mark: Mark
) -> Summary:
    prompts = out.with_name(PROMPTS)
    bundled = importlib.resources.files("backslide.demo") / "data" / PROMPTS
    write_text(prompts, bundled.read_text(encoding="utf-8"))
    config = dataclasses.replace(
        config,
        guard=dataclasses.replace(config.guard, on_regression="warn"),
        cure=CureSection(on_regression="auto", prompts=str(prompts)),
        output=OutputSection(dir=str(out)),
    )
    summary = trained(screen, config, suite, forgot.baseline, settings, mark)
    for event in summary.run.events():
        if event.get("event") in ("tried", "action", "effect"):
            screen.show(f"  step {event['step']}: {plain(str(event['says']), 300)}")
    return summary


def trained(
    screen: Screen, config: TuneConfig, suite: Suite, baseline: Record, settings: Settings, mark: Mark
) -> Summary:
    """The run of a configuration: made, gone on with, or, where the interrupted story had ended it, read."""
    if (summary := mark.run(config, suite.hash)) is not None:
        screen.say(f"{config.folder}: the run there has ended already")
        return summary
    # An earlier demo's weights are half a gigabyte and can be made again; its measurements are kept.
    shutil.rmtree(config.folder / "model", ignore_errors=True)
    tuned = tune(config, suite=suite, baseline=baseline, settings=settings, say=screen.say, progress=screen.progress)
    return Summary.of(tuned.run)


def _show(screen: Screen, config: TuneConfig, forgot: Summary, repaired: Repaired, again: Summary) -> None:
    balance = repaired.balance
    mended = Summary.of(RunFolder(repaired.out / "backslide"))
    # All by one measure: a trainer's own loss is the mean over batches.
    columns: dict[str, tuple[Verdict, float | None]] = {
        "as it was": (forgot.verdict, balance.tuned_loss),
        "repaired": (repaired.verdict, balance.repaired_loss),
        "auto": (again.verdict, _held_out(config, again.run.path / "model")),
    }
    screen.show(outcomes_table(columns, start=balance.base_loss))
    replies: list[tuple[Reply, ...]] = [forgot.replies, mended.replies, again.replies]
    screen.show(replies_table(replies, list(columns)))
    for name, (verdict, _) in columns.items():
        screen.show(Text.assemble((f"{name}: ", "bold"), headline(verdict)))
    screen.show()


def _held_out(config: TuneConfig, model: Path) -> float | None:
    if config.data.held_out is None:
        return None
    loaded = load_model(model, dtype=config.model.dtype)
    data = TrainingData.load(config.data.held_out)
    loss = TargetLoss(data, loaded.tokenizer, config.train.max_length).measure(loaded.model)
    return loss if math.isfinite(loss) else None
