"""Planning figures, against the power counted table by table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from backslide.stats.paired import hard_interval, mcnemar_exact, mcnemar_threshold
from backslide.stats.power import MOST_ITEMS, items_to_decide, smallest_drop


def brute_power(n: int, drop: float, flip_rate: float, alpha: float) -> float:
    """Chance that McNemar rejects: the trinomial, table by table, without going through the number of flips."""
    p_lost, p_won = (flip_rate + drop) / 2, max((flip_rate - drop) / 2, 0.0)
    rest = max(1 - flip_rate, 0.0)
    total = 0.0
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            if lost and scipy.stats.binom.sf(lost - 1, lost + won, 0.5) <= alpha:
                ways = math.comb(n, lost) * math.comb(n - lost, won)
                total += ways * p_lost**lost * p_won**won * rest ** (n - lost - won)
    return total


@pytest.mark.parametrize("alpha", [0.05, 0.005])
@pytest.mark.parametrize("power", [0.5, 0.8])
@pytest.mark.parametrize(("n", "flip_rate"), [(5, 1.0), (12, 0.6), (12, 0.95), (20, 0.5), (25, 0.3), (30, 0.1)])
def test_smallest_drop_by_brute_force(n: int, flip_rate: float, alpha: float, power: float) -> None:
    drop = smallest_drop(n, flip_rate=flip_rate, alpha=alpha, power=power)
    if math.isinf(drop):
        assert brute_power(n, flip_rate, flip_rate, alpha) < power
    else:
        assert 0 < drop <= flip_rate
        assert brute_power(n, drop, flip_rate, alpha) >= power - 1e-9
        assert brute_power(n, drop - 1e-6, flip_rate, alpha) < power


def test_both_outcomes_occur_above() -> None:
    assert math.isinf(smallest_drop(30, flip_rate=0.1, alpha=0.005))
    assert smallest_drop(20, flip_rate=0.5, alpha=0.05) < 0.5


def test_smallest_drop_of_many_items_is_near_the_normal_one() -> None:
    # At these sizes the exact and the normal figures must meet: n = 6.18 (p - d^2) / d^2.
    for n, flip_rate, expected in ((1539, 0.10, 0.02), (3085, 0.20, 0.02), (6176, 0.10, 0.01)):
        assert smallest_drop(n, flip_rate=flip_rate, alpha=0.05) == pytest.approx(expected, rel=0.04)


def test_numbers_of_flips_left_out_do_not_matter() -> None:
    # The sum over flips is cut to a window; here it is not.
    n, flip_rate, alpha = 20_000, 0.3, 0.05
    f = np.arange(n + 1)
    first = mcnemar_threshold(f, alpha)
    for power in (0.01, 0.8, 0.999):
        lose = (1 + smallest_drop(n, flip_rate=flip_rate, alpha=alpha, power=power) / flip_rate) / 2
        if power > alpha:
            full = float(scipy.stats.binom.pmf(f, n, flip_rate) @ scipy.stats.binom.sf(first - 1, f, lose))
            assert full == pytest.approx(power, abs=2e-5)
        else:  # less than the level: any drop will do
            assert lose == pytest.approx(0.5, abs=1e-6)


def test_smallest_drop_shrinks_with_items_and_grows_with_power() -> None:
    by_n = [smallest_drop(n, flip_rate=0.2, alpha=0.05) for n in (50, 100, 400, 2000)]
    assert by_n == sorted(by_n, reverse=True)
    by_power = [smallest_drop(200, flip_rate=0.2, alpha=0.05, power=power) for power in (0.2, 0.5, 0.8, 0.95)]
    assert by_power == sorted(by_power)
    by_alpha = [smallest_drop(200, flip_rate=0.2, alpha=alpha) for alpha in (0.05, 0.005, 0.0005)]
    assert by_alpha == sorted(by_alpha)


def test_nothing_can_be_proven_without_items_or_flips() -> None:
    assert math.isinf(smallest_drop(0, flip_rate=0.5, alpha=0.05))
    assert math.isinf(smallest_drop(100, flip_rate=0.0, alpha=0.05))
    assert math.isinf(smallest_drop(4, flip_rate=1.0, alpha=0.05))  # .5 ** 4 > .05: not even 4 of 4


def decided(n: int, p_lost: float, p_won: float, *, tolerance: float, alpha: float) -> float:
    """Chance that n items give `retained` or `regressed`; exact, from the interval of each table."""
    p = p_lost + p_won
    total = 0.0
    for f in range(n + 1):
        weight = scipy.stats.binom.pmf(f, n, p)
        if weight < 1e-5:
            continue  # counted as undecided

        def retained(lost: int, flips: int = f) -> bool:
            return hard_interval(n, lost, flips - lost, alpha_lower=alpha, alpha_upper=alpha).upper <= tolerance

        low, high = -1, f + 1  # at the same number of flips the upper bound rises with the losses
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if retained(middle) else (low, middle)
        for lost in range(f + 1):
            if lost <= low or mcnemar_exact(lost, f - lost) <= alpha:
                total += weight * scipy.stats.binom.pmf(lost, f, p_lost / p)
    return float(total)


@pytest.mark.parametrize(
    ("n", "lost", "won", "tolerance"), [(20, 6, 1, 0.0), (12, 5, 1, 0.0), (30, 1, 2, 0.1), (20, 2, 2, 0.2)]
)
def test_as_many_items_as_asked_for_do_decide(n: int, lost: int, won: int, tolerance: float) -> None:
    # A normal approximation of a discrete test, meant for planning: wanted 80%, and the exact chance must be near.
    needed = items_to_decide(n, lost, won, tolerance=tolerance, alpha_fail=0.05, alpha_pass=0.05)
    assert n < needed < 80
    assert 0.6 <= decided(needed, lost / n, won / n, tolerance=tolerance, alpha=0.05) <= 0.95


def by_hand(p: float, drop: float, distance: float, alpha: float, power: float) -> float:
    z = scipy.stats.norm.isf(alpha) + scipy.stats.norm.ppf(power)
    return float((p - drop**2) * (z / distance) ** 2)


def test_items_to_decide_is_its_formula() -> None:
    cases = [(100, 6, 4, 0.03), (400, 30, 10, 0.01), (50, 0, 0, 0.03), (0, 0, 0, 0.05), (200, 3, 9, 0.0)]
    for n, lost, won, tolerance in cases:
        drop, p = (lost - won) / n if n else 0.0, (lost + won + 1) / (n + 2)
        options = []
        if drop < tolerance:
            options.append(by_hand(p, drop, tolerance - drop, 0.02, 0.9))
        if drop > 0:
            options.append(by_hand(p, drop, drop, 0.005, 0.9))
        got = items_to_decide(n, lost, won, tolerance=tolerance, alpha_fail=0.005, alpha_pass=0.02, power=0.9)
        assert got == max(n + 1, math.ceil(min(options)))


def test_table_of_the_reference() -> None:
    # Items for one-sided .05 and power .8, in a limit where smoothing does not matter.
    n = 10**6
    for flips, drop, expected in ((0.05, 0.01, 3085), (0.10, 0.03, 681), (0.20, 0.05, 488)):
        got = items_to_decide(
            n, round(n * (flips - drop) / 2), round(n * (flips + drop) / 2), tolerance=0.0, alpha_fail=0.05,
            alpha_pass=0.05,
        )  # fmt: skip
        assert got == n + 1  # there are enough already
        small = items_to_decide(0, 0, 0, tolerance=drop, alpha_fail=0.05, alpha_pass=0.05)
        assert small == math.ceil(by_hand(0.5, 0.0, drop, 0.05, 0.8))
        assert by_hand(flips, drop, drop, 0.05, 0.8) == pytest.approx(expected, rel=0.003)


def test_zero_flips_are_not_read_as_certainty() -> None:
    assert items_to_decide(10, 0, 0, tolerance=0.03, alpha_fail=0.05, alpha_pass=0.05) > 100


def test_more_than_the_most_is_never_asked_for() -> None:
    levels = {"alpha_fail": 0.05, "alpha_pass": 0.05}
    assert items_to_decide(100, 5, 5, tolerance=0.0, **levels) == MOST_ITEMS
    assert items_to_decide(100, 5, 5, tolerance=1e-12, **levels) == MOST_ITEMS
    assert items_to_decide(2 * MOST_ITEMS, 5, 5, tolerance=0.0, **levels) == 2 * MOST_ITEMS + 1


def test_all_lost_still_needs_a_positive_variance() -> None:
    # There the smoothed flip rate, 4 / 5, is below drop^2, and p (1 - p) stands in.
    z = scipy.stats.norm.isf(1e-9) + scipy.stats.norm.ppf(0.8)
    assert items_to_decide(3, 3, 0, tolerance=0.0, alpha_fail=1e-9, alpha_pass=0.05) == math.ceil(0.16 * z * z)


@pytest.mark.parametrize(
    "change",
    [
        {"n": -1}, {"lost": -1}, {"won": -1}, {"lost": 9, "won": 2}, {"tolerance": -0.1}, {"tolerance": 1.1},
        {"tolerance": math.nan}, {"alpha_fail": 0.0}, {"alpha_fail": 0.6}, {"alpha_pass": math.nan}, {"power": 0.4},
        {"power": 1.0},
    ],
)  # fmt: skip
def test_items_to_decide_refuses(change: dict[str, float]) -> None:
    good = {"n": 10, "lost": 1, "won": 1, "tolerance": 0.03, "alpha_fail": 0.05, "alpha_pass": 0.05, "power": 0.8}
    arguments = {**good, **change}
    counts = [arguments.pop(name) for name in ("n", "lost", "won")]
    with pytest.raises(ValueError, match="must be"):
        items_to_decide(*counts, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [{"n": -1}, {"flip_rate": -0.1}, {"flip_rate": 1.1}, {"flip_rate": math.nan}, {"alpha": 0.0}, {"power": 1.0}],
)
def test_smallest_drop_refuses(change: dict[str, float]) -> None:
    arguments = {"n": 10, "flip_rate": 0.2, "alpha": 0.05, "power": 0.8, **change}
    with pytest.raises(ValueError, match="must be"):
        smallest_drop(arguments.pop("n"), **arguments)  # type: ignore[arg-type]
