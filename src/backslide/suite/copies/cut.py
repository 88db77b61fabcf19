"""Items → probes: words, numbers and names of each, long ones in pieces, and the items most like it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backslide.suite.copies.probe import NEAR, PASSAGE, Probe, Sibling
from backslide.suite.copies.words import is_character, is_number, words
from backslide.suite.item import AnswerItem, ChoiceItem, ContinuationItem, Item, TextItem, asked_of, right_of

PIECE = 48
"""Words of a piece of a long prompt; the last has up to twice as many, less one."""
BOILERPLATE = 5
"""Clusters that share a piece from which on it is boilerplate, such as an instruction, and no leak."""
SIBLINGS = 10
"""Other items, those that share most word pairs, that a copy must be told from."""
LIKE = 0.5
"""Share of an item's words from which on another one that has them is like it."""
HOLDERS = 200
"""Of the items that have a word pair, only so many are looked at; the nearest share rarer pairs, too."""

_LABEL_BEFORE = re.compile(r"\A\s*(?:question|q|problem|passage|context|text)\s*\d*\s*:", re.IGNORECASE)
_LABEL_AFTER = re.compile(r"\b(?:answer|a)\s*:\s*\Z", re.IGNORECASE)
_WEAK = frozenset({
    "an", "and", "at", "false", "he", "in", "is", "it", "no", "not", "of", "on", "or", "she", "the", "they", "to",
    "true", "we", "yes", "you",
})  # fmt: skip
# A capital in the middle of a sentence.
_NAME = re.compile(r"(?<=[\w,;] )[^\W\d_a-z]\w*")


@dataclass(frozen=True)
class Probes:
    """All probes of a suite."""

    all: tuple[Probe, ...]
    vocabulary: dict[str, int]
    """Number of each word, from 1."""


def probes_of(items: Sequence[Item]) -> Probes:
    """Make the probes of items. An item without a letter, a digit or an emoji has none."""
    vocabulary: dict[str, int] = {}
    made: dict[tuple[object, ...], Probe] = {}
    for place, item in enumerate(items):
        for probe in _cut(item, vocabulary):
            held = made.setdefault((probe.prompt, probe.answers, probe.piece), probe)
            held.reach = max(held.reach, probe.reach)
            if place not in held.items[-1:]:
                held.items.append(place)
    clusters = [item.cluster or item.id for item in items]
    # A piece that all have is no part of any.
    probes = tuple(p for p in made.values() if not p.piece or len({clusters[i] for i in p.items}) < BOILERPLATE)
    _find_siblings(probes, clusters)
    return Probes(probes, vocabulary)


def _cut(item: Item, vocabulary: dict[str, int]) -> Iterator[Probe]:
    def number(found: Sequence[str]) -> tuple[int, ...]:
        return tuple(vocabulary.setdefault(word, len(vocabulary) + 1) for word in found)

    text, right, beside = _parts(item)
    found = words(text)
    answers = [said for said in map(words, right) if said]
    names = {word for name in _NAME.findall(text) for word in words(name)}
    pieces = max(len(found) // PIECE, 1) if found else 0
    for piece in range(pieces):
        part = found[piece * PIECE : (piece + 1) * PIECE if piece + 1 < pieces else None]
        everything = {*part, *(word for said in answers for word in said)}
        yield Probe(
            items=[],
            prompt=number(part),
            piece=pieces > 1,
            answers=tuple(dict.fromkeys(map(number, answers))) if pieces == 1 else (),
            reach=NEAR + min(beside, 2 * PIECE),
            length=len(part) - sum(map(is_character, part)) / 2,
            numbers=frozenset(number([word for word in everything if is_number(word)])),
            names=frozenset(number([word for word in part if word in names])),
            weak=frozenset(
                number([word for word in everything if word in _WEAK or (len(word) == 1 and word.isalpha())])
            ),
        )


def _parts(item: Item) -> tuple[str, tuple[str, ...], int]:
    """Prompt or text, right answers, and how many words the choices have."""
    if isinstance(item, TextItem):
        return item.text, (), 0
    bare = _LABEL_AFTER.sub("", _LABEL_BEFORE.sub("", asked_of(item)))
    prompt = bare if words(bare) else asked_of(item)
    if isinstance(item, ContinuationItem):
        if not words(prompt):
            # Nothing stands in front: what is compared are whole texts, of which the first right one is looked for.
            return (right_of(item) or item.continuations)[0], (), 0
        return prompt, right_of(item), 0
    if isinstance(item, ChoiceItem):
        # A letter before each choice is a word as well.
        return prompt, (item.choices[item.gold],), sum(len(words(choice)) + 1 for choice in item.choices)
    # A pattern is no text that could be looked for.
    return prompt, () if isinstance(item, AnswerItem) and item.match == "regex" else right_of(item), 0


def _find_siblings(probes: Sequence[Probe], clusters: Sequence[str]) -> None:
    pairs = [_pairs(probe) for probe in probes]
    holders: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, found in enumerate(pairs):
        for pair in found:
            holders[pair].append(place)
    for place, probe in enumerate(probes):
        shared: Counter[int] = Counter()
        for pair in pairs[place]:
            shared.update(holders[pair][:HOLDERS])
        del shared[place]
        # Of a passage that several questions share, what they share counts.
        own = {clusters[i] for i in probe.items} if probe.length >= PASSAGE else set()
        siblings = []
        for other, _ in shared.most_common(SIBLINGS):
            sibling = probes[other]
            if own and own & {clusters[i] for i in sibling.items}:
                continue
            begins = {pairs[other][pair] - at for pair, at in pairs[place].items() if pair in pairs[other]}
            texts = [sibling.prompt + answer for answer in sibling.answers or ((),)]
            overlap = max(probe.overlap(text, begin) for text in texts for begin in sorted(begins)[:4])
            telling = {*probe.prompt, *probe.answers[:1][0]} if probe.answers else set(probe.prompt)
            if overlap >= LIKE:
                siblings.append(Sibling(overlap, frozenset(telling.difference(*texts))))
        probe.siblings = tuple(siblings)


def _pairs(probe: Probe) -> dict[tuple[int, int], int]:
    """Each pair of words that stand side by side in the prompt, and where it stands first."""
    found: dict[tuple[int, int], int] = {}
    for place, pair in enumerate(zip(probe.prompt, probe.prompt[1:], strict=False)):
        found.setdefault(pair, place)
    return found
