"""A reply that repeats itself is seen; lists, poems and code, which repeat a little, are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backslide.cure.loops import loops

GOOD = [
    "",
    "No.",
    "The museum reopened in June after a fire. Most of the collection was saved, but the map room was lost.",
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
    "1. Wash the pot.\n2. Fill the pot with soil.\n3. Put the plant into the pot.\n4. Water the plant in the pot.",
    "for i in range(5):\n    for j in range(5):\n        print(i * j, end=' ')\n    print()",
    "| Train | cheap | slow |\n|-------|-------|------|\n| Plane | dear | fast |\n|-------|-------|------|",
    "I remember the sea.\nI remember the gulls.\nI remember my brother's coat.\nI remember the smell of tar.",
]


@pytest.mark.parametrize("text", GOOD)
@pytest.mark.parametrize("ended", [True, False])
def test_what_says_something_is_no_loop(text: str, ended: bool) -> None:
    assert not loops(text, ended=ended)


@pytest.mark.parametrize(
    "text",
    [
        "The answer is that the sea is salty." + " The sea is salty because of the salt." * 4,
        "A, B, C and then" + " so on" * 8,
        "Yes!" + "!" * 60,
        "|" + "---|" * 30,
        "\n".join(f"Point {n}. The quick brown fox jumps over the lazy dog again." for n in range(12)),
        "ha" * 50,
    ],
)
def test_a_loop_that_was_cut_off_is_seen(text: str) -> None:
    assert loops(text, ended=False)


def test_a_loop_that_ended_is_seen_where_it_is_most_of_the_text() -> None:
    line = "I am sorry, but I do not know what you would like me to say. "
    assert loops(line * 6, ended=True)
    # Three short words at the end of a poem that ended are no loop that would go on.
    assert not loops("And the bell said to the town: " + "ding dong " * 8, ended=True)


@given(
    st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six"]), min_size=1, max_size=9),
    st.integers(5, 12),
)
def test_any_passage_said_often_enough_is_a_loop(passage: list[str], times: int) -> None:
    text = " ".join(passage * times)
    assert loops(text, ended=False) or len(passage) * times < 12


@given(st.text(max_size=300), st.booleans())
def test_any_text_is_taken(text: str, ended: bool) -> None:
    assert loops(text, ended=ended) in (True, False)
