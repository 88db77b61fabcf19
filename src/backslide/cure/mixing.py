"""How much old data goes into which batch: arithmetic of token counts. Pure, no torch.

A run's mix is a small frozen state. Each batch of new data makes `ratio / (1 − ratio)` old tokens due for each of its
own (then `ratio` of all tokens are old); old rows are added, one after the other, as long as that brings what was given
nearer to what is due. So the old tokens given are never further from those due than half of the longest old row, after
any batch and whatever the lengths are: no mean length is estimated, and the state holds all that a resumed run needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backslide.errors import ConfigError, DataError, shown

LADDER = (0.01, 0.05, 0.10, 0.25, 0.50)
"""What a ratio is raised to, step by step."""
MEND = "resume from another checkpoint, or begin anew"
"""Where the state in a checkpoint cannot be used."""


def check_ratio(ratio: float, most: float, name: str = "ratio") -> float:
    """The ratio itself, or `ConfigError` where it is no share in [0, most]."""
    for key, value, limit in (("most", most, 1.0), (name, ratio, most)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value <= limit or value >= 1:
            bound = f"at most {limit:g} (most)" if key == name and limit < 1 else "below 1"
            raise ConfigError(f"replay: {key} is {shown(value)}, a share of at least 0 and {bound} is needed (0.05)")
    return float(ratio)


def raised(ratio: float, most: float) -> float:
    """The next ratio of the ladder above `ratio`, and never above `most`."""
    return max(ratio, min(most, next((step for step in LADDER if step > ratio), most)))


@dataclass(frozen=True)
class Mix:
    """What one process of a run has mixed so far."""

    ratio: float
    """Share of old tokens among all, now."""
    batches: int = 0
    """Batches made so far."""
    new: int = 0
    """Tokens of new data in them."""
    old: int = 0
    """Tokens of old data in them."""
    due: float = 0.0
    """Tokens of old data that should be in them."""
    rows: int = 0
    """Old rows in them, which are the first that many of the stream."""
    pieces: tuple[tuple[int, float], ...] = ()
    """Each ratio, with the number of the first batch (from 0) that it holds for."""

    @classmethod
    def begin(cls, ratio: float) -> Mix:
        """The mix before the first batch."""
        return cls(ratio, pieces=((0, ratio),))

    @property
    def share(self) -> float:
        """Old tokens as a share of all so far; 0 where there were none."""
        return self.old / (self.old + self.new) if self.old else 0.0

    def after(self, new: int, length: Callable[[int], int]) -> Mix:
        """The mix after a batch of `new` tokens; the old rows to add to it are `range(self.rows, mix.rows)`.

        Args:
            new: tokens of new data in the batch, at least 0.
            length: tokens, at least 1, of each row of the stream, by its place in it (from 0).
        """
        due = self.due + new * (self.ratio / (1 - self.ratio))
        old, rows = self.old, self.rows
        while old + (size := length(rows)) / 2 <= due:
            old, rows = old + size, rows + 1
        return dataclasses.replace(self, batches=self.batches + 1, new=self.new + new, old=old, due=due, rows=rows)

    def at(self, ratio: float) -> Mix:
        """The mix with another ratio from the next batch on. What is due already is not changed by it."""
        if ratio == self.ratio:
            return self
        kept = tuple(piece for piece in self.pieces if piece[0] < self.batches)
        return dataclasses.replace(self, ratio=ratio, pieces=(*kept, (self.batches, ratio)))

    def to_dict(self) -> dict[str, Any]:
        """The mix as JSON can hold it, to the last bit."""
        return {**dataclasses.asdict(self), "pieces": [list(piece) for piece in self.pieces]}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], place: str) -> Mix:
        """What `to_dict` gave. Raises `DataError`, which names `place`, where it is something else."""
        try:
            counts = {name: int(saved[name]) for name in ("batches", "new", "old", "rows")}
            pieces = tuple((int(batch), float(ratio)) for batch, ratio in saved["pieces"])
            mix = cls(ratio=float(saved["ratio"]), due=float(saved["due"]), pieces=pieces, **counts)
        except (KeyError, TypeError, ValueError) as bad:
            why = f"{type(bad).__name__}: {bad}"
            raise DataError(f"{place}: not a state of replay: {why}; {MEND}") from None
        if min(counts.values()) < 0 or not 0 <= mix.ratio < 1 or not 0 <= mix.due < float("inf") or not pieces:
            raise DataError(f"{place}: not a state of replay: {shown(dict(saved))}; {MEND}")
        return mix


class Stream:
    """The old rows in the order in which one process gets them: pass after pass, each shuffled anew from the seed.

    All processes go through the same passes, and each takes every `world`-th row, from its `rank` on.

    Args:
        size: number of old rows, at least 1.
        seed: of the order.
        world: number of processes.
        rank: of this one, from 0.
    """

    def __init__(self, size: int, seed: int, *, world: int = 1, rank: int = 0) -> None:
        self._size, self._seed, self._world, self._rank = size, seed, world, rank
        self._pass, self._order = -1, np.zeros(0, np.int64)

    def index(self, place: int) -> int:
        """Which row is at `place` (from 0) of this process's stream; a number below `size`."""
        number, within = divmod(place * self._world + self._rank, self._size)
        if number != self._pass:
            # A generator of its own: the training's random numbers stay as they are.
            self._order = np.random.default_rng([self._seed, number]).permutation(self._size)
            self._pass = number
        return int(self._order[within])
