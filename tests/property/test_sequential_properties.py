"""Properties of the tests over many looks that must hold for every input."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from backslide.stats.budget import BudgetState, budget
from backslide.stats.multiplicity import all_pass, holm
from backslide.stats.sequential import SpendingState, open_ended, spending
from backslide.stats.signflip_sequential import SignFlipState, joint_sign_flip

SMALL = settings(deadline=None, max_examples=60)

level = st.floats(1e-5, 0.5)
p_values = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.001, 0.01, 0.05, 1.0])), min_size=1, max_size=8)
soft = st.floats(-1, 1, allow_subnormal=False)
drop = st.one_of(soft, st.sampled_from([-1.0, 0.0, 1.0]))


@given(p_values, level)
def test_holm_decides_by_its_levels_and_no_less_than_bonferroni(p: list[float], alpha: float) -> None:
    got = holm(p, alpha)
    assert got.rejected == tuple(x <= own for x, own in zip(p, got.levels, strict=True))
    for x, own, adjusted, rejected in zip(p, got.levels, got.adjusted, got.rejected, strict=True):
        assert alpha / len(p) <= own <= alpha
        assert min(1.0, len(p) * x) >= adjusted >= x
        assert rejected or x > alpha / len(p)
    assert all_pass(p, alpha) or not all(got.rejected)


@given(p_values, level, st.randoms())
def test_the_order_of_the_p_values_does_not_matter(p: list[float], alpha: float, shuffler: object) -> None:
    place = list(range(len(p)))
    shuffler.shuffle(place)  # type: ignore[attr-defined]
    a, b = holm(p, alpha), holm([p[i] for i in place], alpha)
    for field in ("rejected", "levels", "adjusted"):
        assert getattr(b, field) == tuple(getattr(a, field)[i] for i in place)


@given(p_values, level, st.floats(0.01, 1), st.floats(0, 1))
def test_smaller_p_values_and_larger_levels_reject_no_less(
    p: list[float], alpha: float, factor: float, shrink: float
) -> None:
    few = np.array(holm(p, alpha * factor).rejected)
    assert (np.array(holm(p, alpha).rejected) >= few).all()
    assert (np.array(holm([x * shrink for x in p], alpha * factor).rejected) >= few).all()


@given(level, st.integers(1, 12), st.lists(p_values, min_size=1, max_size=12))
def test_spending_can_be_resumed_and_spends_no_more_than_alpha(
    alpha: float, looks: int, seen: list[list[float]]
) -> None:
    for test in (spending(alpha, looks), open_ended(alpha)):
        state, spent, first = test.init(), 0.0, None
        for k, p in enumerate(seen[:looks], start=1):
            again = SpendingState.from_dict(json.loads(json.dumps(state.to_dict())))
            assert again == state
            (state, decision), resumed = test.update(state, p), test.update(again, p)
            assert (state, decision) == resumed
            spent += decision.level
            first = k if first is None and decision.alarm else first
            assert decision.look == state.look == k and state.alarm_at == first
            assert decision.alarm == any(decision.rejected)
            assert decision.rejected == tuple(x <= own for x, own in zip(p, decision.levels, strict=True))
        assert spent <= alpha * (1 + 1e-9)


@st.composite
def trajectories(draw: st.DrawFn) -> tuple[list[np.ndarray], int]:
    """Drops of 1 to 3 capabilities over 1 to 5 looks, each of shape (K, N), and a seed."""
    looks = draw(st.integers(1, 5))
    values = draw(st.sampled_from(["hard", "soft"]))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    shift = draw(st.floats(-1, 1))
    x = [rng.normal(shift, 1, size=(looks, n)) for n in sizes]
    return ([np.sign(d) * (np.abs(d) > 0.7) for d in x] if values == "hard" else x), draw(st.integers(0, 2**40))


@SMALL
@given(trajectories(), st.floats(0.05, 0.5), st.integers(20, 120))
def test_joint_sign_flip_can_be_resumed_and_counts_right(
    data: tuple[list[np.ndarray], int], alpha: float, draws: int
) -> None:
    drops, seed = data
    looks = len(drops[0])
    test = joint_sign_flip(alpha, looks, [d.shape[1] for d in drops], draws=draws, seed=seed)
    state, before = test.init(), np.zeros(draws, dtype=bool)
    for k in range(looks):
        again = SignFlipState.from_dict(json.loads(json.dumps(state.to_dict())))
        assert again == state
        now = [d[k] for d in drops]
        (state, decision), resumed = test.update(state, now), test.update(again, now)
        assert (state, decision) == resumed
        crossed = np.unpackbits(np.frombuffer(state.crossed, dtype=np.uint8), count=draws).astype(bool)
        assert (crossed >= before).all()  # ever crossed is for ever
        assert crossed.sum() <= alpha * (k + 1) / looks * (draws + 1)
        assert state.alarm_at is None or state.alarm_at <= k + 1
        assert decision.alarm <= (state.alarm_at is not None)
        assert decision.alarm == any(decision.above) == (max(decision.statistics) > decision.cutoff)
        assert 1 / (draws + 1) <= decision.p_value <= 1
        before = crossed


@SMALL
@given(trajectories(), st.sampled_from([2.0**-40, 0.25, 8.0, 2.0**40]))
def test_the_unit_of_the_drops_does_not_matter(data: tuple[list[np.ndarray], int], factor: float) -> None:
    drops, seed = data
    sizes = [d.shape[1] for d in drops]
    test = joint_sign_flip(0.2, len(drops[0]), sizes, draws=60, seed=seed)
    a, b = test.init(), test.init()
    for k in range(len(drops[0])):
        a, one = test.update(a, [d[k] for d in drops])
        b, two = test.update(b, [d[k] * factor for d in drops])
        assert (a, one) == (b, two)


@given(st.lists(drop, max_size=60), st.integers(0, 40), level, level, st.floats(0, 0.9), st.data())
def test_budget_can_be_cut_anywhere_and_resumed(
    drops: list[float], more: int, alpha: float, beta: float, tolerance: float, data: st.DataObject
) -> None:
    test = budget(max(1, len(drops) + more), alpha=alpha, beta=beta, tolerance=tolerance)
    cut = data.draw(st.integers(0, len(drops)))
    whole = test.update(test.init(), drops)
    state, early = test.update(test.init(), drops[:cut])
    again = BudgetState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert again == state
    late = test.update(again, drops[cut:])
    assert late[0] == whole[0]
    assert repr(late) == repr(whole)  # the mean may be NaN
    for name in ("p_lost", "p_clear"):
        assert 0 <= getattr(late[1], name) <= getattr(early, name) <= 1
    assert early.lost_at is None or early.lost_at == late[1].lost_at
    assert early.clear_at is None or early.clear_at == late[1].clear_at


@given(st.lists(drop, min_size=1, max_size=60), level, level, st.floats(0, 0.9))
def test_a_census_is_always_decided_and_right(drops: list[float], alpha: float, beta: float, tolerance: float) -> None:
    test = budget(len(drops), alpha=alpha, beta=beta, tolerance=tolerance)
    _, got = test.update(test.init(), drops)
    assert got.census and got.decided_at is not None
    mean = sum(drops) / len(drops)
    assert got.lost or mean <= 1e-9
    assert got.clear or mean > tolerance - 1e-9


@given(st.lists(drop, min_size=1, max_size=60), st.integers(0, 40), level, st.floats(0.01, 1))
def test_a_smaller_level_never_decides_earlier(drops: list[float], more: int, alpha: float, factor: float) -> None:
    items = len(drops) + more
    strict = budget(items, alpha=alpha * factor, beta=alpha * factor, tolerance=0.05)
    loose = budget(items, alpha=alpha, beta=alpha, tolerance=0.05)
    a, b = strict.update(strict.init(), drops)[1], loose.update(loose.init(), drops)[1]
    assert a.lost_at is None or (b.lost_at is not None and b.lost_at <= a.lost_at)
    assert a.clear_at is None or (b.clear_at is not None and b.clear_at <= a.clear_at)
    assert (a.p_lost, a.p_clear) == (b.p_lost, b.p_clear)
