"""Items and suites: what a file may hold, the one line on what it may not, hash, halves and matching."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backslide.errors import SuiteError
from backslide.suite import patterns
from backslide.suite.item import (
    AnswerItem,
    ChoiceItem,
    ContinuationItem,
    Item,
    Match,
    OpenItem,
    TextItem,
    is_blank,
    item_from_dict,
    seen,
)
from backslide.suite.matching import fold, matches, numbers
from backslide.suite.suite import Suite, half_of
from builders import choice

GOOD: dict[str, Any] = {
    "id": "a", "kind": "choice", "capability": "c", "prompt": "p", "choices": ["x", "y", "z", "w"], "gold": 0,
}  # fmt: skip
CONTINUATION: dict[str, Any] = {
    "id": "d", "kind": "continuation", "capability": "c", "contexts": [""], "continuations": [" x", " x", "y"], "gold": [],
}  # fmt: skip
GENERATION: dict[str, Any] = {"id": "e", "kind": "generation", "capability": "c", "prompt": "", "answers": ["12"]}
ANSWER: dict[str, Any] = {"id": "b", "kind": "answer", "capability": "c", "prompt": "p", "answers": ["12"]}


def changed(base: dict[str, Any] = GOOD, drop: str = "", **fields: Any) -> str:
    return json.dumps({key: value for key, value in {**base, **fields}.items() if key != drop}) + "\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "s.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{oops\n", "not JSON: .* at column 2"),
        ("[1]\n", r"is \[1\], a JSON object in braces is needed"),
        (changed(gold=4), r"gold is 4, but the item has 4 choices \(0-3\)"),
        (changed(gold=-1), r"gold is -1, but the item has 4 choices \(0-3\)"),
        (changed(gold=True), "gold is True, the index of a choice is needed"),
        (changed(gold="1"), "gold is '1', the index of a choice is needed"),
        (changed(gold=1.0), r"gold is 1\.0, the index"),
        (changed(drop="gold"), "has no gold, which an item of kind choice needs"),
        (changed(id="first"), r"the id 'first' was used before, at .*s\.jsonl:1"),
        (changed(id=7), "id is 7, text is needed"),
        (changed(id=" "), "id is empty"),
        (
            changed(kind="chioce"),
            "kind is 'chioce', one of choice, answer, text, open, continuation, generation is needed",
        ),
        (changed(kind=["choice"]), r"kind is \['choice'\], one of choice"),
        (changed(drop="kind"), "has no kind; one of choice, answer, text, open, continuation, generation is needed"),
        (changed(promt="p"), "unknown key 'promt' in an item of kind choice; did you mean 'prompt'"),
        (changed(drop="choices", choises=["x", "y"]), "unknown key 'choises' .*did you mean 'choices'"),
        (changed(zzz=1), "unknown key 'zzz' .*it takes id, capability, cluster, prompt, choices, gold"),
        (changed(prompt=""), "prompt is empty"),
        (changed(prompt=None), "prompt is None, text is needed"),
        (changed(prompt="\ud83d"), "prompt is .* half a surrogate pair"),
        (changed(choices=["x", "\ud83d"]), "choices is .* half a surrogate pair"),
        (changed(choices=["x"]), r"choices is \['x'\], of 1 entry; give at least 2"),
        (changed(choices=["x", "x"]), r"choices has 'x' twice, at 0 and 1 \(from 0\); change one, or leave it out"),
        (changed(choices=["x", "y", " x"]), r"choices has 'x' twice, to the eye, at 0 and 2 \(from 0\); change"),
        (
            changed(choices=["\u00e9", "e\u0301"]),
            r"choices has '\u00e9' twice, to the eye, at 0 and 1 \(from 0\); change",
        ),
        (changed(choices=["x", "x\u200b"]), r"choices has 'x' twice, to the eye, at 0 and 1"),
        (
            changed(choices=["x", "\u200b"]),
            r"choices has '\\u200b' at 1 \(from 0\), which is empty; fill it in, or leave",
        ),
        (changed(choices=["x", "\u2060\ufe0f \u3164"]), r"choices has .* at 1 \(from 0\), which is empty"),
        (changed(prompt="\u200b\ufeff"), r"prompt is empty, '\\u200b\\ufeff'; fill it in"),
        (changed(choices=["x", " "]), r"choices has ' ' at 1 \(from 0\), which is empty; fill it in, or leave it out"),
        (changed(choices="xy"), "choices is 'xy', a list of texts is needed"),
        (changed(choices=["x", 2]), r"choices is \['x', 2\], a list of texts is needed"),
        (changed(cluster=""), "cluster is empty"),
        (
            changed(id="../../x"),
            r"id is '\.\./\.\./x', which could lead out of a folder; leave out backslashes, and parts",
        ),
        (changed(id="a\nb"), r"id is 'a\\nb', with a line break or a control character; leave it out"),
        (
            changed(capability="../../x"),
            r"capability is '\.\./\.\./x', which could lead out of a folder; leave out backslashes, and parts",
        ),
        (changed(capability="a/../b"), r"capability is 'a/\.\./b', which could lead out of a folder"),
        (changed(capability="\x1b[31m"), r"capability is '\\x1b\[31m', with a line break or a control character"),
        (changed(id="x" * 301), r"id is 'x+\.\.\.x+', of 301 characters; give it 300 at most"),
        (changed(gold="x" * 10**6), r"gold is 'x{20,40}\.\.\.x{20,40}', the index of a choice is needed"),
        (
            changed(choices=["x", ["y" * 10**6]]),
            r"choices is \['x', \['y{20,40}\.\.\.y{20,40}'\]\], a list of texts is needed",
        ),
        (changed(**{"k" * 10**6: 1}), r"unknown key 'k{20,40}\.\.\.k{20,40}' in an item of kind choice"),
        (changed(ANSWER, answers=[]), r"answers is \[\], of 0 entries; give at least 1"),
        (
            changed(ANSWER, match="number", answers=["12", "zwei"]),
            r"answers has 'zwei' at 1 \(from 0\), which holds no number; write it in digits, or match by contains",
        ),
        (
            changed(ANSWER, match="contains", answers=["."]),
            r"answers has '\.' at 0 \(from 0\), which every reply would contain; leave it out",
        ),
        (changed(ANSWER, match="fuzzy"), "match is 'fuzzy', one of exact, number, contains, regex is needed"),
        (changed(CONTINUATION, gold=[3]), "gold has 3, but the item has 3 continuations, from 0"),
        (changed(CONTINUATION, gold=[True]), r"gold is \[True\], a list of indices is needed"),
        (changed(CONTINUATION, gold=0), "gold is 0, a list of indices is needed"),
        (
            changed(CONTINUATION, contexts=["a", "b"]),
            r"contexts is \['a', 'b'\], of 2; give 1, or one for each of the 3 continuations",
        ),
        (changed(CONTINUATION, contexts="a"), "contexts is 'a', a list of texts is needed"),
        (changed(CONTINUATION, continuations=[]), "continuations is .*, texts that are not empty are needed"),
        (changed(CONTINUATION, continuations=["x", ""]), "continuations is .*, texts that are not empty are needed"),
        (changed(CONTINUATION, contexts=["\ud83d"]), "contexts is .* half a surrogate pair"),
        (changed(GENERATION, prompt=None), "prompt is None, text is needed"),
        (changed(GENERATION, max_new_tokens=0), "max_new_tokens is 0, a whole number from 1 is needed"),
        (changed(GENERATION, filters="{}"), "filters is '{}', JSON of a list is needed"),
        (changed(GENERATION, metric="oops"), "metric is 'oops', JSON of a dict is needed"),
        (changed(ANSWER, match="regex", answers=["("]), r"answers has '\(', which is no regular expression"),
    ],
)
def test_a_bad_line_is_named_with_file_line_thing_value_and_mend(tmp_path: Path, line: str, says: str) -> None:
    path = written(tmp_path, changed(id="first") + "\n" + line)
    with pytest.raises(SuiteError, match=f"s\\.jsonl:3: {says}") as raised:
        Suite.load(path)
    assert str(raised.value).startswith(f"{path}:3: ") and "\n" not in str(raised.value)


def test_items_that_are_asked_word_for_word(tmp_path: Path) -> None:
    """An empty context, the same continuation twice and no right one are what lm-eval may ask."""
    first, second = Suite.load(written(tmp_path, changed(CONTINUATION) + changed(GENERATION))).items
    assert isinstance(first, ContinuationItem)
    assert first.pairs == [("", " x"), ("", " x"), ("", "y")]
    assert first.to_dict() == CONTINUATION and second.to_dict() == GENERATION
    several = ContinuationItem(id="a", capability="c", contexts=("p", "q"), continuations=(" x", " x"), gold=(1,))
    assert several.pairs == [("p", " x"), ("q", " x")]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_suite(tmp_path: Path, text: str) -> None:
    with pytest.raises(SuiteError, match=r"s\.jsonl: the suite is empty; a line an item is needed"):
        Suite.load(written(tmp_path, text))
    with pytest.raises(SuiteError, match="suite s: has no items"):
        Suite("s", ())


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_in_a_folder_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(changed())
    (tmp_path / "b.jsonl").write_text(text)
    with pytest.raises(
        SuiteError, match=r"b\.jsonl: the file is empty; a line an item is needed, or leave the file out"
    ):
        Suite.load(tmp_path)


def test_a_missing_suite_names_what_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(
        SuiteError, match=r"no such suite; give a \.jsonl file, a folder of them, 'repertoire' or 'lm-eval:TASK'"
    ):
        Suite.load(tmp_path / "none.jsonl")
    with pytest.raises(SuiteError, match=r"the folder has no \.jsonl file"):
        Suite.load(tmp_path)


def test_a_folder_is_one_suite_and_ids_are_unique_over_its_files(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(changed(id="2"))
    (tmp_path / "a.jsonl").write_text(changed(id="1"))
    (tmp_path / "notes.md").write_text("not a suite")
    suite = Suite.load(tmp_path)
    assert [item.id for item in suite.items] == ["1", "2"] and suite.name == tmp_path.name
    (tmp_path / "c.jsonl").write_text(changed(id="1"))
    with pytest.raises(
        SuiteError, match=r"c\.jsonl:1: the id '1' was used before, at .*a\.jsonl:1; give each item an id of"
    ):
        Suite.load(tmp_path)


def test_items_made_in_python_are_checked_too() -> None:
    with pytest.raises(SuiteError, match="gold is 2"):
        choice(gold=2)
    with pytest.raises(
        SuiteError, match="the id 'a' is used more than once; give each item an id of its own, or leave"
    ):
        Suite("s", (choice("a"), choice("b"), choice("a")))
    with pytest.raises(AttributeError):
        choice().gold = 1  # type: ignore[misc]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not is_blank(text))
BIDI = "".join(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))
NAME = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="/\\" + BIDI), min_size=1
).filter(lambda name: name.strip(". "))
NAME = NAME.filter(lambda name: not is_blank(name))
IDS = st.lists(NAME, min_size=1, max_size=3).map("/".join)
ENTRIES = st.lists(TEXT, min_size=2, max_size=5, unique_by=seen).map(tuple)
NUMBERS = st.lists(st.integers().map(str), min_size=1, max_size=5, unique=True).map(tuple)
WORDS = st.lists(TEXT.filter(fold), min_size=1, max_size=5, unique=True).map(tuple)


@st.composite
def items(draw: st.DrawFn) -> Item:
    shared: dict[str, Any] = {
        "id": draw(IDS),
        "capability": draw(NAME),
        "cluster": draw(st.none() | TEXT),
    }
    match draw(st.sampled_from(["choice", "answer", "text", "open"])):
        case "choice":
            entries = draw(ENTRIES)
            gold = draw(st.integers(0, len(entries) - 1))
            return ChoiceItem(**shared, prompt=draw(TEXT), choices=entries, gold=gold)
        case "answer":
            match = draw(st.sampled_from(["exact", "number", "contains"]))
            answers = draw(NUMBERS if match == "number" else WORDS)
            return AnswerItem(**shared, prompt=draw(TEXT), answers=answers, match=match)
        case "text":
            return TextItem(**shared, text=draw(TEXT))
        case _:
            return OpenItem(**shared, prompt=draw(TEXT))


SUITES = st.lists(items(), min_size=1, max_size=12, unique_by=lambda item: item.id).map(lambda i: Suite("s", tuple(i)))


@given(items())
def test_an_item_survives_its_dictionary(item: Item) -> None:
    assert item_from_dict(json.loads(json.dumps(item.to_dict()))) == item


@given(SUITES, st.randoms(use_true_random=False))
def test_saving_keeps_items_and_hash_and_order_changes_neither_hash_nor_halves(
    suite: Suite, rng: random.Random
) -> None:
    suite.save("s.jsonl")
    again = Suite.load("s.jsonl")
    assert again.items == suite.items and again.hash == suite.hash
    mixed = Suite("another name", tuple(rng.sample(suite.items, len(suite.items))))
    assert mixed.hash == suite.hash
    for part in ("monitor", "gate"):
        assert set(mixed.part(part)) == set(suite.part(part))
    monitor, gate = suite.part("monitor"), suite.part("gate")
    assert sorted(item.id for item in monitor + gate) == sorted(item.id for item in suite.items)
    assert suite.part("all") == suite.items


@pytest.mark.parametrize(
    "other",
    [
        choice("a", gold=1), choice("a", prompt="q"), choice("a", choices=("y", "x")), choice("a", capability="d"),
        choice("a", cluster="k"), choice("b"), choice("a", choices=("x", "y", "z")),
    ],
)  # fmt: skip
def test_the_hash_sees_every_field(other: ChoiceItem) -> None:
    assert Suite("s", (other,)).hash != Suite("s", (choice("a"),)).hash


def test_the_hash_and_the_halves_stay_what_they_were() -> None:
    # By sha256sum at a shell: a version that computes them otherwise splits gates anew and orphans all baselines.
    assert Suite("s", (choice("1"), choice("0"))).hash == (
        "c03aecf493c293d6480dd1cd694852df905a4e564231e542343dacd56f5de69f"
    )
    made = Suite("s", tuple(choice(str(i)) for i in range(8)))
    assert [item.id for item in made.part("monitor")] == ["2", "3"]


def test_a_cluster_stays_together_and_new_items_move_nothing() -> None:
    alone = [choice(f"p{i}") for i in range(200)]
    together = [choice(f"q{i}", cluster=f"passage {i // 5}") for i in range(200)]
    assert {half_of(item) for item in alone} == {"monitor", "gate"}
    assert 70 <= sum(half_of(item) == "monitor" for item in alone) <= 130
    for i in range(0, 200, 5):
        assert len({half_of(item) for item in together[i : i + 5]}) == 1
    few, many = Suite("s", tuple(alone[:50])), Suite("s", tuple(alone + together))
    assert set(few.part("gate")) <= set(many.part("gate"))


def test_a_sample_is_the_same_every_time_and_grows_by_adding() -> None:
    items = [choice(f"{name}/{i}", capability=name) for name in ("a", "b") for i in range(2000)]
    suite = Suite("s", (*items, choice("c/0", capability="c"), OpenItem(id="talk", capability="talk", prompt="Hello?")))
    small, large = suite.sample(9), suite.sample(90)
    assert small.capabilities == {"a": 9, "b": 9, "c": 1, "talk": 1} and small.name == "s:9"
    assert {item.id for item in small.items} <= {item.id for item in large.items}
    shuffled = Suite("s", tuple(random.Random(0).sample(suite.items, len(suite.items))))
    assert shuffled.sample(9).hash == small.hash
    assert [item.id for item in small.items] == [i.id for i in suite.items if i in small.items], "in the suite's order"
    for part, of_small, of_large in (("monitor", 5, 45), ("gate", 4, 45)):
        for name in ("a", "b"):
            assert sum(item.capability == name for item in small.part(part)) == of_small  # type: ignore[arg-type]
            assert sum(item.capability == name for item in large.part(part)) == of_large  # type: ignore[arg-type]
    assert suite.sample(2000) is suite
    with pytest.raises(SuiteError, match="0 items of each capability are asked for, at least 1 is needed"):
        suite.sample(0)


def test_where_a_half_has_too_few_the_other_fills_a_sample_up() -> None:
    items = [choice(f"a/{i}", capability="a") for i in range(400)]
    few = [item for item in items if half_of(item) == "gate"][:3] + [i for i in items if half_of(i) == "monitor"][:100]
    assert [len(Suite("s", tuple(few)).sample(20).part(half)) for half in ("monitor", "gate")] == [17, 3]
    few = [item for item in items if half_of(item) == "gate"][:100] + [i for i in items if half_of(i) == "monitor"][:3]
    assert [len(Suite("s", tuple(few)).sample(20).part(half)) for half in ("monitor", "gate")] == [3, 17]


def test_a_sample_of_the_bundled_suite_by_name() -> None:
    assert Suite.load("repertoire:5").hash == Suite.repertoire().sample(5).hash
    with pytest.raises(
        SuiteError, match="repertoire:x: a number of items a capability is needed, such as repertoire:50"
    ):
        Suite.load("repertoire:x")


def test_an_unknown_part() -> None:
    with pytest.raises(SuiteError, match="part is 'half', one of monitor, gate, all is needed"):
        Suite("s", (choice(),)).part("half")  # type: ignore[arg-type]


def test_separators_of_unicode_inside_a_prompt_end_no_line(tmp_path: Path) -> None:
    line = json.dumps({**GOOD, "prompt": "one\u2028two\u0085three\u2029"}, ensure_ascii=False)
    (item,) = Suite.load(written(tmp_path, line + "\n")).items
    assert isinstance(item, ChoiceItem) and item.prompt == "one\u2028two\u0085three\u2029"


@pytest.mark.parametrize(
    ("reply", "answers", "match", "right"),
    [
        ("The answer is 4.", ["4"], "number", True),
        ("4, no, 5", ["4"], "number", False),
        ("It is 1,234.", ["1234"], "number", True),
        ("1,234,567.50 in all", ["1234567.5"], "number", True),
        ("1,2345", ["1234"], "number", False),
        ("1, 2", ["2"], "number", True),
        ("−3", ["-3"], "number", True),
        ("10-3", ["3"], "number", True),
        ("4.0", ["4"], "number", True),
        ("none", ["4"], "number", False),
        ("version v2", ["2"], "number", False),
        ("nan", ["4"], "number", False),
        ("five", ["4", "5"], "number", False),
        ("5", ["4", "5"], "number", True),
        ("Paris is nice", ["Paris"], "contains", True),
        ("it's PARIS!", ["Paris"], "contains", True),
        ("Parisian", ["Paris"], "contains", False),
        ("I like C++ best", ["C++"], "contains", True),
        ("a((( b", ["a((("], "contains", True),
        ("abc", ["a.c"], "contains", False),
        ("New\n\n York", ["new york"], "contains", True),
        (" PARIS. ", ["paris"], "exact", True),
        ("Ｐａｒｉｓ", ["Paris"], "exact", True),
        ("STRASSE", ["straße"], "exact", True),
        ("Paris, France", ["Paris"], "exact", False),
        ("x42", [r"\d+"], "regex", True),
        ("X42", [r"^x"], "regex", False),
    ],
)
def test_matching(reply: str, answers: Sequence[str], match: Match, right: bool) -> None:
    assert matches(reply, answers, match) is right


@pytest.mark.parametrize("match", ["exact", "number", "contains", "regex"])
@pytest.mark.parametrize("reply", ["", " ", "\n\t", "\u2028", "\u00a0"])
def test_an_empty_reply_is_wrong_under_every_matcher(reply: str, match: Match) -> None:
    assert not matches(reply, ["4", ".*", "nothing"], match)


@pytest.mark.parametrize("match", ["exact", "number", "contains"])
@pytest.mark.parametrize(
    "reply",
    [
        "9" * 100_000, "1," * 50_000, "111," * 25_000 + "1111", "-" * 100_000, "." * 100_000, "1." * 50_000, "(" * 100_000,
        " " * 100_000 + "x", "\u202e4", "٤²Ⅳ", "\x1b[31m4\x1b[0m\x00", "ﷺ" * 20_000, "e\u0301" * 50_000, "a " * 50_000,
        "\ud800", "Paris" * 20_000,
    ],
    ids=lambda reply: ascii(reply[:8]),
)  # fmt: skip
def test_hostile_replies_neither_match_nor_raise_nor_hang(reply: str, match: Match) -> None:
    begin = time.perf_counter()
    assert not matches(reply, ["Paris", "12"], match)
    assert time.perf_counter() - begin < 2


def test_a_pattern_that_would_never_end_is_ended() -> None:
    began = time.perf_counter()
    with pytest.raises(patterns.Unended) as raised:
        matches("a" * 40 + "!", ["(a+)+$"], "regex")
    assert raised.value.pattern == "(a+)+$" and time.perf_counter() - began < 20
    # The next one is asked as if nothing had been.
    assert matches("\u2764\ufe0f Yes \ud800", [r"(?i)^[\W_]*yes\b"], "regex")
    (note,) = patterns.slow_note({"b": "x", "a": "(a+)+$"})
    assert note.startswith(
        "a pattern was not through with a reply after 1 s, so the reply counts as wrong: 2 items, the"
    )
    assert note.endswith("first is a with '(a+)+$'; simplify the pattern") and patterns.slow_note({}) == ()


def test_what_searches_may_be_killed_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert matches("x42", [r"\d+"], "regex")
        searcher = patterns._searchers[os.getpid()]
        assert searcher._process is not None
        searcher._process.kill()
        searcher._process.wait()
    assert matches("x42", [r"\d+"], "regex") and not matches("x", [r"\d+"], "regex")
    searcher.end()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert matches("x42", [r"\d+"], "regex") and not matches("x", [r"\d+"], "regex")


@given(st.text(), st.sampled_from(["exact", "number", "contains"]))
def test_matching_takes_any_text(reply: str, match: Match) -> None:
    right = matches(reply, ["12", "Paris"], match)
    assert not right or "12" in reply or fold("Paris") in fold(reply) or numbers(reply)


@given(st.integers(-(10**15), 10**15), st.text(alphabet="abc !?\n"))
def test_a_number_is_found_however_it_is_grouped(value: int, around: str) -> None:
    assert numbers(f"{around} {value:,} {around}") == [value]
    assert matches(f"{around} {value:,}.", [str(value)], "number")


def test_a_suite_that_cannot_be_saved_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SuiteError, match=r"s.jsonl: cannot be written: File exists; make room, or give another path"):
        Suite("s", (choice("a"),)).save(tmp_path / "file" / "s.jsonl")


def test_choices_may_differ_in_case_alone() -> None:
    assert choice("a", choices=("pole", "Pole")).choices == ("pole", "Pole")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "the suite's name is empty; give a .jsonl file, a folder of them, 'repertoire' or 'lm-eval:TASK'"),
        ("repertoire:0", "repertoire:0: a number of items a capability is needed, such as repertoire:50"),
        ("repertoire:-1", "repertoire:-1: a number of items a capability is needed"),
        ("repertoire:" + "9" * 5000, "9: a number of items a capability is needed"),
    ],
)
def test_names_that_name_no_suite(name: str, says: str) -> None:
    with pytest.raises(SuiteError) as bad:
        Suite.load(name)
    assert says in str(bad.value)
