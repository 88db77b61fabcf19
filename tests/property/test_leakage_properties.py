"""Planted copies are found, whatever is around them, and case and punctuation change nothing."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backslide.suite.copies.probe import Probe, _common, _places
from backslide.suite.copies.words import words
from backslide.suite.item import AnswerItem, ChoiceItem, Item, OpenItem, TextItem, is_blank
from backslide.suite.leakage import find_leaks

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
MANY = settings(deadline=None)
# Few words, so that items share most of theirs; signs that are punctuation wherever they stand.
WORD = st.sampled_from([
    "a", "the", "of", "what", "is", "red", "blue", "seven", "city", "Oslo", "river", "12", "3+4", "don't", "naïve", "東京",
    "हिन्दी", "🙂", "long-winded",
])  # fmt: skip
PROSE = st.lists(WORD, min_size=1, max_size=30).map(" ".join)
FILLER = st.lists(WORD | st.sampled_from(["x", "\n", "", "other"]), max_size=40).map(" ".join)


@st.composite
def items(draw: st.DrawFn, text: st.SearchStrategy[str]) -> tuple[Item, ...]:
    made: list[Item] = []
    for number in range(draw(st.integers(1, 8))):
        fields: dict[str, Any] = {"id": str(number), "capability": "c", "cluster": draw(st.none() | st.just("k"))}
        prompt, right = draw(text), draw(text)
        match draw(st.sampled_from(["choice", "answer", "text", "open"])):
            case "choice":
                made.append(ChoiceItem(**fields, prompt=prompt, choices=(right, f"{right} not"), gold=0))
            case "answer":
                made.append(AnswerItem(**fields, prompt=prompt, answers=(right,)))
            case "text":
                made.append(TextItem(**fields, text=prompt))
            case _:
                made.append(OpenItem(**fields, prompt=prompt))
    return tuple(made)


def copy_of(item: Item) -> str:
    if isinstance(item, ChoiceItem):
        return f"{item.prompt}\n{item.choices[item.gold]}"
    if isinstance(item, AnswerItem):
        return f"{item.prompt}\n{item.answers[0]}"
    return item.text if isinstance(item, TextItem) else getattr(item, "prompt", "")


@MANY
@given(items(PROSE), FILLER, FILLER, st.randoms(use_true_random=False))
def test_a_planted_copy_is_found_word_for_word(
    suite: tuple[Item, ...], before: str, behind: str, rng: random.Random
) -> None:
    item = rng.choice(suite)
    texts = [("filler", behind), ("here", f"{before}\n{copy_of(item)}\n{behind}")]
    found = {(leak.item, leak.place): leak.kind for leak in find_leaks(suite, texts)}
    assert found.get((item.id, "here")) == "exact"


@MANY
@given(items(PROSE), FILLER, st.randoms(use_true_random=False))
def test_case_and_punctuation_change_nothing(suite: tuple[Item, ...], before: str, rng: random.Random) -> None:
    text = "\n".join([before, *(copy_of(item) for item in rng.sample(suite, len(suite) // 2 + 1))])
    other = (
        "".join(
            rng.choice([c.upper(), c.lower()]) + (rng.choice(["", ".", "!", " ;", "…"]) if c == " " else "")
            for c in text
        )
        .replace("don't", "don’t")
        .replace("DON'T", "DONT")
    )
    first, second = find_leaks(suite, [("here", text)]), find_leaks(suite, [("here", other)])
    assert [(leak.item, leak.kind, leak.overlap) for leak in first] == [
        (leak.item, leak.kind, leak.overlap) for leak in second
    ]


@MANY
@given(items(ANY.filter(lambda text: not is_blank(text))), st.lists(ANY, max_size=6))
def test_any_text_is_taken(suite: tuple[Item, ...], texts: list[str]) -> None:
    for leak in find_leaks(suite, [(str(i), text) for i, text in enumerate([*texts, *map(copy_of, suite)])]):
        assert leak.kind in ("exact", "near") and 0 < leak.overlap <= 1
        assert leak.kind == "near" or leak.overlap == 1


@given(ANY, ANY)
@example("1\n", "+2")
@example("\u0301", "e")
def test_the_words_of_lines_are_the_words_of_the_text(one: str, two: str) -> None:
    assert words(f"{one}\n{two}") == words(one) + words(two)
    assert words(one.upper().lower()) == words(one.upper().lower().casefold())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), max_size=30))
def test_the_bits_count_the_longest_common_subsequence(part: list[int], text: list[int]) -> None:
    # The textbook's table.
    table = [[0] * (len(text) + 1) for _ in range(len(part) + 1)]
    for i, one in enumerate(part):
        for j, two in enumerate(text):
            table[i + 1][j + 1] = table[i][j] + 1 if one == two else max(table[i][j + 1], table[i + 1][j])
    assert _common(_places(part), len(part), text) == table[-1][-1]


@settings(max_examples=30, deadline=None)
@given(st.integers(10, 64), st.integers(0, 10_000))
def test_copies_with_one_word_in_ten_changed_are_found(size: int, seed: int) -> None:
    rng = random.Random(seed)
    vocabulary = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400)]
    suite = [
        ChoiceItem(
            id=str(i),
            capability="c",
            prompt=" ".join(rng.choices(vocabulary, k=size)),
            choices=("yes sir", "no"),
            gold=0,
        )
        for i in range(40)
    ]
    changed = suite[7].prompt.split()
    for place in rng.sample(range(size), size // 10):
        changed[place] = rng.choice(vocabulary)
    text = " ".join([*rng.choices(vocabulary, k=90), *changed, "yes sir", *rng.choices(vocabulary, k=90)])
    assert {leak.item for leak in find_leaks(suite, [("here", text)])} == {"7"}


@pytest.mark.parametrize("begins", [(0,), (-5, 0, 3), (100, -100)])
def test_a_probe_is_looked_for_at_any_place(begins: tuple[int, ...]) -> None:
    probe = Probe(
        items=[0], prompt=(1, 2, 3, 4), piece=False, answers=((5,),), reach=12, length=4, numbers=frozenset(),
        names=frozenset(), weak=frozenset(),
    )  # fmt: skip
    found = probe.find([1, 2, 3, 4, 0, 5], begins)
    assert [(copy.start, copy.stop, copy.exact) for copy in found] == ([(0, 6, True)] if 0 in begins else [])
