"""`auto`: what a guard does by itself about a run that forgets, and what it writes down of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from backslide.errors import ConfigError
from backslide.guard.actions import Actor, Tools
from backslide.guard.callback import Guard
from backslide.guard.intervene import go_back
from backslide.guard.policy import MOST, SHARES, Action
from backslide.guard.snapshot import Snapshot
from backslide.judge import judge
from backslide.rundir import RunFolder
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.verdict import Verdict, Zone
from builders import flipped, record
from guard_runs import SMALL, STEPS, make, suite

BAD = 0.3
"""A learning rate that wrecks the model within two steps."""


def guard_of(**more: Any) -> Guard:
    return Guard(suite(), **{"every": 2, "settings": SMALL, "say": lambda _: None, "on_regression": "auto", **more})


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in RunFolder(folder / "backslide").events() if event["event"] == kind]


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


class Weights(TrainerCallback):
    """The weights after each step, once the guard has acted."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.seen.append(flat(model))


def test_a_point_on_the_line_to_the_saved_weights() -> None:
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    snapshot = Snapshot()
    snapshot.take(model, optimizer, step=0)
    start = flat(model)
    for parameter in model.parameters():
        parameter.data += 1.0
    go_back(snapshot, model, optimizer, share=0.5)
    assert torch.allclose(flat(model), start + 0.5, atol=1e-6)
    go_back(snapshot, model, optimizer, share=0.5)
    assert torch.allclose(flat(model), start + 0.25, atol=1e-6), "each point is reached from the one before"
    go_back(snapshot, model, optimizer)
    assert torch.equal(flat(model), start), "and the start exactly"


def test_each_point_is_made_of_the_present_weights_not_of_the_rounded_point_before() -> None:
    model = tiny_model().to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    actor = Actor(guard_of(snapshots="memory")._options, Path("nowhere"))
    tools = Tools(model, optimizer)
    actor.keep(tools, 0)
    start = flat(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        # As much as bf16 can tell apart, so that a point that is rounded twice is another one.
        step = parameter.data.abs() * 2**-8
        parameter.data += step * torch.randn(step.shape, generator=generator).to(step.dtype)
    moved, seen = flat(model), []

    def trial(share: float) -> Verdict | None:
        expected = torch.lerp(start.float(), moved.float(), share).to(torch.bfloat16)
        seen.append(torch.equal(flat(model), expected))
        return None

    done = actor.do(Action("auto", "lost"), tools, 10, trial, left=10)
    assert seen == [True] * len(SHARES) and torch.equal(flat(model), start)
    # Nothing could be measured, so the rate is cut by the guard's factor and no more.
    assert done.kind == "rollback" and optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 3)


def test_the_rate_is_cut_by_the_steps_since_the_weights_were_those_of_the_snapshot() -> None:
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    actor = Actor(guard_of(snapshots="memory")._options, Path("nowhere"))
    tools = Tools(model, optimizer)
    actor.keep(tools, 0)
    old, new = flipped(400, lost=200, won=0)
    lost = judge(record(old), record(new))
    assert lost.zone is Zone.REGRESSED

    def rate(step: int, left: int, *verdicts: Verdict) -> float:
        before, trials = optimizer.param_groups[0]["lr"], iter(verdicts)
        actor.do(Action("auto", "lost"), tools, step, lambda share: next(trials), left=left)
        return float(optimizer.param_groups[0]["lr"]) / before

    kept = judge(record(old), record(old))
    # A half is kept: 0.5 · √(16 / 64).
    assert rate(16, 64, lost, kept) == pytest.approx(0.25)
    actor.keep(tools, 16, kept)
    # None is: half of an eighth, and √(9 / 9).
    assert rate(25, 9, lost, lost, lost, lost) == pytest.approx(0.0625)
    # The weights are those of step 16 again since step 25, so the next line is 4 steps long, not 13.
    assert rate(29, 16, lost, lost, kept) == pytest.approx(0.25 * (4 / 16) ** 0.5)


