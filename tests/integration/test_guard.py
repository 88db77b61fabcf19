"""The guard in a trainer: when it refuses, what it does about a verdict, and how a run is taken up again."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import Trainer, TrainerCallback, TrainingArguments

from backslide.errors import ConfigError, InputError, MismatchError, SuiteError
from backslide.guard.callback import Guard
from backslide.models import load_model, model_fingerprint
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.scoring.engine import Scorer, Settings
from backslide.suite.item import ChoiceItem, OpenItem
from backslide.suite.suite import Suite, half_of
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.verdict import Verdict, Zone

WRECK = 0.3
"""A learning rate after which nothing is left of the tiny model."""


def rows(count: int = 16) -> list[dict[str, list[int]]]:
    tokenizer = tiny_tokenizer()
    made = [tokenizer(f"example {i:02} of some text").input_ids[:20] for i in range(count)]
    return [{"input_ids": row, "labels": row} for row in made]


def trainer(folder: Path, *callbacks: TrainerCallback, model: Any = None, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-4, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "logging_steps": 1,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(folder), **{**defaults, **settings})
    return Trainer(
        tiny_model() if model is None else model, args, train_dataset=rows(), eval_dataset=rows(4),
        processing_class=tiny_tokenizer(), callbacks=[guard, *more],
    )  # fmt: skip


def quiet(line: str) -> None:
    """Nobody listens."""


def measured(suite: Suite, *, seed: int = 0, tokenizer: Any = None, settings: Settings | None = None) -> Record:
    model = tiny_model(seed=seed)
    return Scorer(suite, model, tokenizer or tiny_tokenizer(), settings).measure(model)


@pytest.mark.parametrize("lora", [False, True])
def test_the_five_lines_of_the_readme(tmp_path: Path, known_suite: Suite, lora: bool) -> None:
    """TRL's own defaults, mixed precision and gradient checkpointing among them."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"prompt": f"Question {i}?", "completion": f" Answer {i}."} for i in range(8)])
    args = SFTConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    assert args.bf16 and args.gradient_checkpointing
    adapter = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["lm_head"]) if lora else None

    guard = Guard(known_suite, on_regression="stop")
    made = SFTTrainer(
        tiny_model(), args=args, train_dataset=data, processing_class=tiny_tokenizer(), peft_config=adapter,
        callbacks=[guard],
    )  # fmt: skip
    made.train()

    assert guard.verdict is not None and guard.verdict.zone in (Zone.RETAINED, Zone.UNDECIDED)
    # The baseline is the bare model's, at full precision: a later `backslide check` meets the same conditions.
    alone = measured(known_suite)
    assert guard.baseline is not None and guard.baseline.outcomes == alone.outcomes
    assert guard.baseline.header.model_fingerprint == alone.header.model_fingerprint
    assert guard.baseline.header.conditions == alone.header.conditions
    run = tmp_path / "backslide"
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    steps = {f"steps/step-{step:06}.jsonl" for step in guard.run.config["looks"]}  # type: ignore[union-attr]
    assert files == {
        "run.json", "baseline.jsonl", "events.jsonl", "final.jsonl", "verdict.json", "report.md", *steps,
    }  # fmt: skip
    assert Record.load(run / "baseline.jsonl") == guard.baseline
    assert json.loads((run / "verdict.json").read_text())["zone"] == guard.verdict.zone.value
    kinds = [event["event"] for event in RunFolder(run).events()]
    assert kinds[0] == "baseline" and kinds[-2:] == ["gate", "end"] and kinds.count("look") == len(steps)
    # The final record is that of the model which the user holds now.
    assert guard.final is not None and guard.final.header.model_fingerprint == model_fingerprint(made.model)


def test_a_final_model_is_judged_as_it_loads_again(tmp_path: Path, known_suite: Suite) -> None:
    guard = Guard(known_suite, looks=1, say=quiet)
    made = trainer(tmp_path / "out", guard, bf16=True)
    made.train()
    made.save_model(str(tmp_path / "saved"))
    loaded = load_model(tmp_path / "saved", dtype="float32")
    again = Scorer(known_suite, loaded.model, loaded.tokenizer).measure(loaded.model, part="gate")
    assert guard.final is not None and again.outcomes == guard.final.outcomes


