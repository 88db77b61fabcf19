"""When to look, what to do, and what the guard knows: schedule, policy and monitor, without a framework."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backslide.errors import ConfigError
from backslide.files import dump
from backslide.guard.monitor import State, conclude, on_log, on_look
from backslide.guard.policy import Action, check, decide
from backslide.guard.schedule import LOOKS, plan_looks
from backslide.judge import judge
from backslide.verdict import Verdict, Zone, broken
from builders import choices, flipped, record

RETAINED = judge(record(choices([True, False] * 400)), record(choices([True, False] * 400), step=8))
UNDECIDED = judge(record(choices([True] * 9)), record(choices([True] * 9), step=8))
REGRESSED = judge(*(record(outcomes, step=8) for outcomes in flipped(60, 20, 0)))


# Schedule


@pytest.mark.parametrize(
    ("steps", "options", "looks"),
    [
        (100, {"every": 30}, (30, 60, 90, 100)),
        (90, {"every": 30}, (30, 60, 90)),
        (10, {"every": 30}, (10,)),
        (100, {"looks": 1}, (100,)),
        (100, {"looks": 4}, (12, 35, 65, 100)),  # 100 · (i/4)^1.5 = 12.5, 35.4, 65.0, 100
        (3, {"looks": 10}, (1, 2, 3)),
        (1, {}, (1,)),
    ],
)
def test_planned_looks(steps: int, options: dict[str, int], looks: tuple[int, ...]) -> None:
    assert plan_looks(steps, **options) == looks


@given(st.integers(1, 10_000), st.none() | st.integers(1, 200), st.none() | st.integers(1, 200))
def test_looks_rise_to_the_last_step(steps: int, every: int | None, looks: int | None) -> None:
    if every is not None and looks is not None:
        with pytest.raises(ConfigError, match=f"every = {every} and looks = {looks} are both given"):
            plan_looks(steps, every=every, looks=looks)
        return
    plan = plan_looks(steps, every=every, looks=looks)
    assert list(plan) == sorted(set(plan)) and plan[0] >= 1 and plan[-1] == steps
    if every is None:
        assert len(plan) <= (looks or LOOKS)
        if steps > 200 * 30:
            assert len(plan) == (looks or LOOKS), "no look may be lost where there is room"


def test_looks_are_denser_early() -> None:
    gaps = np.diff((0, *plan_looks(1000, looks=8)))
    assert (np.diff(gaps) > 0).all()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "6"])
@pytest.mark.parametrize("name", ["every", "looks"])
def test_numbers_of_looks_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value!r}, a whole number from 1 is needed"):
        plan_looks(100, **{name: value})


@pytest.mark.parametrize("steps", [0, -1])
def test_a_run_without_steps(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"the run has {steps} steps, at least 1 is needed"):
        plan_looks(steps)


# Policy


@pytest.mark.parametrize("policy", ["warn", "stop"])
def test_a_name_acts_on_a_regression_alone(policy: str) -> None:
    assert decide(policy, REGRESSED) == Action(policy, REGRESSED.reasons[0])
    assert decide(policy, UNDECIDED) is None and decide(policy, RETAINED) is None


def test_a_function_is_asked_at_every_look() -> None:
    seen: list[Zone] = []

    def policy(verdict: Verdict) -> str | None:
        seen.append(verdict.zone)
        return "stop" if verdict.zone is Zone.UNDECIDED else None

    assert check(policy) is policy
    assert decide(policy, RETAINED) is None and decide(policy, REGRESSED) is None
    assert decide(policy, UNDECIDED) == Action("stop", UNDECIDED.reasons[0])
    assert seen == [Zone.RETAINED, Zone.REGRESSED, Zone.UNDECIDED]


def _fails(_: Verdict) -> str:
    raise KeyError("oops")


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (_fails, "the on_regression function raised KeyError: 'oops'"),
        (lambda: "stop", "the on_regression function raised TypeError"),
        (lambda v: "explode", "the on_regression function gave 'explode', which is none of warn, stop"),
        (lambda v: True, "gave True, which is none of"),
        (lambda v: ["stop"], r"gave ['stop'], which is none of"),
        (lambda v: np.array(["stop", "warn"]), "gave array("),
    ],
)
def test_a_mistake_in_a_function_warns_and_never_ends_a_run(policy: Callable[..., Any], says: str) -> None:
    action = decide(policy, UNDECIDED)
    assert action is not None and action.kind == "warn" and says in action.reason


@pytest.mark.parametrize("policy", ["rollback", "", None, 3, ["warn"]])
def test_a_policy_that_is_none(policy: Any) -> None:
    with pytest.raises(ConfigError, match="on_regression is .*, one of warn, stop or a function is needed"):
        check(policy)


# Monitor


@given(st.integers(1, 10_000), st.none() | st.integers(1, 300), st.floats(1e-4, 0.5))
def test_all_looks_and_the_gate_share_alpha(steps: int, looks: int | None, alpha: float) -> None:
    state = State(looks=plan_looks(steps, looks=looks), alpha=alpha)
    spent = len(state.looks) * state.level.fail + state.gate_level.fail
    assert spent == pytest.approx(alpha) and spent <= alpha * (1 + 1e-9)
    assert state.level.passing == state.gate_level.passing == alpha


def test_levels_do_not_change_while_looks_are_made() -> None:
    state = State(looks=(5, 10), alpha=0.05)
    after, _, _ = on_look(state, 5, UNDECIDED, "warn")
    assert (after.level, after.gate_level) == (state.level, state.gate_level)


def test_looks_are_due_once_and_a_resumed_run_goes_on() -> None:
    state = State(looks=(5, 10, 20), alpha=0.05)
    assert [step for step in range(25) if state.due(step)] == [5, 10, 20]
    resumed = dataclasses.replace(state, done=(5,), zones=(Zone.UNDECIDED,))
    assert [step for step in range(25) if resumed.due(step)] == [10, 20]
    after, _, _ = on_look(resumed, 10, REGRESSED, "warn")
    assert (after.done, after.zones, after.regressed_at) == ((5, 10), (Zone.UNDECIDED, Zone.REGRESSED), 10)
    assert [step for step in range(25) if after.due(step)] == [20]


def test_a_look_is_written_down_with_what_was_done() -> None:
    state = State(looks=(5, 10), alpha=0.05)
    after, events, action = on_look(state, 5, REGRESSED, "stop")
    assert action == Action("stop", REGRESSED.reasons[0]) and after.regressed_at == 5
    look, act = events
    assert (look["event"], look["step"], look["zone"]) == ("look", 5, "regressed")
    assert Verdict.from_dict(look["verdict"]) == REGRESSED
    assert act == {"event": "action", "step": 5, "action": "stop", "reason": REGRESSED.reasons[0]}
    assert state == State(looks=(5, 10), alpha=0.05), "the state before is left as it was"
    later, events, action = on_look(after, 10, RETAINED, "stop")
    assert later.regressed_at == 5 and action is None and len(events) == 1
    again, _, _ = on_look(after, 10, REGRESSED, "stop")
    assert again.regressed_at == 5, "the first look counts"


def test_losses_are_taken_from_the_log_and_nothing_else() -> None:
    state = State(looks=(5,), alpha=0.05)
    log = {"loss": 2, "grad_norm": np.float32(0.5), "learning_rate": 1e-4, "eval_runtime": 3.0, "epoch": 0.1}
    after, events = on_log(state, 3, log)
    assert after == state and events == [{"event": "loss", "step": 3, "loss": 2.0, "grad_norm": 0.5}]
    assert dump(events[0]), "an event is JSON"
    assert on_log(state, 3, {"learning_rate": 1e-4}) == (state, [])
    assert on_log(state, 3, {"loss": "2.0"}) == (state, [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("nan")])
@pytest.mark.parametrize(("name", "word"), [("loss", "training"), ("eval_loss", "held-out")])
def test_a_loss_that_is_not_finite_breaks_the_run(name: str, word: str, value: float) -> None:
    state, events = on_log(State(looks=(5,), alpha=0.05), 3, {name: value})
    assert state.broke == f"the {word} loss is {value} at step 3"
    assert events == [{"event": "loss", "step": 3, name: None}, {"event": "broke", "step": 3, "reason": state.broke}]
    assert all(dump(event) for event in events)
    later, events = on_log(state, 4, {name: value})
    assert later.broke == state.broke and len(events) == 1, "the first reason stays"
    verdict = conclude(state, RETAINED, RETAINED)
    assert verdict.zone is Zone.REGRESSED and verdict.reasons == (state.broke,) and verdict.exit_code == 1


def test_a_gradient_that_is_not_finite_breaks_nothing() -> None:
    # Mixed precision skips such a step.
    state, events = on_log(State(looks=(5,), alpha=0.05), 3, {"loss": 1.0, "reward": math.nan})
    assert state.broke is None and events == [{"event": "loss", "step": 3, "loss": 1.0, "reward": None}]
    state, events = on_log(State(looks=(5,), alpha=0.05), 3, {"loss": 1.0, "grad_norm": math.inf})
    assert state.broke is None and events == [{"event": "loss", "step": 3, "loss": 1.0, "grad_norm": None}]


@pytest.mark.parametrize(
    ("last", "gate", "zone"),
    [
        (None, None, Zone.UNDECIDED),
        (RETAINED, None, Zone.UNDECIDED),
        (UNDECIDED, None, Zone.UNDECIDED),
        (REGRESSED, None, Zone.REGRESSED),
        (None, RETAINED, Zone.RETAINED),
        (None, UNDECIDED, Zone.UNDECIDED),
        (None, REGRESSED, Zone.REGRESSED),
        (RETAINED, RETAINED, Zone.RETAINED),
        (RETAINED, UNDECIDED, Zone.UNDECIDED),
        (RETAINED, REGRESSED, Zone.REGRESSED),
        (UNDECIDED, RETAINED, Zone.RETAINED),
        (UNDECIDED, UNDECIDED, Zone.UNDECIDED),
        (UNDECIDED, REGRESSED, Zone.REGRESSED),
        (REGRESSED, RETAINED, Zone.REGRESSED),
        (REGRESSED, UNDECIDED, Zone.REGRESSED),
        (REGRESSED, REGRESSED, Zone.REGRESSED),
    ],
)
def test_the_gate_decides_and_a_proven_regression_stands(
    last: Verdict | None, gate: Verdict | None, zone: Zone
) -> None:
    state = State(looks=(5,), alpha=0.05)
    verdict = conclude(state, last, gate)
    assert verdict.zone is zone and verdict.reasons
    if gate is not None:
        assert (verdict.capabilities, verdict.pooled) == (gate.capabilities, gate.pooled)
        assert gate.claim in verdict.claim
        if gate.zone is not Zone.REGRESSED and zone is Zone.REGRESSED:
            assert last is not None and verdict.reasons[0] == f"monitor half: {last.reasons[0]}"
            assert verdict.reasons[-1] == f"gate half: {gate.reasons[-1]}"
            # What decided is kept, and what both together may err.
            assert verdict.beside == last and last.claim in verdict.claim and "Together at most 0.05" in verdict.claim
            assert Verdict.from_dict(json.loads(dump(verdict.to_dict()))) == verdict
        else:
            assert verdict == gate
    elif zone is Zone.UNDECIDED:
        assert verdict == broken(
            "the gate half was not measured", zone=Zone.UNDECIDED, step=last.step if last is not None else None
        )
    assert conclude(dataclasses.replace(state, broke="b"), last, gate).zone is Zone.REGRESSED


def test_an_earlier_look_that_regressed_does_not_condemn_a_model_that_recovered() -> None:
    state, _, _ = on_look(State(looks=(5, 10), alpha=0.05), 5, REGRESSED, "warn")
    state, _, _ = on_look(state, 10, RETAINED, "warn")
    assert conclude(state, RETAINED, RETAINED).zone is Zone.RETAINED
