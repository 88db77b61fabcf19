"""Fixed-sample test and interval for the mean paired drop of right-or-wrong items, baseline minus candidate.

Hard outcomes (right or wrong) give a drop D in {-1, 0, 1} for each item: `lost` items went from right to
wrong, `won` items from wrong to right, the other items did not flip. Their test and interval are exact at
every n. Real-valued drops (bits per byte, probability of the gold choice) are in `means.py` and `bounded.py`.

Every bound here is one-sided at its own level, because a verdict uses the two for different claims: the lower
one to say "something was lost", the upper one to say "not more than the tolerance was lost".

How `hard_interval` works. With iid items the counts are trinomial with p_lost and p_won; the mean drop is
t = p_lost - p_won and the nuisance is the flip rate p = p_lost + p_won. Given the number of flips
F ~ Bin(n, p), lost ~ Bin(F, (1 + t/p)/2), so the probability of any region of the form {lost <= k(F)} is a
sum of positive terms

    P(lost <= k(F)) = sum over f of P(F = f) P(Bin(f, (1 + t/p)/2) <= k(f)),

computed term by term (no FFT and no cancellation; flips left out of the sum are counted as if inside the
region).

*Upper bound.* The region is {T <= T observed} with T = lost - won + 2 sqrt(F + 1), an approximate upper bound
times n (Buehler 1957, JASA 52:482: any fixed order of the tables gives a valid bound, a good order a short
one). The plain order T = lost - won is as valid, but its probability depends strongly on p, and the bound
grows with the *largest* plausible flip rate: 28% wider than the normal bound at n = 500 with 50 flips and
alpha .05, where this order is 9% wider. The region is a lower set in lost for each F, so its probability
falls with t and each p gives one crossing. The nuisance is handled by Berger and Boos (1994, JASA 89:1012):
with C the 1 - beta Clopper-Pearson interval of p, the p value of "mean drop = t" is

    p(t) = beta + max over p in C with p >= |t| of P(region | t, p),

which falls with t. The bound is the t where it reaches alpha, from the conservative side. beta = alpha / 100.

*Lower bound.* The mirror image of the upper one, except that drops t <= 0 are tested so that the bound is
above 0 exactly where the McNemar test rejects. Each t has a test of its own, of level alpha:

- t > 0: the mirrored test above.
- t = 0: exact McNemar. It is also of level alpha at every t < 0, for given F lost is then stochastically
  smaller.
- t < 0: rejected if McNemar rejects, or if t <= t0 and p(t) <= alpha, where the region is now {T <= T
  observed} *united with* {McNemar rejects}. Level: let A be the tables rejected although McNemar does not. If
  some table of A has the true p in its C, all rejected tables with p in C lie in the widest such region,
  whose probability (McNemar's included) is at most alpha - beta; the others have probability at most beta. If
  none has, only McNemar's region and the event that p is outside C are left: P(McNemar rejects | t) + beta <=
  alpha by the choice of t0. t0 in closed form: for given F = f McNemar's threshold is at least f/2, so on it
  the likelihood ratio of t against 0 is at most (1 - (t/p)^2)^(f/2); averaged over F this is
  (1 - p + sqrt(p^2 - t^2))^n, largest at p = 1. So P(McNemar rejects | t) <= alpha (1 - t^2)^(n/2), which is
  alpha - beta at t0 = -sqrt(1 - (1 - beta/alpha)^(2/n)), about -0.14 / sqrt(n). The price is that a lower
  bound is never between t0 and 0.

What is numerical rather than proven: the maximum over p is located on a grid of 33 points with refinement
around the best one. The probability is smooth on that scale; the tests compare with a search 20 times finer,
and the level itself with full enumeration at small n.
"""

from __future__ import annotations

import math
import operator
import sys
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy  # loads scipy.special at its first use, which takes longer than all else here
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BETA_SHARE = 0.01
"""Share of alpha that Berger and Boos's method spends on the confidence interval of the flip rate."""

OPEN_ZERO = sys.float_info.min
"""The lower bound where McNemar excludes every drop <= 0 and no positive drop is excluded: "above 0"."""