def test_where_the_weights_cannot_be_copied_the_good_state_is_gone_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    said: list[str] = []
    actor = Actor(guard_of(snapshots="memory", say=said.append)._options, Path("nowhere"))
    tools = Tools(model, optimizer)
    actor.keep(tools, 0)
    start = flat(model)
    for parameter in model.parameters():
        parameter.data += 1.0
    monkeypatch.setattr(Snapshot, "take", lambda *_, **__: (_ for _ in ()).throw(MemoryError("no room")))
    done = actor.do(Action("auto", "lost"), tools, 10, lambda share: pytest.fail("asked"), left=10)
    assert done.kind == "rollback" and torch.equal(flat(model), start)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 3)
    assert any("step 10: no point on the line was tried: MemoryError: no room" in line for line in said), said


def test_a_run_that_forgets_is_drawn_back_and_trained_on_with_more_and_more_cures(tmp_path: Path) -> None:
    called: list[str] = []

    def more(name: str) -> Any:
        def function() -> str:
            called.append(name)
            return f"{name} {called.count(name)}"

        return function

    # A factor that mends nothing: every cure is needed.
    guard = guard_of(every=1, lr_factor=0.9, replay=more("replay"), anchor=more("anchor"))
    trainer = make(
        tmp_path, guard, learning_rate=BAD, lr_scheduler_type="constant", save_strategy="no", max_steps=20
    )  # fmt: skip
    start = flat(trainer.model)
    trainer.train()
    actions = events(tmp_path, "action")
    assert [action["action"] for action in actions] == ["rollback"] * MOST["auto"] + ["stop"]
    cures = [set(action["cures"]) - {"rescale", "rollback", "lower_lr"} for action in actions[:-1]]
    assert cures[0] == set() and cures[1] == {"replay"} and all(c == {"replay", "anchor"} for c in cures[2:])
    assert called.count("replay") == MOST["auto"] - 1 and called.count("anchor") == MOST["auto"] - 2
    # One step was made since the weights were the base's, so the line allows less than the most that is cut at once.
    assert all(a["rate_after"] == pytest.approx(0.9**3 * a["rate_before"]) for a in actions[:-1])
    assert trainer.state.global_step < 20
    # All was lost at any rate like this, so nothing of it is left, and the base is what the run ends with.
    assert all(action["share"] == 0 for action in actions) and torch.equal(flat(trainer.model), start)
    assert guard.verdict is not None and guard.verdict.zone is not Zone.REGRESSED
    tried = events(tmp_path, "tried")
    assert [t["share"] for t in tried[: len(SHARES)]] == list(SHARES) and tried[0]["zone"] == "regressed"
    assert (tmp_path / "backslide" / "tried" / "step-000001-0.5.jsonl").is_file()
    effects = events(tmp_path, "effect")
    assert len(effects) == MOST["auto"] and effects[0]["of"] == actions[0]["step"]
    assert effects[0]["drop_before"] > 0.03 and "the drop went from" in effects[0]["says"]


def test_a_lower_rate_is_enough_where_it_is(tmp_path: Path) -> None:
    lost, mended = guard_of(on_regression="warn"), guard_of(lr_factor=1e-3)
    make(tmp_path / "a", lost, learning_rate=BAD, save_strategy="no", max_steps=12).train()
    make(tmp_path / "b", mended, learning_rate=BAD, save_strategy="no", max_steps=12).train()
    assert lost.verdict is not None and lost.verdict.zone is Zone.REGRESSED
    assert mended.verdict is not None and mended.verdict.zone is not Zone.REGRESSED
    assert len(events(tmp_path / "b", "action")) == 1 and mended.regressed_at == 2


def test_what_keeps_the_abilities_is_not_thrown_away(tmp_path: Path) -> None:
    """At a rate that loses a little only, half of what was learned keeps the abilities."""
    found = None
    for rate in (0.02, 0.03, 0.04, 0.06):
        folder, seen = tmp_path / f"{rate}", Weights()
        trainer = make(
            folder, guard_of(every=1), seen, learning_rate=rate, lr_scheduler_type="constant", save_strategy="no"
        )  # fmt: skip
        start = flat(trainer.model)
        trainer.train()
        found = next((action for action in events(folder, "action") if action["share"] > 0), None)
        if found is not None:
            break
    assert found is not None and "rescale" in found["cures"]
    trial = [t for t in events(folder, "tried") if t["step"] == found["step"]][-1]
    assert trial["share"] == found["share"] and trial["zone"] != "regressed" and trial["drop"] <= 0.03
    assert not torch.equal(seen.seen[found["step"] - 1], start)


