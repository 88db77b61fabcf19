"""Many capabilities at once: to fail, the level is shared (Holm); to pass, all must pass, and nothing is shared.

The two directions differ because the two claims do. "Capability A has lost something" is one claim of many, and
one false one among them is a false alarm: the family-wise error is what must stay small. "Nothing was lost
beyond the tolerance, anywhere" is a single claim that every capability must support: it is false as soon as
one capability has dropped, and then that capability alone has to err for the claim to be made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backslide.stats.paired import check_level


@dataclass(frozen=True, slots=True)
class Holm:
    """What Holm's method says of each test, in the order in which the p values were given."""

    rejected: tuple[bool, ...]
    """Whether "nothing was lost" is rejected; always the same as p value <= level."""
    levels: tuple[float, ...]
    """Level at which each test was decided: that of its own step, or of the step at which the method stopped.
    A one-sided interval of a capability at this level agrees with the decision on it."""
    adjusted: tuple[float, ...]
    """Adjusted p values: the smallest alpha at which the test is rejected (up to rounding), in [0, 1]."""

    @property
    def any_rejected(self) -> bool:
        """Whether at least one test is rejected."""
        return any(self.rejected)


def holm(p_values: ArrayLike, alpha: float) -> Holm:
    """Holm's step-down method: at most alpha for one or more false rejections, whatever the dependence.

    The p values are taken from small to large; the j-th (j = 0, 1, ...) of n is rejected while it is at most
    alpha / (n - j), and the first that is not ends it. Rejects all that Bonferroni's alpha / n does, and more.
    Adjusted: max over i <= j of min(1, (n - i) p_(i)). Source: Holm (1979), Scandinavian Journal of Statistics
    6:65; it is the closed test (Marcus, Peritz and Gabriel 1976, Biometrika 63:655) of Bonferroni tests. Our
    deviation: equal p values get one level, that of the first of them, so that the order given never matters;
    the decisions are the same.

    Args:
        p_values: one per test, shape (n,), n >= 1, each in [0, 1].
        alpha: family-wise level in (0, 0.5].

    Raises:
        ValueError: no p value, one that is NaN or outside [0, 1], another shape, or alpha outside (0, 0.5].
    """
    p = _p_values(p_values)
    check_level("alpha", alpha)
    n = p.size
    rejected, levels, adjusted = [False] * n, [0.0] * n, [0.0] * n
    order = np.argsort(p, kind="stable").tolist()
    level, largest, going, before = alpha / n, 0.0, True, -1.0
    for j, i in enumerate(order):
        value = float(p[i])
        if going and value != before:
            level = alpha / (n - j)
            going = value <= level
        largest = max(largest, min(1.0, (n - j) * value))
        rejected[i], levels[i], adjusted[i] = going, level, largest
        before = value
    return Holm(tuple(rejected), tuple(levels), tuple(adjusted))


def all_pass(p_values: ArrayLike, alpha: float) -> bool:
    """Whether every capability passes, each at the full level alpha (intersection-union test).

    The null hypothesis is "at least one capability has dropped by more than its tolerance"; where capability c
    is such a one, the pass needs its own test to err, which happens with probability at most alpha. So the
    largest p value is a p value of the whole, and no correction is made, however many capabilities there are
    and however they depend on each other. Source: Berger (1982), Technometrics 24:295.

    The price is power: with many capabilities just inside their tolerances it is hard to pass them all.

    Args:
        p_values: one per capability, of "the drop is beyond the tolerance"; shape (n,), n >= 1, each in [0, 1].
        alpha: level in (0, 0.5].

    Raises:
        ValueError: as `holm`; above all, no p value: nothing measured is never a pass.
    """
    p = _p_values(p_values)
    check_level("alpha", alpha)
    return bool(p.max() <= alpha)


def _p_values(p_values: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or p.size == 0:
        raise ValueError(f"p_values (shape {p.shape}) must have shape (n,) with n >= 1: pass one per capability")
    bad = np.flatnonzero(~((p >= 0) & (p <= 1)))  # NaN too
    if bad.size:
        i = int(bad[0])
        raise ValueError(f"p_values[{i}] (={p[i]}) must be in [0, 1]: a test without data has p = 1")
    return p