_ORDER_Z = 2.0  # weight of the standard error in T; fixed, so that a smaller alpha cannot change the order
_ORDER_PRIOR = 1.0  # flips added inside the root, so that T rises with lost and falls with won everywhere
_GRID = 33
_T_TOLERANCE = 1e-7
_MARGIN = 1e-4  # share of the level kept back for what the search over p may miss (2e-5 was the most ever seen)
_TINY = 1e-300  # keeps logarithms and divisions finite


@dataclass(frozen=True, slots=True)
class Interval:
    """Confidence bounds of the mean paired drop, baseline minus candidate; positive is worse.

    The unit is that of the drop: a share of the items (0.03 is 3 points) for hard outcomes.
    """

    lower: float
    """One-sided lower bound at level `alpha_lower`; -inf (hard outcomes: -1) where nothing can be said."""
    upper: float
    """One-sided upper bound at level `alpha_upper`; inf (hard outcomes: 1) where nothing can be said."""
    alpha_lower: float
    """Largest probability that `lower` is above the true mean drop."""
    alpha_upper: float
    """Largest probability that `upper` is below the true mean drop."""
    method: str
    """How the bounds were made, or the state that stands in for them, such as "no data"."""
    exact: bool
    """True: the levels hold at every n. False: asymptotic."""


def mcnemar_exact(lost: int, won: int) -> float:
    """One-sided p value of the exact McNemar test for "more lost than won".

    P(Bin(lost + won, 1/2) >= lost): given the flips, each is a loss with probability at most 1/2 if the mean
    drop is at most 0. Source: McNemar (1947); exact conditional form as in Kuebler et al., arXiv 2602.10144.

    Args:
        lost: items right before and wrong now.
        won: items wrong before and right now.

    Returns:
        A p value in (0, 1]; 1.0 where nothing flipped.

    Raises:
        ValueError: a count is negative.
    """
    lost, won = _count("lost", lost), _count("won", won)
    if lost == 0:
        return 1.0
    # Above a thousand losses the tail underflows; a p value of 0 would claim that chance is impossible.
    return max(float(scipy.special.bdtrc(lost - 1, lost + won, 0.5)), sys.float_info.min)


def mcnemar_threshold(flips: IntArray, alpha: float) -> IntArray:
    """Fewest losses among so many flips that the exact McNemar test rejects at level alpha.

    Args:
        flips: numbers of flips, any shape, each >= 0.
        alpha: one-sided level in (0, 0.5].

    Returns:
        Same shape as `flips`; flips + 1 where even all lost would not reject.

    Raises:
        ValueError: alpha outside (0, 0.5].
    """
    check_level("alpha", alpha)
    flips = np.asarray(flips, dtype=np.int64)
    guess = np.ceil(0.5 * flips - 0.5 * scipy.special.ndtri(alpha) * np.sqrt(flips)).astype(np.int64)
    k: IntArray = np.clip(guess, 1, flips + 1)
    while True:
        too_low = (k <= flips) & (_half_tail(k, flips) > alpha)
        too_high = (k > 1) & (_half_tail(k - 1, flips) <= alpha)
        if not (too_low.any() or too_high.any()):
            return k
        k = k + too_low.astype(np.int64) - too_high.astype(np.int64)


