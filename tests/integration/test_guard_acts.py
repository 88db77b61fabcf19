"""What a guard does about a regression, what it logs, which checkpoint is the best, and a loop of one's own."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ProgressCallback, TrainerCallback, get_linear_schedule_with_warmup

from backslide.errors import ConfigError, InputError
from backslide.guard import cache, schedule
from backslide.guard.callback import Guard
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.scoring.engine import Scorer
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.verdict import Zone
from guard_runs import SMALL, STEPS, make, suite

SUITE = suite()
BAD = 0.3
"""A learning rate that wrecks the model within two steps."""


def guard_of(lines: list[str] | None = None, **more: Any) -> Guard:
    say = lines.append if lines is not None else (lambda _: None)
    return Guard(SUITE, **{"every": 2, "settings": SMALL, "say": say, **more})


class Weights(TrainerCallback):
    """The weights and rates after each step, once all callbacks before it have acted."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.rates: list[float] = []

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        self.seen.append(torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()]))
        self.rates.append(optimizer.param_groups[0]["lr"])


# Acting.


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_rollback_gives_the_weights_back_and_lowers_the_rate(tmp_path: Path, place: str) -> None:
    seen, plain = Weights(), Weights()
    guard = guard_of(on_regression="rollback", snapshots=place)
    trainer = make(tmp_path / "a", guard, seen, learning_rate=BAD, lr_scheduler_type="constant", save_strategy="no")
    start = torch.cat([p.detach().reshape(-1).clone() for p in trainer.model.parameters()])
    trainer.train()
    make(tmp_path / "b", None, plain, learning_rate=BAD, lr_scheduler_type="constant", save_strategy="no").train()
    assert torch.equal(seen.seen[0], plain.seen[0])
    assert torch.equal(seen.seen[1], start) and not torch.equal(plain.seen[1], start), "step 2 went back to the base"
    assert seen.rates[:2] == [BAD, pytest.approx(BAD / 3)] and plain.rates[1] == BAD
    assert trainer.state.global_step == STEPS, "and the run went on"
    story = [e for e in RunFolder(tmp_path / "a" / "backslide").events() if e["event"] == "action"]
    assert story[0]["action"] == "rollback" and story[0]["back_to"] == 0
    assert story[0]["rate_before"] == BAD and story[0]["rate_after"] == pytest.approx(BAD / 3)
    assert (tmp_path / "a" / "backslide" / "snapshot").exists() == (place == "disk")
    # After three times it stops: each time the rate was a third of the one before.
    assert len([e for e in story if e["action"] == "rollback"]) <= 3


def test_a_rollback_mends_what_would_have_been_lost(tmp_path: Path) -> None:
    lost = guard_of(on_regression="warn")
    make(tmp_path / "a", lost, learning_rate=BAD, save_strategy="no", max_steps=12).train()
    mended = guard_of(on_regression="rollback", lr_factor=1e-4)
    make(tmp_path / "b", mended, learning_rate=BAD, save_strategy="no", max_steps=12).train()
    assert lost.verdict is not None and lost.verdict.zone is Zone.REGRESSED
    assert mended.verdict is not None and mended.verdict.zone is not Zone.REGRESSED
    assert mended.looks[0].zone is Zone.REGRESSED and mended.regressed_at == 2


def test_going_back_again_and_again_ends_in_a_stop(tmp_path: Path) -> None:
    lines: list[str] = []
    guard = guard_of(lines, every=1, on_regression="rollback", lr_factor=0.999)
    trainer = make(tmp_path, guard, learning_rate=BAD, lr_scheduler_type="constant", save_strategy="no", max_steps=20)
    trainer.train()
    assert trainer.state.global_step < 20 and any("going back 3 times was of no use" in line for line in lines)


def test_a_loss_that_is_no_number_is_gone_back_from(tmp_path: Path) -> None:
    from test_guard_survives import NoNumber

    guard = guard_of(every=1, on_regression="rollback")
    trainer = make(tmp_path, guard, cls=NoNumber, max_grad_norm=0, logging_nan_inf_filter=False, learning_rate=1e-4)
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert guard.verdict is not None and guard.verdict.zone is not Zone.REGRESSED, "the run that broke was mended"


