"""Many looks: levels by hand, the joint sign-flip against its definition and against all sign vectors."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from backslide.stats.multiplicity import holm
from backslide.stats.paired import mcnemar_exact
from backslide.stats.sequential import SpendingState, open_ended, spending
from backslide.stats.signflip_sequential import (
    SignFlipDecision,
    SignFlipState,
    _cross,
    allowed,
    flipped,
    joint_sign_flip,
    sign_bytes,
)

# -- spending -------------------------------------------------------------------------------------------------


def test_spending_shares_alpha_over_looks_and_holm_over_capabilities() -> None:
    test = spending(0.05, 20)
    state, first = test.update(test.init(), [0.0006, 0.0005, 0.9, 0.9, 0.0001])
    # .0025 at each look; Holm within: .0005, .000625, .00083, ...
    assert first.level == pytest.approx(0.0025)
    assert first.rejected == (True, True, False, False, True)
    assert first.levels == pytest.approx([0.0025 / 3, 0.0025 / 4, 0.0025 / 2, 0.0025 / 2, 0.0025 / 5])
    assert first.alarm and state.alarm_at == 1
    state, second = test.update(state, [0.01, 0.0026])
    assert not second.alarm and second.look == 2 and state.alarm_at == 1  # the first alarm stays


def test_spending_by_weight() -> None:
    test = spending(0.05, 3, weights=[0.5, 0.0, 0.25])
    state, a = test.update(test.init(), [0.025])
    state, b = test.update(state, [0.0])  # nothing to spend, so not even this
    state, c = test.update(state, [0.0125])
    assert (a.alarm, b.alarm, c.alarm) == (True, False, True)
    assert (a.level, b.level, c.level) == pytest.approx((0.025, 0.0, 0.0125))
    assert b.adjusted == (1.0,)
    assert state.alarm_at == 1


def test_levels_of_open_ended_looks() -> None:
    test = open_ended(0.05)
    state, levels = test.init(), []
    for _ in range(400):
        state, decision = test.update(state, [1.0])
        levels.append(decision.level)
    assert levels[:3] == pytest.approx([0.05 / 2, 0.05 / 6, 0.05 / 12])
    # The partial sum of 1 / (k (k + 1)) is 1 - 1 / (n + 1).
    assert math.fsum(levels) == pytest.approx(0.05 * 400 / 401, rel=1e-12)
    assert levels[19] == pytest.approx(0.05 / 20 / 21)


def test_adjusted_p_values_are_the_smallest_alpha_of_a_run() -> None:
    p = [0.0004, 0.0011, 0.3]
    _, decision = spending(0.05, 10).update(spending(0.05, 10).init(), p)
    for i, adjusted in enumerate(decision.adjusted):
        for alpha, want in ((adjusted * (1 + 1e-9), True), (adjusted * (1 - 1e-9), False)):
            if alpha <= 0.5:
                test = spending(alpha, 10)
                assert test.update(test.init(), p)[1].rejected[i] == want
    assert decision.adjusted[2] == 1.0


@pytest.mark.parametrize("looks", [1, 3])
def test_spending_over_one_test_at_each_look_reaches_alpha_exactly(looks: int) -> None:
    # p uniform on {1/30, ..., 1}, in the worst dependence: the looks reject on disjoint events.
    m = 30
    test, hits = spending(0.1, looks), 0
    for a in range(m):
        state = test.init()
        for k in range(looks):
            state, _ = test.update(state, [((a + k * m // looks) % m + 1) / m])
        hits += state.alarm_at is not None
    assert Fraction(hits, m) == Fraction(1, 10)


def test_more_looks_than_planned_are_refused() -> None:
    test = spending(0.05, 2)
    state, _ = test.update(test.init(), [0.5])
    state, _ = test.update(state, [0.5])
    with pytest.raises(ValueError, match=r"look \(=3\) must be in 1\.\.2"):
        test.update(state, [0.5])


def test_a_state_of_another_test_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha of the state"):
        spending(0.05, 2).update(spending(0.01, 2).init(), [0.5])
    with pytest.raises(ValueError, match="weights of the state"):
        spending(0.05, 2).update(open_ended(0.05).init(), [0.5])
    with pytest.raises(ValueError, match="seed of the state"):
        joint_sign_flip(0.05, 2, [3]).update(joint_sign_flip(0.05, 2, [3], seed=1).init(), [[1, 0, 0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spending(0.0, 3), "alpha"),
        (lambda: spending(0.05, 0), r"looks \(=0\)"),
        (lambda: spending(0.05, 2, weights=[1.0]), "length 1"),
        (lambda: spending(0.05, 2, weights=[0.9, 0.2]), "sum"),
        (lambda: spending(0.05, 2, weights=[1.2, -0.2]), r"in \[0, 1\]"),
        (lambda: spending(0.05, 2, weights=[math.nan, 0.1]), r"in \[0, 1\]"),
        (lambda: open_ended(math.nan), "alpha"),
        (lambda: SpendingState(0.05, (1.0,), look=2), "look"),
        (lambda: SpendingState(0.05, None, look=2, alarm_at=3), "alarm_at"),
        (lambda: SpendingState.from_dict({"alpha": 0.05}), "keys of the row"),
        (lambda: SignFlipState.from_dict({**joint_sign_flip(0.05, 2, [3]).init().to_dict(), "crossed": "00"}), "cut"),
        (lambda: joint_sign_flip(0.7, 3, [2]), "alpha"),
        (lambda: joint_sign_flip(0.05, 0, [2]), "looks"),
        (lambda: joint_sign_flip(0.05, 3, []), "units"),
        (lambda: joint_sign_flip(0.05, 3, [0]), r"units\[0\]"),
        (lambda: joint_sign_flip(0.05, 3, [4, []]), r"units\[1\]"),
        (lambda: joint_sign_flip(0.05, 3, [[0.5, 1.0]]), "integers"),
        (lambda: joint_sign_flip(0.05, 3, [2], draws=0), "draws"),
        (lambda: joint_sign_flip(0.05, 3, [2], draws=18), r"draws \(=18\)"),
        (lambda: joint_sign_flip(0.05, 3, [2], seed=-1), "seed"),
    ],
)
def test_what_cannot_be_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


# -- joint sign-flip: the parts ---------------------------------------------------------------------------------


def signs_of(units: int, draws: int, seed: int, capability: int) -> np.ndarray:
    """The same signs bit by bit, shape (units, draws + 1)."""
    packed = sign_bytes(units, draws, seed, capability)
    return np.array([[1 if packed[u // 8, b] >> (u % 8) & 1 else -1 for b in range(draws + 1)] for u in range(units)])


@pytest.mark.parametrize("units", [1, 7, 8, 9, 600])
def test_statistics_are_those_of_the_definition(units: int) -> None:
    rng = np.random.default_rng(units)
    x = rng.normal(size=units)
    signs = signs_of(units, 50, 3, 1)
    want = (signs * x[:, None]).sum(axis=0) / math.sqrt((x * x).sum())
    assert flipped(x, 50, 3, 1) == pytest.approx(want, rel=1e-10, abs=1e-12)
    assert (signs[:, 0] == 1).all()


def test_signs_are_fair_independent_and_their_own_for_each_capability() -> None:
    signs = signs_of(64, 1000, 0, 0)[:, 1:]
    assert abs(signs.mean()) < 4 / math.sqrt(signs.size)
    correlation = np.corrcoef(signs)[np.triu_indices(64, 1)]
    assert np.abs(correlation).max() < 5 / math.sqrt(1000)
    other = signs_of(64, 1000, 0, 1)[:, 1:]
    assert abs((signs * other).mean()) < 4 / math.sqrt(signs.size)
    assert (signs_of(64, 1000, 1, 0)[:, 1:] != signs).any()


def test_the_signs_of_a_seed_never_change() -> None:
    # A state that was written by an earlier version must go on with the same signs.
    raw = np.random.PCG64(np.random.SeedSequence(5, spawn_key=(2,))).random_raw(1)
    assert sign_bytes(8, 8, 5, 2)[0].tolist() == [255, *int(raw[0]).to_bytes(8, "little")]


def test_the_observed_run_is_treated_as_the_others() -> None:
    # Turning the data by the signs of run b makes run b the observed one: its statistic must come out bit for bit.
    rng = np.random.default_rng(0)
    x = rng.normal(size=203) * 10.0 ** rng.integers(-6, 6, size=203)
    signs, statistics = signs_of(203, 40, 0, 0), flipped(x, 40, 0, 0)
    for b in range(41):
        assert flipped(signs[:, b] * x, 40, 0, 0)[0] == statistics[b]


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_the_unit_of_the_drops_does_not_matter(scale: float) -> None:
    x = np.array([1.0, -2.0, 3.0, 0.5, 0.25])
    assert flipped(x * scale, 30, 0, 0) == pytest.approx(flipped(x, 30, 0, 0), rel=1e-12)


def test_allowed_never_rounds_up() -> None:
    assert [allowed(0.05, k, 20, 1001) for k in (1, 2, 3, 20)] == [2, 5, 7, 50]
    for alpha, looks, runs in itertools.product((0.05, 0.1, 0.3, 0.01), (1, 7, 20), (100, 1001)):
        for k in range(1, looks + 1):
            assert allowed(alpha, k, looks, runs) <= Fraction(alpha) * k * runs / looks


# -- joint sign-flip: the whole ---------------------------------------------------------------------------------


def crossing(m: list[float], ever: set[int], most: int) -> set[int]:
    """Runs that cross: above the smallest cutoff such that at most `most` have ever crossed."""
    cutoff = min(c for c in [-math.inf, *m] if len(ever | {b for b, x in enumerate(m) if x > c}) <= most)
    return {b for b, x in enumerate(m) if x > cutoff}


def by_definition(drops: list[np.ndarray], alpha: float, draws: int, seed: int) -> list[tuple[bool, float, float]]:
    """(alarm, cutoff, p value) at each look from the definition; drops: one (K, N) for each capability."""
    looks = drops[0].shape[0]
    signs = [signs_of(d.shape[1], draws, seed, c) for c, d in enumerate(drops)]
    ever: set[int] = set()
    rarest = [draws + 1] * (draws + 1)
    alarmed, out = False, []
    for k in range(looks):
        m = []
        for b in range(draws + 1):
            t = [-math.inf]
            for d, s in zip(drops, signs, strict=True):
                squares = sum(x * x for x in d[k])
                if squares:
                    t.append(sum(x * e for x, e in zip(d[k], s[:, b], strict=True)) / math.sqrt(squares))
            m.append(max(t))
        most = math.floor(Fraction(alpha) * (k + 1) * (draws + 1) / looks)
        # The cutoff: the observed run crosses if it is above this, whatever it is; the others as they are.
        ladder = sorted({-math.inf, *m[1:]})
        steps = zip(ladder, [*ladder[1:], max(ladder[-1], 0.0) + 2], strict=True)
        between = [(low, low + (high - low) / 2 if math.isfinite(low) else high - 1) for low, high in steps]
        cutoff = min((low for low, own in between if 0 in crossing([own, *m[1:]], ever, most)), default=math.inf)
        now = crossing([-math.inf if alarmed else m[0], *m[1:]], ever, most)
        if 0 in now:  # from here on it waits with nothing to show
            alarmed = True
            now = crossing([-math.inf, *m[1:]], ever, most)
        ever |= now
        rarest = [min(r, sum(other >= own for other in m)) for r, own in zip(rarest, m, strict=True)]
        out.append((m[0] > cutoff, cutoff, sum(r <= rarest[0] for r in rarest) / (draws + 1)))
    return out


def run(drops: list[np.ndarray], alpha: float, draws: int, seed: int) -> list[SignFlipDecision]:
    test = joint_sign_flip(alpha, drops[0].shape[0], [d.shape[1] for d in drops], draws=draws, seed=seed)
    state, out = test.init(), []
    for k in range(drops[0].shape[0]):
        state, decision = test.update(state, [d[k] for d in drops])
        out.append(decision)
    return out


@pytest.mark.parametrize("case", range(24))
def test_joint_sign_flip_is_its_definition(case: int) -> None:
    rng = np.random.default_rng(case)
    sizes, looks = (11, 5) if case < 12 else (3, 2), 4  # so few items that many runs are tied
    if case % 2:
        drops = [rng.integers(-1, 2, size=(looks, n)).astype(float) for n in sizes]
    else:
        drops = [rng.normal(0.1 * (case % 12), 1, size=(looks, n)) for n in sizes]
    drops[1][0] = 0.0  # a capability in which nothing moved at the first look
    want = by_definition(drops, 0.2, 39, case)
    got = run(drops, 0.2, 39, case)
    assert [d.alarm for d in got] == [alarm for alarm, _, _ in want]
    assert [d.cutoff for d in got] == pytest.approx([cutoff for _, cutoff, _ in want], rel=1e-10)
    if not case % 2:  # ties between capabilities are broken by the last digit, which may differ here
        assert [d.p_value for d in got] == pytest.approx([p for _, _, p in want])
    for k, decision in enumerate(got):
        assert decision.alarm == any(decision.above)
        for d, t, above in zip(drops, decision.statistics, decision.above, strict=True):
            assert above == (t > decision.cutoff)
            if d[k].any():
                assert t == pytest.approx(d[k].sum() / math.sqrt((d[k] ** 2).sum()))
    assert got[0].statistics[1] == -math.inf
    assert got[-1].spent == pytest.approx(0.2)


def test_the_definition_gives_alarms_and_no_alarms_above() -> None:
    alarms = [any(d.alarm for d in run([np.random.default_rng(c).normal(m, 1, size=(4, 11))], 0.2, 39, c))
              for c, m in ((0, 0.0), (1, 1.5), (2, 0.0), (3, 1.5))]  # fmt: skip
    assert set(alarms) == {True, False}


def test_level_over_all_sign_vectors_is_exact() -> None:
    # The whole group of sign vectors as the draws: each of the 2^7 mirror images of a data set is equally likely, so
    # the share of them with an alarm is the level. It must be floor(alpha 2^7) / 2^7 where nothing is tied.
    rng = np.random.default_rng(4)
    n, looks, alpha = 7, 3, 0.2
    data = rng.normal(size=(looks, n))
    vectors = np.array(list(itertools.product([1, -1], repeat=n)))  # the first is all +1
    runs = len(vectors)
    alarms = []
    for s in vectors:
        none = np.packbits(np.zeros(runs - 1, dtype=bool)).tobytes()
        state = SignFlipState(alpha, looks, (n,), runs - 1, 0, none, np.full(runs, runs, dtype="<u4").tobytes())
        for k in range(looks):
            x = s * data[k]
            state, _ = _cross(state, (vectors @ x / math.sqrt(x @ x))[None, :])
        alarms.append(state.alarm_at is not None)
    assert sum(alarms) == math.floor(alpha * runs)


def test_level_is_exact_with_few_draws_over_seeds() -> None:
    # 19 draws at alpha .1 and 2 looks: 1 run of 20 may cross by the first look, 2 by the second. Over signs and data
    # the chance is 2 / 20 exactly; 4000 seeds, and five standard errors of the simulation.
    data, hits, runs = np.random.default_rng(6).normal(size=(2, 2, 9)), 0, 4000
    mirror = np.random.default_rng(7).choice([-1.0, 1.0], size=(runs, 9))
    for seed in range(runs):
        drops = [data[0] * mirror[seed], data[1] * mirror[seed, ::-1]]
        hits += any(d.alarm for d in run(drops, 0.1, 19, seed))
    assert abs(hits / runs - 0.1) < 5 * math.sqrt(0.09 / runs)


def test_one_look_is_close_to_the_exact_test_of_flips() -> None:
    # One look, one capability, hard drops: the sign-flip test is McNemar's, up to draws.
    for lost, won in ((12, 3), (9, 5), (20, 11), (4, 0)):
        d = np.array([1.0] * lost + [-1.0] * won + [0.0] * 30)
        test = joint_sign_flip(0.05, 1, [d.size], draws=19_999)
        _, decision = test.update(test.init(), [d])
        p = mcnemar_exact(lost, won)
        assert decision.p_value == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 20_000))
        assert decision.alarm == (p <= 0.05)


def test_clusters_flip_together() -> None:
    rng = np.random.default_rng(8)
    cluster = np.array([4, 4, 9, 9, 9, 1, 7, 7, 7, 7])
    drops = rng.integers(-1, 2, size=(3, 10)).astype(float)
    sums = np.stack([[d[cluster == g].sum() for g in (1, 4, 7, 9)] for d in drops])
    by_item = joint_sign_flip(0.3, 3, [cluster], draws=60)
    by_sum = joint_sign_flip(0.3, 3, [4], draws=60)
    a, b = by_item.init(), by_sum.init()
    for k in range(3):
        (a, one), (b, two) = by_item.update(a, [drops[k]]), by_sum.update(b, [sums[k]])
        assert (one, a) == (two, b)
    # All lost: 10 over the root of 1 + 4 + 9 + 16; taken as independent, the items would give 10 over that of 10.
    _, one = by_item.update(by_item.init(), [np.ones(10)])
    assert one.statistics == pytest.approx([10 / math.sqrt(30)])


def test_no_movement_is_no_evidence() -> None:
    test = joint_sign_flip(0.05, 3, [5, 1])
    state = test.init()
    for _ in range(3):
        state, decision = test.update(state, [np.zeros(5), [0.0]])
        assert decision.statistics == (-math.inf, -math.inf)
        assert (decision.alarm, decision.above, decision.p_value) == (False, (False, False), 1.0)


def test_one_item_can_never_be_an_alarm() -> None:
    # Half of all signs are like the observed one, so the tie keeps every run from crossing.
    test = joint_sign_flip(0.05, 2, [1])
    _, decision = test.update(test.init(), [[1.0]])
    assert not decision.alarm and 0.4 < decision.p_value < 0.6


def test_all_items_lost_is_an_alarm_at_the_first_look() -> None:
    test = joint_sign_flip(0.05, 20, [30, 30])
    state, decision = test.update(test.init(), [np.ones(30), np.zeros(30)])
    assert decision.alarm and decision.above == (True, False) and state.alarm_at == 1
    assert decision.p_value == 1 / 1001


def test_with_few_draws_an_early_look_has_nothing_to_spend() -> None:
    # 20 runs at alpha .05: one may cross, and none before the second look.
    test = joint_sign_flip(0.05, 2, [40], draws=19)
    state, first = test.update(test.init(), [np.ones(40)])
    assert not first.alarm and first.cutoff == math.inf and first.p_value == 1 / 20
    state, second = test.update(state, [np.ones(40)])
    assert second.alarm and state.alarm_at == 2


def test_a_tie_with_the_observed_run_keeps_both_from_crossing() -> None:
    # Two units: about a quarter of the runs is like the observed one. Exactly so many others may cross at the first look,
    # but with the observed run they are one too many, and the cutoff knows no numbers of runs: none crosses.
    tied = signs_of(2, 39, 8, 0)[:, 1:].sum(axis=0) == 2
    count = int(tied.sum())
    assert 3 <= count <= 10
    alpha = 2 * count / 40
    test = joint_sign_flip(alpha, 2, [2], draws=39, seed=8)
    assert allowed(alpha, 1, 2, 40) == count
    state, first = test.update(test.init(), [[1.0, 1.0]])
    assert not first.alarm and state.crossed == test.init().crossed
    state, second = test.update(state, [[1.0, 1.0]])
    assert second.alarm  # twice as many may cross now


@pytest.mark.parametrize(
    ("drops", "message"),
    [
        ([[1.0, 0.0, 0.0]], "length 1"),
        ([[1.0, 0.0], [0.0]], r"drops\[0\] \(shape \(2,\)\) must have shape \(3,\)"),
        ([[1.0, math.nan, 0.0], [0.0]], r"drops\[0\]\[1\] \(=nan\)"),
        ([[1.0, 0.0, 0.0], [math.inf]], r"drops\[1\]\[0\] \(=inf\)"),
        ([[[1.0, 0.0, 0.0]], [0.0]], "shape"),
    ],
)
def test_drops_that_do_not_fit_are_refused(drops: list[object], message: str) -> None:
    test = joint_sign_flip(0.05, 2, [3, 1])
    with pytest.raises(ValueError, match=message):
        test.update(test.init(), drops)  # type: ignore[arg-type]


def test_a_further_look_than_planned_is_refused() -> None:
    test = joint_sign_flip(0.05, 1, [3])
    state, _ = test.update(test.init(), [[0, 1, 0]])
    with pytest.raises(ValueError, match=r"looks \(=1\)"):
        test.update(state, [[0, 1, 0]])


# -- resuming -----------------------------------------------------------------------------------------------------


def test_states_survive_json() -> None:
    rng = np.random.default_rng(9)
    spend, flip = spending(0.05, 4, weights=[0.1, 0.2, 0.3, 0.4]), joint_sign_flip(0.2, 4, [20, [0, 0, 1]], draws=99)
    a, b = spend.init(), flip.init()
    for _ in range(4):
        assert SpendingState.from_dict(json.loads(json.dumps(a.to_dict()))) == a
        again = SignFlipState.from_dict(json.loads(json.dumps(b.to_dict())))
        assert again == b
        drops = [rng.normal(0.5, 1, 20), rng.normal(0.5, 1, 3)]
        assert flip.update(again, drops) == flip.update(b, drops)
        a, _ = spend.update(a, rng.random(3) * 0.01)
        b, _ = flip.update(b, drops)
    assert b.alarm_at is not None and a.alarm_at is not None
    assert len(json.dumps(joint_sign_flip(0.05, 20, [2000] * 10).init().to_dict())) < 10_000  # fits an event


def test_holm_within_a_look_is_holm() -> None:
    p = [0.001, 0.01, 0.012, 0.2]
    _, decision = spending(0.1, 2).update(spending(0.1, 2).init(), p)
    want = holm(p, 0.05)
    assert (decision.rejected, decision.levels) == (want.rejected, want.levels)
    assert decision.adjusted == pytest.approx([min(1.0, 2 * x) for x in want.adjusted])
