"""Items that also occur in the training data: a held-out set that was trained on measures nothing.

`find_leaks` goes once over the training texts, in memory that depends on the suite and not on them. What is searched
for of an item and what counts as a copy of it stands in `backslide.suite.copies.probe`; `docs/suites.md` has it in
words, with what was measured.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from backslide.errors import number_of
from backslide.suite.copies.cut import probes_of
from backslide.suite.copies.probe import ALONE, Copy, Probe
from backslide.suite.copies.seeds import Numbers, Seeds
from backslide.suite.copies.words import words
from backslide.suite.item import Item, asked_of
from backslide.suite.suite import Suite

PLACES = 3
"""Places that are listed of an item."""
BATCH = 200_000
"""Words that are looked through at a time."""
BLOCK = 1 << 18
"""Characters of a text that are taken at a time."""
OVERLAP = 1 << 13
"""Characters that a block of a text shares with the next, so that a copy lies whole in one of them."""
LOAD = 0.5
"""Comparisons for each word of the texts, above which rarer seeds are chosen."""
SAMPLE = 4
"""Batches that seeds are chosen by."""
EXCERPT = 160
"""Characters of an excerpt."""
LABEL = 2
"""Words, such as "User:" or "Question 3:", that may stand before a short text that is a line of its own."""


class Passage(NamedTuple):
    """A text of the training data."""

    place: str
    """Where it is: `FILE:LINE`, or whatever tells the user."""
    text: str
    line: int | None = None
    """Number of its first line in the file `place`, where the text is lines of that file."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """An item that is also in the training data."""

    item: str
    """The item's id."""
    capability: str
    item_place: str
    """File and line of the item, or the suite's name where it was not read from a file."""
    place: str
    """Where it is in the training data."""
    kind: Literal["exact", "near"]
    """`exact`: word for word, case and punctuation aside; `near`: some words differ, or the answer is not beside it."""
    overlap: float
    """Share of the item's words (of a long one: of the piece that was found) that are there in order, in (0, 1]."""
    asked: str
    """The item's text, cut. Both excerpts are untrusted text."""
    found: str
    """The training text, cut."""

    def to_dict(self) -> dict[str, Any]:
        """The leak as JSON can hold it."""
        return dataclasses.asdict(self)


def counted(leaks: Iterable[Leak]) -> str:
    """How many items leaked, in words: "1 item", "3 items"."""
    return number_of(len({leak.item for leak in leaks}), "item")


def find_leaks(
    suite: Suite | Iterable[Item], texts: Iterable[Passage | tuple[str, str]], *, places: int = PLACES
) -> tuple[Leak, ...]:
    """Find the items of which the texts hold a copy.

    Args:
        suite: the suite, or its items.
        texts: place and text of each training example; read once, a few at a time.
        places: how many places of an item are listed, exact copies first; further ones are not looked for.

    Returns:
        The leaks in the suite's order, those of an item in the order of the texts. Items without a letter, a digit or
        an emoji cannot be found.
    """
    if not isinstance(suite, Suite):
        suite = Suite("items", tuple(suite))
    search = _Search(suite, places)
    batch: list[Passage] = []
    size = 0
    for row in texts:
        for block in _blocks(Passage(*row)):
            batch.append(block)
            size += len(block.text)
            # A word and the space behind it are six characters or so; of a script without spaces one.
            if size >= 6 * BATCH:
                search.through(batch)
                batch, size = [], 0
    if batch:
        search.through(batch)
    return search.leaks()


