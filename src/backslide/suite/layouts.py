"""Which column of a user's rows holds what, in the layouts that data sets of questions commonly have.

::

    {"question": …, "answer": …}                          a question with its answer, or with a list of accepted ones
    {"context": …, "question": …, "answers": {"text": […]}}    SQuAD: a passage in front of the question
    {"instruction": …, "input": …, "output": …}           Alpaca: an instruction, and what it is to be applied to
    {"question": …, "choices": […], "answer": 1}          MMLU: choices, and the right one's index, letter or text
    {"question": …, "choices": {"text": […], "label": […]}, "answerKey": "B"}     ARC: choices under labels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from backslide.errors import SuiteError, listed, number_of
from backslide.suite.matching import fold
from backslide.suite.sources import Row

QUESTION_COLUMNS = ("question", "prompt", "query", "instruction", "input")
"""Usual names of the column with the question, in the order in which they are looked for."""
ANSWER_COLUMNS = ("answer", "answers", "target", "output", "response", "completion")
KEY_COLUMNS = (*ANSWER_COLUMNS, "answerKey", "answer_key", "answer_idx", "label", "gold")
"""Of the column with the answer where there are choices."""
TEXT_COLUMNS = ("text", "content")
CONTEXT_COLUMNS = ("context", "passage", "article")
"""Of the column with the passage that a question is about."""
CHOICE_COLUMNS = ("choices", "options")


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns that are read; None for what the rows do not have."""

    question: str
    input: str | None = None
    """What an instruction is to be applied to; it follows the instruction after a blank line."""
    context: str | None = None
    """A passage; it stands in front of the question."""
    choices: str | None = None
    answer: str | None = None

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        *,
        question: str | None = None,
        answer: str | None = None,
        usual: tuple[str, ...] = QUESTION_COLUMNS,
        answers: bool = True,
    ) -> Layout:
        """The layout of rows, of which there is at least one.

        Args:
            rows: what was read.
            question: column with the question; None: the first of `usual` that is there.
            answer: column with the answer; None: the first usual name.
            usual: names of the column with the question.
            answers: whether answers and choices are wanted.

        Raises `SuiteError` naming the columns that there are, where one that is needed is not among them.
        """
        asks = column(rows, question, usual, "--question-column")
        taken = {asks, answer}
        columns = [name for name in _columns(rows) if name not in taken]
        choices = next((name for name in CHOICE_COLUMNS if name in columns), None) if answers else None
        says = None
        if answers:
            says = column(rows, answer, ANSWER_COLUMNS if choices is None else KEY_COLUMNS, "--answer-column")
        free = [name for name in columns if name != says]
        return cls(
            question=asks,
            input="input" if asks == "instruction" and "input" in free else None,
            context=next((name for name in CONTEXT_COLUMNS if name in free and _holds_text(rows, name)), None),
            choices=choices,
            answer=says,
        )

    def prompt_of(self, row: Row) -> tuple[str, str]:
        """What is asked, and the passage that it begins with; empty where the question or the passage is.

        Raises `SuiteError` where a column holds no text.
        """
        question = text_of(row, self.question)
        given = _maybe(row, self.input)
        context = _maybe(row, self.context)
        if not question:
            return "", context
        return "\n\n".join(part for part in (context, question, given) if part), context

    def unread(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """A note that names the columns that are read and those that are not; none where all are read."""
        return unread(rows, (self.context, self.question, self.input, self.choices, self.answer))


def unread(rows: Iterable[Row], read: Iterable[str | None]) -> tuple[str, ...]:
    """See `Layout.unread`."""
    known = [name for name in read if name is not None]
    others = [name for name in _columns(rows) if name not in known]
    return (f"read {listed(known)}; not read: {listed(others)}",) if others else ()


@dataclass(frozen=True, slots=True)
class Offered:
    """The choices of a row, and what its answer says of them."""

    row: Row
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    """Names of the choices, where the row has some."""
    said: str


def offered(row: Row, layout: Layout) -> Offered:
    """The choices of a row, without texts where it has none and without an answer where that is empty.

    Choices are a list of texts, texts under labels (`{"A": …, "B": …}`), or a list of each.

    Raises `SuiteError` where they are something else, or where more than one choice is right.
    """
    assert layout.choices is not None and layout.answer is not None
    answers = answers_of(row, layout.answer)
    if len(answers) > 1:
        raise SuiteError(f"{row.place}: {layout.answer} has {len(answers)} answers; a choice item has one right choice")
    value = row.values.get(layout.choices)
    labels: Any = ()
    if isinstance(value, Mapping) and isinstance(value.get("text"), (list, tuple)):
        value, labels = value["text"], value.get("label")
    elif isinstance(value, Mapping):
        value, labels = list(value.values()), list(value)
    value = () if value is None else value
    labels = labels if isinstance(labels, (list, tuple)) else ()
    if not isinstance(value, (list, tuple)) or not all(_plain(entry) for entry in (*value, *labels)):
        raise SuiteError(
            f"{row.place}: {layout.choices} is {_shown(value)}; a list of texts is needed (in CSV a JSON list in the "
            "cell), or another name for the column"
        )
    return Offered(row, tuple(map(_written, value)), tuple(map(_written, labels)), "".join(answers))


def right_choices(rows: Sequence[Offered], name: str) -> list[int]:
    """Index of the right choice of each row.

    A file says it in one way: by label where the choices have some, else by index from 0, by letter, or by text. So
    the way is looked for that fits all of its rows, and a choice that happens to be called `A` misleads nobody.

    Args:
        rows: choices and answers.
        name: of the column with the answers, for messages.

    Raises `SuiteError` at the first row that does not fit, or that fits in two ways which differ.
    """
    found = {way: [place(row) for row in rows] for way, place in _WAYS.items()}
    fitting = [way for way, places in found.items() if None not in places]
    if not fitting:
        best = max(found, key=lambda way: sum(place is not None for place in found[way]))
        row = rows[found[best].index(None)]
        last = len(row.texts) - 1
        raise SuiteError(
            f"{row.row.place}: {name} is {_shown(row.said)}, but the row has {number_of(last + 1, 'choice')}; give an "
            f"index from 0 to {last}, a letter from A to {_letter(last)}, or the text of one of them, and the same in "
            "all rows"
        )
    chosen = found[fitting[0]]
    for place, row in enumerate(rows):
        other = next((way for way in fitting if found[way][place] != chosen[place]), None)
        # A number that is no text can only be an index, and labels are there to be referred to.
        if fitting[0] == "label" or other is None or not isinstance(row.row.values.get(name), str):
            continue
        raise SuiteError(
            f"{row.row.place}: {name} is {_shown(row.said)}, the {fitting[0]} of one choice and the {other} of "
            "another; name the right choices by letter (A, B, …)"
        )
    return [place for place in chosen if place is not None]


def _by_label(row: Offered) -> int | None:
    return row.labels.index(row.said) if row.said in row.labels[: len(row.texts)] else None


def _by_index(row: Offered) -> int | None:
    number = row.said.removesuffix(".0")  # a column with gaps is one of floats
    places = [str(place) for place in range(len(row.texts))]
    return places.index(number) if number in places else None


def _by_letter(row: Offered) -> int | None:
    letters = [_letter(place) for place in range(len(row.texts))]
    return letters.index(row.said.upper()) if row.said.upper() in letters else None


def _by_text(row: Offered) -> int | None:
    if row.said in row.texts:
        return row.texts.index(row.said)
    folded = [fold(text) for text in row.texts]
    return folded.index(fold(row.said)) if fold(row.said) in folded else None


_WAYS: dict[str, Callable[[Offered], int | None]] = {
    "label": _by_label,
    "index": _by_index,
    "letter": _by_letter,
    "text": _by_text,
}


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else ""


def column(rows: Sequence[Row], given: str | None, usual: tuple[str, ...], option: str) -> str:
    """Name of the column to read: the one given, else the first of the usual names that the first row has.

    Raises `SuiteError` naming the columns that there are.
    """
    first = rows[0]
    wanted = usual if given is None else (given,)
    found = next((name for name in wanted if name in first.values), None)
    if found is None:
        looked = f"no column {given!r}" if given is not None else f"none of the columns {', '.join(usual)}"
        there = listed(first.values) or "nothing"
        raise SuiteError(f"{first.place}: has {looked}, only {there}; name one of these with {option}")
    return found


def text_of(row: Row, name: str) -> str:
    """The text in a column, without white space around it; empty where it is empty.

    Raises `SuiteError` where the column is missing or holds no text.
    """
    value = row.values.get(name)
    if value is None and name not in row.values:
        raise SuiteError(f"{row.place}: has no {name}, which the rows before it have; add it")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SuiteError(f"{row.place}: {name} is {_shown(value)}, text is needed")
    return value.strip()


def answers_of(row: Row, name: str) -> tuple[str, ...]:
    """The accepted answers in a column: a text, a number, or a list of them; each once, empty ones left out.

    In a CSV file a cell that holds a JSON list of texts or numbers is such a list. A dictionary with a list `text`,
    as in SQuAD, is read as that list.

    Raises `SuiteError` where the column is missing or holds something else.
    """
    value = row.values.get(name)
    if value is None and name not in row.values:
        raise SuiteError(f"{row.place}: has no {name}, which the rows before it have; add it")
    if isinstance(value, Mapping) and isinstance(value.get("text"), (list, tuple)):
        value = value["text"]
    found: dict[str, None] = {}
    for entry in value if isinstance(value, (list, tuple)) else [value]:
        if not _plain(entry):
            raise SuiteError(f"{row.place}: {name} is {_shown(value)}; text, a number or a list of them is needed")
        said = _written(entry)
        if said:
            found[said] = None
    return tuple(found)


def _plain(entry: Any) -> bool:
    return isinstance(entry, (str, int, float, type(None))) and not isinstance(entry, bool)


def _written(entry: Any) -> str:
    """An entry as text: numbers as people write them, nothing for what is no number."""
    if entry is None or (isinstance(entry, float) and not math.isfinite(entry)):
        return ""
    if isinstance(entry, float):
        return f"{Decimal(repr(entry)):f}"
    return str(entry).strip()


def _columns(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.values))


def _holds_text(rows: Sequence[Row], name: str) -> bool:
    first = next((value for row in rows if (value := row.values.get(name)) is not None), None)
    return isinstance(first, str)


def _maybe(row: Row, name: str | None) -> str:
    """Text that a row may lack."""
    return text_of(row, name) if name is not None and name in row.values else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
