"""What happened in a run and what to change: each state, and the advice that fits it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from backslide.diagnosis import Losses, diagnose, losses_of
from backslide.judge import judge
from backslide.verdict import Zone, broken
from builders import choices, flipped, record

RETAINED = judge(record(choices([True, False] * 400)), record(choices([True, False] * 400)))
UNDECIDED = judge(*(record(outcomes) for outcomes in flipped(60, 1, 2)))
REGRESSED = judge(*(record(outcomes) for outcomes in flipped(60, 20, 0)))

FELL = ((5, 3.0), (10, 1.0))
FLAT = ((5, 3.0), (10, 2.99))  # by less than 2%
ROSE = ((0, 3.0), (10, 3.5))
DROPPED = ((0, 3.0), (10, 2.0))


@pytest.mark.parametrize(
    ("verdict", "losses", "state", "says"),
    [
        (REGRESSED, Losses(FELL), "learning and forgetting", "this is capability regression"),
        (REGRESSED, Losses(FELL, DROPPED), "learning and forgetting", "this is capability regression"),
        (REGRESSED, Losses(FLAT), "not learning but forgetting", "nothing was gained for it"),
        (REGRESSED, Losses(), "not learning but forgetting", "nothing was gained for it"),
        (REGRESSED, Losses(FELL, ROSE), "not learning but forgetting", "fell while the training loss did"),
        (RETAINED, Losses(FELL), "learning and keeping", "Every capability is proven to be kept"),
        (RETAINED, Losses(FLAT), "not learning", "Every capability is proven to be kept"),
        (RETAINED, Losses(FELL, ROSE), "not learning", "It learnt its examples by heart, not the task"),
        (UNDECIDED, Losses(FELL), "learning, retention undecided", "(1 item lost, 2 won)"),
        (UNDECIDED, Losses(FLAT), "not learning", "too few items to prove that all are kept"),
        (broken("the training loss is nan at step 3"), Losses(FELL), "broken", "cannot pass: the training loss is nan"),
    ],
)
def test_states(verdict: Any, losses: Losses, state: str, says: str) -> None:
    got = diagnose(losses, [], verdict, {})
    assert got.state == state and says in " ".join(got.story)
    assert got.regressed_at is None


def test_the_held_out_loss_decides_what_was_learnt_once_there_are_two_of_it() -> None:
    assert diagnose(Losses(FELL, ROSE), [], RETAINED, {}).state == "not learning"
    assert diagnose(Losses(FLAT, DROPPED), [], RETAINED, {}).state == "learning and keeping"
    assert diagnose(Losses(FELL, ROSE[:1]), [], RETAINED, {}).state == "learning and keeping"


def test_both_losses_are_told_with_their_ends() -> None:
    story = diagnose(Losses(FELL, ROSE), [], RETAINED, {}).story
    assert story[0] == "The training loss on the new task fell from 3.00 to 1.00."
    assert story[1] == "The held-out loss on the new task rose from 3.00 to 3.50."
    assert not any("loss" in line for line in diagnose(Losses(FELL[:1]), [], RETAINED, {}).story)


def test_the_first_look_that_proved_it_is_named() -> None:
    looks = [(5, Zone.UNDECIDED), (10, Zone.REGRESSED), (20, Zone.REGRESSED)]
    got = diagnose(Losses(FELL), looks, REGRESSED, {})
    assert got.regressed_at == 10 and got.story[-1] == "The regression was proven at step 10, during training."


def test_advice_without_a_regression() -> None:
    assert diagnose(Losses(FELL), [], RETAINED, {}).advice == ()
    assert "raise the learning rate" in diagnose(Losses(FLAT), [], RETAINED, {}).advice[0]
    heart = diagnose(Losses(FELL, ROSE), [], RETAINED, {}).advice
    assert "fewer passes" in heart[0] and "longer" not in heart[0], "training longer would make it worse"
    assert "add items to the undecided capabilities" in diagnose(Losses(FELL), [], UNDECIDED, {}).advice[0]


@pytest.mark.parametrize(
    ("setup", "first", "others"),
    [
        ({}, "lower the learning rate first, by a factor of 3 to 10.", ["1 to 5% of original-domain data"]),
        (
            {"method": "full", "learning_rate": 1e-3, "epochs": 1},
            "lower the learning rate first: it was 0.001, which is 10 times what is usual at most; try 1e-04.",
            ["an adapter of small rank", "original-domain data"],
        ),
        (
            {"method": "lora", "learning_rate": 1e-3, "rank": 64, "epochs": 6.0},
            "lower the learning rate first: it was 0.001; try 1e-04.",
            ["smaller rank than 64", "original-domain data", "it was seen 6.0 times"],
        ),
        (
            {"method": "lora", "learning_rate": 0.02, "rank": None},
            "lower the learning rate first: it was 0.02, which is 20 times what is usual at most; try 2e-03.",
            ["original-domain data"],
        ),
    ],
)
def test_advice_after_a_regression(setup: dict[str, Any], first: str, others: list[str]) -> None:
    advice = diagnose(Losses(FELL), [], REGRESSED, setup).advice
    assert advice[0] == first and len(advice) == 1 + len(others)
    assert all(part in line for part, line in zip(others, advice[1:], strict=True))


def test_losses_are_read_from_events() -> None:
    events = [
        {"event": "baseline", "step": 0, "loss": 9.0},
        {"event": "loss", "step": 1, "eval_loss": 3.0},
        {"event": "loss", "step": 2, "loss": 2.5, "grad_norm": 1.0},
        {"event": "loss", "step": 3, "loss": None},
        {"event": "loss", "step": 4, "loss": 2, "eval_loss": 2.75},
    ]
    losses = losses_of(events)
    assert losses == Losses(((2, 2.5), (4, 2.0)), ((1, 3.0), (4, 2.75))) and losses.best is losses.held_out
    assert losses_of([]) == Losses() and not any(map(math.isnan, [v for _, v in losses.train]))