def test_a_lower_rate_from_here_on(tmp_path: Path) -> None:
    seen, plain = Weights(), Weights()
    guard = guard_of(on_regression="lower_lr", lr_factor=0.1)
    make(tmp_path / "a", guard, seen, learning_rate=BAD, save_strategy="no", max_steps=4).train()
    make(tmp_path / "b", None, plain, learning_rate=BAD, save_strategy="no", max_steps=4).train()
    assert torch.equal(seen.seen[1], plain.seen[1]), "the weights stay"
    assert seen.rates[1] == pytest.approx(0.1 * plain.rates[1]) and seen.rates[2] == pytest.approx(0.1 * plain.rates[2])


def test_replay_calls_what_the_user_gave(tmp_path: Path) -> None:
    calls: list[int] = []

    def more() -> str:
        calls.append(1)
        return "share of old data: 5%"

    make(tmp_path, guard_of(on_regression="replay", replay=more), learning_rate=BAD, save_strategy="no").train()
    events = [e for e in RunFolder(tmp_path / "backslide").events() if e["event"] == "action"]
    assert calls and len(events) == len(calls) and "share of old data: 5%" in events[0]["says"]

    def broken() -> None:
        raise OSError("no such file")

    make(tmp_path / "b", guard_of(on_regression="replay", replay=broken), learning_rate=BAD, save_strategy="no").train()
    events = [e for e in RunFolder(tmp_path / "b" / "backslide").events() if e["event"] == "action"]
    assert events[0]["action"] == "warn" and "the replay function raised OSError: no such file" in events[0]["says"]


def test_what_cannot_be_done_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lr_factor is 3, a share above 0 and below 1 is needed"):
        guard_of(lr_factor=3)
    with pytest.raises(ConfigError, match="snapshots is 'tape', one of memory, disk is needed"):
        guard_of(snapshots="tape")
    guard = guard_of(on_regression="rollback", run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="on_regression is 'rollback', for which the optimizer is needed"):
        guard.before_training(tiny_model(), tiny_tokenizer(), steps=4)
    with pytest.raises(InputError, match="the guard was not begun"):
        guard_of().after_step(1)


