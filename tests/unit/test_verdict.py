from __future__ import annotations

import dataclasses
import json
import random

import pytest
from scipy.stats import binomtest

from backslide.errors import ConfigError, MismatchError, RecordError
from backslide.record import Outcome, Record
from backslide.verdict import Level, Tolerance, Verdict, Zone, broken, judge
from builders import choices, record


def flipped(n: int, lost: int, won: int, name: str = "math") -> tuple[list[Outcome], list[Outcome]]:
    old = [i < n - won for i in range(n)]
    new = [lost <= i for i in range(n)]
    return choices(old, name), choices(new, name)


def test_a_model_against_itself_has_no_flip_and_never_fails() -> None:
    old = record(choices([True, False] * 40))
    verdict = judge(old, old)
    (row,) = verdict.capabilities
    assert (row.lost, row.won, row.drop) == (0, 0, 0)
    assert verdict.zone is Zone.UNDECIDED and verdict.exit_code == 3
    assert row.items_to_decide is not None and row.items_to_decide > 80


def test_enough_identical_items_prove_retention() -> None:
    old = record(choices([True, False] * 400))
    verdict = judge(old, old)
    assert verdict.zone is Zone.RETAINED and verdict.exit_code == 0
    (row,) = verdict.capabilities
    assert row.upper is not None and row.upper <= row.tolerance


@pytest.mark.parametrize(("lost", "won"), [(4, 0), (5, 0), (8, 1), (9, 1), (12, 4), (13, 4), (20, 20)])
def test_one_capability_fails_exactly_where_mcnemar_rejects(lost: int, won: int) -> None:
    old, new = flipped(60, lost, won)
    verdict = judge(record(old), record(new))
    p = binomtest(lost, lost + won, 0.5, alternative="greater").pvalue
    assert (verdict.zone is Zone.REGRESSED) == (p <= 0.05)
    assert verdict.capabilities[0].p_value == pytest.approx(p)


def test_alpha_is_divided_by_all_tests_of_a_look() -> None:
    # 6 lost of 60: p = 1/64, below .05 alone; with two capabilities and the row of all items it is above .05 / 3.
    old, new = flipped(60, 6, 0)
    others = choices([True] * 60, "other")
    assert judge(record(old), record(new)).zone is Zone.REGRESSED
    both = judge(record(old, others), record(new, others))
    assert both.capabilities[0].alpha_fail == pytest.approx(0.05 / 3)
    assert both.capabilities[0].zone is Zone.REGRESSED  # 1/64 = .0156 < .0167
    third = choices([True] * 60, "third")
    assert judge(record(old, others, third), record(new, others, third)).capabilities[0].zone is not Zone.REGRESSED


def test_a_loss_spread_thinly_fails_by_the_row_of_all_items() -> None:
    groups = [flipped(40, 3, 0, f"c{i}") for i in range(6)]
    verdict = judge(record(*(g[0] for g in groups)), record(*(g[1] for g in groups)))
    assert all(row.zone is Zone.UNDECIDED for row in verdict.capabilities)
    assert verdict.zone is Zone.REGRESSED and verdict.reasons[0].startswith("all items: lost 18 and won 0")


def test_the_row_of_all_items_never_passes_a_model() -> None:
    groups = [choices([True] * 60, f"c{i}") for i in range(10)]
    verdict = judge(record(*groups), record(*groups))
    assert verdict.pooled is not None and verdict.pooled.zone is Zone.RETAINED
    assert verdict.zone is Zone.UNDECIDED


def test_log_likelihoods_that_are_not_finite_fail_with_that_reason() -> None:
    old = record(choices([True] * 30))
    verdict = judge(old, record(choices([True] * 30, broken=[3])))
    assert verdict.zone is Zone.REGRESSED
    assert "not finite" in verdict.reasons[0] and "math/3" in verdict.reasons[0]


def test_a_baseline_that_is_not_finite_never_passes() -> None:
    old = choices([True] * 800, broken=[5])
    assert judge(record(old), record(old)).zone is Zone.UNDECIDED


