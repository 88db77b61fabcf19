"""Tests and intervals of the paired drop, against enumeration of all tables, exact fractions and scipy.stats."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats

from backslide.stats.paired import (
    OPEN_ZERO,
    Interval,
    hard_interval,
    mcnemar_exact,
    mcnemar_threshold,
)

Table = tuple[int, int]


def interval(n: int, lost: int, won: int, alpha: float = 0.05) -> Interval:
    return hard_interval(n, lost, won, alpha_lower=alpha, alpha_upper=alpha)


def tables(n: int) -> list[Table]:
    return [(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)]


@cache
def all_intervals(n: int, alpha: float) -> dict[Table, Interval]:
    return {table: interval(n, *table, alpha) for table in tables(n)}


def trinomial(n: int, p_lost: np.ndarray, p_won: np.ndarray) -> np.ndarray:
    """Chance of each table of `tables(n)` (columns) at each pair of rates (rows), from factorials and powers."""
    lost, won = np.array(tables(n)).T
    ways = [math.factorial(n) // math.factorial(b) // math.factorial(c) // math.factorial(n - b - c)
            for b, c in tables(n)]  # fmt: skip
    rest = np.clip(1 - p_lost - p_won, 0, 1)
    powers = p_lost[:, None] ** lost * p_won[:, None] ** won * rest[:, None] ** (n - lost - won)
    return np.array(ways, dtype=float) * powers


def half_tail(k: int, flips: int) -> Fraction:
    return Fraction(sum(math.comb(flips, j) for j in range(k, flips + 1)), 2**flips)


# -- McNemar --------------------------------------------------------------------------------------------------


def test_trinomial_oracle_agrees_with_scipy() -> None:
    chance = trinomial(12, np.array([0.2]), np.array([0.07]))[0]
    cells = [(lost, won, 12 - lost - won) for lost, won in tables(12)]
    assert chance == pytest.approx(scipy.stats.multinomial.pmf(cells, 12, [0.2, 0.07, 0.73]), rel=1e-10)
    assert chance.sum() == pytest.approx(1)


def test_mcnemar_is_the_binomial_test() -> None:
    for lost in range(25):
        for won in range(25):
            expected = 1.0
            if lost + won:
                expected = scipy.stats.binomtest(lost, lost + won, 0.5, alternative="greater").pvalue
            assert mcnemar_exact(lost, won) == pytest.approx(expected, rel=1e-12)
            assert mcnemar_exact(lost, won) == pytest.approx(float(half_tail(lost, lost + won)), rel=1e-12)


@pytest.mark.parametrize(("lost", "won"), [(340, 260), (1000, 1000), (900, 100)])
def test_mcnemar_of_many_flips(lost: int, won: int) -> None:
    expected = scipy.stats.binomtest(lost, lost + won, 0.5, alternative="greater").pvalue
    assert mcnemar_exact(lost, won) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_p_value_is_never_zero() -> None:
    # 0.5 ** 2000 underflows.
    assert 0 < mcnemar_exact(2000, 0) < 1e-300


def test_mcnemar_refuses_what_is_no_count() -> None:
    with pytest.raises(ValueError, match="lost"):
        mcnemar_exact(-1, 0)
    with pytest.raises(ValueError, match="won"):
        mcnemar_exact(0, -1)
    with pytest.raises(TypeError):
        mcnemar_exact(1.5, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mcnemar_exact(math.nan, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.49, 0.2, 0.1, 0.05, 0.01, 0.0025, 0.0005, 1e-6, 1e-12])
def test_threshold_by_brute_force(alpha: float) -> None:
    flips = np.arange(61)
    expected = [next(k for k in range(1, f + 2) if half_tail(k, f) <= Fraction(alpha)) for f in range(61)]
    assert mcnemar_threshold(flips, alpha).tolist() == expected


def test_threshold_where_alpha_is_itself_a_p_value() -> None:
    # The p value is a float, so the last digit decides such a tie: it may miss a rejection, never invent one,
    # and it must decide as `mcnemar_exact` does.
    for f in range(1, 31):
        for tie in range(f // 2 + 1, f + 1):
            alpha = float(half_tail(tie, f))
            k = int(mcnemar_threshold(np.array([f]), alpha)[0])
            assert k in (tie, tie + 1)
            assert k > f or mcnemar_exact(k, f - k) <= alpha
            assert mcnemar_exact(k - 1, f - k + 1) > alpha


def test_threshold_of_many_flips_is_where_the_p_value_crosses() -> None:
    flips = np.array([[999, 1000], [20_000, 1]])
    k = mcnemar_threshold(flips, 0.01)
    assert k.shape == flips.shape
    assert k[1, 1] == 2
    for f, most in zip(flips.ravel()[:3].tolist(), k.ravel()[:3].tolist(), strict=True):
        assert scipy.stats.binom.sf(most - 1, f, 0.5) <= 0.01 < scipy.stats.binom.sf(most - 2, f, 0.5)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 0.51, 1.0, math.nan])
def test_levels_outside_their_range_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        mcnemar_threshold(np.array([3]), alpha)
    for levels in ({"alpha_lower": alpha, "alpha_upper": 0.05}, {"alpha_lower": 0.05, "alpha_upper": alpha}):
        with pytest.raises(ValueError, match="alpha_"):
            hard_interval(5, 1, 0, **levels)


# -- hard_interval: coverage ----------------------------------------------------------------------------------

COVERED = [(n, alpha) for n in (1, 2, 5, 12) for alpha in (0.5, 0.1, 0.05, 0.0005)] + [(20, 0.05), (20, 0.0025)]


@pytest.mark.parametrize(("n", "alpha"), COVERED)
def test_coverage_at_every_point_of_a_grid(n: int, alpha: float) -> None:
    steps = 40
    i, j = np.array([(i, j) for i in range(steps + 1) for j in range(steps + 1 - i)]).T
    drop = (i - j) / steps  # one rounding only, so that a drop of 0 is 0
    chance = trinomial(n, i / steps, j / steps)
    lower, upper = np.array([(v.lower, v.upper) for v in all_intervals(n, alpha).values()]).T
    assert (chance * (lower > drop[:, None])).sum(axis=1).max() <= alpha * (1 + 1e-9)
    assert (chance * (upper < drop[:, None])).sum(axis=1).max() <= alpha * (1 + 1e-9)


@pytest.mark.parametrize(("n", "alpha"), COVERED)
def test_coverage_where_it_is_worst(n: int, alpha: float) -> None:
    # Between two neighbouring bounds the set of tables that miss the true drop does not change, and its chance
    # is largest next to one of them: so a bound is tested just below itself (an upper one just above), over a
    # fine grid of flip rates. A coarse grid of true drops would not come near these points.
    worst = 0.0
    found = all_intervals(n, alpha)
    lower, upper = np.array([(v.lower, v.upper) for v in found.values()]).T
    for bounds, sign in ((lower, 1), (-upper, -1)):
        for bound in np.unique(bounds):
            t = float(np.nextafter(bound, -2))
            if abs(t) >= 1:
                continue
            u = np.linspace(0, 1, 81) ** 2  # denser next to the smallest flip rate
            p = abs(t) + (1 - abs(t)) * u
            more, less = np.clip((p + t) / 2, 0, 1), np.clip((p - t) / 2, 0, 1)
            chance = trinomial(n, more, less) if sign == 1 else trinomial(n, less, more)
            worst = max(worst, float((chance * (bounds > t)).sum(axis=1).max()))
    assert worst <= alpha * (1 + 1e-9)
    if n >= 5:
        assert worst > 0.9 * alpha  # and no more conservative than it must be


# -- hard_interval: the bounds are those of the documented method ------------------------------------------------


def p_value(n: int, lost: int, won: int, t: float, alpha: float, *, unite: bool, points: int = 700) -> float:
    """Berger and Boos's p value of "mean drop = t" as the module describes it; no window, no refined search."""
    beta = alpha / 100
    near = scipy.stats.binomtest(lost + won, n).proportion_ci(confidence_level=1 - beta, method="exact")
    low = max(near.low, abs(t))
    if low > near.high:
        return beta
    p = np.clip(np.sin(np.linspace(*np.arcsin(np.sqrt([low, near.high])), points)) ** 2, low, 1)
    observed = lost - won + 2 * math.sqrt(lost + won + 1)
    total = np.zeros(points)
    for f in range(n + 1):
        k = -1
        for b in range(f + 1):
            mirrored = unite and scipy.stats.binom.sf(f - b - 1, f, 0.5) <= alpha and f > 0
            if 2 * b - f + 2 * math.sqrt(f + 1) <= observed + 1e-9 or mirrored:
                k = b
        if k >= 0:
            lose = np.clip((1 + t / np.maximum(p, 1e-300)) / 2, 0, 1)
            total += scipy.stats.binom.pmf(f, n, p) * scipy.stats.binom.cdf(k, f, lose)
    return beta + float(total.max())


