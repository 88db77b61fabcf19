"""Betting bounds, against the product itself, exact expectations over all outcomes, and closed forms."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from backslide.stats.bounded import Bets, bounded_interval, bounded_p_value, check_bounded, make_bets
from backslide.stats.paired import OPEN_ZERO, Interval


def interval(d: object, alpha: float = 0.05, clusters: object = None) -> Interval:
    return bounded_interval(
        np.asarray(d, dtype=float),
        alpha_lower=alpha,
        alpha_upper=alpha,
        clusters=clusters,  # type: ignore[arg-type]
    )


def e_value(d: list[float], m: float) -> float:
    """The definition, item by item: mean over stakes of prod (1 + lambda (D - m)), lambda = s / (1 + m)."""
    bets = make_bets(np.ones(len(d)))
    total = 0.0
    for weight, s in zip(np.exp(bets.log_weight).tolist(), bets.stake.tolist(), strict=True):
        total += weight * math.prod(1 + s / (1 + m) * (x - m) for x in d)
    return total


SAMPLES = {
    "soft": np.random.default_rng(0).normal(0.05, 0.1, 80).clip(-1, 1).tolist(),
    "hard": [1.0] * 14 + [-1.0] * 3 + [0.0] * 60,
    "all lost": [1.0] * 9,
    "all won": [-1.0] * 9,
    "nothing moved": [0.0] * 40,
    "one item": [0.4],
    "wide": np.random.default_rng(1).uniform(-1, 1, 25).tolist(),
}


# -- the definition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("m", [-0.9, -0.2, 0.0, 0.03, 0.5])
def test_e_value_is_its_definition(name: str, m: float) -> None:
    d = SAMPLES[name]
    expected = e_value(d, m)
    got = make_bets(np.ones(len(d))).log_e(1 + np.array(d), math.log1p(m))
    assert float(got) == pytest.approx(math.log(expected), rel=1e-9, abs=1e-9)
    assert bounded_p_value(d, drop=m) == pytest.approx(min(1.0, 1 / expected), rel=1e-9)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.0005])
def test_bounds_are_where_the_definition_crosses(name: str, alpha: float) -> None:
    d = SAMPLES[name]
    got = interval(d, alpha)

    def crossing(sign: int) -> float:
        values = [sign * x for x in d]

        def height(m: float) -> float:
            return math.log(e_value(values, m)) + math.log(alpha)

        if height(-1 + 1e-9) < 0:
            return -1.0
        return float(scipy.optimize.brentq(height, -1 + 1e-9, 1.0, xtol=1e-12))

    assert got.lower == pytest.approx(crossing(1), abs=1e-9)
    assert got.upper == pytest.approx(-crossing(-1), abs=1e-9)
    assert got.exact and got.method == "betting (bounded drops)"


def test_closed_form_where_nothing_moved() -> None:
    # Each factor is 1 - s + s / (1 + m), and the bound is near log(1 / alpha) / n: what cannot be seen in n items.
    n, alpha = 200, 0.05
    bets = make_bets(np.ones(n))
    m = interval([0.0] * n, alpha).lower
    total = sum(math.exp(w) * (1 - s + s / (1 + m)) ** n for w, s in zip(bets.log_weight, bets.stake, strict=True))
    assert total == pytest.approx(1 / alpha, rel=1e-8)
    assert -math.log(1 / alpha) * 2 / n < m < -math.log(1 / alpha) / n


def test_weights_and_stakes_are_proper() -> None:
    for n in (1, 2, 30, 100, 2000, 100_000):
        bets = make_bets(np.ones(n))
        assert math.fsum(np.exp(bets.log_weight)) == pytest.approx(1)
        assert np.all((bets.stake > 0) & (bets.stake < 1)) and np.all(bets.reserve >= 0)
        assert bets.reserve.sum(axis=1) + bets.stake * n == pytest.approx(np.full(bets.stake.size, n))


# -- validity, exactly ----------------------------------------------------------------------------------------


def expectation(bets: Bets, m: Fraction, sizes: list[int], laws: list[dict[Fraction, Fraction]]) -> float:
    """Exact mean of E(m) over all outcomes: laws of each cluster's sum of drops, clusters independent."""
    total = Fraction(0)
    weights = [Fraction(w) for w in np.exp(bets.log_weight).tolist()]
    for outcome in itertools.product(*(law.items() for law in laws)):
        chance = math.prod((c for _, c in outcome), start=Fraction(1))
        for j, weight in enumerate(weights):
            product = Fraction(1)
            for g, (total_drop, _) in enumerate(outcome):
                paid = Fraction(float(bets.stake[j])) * (sizes[g] + total_drop) / (1 + m)
                product *= Fraction(float(bets.reserve[j, g])) + paid
            total += chance * weight * product
    return float(total)