@pytest.mark.parametrize(
    ("policy", "stops"),
    [("warn", False), ("stop", True), (lambda verdict: "stop", True), (lambda verdict: None, False)],
)
def test_what_is_done_about_a_regression(tmp_path: Path, known_suite: Suite, policy: Any, stops: bool) -> None:
    guard = Guard(known_suite, every=2, on_regression=policy, say=quiet)
    made = trainer(tmp_path, guard, learning_rate=WRECK, lr_scheduler_type="constant")
    made.train()
    assert guard.verdict is not None and guard.verdict.zone is Zone.REGRESSED
    assert guard.regressed_at == 2
    assert made.state.global_step == (2 if stops else 6)
    assert [look.step for look in guard.looks] == ([2] if stops else [2, 4, 6])
    actions = [event["action"] for event in RunFolder(tmp_path / "backslide").events() if event["event"] == "action"]
    assert set(actions) == ({"stop"} if stops else {"warn"} if policy == "warn" else set())


def test_a_policy_that_raises_is_said_and_ends_nothing(tmp_path: Path, known_suite: Suite) -> None:
    def mistaken(verdict: Verdict) -> str:
        raise KeyError("oh")

    guard = Guard(known_suite, every=3, on_regression=mistaken, say=quiet)
    made = trainer(tmp_path, guard)
    made.train()
    assert made.state.global_step == 6
    actions = [event for event in RunFolder(tmp_path / "backslide").events() if event["event"] == "action"]
    assert len(actions) == 2 and all("KeyError" in event["reason"] for event in actions)


def test_a_harmless_run_is_not_regressed(tmp_path: Path, known_suite: Suite) -> None:
    guard = Guard(known_suite, every=2, on_regression="stop", say=quiet)
    made = trainer(tmp_path, guard, learning_rate=1e-6)
    made.train()
    assert made.state.global_step == 6 and guard.regressed_at is None
    assert guard.verdict is not None and guard.verdict.zone is not Zone.REGRESSED
    assert guard.verdict.pooled is not None and guard.verdict.pooled.baseline == 1.0


@pytest.mark.parametrize("filtered", [True, False])
def test_a_run_that_diverges_to_nan_is_regressed(tmp_path: Path, known_suite: Suite, filtered: bool) -> None:
    """With transformers' default the loss is filtered before anyone sees it; the weights are not."""
    guard = Guard(known_suite, every=3, on_regression="stop", say=quiet)

    class Overflow(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 1:
                with torch.no_grad():
                    model.model.norm.weight.fill_(math.nan)

    made = trainer(tmp_path, guard, Overflow(), logging_nan_inf_filter=filtered)
    made.train()
    assert made.state.global_step == 3
    assert guard.verdict is not None and guard.verdict.zone is Zone.REGRESSED
    reason = "loss is nan at step 2" if not filtered else "log-likelihood that is not finite"
    assert reason in guard.verdict.reasons[0]
    assert "NaN" not in (tmp_path / "backslide" / "verdict.json").read_text()
    assert RunFolder(tmp_path / "backslide").verdict() == guard.verdict
    assert reason in (tmp_path / "backslide" / "report.md").read_text()


# What is refused before the first step.


def other_suite(suite: Suite) -> Suite:
    first, *others = suite.items
    assert isinstance(first, ChoiceItem)
    return Suite(suite.name, (dataclasses.replace(first, gold=(first.gold + 1) % 4), *others))


def other_template() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|end|> ")
    return tokenizer


@pytest.mark.parametrize(
    ("baseline", "says"),
    [
        (lambda suite: measured(suite, seed=5), "other weights"),
        (lambda suite: measured(other_suite(suite)), "another suite"),
        (lambda suite: measured(suite, tokenizer=other_template()), "another tokenizer or chat template"),
        (lambda suite: measured(suite, tokenizer=tiny_tokenizer(chat=False)), "another tokenizer or chat template"),
        (lambda suite: measured(suite, settings=Settings(row_tokens=99)), "row_tokens = 99"),
        (lambda suite: Scorer(suite, tiny_model(), tiny_tokenizer()).measure(tiny_model(), part="gate"), "--part all"),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused(
    tmp_path: Path, known_suite: Suite, baseline: Callable[[Suite], Record], says: str
) -> None:
    baseline(known_suite).save(tmp_path / "given.jsonl")
    guard = Guard(known_suite, baseline=tmp_path / "given.jsonl", say=quiet)
    made = trainer(tmp_path / "out", guard)
    before = model_fingerprint(made.model)
    with pytest.raises(MismatchError, match=says):
        made.train()
    assert made.state.global_step == 0 and model_fingerprint(made.model) == before
    assert list((tmp_path / "out").iterdir()) == [], "no run folder is left"


def test_a_baseline_that_fits_is_taken(tmp_path: Path, known_suite: Suite) -> None:
    given = measured(known_suite)
    guard = Guard(known_suite, looks=1, baseline=given, say=quiet)
    trainer(tmp_path, guard).train()
    assert guard.baseline is given
    first = RunFolder(tmp_path / "backslide").events()[0]
    assert (first["event"], first["given"]) == ("baseline", True)


def test_a_suite_without_one_of_its_halves_is_refused_at_once(known_suite: Suite) -> None:
    for half in ("monitor", "gate"):
        one = Suite("one-sided", tuple(item for item in known_suite.items if half_of(item) == half))
        with pytest.raises(SuiteError, match=r"one-sided: its (monitor|gate) half has no item that can be judged"):
            Guard(one)
    talk = tuple(OpenItem(id=f"o{i}", capability="talk", prompt="Why?") for i in range(20))
    with pytest.raises(SuiteError, match="no item that can be judged"):
        Guard(Suite("talk", talk))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"every": 0}, "every is 0"),
        ({"every": 2, "looks": 2}, "both given"),
        ({"on_regression": "explode"}, "on_regression is 'explode'"),
        ({"tolerance": 1.5}, "1.5"),
        ({"alpha": 0}, "alpha is 0"),
        ({"suite": "nowhere.jsonl"}, "no such suite"),
        ({"baseline": "nowhere.jsonl"}, "no such file"),
    ],
)
def test_wrong_arguments_are_refused_at_once(known_suite: Suite, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Guard(**{"suite": known_suite, **arguments})


def test_a_trainer_without_a_tokenizer_is_refused(tmp_path: Path, known_suite: Suite) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    made = Trainer(tiny_model(), args, train_dataset=rows(), callbacks=[Guard(known_suite)])
    with pytest.raises(InputError, match="no tokenizer"):
        made.train()
    with pytest.raises(ConfigError):
        Guard(known_suite, looks=0)


# Runs that are taken up again.


class Killed(Exception):
    """The end of a run from outside."""


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Killed


SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "lr_scheduler_type": "constant"}


