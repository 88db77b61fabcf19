"""A probe: what is searched for of an item, and when the words of a text are a copy of it.

A probe is the prompt or the text of an item, as words, with the answers that are right. A long one is cut into several
probes, of which each is enough: who was trained on a third of a passage was trained on it.

**How much must be there.** Of a copy in which each word was changed with probability 0.1, Binomial(n, 0.9) of n words
are left. All but ceil(n / 4) are left with probability 0.97 or more for every n from ten on. Of fewer words one in ten
is none; all but one must be there.

**Order counts.** The words that are left are the longest common subsequence of the probe and a window of its length, so
a text that holds the same words elsewhere is no copy.

**Templates.** "What is the capital of France?" and the same of Spain share most words, and are two items. So the
numbers and names of a prompt decide, its answer does, and a copy must have more of the item's words than each other
item of the suite has, or the very words that the other lacks (`Probe.siblings`). The shorter the prompt, the more of
this is asked for: see `Probe.find`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

ALONE = 7
"""Words of a prompt from which on it occurs, word for word, hardly by chance."""
SHORT = 10
"""Words of a prompt below which one word may differ, and only beside the right answer."""
LONG = 20
"""Words of a prompt from which on it needs no answer beside it."""
PASSAGE = 32
"""Words of a prompt from which on it is a passage, in which no single number decides."""
NEAR = 12
"""Words that may stand between a prompt and its answer, beside the choices."""
PLACES = 200
"""Places of one text at which a near copy is looked for; exact ones are looked for at all."""
NEXT = 4
"""The same where the prompt is not there word for word, or where the answer is a word such as "yes"."""


@dataclass(frozen=True)
class Copy:
    """Words of a text that are a copy of a probe."""

    start: int
    """Place of the first word in the text."""
    stop: int
    """Place behind the last."""
    overlap: float
    """Share of the probe's words, its answer's included, that are there in order."""
    exact: bool
    """Whether prompt and answer are there word for word."""


@dataclass(frozen=True)
class Sibling:
    """Another item of the suite that is much like a probe's."""

    overlap: float
    """Share of the probe's words that the sibling has in order."""
    telling: frozenset[int]
    """Words of the probe that the sibling lacks."""


