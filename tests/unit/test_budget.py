"""Betting without replacement, against its definition in fractions and against all orders of small populations."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from backslide.stats.budget import SHARES, WEIGHTS, BudgetDecision, BudgetState, budget

LEVELS = {"alpha": 0.1, "beta": 0.2, "tolerance": 0.25}


def orders(population: list[float]) -> list[tuple[float, ...]]:
    """All distinct orders; a uniformly random order gives each of them equally often."""
    return sorted(set(itertools.permutations(population)))


def populations(items: int) -> list[list[float]]:
    return [[1.0] * lost + [-1.0] * won + [0.0] * (items - lost - won)
            for lost in range(items + 1) for won in range(items + 1 - lost)]  # fmt: skip


def decide(drops: object, items: int | None = None, **levels: float) -> BudgetDecision:
    test = budget(items if items is not None else len(drops), **{**LEVELS, **levels})  # type: ignore[arg-type]
    return test.update(test.init(), drops)[1]  # type: ignore[arg-type]


def wealth_by_definition(drops: tuple[float, ...], items: int, bound: Fraction) -> list[Fraction]:
    """Average wealth after each drop against "mean drop <= bound", by products of fractions."""
    wealth = [Fraction(w) for w in WEIGHTS]
    total, out = Fraction(0), []
    for t, x in enumerate(drops):
        m = (items * bound - total) / (items - t)
        if 1 + m > 0:
            wealth = [w * (1 + Fraction(c) / (1 + m) * (Fraction(x) - m)) for w, c in zip(wealth, SHARES, strict=True)]
        total += Fraction(x)
        out.append(sum(wealth))
    return out


def test_weights_are_shares_of_one() -> None:
    assert math.fsum(WEIGHTS) == pytest.approx(1.0, abs=1e-15)
    assert all(0 < w < 1 for w in WEIGHTS) and all(0 < c < 1 for c in SHARES)


@pytest.mark.parametrize("population", [[1.0, 1.0, -1.0, 0.0, 0.0, -1.0, 1.0], [0.5, 0.25, -0.75, 0.0, 0.125, 1.0]])
def test_p_values_are_those_of_the_definition(population: list[float]) -> None:
    items = len(population)
    for order in orders(population)[::7]:
        up = wealth_by_definition(order, items, Fraction(0))
        down = wealth_by_definition(tuple(-x for x in order), items, Fraction(-1, 4))
        for t in range(1, items + 1):
            got = decide(order[:t], items)
            for p, path, certain in (
                (got.p_lost, up, sum(order[:t]) - (items - t) > 0),
                (got.p_clear, down, sum(order[:t]) + (items - t) <= 0.25 * items),
            ):
                want = 0.0 if certain else float(1 / max(Fraction(1), *path[:t]))
                assert p == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("population", [[1.0, -1.0, 0.0, 0.0, 1.0, -1.0], [0.75, -0.25, -0.25, -0.25, 0.5, -0.5, 0.0]])
def test_wealth_is_a_martingale_where_the_mean_lies_on_the_bound(population: list[float]) -> None:
    # The mean over all orders is 1 after every number of items; exactly, in fractions, and so for the states.
    every = orders(population)
    assert sum(population) == 0
    paths = [wealth_by_definition(order, len(population), Fraction(0)) for order in every]
    for t in range(len(population)):
        assert sum((path[t] for path in paths), Fraction(0)) / len(every) == pytest.approx(1, abs=1e-12)
    test = budget(len(population), **LEVELS)
    for t in range(1, len(population) + 1):
        states = [test.update(test.init(), order[:t])[0] for order in every]
        mean = np.mean([[math.exp(w) for w in state.wealth_lost] for state in states], axis=0)
        assert mean == pytest.approx(np.ones(len(SHARES)), rel=1e-9)


@pytest.mark.parametrize("items", [1, 2, 5, 7])
@pytest.mark.parametrize("tolerance", [0.0, 0.25, 0.4])
def test_errors_over_all_orders_of_all_populations(items: int, tolerance: float) -> None:
    largest = 0.0
    for population in populations(items):
        every = orders(population)
        test = budget(items, alpha=0.3, beta=0.4, tolerance=tolerance)
        decisions = [test.update(test.init(), order)[1] for order in every]
        mean = sum(population) / items
        lost = sum(d.lost for d in decisions) / len(every)
        clear = sum(d.clear for d in decisions) / len(every)
        if mean <= 0:
            assert lost <= 0.3
            largest = max(largest, lost)
        else:
            assert lost == 1.0  # a census leaves no doubt
        if mean > tolerance + 1e-9:
            assert clear <= 0.4
        else:
            assert clear == 1.0
        assert all(d.census and d.decided_at is not None for d in decisions)
    assert items < 5 or largest > 0.02  # the bound is not met by never alarming


def test_p_values_are_valid_over_all_orders() -> None:
    # P(p <= u) <= u for the smallest p value ever, which is the last, at every u that occurs.
    population = [1.0, 1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0]
    p = np.sort([decide(order).p_lost for order in orders(population)])
    assert p[0] < 0.5
    assert (np.arange(1, p.size + 1) / p.size <= p + 1e-12)[np.flatnonzero(np.diff(p, append=2.0) > 1e-12)].all()


@pytest.mark.parametrize("items", [3, 6])
def test_what_the_scored_items_prove_is_found_at_once(items: int) -> None:
    # Against every way in which the items that are left could come out. Levels so small that no bet can decide.
    test = budget(items, alpha=1e-12, beta=1e-12, tolerance=0.25)
    for drops in itertools.product([1.0, 0.0, -1.0], repeat=items):
        lost_at = next((t for t in range(1, items + 1) if sum(drops[:t]) + -1.0 * (items - t) > 0), None)
        clear_at = next((t for t in range(1, items + 1) if sum(drops[:t]) + (items - t) <= 0.25 * items), None)
        _, got = test.update(test.init(), drops)
        assert (got.lost_at, got.clear_at) == (lost_at, clear_at)
        assert (got.p_lost == 0, got.p_clear == 0) == (lost_at is not None, clear_at is not None)


def test_a_census_knows() -> None:
    got = decide([1.0, 0.0, 0.0, -1.0])
    assert (got.lost, got.clear, got.census, got.mean) == (False, True, True, 0.0)
    got = decide([1.0, 1.0, 0.0, 0.0], alpha=1e-9, beta=1e-9)
    assert (got.lost, got.clear, got.mean) == (True, False, 0.5)
    # A drop equal to the tolerance is accepted; one between 0 and it is both lost and clear.
    got = decide([1.0, 0.0, 0.0, 0.0], alpha=1e-9, beta=1e-9)
    assert (got.lost, got.clear, got.p_lost, got.p_clear) == (True, True, 0.0, 0.0)


def test_sums_of_decimal_fractions_are_not_taken_for_a_loss() -> None:
    # 0.1 + 0.2 - 0.3 is 5.6e-17 in floating point.
    got = decide([0.1, 0.2, -0.3])
    assert not got.lost
    # 20 x 0.05 = 1 item may be lost, and one is; 0.05 has no exact form.
    got = decide([1.0] + [0.0] * 19, alpha=1e-9, beta=1e-9, tolerance=0.05)
    assert got.clear
    for items in range(1, 200):
        for lost in range(0, items, 7):
            got = decide([1.0] * lost + [0.0] * (items - lost), alpha=1e-9, beta=1e-9, tolerance=lost / items)
            assert got.clear


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_batches_change_nothing(batch: int) -> None:
    rng = np.random.default_rng(batch)
    for drop in (0.0, 0.2):
        drops = np.clip(rng.normal(drop, 0.4, size=150), -1, 1)
        test = budget(200, **LEVELS)
        state = test.init()
        for first in range(0, 150, batch):
            state = BudgetState.from_dict(json.loads(json.dumps(state.to_dict())))
            state, decision = test.update(state, drops[first : first + batch])
        assert (state, decision) == test.update(test.init(), drops)


def test_nothing_scored_yet_is_a_state() -> None:
    test = budget(10, **LEVELS)
    state, got = test.update(test.init(), [])
    assert state == test.init()
    assert (got.scored, got.lost, got.clear, got.decided_at, got.p_lost, got.p_clear) == (
        0,
        False,
        False,
        None,
        1.0,
        1.0,
    )
    assert math.isnan(got.mean) and not got.census


def test_a_decision_stays_with_its_item() -> None:
    test = budget(400, **LEVELS)
    state, first = test.update(test.init(), [1.0] * 10)
    assert first.lost and first.decided_at == first.lost_at is not None and first.lost_at <= 10
    _, later = test.update(state, [-1.0] * 300)
    assert later.lost_at == first.lost_at == later.decided_at
    assert later.p_lost == first.p_lost  # the largest wealth so far counts
    assert later.clear and later.clear_at is not None and later.clear_at > 10


def test_one_item() -> None:
    assert decide([0.0]).decided_at == 1
    assert decide([1.0]).lost and not decide([1.0]).clear
    assert decide([-1.0]).clear and not decide([-1.0]).lost


def test_turning_the_signs_turns_the_questions() -> None:
    # At tolerance 0, "clear" of the mirrored drops is "lost" of the drops, but for a mean of exactly 0.
    rng = np.random.default_rng(3)
    for _ in range(30):
        drops = rng.integers(-1, 2, size=40).astype(float)
        a = decide(drops[:25], 40, alpha=0.1, beta=0.1, tolerance=0.0)
        b = decide(-drops[:25], 40, alpha=0.1, beta=0.1, tolerance=0.0)
        assert (a.lost_at, a.p_lost) == (b.clear_at, pytest.approx(b.p_clear, rel=1e-12))


@pytest.mark.parametrize(
    ("drops", "message"),
    [
        ([0.0, math.nan], r"drops\[1\] \(=nan\)"),
        ([1.5], r"drops\[0\] \(=1.5\)"),
        ([0.0, 0.0, -math.inf], r"drops\[2\]"),
        ([[0.0]], "shape"),
        (0.0, "shape"),
        ([0.0] * 5, "5 items scored of 4"),
    ],
)
def test_drops_that_cannot_be_are_refused(drops: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decide(drops, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"items": 0}, r"items \(=0\)"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"beta": 0.7}, "beta"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"scored": 9}, "scored"),
        ({"wealth_lost": (0.0,)}, "wealth_lost"),
    ],
)
def test_states_that_cannot_be_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BudgetState(**{"items": 4, **LEVELS, **changed})  # type: ignore[arg-type]


def test_a_state_of_another_test_is_refused() -> None:
    with pytest.raises(ValueError, match="items of the state"):
        budget(4, **LEVELS).update(budget(5, **LEVELS).init(), [0.0])
    with pytest.raises(ValueError, match="keys of the row"):
        BudgetState.from_dict({"items": 4})