def hard_interval(n: int, lost: int, won: int, *, alpha_lower: float, alpha_upper: float) -> Interval:
    """Exact confidence bounds of the mean drop of right-or-wrong items, valid at every n for iid items.

    `lower` > 0 if and only if `mcnemar_exact(lost, won) <= alpha_lower`. The method, its proof and its
    sources are in the docstring of this module; in short, tests are inverted, with the flip rate handled by
    Berger and Boos (1994). Where McNemar rejects and no positive drop is excluded, `lower` is `OPEN_ZERO`
    (2.2e-308): above 0, and no size is claimed.

    Two things that one might expect do not hold to the last digit; coverage is not touched by them. A bound
    never falls where a won item turns into a lost one, but where an item that had not flipped is lost it can,
    in few tables and by up to a third of an item (the plausible flip rates move as well). And a smaller
    `alpha_lower` can raise a `lower` below 0 by up to 0.0005, where it just crosses a p value of McNemar's.

    Args:
        n: items asked in both states; 0 gives the state "no data", with bounds -1 and 1.
        lost: items right before and wrong now.
        won: items wrong before and right now.
        alpha_lower: level of the lower bound, in (0, 0.5].
        alpha_upper: level of the upper bound, in (0, 0.5].

    Returns:
        Bounds in [-1, 1] as shares of the items, with lower <= (lost - won) / n <= upper.

    Raises:
        ValueError: a negative count, lost + won > n, or a level outside (0, 0.5].
    """
    n, lost, won = _count("n", n), _count("lost", lost), _count("won", won)
    if lost + won > n:
        raise ValueError(f"lost + won (={lost} + {won}) must be <= n (={n}): count an item once, as lost or won")
    check_level("alpha_lower", alpha_lower)
    check_level("alpha_upper", alpha_upper)
    if n == 0:
        return Interval(-1.0, 1.0, alpha_lower, alpha_upper, "no data", exact=True)

    upper = _upper_bound(n, lost, won, alpha_upper, unite_mcnemar=False)
    if mcnemar_exact(lost, won) <= alpha_lower:
        lower = max(-_upper_bound(n, won, lost, alpha_lower, unite_mcnemar=False), OPEN_ZERO)
    else:
        t0 = -math.sqrt(-math.expm1(2.0 / n * math.log1p(-BETA_SHARE)))
        lower = min(-_upper_bound(n, won, lost, alpha_lower, unite_mcnemar=True), t0)
    return Interval(lower, upper, alpha_lower, alpha_upper, "exact (McNemar; Berger-Boos)", exact=True)


@dataclass(frozen=True)
class _Region:
    """A set of tables of the form {lost <= k(flips)}, and its probability under the trinomial."""

    n: int
    k: IntArray  # (n + 1,) most losses inside the region for each number of flips; -1: none
    neglect: float  # flips of about this probability are not summed but counted as inside

    @cached_property
    def log_factorial(self) -> FloatArray:
        table: FloatArray = scipy.special.gammaln(np.arange(self.n + 1) + 1.0)
        return table

    @cached_property
    def window_z(self) -> float:
        return -float(scipy.special.ndtri(self.neglect / 2))

    def probability(self, t: float, p: FloatArray) -> FloatArray:
        """P(region | mean drop t, flip rate p), from above by at most about `neglect`.

        Args:
            t: mean drop.
            p: flip rates, shape (g,), each >= |t| and > 0.

        Returns:
            Shape (g,).
        """
        n, z = self.n, self.window_z
        half = z * np.sqrt(n * p * (1 - p)) + z * z / 3 + 1  # Bernstein's half width
        first = np.maximum(np.floor(n * p - half), 0).astype(np.int64)
        last = np.minimum(np.ceil(n * p + half), n).astype(np.int64)
        f = first[:, None] + np.arange(int((last - first).max()) + 1)  # (g, w)
        summed = f <= last[:, None]
        f = np.minimum(f, n)
        k = self.k[f]
        log_c = self.log_factorial
        log_weight = log_c[n] - log_c[f] - log_c[n - f] + scipy.special.xlogy(f, p[:, None])
        log_weight += scipy.special.xlog1py(n - f, -p[:, None])
        weight = np.where(summed, np.exp(log_weight), 0.0)
        lose = np.clip(0.5 * (1 + t / p), 0.0, 1.0)[:, None]  # P(a flip is a loss)
        proper = (k >= 0) & (k < f)
        inside = scipy.special.betainc(np.where(proper, f - k, 1), np.where(proper, k + 1, 1), 1 - lose)
        inside = np.where(proper, inside, k >= f)
        left = np.where(first > 0, scipy.special.bdtr(np.maximum(first - 1, 0), n, p), 0.0)
        right = np.where(last < n, scipy.special.bdtrc(np.minimum(last, n - 1), n, p), 0.0)
        result: FloatArray = (weight * inside).sum(axis=1) + left + right
        return result

    def largest(self, t: float, low: float, high: float) -> tuple[float, float]:
        """Largest probability over flip rates from max(low, |t|) to high, and where; grid, then refined twice."""
        # Even in arcsin sqrt(p), where F has the same spread at every p. A grid even in p is too coarse near 0
        # and 1: it missed up to 8% of the maximum.
        first = math.asin(math.sqrt(max(low, abs(t), _TINY)))
        x: FloatArray = np.linspace(first, math.asin(math.sqrt(high)), _GRID)
        top, where = -1.0, high
        for _ in range(3):
            p = np.sin(x) ** 2
            value = self.probability(t, p)
            best = int(np.argmax(value))
            if value[best] > top:
                top, where = float(value[best]), float(p[best])
            x = np.linspace(x[max(best - 1, 0)], x[min(best + 1, len(x) - 1)], 9)
        return top, where

    def crossing(self, p: float, level: float, start: float, high: float) -> float:
        """Smallest t in [start, high] with probability <= level at flip rate max(p, |t|); high if none.

        Up to `_T_TOLERANCE`, and never below the true one. Along this path p_lost does not fall and p_won
        does not rise with t, or one of them stays 0, so the probability of the region falls.
        """

        def height(t: float) -> float:  # nearly linear in t; <= 0 where the probability is <= level
            value = float(self.probability(t, np.array([max(p, abs(t), _TINY)]))[0])
            return float(scipy.special.ndtri(min(max(value, _TINY), 1 - 1e-16)) - scipy.special.ndtri(level))

        a, b = start, high
        ha, hb = height(a), height(b)
        if ha <= 0:
            return a
        if hb > 0:
            return b
        step = 0
        while b - a > _T_TOLERANCE:
            step += 1
            guess = a + (b - a) * ha / (ha - hb) if step % 4 else 0.5 * (a + b)
            margin = min(0.4 * _T_TOLERANCE, 0.25 * (b - a))
            guess = min(max(guess + margin, a + margin), b - margin)
            h = height(guess)
            if h > 0:
                a, ha = guess, h
            else:
                b, hb = guess, h
        return b


