"""Holm against closed testing by brute force and published values; the intersection-union test by enumeration."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from backslide.stats.multiplicity import all_pass, holm


def closed_test(p: list[Fraction], alpha: Fraction) -> list[bool]:
    """Marcus, Peritz and Gabriel: reject i if every set of tests that holds i is rejected, each by Bonferroni."""
    n = len(p)
    sets = [s for size in range(1, n + 1) for s in itertools.combinations(range(n), size)]
    rejected = {s: any(p[i] <= alpha / len(s) for i in s) for s in sets}
    return [all(rejected[s] for s in sets if i in s) for i in range(n)]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_holm_is_the_closed_test(n: int) -> None:
    # Every tuple of p values from a grid that holds all thresholds of alpha = 1/4, ties included; exact in binary.
    alpha = Fraction(1, 4)
    grid = [Fraction(k, 32) for k in (0, 1, 2, 3, 4, 5, 8, 9, 32)]
    thirds = [Fraction(float(alpha) / 3)]  # the threshold as the floats have it
    for p in itertools.product(grid + thirds, repeat=n):
        got = holm([float(x) for x in p], float(alpha))
        # alpha / 3 is rounded: compare with the level that was used.
        want = closed_test([Fraction(1, 12) if x == thirds[0] else x for x in p], alpha)
        assert list(got.rejected) == want, p


def test_holm_is_the_closed_test_at_random() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(1, 8))
        p = (rng.random(n) ** 3 * 0.2).tolist()
        assert list(holm(p, 0.05).rejected) == closed_test([Fraction(x) for x in p], Fraction(0.05))


def test_adjusted_is_the_smallest_level_of_the_closed_test() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        p = (rng.random(int(rng.integers(1, 6))) ** 2 * 0.3).tolist()
        for i, adjusted in enumerate(holm(p, 0.05).adjusted):
            exact = [Fraction(x) for x in p]
            if adjusted < 1:
                assert closed_test(exact, Fraction(adjusted * (1 + 1e-12)))[i]
            assert not closed_test(exact, Fraction(adjusted * (1 - 1e-12)))[i]


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        # p.adjust(p, "holm") of R's stats package.
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        # The worked example of the article "Holm-Bonferroni method": H1 and H4 are rejected at .05, H2 and H3 are not.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5], [0.5]),
        ([0.4, 0.9], [0.8, 0.9]),
        ([0.6, 0.9], [1.0, 1.0]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_worked_examples(p: list[float], adjusted: list[float]) -> None:
    got = holm(p, 0.05)
    assert got.adjusted == pytest.approx(adjusted, rel=1e-12)
    assert got.rejected == tuple(a <= 0.05 for a in adjusted)


def test_the_level_of_each_test_is_that_of_its_step_or_of_the_stop() -> None:
    got = holm([0.01, 0.04, 0.03, 0.005], 0.05)
    assert got.levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])
    assert got.any_rejected
    nothing = holm([0.9, 0.02, 0.5], 0.05)
    assert nothing.levels == pytest.approx([0.05 / 3] * 3)
    assert not nothing.any_rejected


def test_equal_p_values_are_treated_alike() -> None:
    assert holm([0.02, 0.02, 0.001], 0.05).levels == pytest.approx([0.025, 0.025, 0.05 / 3])
    assert holm([0.02, 0.02, 0.001], 0.05).rejected == (True, True, True)
    assert holm([0.03, 0.03, 0.001], 0.05).rejected == (False, False, True)


def test_the_family_wise_error_of_holm_by_enumeration() -> None:
    # Three tests, two of them null with p uniform on {1/40, ..., 1} and the other always rejected: the worst case.
    # Independent, and with disjoint rejection regions, where Bonferroni's bound is reached.
    alpha, m = 0.1, 40
    pairs = list(itertools.product(range(1, m + 1), repeat=2))
    hits = sum(any(holm([1e-9, a / m, b / m], alpha).rejected[1:]) for a, b in pairs)
    assert Fraction(hits, m * m) == 1 - (1 - Fraction(2, m)) ** 2
    disjoint = [(a, (a + m // 2 - 1) % m + 1) for a in range(1, m + 1)]
    hits = sum(any(holm([1e-9, a / m, b / m], alpha).rejected[1:]) for a, b in disjoint)
    assert Fraction(hits, m) == Fraction(alpha).limit_denominator(100)


def test_all_pass_by_enumeration() -> None:
    # One capability lies on the bound (p uniform), the others are far inside (p = 0): the level is reached exactly.
    alpha, m = 0.05, 100
    passed = [all_pass([0.0, k / m, 0.0], alpha) for k in range(1, m + 1)]
    assert Fraction(sum(passed), m) == Fraction(5, 100)
    # All on the bound: far below, which is the price.
    both = [all_pass([a / 20, b / 20], 0.05) for a in range(1, 21) for b in range(1, 21)]
    assert Fraction(sum(both), 400) == Fraction(1, 400)


def test_all_pass_needs_no_correction_and_every_capability() -> None:
    assert all_pass([0.05] * 50, 0.05)
    assert not all_pass([0.05] * 50 + [0.0500001], 0.05)


@pytest.mark.parametrize("function", [holm, all_pass])
@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([], r"shape \(0,\)"),
        ([[0.1]], r"shape \(1, 1\)"),
        (0.1, r"shape \(\)"),
        ([0.1, math.nan], r"p_values\[1\] \(=nan\)"),
        ([-0.1], r"p_values\[0\] \(=-0.1\)"),
        ([0.5, 0.2, 1.5], r"p_values\[2\] \(=1.5\)"),
    ],
)
def test_what_is_no_p_value_is_refused(function: object, p: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(p, 0.05)  # type: ignore[operator]


@pytest.mark.parametrize("function", [holm, all_pass])
@pytest.mark.parametrize("alpha", [0.0, -0.1, 0.6, math.nan])
def test_what_is_no_level_is_refused(function: object, alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        function([0.5], alpha)  # type: ignore[operator]
