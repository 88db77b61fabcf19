"""The stored runs of the cures as points of the table: means over seeds, intervals, rank correlations.

Points are compared over the seeds that they share, since the seed decides the order of the rows and much of the loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import scipy
from cures_plan import RESULTS, Run, planned

from backslide.files import read_json
from backslide.stats.paired import hard_interval

Result = dict[str, Any]
Points = Mapping[Run, Mapping[int, Result]]

LEVEL = 0.95
"""Of every interval."""
PARTS = {"repertoire": "repertoire", "arc_easy": "ARC-Easy", "piqa": "PIQA"}


def _kl(kind: str) -> Callable[[Result], float]:
    return lambda result: (result if "kl" in result else result["again"])["kl"][kind]


QUANTITIES: dict[str, Callable[[Result], float]] = {
    "target": lambda result: result["target"]["after"],
    "gain": lambda result: result["target"]["before"] - result["target"]["after"],
    "drop": lambda result: result["retention"]["repertoire"]["before"] - result["retention"]["repertoire"]["after"],
    "bits": lambda result: result["retention"]["repertoire"]["bits"][1],
    "rise": lambda result: result["retention"]["repertoire"]["bits"][1] - result["retention"]["repertoire"]["bits"][0],
    "kl": lambda result: result["kl_new"],
    "kl_prose": _kl("prose"),
    "kl_answers": _kl("answers"),
    "kl_task": _kl("task"),
    "moved": lambda result: result["moved"],
    "seconds": lambda result: result["seconds"],
}
"""`drop` is of accuracy on the repertoire, as a share; `bits` and `rise` are bits a byte of the repertoire's prose, the
latter above the base's; `target`, `gain` and `kl` are nats a token of held-out dialogues; `moved` is a share. The three
others are of `cures_kl`, in nats a token, and not every result has them (`with_kl`)."""


class Missing(LookupError):
    """A result that is needed is not there; the message names its file."""


@dataclass(frozen=True)
class Estimate:
    """A mean, and its interval at `LEVEL`."""

    mean: float
    low: float | None = None
    """None: one value, which has no interval."""
    high: float | None = None


def stored(folder: Path = RESULTS) -> dict[Run, dict[int, Result]]:
    """All results that are there, by point and seed; points in the order of the plan, seeds ascending."""
    names = [field.name for field in fields(Run)]
    found: dict[Run, dict[int, Result]] = {}
    for path in sorted(folder.glob("*.json")):
        result = read_json(path)
        found.setdefault(Run(**{name: result[name] for name in names} | {"seed": 0}), {})[result["seed"]] = result
    place = {point: number for number, point in enumerate(planned())}
    order = sorted(found, key=lambda point: (place.get(point, len(place)), point.name))
    return {point: dict(sorted(found[point].items())) for point in order}


def with_kl(found: Points) -> dict[Run, dict[int, Result]]:
    """Those of the results that the KL of `cures_kl` was measured of, in their own training or in a second one."""
    kept = {point: {s: r for s, r in by_seed.items() if "kl" in r or "again" in r} for point, by_seed in found.items()}
    return {point: by_seed for point, by_seed in kept.items() if by_seed}


def at_steps(found: Points, point: Run, measure: str) -> dict[int, list[float]]:
    """By step of a point's training: the KL on a kind of text, or `bits`; a value for each seed that has them."""
    seconds = [result["again"] for result in found.get(point, {}).values() if "at" in result.get("again", {})]
    places = [{int(step): one for step, one in again["at"].items()} | {point.steps: again} for again in seconds]
    steps = sorted(set().union(*places))
    return {step: [(place[step]["kl"] | place[step])[measure] for place in places] for step in steps}


def shared(found: Points, *points: Run) -> list[int]:
    """Seeds that all of the points have; raises `Missing` where there is none, naming what is not there."""
    for point in points:
        if not found.get(point):
            raise Missing(f"{point.name}.json is not in {RESULTS.name}/; benchmarks/cures.py makes it")
    seeds = set.intersection(*(set(found[point]) for point in points))
    if not seeds:
        raise Missing(f"{' and '.join(point.name for point in points)} have no seed in common yet")
    return sorted(seeds)


def means(found: Points, quantity: str, *points: Run) -> list[float]:
    """Of each of the points, over the seeds that all of them have."""
    seeds = shared(found, *points)
    return [fmean(QUANTITIES[quantity](found[point][seed]) for seed in seeds) for point in points]


# Intervals.


