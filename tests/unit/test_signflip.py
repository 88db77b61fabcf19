"""The sign-flip test, against all sign patterns one by one, and exact McNemar."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from backslide.stats import signflip
from backslide.stats.paired import mcnemar_exact
from backslide.stats.signflip import sign_flip


def brute(units: list[float]) -> float:
    """Share of all sign patterns whose sum is at least the observed one; whole numbers, so ties are exact."""
    patterns = list(itertools.product((-1, 1), repeat=len(units)))
    reached = sum(sum(s * abs(u) for s, u in zip(signs, units, strict=True)) >= sum(units) for signs in patterns)
    return reached / len(patterns)


WHOLE = [
    [1], [-1], [2, -1], [1, 1, 1], [3, 3, -1, 2], [5, -4, 3, -2, 1, 7], [2, 2, -2, 4, 6, -8], [9, -1, -1, -1, 5, 5, -3, 2],
    [-5, -4, -3], [1, -1], [10, 7, 3, -9, -2, 6, 1, 4, -8, 5],
]  # fmt: skip


@pytest.mark.parametrize("units", WHOLE)
def test_p_value_by_brute_force(units: list[int]) -> None:
    got = sign_flip(units)
    assert got.p_value == pytest.approx(brute([float(u) for u in units]), rel=1e-12)
    assert (got.draws, got.units, got.method) == (0, len(units), "sign flip (all patterns)")
    assert got.statistic == pytest.approx(sum(units) / math.sqrt(sum(u * u for u in units)))


@pytest.mark.parametrize("units", WHOLE)
def test_both_ways_of_counting_agree(units: list[int]) -> None:
    # Units that are no multiples of each other go the other way; so do these after a shift by pi.
    size = np.sort(np.abs(np.array(units, dtype=float)))[::-1]
    observed = sum(u for u in units if u > 0) - 1e-9
    expected = brute([float(u) for u in units])
    assert signflip._count_halves(size, observed) == pytest.approx(expected, rel=1e-12)
    assert signflip._count_whole(size, observed) == pytest.approx(expected, rel=1e-12)


def test_real_valued_drops_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 5, 9, 13):
        d = rng.normal(0.3, 1, n)
        signs = np.array(list(itertools.product((-1, 1), repeat=n)))
        expected = float(np.mean(signs @ np.abs(d) >= d.sum() - 1e-9))
        got = sign_flip(d)
        assert got.p_value == pytest.approx(expected, rel=1e-12)
        assert got.draws == 0


def test_hard_drops_are_mcnemar_at_every_n() -> None:
    for lost, won in [(0, 3), (3, 0), (5, 2), (20, 11), (40, 25), (300, 240), (900, 1000)]:
        d = np.array([1.0] * lost + [-1.0] * won + [0.0] * 17)
        got = sign_flip(d)
        assert got.p_value == pytest.approx(mcnemar_exact(lost, won), rel=1e-9)
        assert got.draws == 0 and got.units == lost + won


def test_hard_drops_in_clusters_by_brute_force() -> None:
    d = [1, 1, 0, -1, 1, 1, 1, -1, -1, 0, 1, 1]
    g = ["a", "a", "a", "b", "b", "b", "c", "d", "d", "e", "f", "f"]
    assert sign_flip(d, clusters=g).p_value == pytest.approx(brute([2, 1, 1, -2, 0, 2]), rel=1e-12)
    assert sign_flip(d, clusters=g).units == 5


def test_scale_does_not_matter() -> None:
    d = np.array([0.31, -0.12, 0.44, 0.05, -0.2, 0.6])
    for scale in (1e-200, 1e200):
        assert sign_flip(d * scale).p_value == sign_flip(d).p_value
        assert sign_flip(d * scale).statistic == pytest.approx(sign_flip(d).statistic)


def test_ties_by_rounding_count_as_reached() -> None:
    # .1 + .2 + .3 and .6 are equal; in floats 0.1 + 0.2 > 0.3 in the last digit.
    assert sign_flip([0.1, 0.2, -0.3]).p_value == pytest.approx(brute([1, 2, -3]), rel=1e-12)
    assert sign_flip([0.3, -0.1, -0.2, 0.6, -0.6]).p_value == pytest.approx(brute([3, -1, -2, 6, -6]), rel=1e-12)


def test_drops_of_a_cluster_that_cancel_are_no_evidence() -> None:
    got = sign_flip([0.1, 0.2, -0.3, 0.5], clusters=[0, 0, 0, 1])
    assert got.units == 1 and got.p_value == pytest.approx(0.5, rel=1e-12)


def test_level_over_all_patterns() -> None:
    # Given the sizes all patterns are equally likely: P(p <= a) <= a at every attained p, with equality.
    size = np.array([0.9, 0.7, 0.52, 0.33, 0.21, 0.18, 0.05, 0.02])
    p = np.array([sign_flip(size * s).p_value for s in itertools.product((-1, 1), repeat=size.size)])
    for a in np.unique(p):
        assert np.mean(p <= a) == pytest.approx(a, abs=1e-12)


def test_random_patterns_agree_with_all_of_them() -> None:
    d = np.random.default_rng(5).normal(0.25, 1, signflip.MOST_UNITS) + 0.2
    exact = sign_flip(d)
    assert exact.draws == 0
    size = np.sort(np.abs(d))[::-1]
    draws = 40_000
    drawn = signflip._draw(size, float(d[d > 0].sum()) - 1e-9, draws, seed=3)
    assert 0.01 < exact.p_value < 0.3
    assert abs(drawn - exact.p_value) < 4 * math.sqrt(exact.p_value / draws)


def test_random_patterns_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    d = np.random.default_rng(6).normal(0.1, 1, 100)
    whole = sign_flip(d, draws=3000, seed=1)
    assert (whole.method, whole.draws) == ("sign flip (random patterns)", 3000)
    monkeypatch.setattr(signflip, "_CHUNK", 100 * 64)
    assert sign_flip(d, draws=3000, seed=1) == whole
    assert sign_flip(d, draws=3000, seed=2) != whole


def test_random_patterns_have_the_least_p_value_that_draws_allow() -> None:
    d = np.random.default_rng(7).uniform(0.1, 1, 200)
    assert sign_flip(d, draws=99).p_value == 0.01
    assert sign_flip(-d, draws=99).p_value == 1.0


def test_random_patterns_keep_the_level() -> None:
    # Symmetric drops, 60 units, new signs each time; 99 draws make p uniform on 1/100 ... 1.
    rng = np.random.default_rng(8)
    size = rng.uniform(0, 1, 60)
    runs = 2000
    p = np.array([sign_flip(size * rng.choice([-1, 1], 60), draws=99, seed=i).p_value for i in range(runs)])
    for a in (0.05, 0.2, 0.5):
        assert abs(np.mean(p <= a) - a) < 4 * math.sqrt(a * (1 - a) / runs)


def test_states() -> None:
    for d, method in (([], "no data"), ([0.0, 0.0], "nothing moved")):
        got = sign_flip(d)
        assert (got.p_value, got.units, got.draws, got.method) == (1.0, 0, 0, method)
        assert math.isnan(got.statistic)
    assert sign_flip([0.4]).p_value == pytest.approx(0.5, rel=1e-12)  # one item: half of the two patterns


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"d\[1\]"):
        sign_flip([0.1, math.nan])
    with pytest.raises(ValueError, match="draws"):
        sign_flip([0.1], draws=0)
    with pytest.raises(ValueError, match="clusters"):
        sign_flip([0.1, 0.2], clusters=[1])