def law(mean: Fraction, low: Fraction, high: Fraction) -> dict[Fraction, Fraction]:
    share = (mean - low) / (high - low)
    return {low: 1 - share, high: share}


def test_expectation_is_one_where_all_items_have_that_mean() -> None:
    bets = make_bets(np.ones(6))
    m = Fraction(1, 10)
    laws = [law(m, Fraction(-1), Fraction(1))] * 3 + [law(m, Fraction(-1, 5), Fraction(1, 2))] * 3
    assert expectation(bets, m, [1] * 6, laws) == pytest.approx(1, abs=1e-12)


def test_expectation_is_at_most_one_where_only_their_average_has() -> None:
    bets = make_bets(np.ones(6))
    m = Fraction(1, 10)
    means = [Fraction(k, 10) for k in (9, -5, 4, -8, 6, 0)]
    assert sum(means) == 6 * m
    laws = [law(mean, Fraction(-1), Fraction(1)) for mean in means]
    assert expectation(bets, m, [1] * 6, laws) < 1 - 1e-3


@pytest.mark.parametrize("sizes", [[2, 2, 2, 2], [1, 1, 2, 3], [1, 1, 1, 9], [4, 1, 1, 1, 5]])
@pytest.mark.parametrize("spread", [0, 1])
def test_expectation_is_at_most_one_for_clusters(sizes: list[int], spread: int) -> None:
    # Clusters' own means differ (spread) and cancel over the items, or all are m.
    bets = make_bets(np.array(sizes, dtype=float))
    m = Fraction(1, 20)
    totals = [m * size for size in sizes]
    totals[0] += Fraction(spread, 4)
    totals[-1] -= Fraction(spread, 4)
    laws = [law(t, Fraction(-size), Fraction(size)) for t, size in zip(totals, sizes, strict=True)]
    assert expectation(bets, m, sizes, laws) <= 1 + 1e-12


def test_expectation_can_fail() -> None:
    # A mean that is above m must show; and so must clusters that are taken for independent items.
    bets = make_bets(np.ones(6))
    assert expectation(bets, Fraction(0), [1] * 6, [law(Fraction(1, 10), Fraction(-1), Fraction(1))] * 6) > 1.1
    both = {(-1.0,) * 6: 0.5, (1.0,) * 6: 0.5}
    assert sum(c * math.exp(float(bets.log_e(1 + np.array(d), 0.0))) for d, c in both.items()) > 1.5


@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.005])
def test_coverage_of_hard_drops_by_enumeration(alpha: float) -> None:
    n = 14
    tables = [(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)]
    bounds = [interval([1.0] * b + [-1.0] * c + [0.0] * (n - b - c), alpha) for b, c in tables]
    for p_lost, p_won in itertools.product(np.linspace(0, 1, 11), repeat=2):
        if p_lost + p_won > 1:
            continue
        cells = [(b, c, n - b - c) for b, c in tables]
        chance = scipy.stats.multinomial.pmf(cells, n, [p_lost, p_won, max(1 - p_lost - p_won, 0)])
        drop = p_lost - p_won
        assert sum(chance[[x.lower > drop + 1e-12 for x in bounds]]) <= alpha
        assert sum(chance[[x.upper < drop - 1e-12 for x in bounds]]) <= alpha


# -- clusters -------------------------------------------------------------------------------------------------


def test_clusters_of_one_item_are_independent_items() -> None:
    d = SAMPLES["soft"]
    a, b = interval(d), interval(d, clusters=np.arange(len(d))[::-1])
    assert (a.lower, a.upper) == (b.lower, b.upper)
    assert b.method == "betting (clusters)"


def test_items_that_move_as_one_count_once() -> None:
    once = SAMPLES["wide"]
    got = interval(np.repeat(once, 4), clusters=np.repeat(np.arange(len(once)), 4))
    alone = interval(once)
    assert (got.lower, got.upper) == pytest.approx((alone.lower, alone.upper), abs=1e-9)


