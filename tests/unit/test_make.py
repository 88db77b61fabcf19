"""Suites from the user's own files: what becomes an item, what does not, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from backslide.errors import SuiteError
from backslide.suite.item import AnswerItem, ChoiceItem, OpenItem, TextItem
from backslide.suite.make import Made, from_prompts, from_qa, from_texts
from backslide.suite.matching import fold, matches
from backslide.suite.sources import Row, read_prompts, read_rows, read_texts
from backslide.suite.suite import half_of

CITIES = ("Paris", "Rome", "Madrid", "Lisbon", "Vienna", "Oslo", "Helsinki", "Warsaw", "Prague", "Dublin")


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"f.jsonl:{number}", row) for number, row in enumerate(values, start=1)]


def qa(count: int = 10) -> list[Row]:
    return rows(*({"question": f"Which city is number {i}?", "answer": CITIES[i]} for i in range(count)))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_answers_become_items_with_the_matcher_that_fits_them() -> None:
    made = from_qa(
        rows(
            {"question": "3 + 4?", "answer": 7},
            {"question": "A dozen?", "answer": ["12", "12.0"]},
            {"question": "Capital of France?", "answer": " Paris "},
            {"question": "Who?", "answer": {"text": ["Ann", "Ann Lee", "Ann"], "answer_start": [3, 3, 9]}},
            {"question": "How many, or who?", "answer": ["3", "Ann"]},
        ),
        "mine",
    )
    assert [(i.prompt, i.answers, i.match) for i in made.items if isinstance(i, AnswerItem)] == [
        ("3 + 4?", ("7",), "number"),
        ("A dozen?", ("12", "12.0"), "number"),
        ("Capital of France?", ("Paris",), "contains"),
        ("Who?", ("Ann", "Ann Lee"), "contains"),
        ("How many, or who?", ("3", "Ann"), "contains"),
    ]
    assert made.notes == () and {i.capability for i in made.items} == {"mine"}


def test_rows_that_are_empty_long_or_twice_are_left_out_and_said() -> None:
    made = from_qa(
        rows(
            {"question": "Who?", "answer": "Ann"},
            {"question": "who? ", "answer": "ANN"},
            {"question": "Who?", "answer": "Bob"},
            {"question": " ", "answer": "Ann"},
            {"question": "Whose?", "answer": None},
            {"question": "Where?", "answer": "."},
            {"question": "x" * 20_001, "answer": "y"},
            {"question": "Why?", "answer": "y" * 201},
        ),
        "mine",
    )
    assert [i.prompt for i in made.items if isinstance(i, AnswerItem)] == ["Who?"]
    assert made.notes == (
        "left out, the question was there before: 1 row, the first is f.jsonl:2",
        "left out, the question was there before, with another answer: 1 row, the first is f.jsonl:3",
        "left out, the question is empty: 1 row, the first is f.jsonl:4",
        "left out, the answer is empty: 2 rows, the first is f.jsonl:5",
        "left out, the question is longer than 20,000 characters: 1 row, the first is f.jsonl:7",
        "left out, the answer is longer than 200 characters, to be matched in a reply: 1 row, the first is f.jsonl:8",
    )
    with pytest.raises(SuiteError, match="mine: no item came of it: left out, the answer is empty"):
        from_qa(rows({"question": "Who?", "answer": ""}), "mine").suite("mine")


@pytest.mark.parametrize("kind", ["answer", "choice"])
def test_ids_depend_on_the_row_alone(kind: Any) -> None:
    few = from_qa(qa(6), "mine", kind=kind).items
    more = from_qa(list(reversed(qa(10))), "mine", kind=kind).items
    later = {item.id: half_of(item) for item in more}
    assert [later[item.id] for item in few] == [half_of(item) for item in few]
    again = from_qa(qa(6), "mine", kind=kind).items
    assert again == few
    # What is asked moves with an added row only where its answer becomes a distractor.
    texts = {t.id: t for t in from_texts([Row("a", {"text": c}) for c in CITIES], "t").items}
    assert set(texts) >= {t.id for t in from_texts([Row("z", {"text": c}) for c in CITIES[3:]], "t").items}


def test_distractors_are_other_answers_of_the_type_and_never_right() -> None:
    many = rows(
        *({"question": f"City {i}?", "answer": city} for i, city in enumerate(CITIES)),
        *({"question": f"{i} + {i}?", "answer": 2 * i} for i in range(10)),
        {"question": "A number, or two?", "answer": ["4", "6.0", "six"]},
        {"question": "Which of them?", "answer": ["Rome", "The city of Paris", "vienna"]},
    )
    made = from_qa(many, "mine", kind="choice")
    accepted = {str(r.values["question"]): r.values["answer"] for r in many}
    places = []
    for item in made.items:
        assert isinstance(item, ChoiceItem) and len(item.choices) == 4
        answers = accepted[item.prompt]
        right = [str(a) for a in (answers if isinstance(answers, list) else [answers])]
        assert item.choices[item.gold] == right[0]
        wrong = [c for place, c in enumerate(item.choices) if place != item.gold]
        for other in wrong:
            assert other[0].isdigit() == right[0][0].isdigit()
            assert not matches(other, right, "contains") and not any(matches(r, [other], "contains") for r in right)
            if other[0].isdigit():
                assert float(other) not in [float(r) for r in right if r[0].isdigit()]
        assert len({fold(c) for c in item.choices}) == 4
        places.append(item.gold)
    assert len(set(places)) == 4 and made.notes == ()
    # Rows in another order make the same items.
    shuffled = list(many)
    random.Random(1).shuffle(shuffled)
    assert sorted(i.to_dict()["choices"] for i in from_qa(shuffled, "mine", kind="choice").items) == sorted(
        i.to_dict()["choices"] for i in made.items
    )


def test_distractors_of_another_type_are_taken_where_nothing_else_is_there_and_said() -> None:
    made = from_qa([*qa(5), *rows({"question": "3 + 4?", "answer": 7})], "mine", kind="choice")
    assert len(made.items) == 6
    assert made.notes == (
        "1 item has distractors of another type or length than the answer, the first is f.jsonl:1; such items are "
        "easy: more rows of the same kind would help",
    )


def test_too_few_answers_are_one_clear_error() -> None:
    with pytest.raises(SuiteError, match=r"^f.jsonl:1: the file has 3 different answers, and a choice item needs one"):
        from_qa(qa(3), "mine", kind="choice")
    alike = rows(*({"question": f"Which {i}?", "answer": a} for i, a in enumerate(("a b", "a", "b", "b c", "c"))))
    with pytest.raises(SuiteError, match=r"^f.jsonl:1: only 1 of the other answers is wrong here, 3 are needed; add"):
        from_qa(alike, "mine", kind="choice")


def test_a_limit_keeps_the_same_items_whatever_is_added() -> None:
    few, more = from_qa(qa(8), "mine"), from_qa(qa(10), "mine")
    kept, later = {i.id for i in few.limited(4).items}, {i.id for i in more.limited(4).items}
    new = {i.id for i in more.items} - {i.id for i in few.items}
    assert len(kept) == len(later) == 4 and later <= kept | new
    assert few.limited(4).notes == ("4 of 8 items are kept, as asked",) and few.limited(None) is few


def test_texts_and_prompts(tmp_path: Path) -> None:
    prose = write(tmp_path / "prose.txt", "One\nparagraph.\n\n\nAnother.\n \none  Paragraph.\n\nThird.")
    made = from_texts(read_texts(prose), "prose")
    assert [i.text for i in made.items if isinstance(i, TextItem)] == ["One\nparagraph.", "Another.", "Third."]
    assert made.notes == (f"left out, the text was there before: 1 row, the first is {prose}:7",)
    lines = write(tmp_path / "ask.txt", "How?\n\n  Why?\nHow? \n")
    asked = from_prompts(read_prompts(lines), "ask")
    assert [(i.prompt, i.reference, i.judged) for i in asked.items if isinstance(i, OpenItem)] == [
        ("How?", None, False),
        ("Why?", None, False),
    ]
    told = dataclasses.replace(asked.items[0], reference="So.")  # type: ignore[call-arg]
    assert told.judged and told.id == asked.items[0].id and told.to_dict()["reference"] == "So."
    table = write(tmp_path / "ask.jsonl", json.dumps({"prompt": "How?"}) + "\n" + json.dumps({"prompt": "Why?"}))
    assert from_prompts(read_prompts(table), "ask").items == asked.items


def test_columns_that_are_looked_for_are_named_once(tmp_path: Path) -> None:
    rows = read_prompts(write(tmp_path / "a.csv", "ask\nHow?\n"))
    says = ":2: has none of the columns prompt, question, query, instruction, input, only ask; name one of these with"
    with pytest.raises(SuiteError, match=says):
        from_prompts(rows, "a")


def test_csv_is_read_with_lists_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = write(
        tmp_path / "qa.csv",
        '﻿question,answer\n"Who, and\nwhy?","[""Ann"", ""Ann Lee""]"\n\nHow?,"[sic"\n"3 + 4?",7\n',
    )
    read = read_rows(path)
    assert [row.place for row in read] == [f"{path}:2", f"{path}:5", f"{path}:6"]
    items = from_qa(read, "qa").items
    assert [i.to_dict()["answers"] for i in items] == [["Ann", "Ann Lee"], ["[sic"], ["7"]]
    tabs = write(tmp_path / "qa.tsv", "q\ta\nWho?\tAnn, Bob\n")
    assert from_qa(read_rows(tabs), "qa", question="q", answer="a").items[0].to_dict()["answers"] == ["Ann, Bob"]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "question,answer\nWho?,Ann,Bob\n", ":2: has 3 cells, the header has 2; put cells with a comma"),
        ("a.csv", 'question,answer\n"Who?,Ann\n', ":2: not CSV: unexpected end of data; close the double quotes that a cell begins with, and"),
        ("a.csv", "question,question\nWho?,Ann\n", ":1: the column 'question' is there twice"),
        ("a.csv", "\n", ": is empty; a line a row is needed"),
        ("a.csv", "question,answer\n", ":1: the header is ['question', 'answer'], with no row below it; add a line a row"),
        ("a.csv", ",\nWho?,Ann\n", ":1: the header is ',', which names no column; give each column a name"),
        ("a.csv", "question,answer\nWho?\n", ":2: has 1 cell, the header has 2"),
        ("a.jsonl", '{"question": "Who?", "choices": ["Ann"], "answer": 0}\n', ":1: choices is ['Ann'], and two or more are needed; correct the row, or leave it out"),
        ("a.jsonl", '{"question": "Who?", "choices": ["Ann", ""], "answer": 0}\n', ":1: choices has '' at 1 (from 0), which is empty; correct the row, or leave it out"),
        ("a.jsonl", '{"question": "Who?", "choices": ["Ann", "\\u200b"], "answer": 0}\n', ":1: choices has '\\u200b' at 1 (from 0), which is empty"),
        ("a.jsonl", '{"question": "Who?", "choices": ["Ann", "Bob", "Ann "], "answer": 0}\n', ":1: choices has 'Ann' at 0 and 'Ann' at 2 (from 0), which look equal; correct the row, or leave"),
        ("a.jsonl", '{"question": "Who?", "choices": ["é", "e\\u0301"], "answer": 0}\n', ":1: choices has 'é' at 0 and 'e\u0301' at 1 (from 0), which look equal"),
        ("a.csv", "ask,answer\nWho?,Ann\n", ":2: has none of the columns question, prompt, query, instruction, input, only ask, answer; name one of these with --question-column"),
        ("a.jsonl", '{"question": "Who?"}\n', ":1: has none of the columns answer, answers, target"),
        ("a.jsonl", '{"question": "Who?", "answer": "Ann"}\n{"question": "W"}\n', ":2: has no answer, which the rows before it have"),
        ("a.jsonl", '{"question": 3, "answer": "Ann"}\n', ":1: question is 3, text is needed"),
        ("a.jsonl", '{"question": "Who?", "answer": true}\n', ":1: answer is True; text, a number or a list"),
        ("a.jsonl", '{"question": "Who?", "answer": [["Ann"]]}\n', ":1: answer is [['Ann']]; text, a number or a list"),
        ("a.jsonl", '{"question": "Wh\\ud800?", "answer": "Ann"}\n', ":1: prompt is 'Wh\\ud800?', which holds half a"),
        ("a.jsonl", '{"question": \n', ":1: not JSON"),
        ("a.parquet", "PAR1", ": the name ends in '.parquet'; give a .jsonl, .csv or .tsv file"),
        ("a.json", "[]", ": JSON Lines is needed, one object a line, in a file whose name ends in .jsonl"),
    ],
)  # fmt: skip
def test_bad_files_are_named_with_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(SuiteError) as bad:
        from_qa(read_rows(path), "qa")
    assert str(bad.value).startswith(f"{path}{message}")


def test_no_items_are_no_suite() -> None:
    with pytest.raises(SuiteError, match="x: no item came of it: there was no row"):
        Made(()).suite("x")
