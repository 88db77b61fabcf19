"""Mean paired drop of real-valued outcomes: Student's t bounds, for independent items or for clusters of items.

Also here, because every statistic of real-valued drops needs them: what a proper array of drops is, and sums by
cluster in an order that does not depend on the order of the items.
"""

from __future__ import annotations

import math

import numpy as np
import scipy  # loads scipy.special at its first use
from numpy.typing import ArrayLike

from backslide.stats.paired import FloatArray, Interval, check_level

_SAME = 1e-12  # relative range below which drops differ by rounding only


def mean_interval(
    d: ArrayLike, *, alpha_lower: float, alpha_upper: float, clusters: ArrayLike | None = None
) -> Interval:
    """Paired t bounds of the mean of real-valued drops, such as bits per byte; asymptotic.

    Independent items: mean -+ t_{n-1, 1-alpha} sqrt(sum (d - mean)^2 / (n (n - 1))): Student (1908); paired
    standard error as in Miller, arXiv 2411.00640. Exact only for normal drops; approximate otherwise, and poor
    below a few hundred items or for heavy tails (arXiv 2503.01747), more so at small levels.

    With `clusters` (items that share a passage or a template) only the clusters are taken as independent, and
    their sizes as given. With residual sums R_g = sum over the items of g of (d_i - mean), shares h_g = n_g / n
    and H = 1 / sum h_g^2, the number of clusters of one size that would weigh as much (Kish 1965),

        standard error = sqrt(H / (H - 1) sum R_g^2) / n,    t with H - 1 degrees of freedom.

    Source of the sum: Liang and Zeger (1986); for evaluations Miller, arXiv 2411.00640, who has no correction for
    few clusters. Cameron and Miller (2015, J. Human Resources 50:317) use G / (G - 1) and G - 1 degrees of freedom
    for G clusters. Ours has H in the place of G: the same where sizes are equal, and the whole is then the t
    interval of the cluster means. For unequal sizes, with v_g the variance of the sum of cluster g,

        E sum R_g^2 = (1 + sum h_g^2) sum v_g - 2 sum h_g v_g.

    Where items are in fact independent (v_g proportional to n_g) this is (1 - 1/H) sum v_g, so the squared error
    is unbiased with H, and too small with G. Where all items of a cluster move as one (v_g proportional to n_g^2)
    and one cluster outweighs the others, it is still too small with H: do not rely on it there.

    Too little data is a state in `method`, never an error bar of zero:

    - "no data" (n = 0), "one item has no error bar" (n = 1), "no variation" (all drops equal to 12
      digits, zero too: nothing is known about their spread), "one cluster has no error bar", "no variation
      between clusters" (all clusters have the same mean): bounds -inf and inf.

    Args:
        d: drops, baseline minus candidate in the direction that positive is worse; shape (n,), any unit.
        alpha_lower: level of the lower bound, in (0, 0.5].
        alpha_upper: level of the upper bound, in (0, 0.5].
        clusters: label of each item's cluster, numbers or strings, shape (n,); None: items are independent.

    Returns:
        Bounds in the unit of `d`; `exact` is False.

    Raises:
        ValueError: `d` is not one-dimensional or holds NaN or infinity, `clusters` does not fit it, or a level
            is outside (0, 0.5].
    """
    d = check_drops(d)
    check_level("alpha_lower", alpha_lower)
    check_level("alpha_upper", alpha_upper)
    sizes = cluster_sums(d, clusters)[1]

    def state(lower: float, upper: float, method: str) -> Interval:
        return Interval(lower, upper, alpha_lower, alpha_upper, method, exact=False)

    n, groups = d.size, sizes.size
    if n == 0:
        return state(-math.inf, math.inf, "no data")
    if n == 1:
        return state(-math.inf, math.inf, "one item has no error bar")
    scale = float(np.abs(d).max()) or 1.0
    d = d / scale  # so that the sum of squares neither overflows nor vanishes
    if np.ptp(d) <= _SAME:
        return state(-math.inf, math.inf, "no variation")
    if groups == 1:
        return state(-math.inf, math.inf, "one cluster has no error bar")
    mean = float(np.mean(np.sort(d)))
    residuals, sizes = cluster_sums(d - mean, clusters)
    if np.all(np.abs(residuals) <= _SAME * sizes):
        return state(-math.inf, math.inf, "no variation between clusters")
    effective = n * n / float(sizes @ sizes)  # groups where all sizes are equal
    error = math.sqrt(effective / (effective - 1) * float(np.sum(np.square(residuals)))) / n
    below = float(scipy.special.stdtrit(effective - 1, alpha_lower)) * error  # <= 0
    above = -float(scipy.special.stdtrit(effective - 1, alpha_upper)) * error
    method = "paired t (asymptotic)" if clusters is None else "clustered t (asymptotic)"
    return state(scale * (mean + below), scale * (mean + above), method)


