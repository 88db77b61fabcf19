"""The layouts that data sets of questions commonly have: what of a row is read, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backslide.errors import SuiteError
from backslide.suite.item import AnswerItem, ChoiceItem, OpenItem
from backslide.suite.make import from_prompts, from_qa, from_texts
from backslide.suite.sources import Row, read_rows
from backslide.suite.suite import half_of

PLANETS = ["Mars", "Venus", "Earth", "Pluto"]


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"f.jsonl:{number}", row) for number, row in enumerate(values, start=1)]


def chosen(*values: dict[str, Any], **more: Any) -> list[tuple[tuple[str, ...], int]]:
    items = from_qa(rows(*values), "mine", **more).items
    return [(item.choices, item.gold) for item in items if isinstance(item, ChoiceItem)]


@pytest.mark.parametrize(
    ("choices", "answers"),
    [
        (PLANETS, (1, 3, 0)),
        (PLANETS, ("1", "3", "0")),
        (PLANETS, (1.0, 3.0, 0.0)),
        (PLANETS, ("B", "D", "A")),
        (PLANETS, ("b", "d", "a")),
        (PLANETS, ("Venus", "pluto ", "Mars")),
        (PLANETS, ([1], [3], [0])),
        ({"text": PLANETS, "label": ["A", "B", "C", "D"]}, ("B", "D", "A")),
        ({"text": PLANETS, "label": ["1", "2", "3", "4"]}, ("2", "4", "1")),
        (dict(zip("ABCD", PLANETS, strict=True)), ("B", "D", "A")),
    ],
)
def test_choices_of_the_rows_are_the_choices_of_the_items(choices: Any, answers: tuple[Any, ...]) -> None:
    for names in (("choices", "answer"), ("options", "answerKey")):
        values = [{"question": f"{i}?", names[0]: choices, names[1]: a} for i, a in enumerate(answers)]
        assert chosen(*values) == [(tuple(PLANETS), gold) for gold in (1, 3, 0)]
        assert chosen(*values, kind="choice") == chosen(*values)
    plain = from_qa(rows(*values), "mine", kind="answer").items
    assert [item.answers for item in plain if isinstance(item, AnswerItem)] == [("Venus",), ("Pluto",), ("Mars",)]


def test_choices_in_csv_are_a_json_list_in_the_cell(tmp_path: Path) -> None:
    path = tmp_path / "qa.csv"
    path.write_text('question,choices,answer\nWhich?,"[""Mars"", ""Venus""]",1\n', encoding="utf-8")
    [item] = from_qa(read_rows(path), "qa").items
    assert isinstance(item, ChoiceItem) and (item.choices, item.gold) == (("Mars", "Venus"), 1)


def test_a_file_names_its_right_choices_in_one_way() -> None:
    # Blood groups: the first row's answer could be a text as well; the second one's can only be a letter.
    groups = ["B", "A", "AB", "0"]
    values = [{"question": f"{i}?", "choices": groups, "answer": a} for i, a in enumerate("ABD")]
    assert chosen(*values) == [(tuple(groups), 0), (tuple(groups), 1), (tuple(groups), 3)]
    # Numbers among numbers are indices where they are numbers, and nobody can tell where they are texts.
    counts = ["3", "2", "1", "0"]
    assert chosen({"question": "?", "choices": counts, "answer": 3}) == [(tuple(counts), 3)]
    with pytest.raises(SuiteError, match=r"^f.jsonl:1: answer is '3', the index of one choice and the text of another"):
        chosen({"question": "?", "choices": counts, "answer": "3"})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            {"answer": 4},
            "f.jsonl:2: answer is '4', but the row has 4 choices; give an index from 0 to 3, a letter from A to D",
        ),
        ({"answer": -1}, "f.jsonl:2: answer is '-1', but"),
        ({"answer": "Saturn"}, "f.jsonl:2: answer is 'Saturn', but"),
        ({"answer": [1, 2]}, "f.jsonl:2: answer has 2 answers; a choice item has one right choice"),
        ({"choices": "Mars; Venus"}, "f.jsonl:2: choices is 'Mars; Venus'; a list of texts is needed (in CSV a JSON"),
        ({"choices": [["Mars"], "Venus"]}, "f.jsonl:2: choices is [['Mars'], 'Venus']; a list of texts is needed"),
    ],
)
def test_answers_that_are_no_choice_are_refused(value: dict[str, Any], says: str) -> None:
    good = {"question": "Which?", "choices": PLANETS, "answer": 1}
    with pytest.raises(SuiteError) as bad:
        chosen(good, {**good, "question": "And?", **value})
    assert str(bad.value).startswith(says)


def test_rows_of_others_whose_choices_are_no_choice_are_left_out_and_said() -> None:
    made = from_qa(
        rows(
            {"question": "Which?", "choices": PLANETS, "answer": 1},
            {"question": "Which?", "choices": PLANETS[::-1], "answer": 2},
            {"question": "Which?", "choices": ["Ceres", "Eris"], "answer": 0},
            {"question": "Which of two?", "choices": ["Mars", " Mars"], "answer": 0},
            {"question": "Which of one?", "choices": ["Mars"], "answer": 0},
            {"question": "Which of none?", "choices": None, "answer": 0},
            {"question": "Which then?", "choices": PLANETS, "answer": None},
            {"question": "Which empty one?", "choices": ["Mars", ""], "answer": 0},
        ),
        "mine",
        strict=False,
    )
    assert [item.choices for item in made.items if isinstance(item, ChoiceItem)] == [tuple(PLANETS), ("Ceres", "Eris")]
    assert made.notes == (
        "left out, its choices are too few, empty or equal: 4 rows, the first is f.jsonl:4, whose choices has 'Mars' at "
        "0 and 'Mars' at 1 (from 0), which look equal",
        "left out, the question was there before: 1 row, the first is f.jsonl:2",
        "left out, the answer is empty: 1 row, the first is f.jsonl:7",
    )


def test_the_input_of_an_instruction_follows_it() -> None:
    values = (
        {"instruction": "Translate to French.", "input": "cat", "output": "chat"},
        {"instruction": "Name a planet.", "input": "", "output": "Mars"},
        {"instruction": "Translate to French.", "input": "dog", "output": "chien"},
    )
    prompts = ["Translate to French.\n\ncat", "Name a planet.", "Translate to French.\n\ndog"]
    made = from_qa(rows(*values), "mine")
    assert [(i.prompt, i.answers) for i in made.items if isinstance(i, AnswerItem)] == [
        (prompt, (value["output"],)) for prompt, value in zip(prompts, values, strict=True)
    ]
    assert made.notes == ()
    asked = from_prompts(rows(*values), "mine")
    assert [i.prompt for i in asked.items if isinstance(i, OpenItem)] == prompts
    assert asked.notes == ("read instruction, input; not read: output",)
    # Beside a question it is something else.
    named = from_qa(rows({"question": "Why?", "input": "x", "answer": "So."}), "mine")
    assert named.notes == ("read question, answer; not read: input",)


def test_a_passage_stands_in_front_and_is_the_cluster() -> None:
    values = [
        {"id": i, "context": f"Passage {i // 2}.", "question": f"Q{i}?", "answers": {"text": [f"A{i}"], "answer_start": [0]}}
        for i in range(8)
    ]  # fmt: skip
    made = from_qa(rows(*values), "mine")
    assert [(i.prompt, i.answers) for i in made.items if isinstance(i, AnswerItem)] == [
        (f"Passage {i // 2}.\n\nQ{i}?", (f"A{i}",)) for i in range(8)
    ]
    assert made.notes == ("read context, question, answers; not read: id",)
    clusters = [item.cluster for item in made.items]
    assert clusters[::2] == clusters[1::2] and len(set(clusters)) == 4 and None not in clusters
    other = from_qa(rows(*values), "other name", kind="choice")
    assert [item.cluster for item in other.items] == clusters
    assert [item.cluster for item in from_prompts(rows(*values), "mine").items] == clusters
    # Where there is none, in Dolly's rows for instance, the question stands alone.
    alone = from_qa(rows({"instruction": "Why?", "context": "", "response": "So."}), "mine").items[0]
    assert isinstance(alone, AnswerItem) and (alone.prompt, alone.cluster) == ("Why?", None)


def test_what_is_not_read_is_named_once() -> None:
    values = [{"question": f"{i}?", "answer": "x", "difficulty": 1} for i in range(3)] + [
        {"question": "Last?", "answer": "x", "source": "s", "difficulty": 2}
    ]
    assert from_qa(rows(*values), "mine").notes == ("read question, answer; not read: difficulty, source",)
    assert from_texts(rows({"text": "One.", "url": "x"}), "mine").notes == ("read text; not read: url",)
    # A context that is no text is none.
    hops = from_qa(rows({"question": "?", "context": {"title": ["t"]}, "answer": "x"}), "mine")
    assert hops.notes == ("read question, answer; not read: context",) and len(hops.items) == 1


def test_answers_and_choices_of_one_source_have_their_own_ids_and_one_half() -> None:
    values = [{"question": f"Which city is number {i}?", "answer": f"City{i}"} for i in range(12)]
    answers, drawn = (from_qa(rows(*values), "mine", kind=kind).items for kind in ("answer", "choice"))  # type: ignore[arg-type]
    assert not {item.id for item in answers} & {item.id for item in drawn}
    assert [half_of(item) for item in answers] == [half_of(item) for item in drawn]
    given = from_qa(rows(*({**v, "choices": [v["answer"], "x"]} for v in values)), "mine").items
    assert not {item.id for item in given} & {item.id for item in (*answers, *drawn)}


def test_numbers_are_written_as_people_write_them_and_no_number_is_none() -> None:
    values = [
        {"question": f"{i}?", "answer": a} for i, a in enumerate((1e20, 1e-7, 2.5, 7, float("inf"), float("nan")))
    ]
    made = from_qa(rows(*values), "mine")
    assert [i.answers for i in made.items if isinstance(i, AnswerItem)] == [
        ("100000000000000000000",), ("0.0000001",), ("2.5",), ("7",),
    ]  # fmt: skip
    assert made.notes == ("left out, the answer is empty: 2 rows, the first is f.jsonl:5",)
    assert all(isinstance(i, AnswerItem) and i.match == "number" for i in made.items)
    assert json.loads("NaN") != json.loads("NaN"), "which JSON Lines may hold"
