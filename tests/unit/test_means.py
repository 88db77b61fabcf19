"""Bounds of the mean of real-valued drops, independent or clustered, against scipy.stats and the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from backslide.stats.means import check_drops, cluster_sums, mean_interval, mean_p_value
from backslide.stats.paired import Interval


def mean_of(d: object, alpha: float = 0.05) -> Interval:
    return mean_interval(np.asarray(d), alpha_lower=alpha, alpha_upper=alpha)


@pytest.mark.parametrize("n", [2, 3, 10, 400])
def test_mean_interval_is_the_paired_t_interval(n: int) -> None:
    d = np.random.default_rng(n).normal(0.3, 2, n)
    got = mean_interval(d, alpha_lower=0.01, alpha_upper=0.1)
    for alpha, bound, side in ((0.01, got.lower, "low"), (0.1, got.upper, "high")):
        alternative = "greater" if side == "low" else "less"
        expected = scipy.stats.ttest_1samp(d, 0, alternative=alternative).confidence_interval(1 - alpha)
        assert bound == pytest.approx(getattr(expected, side), rel=1e-9)
    assert not got.exact


def test_mean_interval_by_hand() -> None:
    # Mean 2, sum of squares 2, standard error sqrt(2 / 6), t(2 degrees, .95) = 2.919986.
    got = mean_of([1.0, 2.0, 3.0])
    assert got.lower == pytest.approx(2 - 2.919986 / math.sqrt(3), abs=1e-6)
    assert got.upper == pytest.approx(2 + 2.919986 / math.sqrt(3), abs=1e-6)


@pytest.mark.parametrize("level", [0.05, 0.005])
def test_mean_interval_covers_normal_drops(level: float) -> None:
    # Its own promise; a seed, 20000 samples of 5, and four standard errors of the simulation.
    samples = np.random.default_rng(0).normal(size=(20_000, 5))
    bounds = [mean_of(row, level) for row in samples[:4000]]
    spread = 4 * math.sqrt(level * (1 - level) / 4000)
    assert abs(np.mean([b.lower > 0 for b in bounds]) - level) < spread
    assert abs(np.mean([b.upper < 0 for b in bounds]) - level) < spread


@pytest.mark.parametrize(
    ("d", "method"),
    [
        ([], "no data"),
        ([0.0], "one item has no error bar"),
        ([0.7], "one item has no error bar"),
        ([0.25, 0.25], "no variation"),
        ([-3.0] * 50, "no variation"),
        ([0.0, -0.0, 0.0], "no variation"),  # nothing moved on these few; that is no bound on the rest
        ([0.1 + 0.2, 0.3], "no variation"),  # differ by rounding only
    ],
)
def test_too_little_data_is_a_state(d: list[float], method: str) -> None:
    got = mean_of(np.array(d, dtype=float))
    assert (got.lower, got.upper, got.method) == (-math.inf, math.inf, method)


def test_sizes_that_overflow_or_vanish_when_squared() -> None:
    base = mean_of([1.0, 2.0, 4.0])
    for scale in (1e-200, 1e200):
        got = mean_of([scale, 2 * scale, 4 * scale])
        assert got.lower == pytest.approx(scale * base.lower, rel=1e-9)
        assert got.upper == pytest.approx(scale * base.upper, rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 2])
def test_drops_that_are_not_finite_are_refused(bad: float, where: int) -> None:
    d = [0.1, 0.2, 0.4]
    d[where] = bad
    with pytest.raises(ValueError, match=rf"d\[{where}\]"):
        mean_of(d)
    with pytest.raises(ValueError, match=r"d\[0\]"):
        mean_of([bad])  # also where n = 1 would be a state


def test_only_one_drop_per_item() -> None:
    for shape in ((), (2, 2)):
        with pytest.raises(ValueError, match="shape"):
            mean_of(np.zeros(shape))


@pytest.mark.parametrize("alpha", [0.0, -0.1, 0.51, 1.0, math.nan])
def test_levels_outside_their_range_are_refused(alpha: float) -> None:
    for levels in ({"alpha_lower": alpha, "alpha_upper": 0.05}, {"alpha_lower": 0.05, "alpha_upper": alpha}):
        with pytest.raises(ValueError, match="alpha_"):
            mean_interval(np.array([1.0, 2.0]), **levels)


# -- clusters -------------------------------------------------------------------------------------------------


def clustered(d: object, clusters: object, alpha: float = 0.05) -> Interval:
    return mean_interval(np.asarray(d), alpha_lower=alpha, alpha_upper=alpha, clusters=np.asarray(clusters))


def test_clusters_of_one_item_are_independent_items() -> None:
    d = np.random.default_rng(1).normal(size=40)
    a, b = mean_of(d), clustered(d, np.arange(40))
    assert (a.lower, a.upper) == (b.lower, b.upper)
    assert (a.method, b.method) == ("paired t (asymptotic)", "clustered t (asymptotic)")


def test_clusters_of_one_size_give_the_t_interval_of_their_means() -> None:
    d = np.random.default_rng(2).normal(0.2, 1, (12, 5))
    got = clustered(d.ravel(), np.repeat(np.arange(12), 5), 0.02)
    expected = scipy.stats.ttest_1samp(d.mean(axis=1), 0)
    assert got.lower == pytest.approx(expected.confidence_interval(0.96).low, rel=1e-9)
    assert got.upper == pytest.approx(expected.confidence_interval(0.96).high, rel=1e-9)


def test_clustered_error_by_hand() -> None:
    # Mean 2; residual sums -3, 1, 2 of clusters of 3, 1, 2 items; H = 36 / 14.
    d, g = [1.0, 0.0, 2.0, 3.0, 4.0, 2.0], ["b", "b", "b", "a", "c", "c"]
    effective = 36 / 14
    error = math.sqrt(effective / (effective - 1) * 14) / 6
    got = clustered(d, g)
    assert got.upper == pytest.approx(2 + scipy.stats.t.ppf(0.95, effective - 1) * error, rel=1e-9)
    assert got.lower == pytest.approx(2 - scipy.stats.t.ppf(0.95, effective - 1) * error, rel=1e-9)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 3, 3), (1, 2, 7), (1, 1, 1, 20), (5, 9, 2, 2, 30)])
def test_squared_error_is_unbiased_where_items_are_independent(sizes: tuple[int, ...]) -> None:
    # The squared error is a quadratic form in d, and its expectation for iid drops of variance 1 is the trace, which
    # must be 1 / n. G / (G - 1) in the place of H / (H - 1) would be too small for unequal sizes.
    n = sum(sizes)
    g = np.repeat(np.arange(len(sizes)), sizes)
    effective = n * n / sum(s * s for s in sizes)
    trace = 0.0
    for i in range(n):
        d = np.zeros(n)
        d[i] = 1.0
        trace += ((clustered(d, g).upper - 1 / n) / scipy.stats.t.ppf(0.95, effective - 1)) ** 2
    assert trace == pytest.approx(1 / n, rel=1e-9)


def test_items_that_move_as_one_count_once() -> None:
    # 30 clusters of 10 equal items: as if there were 30 items; taken as independent, the error is 3.2 times too small.
    once = np.random.default_rng(3).normal(size=30)
    d, g = np.repeat(once, 10), np.repeat(np.arange(30), 10)
    got, alone, naive = clustered(d, g), mean_of(once), mean_of(d)
    assert (got.lower, got.upper) == pytest.approx((alone.lower, alone.upper), rel=1e-9)
    assert (got.upper - got.lower) / (naive.upper - naive.lower) > 3


def test_clustered_interval_covers() -> None:
    # 20 clusters of 2 to 14 items, half of the variance shared; seed fixed, judged at four standard errors.
    rng = np.random.default_rng(4)
    sizes = rng.integers(2, 15, 20)
    g = np.repeat(np.arange(20), sizes)
    runs = 3000
    alarms = naive = 0
    for _ in range(runs):
        d = rng.normal(size=20)[g] + rng.normal(size=g.size)
        alarms += clustered(d, g).lower > 0
        naive += mean_of(d).lower > 0
    assert abs(alarms / runs - 0.05) < 4 * math.sqrt(0.05 * 0.95 / runs) + 0.005  # normal sums, but H is approximate
    assert naive / runs > 0.15


@pytest.mark.parametrize(
    ("d", "g", "method"),
    [
        ([], [], "no data"),
        ([0.5], ["a"], "one item has no error bar"),
        ([0.5, 0.7, 0.9], ["a", "a", "a"], "one cluster has no error bar"),
        ([0.5, 0.5, 0.5], ["a", "b", "b"], "no variation"),
        ([0.1, 0.3, 0.3, 0.1], ["a", "a", "b", "b"], "no variation between clusters"),
        ([0.0, 0.2, 0.1], ["a", "a", "b"], "no variation between clusters"),
    ],
)
def test_too_few_clusters_are_a_state(d: list[float], g: list[str], method: str) -> None:
    got = clustered(np.array(d, dtype=float), np.array(g, dtype=str))
    assert (got.lower, got.upper, got.method) == (-math.inf, math.inf, method)


def test_one_cluster_that_outweighs_all_others_leaves_nothing_certain() -> None:
    d = np.concatenate([np.zeros(1000), [0.1]])
    got = clustered(d, np.concatenate([np.zeros(1000, dtype=int), [1]]))
    assert got.lower < -1 and got.upper > 1


def test_clusters_must_fit() -> None:
    with pytest.raises(ValueError, match=r"clusters \(shape \(2,\)\)"):
        clustered([1.0, 2.0, 3.0], [0, 1])
    with pytest.raises(ValueError, match=r"clusters\[1\]"):
        clustered([1.0, 2.0, 3.0], [0.0, math.nan, 1.0])


def test_sums_by_cluster() -> None:
    sums, sizes = cluster_sums(check_drops([1, 2, 3, 4]), np.array(["x", "y", "x", "z"]))
    assert sums.tolist() == [2, 4, 4] and sizes.tolist() == [1, 1, 2]
    sums, sizes = cluster_sums(check_drops([2.0, 1.0]), None)
    assert sums.tolist() == [1, 2] and sizes.tolist() == [1, 1]


# -- mean_p_value ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.2, 3.0])
def test_p_value_is_that_of_the_t_test(shift: float) -> None:
    d = np.random.default_rng(6).normal(shift, 1, (15, 4))
    assert mean_p_value(d.ravel()) == pytest.approx(scipy.stats.ttest_1samp(d.ravel(), 0, alternative="greater").pvalue)
    by_cluster = scipy.stats.ttest_1samp(d.mean(axis=1), 0, alternative="greater").pvalue
    assert mean_p_value(d.ravel(), clusters=np.repeat(np.arange(15), 4)) == pytest.approx(by_cluster)


def test_p_value_agrees_with_the_bound_for_unequal_clusters() -> None:
    rng = np.random.default_rng(7)
    g = np.repeat(np.arange(8), [1, 2, 3, 4, 5, 6, 7, 20])
    for _ in range(20):
        d = rng.normal(0.4, 1, g.size)
        p = mean_p_value(d, clusters=g)
        if 1e-6 < p < 0.49:
            assert clustered(d, g, p * 1.0001).lower > 0 > clustered(d, g, p * 0.9999).lower


def test_p_value_of_too_little_data_is_one() -> None:
    for d, g in (([], None), ([0.3], None), ([0.3, 0.3], None), ([0.1, 0.5], ["a", "a"])):
        assert mean_p_value(d, clusters=g) == 1.0
