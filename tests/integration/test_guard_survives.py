"""What training runs go through: killed, interrupted, a full disk, a loss that is no number, a model that breaks."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

import guard_runs
from backslide.errors import MismatchError, ModelError, RunError
from backslide.guard.callback import Guard
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.scoring.engine import Settings
from backslide.suite.item import ChoiceItem, TextItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.verdict import Zone
from guard_runs import SMALL, STEPS, make
from processes import forked, fresh

SUITE = guard_runs.suite()


def script(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return forked(guard_runs.__file__, folder, *more)


def quiet(line: str) -> None:
    pass


def found(folder: Path) -> dict[str, Any]:
    """What a run found, without times."""
    run = RunFolder(folder / "backslide")
    return {
        "baseline": Record.load(run.baseline).outcomes,
        "steps": [(record.header.step, record.outcomes) for record in run.steps()],
        "final": Record.load(run.final).outcomes,
        "verdict": run.verdict(),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = fresh(guard_runs.__file__, folder)
    assert done.returncode == 0, done.stderr
    return found(folder)


@pytest.mark.parametrize("place", ["baseline", "look 1", "look 2", "step 1", "step 4", "gate"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, undisturbed: dict[str, Any], place: str
) -> None:
    killed = script(tmp_path, "--kill", place)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    parts = sorted((tmp_path / "backslide").rglob("*.part-0"))
    assert bool(parts) == (not place.startswith("step")), "what the interrupted look had found is on the disk"
    kept = [len(path.read_text().splitlines()) - 1 for path in parts]
    # One of before the last step: at the last one transformers would go on beyond it.
    checkpoints = [path for path in sorted(tmp_path.glob("checkpoint-*")) if not path.name.endswith(f"-{STEPS}")]
    resumed = script(tmp_path, *(["--resume", str(checkpoints[-1])] if checkpoints else []))
    assert resumed.returncode == 0, resumed.stderr
    after = found(tmp_path)
    assert after["verdict"] == undisturbed["verdict"] and after == undisturbed
    run = RunFolder(tmp_path / "backslide")
    assert not list(run.path.glob("*.part-*")) and not list((run.path / "steps").glob("*.part-*"))
    events = run.events()
    if checkpoints:
        assert sum(event["event"] == "baseline" for event in events) == 1, "the baseline is not measured again"
    opened = [event["opening"] for event in events if event["event"] == "opened"]
    assert opened == ([1, 1] if place == "gate" else [1]), "an opening that was interrupted is not another one"
    if parts:
        (count,) = kept
        assert count > 0, "and it is no empty file"


def costs(run: RunFolder) -> dict[tuple[str, int], int]:
    return {(e["event"], e["step"]): e["tokens"] for e in run.events() if "tokens" in e}


def test_what_an_interrupted_look_had_found_is_not_measured_again(tmp_path: Path) -> None:
    assert script(tmp_path / "a", "--kill", "look 2").returncode == -signal.SIGKILL
    assert script(tmp_path / "a", "--resume", str(tmp_path / "a" / "checkpoint-3")).returncode == 0
    assert script(tmp_path / "b").returncode == 0
    disturbed, whole = (costs(RunFolder(tmp_path / name / "backslide")) for name in "ab")
    assert 0 < disturbed["look", 4] < 0.7 * whole["look", 4]
    assert disturbed["look", 2] == whole["look", 2] and disturbed["baseline", 0] == whole["baseline", 0]


class Interrupt(guard_runs.Killer):
    """Ctrl-C at a place."""

    def kill(self) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_in_a_look_leaves_the_model_as_it_was_and_the_run_can_go_on(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    stopper = Interrupt("look 2")
    guard = Guard(SUITE, every=2, settings=SMALL, cache=False, say=quiet, progress=stopper.progress)
    trainer = make(tmp_path, guard)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 4 and all(module.training for module in trainer.model.modules())
    assert torch.is_grad_enabled() and guard.verdict is None
    again = Guard(SUITE, every=2, settings=SMALL, cache=False, say=quiet)
    make(tmp_path, again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.verdict == undisturbed["verdict"]


class FullDisk(TrainerCallback):
    """No file may grow from step 1 on; with `until` there is room again from that step on."""

    def __init__(self, until: int | None) -> None:
        self.until = until
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, self.before[1]))
        if state.global_step == self.until:
            resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """The limit as before on leaving: pytest itself may write into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_was_full_for_a_while_costs_nothing(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    lines: list[str] = []
    guard = Guard(SUITE, every=2, settings=SMALL, cache=False, say=lines.append)
    with limited():
        make(tmp_path, guard, FullDisk(until=5), save_strategy="no").train()
    assert found(tmp_path) == undisturbed
    said = [line for line in lines if "cannot be written" in line]
    assert any("the training goes on" in line for line in said) and len(said) <= 4
    events = RunFolder(tmp_path / "backslide").events()
    assert [e["step"] for e in events if e["event"] == "look"] == [2, 4, 6, 7], "no event is lost, none written twice"
    assert len([e for e in events if e["event"] == "loss" and "loss" in e]) == STEPS


def test_a_disk_that_stays_full_ends_no_training_and_says_what_is_lost(tmp_path: Path) -> None:
    lines: list[str] = []
    guard = Guard(SUITE, every=2, settings=SMALL, cache=False, say=lines.append)
    trainer = make(tmp_path, guard, FullDisk(until=None), save_strategy="no")
    with limited():
        trainer.train()
    assert trainer.state.global_step == STEPS and guard.verdict is not None and len(guard.looks) == 4
    assert any("could not be written" in line and "verdict.json" in line for line in lines)


def test_a_folder_that_cannot_be_written_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    trainer = make(tmp_path, Guard(SUITE, every=2, settings=SMALL, cache=False, say=quiet), save_strategy="no")
    with limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(RunError, match="cannot be written: File too large; make room, or give another run_dir"):
            trainer.train()
    assert trainer.state.global_step == 0


class NoNumber(Trainer):
    """The loss of the fourth step is NaN, and so are the weights after it."""

    at = 4

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **more)
        factor = float("nan") if self.state.global_step + 1 == self.at and model.training else 1.0
        outputs = loss[0] * factor if isinstance(loss, tuple) else loss * factor
        return (outputs, *loss[1:]) if isinstance(loss, tuple) else outputs


