"""The bundled prompts: many, each unlike the others, and none of them an item of the repertoire."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from backslide.cure.prompts import bundled_prompts, prompts_of
from backslide.errors import ConfigError, DataError, SuiteError
from backslide.suite.copies.words import words
from backslide.suite.item import TextItem
from backslide.suite.leakage import find_leaks
from backslide.suite.suite import Suite

ROWS = bundled_prompts()


def test_there_are_many_of_many_kinds() -> None:
    kinds = Counter(row["kind"] for row in ROWS)
    assert len(ROWS) >= 600
    assert len(kinds) >= 25
    assert min(kinds.values()) >= 10
    # No kind makes up more than a tenth.
    assert max(kinds.values()) <= len(ROWS) / 10
    assert all(set(row) == {"kind", "prompt"} for row in ROWS)


def test_a_few_are_of_all_kinds_alike() -> None:
    kinds = len({row["kind"] for row in ROWS})
    few = bundled_prompts(2 * kinds + 1)
    counted = Counter(row["kind"] for row in few)
    assert len(counted) == kinds and sorted(counted.values()) == [2] * (kinds - 1) + [3]
    assert [row for row in ROWS if row in few] == list(few), "in the order of the file"
    assert len(bundled_prompts(3)) == 3 and bundled_prompts(10**6) == ROWS
    assert [item.prompt for item in prompts_of(5).items] == [row["prompt"] for row in bundled_prompts(5)]  # type: ignore[union-attr]


def test_their_lengths_differ() -> None:
    lengths = sorted(len(words(row["prompt"])) for row in ROWS)
    assert lengths[0] >= 3 and lengths[-1] <= 80
    assert lengths[len(lengths) // 10] <= 8 and lengths[-len(lengths) // 10] >= 20
    assert all(row["prompt"] == row["prompt"].strip() for row in ROWS)


def test_no_two_are_alike() -> None:
    def runs(text: str) -> set[tuple[str, ...]]:
        said = words(text)
        return {tuple(said[place : place + 3]) for place in range(max(1, len(said) - 2))}

    assert len({" ".join(words(row["prompt"])) for row in ROWS}) == len(ROWS)
    known = [(row["prompt"], runs(row["prompt"])) for row in ROWS]
    alike = [
        (one, other)
        for place, (one, mine) in enumerate(known)
        for other, its in known[:place]
        if len(mine & its) > 0.6 * min(len(mine), len(its))
    ]
    assert alike == []


def test_they_do_not_begin_alike() -> None:
    # Families of one template would all begin with the same words.
    begins = Counter(tuple(words(row["prompt"])[:4]) for row in ROWS)
    assert begins.most_common(1)[0][1] <= 6


def test_they_hold_no_item_of_the_repertoire() -> None:
    suite = Suite.repertoire()
    assert find_leaks(suite, [(row["prompt"], row["prompt"]) for row in ROWS]) == ()
    # A short question is told by its answer beside it, which is not here: so not even the bare question.
    questions = {" ".join(words(item.prompt)) for item in suite.items if not isinstance(item, TextItem)}
    assert questions.isdisjoint(" ".join(words(row["prompt"])) for row in ROWS)
    assert "what is the capital of italy" in questions


def test_a_users_file_is_read_as_for_a_suite(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("How do magnets work?\n\nName a bird.\nname a bird\n", encoding="utf-8")
    made = prompts_of(tmp_path / "some.txt")
    assert [item.prompt for item in made.items] == ["How do magnets work?", "Name a bird."]  # type: ignore[union-attr]
    assert "was there before" in made.notes[0]
    (tmp_path / "some.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "Two\\nlines"}\n', encoding="utf-8")
    assert [item.prompt for item in prompts_of(str(tmp_path / "some.jsonl")).items] == ["Why?", "Two\nlines"]  # type: ignore[union-attr]


def test_a_number_that_is_none_is_refused_and_one_too_large_is_said(tmp_path: Path) -> None:
    for number in (0, -5, True, 2.5):
        with pytest.raises(ConfigError, match=f"prompts is {number!r}, a whole number from 1 is needed"):
            prompts_of(number)  # type: ignore[arg-type]
    made = prompts_of(10**6)
    assert len(made.items) == len(ROWS) and f"1000000 prompts were asked for, there are {len(ROWS)}" in made.notes[0]
    (tmp_path / "other.jsonl").write_text('{"question": "Why?"}\n', encoding="utf-8")
    with pytest.raises(SuiteError, match=r"other.jsonl:1: has no column 'prompt', only question; rename"):
        prompts_of(tmp_path / "other.jsonl")


def test_without_a_prompt_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompt was given"):
        prompts_of([])
    with pytest.raises(DataError, match="no usable prompt: .*empty"):
        prompts_of(["", "  "])
    (tmp_path / "none.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(SuiteError, match="is empty"):
        prompts_of(tmp_path / "none.txt")
