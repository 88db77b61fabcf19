from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from backslide.errors import ConfigError, MismatchError, RecordError
from backslide.judge import judge
from backslide.verdict import Level, Tolerance, Verdict, Zone, broken, overall
from builders import choices, flipped, opened, record, texts


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
    assert verdict.capabilities[0].main.p_value == pytest.approx(p)


def test_alpha_is_divided_by_all_tests_of_a_look() -> None:
    # 6 lost of 60: p = 1/64, below .05 alone; with two capabilities and the row of all items it is above .05 / 3.
    old, new = flipped(60, 6, 0)
    others = choices([True] * 60, "other")
    assert judge(record(old), record(new)).zone is Zone.REGRESSED
    both = judge(record(old, others), record(new, others))
    assert both.capabilities[0].main.alpha_lower == pytest.approx(0.05 / 3)
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


def test_the_row_of_all_items_delays_no_model() -> None:
    old = record(choices([True] * 400, "a"), choices([True] * 400, "b"))
    verdict = judge(old, old)
    assert verdict.zone is Zone.RETAINED and verdict.pooled is not None
    # It has more items than any row, so it is hardly ever the undecided one; made so here.
    slow = dataclasses.replace(verdict.pooled, zone=Zone.UNDECIDED)
    assert overall(verdict.capabilities, slow)[0] is Zone.RETAINED
    lost = dataclasses.replace(verdict.pooled, zone=Zone.REGRESSED)
    assert overall(verdict.capabilities, lost) == (Zone.REGRESSED, (f"all items: {lost.reason}",))


def test_log_likelihoods_that_are_not_finite_fail_with_that_reason() -> None:
    old = record(choices([True] * 30))
    verdict = judge(old, record(choices([True] * 30, broken=[3])))
    assert verdict.zone is Zone.REGRESSED
    assert "not finite" in verdict.reasons[0] and "math/3" in verdict.reasons[0]


def test_a_baseline_that_is_not_finite_never_passes() -> None:
    old = choices([True] * 800, broken=[5])
    assert judge(record(old), record(old)).zone is Zone.UNDECIDED


def test_a_baseline_that_is_not_finite_can_still_be_lost() -> None:
    old, new = flipped(60, 20, 0)
    assert judge(record(old, texts([None, -50.0])), record(new, texts([None, -50.0]))).zone is Zone.REGRESSED


def test_text_that_is_not_finite_any_more_fails_with_that_reason() -> None:
    verdict = judge(record(texts([-50.0, -60.0])), record(texts([-50.0, None])))
    assert verdict.zone is Zone.REGRESSED and verdict.capabilities[0].items_to_decide is None
    assert verdict.reasons[0].endswith("1 item with a log-likelihood that is not finite, such as 'prose/1'")


def test_open_items_alone_decide_nothing() -> None:
    verdict = judge(record(opened({"o": "Paris"})), record(opened({"o": "Dear customer"})))
    assert verdict.zone is Zone.UNDECIDED and "no item with a verdict" in verdict.reasons[0]


def test_open_items_beside_others_change_nothing() -> None:
    old, new = flipped(60, 20, 0)
    said = opened({"o": "Paris"})
    assert judge(record(old, said), record(new, opened({"o": "x"}))) == judge(record(old), record(new))


SCORES = [-50.0 - i for i in range(60)]


def test_text_is_judged_in_relative_bits_per_byte() -> None:
    # Every text becomes about 10% likelier to surprise. The oracle: SciPy's one-sided t interval of the relative rises.
    worse = [1.1 * score - 0.05 * (i % 3) for i, score in enumerate(SCORES)]
    verdict = judge(record(texts(SCORES)), record(texts(worse)))
    (row,) = verdict.capabilities
    bits = -np.array([SCORES, worse]) / np.log(2) / 100
    rises = (bits[1] - bits[0]) / bits[0].mean()
    low = ttest_1samp(rises, 0, alternative="greater").confidence_interval(0.95).low
    high = ttest_1samp(rises, 0, alternative="less").confidence_interval(0.95).high
    assert verdict.zone is Zone.REGRESSED and row.unit == "bits per byte" and not row.main.exact
    assert (row.drop, row.lower, row.upper) == pytest.approx((rises.mean(), low, high))
    assert (row.baseline, row.candidate) == pytest.approx(tuple(bits.mean(axis=1)))
    assert (row.lost, row.won, row.soft, verdict.pooled) == (None, None, None, None)
    assert row.main.p_value == pytest.approx(ttest_1samp(rises, 0, alternative="greater").pvalue)
    better = judge(record(texts(worse)), record(texts(SCORES)))
    assert better.zone is Zone.RETAINED


def test_text_has_a_tolerance_of_its_own() -> None:
    # Worse by 1% give or take: within 2%, not within 0.5%.
    old, new = record(texts(SCORES)), record(texts([1.01 * s - 0.02 * (i % 3) for i, s in enumerate(SCORES)]))
    assert judge(old, new).zone is Zone.RETAINED
    assert judge(old, new, tolerance=Tolerance(accuracy=0.5, bits_per_byte=0.005)).zone is Zone.REGRESSED


@pytest.mark.parametrize("scores", [SCORES, SCORES[:1], [0.0, 0.0, 0.0]])
def test_texts_whose_change_has_no_spread_decide_nothing(scores: list[float]) -> None:
    verdict = judge(record(texts(scores)), record(texts(scores)))
    assert verdict.zone is Zone.UNDECIDED and (verdict.capabilities[0].lower, verdict.capabilities[0].upper) == (
        None, None,
    )  # fmt: skip