def test_a_function_that_goes_back_without_a_snapshot_stops(tmp_path: Path) -> None:
    lines: list[str] = []
    guard = guard_of(lines, on_regression=lambda verdict: "rollback" if verdict.zone is Zone.REGRESSED else None)
    trainer = make(tmp_path, guard, learning_rate=BAD, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == 2 and any("there is no state to go back to" in line for line in lines)


def test_no_copy_of_the_weights_without_rollback(tmp_path: Path) -> None:
    for policy, held in (("warn", False), ("stop", False), ("rollback", True)):
        guard = guard_of(on_regression=policy)
        make(tmp_path / policy, guard, save_strategy="no", max_steps=2).train()
        assert guard._watch is not None and (guard._watch._actor._snapshot is not None) == held


# The story.


def test_the_events_of_a_run_that_regressed_read_as_a_story(tmp_path: Path) -> None:
    make(tmp_path, guard_of(on_regression="stop"), learning_rate=BAD, save_strategy="no").train()
    events = RunFolder(tmp_path / "backslide").events()
    told = [event for event in events if event["event"] != "loss"]
    assert [event["event"] for event in told] == [
        "baseline", "plan", "look", "diagnosis", "decision", "action", "opened", "gate", "end"
    ]  # fmt: skip
    says = [event["says"] for event in told]
    assert says[0].startswith("measured the base model before training: 95.2% of 126 items right")
    assert says[1].startswith("will look 4 times in 7 steps")
    assert says[2].startswith("look 1 of 4, 63 items: accuracy 93.1% →")
    assert says[3].startswith("forgetting, learning unknown. The original abilities fell")
    assert says[4].startswith("regressed: p: lost") and says[4].endswith("→ stop")
    assert says[5].startswith("told the training to stop after step 2: p: lost")
    assert says[6] == "opened the sealed gate half"
    assert says[7].startswith("judged the final model on the sealed gate half") and says[8].startswith("regressed: ")
    diagnosis = told[3]
    assert diagnosis["causes"] and diagnosis["next_setting"]["learning_rate"] < BAD
    assert all(event["time"] > 0 and event["step"] >= 0 for event in events)


def test_one_line_a_look_and_quiet_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []
    make(tmp_path / "a", guard_of(lines), learning_rate=1e-5, save_strategy="no").train()
    assert len([line for line in lines if line.startswith("step ")]) == 4 and len(lines) == 7
    silent: list[str] = []
    make(tmp_path / "b", guard_of(silent, quiet=True), learning_rate=BAD, save_strategy="no").train()
    assert silent == []
    with caplog.at_level("WARNING", logger="backslide"):
        make(tmp_path / "c", guard_of(say=None), learning_rate=1e-5, save_strategy="no").train()
    assert sum("look" in record.message for record in caplog.records) >= 4


# The trainer's log.


class Tracker(TrainerCallback):
    """Stands where TensorBoard, W&B and the others stand: it is told what the trainer logs."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.ended = self.late = False

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.late |= self.ended
        self.rows.append((state.global_step, dict(logs)))


def test_what_was_learnt_reaches_every_tracker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = Tracker(), Tracker()
    guard = guard_of()
    trainer = make(tmp_path, guard, after, learning_rate=BAD, save_strategy="no")
    trainer.callback_handler.callbacks.insert(0, before)
    trainer.add_callback(ProgressCallback())
    trainer.train()
    for tracker in (before, after):
        looks = [(step, row) for step, row in tracker.rows if "backslide/regressed" in row]
        assert [step for step, _ in looks] == [2, 4, 6, 7]
        for (_, row), look in zip(looks, guard.looks, strict=True):
            assert row["backslide/regressed"] == float(look.zone is Zone.REGRESSED)
            assert row["backslide/accuracy"] == pytest.approx(look.pooled.candidate)
            assert row["backslide/p/accuracy"] == pytest.approx(look.capabilities[0].candidate)
            assert all(isinstance(value, (int, float)) for value in row.values()), "trackers take numbers alone"
        assert [step for step, row in tracker.rows if "loss" in row] == list(range(1, STEPS + 1)), "no line is lost"
        assert tracker.rows[-1][1]["backslide/final/regressed"] == 1.0
        assert tracker.ended and not tracker.late, "trackers close at the end of training"
    assert [e["step"] for e in trainer.state.log_history if "backslide/drop" in e] == [2, 4, 6, 7]
    assert "backslide/" not in capsys.readouterr().out, "the console has the guard's own line"


def test_tensorboard_shows_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make(tmp_path, guard_of(), report_to="tensorboard", logging_dir=str(tmp_path / "tb"), save_strategy="no").train()
    shown = EventAccumulator(str(tmp_path / "tb"))
    shown.Reload()
    assert any("backslide/accuracy" in tag for tag in shown.Tags()["scalars"])


# The best checkpoint that kept its abilities.


def test_the_guarded_loss_picks_the_best_checkpoint_that_kept_its_abilities(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 8,
        "learning_rate": 0.003, "lr_scheduler_type": "constant", "load_best_model_at_end": True,
    }  # fmt: skip
    plain = make(tmp_path / "plain", guard_of(every=2), **more, metric_for_best_model="loss")
    plain.train()
    guard = guard_of(every=None, budget=1.0)
    guarded = make(tmp_path / "guarded", guard, **more, metric_for_best_model="backslide_guarded_loss")
    guarded.train()
    rows = [e for e in plain.state.log_history if "eval_loss" in e]
    assert min(rows, key=lambda e: e["eval_loss"])["step"] == 8, "by its loss alone the last is the best"
    zones = {look.step: look.zone for look in guard.looks}
    assert sorted(zones) == [2, 4, 6, 8], "each evaluation has its look"
    kept = [step for step, zone in zones.items() if zone is not Zone.REGRESSED]
    assert zones[8] is Zone.REGRESSED and kept, "something is lost on the way"
    assert guarded.state.best_global_step == max(kept)
    assert math.isfinite(guarded.state.best_metric)
    assert guard.verdict is not None and guard.looks[-1].step == 8
    # The verdict is on the weights that were loaded, not on the last ones.
    assert Record.load(RunFolder(tmp_path / "guarded" / "backslide").final_monitor).header.part == "monitor"


def test_where_every_checkpoint_forgot_none_is_the_best(tmp_path: Path) -> None:
    more = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer = make(
        tmp_path, guard_of(), **more, learning_rate=BAD, load_best_model_at_end=True,
        metric_for_best_model="backslide_guarded_loss",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint is None and trainer.state.best_metric == math.inf


@pytest.mark.parametrize("strategy", ["steps", "epoch", "no"])
def test_evaluations_of_any_kind(tmp_path: Path, strategy: str) -> None:
    guard = guard_of(every=3)
    more: dict[str, Any] = {"eval_on_start": strategy == "steps", "eval_steps": 2 if strategy == "steps" else None}
    trainer = make(tmp_path, guard, eval_strategy=strategy, save_strategy="no", max_steps=9, **more)
    trainer.train()
    assert [look.step for look in guard.looks] == [3, 6, 9] and guard.verdict is not None
    metrics = trainer.evaluate()
    assert not [name for name in metrics if "backslide" in name], "a search over all metrics is not turned round by it"
    trainer.args.metric_for_best_model = "backslide_guarded_loss"
    metrics = trainer.evaluate()
    regressed = guard.looks[-1].zone is Zone.REGRESSED
    assert metrics["eval_backslide_guarded_loss"] == (math.inf if regressed else metrics["eval_loss"])
    logged = [entry for entry in trainer.state.log_history if "eval_backslide_guarded_loss" in entry]
    assert len(logged) == (not regressed)


# Budget and cache.


def test_looks_stay_within_the_budget_and_the_plan_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(TrainerCallback):
        """A step that takes a tenth of a second, and what all of them took."""

        began = took = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.perf_counter()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            time.sleep(0.1)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.took += time.perf_counter() - self.began

    guard, slow = Guard(SUITE, settings=SMALL, say=lambda _: None, budget=0.2), Slow()
    make(tmp_path, guard, slow, save_strategy="no", max_steps=24, learning_rate=1e-5).train()
    events = RunFolder(tmp_path / "backslide").events()
    (plan,) = [e for e in events if e["event"] == "plan"]
    assert plan["looks"] == [5, 11, 17, 24] and plan["budget"] == 0.2
    spent = sum(e["seconds"] for e in events if e["event"] in ("look", "gate"))
    # A busy machine makes steps and looks longer alike.
    assert spent <= 0.2 * slow.took
    assert {look.step for look in guard.looks} >= {5, 24}
    # Of the same run without room a look is smaller; with room for everything it is the whole half.
    monkeypatch.setattr(schedule, "FEWEST_ITEMS", 20)
    small, large = (Guard(SUITE, settings=SMALL, say=lambda _: None, budget=budget) for budget in (1e-4, 1.0))
    for name, one in (("small", small), ("large", large)):
        make(tmp_path / name, one, Slow(), save_strategy="no", max_steps=24, learning_rate=1e-5).train()
    monitor = sum(item.kind != "open" for item in SUITE.part("monitor"))
    assert len(small.looks) == 3 < len(large.looks) == 4
    assert all(sum(row.items for row in look.capabilities) == monitor for look in large.looks)
    assert all(20 <= sum(row.items for row in look.capabilities) < monitor for look in small.looks)


def test_a_run_too_short_for_its_budget_still_gets_its_few_looks(tmp_path: Path) -> None:
    guard = Guard(SUITE, settings=SMALL, say=lambda _: None, budget=1e-6)
    make(tmp_path, guard, save_strategy="no", max_steps=24, learning_rate=1e-5).train()
    assert [look.step for look in guard.looks] == [5, 17, 24]
    assert all(sum(row.items for row in look.capabilities) >= 60 for look in guard.looks)
    passed = [e for e in RunFolder(tmp_path / "backslide").events() if e["event"] == "passed"]
    assert [e["step"] for e in passed] == [11]


def test_the_base_model_of_two_runs_is_measured_once(tmp_path: Path, own_cache: Path) -> None:
    lines: list[str] = []
    make(tmp_path / "a", guard_of(lines), save_strategy="no").train()
    make(tmp_path / "b", guard_of(lines), save_strategy="no").train()
    assert sum("measured the base model" in line for line in lines) == 1
    assert sum("an earlier run has measured this very base model" in line for line in lines) == 1
    a, b = (Record.load(RunFolder(tmp_path / name / "backslide").baseline) for name in "ab")
    assert a.outcomes == b.outcomes and len(list((own_cache / "baselines").iterdir())) == 1
    # One weight among all, another suite, other settings: another baseline.
    model = tiny_model()
    with torch.no_grad():
        next(model.parameters())[200, 17] += 1e-3
    make(tmp_path / "c", guard_of(lines), model=model, save_strategy="no").train()
    make(tmp_path / "d", guard_of(lines, settings=None), save_strategy="no").train()
    fewer = Guard(Suite("f", SUITE.items[:100]), every=2, settings=SMALL, say=lines.append)
    make(tmp_path / "e", fewer, save_strategy="no").train()
    make(tmp_path / "f", guard_of(lines, cache=False), save_strategy="no").train()
    assert sum("measured the base model" in line for line in lines) == 5
    # A file that was damaged is as none.
    for path in (own_cache / "baselines").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    make(tmp_path / "g", guard_of(lines), save_strategy="no").train()
    assert sum("measured the base model" in line for line in lines) == 6


def test_every_weight_takes_part_in_the_digest() -> None:
    model = tiny_model()
    whole = cache.weights_digest(model)
    assert whole == cache.weights_digest(tiny_model())
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        place = int(torch.randint(parameter.numel(), (1,), generator=generator))
        with torch.no_grad():
            before = float(parameter.view(-1)[place])
            parameter.view(-1)[place] = before + max(abs(before), 1e-3) * 1e-5
        assert cache.weights_digest(model) != whole
        with torch.no_grad():
            parameter.view(-1)[place] = before
        assert cache.weights_digest(model) == whole


# A loop of one's own.


def loop(guard: Guard, *, rate: float, steps: int, told: bool = True) -> tuple[list[str | None], Any]:
    torch.manual_seed(0)
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    scheduler = get_linear_schedule_with_warmup(optimizer, 0, steps)
    guard.before_training(
        model, tiny_tokenizer(), steps=steps if told else None, optimizer=optimizer, scheduler=scheduler
    )
    done: list[str | None] = []
    for step in range(1, steps + 1):
        tokens = torch.randint(5, 200, (2, 12))
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        time.sleep(0.0 if told else 0.05)
        done.append(guard.after_step(step, loss.item()))
        assert model.training
        if done[-1] == "stop":
            break
    return done, guard.finish()


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    stop = guard_of(on_regression="stop", run_dir=tmp_path / "a")
    done, verdict = loop(stop, rate=BAD, steps=8)
    assert done == [None, "stop"] and verdict.zone is Zone.REGRESSED and verdict == stop.verdict
    assert (tmp_path / "a" / "report.md").exists()
    back = guard_of(on_regression="rollback", run_dir=tmp_path / "b", lr_factor=0.01)
    done, verdict = loop(back, rate=BAD, steps=8)
    assert done[:2] == [None, "rollback"] and verdict.zone is not Zone.REGRESSED
    events = RunFolder(tmp_path / "b").events()
    assert [e["step"] for e in events if e["event"] == "loss"] == list(range(1, 9))
    assert RunFolder(tmp_path / "b").config["setup"]["method"] == "full"


def test_a_loop_of_unknown_length_is_looked_at_ever_less_often(tmp_path: Path) -> None:
    guard = guard_of(every=None, run_dir=tmp_path, budget=1.0)
    _, verdict = loop(guard, rate=1e-5, steps=45, told=False)
    assert [look.step for look in guard.looks] == [10, 20, 30, 42] and verdict.zone is not Zone.REGRESSED
    tested = [look.capabilities[0].main.tested_at for look in guard.looks]
    assert all(b < a for a, b in itertools.pairwise(tested))


def test_a_loss_in_ones_own_loop_that_is_no_number(tmp_path: Path) -> None:
    guard = guard_of(run_dir=tmp_path, on_regression="stop")
    guard.before_training(tiny_model(), tiny_tokenizer(), steps=4)
    assert guard.after_step(1, 2.5) is None
    assert guard.after_step(2, math.nan) == "stop"
    assert guard.finish().zone is Zone.REGRESSED


def test_getting_ready_for_the_looks_is_paid_by_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Scorer.prepare

    def slow(scorer: Scorer) -> None:
        time.sleep(0.5)
        prepare(scorer)

    def spent(folder: str) -> float:
        guard = Guard(SUITE, budget=0.05, settings=SMALL, cache=False, quiet=True, run_dir=tmp_path / folder)
        guard.before_training(tiny_model(), tiny_tokenizer(), steps=100)
        assert guard._watch is not None
        return guard._watch.pacer.spent

    usual = spent("a")
    monkeypatch.setattr(Scorer, "prepare", slow)
    assert spent("b") >= usual + 0.3, "the baseline is counted apart, the half of a second is not"