def mean_p_value(d: ArrayLike, *, clusters: ArrayLike | None = None) -> float:
    """One-sided p value of "the mean drop is at most 0", of the same t statistic as `mean_interval`; asymptotic.

    `mean_interval`'s lower bound at level alpha is above 0 where it is below alpha, up to rounding.

    Args:
        d: drops, shape (n,), any unit.
        clusters: as in `mean_interval`.

    Returns:
        A p value in [0, 1]; 1.0 in every state of too little data.

    Raises:
        ValueError: as `mean_interval`.
    """
    half = mean_interval(d, alpha_lower=0.25, alpha_upper=0.25, clusters=clusters)
    if not math.isfinite(half.lower):
        return 1.0
    sizes = cluster_sums(np.asarray(d, dtype=np.float64), clusters)[1]
    freedom = float(np.sum(sizes)) ** 2 / float(sizes @ sizes) - 1
    mean, quarter = 0.5 * (half.lower + half.upper), 0.5 * (half.upper - half.lower)
    error = quarter / -float(scipy.special.stdtrit(freedom, 0.25))
    return float(scipy.special.stdtr(freedom, -mean / error))


def check_drops(d: ArrayLike) -> FloatArray:
    """The drops as an array of floats, shape (n,).

    Raises:
        ValueError: `d` is not one-dimensional, or holds NaN or infinity; the first such item is named.
    """
    drops = np.asarray(d, dtype=np.float64)
    if drops.ndim != 1:
        raise ValueError(f"d (shape {drops.shape}) must have shape (n,): pass one drop per item")
    finite = np.isfinite(drops)
    if not finite.all():
        i = int(np.argmin(finite))
        raise ValueError(f"d[{i}] (={drops[i]}) must be finite: drop or repair items that could not be scored")
    return drops


def cluster_sums(d: FloatArray, clusters: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    """Sum of the drops of each cluster, and its number of items.

    The result is the same to the last bit for every order of the items and every choice of labels: drops are
    added in order of size, and clusters are listed by number of items and then by sum.

    Args:
        d: drops, shape (n,), finite.
        clusters: label of each item's cluster, shape (n,); None: every item is a cluster of its own.

    Returns:
        Sums and sizes, both float, shape (number of clusters,).

    Raises:
        ValueError: `clusters` has not the shape of `d`, or holds NaN.
    """
    if clusters is None:
        return np.sort(d), np.ones(d.size)
    labels = np.asarray(clusters)
    if labels.shape != d.shape:
        raise ValueError(f"clusters (shape {labels.shape}) must have the shape of d {d.shape}: one label per item")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        i = int(np.argmax(np.isnan(labels)))
        raise ValueError(f"clusters[{i}] (=nan) must name a cluster: give items without one a label of their own")
    if d.size == 0:
        return np.empty(0), np.empty(0)
    _, index, count = np.unique(labels, return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    sums = np.add.reduceat(d[np.lexsort((d, index))], first)
    order = np.lexsort((sums, count))
    return sums[order], count[order].astype(np.float64)
