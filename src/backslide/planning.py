"""What a suite can see, before anything is trained: the smallest drop that each capability can prove.

With a baseline record, the drops to expect come from its own probabilities: the log-odds of every item are moved at
random (`backslide.stats.expected`), so items that the model is sure of hardly flip and items at its edge do. Without
one, a flip rate and a spread are assumed.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backslide.errors import ConfigError, MismatchError
from backslide.record import Outcome, Record
from backslide.stats.expected import planned_drops, planned_flips
from backslide.stats.power import items_needed, smallest_betting_drop, smallest_drop
from backslide.suite.item import ChoiceItem, ContinuationItem, Item
from backslide.suite.suite import Suite

FLIP_RATE = 0.10
"""Share of items that flip, where there is no baseline to tell; a fine-tune that changes little flips 5 to 20%."""
NOISE = 1.5
"""Standard deviation, in nats, of the change of an item's log-odds that is planned for: about what the first look at
the mildest of our traces shows (`docs/LOG.md`)."""
REPLIES_TIMES_DRIFT = 7.5
"""Replies that rule out a drift, times that drift in nats a token, at α = 0.05 (`docs/suites.md`)."""
CORRELATION = 0.2
"""Between the drops of two items of one cluster; on shaken weights it was -.08 to .13 (`docs/LOG.md`)."""


@dataclass(frozen=True)
class Reach:
    """The smallest drops that would be proven with the wanted power; shares, infinite where none can be."""

    capability: str
    gate_items: int
    monitor_items: int
    flip_rate: float
    """Share of the items that is expected to flip."""
    spread: float | None
    """Expected standard deviation of the drop in probability; None where items have none."""
    gate: float
    """Accuracy, the look at the gate half."""
    monitor: float
    """Accuracy, one of the looks at the monitor half."""
    gate_soft: float | None
    """Probability on the gold choice, the look at the gate half."""
    monitor_soft: float | None
    items_for_tolerance: int | None
    """Gate items with which a drop as large as the tolerance would be proven, in accuracy; None for clusters."""


def reach(
    suite: Suite,
    baseline: Record | None = None,
    *,
    looks: int = 20,
    alpha: float = 0.05,
    power: float = 0.8,
    tolerance: float = 0.03,
    flip_rate: float = FLIP_RATE,
    gate_share: float = 0.5,
) -> list[Reach]:
    """What each capability with right answers can prove in a run of so many looks.

    Every test has the level that `judge` gives it in a guarded run: `gate_share` of α for the gate half and the rest
    over the looks, each divided by the number of tests of a look. With `gate_share` = 1 it is what `check`
    proves, which never looks at the monitor half.

    Raises:
        MismatchError: the baseline was measured on another suite.
        ConfigError: a number is out of range.
    """
    for name, value, low, high in (
        ("alpha", alpha, 0, 0.5),
        ("power", power, 0.5, 0.999),
        ("flip-rate", flip_rate, 0, 1),
    ):
        if not low < value <= high:
            raise ConfigError(f"{name} is {value!r}, a number above {low} and up to {high} is needed")
    if not 0 <= gate_share <= 1:
        raise ConfigError(f"gate_share is {gate_share!r}, a share from 0 to 1 is needed")
    if looks < 1:
        raise ConfigError(f"looks is {looks}, a whole number from 1 is needed")
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance is {tolerance!r}, a share above 0 and below 1 is needed (0.03)")
    if baseline is not None and baseline.header.suite_hash != suite.hash:
        raise MismatchError(
            f"the baseline was measured on the suite {baseline.header.suite} ({baseline.header.suite_hash[:12]}), not "
            f"on {suite.name} ({suite.hash[:12]}); name the baseline's suite with --suite"
        )
    groups: dict[str, list[Item]] = {}
    for item in suite.items:
        if item.kind not in ("text", "open"):
            groups.setdefault(item.capability, []).append(item)
    soft = {
        name: all(isinstance(item, (ChoiceItem, ContinuationItem)) for item in items) for name, items in groups.items()
    }
    texts = {item.capability for item in suite.items if item.kind == "text"}
    replies = {item.capability for item in suite.items if item.kind == "open" and item.judged}
    tests = len(groups) + sum(soft.values()) + len(texts) + len(replies) + (len(groups) > 1)
    levels = {"gate": alpha * gate_share / max(tests, 1), "monitor": alpha * (1 - gate_share) / max(tests * looks, 1)}
    halves = {half: {item.id for item in suite.part(half)} for half in ("monitor", "gate")}
    found = []
    for name, items in groups.items():
        size = {half: sum(item.id in ids for item in items) for half, ids in halves.items()}
        rate, drops = _expected(items, baseline, flip_rate)
        groups_of = {half: _sizes(items, ids) for half, ids in halves.items()}
        clustered = any(len(groups_of[half]) < size[half] for half in size)
        if clustered:
            # As `judge` does then: betting on clusters.
            flips = np.concatenate([[1.0, -1.0], np.zeros(max(0, round(2 / max(rate, 1e-3)) - 2))])
            hard = {half: _betting(flips, groups_of[half], levels[half], power) for half in size}
        else:
            hard = {half: _mcnemar(size[half], rate, levels[half], power) for half in size}
        fine: dict[str, float | None] = {
            half: _betting(drops, groups_of[half], levels[half], power) if soft[name] else None for half in size
        }
        # A drop as large as the tolerance needs as many flips at least.
        needed = None
        if not clustered and levels["gate"] > 0:
            needed = items_needed(tolerance, flip_rate=max(rate, tolerance), alpha=levels["gate"], power=power)
        found.append(
            Reach(
                capability=name,
                gate_items=size["gate"],
                monitor_items=size["monitor"],
                flip_rate=rate,
                spread=float(drops.std()) if soft[name] else None,
                gate=hard["gate"],
                monitor=hard["monitor"],
                gate_soft=fine["gate"],
                monitor_soft=fine["monitor"],
                items_for_tolerance=needed,
            )
        )
    return found


def unplanned(suite: Suite) -> list[str]:
    """A line for each capability that is judged without right answers, so that `reach` says nothing of it."""
    gate = {item.id for item in suite.part("gate")}
    found: dict[tuple[str, str], int] = {}
    for item in suite.items:
        if item.judged and item.kind in ("text", "open"):
            key = (item.capability, item.kind)
            found[key] = found.get(key, 0) + (item.id in gate)
    lines = []
    for (name, kind), items in found.items():
        if kind == "text":
            lines.append(f"{name}: bits per byte of {items} gate texts; what they prove depends on how they vary")
        else:
            bound = f"{REPLIES_TIMES_DRIFT / items:.2g} nats a token" if items else "nothing"
            lines.append(
                f"{name}: drift of {items} gate replies, which rule out about {bound} where there is none "
                f"({REPLIES_TIMES_DRIFT:g} / items, at α = 0.05)"
            )
    return lines


def _sizes(items: list[Item], half: set[str]) -> list[int]:
    """Items of each cluster in a half, one for an item that has none."""
    return list(
        Counter((item.cluster is not None, item.cluster or item.id) for item in items if item.id in half).values()
    )


def _mcnemar(items: int, flip_rate: float, alpha: float, power: float) -> float:
    """The smallest drop; where it is more than expected flips can make, more items flip, all of them lost."""
    if alpha == 0:
        return math.inf
    found = smallest_drop(items, flip_rate=flip_rate, alpha=alpha, power=power)
    if math.isfinite(found) or not math.isfinite(smallest_drop(items, flip_rate=1.0, alpha=alpha, power=power)):
        return found
    low, high = flip_rate, 1.0
    while high - low > 1e-4:
        middle = 0.5 * (low + high)
        proven = math.isfinite(smallest_drop(items, flip_rate=middle, alpha=alpha, power=power))
        low, high = (low, middle) if proven else (middle, high)
    return high


def _betting(drops: NDArray[np.float64], sizes: list[int], alpha: float, power: float) -> float:
    if not sizes or alpha == 0:
        return math.inf
    return smallest_betting_drop(drops, sum(sizes), sizes=sizes, correlation=CORRELATION, alpha=alpha, power=power)


def _expected(items: list[Item], baseline: Record | None, flip_rate: float) -> tuple[float, NDArray[np.float64]]:
    """The flip rate, and drops in probability that show the spread to expect."""
    if baseline is not None:
        known = [(item, baseline.by_id[item.id]) for item in items if item.id in baseline.by_id]
        sure = [
            (item, old) for item, old in known if isinstance(item, (ChoiceItem, ContinuationItem)) and old.p is not None
        ]
        if sure:
            p = np.array([old.p for _, old in sure], dtype=float)
            edge = np.array([_edge(item, old) for item, old in sure])
            lost, won = planned_flips(p, shift=0.0, noise=NOISE, edge=edge)
            return float((lost + won).mean()), planned_drops(p, shift=0.0, noise=NOISE)
    # Without probabilities: as if every item were in doubt by as much as makes that many flip.
    spread = np.concatenate([np.full(1, 0.5), np.full(1, -0.5), np.zeros(max(2, round(2 / flip_rate) - 2))])
    return flip_rate, spread


def _edge(item: ChoiceItem | ContinuationItem, outcome: Outcome) -> float:
    """Probability on the gold choice at which it is as likely as the best other choice, the others in proportion."""
    finite = [score for score in outcome.scores if score is not None]
    best = max(finite)
    weights = [math.exp(score - best) for score in finite]
    gold = item.gold if isinstance(item, ContinuationItem) else (item.gold,)
    others = [weight for place, weight in enumerate(weights) if place not in gold]
    share = max(others) / math.fsum(others) if math.fsum(others) > 0 else 1.0
    return min(max(share / (1 + share), 1e-6), 1 - 1e-6)