@pytest.mark.parametrize("alpha", [0.05, 0.0005])
@pytest.mark.parametrize(
    ("n", "lost", "won"),
    [(5, 0, 0), (5, 1, 0), (12, 2, 6), (12, 6, 5), (20, 9, 9), (35, 0, 34), (35, 1, 0), (70, 0, 1), (70, 3, 2)],
)
def test_bounds_invert_the_documented_test(n: int, lost: int, won: int, alpha: float) -> None:
    got = interval(n, lost, won, alpha)
    for bound, b, c, unite in ((got.upper, lost, won, False), (-got.lower, won, lost, True)):
        if unite and mcnemar_exact(lost, won) <= alpha:
            continue
        assert p_value(n, b, c, bound, alpha, unite=unite) <= alpha
        before = bound - 2e-4
        assert p_value(n, b, c, before, alpha, unite=unite) > alpha or bound <= 0.1418 / math.sqrt(n)


def test_mcnemar_alone_keeps_the_level_below_t0() -> None:
    # The one inequality that the proof of the lower bound adds: P(McNemar rejects | t) <= alpha (1 - t^2)^(n/2).
    p, t = np.meshgrid(np.linspace(0.01, 1, 60), -np.linspace(0, 1, 60))
    p, t = p[p >= -t], t[p >= -t]
    for n, alpha in ((5, 0.1), (12, 0.5), (12, 0.05), (20, 0.05)):
        rejects = np.array([mcnemar_exact(*table) <= alpha for table in tables(n)])
        chance = (trinomial(n, (p + t) / 2, (p - t) / 2) * rejects).sum(axis=1)
        assert (chance <= alpha * (1 - t * t) ** (n / 2) * (1 + 1e-9)).all()


