"""Runs that are resumed after the guard had acted, under other conditions, or from weights that are not the last."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_guard_survives import NoNumber
from transformers import TrainerCallback

import guard_runs
from backslide.errors import MismatchError
from backslide.guard import cache
from backslide.guard.callback import Guard
from backslide.guard.past import past
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.scoring.engine import Settings
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.verdict import Zone
from guard_runs import SMALL, make, suite

SUITE = suite()
BAD = 0.3


def guard_of(lines: list[str] | None = None, **more: Any) -> Guard:
    say = lines.append if lines is not None else (lambda _: None)
    return Guard(SUITE, **{"every": 2, "settings": SMALL, "say": say, **more})


class Stop(guard_runs.Killer):
    """Ends the process's part in a run as Ctrl-C does."""

    def kill(self) -> None:
        raise KeyboardInterrupt


def interrupted(folder: Path, guard: Guard, at: int, **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(folder, guard, Stop(f"step {at}"), **{"save_steps": 1, **more}).train()


def test_a_loss_that_was_mended_stays_mended(tmp_path: Path) -> None:
    more: dict[str, Any] = {"cls": NoNumber, "max_grad_norm": 0, "logging_nan_inf_filter": False, "learning_rate": 1e-4}
    interrupted(tmp_path, guard_of(every=1, on_regression="rollback"), 6, **more)
    guard = guard_of(every=1, on_regression="rollback")
    trainer = make(tmp_path, guard, save_steps=1, **more)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert guard.verdict is not None and guard.verdict.capabilities and "nan" not in guard.verdict.reasons[0]


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_run_resumed_after_a_rollback_stands_where_it_stood(tmp_path: Path, place: str) -> None:
    more: dict[str, Any] = {"learning_rate": BAD, "lr_scheduler_type": "constant"}
    first = guard_of(on_regression="rollback", snapshots=place)
    interrupted(tmp_path, first, 3, **more)
    assert first.regressed_at == 2
    again = guard_of(on_regression="rollback", snapshots=place)
    trainer = make(tmp_path, again, save_steps=1, **more)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer.state.global_step == guard_runs.STEPS, "the next alarm has a state to go back to"
    events = RunFolder(tmp_path / "backslide").events()
    told = [(e["step"], e["action"]) for e in events if e["event"] == "action"]
    # Three times back in all, over both lives; the fourth alarm, at the last step, finds that of no use.
    assert told[:3] == [(2, "rollback"), (4, "rollback"), (6, "rollback")] and told[3:] in ([], [(7, "stop")])
    if place == "disk":
        assert [e["back_to"] for e in events if e.get("action") == "rollback"] == [0, 0, 0]


@pytest.mark.parametrize("kept", [True, False])
def test_a_resumed_run_takes_no_state_for_good_that_was_not(tmp_path: Path, kept: bool) -> None:
    more: dict[str, Any] = {"learning_rate": 1e-5}
    interrupted(tmp_path, guard_of(on_regression="rollback"), 3, **more)
    path = tmp_path / "backslide" / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    (look,) = [event for event in events if event["event"] == "look"]
    assert look["verdict"]["zone"] == "undecided" and look["verdict"]["pooled"]["main"]["drop"] <= 0.03
    if not kept:
        look["verdict"]["pooled"]["main"]["drop"] = 0.1
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
    lines: list[str] = []
    guard = guard_of(lines, on_regression="rollback")
    trainer = make(tmp_path, guard, save_steps=1, **more)
    held: list[int | None] = []

    class Seen(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            assert guard._watch is not None and guard._watch._actor._snapshot is not None
            held.append(guard._watch._actor._snapshot.step)

    trainer.add_callback(Seen())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert held[:2] == ([3, 4] if kept else [None, 4]), "the look after step 4 finds the abilities kept"
    assert any("no state to go back to until a look" in line for line in lines) is not kept


def test_other_settings_are_refused_before_the_first_step(tmp_path: Path) -> None:
    interrupted(tmp_path, guard_of(), 3)
    other = make(tmp_path, guard_of(settings=Settings(row_tokens=128, batch_tokens=128, max_new_tokens=4)))
    with pytest.raises(MismatchError, match="row_tokens"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert other.state.global_step == 3


def test_items_left_out_are_the_same_after_a_resume(tmp_path: Path) -> None:
    out = {item.id for item in guard_of().suite.items if item.kind == "text"}
    guard = guard_of(leave_out=out)
    interrupted(tmp_path, guard, 3)
    assert [row.reason for row in guard.looks[0].capabilities if row.capability == "t"] == [
        "all its items here were found in the training data; add others, or train without them"
    ]
    with pytest.raises(MismatchError, match=r"begun with 6 items left out of its verdicts and is resumed with 0"):
        make(tmp_path, guard_of()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    again = guard_of(leave_out=out)
    make(tmp_path, again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.verdict is not None and "left out, found in the training data" in again.verdict.claim


def test_a_record_that_cannot_be_compared_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backslide.guard import watch

    def fails(*_: Any, **__: Any) -> Any:
        raise MismatchError("another chat template")

    lines: list[str] = []
    monkeypatch.setattr(watch, "judge", fails)
    guard = guard_of(lines)
    trainer = make(tmp_path, guard, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == guard_runs.STEPS and guard.looks == []
    assert guard.verdict is not None and guard.verdict.zone is Zone.UNDECIDED
    assert any("MismatchError: another chat template; the training goes on" in line for line in lines)


def test_a_baseline_that_is_given_serves_a_run_that_has_none(tmp_path: Path) -> None:
    plain = make(tmp_path, None, save_steps=2)
    plain.train()
    whole = guard_of(run_dir=tmp_path / "base")
    make(tmp_path / "base", whole, save_strategy="no", max_steps=1).train()
    lines: list[str] = []
    guard = guard_of(lines, baseline=whole.baseline)
    trainer = make(tmp_path, guard, save_steps=2)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert guard.baseline is not None and guard.baseline.outcomes == whole.baseline.outcomes  # type: ignore[union-attr]
    assert [look.step for look in guard.looks] == [6, 7] and any("stretch 2" in line for line in lines)


def test_the_weights_that_are_there_at_the_end_are_judged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_model()
    best = copy.deepcopy(model.state_dict())
    guard = guard_of(run_dir=tmp_path, every=1)
    guard.before_training(model, tiny_tokenizer(), steps=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    for step in (1, 2):
        guard.after_step(step, 1.0)
    assert guard.looks[-1].zone is Zone.REGRESSED
    model.load_state_dict(best)
    verdict = guard.finish()
    assert verdict.zone is not Zone.REGRESSED and verdict.capabilities[0].drop == 0.0


def test_what_a_function_asks_for_and_cannot_be_done_is_a_warning(tmp_path: Path) -> None:
    for kind in ("lower_lr", "rollback"):
        guard = guard_of(run_dir=tmp_path / kind, every=1, on_regression=lambda _, kind=kind: kind, snapshots="memory")
        guard.before_training(tiny_model(), tiny_tokenizer(), steps=2)
        assert guard.after_step(1, 1.0) == "warn"
        says = [e["says"] for e in RunFolder(tmp_path / kind).events() if e["event"] == "action"]
        assert f"{kind} needs the optimizer" in says[0]


def test_memory_that_runs_out_while_a_state_is_kept_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backslide.guard.snapshot import Snapshot

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    lines: list[str] = []
    monkeypatch.setattr(Snapshot, "take", full)
    trainer = make(tmp_path, guard_of(lines, on_regression="rollback"), learning_rate=BAD, save_strategy="no")
    trainer.train()
    assert any("the state was not kept: RuntimeError" in line for line in lines)
    assert trainer.state.global_step == 2 and any("no state to go back to" in line for line in lines)


def test_weights_that_have_no_digest_have_no_cache(tmp_path: Path, own_cache: Path) -> None:
    model = tiny_model()
    model.register_buffer("odd", torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(KeyError):
        cache.weights_digest(model)
    guard = guard_of()
    make(tmp_path, guard, model=model, save_strategy="no", max_steps=2).train()
    assert guard.verdict is not None and not (own_cache / "baselines").exists()


def test_a_look_that_was_measured_before_the_kill_is_not_passed_over(tmp_path: Path) -> None:
    more = {"max_steps": 24, "learning_rate": 1e-5}
    interrupted(tmp_path, guard_of(every=None, budget=1.0), 13, **more)
    before = sorted(path.name for path in (tmp_path / "backslide" / "steps").glob("*.jsonl"))
    if "step-000011.jsonl" not in before:
        pytest.skip("the look at step 11 was passed over: this machine is too quick for the test")
    again = guard_of(every=None, budget=1e-6, cache=False)
    make(tmp_path, again, save_steps=1, **more).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert 11 in [look.step for look in again.looks]


# The history itself, without a model.


def event(kind: str, step: int, **more: Any) -> dict[str, Any]:
    return {"event": kind, "step": step, **more}


def test_the_line_that_led_to_the_present_weights() -> None:
    events = [
        event("baseline", 0), event("loss", 1, loss=3.0), event("look", 2, model="a", alpha=0.01, seconds=1.5),
        event("loss", 3, loss=2.0), event("look", 4, model="b", alpha=0.01, seconds=2.0), event("broke", 5, reason="nan"),
        event("resumed", 3), event("loss", 4, loss=1.9), event("look", 4, model="c", alpha=0.0, seconds=3.0),
        event("resumed", 3), event("look", 4, model="b", alpha=0.01, seconds=0.0), event("loss", 5, loss=1.5),
    ]  # fmt: skip
    found = past(events, 5)
    assert [(e["step"], e["loss"]) for e in found.of("loss")] == [(1, 3.0), (3, 2.0), (5, 1.5)]
    assert [(e["step"], e["model"]) for e in found.of("look")] == [(2, "a"), (4, "b")]
    assert found.tested == ((2, "a", 0.01), (4, "b", 0.01), (4, "c", 0.0)), "the same weights are the same look"
    assert found.gone == ((4, "c", 0.0),) and found.broke is None and found.spent == pytest.approx(1.5)
    assert past(events, 3).gone == ((4, "b", 0.01), (4, "c", 0.0))
    assert past(events[:6], 5).broke == "nan" and past(events[:6], 4).broke is None


def test_what_was_mended_and_what_had_ended() -> None:
    back = event("action", 4, action="rollback", back_to=2, mends=True)
    events = [event("look", 2, model="a", alpha=0.01), event("broke", 4, reason="nan"), back]
    assert past(events, 4).broke is None and past(events, 4).back == (4, 2)
    later = [*events, event("look", 6, model="b", alpha=0.01)]
    assert past(later, 6).back is None and past(later, 5).back == (4, 2)
    ended = [*later, event("opened", 7), event("gate", 7), event("end", 7)]
    assert past(ended, 7).ended and not past(later, 6).ended
    assert not any(past(ended, 7).of(kind) for kind in ("opened", "gate", "end")), "the end is of the run as it was"
    anew = past([*ended, event("resumed", 7, anew=True), event("look", 9, model="d", alpha=0.02)], 9)
    assert not anew.ended and anew.stretches == 2 and anew.tested == ((9, "d", 0.02),)
    assert past([], 3).line == () and past([{"event": "look"}, {"step": 1}], 3).tested == ()


class Finite(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        assert all(math.isfinite(float(p.detach().sum())) for p in model.parameters())


def test_every_record_of_a_run_is_readable(tmp_path: Path) -> None:
    make(tmp_path, guard_of(), Finite(), save_strategy="no").train()
    run = RunFolder(tmp_path / "backslide")
    assert [record.header.step for record in run.steps()] == [2, 4, 6, 7]
    assert Record.load(run.final).header.part == "gate"
