"""Sign-flip test of the mean paired drop: is it larger than chance signs would make it?

Under the null hypothesis that every drop is as likely to be -D as D (independently from unit to unit), the signs
carry no information given the sizes |D|. The one-sided p value is the share of all sign patterns whose sum is at
least the observed one (Fisher 1935; Pitman 1937). As the sum of squares is the same for every pattern, the t
statistic and sum / sqrt(sum of squares) order the patterns as the sum does, and give the same p value.

Exact at every n under this symmetry, which holds, for example, where baseline and candidate can be swapped. For
the weaker null hypothesis "the mean drop is 0" with skewed drops it is only asymptotic (Romano 1990, JASA 85:686) and
fails where the t test fails; `bounded.py` does not.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import scipy  # loads scipy.special at its first use
from numpy.typing import ArrayLike

from backslide.stats.means import check_drops, cluster_sums
from backslide.stats.paired import FloatArray

MOST_UNITS = 32
"""All sign patterns are counted up to this many units that are not 0: two halves of 2^16 patterns."""

MOST_LATTICE = 40_000
"""All sign patterns are counted as well where the sizes are whole multiples of the smallest, up to this sum."""

_TIE = 1e-12  # relative to the sum of all sizes: sums closer than this are equal, and count as at least as large
_CHUNK = 2**21  # signs held at a time


@dataclass(frozen=True, slots=True)
class SignFlip:
    """Result of the sign-flip test."""

    p_value: float
    """One-sided p value of "nothing was lost", in (0, 1]; 1 where every unit is 0."""
    statistic: float
    """Sum of the drops over the root of the sum of squares over units; nan where every unit is 0."""
    units: int
    """Items, or clusters, whose sum is not 0; the others tell nothing."""
    draws: int
    """Random sign patterns drawn; 0 where all were counted."""
    method: str
    """How the p value was made, or the state that stands in for it, such as "no data"."""


def sign_flip(d: ArrayLike, *, clusters: ArrayLike | None = None, draws: int = 9999, seed: int = 0) -> SignFlip:
    """One-sided sign-flip test of "nothing was lost", per item or per cluster.

    All 2^k patterns are counted where there are at most `MOST_UNITS` units that are not 0 (subset sums of
    two halves, Horowitz and Sahni 1974), and where the sizes are whole multiples of the smallest one, as for hard
    outcomes (convolution of binomials); with drops in {-1, 0, 1} this is exact McNemar. Else `draws` random
    patterns with p = (1 + number at least as large) / (1 + draws), which is a valid p value, never 0 (Davison
    and Hinkley 1997, section 4.2; Phipson and Smyth 2010). It can't be below 1 / (1 + draws): choose more draws than
    1 / level.

    Sizes are sorted before signs are drawn, so that neither the order of the items nor the names of the clusters
    matter. Sums that differ from the observed one by rounding only count as at least as large.

    Args:
        d: drops, baseline minus candidate, positive is worse; shape (n,), any unit.
        clusters: label of each item's cluster, shape (n,): all items of a cluster get one sign; None: each its own.
        draws: random patterns where they can't all be counted, >= 1.
        seed: of the random patterns, >= 0.

    Returns:
        The p value and how it was made. "no data" (n = 0) and "nothing moved" (every unit is 0) have p = 1.

    Raises:
        ValueError: `d` is not one-dimensional or not finite, clusters that do not fit, or draws < 1.
    """
    d = check_drops(d)
    if draws < 1:
        raise ValueError(f"draws (={draws}) must be >= 1: pass more than 1 / level, such as 9999")
    if d.size:
        d = d / (float(np.abs(d).max()) or 1.0)  # so that squares neither overflow nor vanish
    sums, sizes = cluster_sums(d, clusters)
    # What is left of a cluster whose drops cancel is rounding, not evidence.
    units = sums[np.abs(sums) > _TIE * sizes]
    if units.size == 0:
        return SignFlip(1.0, math.nan, 0, 0, "nothing moved" if d.size else "no data")
    statistic = math.fsum(units) / math.sqrt(math.fsum(np.square(units)))
    size = np.sort(np.abs(units))[::-1]
    # A pattern's sum is 2 (sum of the sizes with sign +) - (sum of all sizes): compare the first part only.
    observed = math.fsum(units[units > 0]) - _TIE * math.fsum(size)

    def result(p_value: float, drawn: int, method: str) -> SignFlip:
        return SignFlip(p_value, statistic, units.size, drawn, method)

    whole = np.rint(size / size[-1])
    if whole.sum() <= MOST_LATTICE and bool(np.all(np.abs(size - whole * size[-1]) <= _TIE * size)):
        return result(_count_whole(whole, observed / float(size[-1])), 0, "sign flip (all patterns)")
    if size.size <= MOST_UNITS:
        return result(_count_halves(size, observed), 0, "sign flip (all patterns)")
    return result(_draw(size, observed, draws, seed), draws, "sign flip (random patterns)")


def _count_whole(size: FloatArray, observed: float) -> float:
    """P(sum of size_i B_i >= observed), B_i fair bits and sizes whole: a binomial for each distinct size."""
    chance = np.ones(1)
    log_factorial = scipy.special.gammaln
    for value, number in zip(*np.unique(size, return_counts=True), strict=True):
        k = np.arange(int(number) + 1)
        log_ways = log_factorial(number + 1) - log_factorial(k + 1) - log_factorial(number - k + 1)
        binomial = np.zeros(int(value) * int(number) + 1)
        binomial[:: int(value)] = np.exp(log_ways - number * math.log(2))
        chance = np.convolve(chance, binomial)
    tail = float(chance[max(math.ceil(observed), 0) :].sum())
    return min(1.0, max(tail, sys.float_info.min))


def _count_halves(size: FloatArray, observed: float) -> float:
    """P(sum of size_i B_i >= observed): every sum of the first half meets the sorted sums of the second."""
    first, second = _subset_sums(size[::2]), np.sort(_subset_sums(size[1::2]))
    enough = second.size - np.searchsorted(second, observed - first, side="left")
    return float(enough.sum()) / (float(first.size) * float(second.size))


def _subset_sums(size: FloatArray) -> FloatArray:
    sums = np.zeros(1)
    for value in size:
        sums = np.concatenate([sums, sums + value])
    return sums


def _draw(size: FloatArray, observed: float, draws: int, seed: int) -> float:
    """(1 + number of random patterns with a sum of at least `observed`) / (1 + draws)."""
    generator = np.random.default_rng(seed)
    width = (size.size + 7) // 8
    rows = max(4, _CHUNK // (8 * width) // 4 * 4)  # whole words of 4 bytes: the pieces make one stream
    reached = 0
    for start in range(0, draws, rows):
        number = min(rows, draws - start)
        packed = np.frombuffer(generator.bytes(number * width), dtype=np.uint8).reshape(number, width)
        bits = np.unpackbits(packed, axis=1, count=size.size)
        reached += int(np.count_nonzero(bits.astype(np.float64) @ size >= observed))
    return (1 + reached) / (1 + draws)