def _upper_bound(n: int, lost: int, won: int, alpha: float, *, unite_mcnemar: bool) -> float:
    """Upper bound of the mean drop at level alpha; swap lost and won and negate it for the lower one.

    With `unite_mcnemar` the region also holds all tables where the McNemar test for "more won than lost"
    rejects.
    """
    beta = BETA_SHARE * alpha
    level = alpha - beta
    flips = lost + won
    low = float(scipy.special.betaincinv(flips, n - flips + 1, beta / 2)) if flips > 0 else 0.0
    high = 1.0 - float(scipy.special.betaincinv(n - flips, flips + 1, beta / 2)) if flips < n else 1.0

    f = np.arange(n + 1)
    observed = lost - won + _ORDER_Z * math.sqrt(flips + _ORDER_PRIOR)
    most = observed - _ORDER_Z * np.sqrt(f + _ORDER_PRIOR) + 1e-9  # of lost - won; ties are inside
    k = np.clip(np.floor((f + most) / 2), -1, f).astype(np.int64)
    if unite_mcnemar:
        k = np.maximum(k, f - mcnemar_threshold(f, alpha))
    region = _Region(n, k, neglect=1e-4 * beta)

    # The bound is the largest crossing over p: solve at one p, then look for a p above the level there.
    t, p = -high, flips / n
    while t < high:
        t = region.crossing(p, level * (1 - _MARGIN), t, high)
        value, p = region.largest(t, low, high)
        if value <= level * (1 - _MARGIN / 2):
            break
        t = min(t + _T_TOLERANCE, high)
    return max(t, (lost - won) / n)


def _half_tail(k: IntArray, flips: IntArray) -> FloatArray:
    """P(Bin(flips, 1/2) >= k) for k >= 1; 0 where k > flips."""
    possible = k <= flips
    tail = scipy.special.bdtrc(np.where(possible, k - 1, 0), np.where(possible, flips, 1), 0.5)
    return np.where(possible, tail, 0.0)


def _count(name: str, value: int) -> int:
    value = operator.index(value)
    if value < 0:
        raise ValueError(f"{name} (={value}) must be >= 0: it counts items")
    return value


def check_level(name: str, alpha: float) -> None:
    """Raise ValueError, with the argument's name, where alpha is outside (0, 0.5]."""
    if not 0.0 < alpha <= 0.5:
        raise ValueError(f"{name} (={alpha}) must be in (0, 0.5]: pass a one-sided level such as 0.05")