@pytest.mark.parametrize("hidden", [False, True], ids=["logged", "filtered by the trainer"])
@pytest.mark.parametrize("policy", ["warn", "stop"])
def test_a_loss_that_is_no_number_is_a_regression(tmp_path: Path, policy: str, hidden: bool) -> None:
    lines: list[str] = []
    guard = Guard(SUITE, every=1, settings=SMALL, on_regression=policy, say=lines.append)
    trainer = make(tmp_path, guard, cls=NoNumber, logging_nan_inf_filter=hidden, max_grad_norm=0, learning_rate=1e-4)
    trainer.train()
    assert guard.verdict is not None and guard.verdict.zone is Zone.REGRESSED
    assert trainer.state.global_step == (4 if policy == "stop" else STEPS)
    if not hidden:
        assert any("the training loss is nan at step 4" in line for line in lines)
    RunFolder(tmp_path / "backslide").report.read_text()


def test_a_look_that_cannot_be_made_is_said_and_nothing_is_taken_for_retained(tmp_path: Path) -> None:
    class Breaks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 3:
                right = model.forward

                def forward(*args: Any, **kwargs: Any) -> Any:
                    if not model.training:
                        raise ValueError("this model's own code\nhas a fault")
                    return right(*args, **kwargs)

                model.forward = forward

    lines: list[str] = []
    guard = Guard(SUITE, every=2, settings=SMALL, say=lines.append)
    trainer = make(tmp_path, guard, Breaks())
    trainer.train()
    assert trainer.state.global_step == STEPS and [look.step for look in guard.looks] == [2]
    assert guard.verdict is not None and guard.verdict.zone is Zone.UNDECIDED
    assert "the gate half was not measured" in guard.verdict.reasons[0]
    said = [line for line in lines if "could not be measured" in line]
    assert len(said) >= 3 and all("ValueError: this model's own code has a fault" in line for line in said)
    assert sum(event["event"] == "failed" for event in RunFolder(tmp_path / "backslide").events()) >= 3