def test_a_resumed_run_ends_as_the_whole_one_does(tmp_path: Path, known_suite: Suite) -> None:
    whole = Guard(known_suite, every=2, say=quiet)
    trainer(tmp_path / "whole", whole, **SAVING).train()
    with pytest.raises(Killed):
        trainer(tmp_path / "cut", Guard(known_suite, every=2, say=quiet), KillAt(4), **SAVING).train()
    run = RunFolder(tmp_path / "cut" / "backslide")
    untrained, measured_before = (
        run.baseline.read_bytes(),
        [p.read_bytes() for p in sorted((run.path / "steps").iterdir())],
    )
    assert len(measured_before) == 2 and run.verdict() is None
    guard = Guard(known_suite, every=2, say=quiet)
    made = trainer(tmp_path / "cut", guard, model=tiny_model(seed=9), **SAVING)
    made.train(resume_from_checkpoint=True)
    assert run.baseline.read_bytes() == untrained and not (run.path / "earlier").exists()
    assert [p.read_bytes() for p in sorted((run.path / "steps").iterdir())][:2] == measured_before
    assert guard.baseline is not None and whole.baseline is not None and whole.final is not None
    assert guard.baseline.outcomes == whole.baseline.outcomes
    assert guard.looks == whole.looks and guard.verdict == whole.verdict
    assert guard.final is not None and guard.final.outcomes == whole.final.outcomes


