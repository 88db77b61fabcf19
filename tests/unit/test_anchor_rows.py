"""The anchor's rows: which places count, what is cut or left out, and in which order they are taken."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backslide.cure.anchor_rows import drawn, read_rows, tokenised
from backslide.data import TrainingData
from backslide.errors import DataError
from backslide.suite.item import ChoiceItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def predicted(row: dict[str, Any], max_length: int = 512, **tokenizer: Any) -> list[str]:
    """What follows each anchored place, up to the next place that is none."""
    made = tiny_tokenizer(**tokenizer)
    (found,) = tokenised(TrainingData.of([row]), made, max_length).rows
    runs: list[str] = []
    last = None
    for place in found.places:
        text = made.decode(found.tokens[place + 1]) if place + 1 < len(found.tokens) else "$"
        runs = [*runs[:-1], runs[-1] + text] if last == place - 1 else [*runs, text]
        last = place
    return runs


@pytest.mark.parametrize(
    ("row", "runs"),
    [
        ({"messages": [user("Hi?"), reply("Yes.")]}, ["Yes.<|end|>"]),
        ({"messages": [user("a"), reply("One"), user("b"), reply("Two")]}, ["One<|end|>", "Two<|end|>"]),
        ({"messages": [user("a"), reply("One"), user("unanswered")]}, ["One<|end|>"]),
        ({"messages": [{"role": "system", "content": "s"}, user("a"), reply("One")]}, ["One<|end|>"]),
        ({"messages": [user("a"), reply("One")], "ended": False}, ["One<|end|>"]),
        ({"prompt": "2+2=", "completion": "4, so"}, ["4, so$"]),
        ({"prompt": [user("a"), reply("One"), user("b")], "completion": [reply("Two")]}, ["Two<|end|>"]),
        ({"prompt": "", "completion": "abc"}, ["bc$"]),
        ({"text": "abc"}, ["bc$"]),
    ],
)
def test_the_places_are_those_of_what_is_replied(row: dict[str, Any], runs: list[str]) -> None:
    assert predicted(row) == runs


def test_without_a_chat_template_a_chat_is_text() -> None:
    assert predicted({"messages": [user("a"), reply("b")]}, chat=False) == ["ser: a\nAssistant: b$"]
    assert predicted({"prompt": [user("a")], "completion": [reply("b")]}, chat=False) == ["Assistant: b$"]


def test_rows_are_cut_and_those_without_a_reply_left_out() -> None:
    data = TrainingData.of([{"prompt": "abcd", "completion": "efgh"}, {"prompt": "a" * 9, "completion": "b"}])
    found = tokenised(data, tiny_tokenizer(), 6)
    (row,) = found.rows
    assert len(row.tokens) == 6 and row.places == (3, 4, 5)
    assert found.notes == (
        "1 of 1 rows cut at max_length = 6 tokens",
        "1 rows left out: no token of a reply within max_length = 6",
    )
    with pytest.raises(DataError, match="none of 2 rows has a token of a reply within max_length = 3; raise it"):
        tokenised(data, tiny_tokenizer(), 3)


@pytest.mark.parametrize(
    ("rows", "pattern"),
    [
        ([], "anchor rows: no usable text: there are none"),
        ([{"text": " "}], "anchor rows: no usable text: all 1 are empty"),
        ([{"text": "a"}, {"prompt": "a", "completion": "b"}], "anchor rows:2: is of the format prompt/completion"),
        (["abc"], "anchor rows:1: is str, an object with keys is needed"),
        ([{"txt": "a"}], "anchor rows:1: has the keys txt"),
        ([{"messages": [user("a")]}], "all 1 are empty"),
        ("nowhere.jsonl", "nowhere.jsonl: no such file"),
    ],
)
def test_bad_rows_are_told_in_a_line(rows: Any, pattern: str) -> None:
    with pytest.raises(DataError, match=pattern) as bad:
        read_rows(rows, None)
    assert "\n" not in str(bad.value)


def test_a_template_that_takes_no_such_turns_is_told_in_a_line() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must\nalternate') }}"
    data = TrainingData.of([{"messages": [user("a"), reply("b")]}])
    with pytest.raises(DataError, match="takes no messages of user, assistant: roles must alternate; mend or leave"):
        tokenised(data, tokenizer, 512)


def test_rows_that_hold_an_item_of_the_suite_are_left_out_all_of_them() -> None:
    asked = "Which of the seven hills of Rome did the ancient traders call their own?"
    item = ChoiceItem(id="x", capability="c", prompt=asked, choices=("The Aventine", "The Capitoline"), gold=0)
    suite = Suite("mine", (item,))
    leaked = {"messages": [user(asked), reply("The Aventine")]}
    clean = [{"messages": [user(f"What is {n} and one?"), reply(f"It is {n + 1}.")]} for n in range(4)]
    data, notes = read_rows([*clean[:2], *[leaked] * 5, *clean[2:]], suite)
    assert list(data.rows) == clean and notes == ["5 rows left out: they hold 1 item of the suite mine"]
    with pytest.raises(DataError, match="every row holds an item of the suite mine"):
        read_rows([leaked], suite)


@given(st.integers(0, 5), st.integers(1, 9), st.integers(1, 12), st.integers(1, 30))
def test_passes_over_all_rows(seed: int, size: int, count: int, batches: int) -> None:
    stream = [row for number in range(batches) for row in drawn(seed, number, size, count)]
    assert len(stream) == batches * size
    for start in range(0, len(stream) - count + 1, count):
        assert sorted(stream[start : start + count]) == list(range(count))
    seen = Counter(stream)
    assert max(seen.values()) - min(seen[row] for row in range(count)) <= 1


def test_the_order_depends_on_the_seed_and_on_the_pass() -> None:
    passes = [tuple(drawn(seed, number, 20, 20)) for seed in (0, 1) for number in (0, 1)]
    assert len(set(passes)) == 4 and passes[0] == tuple(drawn(0, 0, 20, 20))
