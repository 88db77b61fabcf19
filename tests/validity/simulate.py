"""Runs in which the truth is known, many at a time; and the judge of what was measured on them.

Shapes: R runs (replicates), K looks, N items. Every generator is seeded by the caller's `rng`. The tests are the
shipped ones where they are fast enough; where thousands of runs need another arrangement of the same sums, the function
says so, and `test_sequential_validity.py` compares it with the shipped test run by run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from backslide.stats.budget import SHARES, WEIGHTS
from backslide.stats.paired import mcnemar_threshold
from backslide.stats.signflip_sequential import allowed, sign_bytes

RHO = 0.9
"""Correlation of an item's latent state between one look and the next."""


class Report(Protocol):
    """What the fixture `report` gives: call it once for each measured number, before the assertion."""

    def __call__(
        self, claim: str, setting: str, bound: float | None, measured: float, replicates: int, verdict: str
    ) -> None: ...


# -- the judge ------------------------------------------------------------------------------------------------


def lower_bound(hits: int, runs: int, confidence: float = 0.999) -> float:
    """Clopper-Pearson lower bound of a rate: below the true one with probability >= confidence."""
    return 0.0 if hits == 0 else float(scipy.stats.beta.ppf(1 - confidence, hits, runs - hits + 1))


def broken(hits: int, runs: int, promised: float = 0.05) -> bool:
    """Whether the measured rate proves that the promise is broken."""
    return lower_bound(hits, runs) > promised


def detection(runs: int, rate: float = 0.07, promised: float = 0.05) -> float:
    """Probability that so many runs prove it, where the true rate is this one; exact."""
    # The lower bound rises with the hits: find the fewest that prove it.
    low, high = 0, runs
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if broken(middle, runs, promised) else (middle + 1, high)
    return float(scipy.stats.binom.sf(low - 1, runs, rate))


# -- trajectories ---------------------------------------------------------------------------------------------


