"""What flips and spreads to expect from a baseline alone.

Before there is a candidate, neither the flip rate nor the spread of the drops is known. The planning rule is a
perturbation of the baseline: a candidate changes the log-odds of each item's gold choice by -shift + noise z, with z
standard normal and independent from item to item. Items near the edge flip, items far from it do not. The rule
is ours, for planning only; no verdict uses it. `noise` is the size of the changes to plan for, in nats: the
baseline measured twice under different conditions (an A/A run) gives its floor.
"""

from __future__ import annotations

import math

import numpy as np
import scipy  # loads scipy.special at its first use
from numpy.typing import ArrayLike

from backslide.stats.paired import FloatArray


def planned_drops(p: ArrayLike, *, shift: float, noise: float, seed: int = 0) -> FloatArray:
    """Soft drops to expect: p - sigmoid(logit(p) - shift + noise z), z standard normal.

    Args:
        p: baseline's probability of the gold choice, shape (n,), in [0, 1]; 0 and 1 never move.
        shift: loss of log-odds that all items have in common, in nats; positive is worse.
        noise: standard deviation of the changes of single items, in nats, >= 0.
        seed: of z, >= 0.

    Returns:
        Drops in [-1, 1], shape (n,), in the order of `p`. Their spread is what `power.py` plans with.

    Raises:
        ValueError: an argument outside its range.
    """
    p = _check_plan(p, shift, noise)
    z = np.random.default_rng(seed).standard_normal(p.size)
    drops: FloatArray = p - scipy.special.expit(scipy.special.logit(p) - shift + noise * z)
    return drops


def planned_flips(
    p: ArrayLike, *, shift: float, noise: float, edge: float | ArrayLike = 0.5
) -> tuple[FloatArray, FloatArray]:
    """Chance of each item to be lost and to be won, under the same perturbation; closed form.

    An item is right where p > edge. It is after the change where logit(p) - shift + noise z > logit(edge), so a right
    item is lost with chance Phi((logit(edge) - logit(p) + shift) / noise), and a wrong one won with the rest. The flip
    rate to expect is the mean of both added.

    Args:
        p: baseline's probability of the gold choice, shape (n,), in [0, 1].
        shift: loss of log-odds that all items have in common, in nats; positive is worse.
        noise: standard deviation of the changes of single items, in nats, >= 0.
        edge: the probability at which an item is neither right nor wrong, in (0, 1), one or shape (n,). 0.5 where
            there are two choices. With more, and the other choices keeping their proportions, it is r / (1 + r),
            where r is the best other choice's share of 1 - p.

    Returns:
        Chances of being lost and of being won, each of shape (n,); one of the two is 0.

    Raises:
        ValueError: an argument outside its range.
    """
    p = _check_plan(p, shift, noise)
    edge = np.asarray(edge, dtype=np.float64)
    if edge.shape not in ((), p.shape) or not bool(np.all((edge > 0) & (edge < 1))):
        raise ValueError(f"edge (shape {edge.shape}) must be one number or {p.shape}, all in (0, 1)")
    margin = scipy.special.logit(p) - scipy.special.logit(edge) - shift  # after the change, before the noise
    wrong_after = scipy.special.ndtr(-margin / noise) if noise > 0 else (margin <= 0).astype(np.float64)
    right = p > edge
    return np.where(right, wrong_after, 0.0), np.where(right, 0.0, 1.0 - wrong_after)


def _check_plan(p: ArrayLike, shift: float, noise: float) -> FloatArray:
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1:
        raise ValueError(f"p (shape {p.shape}) must have shape (n,): pass one probability per item")
    inside = (p >= 0) & (p <= 1)
    if not inside.all():
        i = int(np.argmin(inside))
        raise ValueError(f"p[{i}] (={p[i]}) must be in [0, 1]: pass probabilities of the gold choice")
    if not math.isfinite(shift):
        raise ValueError(f"shift (={shift}) must be finite: pass nats of log-odds")
    if not 0.0 <= noise < math.inf:
        raise ValueError(f"noise (={noise}) must be >= 0 and finite: pass nats of log-odds")
    return p