@pytest.mark.parametrize(("n", "alpha"), [(5, 0.05), (12, 0.5), (12, 0.05), (12, 0.0005), (20, 0.05)])
def test_lower_is_above_zero_exactly_where_mcnemar_rejects(n: int, alpha: float) -> None:
    for (lost, won), got in all_intervals(n, alpha).items():
        assert (got.lower > 0) == (mcnemar_exact(lost, won) <= alpha)


def test_open_zero_claims_no_size() -> None:
    # 5 of 5 lost: McNemar rejects at .5 ** 5, the test of a drop above 0 (level .99 alpha) does not.
    alpha = 0.5**5 * 1.005
    assert interval(5, 5, 0, alpha).lower == OPEN_ZERO > 0


@pytest.mark.parametrize(("n", "alpha"), [(5, 0.05), (12, 0.1), (12, 0.0005), (20, 0.05)])
def test_bounds_hold_the_observed_drop_and_mirror_each_other(n: int, alpha: float) -> None:
    found = all_intervals(n, alpha)
    t0 = -math.sqrt(1 - 0.99 ** (2 / n))
    for (lost, won), got in found.items():
        assert -1 <= got.lower <= (lost - won) / n <= got.upper <= 1
        mirror = -found[won, lost].upper
        if got.lower > 0:
            assert got.lower == max(mirror, OPEN_ZERO)
        else:  # what agreement with McNemar costs
            assert got.lower <= min(mirror, t0) + 1e-6
            assert got.lower > min(mirror, t0) - 0.15 / math.sqrt(n)


