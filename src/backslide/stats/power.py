"""How much a suite can see: items that would decide a verdict, and the smallest drop that can be proven."""

from __future__ import annotations

import math

import numpy as np
import scipy  # loads scipy.special at its first use

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

    low, high = 0.0, flip_rate
    if proven(high) < power:
        return math.inf
    while high - low > 1e-7:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if proven(middle) >= power else (middle, high)
    return high


def _check(name: str, value: float, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name} (={value}) must be in {allowed}")
