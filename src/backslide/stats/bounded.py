"""Test and confidence bounds for the mean of bounded drops D in [-1, 1], valid at every n: betting at fixed stakes.

For soft outcomes (probability of the gold choice, before minus after), where the t interval of `means.py` is
only asymptotic, and for hard ones. Nothing is assumed of the drops but their range and that the clusters are
independent (each item a cluster of its own, unless told otherwise): no common distribution, no symmetry.

*The e-value.* Let cluster g have n_g items, n = sum n_g, and Y_g = sum over its items of (1 + D_i), which is
in [0, 2 n_g]. For a stake s >= 0 and reserves r_g >= 0 with sum r_g + s n = number of clusters G,

    E(m) = product over g of (r_g + s Y_g / (1 + m)).

If the mean of the items' expected drops is at most m, then E E(m) <= 1. Proof: every factor is >= 0 and the
clusters are independent, so the expectation is the product of e_g = r_g + s E Y_g / (1 + m) >= 0. A product of
nonnegative numbers is at most the G-th power of their mean (AM-GM), and sum e_g = sum r_g + s sum E Y_g /
(1 + m) <= sum r_g + s n = G, because sum E Y_g = n + sum E D_i <= n (1 + m). So the product is at most 1, whatever
each cluster's own mean is. A mixture of such E(m) with weights that sum to 1 is again one, and by Markov's inequality
"mean <= m" may be rejected at level alpha where E(m) >= 1 / alpha. Each E(m) falls with m, since Y_g >= 0; hence
the m that are rejected are all those below one number, and this number is the lower bound. Upper bounds
are lower bounds of -D, mirrored.

With one item a cluster, reserves are 1 - s and the factor is 1 + lambda (D - m), lambda = s / (1 + m): the
betting of Waudby-Smith and Ramdas (2024, JRSSB 86:1) with a stake fixed in advance. Our deviations: their stakes
are learned from the items seen so far, which makes the bound depend on the order of the items and its proof on a
common conditional mean; fixed stakes cost a mixture over their size (as in the universal portfolio, Cover 1991;
Orabona and Jun 2024, IEEE Trans. Inf. Theory 70:436, for confidence sequences) and the result is a symmetric function
of the items.

*Clusters of unequal size.* Reserves r_g = 1 - s n_g make every factor 1 where D = m throughout, so that sizes
by themselves move nothing, but need s <= 1 / max n_g: one large cluster would hold all stakes down. Beyond
that, r_g = max(w - s n_g, 0) with the level w <= 1 for which the reserves sum to G - s n. It maximises the product
where D = m throughout (water filling: maximise sum log(r_g + s n_g) over r_g >= 0 of given sum), so it has the
least price for a stake, and the largest stake is chosen, from the sizes alone, where price and stake are
in the best proportion (`_largest_stake`). The price is real: with one cluster that holds half of the items no
bound is useful.

*What the guarantee costs.* At a fixed level and for drops of small standard deviation sd the bound is about
sd sqrt(2 log(c / alpha) / n) + log(c / alpha) / n from the mean, where c is the price of the mixture
(2 to 8), against z sd / sqrt(n) for the t interval. The second term no method without further assumptions escapes:
a drop of -1 (or 1) on a share log(1 / alpha) / n of the domain is not seen with probability alpha. The baseline's
probabilities narrow the range of each item to [p_i - 1, p_i], but stakes that differ between items for that
reason are not covered by the proof (those with larger stakes may be those that drop), and with a common
stake the range that counts is the widest one. Gaffke's bound (Learned-Miller and Thomas 2019, arXiv 1905.06208) is
close to the t interval and symmetric, but its validity is a conjecture there.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import scipy  # loads scipy.special at its first use
from numpy.typing import ArrayLike

from backslide.stats.means import check_drops, cluster_sums
from backslide.stats.paired import OPEN_ZERO, FloatArray, Interval, check_level

LARGEST = 0.98
"""Share of the largest possible stake that is staked at most; with all of it a single drop of -1 would be final."""

RATIO = 0.5
"""Each stake of the mixture is this share of the next larger one."""

TAPER = 0.75
"""Each weight is this share of that of the next larger stake: most soft drops are small, and want a large one."""

SMALLEST = 2.5
"""The smallest stake is at most this over the root of the number of clusters."""

_LEAST_V = -40.0  # log(1 + m) where the search for the bound begins: m = -1 up to rounding
_STEP = 1e-13  # of v
_PRICE_AT = 4.0  # log evidence, about 1 / alpha = 50, at which the price of a stake is weighed


@dataclass(frozen=True, slots=True)
class Bets:
    """A mixture of e-values for clusters of given sizes; the same whatever the drops are."""

    log_weight: FloatArray
    """(j,) logarithms of the weights; the weights sum to 1."""
    stake: FloatArray
    """(j,) s of each e-value, per item."""
    reserve: FloatArray
    """(j, g) r_g of each e-value, >= 0."""

    def log_e(self, y: FloatArray, v: float, count: FloatArray | None = None) -> FloatArray:
        """Log E(m) at v = log(1 + m).

        Args:
            y: sums of 1 + D over each cluster, shape (..., g).
            v: log(1 + m).
            count: how many clusters each column stands for, shape (g,); None: one each.

        Returns:
            Shape (...); -inf where the e-value is 0.
        """
        each = []
        for log_weight, stake, reserve in zip(self.log_weight, self.stake, self.reserve, strict=True):
            with np.errstate(divide="ignore"):  # a factor of 0 makes an e-value 0
                log_factor = np.log(reserve + (stake * math.exp(-v)) * y)
            each.append(log_weight + (log_factor.sum(axis=-1) if count is None else log_factor @ count))
        result: FloatArray = scipy.special.logsumexp(np.stack(each), axis=0)
        return result


def make_bets(sizes: FloatArray) -> Bets:
    """The stakes and their weights for clusters of these sizes: both geometric.

    The four constants above were chosen by the mean width over soft, hard and normal drops with sd .03 to .6, 30 to
    5000 items, levels .05 and .0005: 1.17 times that of the best single stake for each case (which nobody
    knows beforehand), at most 1.31 times. Equal weights gave 1.19 and 1.46.

    Args:
        sizes: number of items of each cluster, shape (g,), at least one.
    """
    groups = sizes.size
    largest = LARGEST * _largest_stake(sizes)
    lowest = min(SMALLEST / math.sqrt(groups), LARGEST) / float(sizes.max())
    number = 1 + max(0, math.ceil(math.log(largest / lowest) / -math.log(RATIO) - 1e-9))
    stake: FloatArray = largest * np.power(RATIO, np.arange(number), dtype=np.float64)
    weight: FloatArray = np.power(TAPER, np.arange(number), dtype=np.float64)
    reserve = np.stack([_reserve(sizes, s) for s in stake])
    log_weight: FloatArray = np.log(weight / weight.sum())
    return Bets(log_weight, stake, reserve)


def bounded_p_value(d: ArrayLike, *, drop: float = 0.0, clusters: ArrayLike | None = None) -> float:
    """P value of "the mean drop is at most `drop`", valid at every n: min(1, 1 / E(drop)).

    Method, assumptions and proof are in the docstring of this module. A p value from Markov's inequality is
    conservative: it reaches .05 about where that of the t test is .002 (drops that are small and even).

    Args:
        d: drops in [-1, 1], baseline minus candidate, shape (n,).
        drop: the mean that is tested, in (-1, 1).
        clusters: label of each item's cluster, shape (n,); None: items are independent.

    Returns:
        A p value in (0, 1]; 1.0 for n = 0.

    Raises:
        ValueError: drops outside [-1, 1] or not finite, clusters that do not fit, or `drop` out of range.
    """
    if not -1.0 < drop < 1.0:
        raise ValueError(f"drop (={drop}) must be in (-1, 1): pass a share, 0.03 for 3 points")
    d = check_bounded(d)
    if d.size == 0:
        return 1.0
    bets, y, count = _prepare(d, clusters)
    return _p_value(float(bets.log_e(y, math.log1p(drop), count)))


def bounded_interval(
    d: ArrayLike, *, alpha_lower: float, alpha_upper: float, clusters: ArrayLike | None = None
) -> Interval:
    """Confidence bounds of the mean of bounded drops, valid at every n.

    `lower` > 0 if and only if `bounded_p_value(d) <= alpha_lower` (`OPEN_ZERO` where rounding alone decides).
    Method, assumptions and proof are in the docstring of this module. The bounds do not depend on the order of the
    items. There is no state but "no data": one item, or items that are all alike, give bounds that are
    wide and valid.

    Args:
        d: drops in [-1, 1], baseline minus candidate, shape (n,); n = 0 gives the state "no data", bounds -1 and 1.
        alpha_lower: level of the lower bound, in (0, 0.5].
        alpha_upper: level of the upper bound, in (0, 0.5].
        clusters: label of each item's cluster, numbers or strings, shape (n,); None: items are independent.

    Returns:
        Bounds in [-1, 1] with lower <= mean <= upper.

    Raises:
        ValueError: drops outside [-1, 1] or not finite, clusters that do not fit, or a level outside (0, 0.5].
    """
    check_level("alpha_lower", alpha_lower)
    check_level("alpha_upper", alpha_upper)
    d = check_bounded(d)
    if d.size == 0:
        return Interval(-1.0, 1.0, alpha_lower, alpha_upper, "no data", exact=True)
    bets, y, count = _prepare(d, clusters)
    lower = _lower_bound(bets, y, count, alpha_lower)
    rejects_zero = _p_value(float(bets.log_e(y, 0.0, count))) <= alpha_lower
    lower = max(lower, OPEN_ZERO) if rejects_zero else min(lower, 0.0)
    bets, y, count = _prepare(-d, clusters)
    upper = -_lower_bound(bets, y, count, alpha_upper)
    method = "betting (bounded drops)" if clusters is None else "betting (clusters)"
    return Interval(lower, upper, alpha_lower, alpha_upper, method, exact=True)


def check_bounded(d: ArrayLike) -> FloatArray:
    """The drops as an array of floats in [-1, 1], shape (n,).

    Raises:
        ValueError: `d` is not one-dimensional, not finite or outside [-1, 1]; the first such item is named.
    """
    drops = check_drops(d)
    outside = np.abs(drops) > 1.0
    if outside.any():
        i = int(np.argmax(outside))
        raise ValueError(f"d[{i}] (={drops[i]}) must be in [-1, 1]: pass differences of probabilities")
    return drops


def _lower_bound(bets: Bets, y: FloatArray, count: FloatArray, alpha: float) -> float:
    """Largest m that is rejected at level alpha, never from above by rounding; -1 if there is none.

    In v = log(1 + m) each log factor log(r + s Y e^-v) is convex and falls, and so are their sums and the log
    of a mixture. Newton's method from the left therefore never passes the root, which is the safe side, and needs some
    8 steps where bisection needs 40.
    """
    target = -math.log(alpha)
    v, rejected, step = _LEAST_V, -math.inf, 0.0
    while True:
        paid = (bets.stake * math.exp(-v))[:, None] * y
        factor = bets.reserve + paid
        with np.errstate(divide="ignore"):
            log_e = bets.log_weight + np.log(factor) @ count
        total = float(scipy.special.logsumexp(log_e))
        if total >= target:
            rejected = v
            share = np.divide(paid, factor, out=np.zeros_like(paid), where=factor > 0) @ count
            step = (total - target) / float(np.exp(log_e - total) @ share)
        else:
            step *= 0.9  # rounding alone can pass the root
        if step <= _STEP:
            return math.expm1(rejected)  # -1 where even the smallest mean is not rejected
        v = rejected + step


def _p_value(log_e: float) -> float:
    return min(1.0, max(math.exp(-max(log_e, 0.0)), sys.float_info.min))


def _prepare(d: FloatArray, clusters: ArrayLike | None) -> tuple[Bets, FloatArray, FloatArray]:
    """Bets, sums of 1 + D and how often each occurs: hard drops have three values, not n."""
    y, sizes = cluster_sums(1.0 + d, clusters)
    bets = make_bets(sizes)
    first = np.flatnonzero(np.concatenate([[True], (np.diff(y) != 0) | (np.diff(sizes) != 0)]))
    count = np.diff(np.concatenate([first, [y.size]])).astype(np.float64)
    return Bets(bets.log_weight, bets.stake, bets.reserve[:, first]), y[first], count


def _reserve(sizes: FloatArray, stake: float) -> FloatArray:
    """Reserves of each cluster: max(w - stake n_g, 0), which sum to G - stake n."""
    ordered = np.sort(sizes)[::-1]
    over = np.arange(sizes.size)  # so many of the largest clusters keep no reserve
    level = (sizes.size - stake * np.concatenate([[0.0], np.cumsum(ordered)[:-1]])) / (sizes.size - over)
    w = min(1.0, float(level[int(np.argmax(stake * ordered <= level))]))
    return np.maximum(w - stake * sizes, 0.0)


def _largest_stake(sizes: FloatArray) -> float:
    """The stake from 1 / max n_g to 1 / (mean n_g) with the smallest (log evidence + price) / stake.

    The price is -sum log(r_g + s n_g), what the product loses where D = m throughout. The distance of the bound
    from the mean is this quotient over n where the spread of the drops is small. It is found on a grid of 40
    stakes, and need not be found exactly: every stake is valid.
    """
    lowest, highest = 1.0 / float(sizes.max()), 1.0 / float(sizes.mean())
    if highest <= lowest * (1 + 1e-9):
        return lowest
    best, stake = math.inf, lowest
    for s in np.geomspace(lowest, highest, 41)[:-1].tolist():  # at the highest nothing is left in reserve
        price = -float(np.log(_reserve(sizes, s) + s * sizes).sum())
        if (_PRICE_AT + price) / s < best:
            best, stake = (_PRICE_AT + price) / s, s
    return stake