@dataclass(eq=False)
class Probe:
    """Words, each by its number in the suite's vocabulary, that are searched for."""

    items: list[int]
    """Places of the items in the suite; items with equal words share a probe."""
    prompt: tuple[int, ...]
    piece: bool
    """Whether it is a part of a longer prompt."""
    answers: tuple[tuple[int, ...], ...]
    """Each right answer; none where there is no answer to look for."""
    reach: int
    """Words that may stand between prompt and answer: `NEAR`, and those of the choices."""
    length: float
    """Words of the prompt; a character of a script without spaces counts half a word."""
    numbers: frozenset[int]
    """Which words of prompt and answers are numbers."""
    names: frozenset[int]
    """Which words of the prompt are names, by their capitals."""
    weak: frozenset[int]
    """Which words of the answers are in every text, such as "yes"."""
    siblings: tuple[Sibling, ...] = ()
    """The other items of the suite that are most like this one."""

    @property
    def short(self) -> bool:
        """Whether the prompt by itself occurs by chance."""
        return self.length < SHORT

    def find(self, text: Sequence[int], begins: Iterable[int], *, every: bool = False) -> list[Copy]:
        """The best copy of the probe in a text.

        Args:
            text: numbers of words; 0 for one that no item has.
            begins: places near which the copy would begin; below 0 where its first words are cut off.
            every: find the best of each place instead.

        Returns:
            An exact copy where there is one; else a near copy, which is nearer than the siblings, has the numbers of a
            prompt of fewer than `PASSAGE` words, and besides:

            - from `LONG` words on, or without answers to look for: all but a quarter of the prompt's words;
            - from `SHORT` words on: the same and two thirds of the answer, or the whole prompt (from 15 words on: all
              but one of its words);
            - of a shorter prompt, all words and two thirds of the answer, which from `ALONE` words on may lack where it
              is short beside the prompt; or all but one word that is no name, and the whole answer (of a long one
              three quarters);

            A short prompt without answers has exact copies only.
        """
        found: list[Copy] = []
        looked: list[int] = []
        for begin in sorted(begins):
            if not self._verbatim(text, begin):
                # The window around the last place covers this one as well.
                if len(looked) == PLACES or (looked and abs(begin - looked[-1]) <= 2):
                    continue
                looked.append(begin)
            copy = self._copy(text, begin)
            if copy is None:
                continue
            if not found or (every and copy.start >= found[-1].stop):
                found.append(copy)
            elif (copy.exact, copy.overlap) > (found[-1].exact, found[-1].overlap):
                found[-1] = copy
            if copy.exact and not every:
                break
        return found

    def overlap(self, text: Sequence[int], begin: int) -> float:
        """Share of the probe's words, its answer's included, that are in `text` near the place `begin`."""
        kept = self._prompt(text, begin)[0]
        answer, length, _, _ = self._answer(text, max(begin, 0), min(begin + len(self.prompt), len(text)), self.reach)
        return (kept + answer) / (len(self.prompt) + length)

    def _copy(self, text: Sequence[int], begin: int) -> Copy | None:
        size = len(self.prompt)
        kept, verbatim, window = self._prompt(text, begin)
        if size - kept > self._may_differ:
            return None
        start, stop = max(begin, 0), min(begin + size, len(text))
        answer, length, first, last = self._answer(text, start, stop, self.reach if verbatim else NEXT)
        overlap = (kept + answer) / (size + length)
        exact = verbatim and answer == length and (not length or last - first == length)
        if not exact:
            if self._may_be_a_sibling(overlap, text[max(min(start, first) - 2, 0) : max(stop, last) + 2]):
                return None
            if self.length < PASSAGE and not _subsequence([w for w in self.prompt if w in self.numbers], window):
                return None
            if not self._enough(size - kept, answer, length, window):
                return None
        return Copy(min(start, first), max(stop, last), overlap, exact)

    @property
    def _may_differ(self) -> int:
        if self.short:
            return int(bool(self.answers) and self.length >= 4)
        return -int(-self.length // 4)

    def _enough(self, lost: int, answer: int, length: int, window: Sequence[int]) -> bool:
        """Whether a near copy, of which `lost` words of the prompt and some of the answer's `length` lack, is one."""
        answered = 3 * answer >= 2 * length
        if self.short:
            if lost == 0:
                # Of a question such as "Which of these sentences is right?" the answer is most.
                return answered or (self.length >= ALONE and 3 * length <= len(self.prompt))
            return 4 * answer >= (3 if length >= SHORT else 4) * length and self._lacks_no_name(window)
        if self.length < LONG:
            return answered or lost <= (self.length >= 1.5 * SHORT)
        return True

    def _may_be_a_sibling(self, overlap: float, around: Sequence[int]) -> bool:
        """Whether the words are no more like this item than another of the suite, and lack what tells the two apart."""
        near = [sibling for sibling in self.siblings if overlap <= sibling.overlap]
        return any(not sibling.telling or not sibling.telling.issubset(around) for sibling in near)

    def _lacks_no_name(self, window: Sequence[int]) -> bool:
        return any(
            word not in self.names and _subsequence(self.prompt[:i] + self.prompt[i + 1 :], window)
            for i, word in enumerate(self.prompt)
        )

    def _prompt(self, text: Sequence[int], begin: int) -> tuple[int, bool, Sequence[int]]:
        """Words of the prompt that are near `begin`, whether it is there word for word, and where was looked."""
        size = len(self.prompt)
        slack = 2 + size // 8
        window = text[max(begin - slack, 0) : max(begin + size + slack, 0)]
        if self._verbatim(text, begin):
            return size, True, window
        return _common(self.places, size, window), False, window

    def _verbatim(self, text: Sequence[int], begin: int) -> bool:
        if not 0 <= begin < len(text) or text[begin] != self.prompt[0]:
            return False
        return tuple(text[begin : begin + len(self.prompt)]) == self.prompt

    def _answer(self, text: Sequence[int], start: int, stop: int, reach: int) -> tuple[int, int, int, int]:
        """Words of the best answer that are before or behind the prompt, of how many, and from where to where."""
        if not self.answers:
            return 0, 0, start, stop
        best = (0, len(self.answers[0]), start, stop)
        for answer, places in zip(self.answers, self._answers_places, strict=True):
            size = len(answer)
            near = NEXT if self.weak.issuperset(answer) else reach
            end = min(stop + near + size, len(text))
            before = max(start - min(near, NEAR), 0)
            for offset, window in ((stop, tuple(text[stop:end])), (before, tuple(text[before:start]))):
                place = _index(window, answer)
                if place is not None:
                    return size, size, offset + place, offset + place + size
            kept = _common(places, size, text[stop:end])
            numbers = [word for word in answer if word in self.numbers]
            if kept * best[1] > best[0] * size and _subsequence(numbers, text[stop:end]):
                best = (kept, size, stop, end)
        return best

    @cached_property
    def places(self) -> Mapping[int, int]:
        """For each word of the prompt the places where it stands, as bits."""
        return _places(self.prompt)

    @cached_property
    def _answers_places(self) -> tuple[Mapping[int, int], ...]:
        return tuple(map(_places, self.answers))


def _places(words: Sequence[int]) -> dict[int, int]:
    bits: dict[int, int] = {}
    for place, word in enumerate(words):
        bits[word] = bits.get(word, 0) | 1 << place
    return bits


def _common(places: Mapping[int, int], size: int, text: Sequence[int]) -> int:
    """Length of the longest common subsequence of a text and `size` words, given by the bits of their places."""
    # Crochemore, Iliopoulos, Pinzon and Reid 2001, "A fast and practical bit-vector algorithm for the longest common
    # subsequence problem": a bit of `row` is 0 where the subsequence grows with the word of that place.
    row = full = (1 << size) - 1
    for word in text:
        match = places.get(word)
        if match:
            both = row & match
            row = ((row + both) | (row - both)) & full
    return size - row.bit_count()


def _subsequence(part: Iterable[int], text: Iterable[int]) -> bool:
    rest: Iterator[int] = iter(text)
    return all(word in rest for word in part)


def _index(text: tuple[int, ...], part: tuple[int, ...]) -> int | None:
    at = -1
    while True:
        try:
            at = text.index(part[0], at + 1)
        except ValueError:
            return None
        if text[at : at + len(part)] == part:
            return at
