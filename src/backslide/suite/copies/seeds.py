"""Where in a text a probe may be: runs of two to four of its words, found by their hashes with NumPy.

Each word of a probe begins a *seed*: the pair of it and the next word, or where that pair is frequent in the training
texts the run of three, or four. Only a text that holds a seed is compared word by word. A prompt of which every run is
frequent, such as "Which sentence is correct?", is sought by its answer instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backslide.suite.copies.probe import NEAR, Probe

Numbers = NDArray[np.uint64]
Places = NDArray[np.int64]

LONGEST = 4
"""Words of the longest seed."""
FREQUENT = 1e-4
"""Comparisons for each word of the training texts, from which on a seed is frequent."""
MANY = 12
"""Seeds of a probe, from which on a text must hold two of them."""
TRIES = 3
"""Places at which the prompt of an answer that was found is tried."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_TABLE_BITS = 22


@dataclass(frozen=True)
class Candidate:
    """A text that may hold a copy of a probe."""

    text: int
    """Number of the text in the batch."""
    probe: int
    begins: tuple[int, ...]
    """Places of the batch near which the copy would begin; below the text's first where its first words are cut off."""


@dataclass(frozen=True)
class Seeds:
    """The seeds of all probes, sorted by hash."""

    hashes: Numbers
    """Shape (seeds,), ascending, each once."""
    first: Places
    """Shape (seeds + 1,): where in `probe` and `offset` those of a seed begin."""
    probe: Places
    """Number of the probe that a seed is of."""
    offset: Places
    """Place of the seed in the prompt; -1: it is of an answer."""
    least: Places
    """Shape (probes,): seeds that a text must hold."""
    lengths: tuple[int, ...]
    """Words of the seeds that there are."""
    table: NDArray[np.bool_]
    """A first sieve: false where no seed has these leading bits."""
    probes: tuple[Probe, ...]

    @classmethod
    def of(cls, probes: Sequence[Probe], sample: Numbers) -> Seeds:
        """Choose the seeds of probes. `sample`: a batch of the texts, which shows what is frequent in them."""
        chosen = list(_choose(probes, sample))
        hashes = np.array([seed.hash for seed in chosen], np.uint64)
        order = np.argsort(hashes, kind="stable")
        distinct, first = np.unique(hashes[order], return_index=True)
        table = np.zeros(1 << _TABLE_BITS, bool)
        table[_leading(distinct)] = True
        probe = np.array([seed.probe for seed in chosen], np.int64)[order]
        return cls(
            hashes=distinct,
            first=np.append(first, len(hashes)),
            probe=probe,
            offset=np.array([seed.offset for seed in chosen], np.int64)[order],
            least=1 + (np.bincount(probe, minlength=len(probes)) >= MANY),
            lengths=tuple(sorted({seed.length for seed in chosen})),
            table=table,
            probes=tuple(probes),
        )

    def candidates(self, batch: Numbers, starts: Places) -> Iterator[Candidate]:
        """The texts of a batch that may hold a copy, probe by probe.

        Args:
            batch: numbers of the words of all texts, a 0 behind each text; shape (words,).
            starts: place of each text's first word; shape (texts,).
        """
        place, seed = self._seeds_in(batch)
        if not len(place):
            return
        count = self._holders(seed)
        rows = np.repeat(self.first[seed] - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))
        place, probe, offset = np.repeat(place, count), self.probe[rows], self.offset[rows]
        text = np.searchsorted(starts, place, side="right") - 1
        begin = np.where(offset < 0, place, place - offset)
        order = np.lexsort((begin, text, probe))
        probe, text, begin, offset = probe[order], text[order], begin[order], offset[order]
        edges = np.flatnonzero(np.diff(probe) | np.diff(text)) + 1
        groups = np.concatenate(([0], edges, [len(probe)]))
        enough = np.diff(groups) >= self.least[probe[groups[:-1]]]
        for group in np.flatnonzero(enough):
            low, high = groups[group], groups[group + 1]
            number, where = int(probe[low]), int(text[low])
            if offset[low] < 0:
                end = int(starts[where + 1]) - 1 if where + 1 < len(starts) else len(batch) - 1
                begins = self._near_answers(number, batch, begin[low:high], int(starts[where]), end)
            else:
                begins = tuple(dict.fromkeys(begin[low:high].tolist()))
            yield Candidate(where, number, begins)

    def load(self, batch: Numbers) -> float:
        """Comparisons that a batch would take, for each of its words."""
        return float(self._holders(self._seeds_in(batch)[1]).sum()) / max(len(batch), 1)

    def _holders(self, seed: Places) -> Places:
        return self.first[seed + 1] - self.first[seed]

    def _seeds_in(self, batch: Numbers) -> tuple[Places, Places]:
        """Where in a batch a seed is, and which."""
        places, seeds = [], []
        runs = _runs(batch)
        for length in self.lengths:
            hashed = runs[length - 1]
            near = np.flatnonzero(self.table[_leading(hashed)])
            found = np.searchsorted(self.hashes, hashed[near])
            found[found == len(self.hashes)] = 0
            same = self.hashes[found] == hashed[near]
            places.append(near[same])
            seeds.append(found[same])
        return np.concatenate(places), np.concatenate(seeds)

    def _near_answers(self, number: int, batch: Numbers, found: Places, low: int, high: int) -> tuple[int, ...]:
        """Where a prompt may begin that belongs to answers at `found`, by the words that it has there."""
        probe = self.probes[number]
        size = len(probe.prompt)
        begins: dict[int, None] = {}
        for answer in dict.fromkeys(found.tolist()):
            votes: dict[int, int] = {}
            first = max(answer - probe.reach - size, low)
            for place, word in enumerate(batch[first : min(answer + 2 * NEAR + size, high)].tolist(), start=first):
                bits = probe.places.get(word, 0)
                while bits:
                    begin = place - (bits & -bits).bit_length() + 1
                    votes[begin] = votes.get(begin, 0) + 1
                    bits &= bits - 1
            best = sorted(votes, key=lambda begin: (-votes[begin], abs(begin + size - answer)))
            begins.update(dict.fromkeys(best[:TRIES]))
        return tuple(begins)