def test_a_loss_that_is_no_number_needs_no_trial(tmp_path: Path) -> None:
    from test_guard_survives import NoNumber

    guard = guard_of(every=1)
    trainer = make(tmp_path, guard, cls=NoNumber, max_grad_norm=0, logging_nan_inf_filter=False, learning_rate=1e-4)
    trainer.train()
    assert trainer.state.global_step == STEPS and not events(tmp_path, "tried")
    (action,) = events(tmp_path, "action")
    # Nothing was measured, so nothing says that less than a third will do.
    assert action["rate_after"] == pytest.approx(action["rate_before"] / 3)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_at_the_end_only_the_weights_are_mended(tmp_path: Path) -> None:
    guard = guard_of(every=4)
    trainer = make(
        tmp_path, guard, learning_rate=BAD, lr_scheduler_type="constant", save_strategy="no", max_steps=4
    )  # fmt: skip
    trainer.train()
    (action,) = events(tmp_path, "action")
    assert (
        action["action"] == "rollback"
        and "went back to the weights of step 0, at the end" in action["says"]
        and action["cures"] == ["rollback"]
    )
    assert trainer.optimizer.param_groups[0]["lr"] == BAD
    assert guard.verdict is not None and guard.verdict.zone is not Zone.REGRESSED
    # The weights that it went back to are measured at the end, once, and the gate half is opened once.
    (effect,) = events(tmp_path, "effect")
    look, final = events(tmp_path, "look")
    assert (effect["of"], effect["step"], effect["steps"]) == (4, 4, 0) and final["final"]
    drops = [event["verdict"]["pooled"]["main"]["drop"] for event in (look, final)]
    assert [effect["drop_before"], effect["drop_after"]] == drops and drops[0] > 0.03 >= drops[1]
    losses = {event["step"]: event["loss"] for event in events(tmp_path, "loss")}
    assert effect["loss_before"] == losses[4] and effect["loss_after"] is None
    assert len(events(tmp_path, "opened")) == len(events(tmp_path, "gate")) == 1


def test_at_the_end_a_point_that_was_kept_has_the_effect_that_was_measured_of_it(tmp_path: Path) -> None:
    effect, tried = None, []
    for rate in (0.003, 0.005, 0.01):
        folder = tmp_path / f"{rate}"
        make(
            folder, guard_of(), learning_rate=rate, lr_scheduler_type="constant", save_strategy="no",
            max_steps=2, eval_strategy="steps", eval_steps=1,
        ).train()  # fmt: skip
        if any(action["share"] > 0 for action in events(folder, "action")):
            (effect,), tried = events(folder, "effect"), events(folder, "tried")
            break
    assert effect is not None and effect["drop_after"] == tried[-1]["drop"] <= 0.03
    assert len(events(folder, "look")) == 1, "nothing was measured again for it"
    # The trainer evaluates after the guard has acted: that is the loss of the very same weights.
    held_out = {event["step"]: event["eval_loss"] for event in events(folder, "loss") if "eval_loss" in event}
    assert (effect["loss_before"], effect["loss_after"]) == (held_out[1], held_out[2])


def test_the_best_checkpoint_tells_nothing_of_a_cure_that_came_after_it(tmp_path: Path) -> None:
    make(
        tmp_path, guard_of(every=4), learning_rate=BAD, lr_scheduler_type="constant", max_steps=4, save_steps=2,
        eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss",
    ).train()  # fmt: skip
    (effect,), (*_, final) = events(tmp_path, "effect"), events(tmp_path, "look")
    assert final["final"] and final["verdict"]["pooled"]["main"]["drop"] > 0.03, "the weights of step 2, and no better"
    assert effect["of"] == 4 and effect["drop_after"] is None
    assert "the weights that were gone back to were not measured" in effect["says"]


