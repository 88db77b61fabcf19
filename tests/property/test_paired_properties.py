"""Properties of the paired statistics that must hold for every input."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backslide.stats.means import mean_interval
from backslide.stats.paired import hard_interval, mcnemar_exact, mcnemar_threshold
from backslide.stats.power import items_to_decide, smallest_drop

SMALL = settings(deadline=None, max_examples=60)
ROUNDING = 1e-5  # the bounds are solved to 1e-7, at a level with a margin of 1e-4

level = st.floats(1e-5, 0.5)
drops = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=30)


@st.composite
def table(draw: st.DrawFn, most: int = 150) -> tuple[int, int, int]:
    """Items, lost and won; empty and full tables are drawn as often as others."""
    n = draw(st.integers(1, most))
    flips = draw(st.one_of(st.just(0), st.just(n), st.integers(0, n)))
    lost = draw(st.one_of(st.just(0), st.just(flips), st.integers(0, flips)))
    return n, lost, flips - lost


@SMALL
@given(table(), level, level)
def test_bounds_are_in_range_and_agree_with_the_test(t: tuple[int, int, int], below: float, above: float) -> None:
    n, lost, won = t
    got = hard_interval(n, lost, won, alpha_lower=below, alpha_upper=above)
    assert -1 <= got.lower <= (lost - won) / n <= got.upper <= 1
    assert (got.lower > 0) == (mcnemar_exact(lost, won) <= below)


@SMALL
@given(table(), level)
def test_lower_claims_no_more_than_the_mirrored_upper_unless_mcnemar_rejects(
    t: tuple[int, int, int], alpha: float
) -> None:
    n, lost, won = t
    got = hard_interval(n, lost, won, alpha_lower=alpha, alpha_upper=alpha)
    mirrored = hard_interval(n, won, lost, alpha_lower=alpha, alpha_upper=alpha)
    assert got.lower > 0 or got.lower <= -mirrored.upper + ROUNDING
    assert mirrored.lower > 0 or mirrored.lower <= -got.upper + ROUNDING


@SMALL
@given(table(), level, st.floats(0.01, 1))
def test_a_smaller_level_is_never_narrower(t: tuple[int, int, int], alpha: float, factor: float) -> None:
    assume(alpha * factor >= 1e-6)
    wide = hard_interval(*t, alpha_lower=alpha * factor, alpha_upper=alpha * factor)
    narrow = hard_interval(*t, alpha_lower=alpha, alpha_upper=alpha)
    assert wide.upper >= narrow.upper - ROUNDING
    assert wide.lower <= narrow.lower + 5e-4 + ROUNDING  # documented: a hair at a p value of McNemar's


@SMALL
@given(table(), level)
def test_a_won_item_that_turns_lost_never_lowers_a_bound(t: tuple[int, int, int], alpha: float) -> None:
    n, lost, won = t
    assume(won > 0)
    before = hard_interval(n, lost, won, alpha_lower=alpha, alpha_upper=alpha)
    after = hard_interval(n, lost + 1, won - 1, alpha_lower=alpha, alpha_upper=alpha)
    assert after.lower >= before.lower - ROUNDING
    assert after.upper >= before.upper - ROUNDING


@SMALL
@given(table(), level)
def test_one_more_lost_item_lowers_a_bound_by_a_third_of_an_item_at_most(t: tuple[int, int, int], alpha: float) -> None:
    n, lost, won = t
    assume(lost + won < n)
    before = hard_interval(n, lost, won, alpha_lower=alpha, alpha_upper=alpha)
    after = hard_interval(n, lost + 1, won, alpha_lower=alpha, alpha_upper=alpha)
    assert after.lower >= before.lower - 1 / (3 * n)
    assert after.upper >= before.upper - 1 / (3 * n)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_mcnemar_p_values(lost: int, won: int) -> None:
    p = mcnemar_exact(lost, won)
    assert 0 < p <= 1
    assert mcnemar_exact(lost + 1, won) <= p * (1 + 1e-9)
    assert mcnemar_exact(lost, won + 1) >= p * (1 - 1e-9)


@given(st.lists(st.integers(0, 5000), max_size=8), level)
def test_threshold_is_the_first_that_rejects(flips: list[int], alpha: float) -> None:
    for f, k in zip(flips, mcnemar_threshold(np.array(flips, dtype=np.int64), alpha).tolist(), strict=True):
        assert 1 <= k <= f + 1
        assert k > f or mcnemar_exact(k, f - k) <= alpha
        assert mcnemar_exact(k - 1, f - k + 1) > alpha


@given(drops, st.randoms(), level)
def test_the_order_of_the_items_does_not_matter(d: list[float], shuffler: object, alpha: float) -> None:
    mixed = list(d)
    shuffler.shuffle(mixed)  # type: ignore[attr-defined]
    a = mean_interval(np.array(d), alpha_lower=alpha, alpha_upper=alpha)
    b = mean_interval(np.array(mixed), alpha_lower=alpha, alpha_upper=alpha)
    assert a.method == b.method
    np.testing.assert_allclose([a.lower, a.upper], [b.lower, b.upper], rtol=1e-9, atol=1e-9)


@given(drops, level, level)
def test_turning_the_sign_mirrors_the_mean_interval(d: list[float], below: float, above: float) -> None:
    a = mean_interval(np.array(d), alpha_lower=below, alpha_upper=above)
    b = mean_interval(-np.array(d), alpha_lower=above, alpha_upper=below)
    assert a.method == b.method
    np.testing.assert_allclose([a.lower, a.upper], [-b.upper, -b.lower], rtol=1e-12, atol=1e-12)


@given(drops, level, st.floats(0.01, 1))
def test_mean_interval_holds_the_mean_and_widens_as_the_level_falls(
    d: list[float], alpha: float, factor: float
) -> None:
    narrow = mean_interval(np.array(d), alpha_lower=alpha, alpha_upper=alpha)
    wide = mean_interval(np.array(d), alpha_lower=alpha * factor, alpha_upper=alpha * factor)
    mean = math.fsum(d) / len(d)
    assert narrow.lower <= mean + 1e-9 and mean <= narrow.upper + 1e-9
    assert wide.lower <= narrow.lower + 1e-9 and narrow.upper <= wide.upper + 1e-9


@given(st.floats(-1e6, 1e6), st.integers(1, 40), level)
def test_drops_without_spread_never_give_a_certain_number(value: float, n: int, alpha: float) -> None:
    assume(value != 0)
    got = mean_interval(np.full(n, value), alpha_lower=alpha, alpha_upper=alpha)
    assert (got.lower, got.upper) == (-math.inf, math.inf)


@given(table(most=3000), st.floats(0, 1), level, level)
def test_items_to_decide_always_asks_for_more(
    t: tuple[int, int, int], tolerance: float, fail: float, passing: float
) -> None:
    asked = items_to_decide(*t, tolerance=tolerance, alpha_fail=fail, alpha_pass=passing)
    assert t[0] + 1 <= asked <= 1_000_000
    stricter = items_to_decide(*t, tolerance=tolerance, alpha_fail=fail, alpha_pass=passing, power=0.95)
    assert stricter >= asked


@SMALL
@given(st.integers(1, 3000), st.floats(0.001, 1), level)
def test_smallest_drop_is_possible_or_infinite(n: int, flip_rate: float, alpha: float) -> None:
    drop = smallest_drop(n, flip_rate=flip_rate, alpha=alpha)
    assert math.isinf(drop) or 0 < drop <= flip_rate