@pytest.mark.parametrize("sizes", [[1, 1, 1], [1, 2, 3, 4], [1] * 20 + [30], [5, 1, 9, 9, 2, 7, 40], [1, 1000]])
def test_reserves_are_the_best_ones(sizes: list[int]) -> None:
    # Karush-Kuhn-Tucker for max sum log(r_g + s n_g), r_g >= 0, sum r_g = G - s n: concave, so sufficient.
    n_g = np.array(sizes, dtype=float)
    bets = make_bets(n_g)
    for s, reserve in zip(bets.stake, bets.reserve, strict=True):
        assert reserve.min() >= 0
        assert reserve.sum() + s * n_g.sum() == pytest.approx(len(sizes))
        level = reserve + s * n_g
        kept = reserve > 1e-12
        assert kept.any() and np.ptp(level[kept]) < 1e-9
        assert np.all(level[~kept] >= level[kept].max() - 1e-9)


def test_one_larger_cluster_does_not_hold_all_stakes_down() -> None:
    # 200 clusters of 2 and one of 8: stakes of at most 1 / 8 per item would make the bound about 4 times as far.
    sizes = np.array([2] * 200 + [8])
    d = np.zeros(sizes.sum())
    got = interval(d, clusters=np.repeat(np.arange(201), sizes)).lower
    plain = math.log(20) * 8 / d.size
    assert got > -0.75 * plain


def test_one_cluster_that_holds_half_of_the_items_leaves_little_certain() -> None:
    sizes = np.array([100] + [1] * 100)
    got = interval(np.full(200, 0.01), clusters=np.repeat(np.arange(101), sizes))
    assert got.lower < -0.3 and got.upper > 0.3


# -- ranges, states, errors -----------------------------------------------------------------------------------


def test_no_data() -> None:
    got = interval([])
    assert (got.lower, got.upper, got.method) == (-1.0, 1.0, "no data")
    assert bounded_p_value([]) == 1.0
    assert interval([], clusters=[]).method == "no data"


@pytest.mark.parametrize("value", [-1.0, -0.5, 0.0, 1.0])
def test_one_item_says_next_to_nothing(value: float) -> None:
    got = interval([value])
    assert -1 <= got.lower <= value <= got.upper <= 1
    assert got.upper - got.lower > 0.9
    assert bounded_p_value([value]) > 0.5


def test_extremes() -> None:
    assert interval([-1.0] * 50).lower == -1.0
    assert interval([1.0] * 50).upper == 1.0
    assert 0.8 < interval([1.0] * 50).lower < 1.0
    assert 0 < bounded_p_value([1.0] * 5000) < 1e-300  # never 0
    tiny = interval([-1.0] * 49 + [-1 + 1e-15])
    assert -1.0 <= tiny.lower <= tiny.upper < 0


def test_lower_is_above_zero_exactly_where_the_test_rejects() -> None:
    d = SAMPLES["soft"]
    p = bounded_p_value(d)
    assert p < 0.05
    at = bounded_interval(d, alpha_lower=p, alpha_upper=0.05)
    assert at.lower >= OPEN_ZERO
    below = bounded_interval(d, alpha_lower=p * (1 - 1e-12), alpha_upper=0.05)
    assert below.lower <= 0


@pytest.mark.parametrize("bad", [1.0000001, -1.5, math.nan, math.inf])
def test_drops_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"d\[1\]"):
        check_bounded([0.0, bad, 0.1])
    for call in (lambda: interval([0.0, bad]), lambda: bounded_p_value([0.0, bad])):
        with pytest.raises(ValueError, match=r"d\[1\]"):
            call()


def test_other_arguments_are_refused() -> None:
    for alpha in (0.0, 0.6, math.nan):
        with pytest.raises(ValueError, match="alpha_lower"):
            bounded_interval([0.1], alpha_lower=alpha, alpha_upper=0.05)
        with pytest.raises(ValueError, match="alpha_upper"):
            bounded_interval([0.1], alpha_lower=0.05, alpha_upper=alpha)
    for drop in (-1.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="drop"):
            bounded_p_value([0.1], drop=drop)
    with pytest.raises(ValueError, match="clusters"):
        interval([0.1, 0.2], clusters=[1])
    with pytest.raises(ValueError, match="shape"):
        interval(np.zeros((2, 2)))
