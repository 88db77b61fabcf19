"""How much a suite can see: items that would decide a verdict, and the smallest drop that can be proven.

Hard outcomes (right or wrong) go by their flip rate and the exact power of McNemar's test. Soft ones go by the standard
deviation of their drops: the normal approximation for the paired t bound, or a simulation of the betting
test on given drops. What flip rate or spread to expect before there is a candidate: `expected.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy  # loads scipy.special at its first use
from numpy.typing import ArrayLike

from backslide.stats.bounded import check_bounded, make_bets
from backslide.stats.paired import FloatArray, mcnemar_threshold

MOST_ITEMS = 1_000_000
"""`items_to_decide` never asks for more than this (nor for fewer than one item more than there are)."""


def items_to_decide(
    n: int,
    lost: int,
    won: int,
    *,
    tolerance: float,
    alpha_fail: float,
    alpha_pass: float,
    power: float = 0.8,
) -> int:
    """How many items of the same kind would decide the verdict, if the rates seen so far are the true ones.

    Towards `retained` (possible where drop < tolerance): var ((z_pass + z_power) / (tolerance - drop))^2;
    towards `regressed` (possible where drop > 0): var ((z_fail + z_power) / drop)^2; the smaller one that is
    possible. Here z_x = Phi^-1(1 - level), z_power = Phi^-1(power), drop = (lost - won) / n, and var =
    p - drop^2 with the flip rate p smoothed to (lost + won + 1) / (n + 2), so that zero flips are not read as
    certainty.

    Source: the usual sample size for a one-sided paired z test (Connor 1987, Biometrics 43:207, for McNemar).
    Our deviations: one variance for both hypotheses, and the smoothing. A plan, not a promise: it is a normal
    approximation, and the observed drop is itself uncertain.

    Args:
        n: items asked so far; 0 is allowed.
        lost: items right before and wrong now.
        won: items wrong before and right now.
        tolerance: accepted drop, a share of the items in [0, 1].
        alpha_fail: one-sided level of the lower bound ("regressed"), in (0, 0.5].
        alpha_pass: one-sided level of the upper bound ("retained"), in (0, 0.5].
        power: wanted probability of a decision, in [0.5, 1).

    Returns:
        Total items, those asked so far included: at least n + 1, and else at most `MOST_ITEMS`, which is also
        the answer where neither verdict can be approached (tolerance 0 and no drop seen).

    Raises:
        ValueError: an argument outside its range.
    """
    if n < 0 or lost < 0 or won < 0 or lost + won > n:
        raise ValueError(f"counts (n={n}, lost={lost}, won={won}) must be >= 0 with lost + won <= n")
    if not 0.0 <= tolerance <= 1.0:
        raise ValueError(f"tolerance (={tolerance}) must be in [0, 1]: pass a share, 0.03 for 3 points")
    _check("alpha_fail", alpha_fail, 0.0 < alpha_fail <= 0.5, "(0, 0.5]")
    _check("alpha_pass", alpha_pass, 0.0 < alpha_pass <= 0.5, "(0, 0.5]")
    _check("power", power, 0.5 <= power < 1.0, "[0.5, 1)")

    drop = (lost - won) / n if n else 0.0
    rate = (lost + won + 1) / (n + 2)
    var = max(rate - drop * drop, rate * (1 - rate))  # the second where smoothing makes the rate < drop^2
    needed = math.inf
    for distance, alpha in ((tolerance - drop, alpha_pass), (drop, alpha_fail)):
        if distance > 0:
            z = -float(scipy.special.ndtri(alpha)) + float(scipy.special.ndtri(power))
            needed = min(needed, var * (z / max(distance, 1e-9)) ** 2)
    return max(n + 1, math.ceil(min(needed, MOST_ITEMS)))


def smallest_drop(n: int, *, flip_rate: float, alpha: float, power: float = 0.8) -> float:
    """Smallest true mean drop that the exact McNemar test at level alpha proves with that power.

    Flips F ~ Bin(n, flip_rate) and, given them, lost ~ Bin(F, (1 + drop / flip_rate) / 2); the power is sum
    over f of P(F = f) P(lost >= threshold(f)), exactly, with no normal approximation (Duffy 1984, Biometrics
    40:1005, cited from memory). It rises with the drop, so the smallest drop is found by bisection, to 1e-7
    from above.

    Args:
        n: items asked in both states.
        flip_rate: share of the items that flip either way, in [0, 1]; a drop cannot be larger than this.
        alpha: one-sided level of the test, in (0, 0.5].
        power: wanted probability of proving the drop, in (0, 1).

    Returns:
        A drop in (0, flip_rate], a share of the items; `math.inf` where even a drop as large as the flip rate
        (every flip a loss) is not proven with that power.

    Raises:
        ValueError: an argument outside its range.
    """
    if n < 0:
        raise ValueError(f"n (={n}) must be >= 0: it counts items")
    _check("flip_rate", flip_rate, 0.0 <= flip_rate <= 1.0, "[0, 1]")
    _check("alpha", alpha, 0.0 < alpha <= 0.5, "(0, 0.5]")
    _check("power", power, 0.0 < power < 1.0, "(0, 1)")
    if n == 0 or flip_rate == 0.0:
        return math.inf

    proven = _mcnemar_power(n, flip_rate, alpha)
    low, high = 0.0, flip_rate
    if proven(high) < power:
        return math.inf
    while high - low > 1e-7:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if proven(middle) >= power else (middle, high)
    return high


def items_needed(drop: float, *, flip_rate: float, alpha: float, power: float = 0.8) -> int:
    """Items with which the exact McNemar test at level alpha proves that mean drop with that power.

    The power is exact, as in `smallest_drop`. It rises with the number of items in saw teeth, because the test is
    discrete: the answer has the power and one item less has not, but a number a little smaller may have it
    too, and one a little larger may miss it by a little.

    Args:
        drop: true mean drop, a share of the items, in (0, flip_rate].
        flip_rate: share of the items that flip either way, in (0, 1].
        alpha: one-sided level of the test, in (0, 0.5].
        power: wanted probability of proving the drop, in (0, 1).

    Returns:
        A number of items, at most `MOST_ITEMS`, which is also the answer where more are needed.

    Raises:
        ValueError: an argument outside its range.
    """
    _check("flip_rate", flip_rate, 0.0 < flip_rate <= 1.0, "(0, 1]")
    _check("drop", drop, 0.0 < drop <= flip_rate, f"(0, flip_rate] with flip_rate = {flip_rate}")
    _check("alpha", alpha, 0.0 < alpha <= 0.5, "(0, 0.5]")
    _check("power", power, 0.0 < power < 1.0, "(0, 1)")

    few, enough = 0, 8
    while _mcnemar_power(enough, flip_rate, alpha)(drop) < power:
        if enough == MOST_ITEMS:
            return MOST_ITEMS
        few, enough = enough, min(2 * enough, MOST_ITEMS)
    while enough - few > 1:
        middle = (few + enough) // 2
        has_it = _mcnemar_power(middle, flip_rate, alpha)(drop) >= power
        few, enough = (few, middle) if has_it else (middle, enough)
    return enough


def smallest_soft_drop(n: int, *, sd: float, alpha: float, power: float = 0.8) -> float:
    """Smallest true mean drop that the paired t bound at level alpha proves with that power; normal approximation.

    (z_alpha + z_power) sd / sqrt(n): the usual power of a one-sided z test. At small n or tiny levels the t bound
    needs somewhat more, and the betting bound more again: `smallest_betting_drop`.

    Args:
        n: items asked in both states.
        sd: standard deviation of the drops, in their unit, >= 0.
        alpha: one-sided level of the test, in (0, 0.5].
        power: wanted probability of proving the drop, in [0.5, 1).

    Returns:
        A drop in the unit of `sd`; `math.inf` for n < 2 or sd = 0, where a t bound says nothing.

    Raises:
        ValueError: an argument outside its range.
    """
    if n < 0:
        raise ValueError(f"n (={n}) must be >= 0: it counts items")
    distance = _z(alpha, power)
    _check("sd", sd, 0.0 <= sd < math.inf, "[0, inf)")
    return distance * sd / math.sqrt(n) if n > 1 and sd > 0 else math.inf


def soft_items_needed(drop: float, *, sd: float, alpha: float, power: float = 0.8) -> int:
    """Items with which the paired t bound proves that mean drop; the inverse of `smallest_soft_drop`.

    Args:
        drop: true mean drop, > 0.
        sd: standard deviation of the drops, in the unit of `drop`, > 0.
        alpha: one-sided level of the test, in (0, 0.5].
        power: wanted probability of proving the drop, in [0.5, 1).

    Returns:
        A number of items from 2 to `MOST_ITEMS`, which is also the answer where more are needed.

    Raises:
        ValueError: an argument outside its range.
    """
    distance = _z(alpha, power)
    _check("drop", drop, 0.0 < drop < math.inf, "(0, inf)")
    _check("sd", sd, 0.0 < sd < math.inf, "(0, inf)")
    return max(2, math.ceil(min((distance * (sd / drop)) ** 2, float(MOST_ITEMS))))


def smallest_betting_drop(
    drops: ArrayLike,
    n: int,
    *,
    alpha: float,
    power: float = 0.8,
    sizes: ArrayLike | None = None,
    correlation: float = 0.0,
    replicates: int = 400,
    seed: int = 0,
) -> float:
    """Smallest mean drop that the betting test of `bounded.py` proves with that power, by simulation.

    The drops are moved to mean 0 and then all by the same amount (and cut to [-1, 1]); n of them are drawn
    with replacement, `replicates` times, the same draws for each amount. Every e-value rises with the
    amount, so the smallest is found by bisection, to 1e-4.

    With clusters each item takes its cluster's common draw with probability sqrt(correlation), and one of its own
    otherwise, so that two drops of a cluster correlate by `correlation`.

    Args:
        drops: drops in [-1, 1] that show the spread to expect, such as `expected.planned_drops`; at least one.
        n: items asked in both states, >= 1.
        alpha: one-sided level of the test, in (0, 0.5].
        power: wanted probability of proving the drop, in (0, 1).
        sizes: items of each cluster, whole numbers >= 1 that sum to n; None: items are independent.
        correlation: of two drops in one cluster, in [0, 1]; at 1 the items of a cluster drop as one.
        replicates: simulated samples; the power found is good to about 1 / sqrt(replicates), or .025 for 400.
        seed: of the draws, >= 0.

    Returns:
        The mean of the moved drops; `math.inf` where no amount is proven with that power.

    Raises:
        ValueError: no drops, drops outside [-1, 1] or not finite, or another argument outside its range.
    """
    pool = check_bounded(drops)
    if pool.size == 0:
        raise ValueError("drops (empty) must hold at least one drop: their spread is what is planned with")
    _check("n", n, n >= 1, "[1, inf)")
    _check("alpha", alpha, 0.0 < alpha <= 0.5, "(0, 0.5]")
    _check("power", power, 0.0 < power < 1.0, "(0, 1)")
    _check("replicates", replicates, replicates >= 1, "[1, inf)")
    _check("correlation", correlation, 0.0 <= correlation <= 1.0, "[0, 1]")
    groups = np.ones(n) if sizes is None else np.asarray(sizes, dtype=np.float64)
    if groups.ndim != 1 or not bool(np.all((groups >= 1) & (groups == np.floor(groups)))) or groups.sum() != n:
        raise ValueError(f"sizes ({groups.size} of them) must be whole numbers >= 1 that sum to n (={n})")
    pool = np.sort(pool) - float(np.mean(np.sort(pool)))
    random = np.random.default_rng(seed)
    drawn = random.integers(0, pool.size, (replicates, n))
    starts = np.cumsum(groups).astype(np.intp) - groups.astype(np.intp)
    if groups.size < n:
        common = np.repeat(drawn[:, starts], groups.astype(np.intp), axis=1)
        drawn = np.where(random.random((replicates, n)) < math.sqrt(correlation), common, drawn)
    bets = make_bets(groups)

    def proven(amount: float) -> float:
        y = np.add.reduceat(1.0 + np.clip(pool + amount, -1.0, 1.0)[drawn], starts, axis=1)
        log_e = bets.log_e(y, 0.0)
        return float(np.mean(log_e >= -math.log(alpha)))

    low, high = 0.0, 1.0
    if proven(high) < power:
        return math.inf
    while high - low > 1e-4:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if proven(middle) >= power else (middle, high)
    return float(np.mean(np.clip(pool + high, -1.0, 1.0)))


def _mcnemar_power(n: int, flip_rate: float, alpha: float) -> Callable[[float], float]:
    """The exact power of McNemar's test as a function of the mean drop in [0, flip_rate]."""
    # Only numbers of flips with a chance above 1e-12 in all; the others are counted as "not proven".
    half = 7.5 * math.sqrt(n * flip_rate * (1 - flip_rate)) + 20
    f = np.arange(max(0, math.floor(n * flip_rate - half)), min(n, math.ceil(n * flip_rate + half)) + 1)
    threshold = mcnemar_threshold(f, alpha)
    f, threshold = f[threshold <= f], threshold[threshold <= f]
    lgamma = scipy.special.gammaln
    log_weight = lgamma(n + 1.0) - lgamma(f + 1.0) - lgamma(n - f + 1.0)
    log_weight += scipy.special.xlogy(f, flip_rate) + scipy.special.xlog1py(n - f, -flip_rate)
    weight: FloatArray = np.exp(log_weight)

    def proven(drop: float) -> float:
        lose = 0.5 * (1 + drop / flip_rate)  # P(a flip is a loss)
        return float(weight @ scipy.special.betainc(threshold, f - threshold + 1, lose))

    return proven


def _z(alpha: float, power: float) -> float:
    _check("alpha", alpha, 0.0 < alpha <= 0.5, "(0, 0.5]")
    _check("power", power, 0.5 <= power < 1.0, "[0.5, 1)")
    return -float(scipy.special.ndtri(alpha)) + float(scipy.special.ndtri(power))


def _check(name: str, value: float, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name} (={value}) must be in {allowed}")
