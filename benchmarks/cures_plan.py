"""Which runs the table of the cures is made of, and which of them are read together.

A point of the table is a `Run` whose seed is 0; the runs of the other seeds are that point again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "cures"
FORGETS = {"method": "lora", "rate": 2e-3, "rank": 16}
"""A setting that clearly forgets: what the cures are tried on."""
SHARES = (0.01, 0.05, 0.1, 0.25)
"""Of replayed tokens; the share of 0 is the run `FORGETS` itself."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the table."""

    group: str
    method: str = "lora"
    rate: float = 2e-3
    rank: int = 16
    steps: int = 30
    replay: float = 0.0
    source: str = "self"
    """Of what is replayed: `self`, the base's own replies, or `own`, texts of the original domain."""
    anchor: float = 0.0
    policy: str | None = None
    """Of a guard with five looks; None: no guard."""
    alpha: float | None = None
    """Place on the line from the base to what the run `FORGETS` of this seed left; None: the run's own end."""
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its file: the group, what differs from `FORGETS` in it, and the seed."""
        how = {
            "rate": f"{self.method}-{self.rate:g}",
            "rank": f"r{self.rank}",
            "steps": f"{self.steps}",
            "replay": f"{self.source}-{self.replay:g}",
            "anchor": f"{self.anchor:g}",
            "guard": f"{self.method}-{self.rate:g}-{self.policy}",
            "repair": f"{self.alpha}",
        }[self.group]
        return f"{self.group}-{how}-{self.seed}"


def runs() -> list[Run]:
    """All runs: two seeds of each point, then a third of those that a claim rests on."""
    made = []
    for seed in (0, 1):
        made += [Run(group="rate", **FORGETS, seed=seed)]
        made += [Run(group="replay", replay=share, seed=seed) for share in SHARES]
        made += [Run(group="rate", method="full", rate=rate, seed=seed) for rate in (1e-4, 5e-4, 2e-5, 1e-3)]
        made += [Run(group="rate", rate=rate, seed=seed) for rate in (1e-4, 5e-4, 5e-3)]
        made += [Run(group="steps", steps=steps, seed=seed) for steps in (10, 60)]
        made += [Run(group="repair", alpha=tenths / 10, seed=seed) for tenths in range(11)]
        made += [Run(group="anchor", anchor=weight, seed=seed) for weight in (0.1, 1.0)]
        made += [Run(group="rank", rank=rank, seed=seed) for rank in (4, 64)]
        made += [Run(group="replay", source="own", replay=share, seed=seed) for share in SHARES]
    made += [
        Run(group="guard", rate=5e-3, policy=policy, seed=seed)
        for seed in (0, 1)
        for policy in ("warn", "rollback", "auto")
    ]
    made += [Run(group="rate", **FORGETS, seed=2)]
    made += [Run(group="replay", replay=share, seed=2) for share in SHARES]
    made += [Run(group="rate", method="full", rate=rate, seed=2) for rate in (1e-4, 5e-4)]
    made += [Run(group="rate", rate=rate, seed=2) for rate in (1e-4, 5e-4)]
    made += [Run(group="steps", steps=steps, seed=2) for steps in (10, 60)]
    made += [Run(group="anchor", anchor=weight, seed=2) for weight in (1.0, 0.1)]
    made += [Run(group="repair", alpha=0.2, seed=2)]
    return made


REFERENCE = Run(group="rate", **FORGETS)
"""The point that forgets: replay 0, anchor 0, 30 steps, rank 16, α = 1."""

ALSO_AT = {Run(group="rate", rate=5e-4): (10, 60)}
"""Other steps of a run's training at which the KL to the base is measured, and nothing that the suites ask."""


def planned(**fixed: Any) -> list[Run]:
    """The plan's points that have these values, in the plan's order."""
    points = dict.fromkeys(replace(run, seed=0) for run in runs())
    return [point for point in points if all(getattr(point, name) == value for name, value in fixed.items())]


@dataclass(frozen=True)
class Heading:
    """Points that are read together, in the order of what varies."""

    group: str
    """Of its own points; others stand there for comparison."""
    name: str
    where: str
    """What all of the points have in common; may be empty."""
    points: Sequence[Run]
    label: Callable[[Run], str]
    without: Run | None
    """The run without the cure; None: the points are no cures."""

    @property
    def title(self) -> str:
        """Name and place."""
        return ", ".join(filter(None, (self.name, self.where)))


def headings() -> list[Heading]:
    """Of the whole table. The run that forgets stands under each heading that it is a point of."""
    unguarded = replace(REFERENCE, rate=5e-3)
    forgets, lora = (f"LoRA r = {REFERENCE.rank} at {rate:g}" for rate in (REFERENCE.rate, unguarded.rate))

    def varying(key: str, name: str, where: str, *more: Run, without: Run | None = REFERENCE, **fixed: Any) -> Heading:
        points = sorted([*planned(**fixed), *more], key=lambda point: getattr(point, key))
        share = key == "replay"
        return Heading(
            fixed["group"], name, where, points,
            lambda point: f"{100 * point.replay:g}%" if share else f"{getattr(point, key):g}", without,
        )  # fmt: skip

    line = sorted(planned(group="repair"), key=lambda point: point.alpha or 0.0)
    return [
        varying("rate", "Learning rate", f"LoRA r = {REFERENCE.rank}", group="rate", method="lora"),
        varying("rate", "Learning rate", "all weights", without=None, group="rate", method="full"),
        varying("rank", "Rank", f"LoRA at {REFERENCE.rate:g}", REFERENCE, group="rank"),
        varying("steps", "Steps", forgets, REFERENCE, group="steps"),
        varying("replay", "Replay of own replies", forgets, REFERENCE, group="replay", source="self"),
        varying("replay", "Replay of original text", forgets, REFERENCE, group="replay", source="own"),
        varying("anchor", "Anchor", forgets, REFERENCE, group="anchor"),
        Heading(
            "guard", "Guard", f"{lora}, five looks", [unguarded, *planned(group="guard")],
            lambda point: f"`{point.policy}`" if point.policy else "none", unguarded,
        ),
        Heading(
            "repair", "Repair", f"α on the line to {forgets}", [*line, REFERENCE],
            lambda point: "the run itself" if point.alpha is None else f"{point.alpha:g}", REFERENCE,
        ),
    ]  # fmt: skip
