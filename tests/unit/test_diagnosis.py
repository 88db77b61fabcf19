"""What happened in a run and what to change: each state, what goes before what, and the advice that fits it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from backslide.diagnosis import Diagnosis, Knowledge, Losses, diagnose
from backslide.diagnosis.states import STATES, Facts, is_broken, state_of
from backslide.guard.monitor import State, conclude
from backslide.judge import Alarms, judge
from backslide.verdict import Verdict, Zone, broken
from builders import choices, flipped, record

RETAINED = judge(record(choices([True, False] * 400)), record(choices([True, False] * 400)))
UNDECIDED = judge(*(record(outcomes) for outcomes in flipped(60, 1, 2)))
REGRESSED = judge(*(record(outcomes) for outcomes in flipped(60, 20, 0)))
NOT_FINITE = judge(record(choices([True] * 60)), record(choices([True] * 60, broken=[4])))
EMPTY = broken("the gate half was not measured", zone=Zone.UNDECIDED)

FELL = ((5, 3.0), (10, 1.0))
ROSE = ((0, 3.0), (10, 3.5))
DROPPED = ((0, 3.0), (10, 2.0))
LEVEL = ((0, 3.0), (10, 2.99))
CLOSE = ((5, 3.0), (10, 2.9))
SETTLED = tuple((k, 1 + 2 * math.exp(-k / 4)) for k in range(1, 61))
BLEW = (*((k, 2.0) for k in range(1, 7)), *((k, 9.0) for k in range(7, 15)))
HEART = Losses(FELL, ROSE)
TURNED = Losses(FELL, ((0, 3.0), (5, 2.0), (10, 2.5)))


def told(losses: Losses, verdict: Verdict, looks: Any = (), setup: Any = None, **more: Any) -> Diagnosis:
    return diagnose(losses, looks, verdict, setup or {}, **more)


@pytest.mark.parametrize(
    ("verdict", "losses", "state", "also", "says"),
    [
        (REGRESSED, Losses(FELL), "learning and forgetting", (), "this is capability regression"),
        (REGRESSED, Losses(FELL, DROPPED), "learning and forgetting", (), "this is capability regression"),
        (REGRESSED, Losses(FELL, LEVEL), "not learning but forgetting", (), "nothing was gained for it"),
        (REGRESSED, Losses(CLOSE), "forgetting, learning unknown", (), "too little is known"),
        (REGRESSED, Losses(), "forgetting, learning unknown", (), "too little is known"),
        (REGRESSED, HEART, "not learning but forgetting", ("overfitting",), "fell while the training loss did"),
        (REGRESSED, TURNED, "learning and forgetting", ("overfitting",), "From step 5 on the held-out loss rose"),
        (REGRESSED, Losses(SETTLED), "learning and forgetting", ("converged",), "it has converged"),
        (RETAINED, Losses(FELL), "learning and keeping", (), "Every capability is proven to be kept"),
        (RETAINED, Losses(FELL, LEVEL), "not learning", (), "Every capability is proven to be kept"),
        (RETAINED, Losses(), "keeping, learning unknown", (), "Every capability is proven to be kept"),
        (RETAINED, HEART, "overfitting", ("not learning",), "It learnt its examples by heart, not the task"),
        (RETAINED, TURNED, "overfitting", ("learning and keeping",), "From step 5 on the held-out loss rose"),
        (RETAINED, Losses(SETTLED), "converged", ("learning and keeping",), "flat over the last third"),
        (UNDECIDED, Losses(FELL), "learning, retention undecided", (), "(1 item lost, 2 won)"),
        (UNDECIDED, Losses(FELL, LEVEL), "not learning", (), "too few items to prove that all are kept"),
        (UNDECIDED, Losses(SETTLED), "converged", ("learning, retention undecided",), "flat over the last third"),
        (UNDECIDED, Losses(), "undecided", (), "too few items"),
        (
            EMPTY,
            Losses(FELL),
            "learning, retention undecided",
            (),
            "Nothing was compared: the gate half was not measured",
        ),
        (
            broken("the training loss is nan at step 3"),
            Losses(FELL),
            "broken",
            (),
            "cannot pass: the training loss is nan",
        ),
        (broken("x"), Losses(FELL, not_finite=(3,)), "diverged", ("broken",), "not a finite number at step 3"),
        (NOT_FINITE, Losses(FELL), "broken", (), "a log-likelihood that is not finite"),
        (REGRESSED, Losses(BLEW), "diverged", ("not learning but forgetting",), "ended well above its start"),
        (RETAINED, Losses(BLEW), "diverged", ("not learning",), "ended well above its start"),
    ],
)
def test_states(verdict: Verdict, losses: Losses, state: str, also: tuple[str, ...], says: str) -> None:
    got = told(losses, verdict)
    assert (got.state, got.also) == (state, also) and says in " ".join(got.story)
    assert got.regressed_at is None and got.state in STATES


def test_at_the_end_a_run_is_named_by_what_it_kept() -> None:
    got = told(Losses(SETTLED), RETAINED, final=True)
    assert (got.state, got.also) == ("learning and keeping", ("converged",))
    assert "stop here" not in " ".join(got.advice)
    assert "stop here" in told(Losses(SETTLED), RETAINED).advice[0]


def test_exactly_one_state_holds_for_all_facts() -> None:
    for learned in (True, False, None):
        for turned in (None, 5):
            for converged in (True, False, None):
                for diverged in (True, False):
                    for zone in Zone:
                        for final in (True, False):
                            facts = Facts(learned, turned, converged, diverged, zone, broken=False)
                            state, also = state_of(facts, final=final)
                            assert state in STATES and set(also) < set(STATES) and state not in also


def test_a_verdict_that_broke_is_told_from_one_that_forgot() -> None:
    assert is_broken(broken("x")) and is_broken(NOT_FINITE)
    assert not any(map(is_broken, (REGRESSED, RETAINED, UNDECIDED, EMPTY)))
    # What the monitor half proved stands beside a gate half that is undecided.
    old, lost = flipped(60, 20, 0)
    last = judge(record(old), record(lost, part="monitor"), alarms=Alarms(frozenset({"math"}), 0.02, "joint test"))
    both = conclude(State(looks=(5,), alpha=0.05), last, judge(record(old), record(old, part="gate")))
    assert both.zone is Zone.REGRESSED and not is_broken(both)


def test_all_curves_are_told_with_their_ends() -> None:
    story = told(Losses(FELL, ROSE, ((1, -0.5), (9, 0.25))), RETAINED).story
    assert story[:3] == (
        "The training loss on the new task fell from 3.00 to 1.00.",
        "The held-out loss on the new task rose from 3.00 to 3.50.",
        "The reward on the new task rose from -0.50 to 0.25.",
    )
    assert not any("loss" in line for line in told(Losses(FELL[:1]), RETAINED).story)
    assert "stayed at 2.00" in told(Losses(((1, 2.0), (2, 2.0))), RETAINED).story[0]


def test_the_first_look_that_proved_it_is_named() -> None:
    looks = [(5, UNDECIDED), (20, REGRESSED), (10, REGRESSED)]
    got = told(Losses(FELL), REGRESSED, looks)
    assert got.regressed_at == 10 and "The regression was proven at step 10, during training." in got.story
    better = told(Losses(FELL), UNDECIDED, [*looks, (30, UNDECIDED)])
    assert better.regressed_at == 10 and "at this look none is" in better.story[-1] and better.onset is None
    assert "on the gate half none is" in told(Losses(FELL), UNDECIDED, looks, final=True).story[-1]


def test_of_two_looks_at_one_step_the_last_counts() -> None:
    got = told(Losses(FELL), REGRESSED, [(5, REGRESSED), (5, UNDECIDED), (10, REGRESSED)])
    assert got.regressed_at == 10


def test_since_when_is_told_with_its_uncertainty() -> None:
    def look(lost: int) -> Verdict:
        return judge(*(record(outcomes) for outcomes in flipped(200, lost, 0)))

    got = told(Losses(FELL), look(50), [(10, look(0)), (20, look(1)), (30, look(40)), (40, look(50))])
    assert got.onset is not None and (got.onset.after, got.onset.before) == (20, 30)
    (line,) = [line for line in got.story if "began to fall" in line]
    assert line.startswith("It began to fall between step 20 and step 30 (probability ")
    assert line.endswith("with 95% (math, accuracy, 4 looks).")
    vague = told(Losses(FELL), REGRESSED, [(10, look(1)), (20, look(0))])
    assert vague.onset is not None and not vague.onset.seen
    assert "Since when is not to be told from 2 looks (math, accuracy)." in vague.story


@pytest.mark.parametrize(
    ("seen", "kind", "says"),
    [
        (
            Knowledge(20, 18, 17, 0.73, 0.99, 0.25),
            "format",
            "the knowledge is there; what changed is how the model replies",
        ),
        (Knowledge(20, 20, 2, 0.01, 0.32, 0.25), "knowledge", "the knowledge itself is gone"),
        (Knowledge(60, 60, 30, 0.37, 0.63, 0.25), "both", "a part of the knowledge is gone"),
        (Knowledge(1, 1, 1, 0.03, 1.0, 0.25), "unclear", "Of 1 answer that was right before and wrong now"),
        (Knowledge(3, 0, 0, 0.0, 1.0, 0.25), "unclear", "they tell nothing"),
    ],
)
def test_what_was_lost_is_told_with_its_counts(seen: Knowledge, kind: str, says: str) -> None:
    got = told(Losses(FELL), REGRESSED, knowledge=seen)
    assert got.kind == kind and says in got.story[-1]
    assert any("still known" in line for line in got.advice) is (kind == "format")
    if seen.counted and seen.counted < seen.lost:
        assert "in 17 (94%, 73% to 99%; blindly 25%; 18 of them count" in got.story[-1]
    assert told(Losses(FELL), REGRESSED).kind is None


def test_causes_and_the_next_setting_follow_the_state() -> None:
    setup = {
        "method": "full", "learning_rate": 1e-3, "parameters": 1.35e8, "trainable": 1.35e8, "epochs": 9,
        "warmup_steps": 0,
    }  # fmt: skip
    forgets = told(Losses(FELL), REGRESSED, setup=setup)
    assert forgets.causes[0].name == "learning rate"
    assert forgets.next_setting == {"learning_rate": 6e-5, "replay": 0.05, "epochs": 3.0}
    assert forgets.advice[0] == "next setting: learning_rate = 6e-05, replay = 0.05, epochs = 3."
    assert told(HEART, RETAINED, setup=setup).causes[0].name == "passes over the data"
    assert [c.name for c in told(Losses(BLEW), RETAINED, setup=setup).causes] == ["learning rate", "no warm-up"]
    fine = told(Losses(FELL), RETAINED, setup=setup)
    assert fine.causes == () and fine.next_setting == {} and fine.advice == ()


def test_advice_without_a_setup() -> None:
    assert told(Losses(FELL), REGRESSED).advice[:2] == (
        "next setting: replay = 0.05.",
        "lower the learning rate first, by a factor of 3 to 10.",
    )
    assert "train longer, or raise the learning rate: there is room." in told(Losses(FELL, LEVEL), RETAINED).advice
    heart = told(HEART, RETAINED).advice
    assert "fewer passes" in heart[0] and not any("longer" in line for line in heart), "that would make it worse"
    assert "lowest at about step 5" in told(TURNED, RETAINED).advice[0]
    assert "add items to the undecided capabilities" in told(Losses(FELL), UNDECIDED).advice[-1]
    assert "warm it up" in told(Losses(BLEW), REGRESSED).advice[0]
    assert "small rank" in told(Losses(FELL), REGRESSED, setup={"method": "full", "learning_rate": 1e-3}).advice[-1]


def test_advice_goes_on_from_the_cures_that_the_run_had() -> None:
    def lines(**setup: float) -> str:
        return " ".join(told(Losses(FELL), REGRESSED, setup=setup).advice)

    assert "next setting: replay = 0.05." in lines(replay=0.01), "what is usual first"
    assert "replay = 0.1 instead of 0.05." in lines(replay=0.05) and "next setting" not in lines(replay=0.05)
    assert "replay = 0.25 instead of 0.1." in lines(replay=0.1)
    assert "original-domain data" not in lines(replay=0.25), "more was not measured"
    assert (
        "anchor = 0.1" in lines(replay=0.25)
        and "anchor = 0.1" in lines(anchor=0.0)
        and "anchor" not in lines(anchor=1.0)
    )


@pytest.mark.parametrize("final", [False, True])
def test_a_diagnosis_is_json(final: bool) -> None:
    looks = [(10, UNDECIDED), (20, REGRESSED)]
    seen = Knowledge(20, 18, 17, 0.73, 0.99, 0.25)
    for losses in (Losses(), HEART, Losses(BLEW), Losses(FELL, not_finite=(3,))):
        for verdict in (REGRESSED, RETAINED, UNDECIDED, EMPTY, NOT_FINITE, broken("x")):
            got = diagnose(losses, looks, verdict, {"learning_rate": 1e-3}, knowledge=seen, final=final)
            row = json.loads(json.dumps(got.to_dict(), allow_nan=False))
            assert row["state"] == got.state and row["kind"] == "format"
            assert set(row) - {"kind"} == {field.name for field in dataclasses.fields(got)}


def test_hostile_curves_are_no_crash() -> None:
    nasty: list[Any] = [
        (), ((0, 0.0),), ((0, 0.0), (1, 0.0)), ((0, -0.0), (5, -1e-300)), ((0, 1e300), (1, -1e300)),
        ((1, math.nan), (2, math.inf), (3, -math.inf)), tuple((k, (-1) ** k * 1e29) for k in range(40)),
        tuple((7, float(k)) for k in range(30)), tuple((k, 5.0) for k in range(30, 0, -1)), ((-5, 1.0), (10**12, 2.0)),
    ]  # fmt: skip
    for train in nasty:
        for held in nasty:
            got = told(Losses(train, held, train), REGRESSED, [(3, REGRESSED)])
            assert got.state in STATES and "nan" not in " ".join(got.story)