def over_seeds(values: Sequence[float]) -> Estimate:
    """The t interval of the mean over seeds: where another seed would come out, on these very items.

    Exact for normal values. With two seeds it is 9 times as wide as their standard deviation, which is no fault of it:
    two values say little about a spread.
    """
    count, mean = len(values), fmean(values)
    if count < 2:
        return Estimate(mean)
    half = float(scipy.special.stdtrit(count - 1, (1 + LEVEL) / 2)) * stdev(values) / count**0.5
    return Estimate(mean, mean - half, mean + half)


def kept(results: Iterable[Result], part: str) -> Estimate:
    """Accuracy, with its paired interval over items: what other items of the kind would show of these seeds' models.

    All seeds answer the same items, so their flips are not independent and must not be added up as if they were. Each
    seed has exact bounds of its own for the mean paired drop (`hard_interval` on its lost and won); what is shown is
    base's accuracy on these items less the mean of those bounds. Since the standard deviation of a mean is at most the
    mean of the standard deviations, whatever the seeds have in common, that is as wide as it has to be or wider, for
    samples that are large enough for the normal law; more seeds make it no narrower. Where base's accuracy lies outside
    of it, the change is proven. Items count as independent of one another. How far another seed would be is not in it.
    """
    rows = [result["retention"][part] for result in results]
    # Of one base, up to the rounding of the machines that the seeds were made on.
    before, alpha = fmean(row["before"] for row in rows), (1 - LEVEL) / 2
    drops = [hard_interval(row["items"], row["lost"], row["won"], alpha_lower=alpha, alpha_upper=alpha) for row in rows]
    low, high = before - fmean(d.upper for d in drops), before - fmean(d.lower for d in drops)
    return Estimate(fmean(row["after"] for row in rows), low, high)


# What goes with what.


def distinct(found: Points) -> list[tuple[Run, Result]]:
    """Every run once: without the base (α = 0), and without α = 1 and a guard that only warns.

    Those two are runs that are there under another name.
    """
    return [
        (point, result)
        for point, results in found.items()
        if point.alpha not in (0.0, 1.0) and point.policy != "warn"
        for result in results.values()
    ]


def rank_correlation(results: Sequence[Result], one: str, other: str) -> float:
    """Spearman's, of two quantities over runs."""
    from scipy.stats import spearmanr

    if len(results) < 3:
        raise Missing(f"{len(results)} runs are too few for a rank correlation")
    values = ([QUANTITIES[name](result) for result in results] for name in (one, other))
    return float(spearmanr(*values).statistic)


# Loss for loss.


@dataclass(frozen=True)
class Curve:
    """What a method of training gives up on its way down, from the base through growing learning rates."""

    rates: tuple[float, ...]
    """The first is 0, the base."""
    rows: tuple[dict[str, float], ...]
    """Means over seeds of `target`, `rise`, `drop` and `kl` at each rate."""

    @property
    def down(self) -> list[tuple[float, dict[str, float]]]:
        """As far as a higher rate still learns more; beyond that a loss would be met twice."""
        pairs = list(zip(self.rates, self.rows, strict=True))
        end = next((n for n in range(1, len(pairs)) if pairs[n][1]["target"] >= pairs[n - 1][1]["target"]), len(pairs))
        return pairs[:end]

    def at(self, loss: float, quantity: str) -> float | None:
        """The quantity at a target loss, on the straight line between the two rates around it; None: out of reach."""
        for (_, one), (_, two) in itertools.pairwise(self.down):
            if two["target"] <= loss <= one["target"]:
                share = (one["target"] - loss) / (one["target"] - two["target"])
                return one[quantity] + share * (two[quantity] - one[quantity])
        return None


def curves(found: Points) -> dict[str, Curve]:
    """Of LoRA and of all weights, over the seeds that all of their rates have."""
    points = {m: sorted(planned(group="rate", method=m), key=lambda point: point.rate) for m in ("lora", "full")}
    points = {method: [point for point in own if point in found] for method, own in points.items()}
    everything = [point for own in points.values() for point in own]
    if not all(points.values()):
        raise Missing("runs of both methods are needed")
    seeds = shared(found, *everything)
    names = ("target", "rise", "drop", "kl")
    start = {"target": found[everything[0]][seeds[0]]["target"]["before"], "rise": 0.0, "drop": 0.0, "kl": 0.0}
    return {
        method: Curve(
            (0.0, *(point.rate for point in own)),
            (start, *({name: fmean(QUANTITIES[name](found[p][s]) for s in seeds) for name in names} for p in own)),
        )
        for method, own in points.items()
    }