def latent(
    rng: np.random.Generator,
    runs: int,
    items: int,
    looks: int,
    *,
    rho: float = RHO,
    cluster: int = 1,
    shared: float = 0.0,
) -> Iterator[NDArray[np.float32]]:
    """Standard normal states of the items at each look in turn, shape (R, N); AR(1) over the looks.

    With `cluster` > 1, items share a state by blocks of that size: `shared` is their correlation.
    """

    def chain(width: int) -> Iterator[NDArray[np.float32]]:
        z = rng.standard_normal((runs, width), dtype=np.float32)
        step = np.float32(np.sqrt(1 - rho * rho))
        while True:
            yield z
            z = np.float32(rho) * z + step * rng.standard_normal((runs, width), dtype=np.float32)

    own, common = chain(items), chain(-(-items // cluster)) if cluster > 1 else None
    for _ in range(looks):
        z = next(own)
        if common is not None:
            block = np.repeat(next(common), cluster, axis=1)[:, :items]
            z = np.float32(np.sqrt(shared)) * block + np.float32(np.sqrt(1 - shared)) * z
        yield z


def hard_drops(
    rng: np.random.Generator,
    runs: int,
    items: int,
    looks: int,
    flip_rate: float,
    *,
    drop: float = 0.0,
    since: int = 0,
    accuracy: float | None = None,
    rho: float = RHO,
) -> NDArray[np.int8]:
    """Drops in {-1, 0, 1} of right-or-wrong items, shape (R, K, N).

    A share (flip_rate + d) / 2 of the items is lost and (flip_rate - d) / 2 won, with d = `drop` from look `since` on
    (counted from 0) and 0 before. Who flips is decided by the items' latent states:

    - `accuracy` None: an item is lost where its state is high and won where it is low, so that it can be either at
      different looks. Joint sign symmetry holds while d = 0.
    - `accuracy` given: an item is right at the baseline with that probability, and then can only be lost; else it can
      only be won; it has flipped where its state is high. This is how a fixed baseline works. Flips last longer. Joint
      sign symmetry holds while d = 0 at accuracy 1/2; at others, only the means are 0.
    """
    right = None if accuracy is None else rng.random((runs, items)) < accuracy
    of_right, of_wrong = (1.0, 1.0) if accuracy is None else (accuracy, 1 - accuracy)
    out = np.empty((runs, looks, items), dtype=np.int8)
    for k, z in enumerate(latent(rng, runs, items, looks, rho=rho)):
        d = drop if k >= since else 0.0
        lost = z > np.float32(scipy.stats.norm.isf((flip_rate + d) / 2 / of_right))
        above = np.float32(scipy.stats.norm.isf((flip_rate - d) / 2 / of_wrong))
        if right is None:
            out[:, k] = lost.astype(np.int8) - (z < -above)
        else:
            out[:, k] = np.where(right, lost, -(z > above).astype(np.int8))
    return out


def soft_drops(
    rng: np.random.Generator,
    runs: int,
    items: int,
    looks: int,
    *,
    kind: str = "even",
    size: float = 0.1,
    rare: float = 0.02,
    cluster: int = 1,
    shared: float = 0.0,
    rho: float = RHO,
) -> NDArray[np.float32]:
    """Drops in [-1, 1] of soft outcomes whose mean is exactly 0 at every look, shape (R, K, N).

    `even`: tanh(size z), as likely up as down. `skewed`: a share `rare` of the items has lost min(1, 10 size), and
    all others have won what balances it. `cluster` and `shared` as in `latent`.
    """
    out = np.empty((runs, looks, items), dtype=np.float32)
    loss = min(1.0, 10 * size)
    top = np.float32(scipy.stats.norm.isf(rare))
    for k, z in enumerate(latent(rng, runs, items, looks, rho=rho, cluster=cluster, shared=shared)):
        if kind == "even":
            out[:, k] = np.tanh(np.float32(size) * z)
        elif kind == "skewed":
            out[:, k] = np.where(z > top, loss, -loss * rare / (1 - rare))
        else:
            raise ValueError(f"kind (={kind!r}) must be 'even' or 'skewed'")
    return out


# -- tests, many runs at a time -------------------------------------------------------------------------------


def mcnemar_rejects(drops: NDArray[np.int8], alpha: float) -> NDArray[np.bool_]:
    """Whether exact McNemar rejects at level alpha, at each look; (R, K, N) in, (R, K) out. From a table by flips."""
    lost, won = (drops > 0).sum(axis=2), (drops < 0).sum(axis=2)
    threshold = mcnemar_threshold(np.arange(drops.shape[2] + 1), alpha)
    result: NDArray[np.bool_] = lost >= threshold[lost + won]
    return result


def sign_flips(
    capabilities: list[NDArray[np.int8]], alpha: float, *, draws: int = 1000, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """`joint_sign_flip` on many runs; takes one (R, K, N) for each capability.

    Returns the first alarm (counted from 1; 0: none), shape (R,), and whether each capability has ever been above the
    cutoff, shape (R, C). The shipped test with its own signs, but all runs and looks in one matrix product; sums of hard drops are exact in
    single precision.
    """
    runs, looks, _ = capabilities[0].shape
    observed = []
    largest = np.full((runs * looks, draws + 1), -np.inf, dtype=np.float32)
    for c, drops in enumerate(capabilities):
        items = drops.shape[2]
        bits = np.unpackbits(sign_bytes(items, draws, seed, c), axis=0, bitorder="little")[:items]
        signs = bits.astype(np.float32) * 2 - 1
        d = drops.reshape(runs * looks, items).astype(np.float32)
        flips = np.square(d).sum(axis=1, keepdims=True)
        t = np.where(flips > 0, (d @ signs) / np.sqrt(np.maximum(flips, 1)), -np.inf)
        observed.append(t[:, 0].reshape(runs, looks))
        np.maximum(largest, t, out=largest)
    largest = largest.reshape(runs, looks, draws + 1)
    crossed = np.zeros((runs, draws), dtype=bool)
    first, named = np.zeros(runs, dtype=np.int64), np.zeros((runs, len(capabilities)), dtype=bool)
    every = np.arange(runs)
    for k in range(looks):
        most = allowed(alpha, k + 1, looks, draws + 1)
        own, others = largest[:, k, 0], largest[:, k, 1:]
        free = np.where(crossed, np.float32(-np.inf), others)
        top = -np.sort(np.partition(-free, most, axis=1)[:, : most + 1], axis=1)
        room = most - crossed.sum(axis=1)
        cutoff = np.where(room > 0, top[every, np.maximum(room - 1, 0)], np.inf)
        first[(first == 0) & (own > cutoff)] = k + 1
        crossed |= others > np.where(first > 0, top[every, room], np.maximum(top[every, room], own))[:, None]
        named |= np.stack([t[:, k] > cutoff for t in observed], axis=1)
    return first, named


def sign_flip_alarms(
    capabilities: list[NDArray[np.int8]], alpha: float, *, draws: int = 1000, seed: int = 0
) -> NDArray[np.int64]:
    """First alarm of `joint_sign_flip` in each run (counted from 1; 0: none), shape (R,); see `sign_flips`."""
    return sign_flips(capabilities, alpha, draws=draws, seed=seed)[0]


def budget_stops(
    rng: np.random.Generator,
    values: list[float],
    counts: list[int],
    streams: int,
    *,
    alpha: float,
    beta: float,
    tolerance: float,
    record: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[list[float]]]:
    """Where `budget` stops on many fresh random orders of one population, each scored until its first decision.

    The population has counts[v] items with drop values[v]. The shipped process, item by item over all streams, with
    the wealth itself in place of its logarithm. Returns the item after which each stream was `lost` and `clear`
    (0: was not), shape (streams,), and the drops of the first `record` streams.
    """
    items = sum(counts)
    shares, weights = np.asarray(SHARES), np.asarray(WEIGHTS)
    drop_of = np.asarray(values, dtype=np.float64)
    left = np.tile(np.asarray(counts, dtype=np.float64), (streams, 1))
    where = np.arange(streams)
    total = np.zeros(streams)
    lose, keep = np.ones((streams, shares.size)), np.ones((streams, shares.size))
    lost_at, clear_at = np.zeros(streams, dtype=np.int64), np.zeros(streams, dtype=np.int64)
    seen: list[list[float]] = [[] for _ in range(record)]
    for t in range(items):
        rest = items - t - 1
        u = rng.random(where.size) * (rest + 1)
        kind = (u[:, None] >= np.cumsum(left[:, :-1], axis=1)).sum(axis=1)
        left[np.arange(where.size), kind] -= 1
        d = drop_of[kind]
        for stream, x in zip(where[where < record].tolist(), d.tolist(), strict=False):
            seen[stream].append(x)
        for wealth, x, m in ((lose, d, -total / (rest + 1)), (keep, -d, (total - items * tolerance) / (rest + 1))):
            room = 1 + m
            factor = np.where(room > 1e-9, (x - m) / np.maximum(room, 1e-9), 0.0)
            wealth *= 1 + shares * np.maximum(factor, -1.0)[:, None]
        total += d
        lost = (lose @ weights >= 1 / alpha) | (total - rest > 1e-12 * items)
        clear = (keep @ weights >= 1 / beta) | (total + rest <= items * (tolerance + 1e-12))
        lost_at[where[lost]] = t + 1
        clear_at[where[clear]] = t + 1
        go = ~(lost | clear)
        if not go.all():
            where, total, left, lose, keep = where[go], total[go], left[go], lose[go], keep[go]
        if where.size == 0:
            break
    return lost_at, clear_at, seen