def _leading(hashes: Numbers) -> Places:
    bits: Places = (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)
    return bits


def _runs(words: Numbers) -> list[Numbers]:
    """Hashes of the runs of 1, 2, … `LONGEST` words from each place; 0 for a run that holds a 0."""
    found = []
    run, known = words.copy(), words != 0
    for length in range(1, LONGEST + 1):
        if length > 1:
            following = words[length - 1 :]
            run = run[: len(following)] * _FACTOR + following
            known = known[: len(following)] & (following != 0)
        mixed = (run ^ (run >> np.uint64(29))) * _FACTOR + np.uint64(length)
        mixed = (mixed ^ (mixed >> np.uint64(32))) * _FACTOR
        found.append(np.where(known, mixed | np.uint64(1), np.uint64(0)))
    return found


class _Seed(NamedTuple):
    """A run of words that is looked for."""

    hash: np.uint64
    probe: int
    offset: int
    length: int


def _choose(probes: Sequence[Probe], sample: Numbers) -> Iterator[_Seed]:
    """The seeds of each probe: of its prompt, or where these are all frequent of its answers."""
    joined = [word for probe in probes for line in (probe.prompt, *probe.answers) for word in (*line, 0)]
    runs = _runs(np.array(joined, np.uint64))
    loads = [_loads(ours, theirs) for ours, theirs in zip(runs, _runs(sample), strict=True)]
    limit = max(20.0, FREQUENT * len(sample))

    def rare(begin: int, size: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """Begin and length of the seeds of a line that are not frequent, and of the least frequent one."""
        found, least = set(), (float("inf"), 0, 1)
        for place in range(size):
            for length in range(min(2, size), min(LONGEST, size) + 1):
                first = begin + min(place, size - length)
                load = loads[length - 1][first]
                least = min(least, (load, first, length))
                if load <= limit:
                    found.add((first, length))
                    break
        return sorted(found), least[1:]

    at = 0
    for number, probe in enumerate(probes):
        begin = at
        found, least = rare(begin, len(probe.prompt))
        at += len(probe.prompt) + 1
        by_answer: list[list[tuple[int, int]]] = []
        for answer in probe.answers:
            by_answer.append(rare(at, len(answer))[0] if len(answer) > 1 and not found else [])
            at += len(answer) + 1
        if by_answer and all(by_answer):
            yield from (_Seed(runs[n - 1][i], number, -1, n) for line in by_answer for i, n in line)
        else:
            yield from (_Seed(runs[n - 1][i], number, i - begin, n) for i, n in found or [least])


def _loads(ours: Numbers, theirs: Numbers) -> NDArray[np.int64]:
    """For each run of the probes how often it stands in the texts, times the probes that have it."""
    if not len(ours):
        return np.zeros(0, np.int64)
    distinct, which, holders = np.unique(ours, return_inverse=True, return_counts=True)
    place = np.searchsorted(distinct, theirs[theirs != 0])
    place[place == len(distinct)] = 0
    there = place[distinct[place] == theirs[theirs != 0]]
    loads = holders * np.bincount(there, minlength=len(distinct))
    return np.asarray(loads[which], np.int64)
