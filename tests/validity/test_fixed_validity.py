"""Fixed-sample tests of soft and clustered drops: false alarms, false passes, and what the guarantee costs.

Promised rates are judged by an exact binomial bound (`simulate.broken`). 4000 runs prove a rate of .07 to be above
.05 with probability .99; 1000 runs (2000 items, 20 looks, 5 capabilities) only one of .10. The paired t test and the
sign-flip test are asymptotic: their rates are measured on the same data for information.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import scipy.stats
import simulate
from numpy.typing import NDArray

from backslide.stats.bounded import bounded_interval, bounded_p_value, make_bets
from backslide.stats.means import mean_interval
from backslide.stats.paired import hard_interval, mcnemar_threshold
from backslide.stats.signflip import sign_flip

LOOKS, CAPABILITIES, ALPHA, DELTA = 20, 5, 0.05, 0.03
CLUSTER = 10
RUNS = {100: 4000, 500: 2000, 2000: 1000}
KINDS = ["even", "rare losses", "rare gains", "clusters"]
Drops = NDArray[np.float32]


def trajectories(rng: np.random.Generator, kind: str, runs: int, items: int, looks: int) -> Drops:
    """Drops with mean exactly 0; shape (R, K, N)."""
    if kind == "clusters":
        return simulate.soft_drops(rng, runs, items, looks, size=0.15, cluster=CLUSTER, shared=0.6)
    if kind == "even":
        return simulate.soft_drops(rng, runs, items, looks, size=0.15)
    drops = simulate.soft_drops(rng, runs, items, looks, kind="skewed", size=0.06, rare=0.01)
    return drops if kind == "rare losses" else -drops


def blocks(items: int) -> NDArray[np.int64]:
    """First items of the clusters: blocks of `CLUSTER`, of which the first three make one cluster."""
    return np.concatenate([[0], np.arange(3 * CLUSTER, items, CLUSTER)])


def betting(drops: Drops, alpha: float, first: NDArray[np.int64] | None, mean: float = 0.0) -> NDArray[np.bool_]:
    """Whether the shipped e-value rejects "mean <= `mean`", for many samples at once; (..., N) in, (...) out."""
    items = drops.shape[-1]
    first = np.arange(items) if first is None else first
    sizes = np.diff(np.append(first, items)).astype(np.float64)
    y = 1.0 + drops.astype(np.float64) if first.size == items else np.add.reduceat(1.0 + drops, first, axis=-1)
    rejected: NDArray[np.bool_] = make_bets(sizes).log_e(y, math.log1p(mean)) >= -math.log(alpha)
    return rejected


def paired_t(drops: Drops, alpha: float, first: NDArray[np.int64] | None, mean: float = 0.0) -> NDArray[np.bool_]:
    """The same for the paired t test of `means.py`, clustered where `first` is given."""
    items = drops.shape[-1]
    first = np.arange(items) if first is None else first
    sizes = np.diff(np.append(first, items)).astype(np.float64)
    center = drops.mean(axis=-1, dtype=np.float64)
    residual = (
        np.add.reduceat(drops - center[..., None], first, axis=-1) if first.size < items else drops - center[..., None]
    )
    effective = items**2 / float(sizes @ sizes)
    error = np.sqrt(effective / (effective - 1) * np.square(residual).sum(axis=-1)) / items
    # No variation is a state, and no alarm.
    rejected: NDArray[np.bool_] = (center - mean > scipy.stats.t.isf(alpha, effective - 1) * error) & (error > 1e-7)
    return rejected


def flipping(drops: Drops, alpha: float, first: NDArray[np.int64] | None, draws: int = 999) -> NDArray[np.bool_]:
    """The same for the sign-flip test with random patterns; (R, N) in, (R,) out."""
    units = drops if first is None else np.add.reduceat(drops, first, axis=-1)
    signs = np.random.default_rng(99).choice(np.array([-1, 1], dtype=np.float32), (units.shape[-1], draws))
    observed = units.sum(axis=-1)
    reached = (units @ signs >= observed[:, None] - 1e-4).sum(axis=1)
    rejected: NDArray[np.bool_] = (1 + reached) / (1 + draws) <= alpha
    return rejected


def judged(report: Any, claim: str, setting: str, hits: int, runs: int) -> bool:
    bad = simulate.broken(hits, runs, ALPHA)
    report(claim, setting, ALPHA, hits / runs, runs, "broken" if bad else "holds")
    return not bad


# -- the arrangements above are the shipped tests -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once_decide_as_the_shipped_tests_do(kind: str) -> None:
    rng = np.random.default_rng(0)
    drops = trajectories(rng, kind, 60, 100, 1)[:, 0] + (np.float32(0.02) if kind != "rare losses" else 0)
    first = blocks(100) if kind == "clusters" else None
    labels = None if first is None else np.searchsorted(first, np.arange(100), side="right")
    by_betting, by_t = betting(drops, 0.2, first), paired_t(drops, 0.2, first)
    by_flips = flipping(drops, 0.2, first)
    flips = 0
    for i, d in enumerate(drops):
        assert by_betting[i] == (bounded_p_value(d, clusters=labels) <= 0.2)
        got = mean_interval(d, alpha_lower=0.2, alpha_upper=0.2, clusters=labels)
        assert by_t[i] == (got.lower > 0)
        flips += by_flips[i] != (sign_flip(d, clusters=labels, draws=999).p_value <= 0.2)
    assert flips <= 4  # other random patterns: only samples near the level may differ
    assert kind == "rare losses" or 0 < by_t.sum() < 60


def test_enough_runs_to_notice() -> None:
    assert simulate.detection(4000, 0.07) > 0.98
    assert simulate.detection(1000, 0.10) > 0.99


# -- false alarms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", sorted(RUNS))
@pytest.mark.parametrize("kind", KINDS)
def test_false_alarms_of_a_whole_run(kind: str, items: int, report: Any) -> None:
    rng = np.random.default_rng(items)
    runs, level = RUNS[items], ALPHA / (LOOKS * CAPABILITIES)
    first = blocks(items) if kind == "clusters" else None
    bet, t = np.zeros(runs, dtype=bool), np.zeros(runs, dtype=bool)
    step = max(1, 400_000 // (LOOKS * items))
    for start in range(0, runs, step):
        now = slice(start, min(start + step, runs))
        for _ in range(CAPABILITIES):
            drops = trajectories(rng, kind, now.stop - start, items, LOOKS)
            bet[now] |= betting(drops, level, first).any(axis=1)
            t[now] |= paired_t(drops, level, first).any(axis=1)
    setting = f"{kind}, {items} items, {LOOKS} looks x {CAPABILITIES} capabilities"
    ok = judged(report, "false alarms, betting", setting, int(bet.sum()), runs)
    report("false alarms, paired t (asymptotic)", setting, None, t.mean(), runs, "for information")
    assert ok


@pytest.mark.parametrize("items", sorted(RUNS))
@pytest.mark.parametrize("kind", KINDS)
def test_false_alarms_of_one_look(kind: str, items: int, report: Any) -> None:
    # One test at .05 leaves less room than a hundred at .0005 that depend on each other.
    rng = np.random.default_rng(items + 1)
    runs = 4000
    first = blocks(items) if kind == "clusters" else None
    drops = np.concatenate([trajectories(rng, kind, runs // 8, items, 1)[:, 0] for _ in range(8)])
    setting = f"{kind}, {items} items, one look"
    ok = judged(report, "false alarms, betting", setting, int(betting(drops, ALPHA, first).sum()), runs)
    report(
        "false alarms, paired t (asymptotic)",
        setting,
        None,
        paired_t(drops, ALPHA, first).mean(),
        runs,
        "for information",
    )
    report(
        "false alarms, sign flip (asymptotic)",
        setting,
        None,
        flipping(drops, ALPHA, first).mean(),
        runs,
        "for information",
    )
    assert ok


def test_clusters_taken_for_independent_items_are_caught(report: Any) -> None:
    rng = np.random.default_rng(5)
    runs, level = 400, ALPHA / (LOOKS * CAPABILITIES)
    alarms = np.zeros(runs, dtype=bool)
    for _ in range(CAPABILITIES):
        drops = simulate.soft_drops(rng, runs, 100, LOOKS, size=0.15, cluster=20, shared=0.9)
        alarms |= betting(drops, level, None).any(axis=1)
    hits = int(alarms.sum())
    bad = simulate.broken(hits, runs, ALPHA)
    report("caught: clusters as independent items", "100 items in 5 clusters, betting", None, hits / runs, runs,
           "broken, as it must be" if bad else "not caught")  # fmt: skip
    assert bad and hits / runs > 0.1


# -- false passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [100, 500, 2000])
@pytest.mark.parametrize("flip_rate", [0.03, 0.1, 0.3])
def test_false_retained_of_hard_outcomes(items: int, flip_rate: float, report: Any) -> None:
    # Exact, no simulation: at each number of flips the upper bound rises with the losses, so the tables that pass
    # are those up to some number of losses; it is followed from one number of flips to the next.
    half = 6 * math.sqrt(items * flip_rate * (1 - flip_rate)) + 6
    mean = items * flip_rate
    flips = range(max(0, int(mean - half)), min(items, int(mean + half)) + 1)
    chance, most = 0.0, flips[0] // 2

    def passes(lost: int, f: int) -> bool:
        return hard_interval(items, lost, f - lost, alpha_lower=0.5, alpha_upper=ALPHA).upper <= DELTA

    for f in flips:
        most = min(most, f)
        while most >= 0 and not passes(most, f):
            most -= 1
        while most < f and passes(most + 1, f):
            most += 1
        chance += scipy.stats.binom.pmf(f, items, flip_rate) * scipy.stats.binom.cdf(
            most, f, (1 + DELTA / flip_rate) / 2
        )
    chance += (
        1 - scipy.stats.binom.cdf(flips[-1], items, flip_rate) + scipy.stats.binom.cdf(flips[0] - 1, items, flip_rate)
    )
    setting = f"drop = tolerance = {DELTA}, {items} items, flip rate {flip_rate}"
    report(
        "false retained, exact interval", setting, ALPHA, chance, len(flips), "holds" if chance <= ALPHA else "broken"
    )
    assert chance <= ALPHA


def with_mean_delta(rng: np.random.Generator, kind: str, runs: int, items: int) -> Drops:
    """Drops with mean exactly `DELTA`, shape (R, N)."""
    u = rng.random((runs, items), dtype=np.float32)
    if kind == "even":
        return np.tanh(np.float32(0.1) * rng.standard_normal((runs, items), dtype=np.float32)) + np.float32(DELTA)
    if kind == "rare losses":  # 3 of 100 items lose all
        return (u < DELTA).astype(np.float32)
    # 4 of 100 lose .6, all others .00625: .024 + .006
    return np.where(u < 0.04, np.float32(0.6), np.float32(0.00625))


@pytest.mark.parametrize("items", [100, 200, 500, 2000])
@pytest.mark.parametrize("kind", ["even", "rare losses", "few losses"])
def test_false_retained_of_soft_outcomes(kind: str, items: int, report: Any) -> None:
    rng = np.random.default_rng(items + 2)
    runs = 4000
    drops = np.clip(with_mean_delta(rng, kind, runs, items), -1, 1)
    setting = f"{kind}, drop = tolerance = {DELTA}, {items} items"
    hits = int(betting(-drops, ALPHA, None, -DELTA).sum())
    ok = judged(report, "false retained, betting", setting, hits, runs)
    t = paired_t(-drops, ALPHA, None, -DELTA).mean()
    report("false retained, paired t (asymptotic)", setting, None, t, runs, "for information")
    assert ok


# -- what it costs --------------------------------------------------------------------------------------------


def realistic(rng: np.random.Generator, items: int) -> NDArray[np.float64]:
    """Most drops within .05 and a few large ones; standard deviation .1, mean 0."""
    few = rng.random(items) < 0.08
    d = np.where(few, rng.normal(0, 0.34, items), rng.normal(0, 0.02, items))
    return np.clip(d, -1, 1)


@pytest.mark.parametrize("alpha", [0.05, 0.0005])
@pytest.mark.parametrize("items", [100, 500, 2000])
def test_width_against_t(items: int, alpha: float, report: Any) -> None:
    rng = np.random.default_rng(3)
    widths = []
    for _ in range(60):
        d = realistic(rng, items)
        bet = bounded_interval(d, alpha_lower=alpha, alpha_upper=alpha)
        t = mean_interval(d, alpha_lower=alpha, alpha_upper=alpha)
        widths.append((bet.upper - bet.lower, t.upper - t.lower))
    ratio = float(np.mean([b for b, _ in widths]) / np.mean([t for _, t in widths]))
    report("width, betting over t", f"soft, sd .1, {items} items, level {alpha}", None, ratio, 60, "for information")
    assert 1 < ratio < 3


def test_power_of_betting_beside_t_and_mcnemar(report: Any) -> None:
    # One look at .05 / 100; drops of the size that the t test proves with power .8.
    rng = np.random.default_rng(4)
    for items in (100, 500, 2000):
        drop = 4.13 * 0.1 / math.sqrt(items)
        d = np.stack([realistic(rng, items) for _ in range(500)]).astype(np.float32) + np.float32(drop)
        d = np.clip(d, -1, 1)
        for name, rejected in (("betting", betting(d, 0.0005, None)), ("t", paired_t(d, 0.0005, None))):
            report(f"power, {name}", f"soft, sd .1, {items} items, drop {drop:.3f}, level .0005", None,
                   rejected.mean(), 500, "for information")  # fmt: skip
    lost, won = rng.binomial(500, 0.065, 500), rng.binomial(500, 0.035, 500)
    hard = [np.repeat([1.0, -1.0, 0.0], [b, c, 500 - b - c]) for b, c in zip(lost, won, strict=True)]
    bet = np.mean([bounded_p_value(x) <= 0.05 for x in hard])
    exact = np.mean(lost >= mcnemar_threshold(lost + won, 0.05))
    for name, power in (("betting", bet), ("McNemar", exact)):
        report(
            f"power, {name}", "hard, 500 items, flip rate .10, drop .03, level .05", None, power, 500, "for information"
        )
    assert exact > bet > 0.2


def test_speed(report: Any) -> None:
    d = realistic(np.random.default_rng(6), 2000)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        bounded_interval(d, alpha_lower=0.0005, alpha_upper=0.05)
        seconds.append(time.perf_counter() - start)
    report(
        "seconds, betting interval",
        "2000 soft items",
        0.02,
        min(seconds),
        5,
        "holds" if min(seconds) < 0.02 else "broken",
    )
    assert min(seconds) < 0.02
