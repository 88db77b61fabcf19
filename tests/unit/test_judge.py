"""Which test decides: accuracy first, then the probability on the gold choice; clusters, noise and alarms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from backslide.drops import paired_drops
from backslide.guard.joint import Joint, on_record
from backslide.judge import Alarms, judge
from backslide.noise import STANDARD_ERRORS, floor, noise_between
from backslide.record import Record
from backslide.stats.bounded import bounded_interval, bounded_p_value
from backslide.stats.multiplicity import holm
from backslide.stats.signflip_sequential import joint_sign_flip
from backslide.verdict import CapabilityVerdict, Level, Zone
from builders import choices, flipped, record, texts


def soft_pair(n: int, drop: float, *, spread: float = 0.05, lost: int = 0, name: str = "math", **more: Any) -> Any:
    """Every item's probability falls by `drop` give or take; the first `lost` items flip."""
    rng = np.random.default_rng(n)
    before = 0.6 + 0.2 * rng.random(n)
    after = np.clip(before - drop + spread * rng.standard_normal(n), 0, 1)
    old = choices([True] * n, name, p=before.tolist(), **more)
    new = choices([i >= lost for i in range(n)], name, p=after.tolist(), **more)
    return old, new, before - after


def only(old: Any, new: Any, **more: Any) -> CapabilityVerdict:
    (row,) = judge(record(old), record(new), **more).capabilities
    return row


def test_a_loss_that_flips_no_answer_is_seen_in_the_probability() -> None:
    old, new, drops = soft_pair(60, 0.2)
    row = only(old, new)
    assert (row.lost, row.won, row.main.zone) == (0, 0, Zone.UNDECIDED)
    assert row.zone is Zone.REGRESSED and row.decided_by == "probability" and row.soft is not None
    assert row.soft.drop == pytest.approx(drops.mean())
    assert row.soft.p_value == bounded_p_value(drops) and row.soft.exact
    # The bounds are those of the betting interval: α of the look over two tests, and the level of a pass.
    interval = bounded_interval(drops, alpha_lower=0.025, alpha_upper=0.05)
    assert (row.soft.lower, row.soft.upper) == (interval.lower, interval.upper)
    assert row.reason.startswith(f"the probability of the right choice fell by {drops.mean() * 100:.1f} points (lost 0")


def test_the_probability_never_passes_a_capability() -> None:
    """Items near a tie lose answers while their probabilities hardly move: the tolerance is one of accuracy."""
    rng = np.random.default_rng(0)
    before = 0.45 + 0.1 * rng.random(300)
    after = before + 0.02 * rng.standard_normal(300)
    old = choices([i < 290 for i in range(300)], p=before.tolist())
    new = choices([i >= 19 for i in range(300)], p=after.tolist())
    row = only(old, new)
    assert row.drop == pytest.approx(0.03) and row.soft is not None and row.soft.zone is Zone.RETAINED
    assert row.main.zone is row.zone is Zone.UNDECIDED and row.decided_by is None


def test_accuracy_decides_where_it_can() -> None:
    # Accuracy is lost for certain while the mean probability hardly moved.
    old, new, _ = soft_pair(600, 0.0, spread=0.01, lost=60)
    row = only(old, new)
    assert row.soft is not None and row.soft.zone is Zone.RETAINED and row.main.zone is Zone.REGRESSED
    assert row.zone is Zone.REGRESSED and row.decided_by == "accuracy"
    # The other way round: no answer flips, and the probability is lower for certain.
    old, new, _ = soft_pair(600, 0.15)
    row = only(old, new)
    assert row.main.zone is Zone.RETAINED and row.soft is not None and row.soft.zone is Zone.REGRESSED
    assert row.zone is Zone.RETAINED and row.decided_by == "accuracy"


def test_one_item_without_a_probability_leaves_accuracy_alone() -> None:
    old, new, _ = soft_pair(60, 0.2)
    new[7] = dataclasses.replace(new[7], p=None)
    assert only(old, new).soft is None


def test_the_tests_of_a_look_share_its_level_as_holm_says() -> None:
    a_old, a_new, a = soft_pair(80, 0.2, name="a", lost=9)
    b_old, b_new = flipped(80, 8, 1, "b")
    verdict = judge(record(a_old, b_old), record(a_new, b_new), level=Level(fail=0.04))
    rows = [*verdict.capabilities, verdict.pooled]
    measures = [measure for row in rows if row is not None for measure in row.measures]
    p = [
        binomtest(9, 9, alternative="greater").pvalue,
        bounded_p_value(a),
        binomtest(8, 9, alternative="greater").pvalue,
        binomtest(17, 18, alternative="greater").pvalue,
    ]
    assert [m.p_value for m in measures] == pytest.approx(p)
    assert [m.tested_at for m in measures] == pytest.approx(holm(p, 0.04).levels)
    assert {m.alpha_lower for m in measures} == {0.01}
    # P(Bin(9, 1/2) >= 8) = .0195: above .04 / 4, below the last step's .04. Proven, and no size is claimed.
    (row,) = [row for row in verdict.capabilities if row.capability == "b"]
    assert row.zone is Zone.REGRESSED and row.lower is not None and 0 < row.lower < 1e-300
    assert row.reason.endswith("that something was lost is proven")