def test_a_few_texts_have_no_bounds() -> None:
    # A t bound of a few skewed drops is wrong far too often (docs/statistics.md): it decides nothing.
    old, new = record(texts(SCORES[:49])), record(texts([2 * s - i % 3 for i, s in enumerate(SCORES[:49])]))
    (row,) = judge(old, new).capabilities
    assert (row.zone, row.lower, row.upper, row.items_to_decide) == (Zone.UNDECIDED, None, None, 50)
    assert row.reason.endswith("bounds need at least 50 texts")


def test_a_capability_that_was_not_asked_is_undecided() -> None:
    old = record(choices([True] * 400, "a"), choices([True] * 60, "b"), texts(SCORES, "prose"))
    verdict = judge(old, record(choices([True] * 400, "a"), part="gate"))
    assert verdict.zone is Zone.UNDECIDED
    assert [(row.capability, row.items, row.zone) for row in verdict.capabilities] == [
        ("a", 400, Zone.RETAINED), ("b", 0, Zone.UNDECIDED), ("prose", 0, Zone.UNDECIDED),
    ]  # fmt: skip
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False))) == verdict


def test_a_capability_may_be_called_all_items() -> None:
    lost = flipped(600, 60, 0, "all items")
    other = choices([True] * 600, "a")
    verdict = judge(record(other, lost[0]), record(other, lost[1]))
    assert [row.capability for row in verdict.capabilities] == ["a", "all items"]
    assert verdict.capabilities[1].zone is Zone.REGRESSED and verdict.pooled is not None
    assert verdict.pooled.items == 1200


def test_a_capability_of_two_kinds_has_two_rows() -> None:
    old = record(choices([True] * 30, "c"), texts(SCORES, "c"))
    new = record(choices([True] * 30, "c"), texts([2 * s - i % 2 for i, s in enumerate(SCORES)], "c"))
    both = [dataclasses.replace(o, id=f"{o.id} {o.kind}") for o in old.outcomes]
    after = [dataclasses.replace(o, id=f"{o.id} {o.kind}") for o in new.outcomes]
    hard, text = judge(record(both), record(after)).capabilities
    assert (hard.capability, hard.unit, hard.zone) == ("c", "accuracy", Zone.UNDECIDED)
    assert (text.capability, text.unit, text.zone) == ("c (text)", "bits per byte", Zone.REGRESSED)


def test_the_claim_names_items_half_and_levels() -> None:
    old = record(choices([True] * 20), choices([True] * 20, "other"))
    new = record(choices([True] * 20), choices([True] * 20, "other"), part="gate")
    claim = judge(old, new, level=Level(fail=0.025, passing=0.1)).claim
    assert "40 items of the suite s (the sealed gate half)" in claim
    assert "false alarms at most 0.025 over 3 tests" in claim and "false passes at most 0.1 a capability" in claim


def test_reasons_give_the_numbers() -> None:
    old, new = flipped(60, 20, 3)
    (reason,) = judge(record(old), record(new)).reasons
    assert reason.startswith("math: lost 20 and won 3 of 60 items; that something was lost is proven (at least ")
    same = record(choices([True, False] * 40))
    (reason,) = judge(same, same).reasons
    needed = judge(same, same).capabilities[0].items_to_decide
    assert reason.endswith(f"is possible and none is proven; about {needed} items like these would decide")


def test_a_verdict_survives_json() -> None:
    old, new = flipped(50, 9, 2)
    verdict = judge(record(old, choices([True] * 9, "b")), record(new, choices([False] * 9, "b"), step=7))
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False))) == verdict
    assert verdict.step == 7


def test_a_dictionary_that_is_no_verdict_is_refused() -> None:
    good = judge(record(choices([True] * 9)), record(choices([True] * 9))).to_dict()
    row = good["capabilities"][0]
    for bad in (
        {"zone": "fine"}, {}, [], {**good, "zone": "fine"}, {**good, "more": 1}, {**good, "capabilities": [{}]},
        {**good, "capabilities": [{**row, "zone": None}]}, {**good, "reasons": None}, {**good, "pooled": 3},
    ):  # fmt: skip
        with pytest.raises(RecordError, match="is no verdict of this version of backslide"):
            Verdict.from_dict(bad)  # type: ignore[arg-type]


def test_exit_codes() -> None:
    assert {zone: zone.exit_code for zone in Zone} == {Zone.RETAINED: 0, Zone.REGRESSED: 1, Zone.UNDECIDED: 3}
    assert [broken("x", zone=zone).exit_code for zone in Zone] == [zone.exit_code for zone in Zone]


def test_what_broke_is_regressed_without_statistics() -> None:
    verdict = broken("the training loss is nan at step 3", step=3)
    assert verdict.exit_code == 1 and str(verdict) == "regressed: the training loss is nan at step 3"


def test_records_that_were_not_measured_alike_are_not_judged() -> None:
    old = choices([True] * 5)
    with pytest.raises(MismatchError, match="another suite"):
        judge(record(old), record(old, suite_hash="other"))


@pytest.mark.parametrize("value", [0, -0.1, 0.6, float("nan"), "0.05"])
def test_levels_out_of_range(value: float) -> None:
    with pytest.raises(ConfigError, match="alpha is"):
        Level(fail=value)


@pytest.mark.parametrize("value", [-0.01, 1, float("nan"), "3"])
def test_tolerances_out_of_range(value: float) -> None:
    with pytest.raises(ConfigError, match="tolerance"):
        Tolerance(accuracy=value)