class _Search:
    def __init__(self, suite: Suite, places: int) -> None:
        self._suite, self._places = suite, places
        probes = probes_of(suite.items)
        self._probes, self._numbers = probes.all, probes.vocabulary
        self._seeds: Seeds | None = None
        self._sample = np.zeros(0, np.uint64)
        self._load = LOAD
        self._found: dict[int, dict[str, Leak]] = defaultdict(dict)
        self._full: set[int] = set()

    def through(self, batch: list[Passage]) -> None:
        """Look through some texts."""
        if not self._probes:
            return
        number = self._numbers.get
        joined: list[int] = []
        starts = []
        for passage in batch:
            starts.append(len(joined))
            joined += [number(word, 0) for word in words(passage.text)]
            joined.append(0)
        known = np.array(joined, np.uint64)
        for candidate in self._seeds_for(known).candidates(known, np.array(starts, np.int64)):
            probe = self._probes[candidate.probe]
            if self._full.issuperset(probe.items):
                continue
            first = starts[candidate.text]
            last = starts[candidate.text + 1] if candidate.text + 1 < len(starts) else len(joined)
            passage = batch[candidate.text]
            begins = [begin - first for begin in candidate.begins]
            # Each has a line of its own, or only one of them stands by itself.
            every = passage.line is not None or _must_stand_alone(probe)
            for copy in probe.find(joined[first : last - 1], begins, every=every):
                self._note(probe, passage, copy)

    def _seeds_for(self, batch: Numbers) -> Seeds:
        """The seeds, chosen by the first texts, and anew where others turn up in which they are frequent."""
        if self._seeds is None or self._seeds.load(batch) > self._load:
            self._sample = np.concatenate((self._sample[-SAMPLE * len(batch) :], batch))
            self._seeds = Seeds.of(self._probes, self._sample)
            self._load = max(LOAD, 2 * self._seeds.load(batch))
        return self._seeds

    def _note(self, probe: Probe, passage: Passage, copy: Copy) -> None:
        wanted = [number for number in probe.items if self._wants(number, copy)]
        if not wanted:
            return
        line, shown, alone = _locate(passage.text, copy)
        if _must_stand_alone(probe) and not alone:
            return
        place = passage.place if passage.line is None else f"{passage.place}:{passage.line + line}"
        for number in wanted:
            self._keep(number, copy, place, shown)

    def _wants(self, number: int, copy: Copy) -> bool:
        found = self._found[number].values()
        return len(found) < self._places or (copy.exact and any(leak.kind == "near" for leak in found))

    def _keep(self, number: int, copy: Copy, place: str, shown: str) -> None:
        item, found = self._suite.items[number], self._found[number]
        leak = Leak(
            item=item.id,
            capability=item.capability,
            item_place=self._suite.places.get(item.id, self._suite.name),
            place=place,
            kind="exact" if copy.exact else "near",
            overlap=copy.overlap,
            asked=_cut(asked_of(item)),
            found=shown,
        )
        # Two pieces of one text, or two blocks that overlap, are one place.
        other = found.get(place)
        if other is None and len(found) == self._places:
            del found[next(at for at in reversed(found) if found[at].kind == "near")]
        if other is None or (leak.kind, -leak.overlap) < (other.kind, -other.overlap):
            found[place] = leak
        if len(found) == self._places and all(leak.kind == "exact" for leak in found.values()):
            self._full.add(number)

    def leaks(self) -> tuple[Leak, ...]:
        """All that was found."""
        return tuple(leak for number in sorted(self._found) for leak in self._found[number].values())


def _must_stand_alone(probe: Probe) -> bool:
    """Whether these are a few words without an answer to tell them by, a copy only as a line of their own."""
    return probe.length < ALONE and not probe.answers


def _blocks(passage: Passage) -> Iterator[Passage]:
    """The text in blocks of bounded size, which overlap, cut between words where there is a space."""
    text, start, line = passage.text, 0, passage.line
    while len(text) - start > BLOCK:
        stop = start + BLOCK
        space = max(text.rfind(" ", stop - OVERLAP // 2, stop), text.rfind("\n", stop - OVERLAP // 2, stop))
        stop = space if space > 0 else stop
        yield Passage(passage.place, text[start:stop], line)
        behind = stop - OVERLAP
        space = max(text.find(" ", behind, stop), behind)
        if line is not None:
            line += text.count("\n", start, space)
        start = space
    yield Passage(passage.place, text[start:] if start else text, line)


def _locate(text: str, copy: Copy) -> tuple[int, str, bool]:
    """The line in which a copy begins (from 0), the text from there, and whether the copy is lines of its own."""
    lines = text.split("\n")
    first = before = 0
    while (behind := before + len(words(lines[first]))) <= copy.start:
        first, before = first + 1, behind
    shown = lines[first][_char_of(lines[first], copy.start - before) :]
    for line in lines[first + 1 : first + EXCERPT]:
        shown += "\n" + line if len(shown) < EXCERPT else ""
    last = first
    while behind < copy.stop:
        last += 1
        behind += len(words(lines[last]))
    return first, _cut(shown), copy.start - before <= LABEL and behind == copy.stop


def _char_of(line: str, word: int) -> int:
    """Where about word number `word` of a line begins: words that lie over a space count as one."""
    count = 0
    for part in re.finditer(r"\S+", line):
        count += len(words(part[0]))
        if count > word:
            return part.start()
    return 0


def _cut(text: str) -> str:
    line = " ".join(text[: 8 * EXCERPT].split())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1].rstrip() + "…"
