"""What a measurement has found so far, in one process and over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from backslide.errors import RunError
from backslide.record import Outcome
from backslide.scoring.ranks import Ranks

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""

Keep = Callable[[Sequence[Outcome]], None]
"""Told outcomes as soon as they are found."""


@dataclass
class Work:
    """A measurement that is under way."""

    known: dict[str, Outcome]
    """Found by an earlier, interrupted measurement of the same weights."""
    keep: Keep
    progress: Progress | None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """Found so far, those taken over among them."""
    tokens: int = 0
    """Computed so far."""
    seconds: dict[frozenset[str], float] = field(default_factory=dict)
    """What each pack took."""
    _since: float = field(default_factory=time.perf_counter)

    def begin(self, name: str, total: int) -> Callable[[int], None]:
        """Start on a group of requests; gives what is to be called with the number done."""
        done = 0
        self._since = time.perf_counter()

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self.progress is not None:
                self.progress(name, done, total)

        return advance

    def take(self, items: Collection[str]) -> None:
        """Take over what is known of a pack."""
        self.outcomes |= {id: self.known[id] for id in items}

    def done(self, outcomes: Sequence[Outcome]) -> None:
        """A pack is measured."""
        self.outcomes |= {outcome.id: outcome for outcome in outcomes}
        now = time.perf_counter()
        self.seconds[frozenset(outcome.id for outcome in outcomes)] = now - self._since
        self._since = now
        self.keep(outcomes)


@contextmanager
def together(ranks: Ranks, work: Work) -> Iterator[None]:
    """Measure inside; on leaving every process has what all found, or all raise what one of them ran into."""
    if ranks.size == 1:
        yield
        return
    failed: Exception | None = None
    try:
        yield
    except Exception as bad:
        failed = bad
    told = ranks.gather(
        (work.outcomes, work.tokens, work.seconds, f"{type(failed).__name__}: {failed}" if failed else None)
    )
    if failed is not None:
        raise failed
    for rank, (outcomes, tokens, seconds, error) in enumerate(told):
        if error is not None:
            raise RunError(f"process {rank} could not measure its share: {error}")
        work.outcomes |= outcomes
        work.seconds |= seconds
        if ranks.split and rank != ranks.rank:
            work.tokens += tokens