@pytest.mark.parametrize(("n", "alpha"), [(5, 0.05), (12, 0.1), (12, 0.05), (12, 0.0005), (20, 0.05), (20, 0.0025)])
def test_a_worse_table_has_no_better_bounds(n: int, alpha: float) -> None:
    found = all_intervals(n, alpha)
    for (lost, won), got in found.items():
        turned = found.get((lost + 1, won - 1))
        if turned is not None:  # proven: the region grows, the plausible flip rates stay
            assert turned.lower >= got.lower - 1e-6
            assert turned.upper >= got.upper - 1e-6
        for other in (found.get((lost + 1, won)), found.get((lost, won - 1))):
            if other is not None:  # documented: up to a third of an item
                assert other.lower >= got.lower - 1 / (3 * n)
                assert other.upper >= got.upper - 1 / (3 * n)


@pytest.mark.parametrize("n", [1, 2, 5, 12, 35, 100, 500])
@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.0005])
def test_zero_flips_have_a_closed_form(n: int, alpha: float) -> None:
    # Only "nothing was lost" is as good, so the bound is where (1 - t)^n = .99 alpha.
    got = interval(n, 0, 0, alpha)
    assert got.lower < 0
    assert got.upper == pytest.approx(1 - (0.99 * alpha) ** (1 / n), abs=2e-4 / n + 1e-7)
    assert got.upper >= 1 - alpha ** (1 / n)  # never below the classical bound, about 3 / n at .05


@pytest.mark.parametrize("n", [1, 5, 12, 35, 500])
def test_all_lost_has_a_closed_form(n: int) -> None:
    # No other table is as bad, and every item may flip: the bound is where ((1 + t) / 2)^n = .99 alpha.
    got = interval(n, n, 0)
    assert got.upper == 1
    assert got.lower == pytest.approx(2 * (0.99 * 0.05) ** (1 / n) - 1, abs=2e-4 / n + 1e-7)


def test_width_of_a_usual_case() -> None:
    # Documented: 9% wider than the normal bound at n = 500 with 50 flips. And the bound keeps shrinking with n.
    normal = 1.6448536 * math.sqrt(50) / 500
    assert interval(500, 25, 25).upper == pytest.approx(1.09 * normal, rel=0.01)
    widths = [interval(20 * m, 2 * m, m).upper - 0.05 for m in (1, 2, 5, 20, 100)]
    assert all(a > b for a, b in pairwise(widths))


def test_no_items_say_nothing() -> None:
    got = interval(0, 0, 0)
    assert (got.lower, got.upper, got.method) == (-1.0, 1.0, "no data")


def test_each_level_belongs_to_its_own_bound() -> None:
    got = hard_interval(20, 4, 1, alpha_lower=0.01, alpha_upper=0.1)
    assert (got.alpha_lower, got.alpha_upper, got.exact) == (0.01, 0.1, True)
    assert got.lower == interval(20, 4, 1, 0.01).lower
    assert got.upper == interval(20, 4, 1, 0.1).upper


@pytest.mark.parametrize(("n", "lost", "won"), [(-1, 0, 0), (5, -1, 0), (5, 0, -1), (5, 3, 3), (0, 1, 0)])
def test_impossible_tables_are_refused(n: int, lost: int, won: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        interval(n, lost, won)


def test_counts_that_are_no_integers_are_refused() -> None:
    for bad in (math.nan, 2.0):
        with pytest.raises(TypeError):
            interval(5, bad, 0)  # type: ignore[arg-type]
    assert interval(5, np.int64(2), 0) == interval(5, 2, 0)  # type: ignore[arg-type]
