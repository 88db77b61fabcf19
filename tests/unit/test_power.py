"""Planning figures, against the power counted table by table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from backslide.stats.bounded import bounded_p_value
from backslide.stats.expected import planned_drops, planned_flips
from backslide.stats.paired import hard_interval, mcnemar_exact, mcnemar_threshold
from backslide.stats.power import (
    MOST_ITEMS,
    items_needed,
    items_to_decide,
    smallest_betting_drop,
    smallest_drop,
    smallest_soft_drop,
    soft_items_needed,
)


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


# -- items for a drop, soft outcomes --------------------------------------------------------------------------


@pytest.mark.parametrize(("drop", "flip_rate"), [(0.6, 0.6), (0.5, 0.9), (0.3, 0.4), (1.0, 1.0)])
def test_items_needed_by_brute_force(drop: float, flip_rate: float) -> None:
    for power in (0.5, 0.8):
        n = items_needed(drop, flip_rate=flip_rate, alpha=0.05, power=power)
        assert brute_power(n, drop, flip_rate, 0.05) >= power
        assert brute_power(n - 1, drop, flip_rate, 0.05) < power


def test_items_needed_are_near_the_table_of_the_reference() -> None:
    # Normal figures; the discrete test needs a few more, the fewer flips the more.
    for flip_rate, drop, expected in ((0.05, 0.01, 3085), (0.10, 0.03, 681), (0.20, 0.05, 488)):
        n = items_needed(drop, flip_rate=flip_rate, alpha=0.05)
        assert expected <= n <= 1.12 * expected
        assert smallest_drop(n, flip_rate=flip_rate, alpha=0.05) <= drop
    assert items_needed(1e-5, flip_rate=0.5, alpha=0.05) == MOST_ITEMS


@pytest.mark.parametrize("n", [50, 400])
@pytest.mark.parametrize("alpha", [0.05, 0.0005])
def test_power_of_the_t_test_at_the_smallest_soft_drop(n: int, alpha: float) -> None:
    # Noncentral t is the exact power for normal drops. The normal figure promises too much by what the quantile of t
    # is above that of the normal distribution.
    drop = smallest_soft_drop(n, sd=0.1, alpha=alpha)
    cutoff = scipy.stats.t.isf(alpha, n - 1)
    power = float(scipy.stats.nct.sf(cutoff, n - 1, drop * math.sqrt(n) / 0.1))
    excess = cutoff - scipy.stats.norm.isf(alpha)
    assert power < 0.8
    assert power == pytest.approx(scipy.stats.norm.cdf(scipy.stats.norm.ppf(0.8) - excess), abs=0.03)
    assert soft_items_needed(drop * (1 + 1e-12), sd=0.1, alpha=alpha) == n
    assert soft_items_needed(drop * (1 - 1e-9), sd=0.1, alpha=alpha) == n + 1


def test_soft_figures_by_hand() -> None:
    # (1.644854 + 0.841621)^2 = 6.1826; the 6.18 of the reference.
    assert soft_items_needed(0.01, sd=0.1, alpha=0.05) == 619
    assert smallest_soft_drop(100, sd=1.0, alpha=0.05) == pytest.approx(0.2486475, abs=1e-6)
    assert math.isinf(smallest_soft_drop(1, sd=0.1, alpha=0.05))
    assert math.isinf(smallest_soft_drop(100, sd=0.0, alpha=0.05))
    assert soft_items_needed(1e-9, sd=0.1, alpha=0.05) == MOST_ITEMS
    assert soft_items_needed(5.0, sd=0.1, alpha=0.05) == 2


def test_smallest_betting_drop_without_spread_is_where_the_p_value_crosses() -> None:
    for n, alpha in ((60, 0.05), (300, 0.0005)):
        drop = smallest_betting_drop([0.2, 0.2], n, alpha=alpha, replicates=1)
        assert bounded_p_value(np.full(n, drop)) <= alpha < bounded_p_value(np.full(n, drop - 2e-4))


def test_power_at_the_smallest_betting_drop() -> None:
    # Found with 2000 samples, checked with 600 others one by one: within four errors of both together.
    pool = np.random.default_rng(0).normal(0, 0.2, 300).clip(-0.7, 0.7)
    n, alpha = 150, 0.05
    drop = smallest_betting_drop(pool, n, alpha=alpha, replicates=2000)
    rng = np.random.default_rng(1)
    moved = pool - pool.mean() + drop
    hits = [bounded_p_value(rng.choice(moved, n)) <= alpha for _ in range(600)]
    assert abs(np.mean(hits) - 0.8) < 4 * math.sqrt(0.16 * (1 / 600 + 1 / 2000))
    assert drop > smallest_soft_drop(n, sd=float(pool.std()), alpha=alpha)  # the price of being valid at every n


def test_items_of_a_cluster_that_drop_as_one_count_as_clusters() -> None:
    pool = np.repeat([0.3, -0.3, 0.0, 0.0], 5)
    alone = smallest_betting_drop(pool, 60, alpha=0.01, replicates=400)
    loose = smallest_betting_drop(pool, 180, sizes=[3] * 60, correlation=0.0, alpha=0.01, replicates=400)
    tied = smallest_betting_drop(pool, 180, sizes=[3] * 60, correlation=1.0, alpha=0.01, replicates=400)
    assert tied == pytest.approx(alone, rel=0.1), "whatever its size, a cluster is one draw"
    assert loose < 0.9 * tied
    for sizes in ([3] * 59, [1.5] * 120, [180, 0], [[180]]):
        with pytest.raises(ValueError, match="sizes .* must be whole numbers >= 1 that sum to n"):
            smallest_betting_drop(pool, 180, sizes=sizes, alpha=0.01)
    with pytest.raises(ValueError, match="correlation"):
        smallest_betting_drop(pool, 180, sizes=[3] * 60, correlation=1.1, alpha=0.01)


def test_smallest_betting_drop_shrinks_with_items() -> None:
    pool = np.random.default_rng(2).normal(0, 0.1, 200)
    found = [smallest_betting_drop(pool, n, alpha=0.01, replicates=100) for n in (30, 100, 400)]
    assert found == sorted(found, reverse=True)
    assert math.isinf(smallest_betting_drop(pool, 3, alpha=1e-6, replicates=20))


# -- planning -------------------------------------------------------------------------------------------------


def test_planned_drops_are_the_perturbed_probabilities() -> None:
    p = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    got = planned_drops(p, shift=math.log(2), noise=0.0)
    # Odds are halved: 1/9 -> 1/18, 1 -> 1/2, 9 -> 4.5.
    assert got == pytest.approx([0.0, 0.1 - 1 / 19, 0.5 - 1 / 3, 0.9 - 4.5 / 5.5, 0.0])
    assert planned_drops(p, shift=0.0, noise=0.0) == pytest.approx(np.zeros(5), abs=1e-15)
    z = np.random.default_rng(4).standard_normal(5)
    odds = p[1:4] / (1 - p[1:4]) * np.exp(0.3 * z[1:4] - 0.1)
    assert planned_drops(p, shift=0.1, noise=0.3, seed=4)[1:4] == pytest.approx(p[1:4] - odds / (1 + odds))


@pytest.mark.parametrize(("shift", "noise"), [(0.0, 0.5), (0.4, 0.5), (-0.3, 1.5)])
def test_planned_flips_are_what_planned_drops_do(shift: float, noise: float) -> None:
    p = np.random.default_rng(0).beta(2, 1, 200_000)
    after = p - planned_drops(p, shift=shift, noise=noise, seed=1)
    lost, won = planned_flips(p, shift=shift, noise=noise)
    n = p.size
    for chance, seen in ((lost, (p > 0.5) & (after <= 0.5)), (won, (p <= 0.5) & (after > 0.5))):
        assert abs(chance.sum() - seen.sum()) < 4 * math.sqrt(n * 0.25)
        assert abs(chance.mean() - seen.mean()) < 4 * math.sqrt(chance.mean() / n)


def test_edge_with_three_choices() -> None:
    # Softmax over three choices; the gold score moves by x. The edge says at which x another choice takes over.
    scores = np.array([[1.0, 0.4, 0.2], [0.1, 0.9, -0.5], [2.0, 1.9, 1.9]])
    share = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    r = share[:, 1:].max(axis=1) / share[:, 1:].sum(axis=1)
    for x in (-1.0, -0.5, -0.15, 0.0, 0.3, 0.75, 0.85):
        lost, won = planned_flips(share[:, 0], shift=-x, noise=0.0, edge=r / (1 + r))
        before, after = scores[:, 0] > scores[:, 1:].max(axis=1), scores[:, 0] + x > scores[:, 1:].max(axis=1)
        assert lost.tolist() == (before & ~after).tolist()
        assert won.tolist() == (~before & after).tolist()


def test_items_far_from_the_edge_do_not_flip() -> None:
    lost, won = planned_flips([0.0, 0.001, 0.999, 1.0], shift=0.2, noise=0.5)
    assert lost.max() < 1e-9 and won.max() < 1e-9
    lost, won = planned_flips([0.5, 0.52], shift=0.0, noise=0.5)
    assert won[0] == pytest.approx(0.5) and lost[1] > 0.4


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"p": [0.5, 1.1]}, r"p\[1\]"), ({"p": [math.nan]}, r"p\[0\]"), ({"p": [[0.5]]}, "shape"),
        ({"shift": math.inf}, "shift"), ({"noise": -1.0}, "noise"), ({"noise": math.nan}, "noise"),
    ],
)  # fmt: skip
def test_plans_refuse(change: dict[str, object], name: str) -> None:
    arguments = {"p": [0.5], "shift": 0.0, "noise": 0.5, **change}
    p = arguments.pop("p")
    for plan in (planned_drops, planned_flips):
        with pytest.raises(ValueError, match=name):
            plan(p, **arguments)  # type: ignore[operator]


def test_an_edge_outside_its_range_is_refused() -> None:
    for edge in (0.0, 1.0, math.nan, [0.5, 0.5]):
        with pytest.raises(ValueError, match="edge"):
            planned_flips([0.5], shift=0.0, noise=0.5, edge=edge)


def test_new_planning_figures_refuse() -> None:
    for bad in ({"drop": 0.0}, {"drop": 0.3}, {"flip_rate": 0.0}, {"alpha": 0.0}, {"power": 1.0}):
        hard = {"drop": 0.1, "flip_rate": 0.2, "alpha": 0.05, "power": 0.8, **bad}
        with pytest.raises(ValueError, match="must be"):
            items_needed(hard.pop("drop"), **hard)
    for bad in ({"drop": 0.0}, {"sd": 0.0}, {"alpha": 0.0}, {"power": 0.4}, {"sd": math.nan}):
        soft = {"drop": 0.1, "sd": 0.2, "alpha": 0.05, "power": 0.8, **bad}
        with pytest.raises(ValueError, match="must be"):
            soft_items_needed(soft.pop("drop"), **soft)
    for bad in ({"n": -1}, {"sd": -0.1}, {"sd": math.inf}, {"alpha": 0.6}):
        figures = {"n": 10, "sd": 0.2, "alpha": 0.05, **bad}
        with pytest.raises(ValueError, match="must be"):
            smallest_soft_drop(figures.pop("n"), **figures)  # type: ignore[arg-type]
    for bad in ({"n": 0}, {"alpha": 0.0}, {"power": 0.0}, {"replicates": 0}, {"drops": []}, {"drops": [2.0]}):
        betting = {"drops": [0.1], "n": 10, "alpha": 0.05, **bad}
        with pytest.raises(ValueError, match="must"):
            smallest_betting_drop(betting.pop("drops"), betting.pop("n"), **betting)  # type: ignore[arg-type]
