"""Causes come with the numbers that speak for them, are ranked, and lead to a setting that can be typed in."""

from __future__ import annotations

import math
from typing import Any

import pytest

from backslide.diagnosis.causes import PROBLEMS, Cause, causes, next_setting, passes, say_setting, usual_rate

BASE: dict[str, Any] = {
    "method": "full", "learning_rate": 2e-5, "parameters": 135_000_000, "trainable": 135_000_000, "warmup_steps": 10,
    "scheduler": "linear", "steps": 100, "max_steps": 100, "batch_size": 8, "examples": 800, "replay": 0.05,
}  # fmt: skip
LORA = {**BASE, "method": "lora", "trainable": 1_000_000, "rank": 8, "lora_alpha": 16, "learning_rate": 2e-4}


def named(problem: str, setup: dict[str, Any]) -> list[str]:
    return [cause.name for cause in causes(problem, setup)]


def one(name: str, problem: str, setup: dict[str, Any]) -> Cause:
    (found,) = [cause for cause in causes(problem, setup) if cause.name == name]
    return found


def test_what_is_usual_falls_with_size_and_rises_for_adapters() -> None:
    sizes = [1e6, 125e6, 1.3e9, 7e9, 70e9, 1e12]
    rates = [usual_rate("full", size) for size in sizes]
    assert rates == sorted(rates, reverse=True) and rates[0] == 1e-4 and rates[-1] == 5e-6
    assert rates[1] == pytest.approx(6e-5) and 1e-5 < rates[3] < 1.4e-5 and 2e-5 < rates[2] < 2.5e-5
    assert usual_rate("lora", 7e9) == 10 * usual_rate("full", 7e9)
    assert usual_rate("full", None) == usual_rate("full", 0) == 2e-5 and usual_rate(None, None) == 2e-4


def test_a_usual_setup_gives_no_cause() -> None:
    for setup in (LORA, {}, {"method": "lora"}):
        assert named("forgetting", {**setup, "learning_rate": 5e-5}) == []
    assert named("forgetting", BASE) == ["weights trained"], "that all weights were trained is a fact about it"


def test_the_learning_rate_is_the_first_suspect_above_1e_4() -> None:
    setup = {**BASE, "learning_rate": 5e-4, "examples": 3, "replay": 0.0, "warmup_steps": 0, "scheduler": "constant"}
    found = causes("forgetting", setup)
    assert [cause.name for cause in found] == [
        "learning rate", "passes over the data", "no original-domain data", "weights trained", "constant schedule",
        "no warm-up",
    ]  # fmt: skip
    assert [cause.weight for cause in found] == sorted((cause.weight for cause in found), reverse=True)
    assert found[0].evidence == (
        "it was 0.0005, 8.6 times the 6e-05 that is usual for full fine-tuning of a model with 135M parameters; above "
        "0.0001 it is the first suspect"
    )
    assert found[1].evidence == "3 examples were seen 266.7 times; 1 to 3 passes are usual"
    assert found[3].evidence == "all 135M weights were trained; an adapter trains 1% or less of them"


@pytest.mark.parametrize(
    ("setup", "listed", "first"),
    [
        ({**BASE, "learning_rate": 1.1e-4}, True, True),
        ({**BASE, "learning_rate": 5e-5}, False, False),
        ({**BASE, "learning_rate": 5e-5, "parameters": 7e9}, True, True),
        ({**LORA, "learning_rate": 1e-3, "examples": 10}, True, True),
        ({**LORA, "learning_rate": 2e-4, "examples": 10}, True, False),  # above 1e-4, below what is usual
        ({**LORA, "learning_rate": 1e-4}, False, False),
        ({"learning_rate": 5e-3}, True, True),
        ({"learning_rate": 0.0}, False, False),
        ({"learning_rate": "auto"}, False, False),
        ({"learning_rate": math.nan}, False, False),
        ({"learning_rate": True}, False, False),
    ],
)
def test_when_the_learning_rate_is_listed(setup: dict[str, Any], listed: bool, first: bool) -> None:
    names = named("forgetting", setup)
    assert ("learning rate" in names) is listed
    assert (names[:1] == ["learning rate"]) is first


def test_the_adapters_scaling_counts_and_its_rank_a_little() -> None:
    strong = {**LORA, "lora_alpha": 64, "rank": 8}
    assert one("adapter scaling", "forgetting", strong).evidence == (
        "alpha 64 over rank 8 multiplies the adapter's update by 8; 2 is usual"
    )
    assert "adapter scaling" not in named("forgetting", {**LORA, "lora_alpha": 32, "rank": 64, "rslora": False})
    rooted = one("adapter scaling", "forgetting", {**LORA, "lora_alpha": 32, "rank": 64, "rslora": True})
    assert "over the root of rank 64" in rooted.evidence and " 4;" in rooted.evidence
    assert one("rank", "forgetting", {**LORA, "rank": 256}).weight < 0.35
    assert "rank" not in named("forgetting", {**LORA, "rank": 32})
    assert "rank" not in named("forgetting", {**LORA, "rank": 0, "lora_alpha": 5})


def test_passes_are_recorded_or_counted() -> None:
    assert passes({"epochs": 4.5, "examples": 3}) == 4.5
    assert passes({"steps": 24, "batch_size": 3, "examples": 3}) == 24
    assert passes({"max_steps": 24, "batch_size": 3, "examples": 3}) == 24
    assert (
        passes({"steps": 24, "batch_size": 3}) is None and passes({"steps": 1, "batch_size": 1, "examples": 0}) is None
    )
    few = one("passes over the data", "forgetting", {**BASE, "epochs": 12, "examples": 50})
    many = one("passes over the data", "forgetting", {**BASE, "epochs": 12, "examples": 50_000})
    assert few.weight > many.weight and many.evidence.startswith("50,000 examples were seen 12.0 times")
    assert one("passes over the data", "forgetting", {"epochs": 9}).evidence.startswith(
        "the training data was seen 9.0"
    )


