"""Properties of the fixed-sample statistics of real-valued drops that must hold for every input."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backslide.stats.bounded import bounded_interval, bounded_p_value, make_bets
from backslide.stats.means import mean_interval
from backslide.stats.paired import Interval
from backslide.stats.signflip import sign_flip

SMALL = settings(deadline=None, max_examples=80)
ROUNDING = 1e-10

level = st.floats(1e-6, 0.5)
drop = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1, 1, allow_subnormal=False))
drops = st.lists(drop, min_size=1, max_size=40)
labels = st.lists(st.integers(0, 5), min_size=40, max_size=40)


def betting(d: list[float], alpha: float, clusters: list[int] | None = None) -> Interval:
    return bounded_interval(d, alpha_lower=alpha, alpha_upper=alpha, clusters=clusters)


@SMALL
@given(drops, level, level, labels)
def test_bounds_hold_the_mean_and_agree_with_the_test(d: list[float], below: float, above: float, g: list[int]) -> None:
    for clusters in (None, g[: len(d)]):
        got = bounded_interval(d, alpha_lower=below, alpha_upper=above, clusters=clusters)
        mean = math.fsum(d) / len(d)
        assert -1 <= got.lower <= mean + ROUNDING and mean - ROUNDING <= got.upper <= 1
        assert (got.lower > 0) == (bounded_p_value(d, clusters=clusters) <= below)


@SMALL
@given(drops, level, labels, st.randoms())
def test_neither_order_nor_labels_matter_to_the_last_bit(
    d: list[float], alpha: float, g: list[int], shuffler: object
) -> None:
    pairs = list(zip(d, g[: len(d)], strict=True))
    mixed = list(pairs)
    shuffler.shuffle(mixed)  # type: ignore[attr-defined]
    names = {0: "q", 1: "a", 2: "z", 3: "b", 4: "y", 5: "c"}
    old = {"d": [x for x, _ in pairs], "clusters": [k for _, k in pairs]}
    new = {"d": [x for x, _ in mixed], "clusters": [names[k] for _, k in mixed]}
    for drop_clusters in (False, True):
        if drop_clusters:
            old["clusters"] = new["clusters"] = None  # type: ignore[assignment]
        levels = {"alpha_lower": alpha, "alpha_upper": alpha}
        assert bounded_interval(**old, **levels) == bounded_interval(**new, **levels)  # type: ignore[arg-type]
        assert mean_interval(**old, **levels) == mean_interval(**new, **levels)  # type: ignore[arg-type]
        assert repr(sign_flip(**old, draws=50)) == repr(sign_flip(**new, draws=50))  # type: ignore[arg-type]


@SMALL
@given(drops, level, level, labels)
def test_turning_the_sign_mirrors_the_bounds(d: list[float], below: float, above: float, g: list[int]) -> None:
    turned = [-x for x in d]
    a = bounded_interval(d, alpha_lower=below, alpha_upper=above, clusters=g[: len(d)])
    b = bounded_interval(turned, alpha_lower=above, alpha_upper=below, clusters=g[: len(d)])
    # A lower bound is moved across 0 by rounding only, where the test decides; the upper one is left alone.
    assert abs(a.lower + b.upper) <= ROUNDING
    assert abs(a.upper + b.lower) <= ROUNDING


@SMALL
@given(drops, level, st.floats(0.01, 1), labels)
def test_a_smaller_level_is_never_narrower(d: list[float], alpha: float, factor: float, g: list[int]) -> None:
    wide, narrow = betting(d, alpha * factor, g[: len(d)]), betting(d, alpha, g[: len(d)])
    assert wide.lower <= narrow.lower + ROUNDING
    assert wide.upper >= narrow.upper - ROUNDING


@SMALL
@given(drops, level, st.integers(0, 39), st.floats(0, 2), labels)
def test_a_larger_drop_of_one_item_never_lowers_a_bound(
    d: list[float], alpha: float, which: int, more: float, g: list[int]
) -> None:
    raised = list(d)
    raised[which % len(d)] = min(raised[which % len(d)] + more, 1.0)
    before, after = betting(d, alpha, g[: len(d)]), betting(raised, alpha, g[: len(d)])
    assert after.lower >= before.lower - ROUNDING
    assert after.upper >= before.upper - ROUNDING


@SMALL
@given(drops, st.floats(-0.999, 0.999), st.floats(-0.999, 0.999), labels)
def test_an_e_value_falls_with_the_mean_that_is_tested(d: list[float], m: float, other: float, g: list[int]) -> None:
    low, high = sorted((m, other))
    small, large = (bounded_p_value(d, drop=x, clusters=g[: len(d)]) for x in (low, high))
    assert small <= large * (1 + 1e-9)


@SMALL
@given(st.lists(st.integers(1, 200), min_size=1, max_size=60))
def test_reserves_and_stakes_use_up_one_unit_a_cluster(sizes: list[int]) -> None:
    n_g = np.array(sizes, dtype=float)
    bets = make_bets(n_g)
    assert np.all(bets.reserve >= 0) and np.all(bets.stake > 0)
    np.testing.assert_allclose(bets.reserve.sum(axis=1) + bets.stake * n_g.sum(), len(sizes), rtol=1e-9)
    assert math.isclose(float(np.exp(bets.log_weight).sum()), 1, rel_tol=1e-9)


@SMALL
@given(drops, labels, st.floats(0, 1))
def test_sign_flip_p_values(d: list[float], g: list[int], more: float) -> None:
    for clusters in (None, g[: len(d)]):
        got = sign_flip(d, clusters=clusters, draws=200)
        turned = sign_flip([-x for x in d], clusters=clusters, draws=200)
        assert 0 < got.p_value <= 1
        if got.draws == 0:
            # The observed pattern is counted on both sides, so the two add up to at least 1.
            assert got.p_value + turned.p_value >= 1 - 1e-9
        if got.units:
            assert math.isclose(got.statistic, -turned.statistic, rel_tol=1e-9, abs_tol=1e-9)


@SMALL
@given(st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=3, max_size=40), labels, level)
def test_clustered_bounds_hold_the_mean(d: list[float], g: list[int], alpha: float) -> None:
    got = mean_interval(d, alpha_lower=alpha, alpha_upper=alpha, clusters=g[: len(d)])
    assume(math.isfinite(got.lower) and math.isfinite(got.upper))
    mean = math.fsum(d) / len(d)
    assert got.lower <= mean + 1e-9 * max(map(abs, d)) and mean <= got.upper + 1e-9 * max(map(abs, d))