def test_open_items_alone_decide_nothing() -> None:
    opened = [Outcome(id="o", kind="open", capability="talk", request="r", reply="Paris")]
    verdict = judge(record(opened), record(opened))
    assert verdict.zone is Zone.UNDECIDED and "no item with a verdict" in verdict.reasons[0]


def test_text_is_judged_in_relative_bits_per_byte() -> None:
    def texts(factor: float) -> list[Outcome]:
        return [
            Outcome(id=f"t{i}", kind="text", capability="english", request="r", scores=(-factor * (50 + i),), bytes=100)
            for i in range(20)
        ]

    # Each text becomes 10% likelier to surprise, with a spread: proven.
    worse = [dataclasses.replace(o, scores=(o.scores[0] - 0.01 * i,)) for i, o in enumerate(texts(1.1))]  # type: ignore[operator]
    verdict = judge(record(texts(1.0)), record(worse))
    assert verdict.zone is Zone.REGRESSED
    assert verdict.capabilities[0].unit == "bits per byte"
    assert verdict.capabilities[0].drop == pytest.approx(0.1, abs=0.01)
    same = judge(record(texts(1.0)), record(texts(1.0)))
    assert same.zone is Zone.UNDECIDED, "twenty texts that did not move bound nothing"


def test_the_order_of_items_changes_nothing() -> None:
    old, new = flipped(50, 9, 2)
    other_old, other_new = flipped(30, 1, 3, "other")
    before, after = record(old, other_old), record(new, other_new)
    shuffled = list(after.outcomes)
    random.Random(0).shuffle(shuffled)
    again = judge(before, Record(after.header, tuple(shuffled)))
    first = judge(before, after)
    key = lambda row: row.capability  # noqa: E731
    assert sorted(again.capabilities, key=key) == sorted(first.capabilities, key=key)
    assert (again.zone, again.pooled) == (first.zone, first.pooled)


def test_a_verdict_survives_json() -> None:
    old, new = flipped(50, 9, 2)
    verdict = judge(record(old, choices([True] * 9, "b")), record(new, choices([False] * 9, "b"), step=7))
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False))) == verdict
    assert verdict.step == 7


def test_a_dictionary_that_is_no_verdict_is_refused() -> None:
    with pytest.raises(RecordError, match="no verdict"):
        Verdict.from_dict({"zone": "fine"})


def test_what_broke_is_regressed_without_statistics() -> None:
    verdict = broken("the training loss is nan at step 3", step=3)
    assert verdict.exit_code == 1 and str(verdict) == "regressed: the training loss is nan at step 3"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"suite_hash": "other"}, "another suite"),
        ({"conditions": {"dtype": "bfloat16"}}, "dtype = 'float32', the candidate with 'bfloat16'"),
    ],
)
def test_records_that_were_not_measured_alike_are_not_compared(fields: dict[str, object], says: str) -> None:
    old = choices([True] * 5)
    with pytest.raises(MismatchError, match=says):
        judge(record(old), record(old, **fields))


def test_other_tokens_and_missing_items_are_not_compared() -> None:
    old = choices([True] * 5)
    other = [dataclasses.replace(o, request="x") for o in old]
    with pytest.raises(MismatchError, match="another tokenizer or chat template"):
        judge(record(old), record(other))
    with pytest.raises(MismatchError, match="no outcome for 2 of 5 items"):
        judge(record(old[:3]), record(old))


@pytest.mark.parametrize("value", [0, -0.1, 0.6, float("nan"), "0.05"])
def test_levels_out_of_range(value: float) -> None:
    with pytest.raises(ConfigError, match="alpha is"):
        Level(fail=value)


@pytest.mark.parametrize("value", [-0.01, 1, float("nan"), "3"])
def test_tolerances_out_of_range(value: float) -> None:
    with pytest.raises(ConfigError, match="tolerance"):
        Tolerance(accuracy=value)