def test_a_model_that_needs_more_than_tokens_is_refused_before_training(tmp_path: Path) -> None:
    class Picky(type(tiny_model())):  # type: ignore[misc]
        def forward(self, input_ids: Any, picture: Any, **more: Any) -> Any:
            return super().forward(input_ids=input_ids, **more)

    model = tiny_model()
    model.__class__ = Picky
    trainer = make(tmp_path, Guard(SUITE, every=2, settings=SMALL, say=quiet), model=model)
    with pytest.raises(ModelError, match=r"could not be measured before training: TypeError: .*'picture'; a causal"):
        trainer.train()
    assert not (tmp_path / "backslide" / "run.json").exists()


def test_a_vocabulary_that_was_enlarged(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>", "<three>"])
    with torch.random.fork_rng():
        model.resize_token_embeddings(len(tokenizer))
    guard = Guard(SUITE, every=3, settings=SMALL, say=quiet)
    trainer = make(tmp_path / "a", guard, model=model)
    trainer.processing_class = trainer.callback_handler.processing_class = tokenizer
    trainer.train()
    assert guard.verdict is not None and len(guard.looks) == 3
    # A baseline of the model as it was before is of other weights.
    smaller = Guard(SUITE, every=3, settings=SMALL, say=quiet)
    make(tmp_path / "b", smaller).train()
    grown = Guard(SUITE, every=3, settings=SMALL, say=quiet, baseline=smaller.baseline)
    with torch.random.fork_rng():
        larger = tiny_model()
        larger.resize_token_embeddings(len(tokenizer))
    with pytest.raises(MismatchError, match="the baseline was measured on other weights"):
        make(tmp_path / "c", grown, model=larger).train()


def test_a_suite_half_of_which_is_longer_than_the_context(tmp_path: Path) -> None:
    long = " ".join(["word"] * 400)
    items = [
        ChoiceItem(
            id=f"c{i}", capability="c", prompt=f"{long if i % 2 else 'short'} {i}?", choices=("x", "yes"), gold=0
        )
        for i in range(24)
    ]
    texts = [TextItem(id=f"t{i}", capability="t", text=f"{i} {long if i % 2 else 'short'}") for i in range(8)]
    guard = Guard(Suite("long", (*items, *texts)), every=3, settings=Settings(batch_tokens=1024), say=quiet)
    make(tmp_path, guard).train()
    assert guard.baseline is not None and len(guard.baseline.outcomes) == 32
    assert any("items with their choices are longer than" in note for note in guard.baseline.header.notes)
    assert [look.step for look in guard.looks] == [3, 6, 7] and guard.verdict is not None
    assert len(guard.verdict.capabilities) == 2 and all(row.items for row in guard.verdict.capabilities)


def test_a_mistake_in_the_users_policy_ends_nothing(tmp_path: Path) -> None:
    lines: list[str] = []

    def policy(verdict: Any) -> str:
        raise KeyError("oops")

    trainer = make(tmp_path, Guard(SUITE, every=2, settings=SMALL, on_regression=policy, say=lines.append))
    trainer.train()
    assert trainer.state.global_step == STEPS
    said = [e for e in RunFolder(tmp_path / "backslide").events() if e["event"] == "action"]
    assert len(said) == 4 and all("raised KeyError: 'oops'" in event["reason"] for event in said)


def test_a_journal_of_other_weights_is_not_believed(tmp_path: Path) -> None:
    assert script(tmp_path, "--kill", "baseline").returncode == -signal.SIGKILL
    (part,) = (tmp_path / "backslide").rglob("*.part-0")
    lines = part.read_text().split("\n")
    head = json.loads(lines[0])
    head["model"] = "0" * 64
    lies = [json.dumps({**json.loads(line), "p": 1.0}) for line in lines[1:-1]]
    part.write_text("\n".join([json.dumps(head), *lies, '{"id": "half a li']))
    guard = Guard(SUITE, every=2, settings=SMALL, cache=False, say=quiet)
    make(tmp_path, guard).train()
    assert guard.baseline is not None and not any(o.p == 1.0 for o in guard.baseline.outcomes)
