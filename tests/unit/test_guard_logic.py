"""When to look, what to do, and what the guard knows: schedule, policy and monitor, without a framework."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backslide.errors import ConfigError
from backslide.files import dump
from backslide.guard.monitor import State, again, conclude, on_log, on_look
from backslide.guard.policy import Action, check, decide
from backslide.guard.schedule import (
    FEWEST_ITEMS,
    WORTHWHILE,
    Pace,
    check_budget,
    choose,
    count_looks,
    in_order,
    must_look,
    next_look,
    plan_looks,
)
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
        # Where ½ log(1 + s/20)/log 6 + ½ s/100 is ¼, ½ and ¾: by hand at s = 16, .164 + .080; 39, .302 + .195.
        (100, {"looks": 4}, (16, 39, 68, 100)),
        (3, {"looks": 10}, (1, 2, 3)),
        (1, {}, (1,)),
        (200, {}, (12, 28, 48, 72, 100, 131, 165, 200)),
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
        assert len(plan) <= (looks or count_looks(steps))
        if steps > 200 * 30:
            assert len(plan) == (looks or count_looks(steps)), "no look may be lost where there is room"


@given(st.integers(1, 10**7))
def test_longer_runs_have_more_looks_but_not_many(steps: int) -> None:
    assert 4 <= count_looks(steps) <= count_looks(2 * steps) <= 16


@pytest.mark.parametrize("steps", [200, 1000, 10_000])
def test_looks_are_denser_early(steps: int) -> None:
    gaps = np.diff((0, *plan_looks(steps)))
    assert (np.diff(gaps) > 0).all()
    assert sum(step <= 150 for step in plan_looks(steps)) >= 2, "most damage comes in the first 150 steps"


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "6"])
@pytest.mark.parametrize("name", ["every", "looks"])
def test_numbers_of_looks_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value!r}, a whole number from 1 is needed"):
        plan_looks(100, **{name: value})


@pytest.mark.parametrize("steps", [0, -1])
def test_a_run_without_steps(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"the run has {steps} steps, at least 1 is needed"):
        plan_looks(steps)


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, True, "5%", math.nan, math.inf])
def test_a_budget_that_is_no_share(budget: Any) -> None:
    with pytest.raises(ConfigError, match="budget is .*, a share of the training's time above 0 and up to 1 is needed"):
        check_budget(budget)


def test_a_look_takes_what_its_allowance_pays() -> None:
    # 200 steps of 2 s at 5%: 20 s, of which 10 s are spent. Two looks are left: 5 s each.
    pace = Pace(budget=0.05, steps=200, step=2.0, spent=10.0)
    assert pace.total == pytest.approx(20.0) and pace.allowance(2) == pytest.approx(5.0)
    costs, items = [1.0] * 10, [30] * 10
    assert choose(costs, items, pace.allowance(2), needed=False) == 5
    assert choose(costs, items, 100.0, needed=False) == 10, "never more than there is"
    assert choose(costs, items, 4.9, needed=False) == 0, "less than half of the items is not worth a look"
    assert choose([1.0] * 100, [30] * 100, 8.1, needed=False) == 8, "240 items are"
    assert choose([1.0] * 100, [30] * 100, 7.9, needed=False) == 0
    assert choose(costs, items, 3.1, needed=True) == 3
    assert choose(costs, items, -7.0, needed=True) == 2, "the few looks that must be are the least that says anything"
    assert choose([5.0], [10], 1.0, needed=True) == 1, "a half smaller than that is taken whole"


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 64)), min_size=1, max_size=40),
    st.floats(-5, 200),
    st.booleans(),
)
def test_a_look_is_as_large_as_is_paid_for_or_as_small_as_makes_sense(
    packs: list[tuple[float, int]], allowance: float, needed: bool
) -> None:
    costs, items = [cost for cost, _ in packs], [count for _, count in packs]
    count = choose(costs, items, allowance, needed=needed)
    if count == 0:
        assert not needed
        return
    least = FEWEST_ITEMS if needed else max(FEWEST_ITEMS, min(WORTHWHILE, sum(items) / 2))
    assert sum(items[:count]) >= min(least, sum(items))
    if sum(costs[:count]) > allowance:
        assert needed and (count == 1 or sum(items[: count - 1]) < FEWEST_ITEMS)
    elif count < len(costs):
        assert sum(costs[: count + 1]) > allowance


def test_the_first_the_middle_and_the_last_look_are_taken_whatever_they_cost() -> None:
    assert [number for number in range(1, 10) if must_look(number, 9)] == [1, 5, 9]
    assert must_look(1, 1) and must_look(1, 2) and must_look(2, 2)


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), min_size=1, max_size=12))
def test_growing_looks_hold_every_capability_as_soon_as_they_can(packs: list[list[str]]) -> None:
    costs = [float(len(pack)) for pack in packs]
    order = in_order(packs, costs)
    assert sorted(order) == list(range(len(packs))) and order == in_order(packs, costs)


def test_looks_of_growing_size_keep_capabilities_in_proportion() -> None:
    packs = [["a"] * 4] * 10 + [["b"] * 4] * 10 + [["c"] * 4] * 2
    order = in_order(packs, [1.0] * 22)
    first = [packs[place][0] for place in order[:3]]
    assert sorted(first) == ["a", "b", "c"]
    half = Counter(packs[place][0] for place in order[:11])
    assert abs(half["a"] - half["b"]) <= 1 and half["c"] >= 1


@given(st.integers(0, 10**6))
def test_looks_of_a_run_without_end_come_ever_less_often(last: int) -> None:
    assert last + 10 <= next_look(last) <= max(last + 10, 1.4 * last + 1)


# Policy


@pytest.mark.parametrize("policy", ["warn", "stop", "rollback", "lower_lr", "replay"])
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
        (
            lambda v: "explode",
            "the on_regression function gave 'explode', which is none of warn, stop, rollback, lower_lr, replay",
        ),
        (lambda v: True, "gave True, which is none of"),
        (lambda v: ["stop"], r"gave ['stop'], which is none of"),
        (lambda v: np.array(["stop", "warn"]), "gave array("),
    ],
)
def test_a_mistake_in_a_function_warns_and_never_ends_a_run(policy: Callable[..., Any], says: str) -> None:
    action = decide(policy, UNDECIDED)
    assert action is not None and action.kind == "warn" and says in action.reason


@pytest.mark.parametrize("policy", ["explode", "", None, 3, ["warn"]])
def test_a_policy_that_is_none(policy: Any) -> None:
    with pytest.raises(
        ConfigError, match="on_regression is .*, one of warn, stop, rollback, .* or a function is needed"
    ):
        check(policy)


def test_a_policy_that_is_nearly_one_and_one_that_lacks_its_function() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rollback'"):
        check("roll_back")
    with pytest.raises(ConfigError, match="needs replay=, a function"):
        check("replay")
    assert check("replay", replay=True) == "replay"


# Monitor


@given(st.integers(1, 10_000), st.none() | st.integers(1, 300), st.floats(1e-4, 0.5), st.data())
def test_looks_and_gate_share_alpha_whatever_is_passed_over(
    steps: int, looks: int | None, alpha: float, data: st.DataObject
) -> None:
    state = State(looks=plan_looks(steps, looks=looks), alpha=alpha)
    taken = data.draw(st.sets(st.sampled_from(state.looks)))
    tested = []
    for step in sorted(taken):
        tested.append(state.share(step))
        level = state.level(step)
        assert level is not None and level.fail == tested[-1] and level.passing == alpha
        state, _, _ = on_look(state, step, UNDECIDED, "warn")
    # Wherever the run ends, its last look has what is left; the whole plan leaves nothing.
    rest = state.share(steps, last=True)
    assert (rest == 0) == (steps in taken) and (state.level(steps, last=True) is None) == (steps in taken)
    assert sum(tested) + rest == pytest.approx(state.looks_alpha)
    assert sum(tested) + rest + state.gate_level.fail <= alpha * (1 + 1e-9)


def test_a_look_that_was_passed_over_leaves_its_share_to_the_next() -> None:
    state = State(looks=(5, 10, 20, 40), alpha=0.08)
    assert state.share(5) == pytest.approx(0.01) and state.share(10) == pytest.approx(0.02)
    state, _, _ = on_look(state, 10, UNDECIDED, "warn")
    assert state.share(20) == pytest.approx(0.01) and state.share(20, last=True) == pytest.approx(0.02)


def test_looks_without_a_plan_spend_ever_less() -> None:
    state, shares = State(looks=(), alpha=0.1, open=True), []
    for look in range(50):
        shares.append(state.share(10 * look + 10))
        state, _, _ = on_look(state, 10 * look + 10, UNDECIDED, "warn")
    assert shares[:3] == pytest.approx([0.05 / 2, 0.05 / 6, 0.05 / 12]) and sum(shares) < 0.05


def test_a_look_that_comes_by_again_has_its_alpha_and_another_in_its_place_has_none() -> None:
    state, _, _ = on_look(State(looks=(5, 10, 20), alpha=0.06), 5, UNDECIDED, "warn")
    back = dataclasses.replace(state, waiting=((10, "w", 0.01),))
    assert back.level(10) is None, "its α was spent on other weights"
    assert back.share(20) == pytest.approx(0.01)
    assert back.share(7, last=True) == pytest.approx(0.01), "a run that ends before it keeps off its share"
    assert again(back, 10, "other weights") == back
    same = again(back, 10, "w")
    assert same.share(10) == pytest.approx(0.01) and same == state


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
    (look,) = events
    assert (look["event"], look["step"], look["zone"]) == ("look", 5, "regressed")
    assert Verdict.from_dict(look["verdict"]) == REGRESSED
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