# Clusters


def test_clusters_are_what_is_independent() -> None:
    # Ten passages of ten items; one of them is lost as a whole. Item by item that would be proven, by far.
    lost = [i >= 10 for i in range(100)]
    old, new = choices([True] * 100, cluster=10), choices(lost, cluster=10)
    row = only(old, new)
    assert row.clusters == 10 and "clusters" in row.main.method
    assert row.main.p_value == bounded_p_value([1.0] * 10 + [0.0] * 90, clusters=[i // 10 for i in range(100)])
    assert row.zone is Zone.UNDECIDED
    alone = only(choices([True] * 100), choices(lost))
    assert alone.zone is Zone.REGRESSED and alone.clusters is None


def test_items_without_a_cluster_stand_for_themselves() -> None:
    old, new = flipped(60, 20, 0)
    named = [dataclasses.replace(o, cluster="math/0" if i < 2 else None) for i, o in enumerate(old)]
    row = only(named, [dataclasses.replace(o, cluster=n.cluster) for o, n in zip(new, named, strict=True)])
    assert row.clusters == 59, "the cluster has the name of an item, and they are two things all the same"


# Noise


def with_noise(outcomes: Any, **noise: float) -> Record:
    base = record(outcomes)
    return dataclasses.replace(base, header=dataclasses.replace(base.header, noise=noise))


def test_a_drop_within_the_noise_is_never_a_regression() -> None:
    rng = np.random.default_rng(0)
    before = 0.5 + 0.1 * rng.random(400)
    old, new = (choices([True] * 400, p=(before - shift).tolist()) for shift in (0.0, 0.06))
    (row,) = judge(with_noise(old), record(new)).capabilities
    assert row.soft is not None and row.soft.zone is Zone.REGRESSED and row.soft.floor == 0
    # 2 · 0.7 / √400 = 0.07 is more than 0.06.
    (row,) = judge(with_noise(old, probability=0.7), record(new)).capabilities
    assert row.soft is not None and row.soft.floor == pytest.approx(0.07)
    assert row.soft.zone is Zone.UNDECIDED


def test_noise_is_the_root_mean_square_per_item() -> None:
    old, new = choices([True] * 4, p=[0.5] * 4), choices([True, True, True, False], p=[0.5, 0.6, 0.4, 0.5])
    one, other = record(old, texts([-100.0, -50.0])), record(new, texts([-101.0, -50.0]))
    bits = 1 / math.log(2) / 100
    assert noise_between(one, other) == pytest.approx(
        {
            "accuracy": 0.5,
            "probability": math.sqrt(0.02 / 4),
            "bits per byte": math.sqrt(bits**2 / 2) / (75 * bits),
        }
    )
    assert noise_between(record(old), record(old)) == {"accuracy": 0.0, "probability": 0.0}
    assert floor({"accuracy": 0.5}, "accuracy", 100) == pytest.approx(STANDARD_ERRORS * 0.05)
    assert floor({}, "accuracy", 100) == floor({"accuracy": 1.0}, "accuracy", 0) == 0.0


def test_noise_may_be_of_other_batch_sizes_and_of_nothing_else() -> None:
    from backslide.errors import MismatchError

    old = choices([True] * 3)
    one, other = (record(old, conditions={"dtype": "bfloat16", "row_tokens": size}) for size in (256, 128))
    assert noise_between(one, other) == {"accuracy": 0.0}
    with pytest.raises(MismatchError, match="dtype"):
        noise_between(one, record(old, conditions={"dtype": "float32", "row_tokens": 256}))


# Alarms of a sequential test


def test_alarms_stand_in_the_place_of_the_tests_of_a_look() -> None:
    old, new = flipped(60, 20, 0)
    nothing = judge(record(old), record(new), alarms=Alarms(frozenset(), 0.01, "joint"))
    assert nothing.zone is Zone.UNDECIDED and "over the looks so far" in nothing.claim
    old, new = flipped(60, 3, 0)
    proven = judge(record(old), record(new), alarms=Alarms(frozenset({"math"}), 0.01, "joint"))
    (row,) = proven.capabilities
    assert proven.zone is Zone.REGRESSED and row.main.tested_at == 0.01
    assert row.main.method.startswith("joint; ") and not row.main.exact


def test_the_joint_test_is_fed_the_finest_drops_of_a_look() -> None:
    a_old, a_new, a = soft_pair(90, 0.1, name="a")
    b_old, b_new = flipped(40, 2, 2, "b")
    base, look = record(b_old, a_old), record(a_new[::-1], b_new)
    drops = paired_drops(base, look)
    order = sorted(range(90), key=lambda i: f"a/{i}")
    assert drops["a"].measure == "probability" and drops["a"].values == pytest.approx(a[order])
    assert drops["b"].measure == "accuracy" and sorted(drops["b"].values) == [-1] * 2 + [0] * 36 + [1] * 2
    state, alarms = on_record(Joint(alpha=0.05, looks=3), base, look)
    test = joint_sign_flip(0.05, 3, [40, 90] if list(drops) == ["b", "a"] else [90, 40])
    expected, decision = test.update(test.init(), [of.values for of in drops.values()])
    assert state.state == expected and alarms.level == pytest.approx(decision.spent) == pytest.approx(0.05 / 3)
    assert alarms.proven == frozenset(n for n, above in zip(drops, decision.above, strict=True) if above) == {"a"}
    again, _ = on_record(state, base, look)
    assert again.state is not None and again.state.look == 2


def test_a_look_that_is_not_finite_spends_nothing_and_is_judged_by_that() -> None:
    old = choices([True] * 30)
    joint = Joint(alpha=0.05, looks=2)
    look = record(choices([True] * 30, broken=[3]))
    state, alarms = on_record(joint, record(old), look)
    assert state == joint and not alarms.proven
    assert judge(record(old), look, alarms=alarms).zone is Zone.REGRESSED


def leaky(*groups: Any, **more: Any) -> Record:
    return record(*groups, part="gate", **more)


def test_items_that_are_left_out_are_not_judged_and_the_claim_says_so() -> None:
    old, new = flipped(60, 12, 0)
    lost = {outcome.id for outcome in old[:12]}
    whole = judge(leaky(old), leaky(new))
    assert whole.zone is Zone.REGRESSED and "left out" not in whole.claim
    without = judge(leaky(old), leaky(new), leave_out=lost)
    assert without == dataclasses.replace(judge(leaky(old[12:]), leaky(new[12:])), claim=without.claim)
    (row,) = without.capabilities
    assert (row.items, row.lost, row.zone) == (48, 0, Zone.UNDECIDED)
    assert (
        "48 items of the suite s (the sealed gate half; 12 items left out, found in the training data)" in without.claim
    )
    one = judge(leaky(old), leaky(new), leave_out=["math/0", "an id that was not asked"])
    assert "(the sealed gate half; 1 item left out, found in the training data)" in one.claim
    assert judge(leaky(old), leaky(new), leave_out=["nothing"]) == whole


def test_a_capability_of_which_all_items_leaked_is_undecided() -> None:
    old, new = flipped(400, 0, 0)
    other = choices([True] * 3, "other")
    verdict = judge(record(old, other), record(new, other), leave_out={outcome.id for outcome in other})
    rows = {row.capability: row for row in verdict.capabilities}
    assert rows["math"].zone is Zone.RETAINED and rows["other"].zone is Zone.UNDECIDED is verdict.zone
    assert rows["other"].reason == (
        "all its items here were found in the training data; add others, or train without them"
    )
    # One that was not asked at all says so, as before.
    verdict = judge(record(old, other), record(new), leave_out={outcome.id for outcome in other})
    assert verdict.capabilities[1].reason.startswith("it has no item here")
    # Nothing is left.
    verdict = judge(record(other), record(other), leave_out={outcome.id for outcome in other})
    assert verdict.zone is Zone.UNDECIDED and verdict.pooled is None and verdict.capabilities[0].items == 0


def test_a_capability_of_two_kinds_of_which_one_leaked() -> None:
    hard, soft = choices([True] * 400, "both"), texts([-80.0] * 60, "both")
    soft = [dataclasses.replace(outcome, id=f"text/{outcome.id}") for outcome in soft]
    verdict = judge(record(hard, soft), record(hard, soft), leave_out={outcome.id for outcome in soft})
    rows = {row.capability: row for row in verdict.capabilities}
    assert rows["both"].zone is Zone.RETAINED
    assert rows["both (text)"].zone is Zone.UNDECIDED and "found in the training data" in rows["both (text)"].reason


def test_a_sequential_test_and_a_broken_score_do_not_see_what_is_left_out() -> None:
    old, new = flipped(60, 30, 0)
    lost = {outcome.id for outcome in old[:30]}
    assert set(paired_drops(record(old), record(new))) == {"math"}
    assert paired_drops(record(old), record(new), lost)["math"].values.tolist() == [0.0] * 30
    _, alarms = on_record(Joint(0.05, 1), record(old), record(new))
    assert alarms.proven == {"math"}
    _, alarms = on_record(Joint(0.05, 1), record(old), record(new), lost)
    assert alarms.proven == frozenset()
    new[0] = dataclasses.replace(new[0], scores=(None, -1.0))
    assert judge(record(old), record(new)).zone is Zone.REGRESSED
    assert judge(record(old), record(new), leave_out=lost).zone is not Zone.REGRESSED
    spent, _ = on_record(Joint(0.05, 1), record(old), record(new))
    kept, _ = on_record(Joint(0.05, 1), record(old), record(new), lost)
    assert spent.state is None and kept.state is not None, "a broken look spends nothing; what is left out breaks none"