def test_other_causes_need_their_numbers() -> None:
    assert "no original-domain data" not in named("forgetting", {}), "not known is not none"
    assert "none of" in one("no original-domain data", "forgetting", {"replay": 0}).evidence
    assert "only 0.5% of" in one("no original-domain data", "forgetting", {"replay": 0.005}).evidence
    assert "90% of the weights" in one("weights trained", "forgetting", {"trainable": 90, "parameters": 100}).evidence
    assert "weights trained" not in named("forgetting", {"trainable": 10, "parameters": 0})
    assert "no warm-up" not in named("forgetting", {**BASE, "warmup_steps": 0}), "at a usual rate none is needed"
    assert "no warm-up" in named("diverged", {**BASE, "warmup_steps": 0})
    assert "constant schedule" in named("forgetting", {"scheduler": "constant_with_warmup"})
    assert named("forgetting", {"scheduler": None, "warmup_steps": None}) == []


def test_each_problem_has_its_own_causes() -> None:
    loud = {**BASE, "learning_rate": 1e-2, "warmup_steps": 0, "epochs": 40, "examples": 20}
    assert set(named("overfitting", loud)) == {"passes over the data", "learning rate"}
    assert named("overfitting", {**loud, "learning_rate": 6e-5}) == ["passes over the data"]
    assert named("diverged", loud) == ["learning rate", "no warm-up"]
    quiet = {**BASE, "learning_rate": 1e-7, "epochs": 0.1, "steps": 4}
    assert named("not learning", quiet) == ["learning rate", "few steps"]
    assert one("few steps", "not learning", quiet).evidence == "10% of the training data was seen in 4 steps"
    assert named("not learning", BASE) == []
    with pytest.raises(ValueError, match="one of forgetting"):
        causes("hunger", {})


@pytest.mark.parametrize(
    ("problem", "setup", "values"),
    [
        ("forgetting", {**BASE, "learning_rate": 5e-4, "replay": 0.0}, {"learning_rate": 6e-5, "replay": 0.05}),
        ("forgetting", {**BASE, "learning_rate": 1.5e-4}, {"learning_rate": 5e-5}),
        # The rate is not what is wrong: fewer weights.
        ("forgetting", BASE, {"learning_rate": 2e-5, "method": "lora", "lora_r": 8, "lora_alpha": 16}),
        ("forgetting", {**LORA, "learning_rate": 3e-3, "replay": None}, {"learning_rate": 6e-4, "replay": 0.05}),
        (
            "forgetting",
            {**LORA, "learning_rate": 3e-3, "rank": 128, "lora_alpha": 1024, "epochs": 9, "scheduler": "constant"},
            {"learning_rate": 6e-4, "lora_r": 8, "lora_alpha": 16, "epochs": 3.0, "scheduler": "linear"},
        ),
        ("forgetting", {**LORA, "lora_alpha": 64}, {"learning_rate": 7e-5, "lora_r": 8, "lora_alpha": 16}),
        ("forgetting", {}, {"replay": 0.05}),
        ("overfitting", {**BASE, "epochs": 4, "learning_rate": 3e-5}, {"epochs": 2.0}),
        ("overfitting", {**LORA, "rank": 128, "lora_alpha": 256}, {"lora_r": 8, "lora_alpha": 16}),
        ("overfitting", {}, {}),
        ("diverged", {**BASE, "learning_rate": 1e-2, "warmup_steps": 0}, {"learning_rate": 6e-5, "warmup_steps": 10}),
        ("diverged", {"learning_rate": 1e-4, "warmup_steps": 0}, {"learning_rate": 3e-5, "warmup_steps": 10}),
        ("diverged", {}, {}),
        ("not learning", {**BASE, "learning_rate": 1e-7}, {"learning_rate": 6e-5}),
        ("not learning", {**BASE, "learning_rate": 1e-7, "epochs": 0.2}, {"learning_rate": 6e-5, "epochs": 3.0}),
        ("not learning", {}, {}),
    ],
)  # fmt: skip
def test_the_next_setting(problem: str, setup: dict[str, Any], values: dict[str, Any]) -> None:
    assert next_setting(problem, setup, causes(problem, setup)) == values


def test_a_setting_is_said_as_it_is_typed() -> None:
    assert say_setting({"learning_rate": 6e-5, "lora_r": 8, "method": "lora", "replay": 0.05}) == (
        "learning_rate = 6e-05, lora_r = 8, method = lora, replay = 0.05"
    )
    assert say_setting({}) == ""


KEYS = (*BASE, "rank", "lora_alpha", "rslora", "epochs")


@pytest.mark.parametrize(
    "value", [None, "x", [], {}, math.nan, math.inf, -math.inf, 0, -1, -1e-300, 1e300, 10**400, True]
)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_an_unusable_setup_is_no_cause_and_no_crash(problem: str, value: Any) -> None:
    for keys in ([key] for key in KEYS):
        setup = {**LORA, **dict.fromkeys(keys, value)}
        found = causes(problem, setup)
        setting = next_setting(problem, setup, found)
        assert all(0 <= cause.weight <= 1 and "nan" not in cause.evidence for cause in found)
        numbers = [v for v in setting.values() if isinstance(v, (int, float))]
        assert all(math.isfinite(v) and v > 0 for v in numbers)
    everything = dict.fromkeys(KEYS, value)
    assert next_setting(problem, everything, causes(problem, everything)) is not None
