"""False alarms over a whole run, power, and speed of the tests over many looks, as promised in docs and docstrings.

A false-alarm rate is judged by an exact binomial bound: the test fails where the 99.9% Clopper-Pearson lower bound is
above .05. With `RUNS` replicates a true rate of .07 is found out with probability above .99 (asserted below), and a
true rate of .05 is wrongly accused once in a thousand times.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from simulate import (
    Report,
    broken,
    budget_stops,
    detection,
    hard_drops,
    lower_bound,
    mcnemar_rejects,
    sign_flip_alarms,
    sign_flips,
    soft_drops,
)

from backslide.stats.budget import budget
from backslide.stats.paired import mcnemar_exact
from backslide.stats.sequential import spending
from backslide.stats.signflip_sequential import joint_sign_flip

ALPHA = 0.05
LOOKS = 20
CAPABILITIES = 5
RUNS = 4800
RATES = (0.02, 0.1, 0.3)
"""Flip rates."""


def judged(report: Report, claim: str, setting: str, hits: int, runs: int) -> None:
    caught = broken(hits, runs)
    report(claim, setting, ALPHA, hits / runs, runs, "broken" if caught else "holds")
    assert not caught, f"{claim}: {hits} of {runs}, at least {lower_bound(hits, runs):.4f}"


def batches(runs: int, items: int) -> list[int]:
    """Runs per batch, so that a capability's latent states stay small."""
    size = max(1, min(runs, 400_000 // items))
    return [size] * (runs // size) + ([runs % size] if runs % size else [])


def family(rng: np.random.Generator, runs: int, items: int, rate: float, accuracy: float | None) -> list[np.ndarray]:
    return [hard_drops(rng, runs, items, LOOKS, rate, accuracy=accuracy) for _ in range(CAPABILITIES)]


def any_mcnemar(capabilities: list[np.ndarray], alpha: float, looks: int = LOOKS) -> np.ndarray:
    """Whether `spending` gives an alarm at some look; Holm's first step is Bonferroni, and more is not needed."""
    level = alpha / looks / len(capabilities)
    return np.any([mcnemar_rejects(drops, level).any(axis=1) for drops in capabilities], axis=0)


def test_the_judge_finds_out_a_rate_of_seven_percent() -> None:
    assert detection(RUNS, 0.07) > 0.99
    assert detection(RUNS, 0.05) < 0.0011


# -- the fast forms are the shipped tests ---------------------------------------------------------------------


def test_fast_sign_flip_is_the_shipped_one() -> None:
    rng = np.random.default_rng(1)
    sizes = (60, 33, 8)
    runs = [hard_drops(rng, 40, n, 6, 0.2, drop=0.12, since=2) for n in sizes]
    fast, named = sign_flips(runs, 0.2, draws=200, seed=7)
    test = joint_sign_flip(0.2, 6, sizes, draws=200, seed=7)
    for r in range(40):
        state, above = test.init(), np.zeros(3, dtype=bool)
        for k in range(6):
            state, decision = test.update(state, [drops[r, k] for drops in runs])
            above |= decision.above
        assert fast[r] == (state.alarm_at or 0)
        assert named[r].tolist() == above.tolist()
    assert 5 < np.count_nonzero(fast) < 40


def test_fast_spending_is_the_shipped_one() -> None:
    rng = np.random.default_rng(2)
    runs = [hard_drops(rng, 60, n, 6, 0.2, drop=0.12, since=2) for n in (60, 80)]
    fast = any_mcnemar(runs, 0.2, looks=6)
    test = spending(0.2, 6)
    shipped = []
    for r in range(60):
        state = test.init()
        for k in range(6):
            p = [mcnemar_exact(int((d[r, k] > 0).sum()), int((d[r, k] < 0).sum())) for d in runs]
            state, _ = test.update(state, p)
        shipped.append(state.alarm_at is not None)
    assert fast.tolist() == shipped
    assert 5 < np.count_nonzero(fast) < 60


@pytest.mark.parametrize(
    ("values", "counts"), [([1.0, -1.0, 0.0], [20, 12, 68]), ([0.8, -0.03, 0.0], [9, 151, 0]), ([1.0, -1.0], [11, 9])]
)
def test_fast_budget_is_the_shipped_one(values: list[float], counts: list[int]) -> None:
    levels = {"alpha": 0.05, "beta": 0.2, "tolerance": 0.05}
    lost, clear, seen = budget_stops(np.random.default_rng(3), values, counts, 300, **levels, record=300)
    test = budget(sum(counts), **levels)
    for stream in range(300):
        _, decision = test.update(test.init(), seen[stream])
        assert (decision.lost_at or 0, decision.clear_at or 0) == (lost[stream], clear[stream])
        assert decision.decided_at == len(seen[stream])
    assert lost.any() and (clear.any() or sum(counts) < 100)


# -- false alarms over 20 looks and 5 capabilities --------------------------------------------------------------


@pytest.mark.parametrize("items", [100, 500, 2000])
@pytest.mark.parametrize("accuracy", [None, 0.75])
def test_family_wise_false_alarms_of_hard_outcomes(items: int, accuracy: float | None, report: Report) -> None:
    # A third of the runs at each flip rate. Joint sign symmetry holds without an accuracy; at .75 only the means are 0.
    spent, flipped = 0, 0
    for rate in RATES:
        rng = np.random.default_rng([items, int(1000 * rate), int(100 * (accuracy or 0))])
        by_rate = [0, 0]
        for seed, size in enumerate(batches(RUNS // len(RATES), items)):
            capabilities = family(rng, size, items, rate, accuracy)
            by_rate[0] += int(any_mcnemar(capabilities, ALPHA).sum())
            by_rate[1] += int((sign_flip_alarms(capabilities, ALPHA, draws=400, seed=seed) > 0).sum())
        spent, flipped = spent + by_rate[0], flipped + by_rate[1]
    kind = "symmetric" if accuracy is None else f"baseline accuracy {accuracy}"
    setting = f"5 x {items} items, 20 looks, {kind}, flips .02-.3"
    judged(report, "family-wise false alarms, spending + Holm + McNemar", setting, spent, RUNS)
    judged(report, "family-wise false alarms, joint sign-flip", setting, flipped, RUNS)


@pytest.mark.parametrize("items", [100, 500, 2000])
def test_family_wise_false_alarms_of_budget_looks(items: int, report: Report) -> None:
    # The drops of each population sum to 0; every look of every capability has a fresh order, and is scored until
    # it is clear or lost something. A quarter of the runs each: hard at three flip rates, and skewed soft drops.
    rare = round(0.02 * items)
    populations = [([1.0, -1.0, 0.0], [k, k, items - 2 * k]) for k in (round(rate * items / 2) for rate in RATES)]
    populations.append(([1.0, -rare / (items - rare)], [rare, items - rare]))
    level, hits, runs = ALPHA / LOOKS / CAPABILITIES, 0, RUNS // len(populations)
    for case, (values, counts) in enumerate(populations):
        rng = np.random.default_rng([4, items, case])
        for size in batches(runs, 2000):
            streams = size * LOOKS * CAPABILITIES
            lost, _, _ = budget_stops(rng, values, counts, streams, alpha=level, beta=0.05, tolerance=0.03)
            hits += int((lost.reshape(size, -1) > 0).any(axis=1).sum())
    setting = f"5 x {items} items, 20 looks, until decided"
    judged(report, "family-wise false alarms, budget", setting, hits, runs * len(populations))


def test_budget_errs_about_as_often_as_allowed_at_most(report: Report) -> None:
    # One look at a large level, so that the bound is near: to the end of the items, at the least favourable mean 0.
    for values, counts in (([1.0, -1.0, 0.0], [50, 50, 400]), ([1.0, -10 / 490], [10, 490]), ([1.0, -1.0], [50, 50])):
        lost, _, _ = budget_stops(
            np.random.default_rng(5), values, counts, 20_000, alpha=ALPHA, beta=1e-9, tolerance=0.03
        )
        judged(report, "false alarms of one look, budget", f"{counts} items of {values}", int((lost > 0).sum()), 20_000)
        # The drop is exactly the tolerance and a hair: "clear" would be false.
    lost_items = 50 + 16  # a drop of 16 in 500: .032 > .03
    _, clear, _ = budget_stops(
        np.random.default_rng(6),
        [1.0, -1.0, 0.0],
        [lost_items, 50, 384],
        20_000,
        alpha=1e-9,
        beta=ALPHA,
        tolerance=0.03,
    )
    judged(report, "false clears of one look, budget", "500 items, 3.2 points dropped", int((clear > 0).sum()), 20_000)


# -- power --------------------------------------------------------------------------------------------------------


def promised(report: Report, claim: str, setting: str, bound: float | None, rate: float, runs: int) -> None:
    verdict = "for information" if bound is None else "holds" if rate >= bound else "broken"
    report(claim, setting, bound, rate, runs, verdict)
    assert bound is None or rate >= bound


# The promised power is that of the project's reference, whose runs have items that can be lost at one look and won at
# another. With a fixed baseline (accuracy .5) flips last longer and a drop has fewer chances to show; that is what a
# user gets, so it stands in the table beside the promise.


@pytest.mark.parametrize("accuracy", [None, 0.5])
def test_power_of_one_capability(accuracy: float | None, report: Report) -> None:
    runs, kind = 9000, "free sides" if accuracy is None else "fixed sides"
    setting = f"500 items, flips .10 ({kind}), 3 points from look 11 of 20"
    drops = [hard_drops(np.random.default_rng(7), runs, 500, LOOKS, 0.1, drop=0.03, since=10, accuracy=accuracy)]
    alarms = np.concatenate([sign_flip_alarms([drops[0][i : i + 500]], ALPHA, seed=i) for i in range(0, runs, 500)])
    early = float(np.mean((alarms > 0) & (alarms <= 10)))
    promised(report, "power, spending + McNemar", setting, None, any_mcnemar(drops, ALPHA).mean(), runs)
    promised(report, "alarms before the drop, joint sign-flip", setting, None, early, runs)
    bound = 0.75 if accuracy is None else None
    promised(report, "power, joint sign-flip", setting, bound, (alarms > 0).mean(), runs)


@pytest.mark.parametrize("accuracy", [None, 0.5])
def test_power_of_one_capability_in_five(accuracy: float | None, report: Report) -> None:
    runs, kind = 9000, "free sides" if accuracy is None else "fixed sides"
    setting = f"5 x 200 items, flips .10 ({kind}), one drops 5 points from look 11 of 20"
    rng = np.random.default_rng(8)
    drops = [
        hard_drops(rng, runs, 200, LOOKS, 0.1, drop=0.05 if c == 2 else 0.0, since=10, accuracy=accuracy)
        for c in range(CAPABILITIES)
    ]
    parts = [[d[i : i + 500] for d in drops] for i in range(0, runs, 500)]
    alarms = np.concatenate([sign_flip_alarms(part, ALPHA, seed=i) for i, part in enumerate(parts)])
    promised(report, "power, spending + Holm + McNemar", setting, None, any_mcnemar(drops, ALPHA).mean(), runs)
    bound = 0.57 if accuracy is None else None
    promised(report, "power, joint sign-flip", setting, bound, (alarms > 0).mean(), runs)


def test_budget_stops_early(report: Report) -> None:
    rng, levels = np.random.default_rng(9), {"alpha": 0.0025, "beta": 0.05, "tolerance": 0.05}
    for drop, bound in ((0.1, 220), (0.0, 500)):
        counts = [round(2000 * (0.2 + drop) / 2), round(2000 * (0.2 - drop) / 2), 1600]
        lost, clear, _ = budget_stops(rng, [1.0, -1.0, 0.0], counts, 4000, **levels)
        at = np.where(lost if drop else clear, lost if drop else clear, 2000)
        claim = f"median items until {'lost' if drop else 'clear'}, budget"
        median = float(np.median(at))
        setting = f"2000 items, flips .2, drop {drop}, alpha .0025, beta .05, tolerance .05"
        report(claim, setting, bound, median, 4000, "holds" if median <= bound else "broken")
        assert median <= bound


# -- which capability ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [1, 2])
def test_naming_a_capability_that_lost_nothing(dropped: int, report: Report) -> None:
    # Not proven for `joint_sign_flip` (see its docstring): some of five lost much from the start, the others nothing.
    # The run goes on after the alarm, which is the harder case.
    rng, named = np.random.default_rng([10, dropped]), 0
    for seed, size in enumerate(batches(RUNS, 800)):
        drops = [
            hard_drops(rng, size, 200, LOOKS, 0.1, drop=0.08 if c < dropped else 0.0, accuracy=0.5)
            for c in range(CAPABILITIES)
        ]
        above = sign_flips(drops, ALPHA, draws=400, seed=seed)[1]
        assert above[:, 0].mean() > 0.9
        named += int(above[:, dropped:].any(axis=1).sum())
    setting = f"5 x 200 items, 20 looks, {dropped} of 5 drop 8 points"
    judged(report, "one that lost nothing is named, joint sign-flip", setting, named, RUNS)


# -- able to fail ---------------------------------------------------------------------------------------------------


def test_naive_looks_are_caught(report: Report) -> None:
    # p < .05 at each of 20 looks at one capability: what everybody does.
    drops = hard_drops(np.random.default_rng(11), 3000, 500, LOOKS, 0.1)
    hits = int(mcnemar_rejects(drops, ALPHA).any(axis=1).sum())
    report("false alarms, naive p < .05 at each look", "500 items, 20 looks", ALPHA, hits / 3000, 3000,
           "broken (as it must be)")  # fmt: skip
    assert broken(hits, 3000)
    assert hits / 3000 > 0.25


def test_a_sign_flip_that_forgets_the_earlier_looks_is_caught(report: Report) -> None:
    # The mistake nearest to the method: a fresh cutoff with alpha (k / K) at each look.
    drops = hard_drops(np.random.default_rng(12), 2000, 200, LOOKS, 0.1)
    caught = np.zeros(2000, dtype=bool)
    for k in range(LOOKS):
        caught |= sign_flip_alarms([drops[:, k : k + 1]], ALPHA * (k + 1) / LOOKS, draws=400) > 0
    hits = int(caught.sum())
    report("false alarms, sign-flip at alpha k / K with a fresh cutoff", "200 items, 20 looks", ALPHA, hits / 2000, 2000,
           "broken (as it must be)")  # fmt: skip
    assert broken(hits, 2000)


# -- speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_speed_of_the_joint_sign_flip(kind: str, report: Report) -> None:
    rng = np.random.default_rng(13)
    if kind == "hard":
        drops = [hard_drops(rng, 1, 2000, LOOKS, 0.1)[0] for _ in range(10)]
    else:
        drops = [soft_drops(rng, 1, 2000, LOOKS)[0] for _ in range(10)]
    test = joint_sign_flip(ALPHA, LOOKS, [2000] * 10)
    test.update(test.init(), [d[0] for d in drops])  # the first call loads code
    state, seconds = test.init(), []
    for k in range(LOOKS):
        start = time.perf_counter()
        state, _ = test.update(state, [d[k] for d in drops])
        seconds.append(time.perf_counter() - start)
    setting = f"20 looks x 10 capabilities x 2000 {kind} items x 1000 draws"
    total, one = sum(seconds), float(np.median(seconds))
    report("seconds of a run, joint sign-flip", setting, 1.0, total, LOOKS, "holds" if total < 1 else "broken")
    report(
        "seconds of a look (median), joint sign-flip", setting, 0.05, one, LOOKS, "holds" if one < 0.05 else "broken"
    )
    assert total < 1.0
    assert one < 0.05