def test_a_regression_before_the_checkpoint_is_remembered(tmp_path: Path, known_suite: Suite) -> None:
    with pytest.raises(Killed):
        trainer(tmp_path, Guard(known_suite, every=2, say=quiet), KillAt(4), **SAVING, learning_rate=WRECK).train()
    guard = Guard(known_suite, every=2, say=quiet)
    trainer(tmp_path, guard, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert guard.regressed_at == 2


def test_a_loss_that_was_not_finite_before_the_checkpoint_is_remembered(tmp_path: Path, known_suite: Suite) -> None:
    settings = {**SAVING, "logging_nan_inf_filter": False}
    first = trainer(tmp_path, Guard(known_suite, every=2, say=quiet), KillAt(4), **settings)
    plain = first.compute_loss
    # The loss of one step, whose gradient leaves no trace in the weights.
    first.compute_loss = lambda *args, **kwargs: (  # type: ignore[method-assign]
        torch.tensor(math.nan, requires_grad=True) if first.state.global_step == 1 else plain(*args, **kwargs)
    )
    with pytest.raises(Killed):
        first.train()
    guard = Guard(known_suite, every=2, say=quiet)
    trainer(tmp_path, guard, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert guard.verdict is not None and guard.verdict.zone is Zone.REGRESSED
    assert "loss is nan at step 2" in guard.verdict.reasons[0]


def test_another_suite_on_resuming_is_refused(tmp_path: Path, known_suite: Suite) -> None:
    with pytest.raises(Killed):
        trainer(tmp_path, Guard(known_suite, every=2, say=quiet), KillAt(4), **SAVING).train()
    made = trainer(tmp_path, Guard(other_suite(known_suite), every=2, say=quiet), **SAVING)
    with pytest.raises(MismatchError, match="another suite"):
        made.train(resume_from_checkpoint=True)


def test_a_run_begun_anew_keeps_what_was_there(tmp_path: Path, known_suite: Suite) -> None:
    for _ in range(2):
        trainer(tmp_path, Guard(known_suite, looks=1, say=quiet), max_steps=1).train()
    (earlier,) = (tmp_path / "backslide" / "earlier").iterdir()
    assert {"run.json", "baseline.jsonl", "verdict.json", "report.md"} <= {path.name for path in earlier.iterdir()}


def test_the_best_checkpoint_is_what_is_judged(tmp_path: Path, known_suite: Suite) -> None:
    """The last look was at wrecked weights; the weights that the user gets are those of the first checkpoint."""
    guard = Guard(known_suite, every=2, say=quiet)

    class Wreck(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 3:
                with torch.no_grad():
                    model.lm_head.weight.neg_()

    made = trainer(tmp_path, guard, Wreck(), **SAVING, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
    made.train()
    assert [look.zone for look in guard.looks[1:]] == [Zone.REGRESSED] * 2
    assert made.state.best_model_checkpoint.endswith("checkpoint-2")  # type: ignore[union-attr]
    assert guard.final is not None and guard.final.header.model_fingerprint == model_fingerprint(made.model)
    assert guard.verdict is not None and guard.verdict.zone is not Zone.REGRESSED


SCRIPT = """
    import os, signal, sys
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from backslide import Guard, Suite
    from backslide.testing import tiny_model, tiny_tokenizer

    torch.set_num_threads(1)
    suite, out = Suite.load(sys.argv[1]), sys.argv[2]

    class Die(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGKILL)

    rows = [tiny_tokenizer()(f"example {i:02} of some text").input_ids[:20] for i in range(16)]
    args = TrainingArguments(
        output_dir=out, max_steps=6, save_strategy="steps", save_steps=2, report_to="none", disable_tqdm=True,
        use_cpu=True, dataloader_pin_memory=False,
    )
    Trainer(
        tiny_model(), args, train_dataset=[{"input_ids": r, "labels": r} for r in rows],
        processing_class=tiny_tokenizer(), callbacks=[Guard(suite, every=2), Die()],
    ).train()
"""


def test_a_process_that_is_killed_loses_nothing_that_was_measured(tmp_path: Path, known_suite: Suite) -> None:
    known_suite.save(tmp_path / "known.jsonl")
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "known.jsonl"), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    run = RunFolder(tmp_path / "out" / "backslide")
    assert [record.header.step for record in run.steps()] == [2, 4]
    assert Record.load(run.baseline).outcomes == measured(known_suite).outcomes
    assert [event["step"] for event in run.events() if event["event"] == "look"] == [2, 4]
    assert not [path for path in run.path.rglob("*") if path.name.startswith(".")], "no temporary file is left"
    guard = Guard(run.path.parent.parent / "known.jsonl", every=2, say=quiet)
    made = trainer(tmp_path / "out", guard, **{**SAVING, "lr_scheduler_type": "linear", "learning_rate": 5e-5})
    made.train(resume_from_checkpoint=True)
    assert [look.step for look in guard.looks] == [2, 4, 6] and guard.verdict is not None