class Ends(TrainerCallback):
    """Ends the training after a step, as a callback of the user's may."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop |= state.global_step == 3
        return control


def test_a_run_that_is_ended_before_the_next_look_has_the_effect_of_its_last_one(tmp_path: Path) -> None:
    more: dict[str, Any] = {"learning_rate": BAD, "lr_scheduler_type": "constant", "save_strategy": "no"}
    make(tmp_path, guard_of(lr_factor=1e-3), Ends(), max_steps=8, **more).train()
    (effect,), (*_, final) = events(tmp_path, "effect"), events(tmp_path, "look")
    assert (effect["of"], effect["step"], effect["steps"], final["final"]) == (2, 3, 1, True)
    assert effect["drop_after"] == final["verdict"]["pooled"]["main"]["drop"]
    losses = {event["step"]: event["loss"] for event in events(tmp_path, "loss")}
    assert (effect["loss_before"], effect["loss_after"]) == (losses[2], losses[3])


@pytest.mark.parametrize("every", [1, 2])
def test_the_loss_of_an_effect_is_the_one_that_is_logged_at_the_looks(tmp_path: Path, every: int) -> None:
    """A trainer logs the loss of a step after the guard has looked."""
    more: dict[str, Any] = {"learning_rate": BAD, "lr_scheduler_type": "constant", "save_strategy": "no"}
    make(tmp_path, guard_of(lr_factor=0.9), max_steps=6, logging_steps=every, **more).train()
    losses = {event["step"]: event["loss"] for event in events(tmp_path, "loss")}
    first, second, third = events(tmp_path, "effect")
    for effect, (before, after) in ((first, (2, 4)), (second, (4, 6))):
        assert (effect["of"], effect["step"], effect["steps"]) == (before, after, 2)
        assert (effect["loss_before"], effect["loss_after"]) == (losses[before], losses[after])
        assert "unknown" not in effect["says"]
    assert (third["of"], third["steps"]) == (6, 0), "of the last look's action"
    kinds = [(event["event"], event["step"]) for event in RunFolder(tmp_path / "backslide").events()]
    assert kinds.index(("effect", 4)) == kinds.index(("loss", 4)) + 1


def test_an_interrupted_run_tells_the_effects_of_an_undisturbed_one(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "learning_rate": BAD, "lr_scheduler_type": "constant", "save_steps": 1, "max_steps": 6,
    }  # fmt: skip

    def guard(factor: float) -> Guard:
        return guard_of(lr_factor=factor, snapshots="disk", cache=False)

    def told(folder: Path) -> dict[int, dict[str, Any]]:
        """Of each cure, what was said of it last; a look that comes by again says it again."""
        return {e["of"]: {k: v for k, v in e.items() if k != "time"} for e in events(folder, "effect")}

    # A rate that mends, so that one cure waits over several steps, and one that mends nothing.
    for factor, cures, cuts in ((1e-3, [2], ((3, 2), (3, 3))), (0.9, [2, 4, 6], ((5, 4),))):
        whole = tmp_path / f"{factor}"
        make(whole, guard(factor), **more).train()
        assert sorted(told(whole)) == cures
        for at, back in cuts:
            cut = tmp_path / f"{factor}-{at}-{back}"
            with pytest.raises(KeyboardInterrupt):
                make(cut, guard(factor), Killed(at), **more).train()
            make(cut, guard(factor), **more).train(resume_from_checkpoint=str(cut / f"checkpoint-{back}"))
            assert told(cut) == told(whole), (factor, at, back)


class Killed(TrainerCallback):
    """Ends the process's part in a run as Ctrl-C does, before the next step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_auto_needs_the_optimizer(tmp_path: Path) -> None:
    guard = guard_of(run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="on_regression is 'auto', for which the optimizer is needed"):
        guard.before_training(tiny_model(), tiny_tokenizer(), steps=4)


def test_a_run_that_had_acted_counts_on_when_resumed(tmp_path: Path) -> None:
    guard = guard_of(every=1, lr_factor=0.9)
    make(
        tmp_path, guard, learning_rate=BAD, lr_scheduler_type="constant", save_steps=2, max_steps=4
    ).train()  # fmt: skip
    before = len(events(tmp_path, "action"))
    again = guard_of(every=1, lr_factor=0.9)
    make(
        tmp_path, again, learning_rate=BAD, lr_scheduler_type="constant", save_steps=2, max_steps=8
    ).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))  # fmt: skip
    after = events(tmp_path, "action")[before:]
    assert before >= 3 and after and after[0]["times"] == 3, "two cures stood in the checkpoint's past"
