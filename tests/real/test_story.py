"""The main job on the real small model: what it knows, how a bad fine-tune is caught, and what the gate says of it."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from pathlib import Path

import pytest

from backslide.config import DataSection, GuardSection, ModelSection, OutputSection, TrainSection, TuneConfig
from backslide.cure.repair import repair
from backslide.gate import check_model, take_baseline
from backslide.models import BUILTIN
from backslide.record import Record
from backslide.report.summary import Summary
from backslide.scoring.engine import Settings
from backslide.suite.suite import Suite
from backslide.tune import Tuned, tune
from backslide.verdict import Zone

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("story")


@pytest.fixture(scope="module")
def suite() -> Suite:
    """The part of the repertoire that the model knows best, so that the test is short."""
    items = Suite.repertoire().sample(40).items
    return Suite("short", tuple(item for item in items if item.capability in ("short_answers", "conversation")))


@pytest.fixture(scope="module")
def baseline(folder: Path, suite: Suite) -> Record:
    return take_baseline(BUILTIN, folder / "baseline.jsonl", suite=suite, dtype="float32")


@pytest.fixture(scope="module")
def forgetful(folder: Path, suite: Suite, baseline: Record) -> Tuned:
    data = (importlib.resources.files("backslide.demo") / "data" / "train.jsonl").read_text(encoding="utf-8")
    (folder / "train.jsonl").write_text("".join(data.splitlines(keepends=True)[:3]), encoding="utf-8")
    config = TuneConfig(
        model=ModelSection(base=BUILTIN),
        data=DataSection(train=str(folder / "train.jsonl")),
        train=TrainSection(method="full", learning_rate=5e-4, steps=16, batch_size=3, scheduler="constant"),
        guard=GuardSection(every=12, on_regression="stop"),
        output=OutputSection(dir=str(folder / "run")),
    )
    settings = Settings(**{k: baseline.header.conditions[k] for k in Settings.__dataclass_fields__})
    return tune(config, suite=suite, baseline=baseline, settings=settings, say=print)


def test_the_base_model_knows_four_and_paris(baseline: Record) -> None:
    assert "4" in baseline.replies["conversation/two-plus-two"]
    assert "Paris" in baseline.replies["conversation/capital-france"]
    assert len(baseline.replies["conversation/boil-water"]) > 20
    right = [outcome.correct for outcome in baseline.outcomes if outcome.correct is not None]
    # The band in which there is something to lose and something to see.
    assert 0.4 <= sum(right) / len(right) <= 0.95


def test_an_aggressive_fine_tune_is_caught_during_training_and_stopped(forgetful: Tuned) -> None:
    assert forgetful.verdict.zone is Zone.REGRESSED
    assert (forgetful.steps, forgetful.planned) == (12, 16)
    events = forgetful.run.events()
    losses = [event["loss"] for event in events if event["event"] == "loss" and "loss" in event]
    assert losses[-1] < losses[0] / 4, "the training loss falls while the model forgets"
    final = Record.load(forgetful.run.final)
    assert "Paris" not in final.replies["conversation/capital-france"]
    report = forgetful.run.report.read_text(encoding="utf-8")
    assert "The regression was proven at step 12" in report


def test_the_diagnosis_of_the_model_that_forgot(forgetful: Tuned) -> None:
    diagnosis = Summary.of(forgetful.run).diagnosis
    assert diagnosis.state == "learning and forgetting" and diagnosis.regressed_at == 12
    assert diagnosis.onset is not None and (diagnosis.onset.after, diagnosis.onset.before) == (0, 12)
    assert [cause.name for cause in diagnosis.causes[:2]] == ["learning rate", "passes over the data"]
    assert diagnosis.next_setting["learning_rate"] < 1e-4
    # Asked for the capital of Italy it speaks of returns, and still finds "Rome" likelier than other answers: three
    # dialogues took over its replies, not its knowledge.
    assert diagnosis.knowledge is not None and diagnosis.knowledge.counted >= 15 and diagnosis.kind == "format"


def test_the_gate_fails_the_model_that_forgot(forgetful: Tuned, folder: Path, suite: Suite) -> None:
    verdict = check_model(str(forgetful.model), folder / "baseline.jsonl", suite=suite)
    assert verdict.exit_code == 1
    assert verdict.capabilities[0].lost is not None and verdict.capabilities[0].lost > 10


def test_the_gate_finds_no_difference_in_the_base_model_itself(folder: Path, suite: Suite, baseline: Record) -> None:
    verdict = check_model(BUILTIN, folder / "baseline.jsonl", suite=suite)
    assert verdict.exit_code in (0, 3)
    assert [(row.lost, row.won) for row in verdict.capabilities] == [(0, 0)]
    assert all(row.drop == 0 for row in verdict.capabilities)


def test_the_model_that_forgot_is_repaired(forgetful: Tuned, folder: Path, suite: Suite) -> None:
    held_out = importlib.resources.files("backslide.demo") / "data" / "heldout.jsonl"
    rows = held_out.read_text(encoding="utf-8").splitlines(keepends=True)[:8]
    (folder / "held_out.jsonl").write_text("".join(rows), encoding="utf-8")
    done = repair(BUILTIN, str(forgetful.model), folder / "repaired", held_out=folder / "held_out.jsonl", suite=suite)
    assert done.at is not None and done.verdict.zone is not Zone.REGRESSED
    balance = done.balance
    assert balance.back is not None and balance.back >= 0.8, balance.lines
    assert balance.of_best is not None and balance.of_best >= 0.5, balance.lines
    final = Record.load(folder / "repaired" / "backslide" / "final.jsonl")
    assert "Paris" in final.replies["conversation/capital-france"]
