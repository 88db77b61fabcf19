"""What a suite can see, as a table, and what flips and spreads to expect from a baseline alone.

Before there is a candidate, neither the flip rate nor the spread of the drops is known. The planning rule is a
perturbation of the baseline: a candidate changes the log-odds of each item's gold choice by -shift + noise z, with z
standard normal and independent from item to item. Items near the edge flip, items far from it do not. The rule
is ours, for planning only; no verdict uses it. `noise` is the size of the changes to plan for, in nats: the
baseline measured twice under different conditions (an A/A run) gives its floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads scipy.special at its first use
from numpy.typing import ArrayLike

from backslide.stats.paired import FloatArray
from backslide.stats.power import smallest_drop, smallest_soft_drop


@dataclass(frozen=True, slots=True)
class Row:
    """The smallest mean drop of one capability that would be proven with the wanted power.

    Drops of hard outcomes are shares of the items, drops of soft ones have the unit of `sd`; inf where none
    could be proven.
    """

    gate_items: int
    """Items of the gate half."""
    monitor_items: int
    """Items of the monitor half."""
    flip_rate: float
    """Share of the items expected to flip either way."""
    sd: float
    """Expected standard deviation of the soft drops."""
    gate_alpha: float
    """Level of this capability's test in the one look at the gate half."""
    monitor_alpha: float
    """Level of this capability's test in each look at the monitor half."""
    gate_hard: float
    """Smallest drop proven by the gate look, exact McNemar."""
    monitor_hard: float
    """Smallest drop proven by a single monitor look, exact McNemar; that any one of them proves it is likelier."""
    gate_soft: float
    """As `gate_hard`, paired t on soft outcomes; normal approximation."""
    monitor_soft: float
    """As `monitor_hard`, paired t on soft outcomes; normal approximation."""


def table(
    gate_items: Sequence[int],
    flip_rate: Sequence[float],
    sd: Sequence[float],
    *,
    monitor_items: Sequence[int] | None = None,
    alpha: float = 0.05,
    looks: int,
    tests: int | None = None,
    gate_share: float = 0.5,
    power: float = 0.8,
) -> tuple[Row, ...]:
    """The smallest drop that can be proven, for each capability: in the gate look and in one of the monitor looks.

    Each test of the gate look has level alpha gate_share / tests, each test of a monitor look
    alpha (1 - gate_share) / (looks tests): false alarms are at most alpha over all of them (Bonferroni).

    Args:
        gate_items: items of each capability in the gate half, shape (capabilities,).
        flip_rate: expected share of items that flip, shape (capabilities,), each in [0, 1].
        sd: expected standard deviation of the soft drops, shape (capabilities,), each >= 0.
        monitor_items: items in the monitor half, shape (capabilities,); None: as many as in the gate half.
        alpha: probability of a false alarm over the whole run, in (0, 0.5].
        looks: planned looks at the monitor half, >= 1.
        tests: tests of one look, where that is not the number of capabilities (one more for all items together).
        gate_share: share of alpha for the gate look, in (0, 1).
        power: wanted probability of proving the drop, in [0.5, 1).

    Returns:
        A row for each capability, in the order given.

    Raises:
        ValueError: lengths that differ, or an argument outside its range.
    """
    monitor_items = gate_items if monitor_items is None else monitor_items
    lengths = {len(gate_items), len(flip_rate), len(sd), len(monitor_items)}
    if len(lengths) > 1:
        raise ValueError(f"gate_items, flip_rate, sd and monitor_items must have one length, got {sorted(lengths)}")
    tests = len(gate_items) if tests is None else tests
    if looks < 1:
        raise ValueError(f"looks (={looks}) must be >= 1: pass the number of planned looks")
    if tests < len(gate_items):
        raise ValueError(f"tests (={tests}) must be >= {len(gate_items)}, the number of capabilities")
    if not 0.0 < gate_share < 1.0:
        raise ValueError(f"gate_share (={gate_share}) must be in (0, 1)")
    if not 0.0 < alpha <= 0.5:
        raise ValueError(f"alpha (={alpha}) must be in (0, 0.5]: pass a level such as 0.05")
    rows = []
    for gate, monitor, rate, spread in zip(gate_items, monitor_items, flip_rate, sd, strict=True):
        at_gate = alpha * gate_share / tests
        at_look = alpha * (1 - gate_share) / (looks * tests)
        rows.append(
            Row(
                gate_items=gate,
                monitor_items=monitor,
                flip_rate=rate,
                sd=spread,
                gate_alpha=at_gate,
                monitor_alpha=at_look,
                gate_hard=smallest_drop(gate, flip_rate=rate, alpha=at_gate, power=power),
                monitor_hard=smallest_drop(monitor, flip_rate=rate, alpha=at_look, power=power),
                gate_soft=smallest_soft_drop(gate, sd=spread, alpha=at_gate, power=power),
                monitor_soft=smallest_soft_drop(monitor, sd=spread, alpha=at_look, power=power),
            )
        )
    return tuple(rows)


def planned_drops(p: ArrayLike, *, shift: float, noise: float, seed: int = 0) -> FloatArray:
    """Soft drops to expect: p - sigmoid(logit(p) - shift + noise z), z standard normal.

    Args:
        p: baseline's probability of the gold choice, shape (n,), in [0, 1]; 0 and 1 never move.
        shift: loss of log-odds that all items have in common, in nats; positive is worse.
        noise: standard deviation of the changes of single items, in nats, >= 0.
        seed: of z, >= 0.

    Returns:
        Drops in [-1, 1], shape (n,), in the order of `p`. Their standard deviation is what `table` asks for.

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
