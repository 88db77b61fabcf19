"""Items from the user's own material: questions with answers, texts, prompts.

An item's id is a hash of its content, so an item keeps its id, and with it its half, whatever is added to the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from backslide.errors import SuiteError, number_of, shown
from backslide.suite.distractors import DISTRACTORS, digest, distractors, pools_of, type_of
from backslide.suite.item import AnswerItem, ChoiceItem, Item, Match, OpenItem, TextItem, is_blank, seen
from backslide.suite.layouts import (
    QUESTION_COLUMNS,
    TEXT_COLUMNS,
    Layout,
    answers_of,
    column,
    offered,
    right_choices,
    text_of,
    unread,
)
from backslide.suite.matching import fold
from backslide.suite.sources import Row
from backslide.suite.suite import Suite

LONGEST = 20_000
"""Characters of a prompt or text; longer ones are left out, and said."""
LONGEST_ANSWER = 200
"""Characters of an accepted answer of kind `answer`: no model repeats a longer one word for word."""


@dataclass(frozen=True)
class Made:
    """Items, and what the user should know of the rows that became none."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()

    def suite(self, name: str, source: str | None = None) -> Suite:
        """The items as a suite. Raises `SuiteError`, naming the source, where there are none."""
        if not self.items:
            why = "; ".join(self.notes) or "there was no row"
            raise SuiteError(f"{source or name}: no item came of it: {why}; correct these rows, or add others")
        return Suite(name, self.items)

    def limited(self, limit: int | None) -> Made:
        """At most `limit` items: those with the smallest hash, in their order, so that the choice is a random one
        that hardly changes when rows are added.
        """
        if limit is None or len(self.items) <= limit:
            return self
        kept = {item.id for item in sorted(self.items, key=lambda item: digest("limit", item.id))[:limit]}
        note = f"{limit} of {len(self.items)} items {'is' if limit == 1 else 'are'} kept, as asked"
        return Made(tuple(item for item in self.items if item.id in kept), (*self.notes, note))


@dataclass
class _LeftOut:
    """Rows that became no item, by reason."""

    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        self.places.setdefault(reason, []).append(place)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"left out, {reason}: {number_of(len(places), 'row')}, the first is {places[0]}"
            for reason, places in self.places.items()
        )


def from_qa(
    rows: Sequence[Row],
    capability: str,
    *,
    kind: Literal["answer", "choice"] | None = None,
    question: str | None = None,
    answer: str | None = None,
    strict: bool = True,
) -> Made:
    """Items from questions with their accepted answers, in one of the layouts of `backslide.suite.layouts`.

    Kind `answer`: replies are matched as `number` where all accepted answers of the item are numbers, else as
    `contains`. Kind `choice`: the row's own choices; where it has none the first accepted answer among three
    distractors, which are drawn from the other rows' answers of the same type and similar length, by a hash of
    question and answer: an item's distractors change only where an added answer comes before them in that order.

    A passage stands in front of its question, and is the cluster of its items.

    Args:
        rows: at least one.
        capability: of the items.
        kind: of the items; None: `choice` where the rows have choices, else `answer`.
        question: column with the question; None: the first usual name that is there.
        answer: column with the answer or the list of accepted answers; None: likewise.
        strict: whether a row of which the choices are too few, empty or equal is an error; False: it is left out, and
            said, for rows that are not the user's to mend.

    Raises:
        SuiteError: a column is missing or of the wrong type, choices are too few, empty or equal, an answer is none of
            them, or there are too few other answers for distractors.
    """
    layout = Layout.of(rows, question=question, answer=answer)
    kind = kind or ("choice" if layout.choices is not None else "answer")
    out = _LeftOut()
    good = _questions(rows, layout, kind, out, strict)
    notes: tuple[str, ...] = ()
    items: list[Item] = []
    if kind == "choice":
        if layout.choices is None:
            good, notes = _with_distractors(good)
        items += [_choice_item(capability, asked) for asked in good]
    else:
        items += [_answer_item(capability, asked) for asked in good]
    return Made(tuple(items), (*layout.unread(rows), *out.notes, *notes))


@dataclass(frozen=True, slots=True)
class _Question:
    """What a row asks."""

    row: Row
    prompt: str
    answers: tuple[str, ...]
    passage: str
    """With which the prompt begins; it may be empty."""
    choices: tuple[str, ...]
    gold: int
    own: tuple[str, ...] = ()
    """Choices that the row itself has: they are part of what is asked, drawn ones are not."""


def _questions(
    rows: Sequence[Row], layout: Layout, kind: Literal["answer", "choice"], out: _LeftOut, strict: bool
) -> list[_Question]:
    chosen = _chosen(rows, layout, out, strict)
    asked: dict[tuple[str, ...], tuple[str, ...]] = {}
    good: list[_Question] = []
    for number, row in enumerate(rows):
        prompt, passage = layout.prompt_of(row)
        said = answers_of(row, layout.answer or "")
        choices, gold = chosen.get(number, ((), 0)) if chosen is not None else ((), 0)
        answers = (choices[gold],) if choices else said if chosen is None else ()
        if kind == "answer" or chosen is None:
            choices, answers = (), tuple(answer for answer in answers if fold(answer))  # "." is none
        # Which of these is true? One question may stand over many sets of choices.
        key = (fold(prompt), *sorted(map(fold, choices)))
        if not prompt or not said:
            out.add(f"the {'answer' if prompt else 'question'} is empty", row.place)
        elif chosen is not None and number not in chosen:
            continue  # said where its choices were looked at
        elif not answers:
            out.add("the answer is empty", row.place)
        elif len(prompt) > LONGEST:
            out.add(f"the question is longer than {LONGEST:,} characters", row.place)
        elif kind == "answer" and min(map(len, answers)) > LONGEST_ANSWER:
            out.add(f"the answer is longer than {LONGEST_ANSWER} characters, to be matched in a reply", row.place)
        elif (before := asked.get(key)) is not None:
            same = sorted(map(fold, before)) == sorted(map(fold, answers))
            out.add("the question was there before" + ("" if same else ", with another answer"), row.place)
        else:
            asked[key] = answers
            good.append(_Question(row, prompt, answers, passage, choices, gold, own=choices))
    return good


def _chosen(
    rows: Sequence[Row], layout: Layout, out: _LeftOut, strict: bool
) -> dict[int, tuple[tuple[str, ...], int]] | None:
    """Choices and the index of the right one, by the number of the row, of rows with usable ones; None where the
    layout has no choices.
    """
    if layout.choices is None:
        return None
    usable = {}
    for number, row in enumerate(rows):
        offer = offered(row, layout)
        if not offer.said or not layout.prompt_of(row)[0]:
            continue
        wrong = _unfit(offer.texts)
        if wrong is None:
            usable[number] = offer
        elif strict:
            raise SuiteError(f"{row.place}: {layout.choices} {wrong}; correct the row, or leave it out")
        else:
            out.add("its choices are too few, empty or equal", f"{row.place}, whose {layout.choices} {wrong}")
    right = right_choices(list(usable.values()), layout.answer or "")
    return {number: (offer.texts, gold) for (number, offer), gold in zip(usable.items(), right, strict=True)}


def _unfit(choices: Sequence[str]) -> str | None:
    """What is wrong with choices: too few, or one that is empty or looks like another."""
    if len(choices) < 2:
        return f"is {shown(list(choices))}, and two or more are needed"
    looks = [seen(choice) for choice in choices]
    for place, choice in enumerate(choices):
        if is_blank(choice):
            return f"has {shown(choice)} at {place} (from 0), which is empty"
        if looks[place] in looks[:place]:
            first = looks.index(looks[place])
            return f"has {shown(choices[first])} at {first} and {shown(choice)} at {place} (from 0), which look equal"
    return None


def from_texts(rows: Sequence[Row], capability: str, *, text: str | None = None) -> Made:
    """Items of kind `text`, from rows with a text column; None: the first usual name that is there.

    Raises `SuiteError` where the column is missing or holds no text.
    """
    name = column(rows, text, TEXT_COLUMNS, "--text-column")
    out = _LeftOut()
    made = []
    for row, said, _ in _distinct(((row, text_of(row, name), "") for row in rows), "text", out):
        with _at(row):
            made.append(TextItem(id=_id(capability, said), capability=capability, text=said))
    return Made(tuple(made), (*unread(rows, (name,)), *out.notes))


def from_prompts(rows: Sequence[Row], capability: str, *, prompt: str | None = None) -> Made:
    """Items of kind `open`, without a reference, from rows with a prompt column; None: the first usual name.

    A passage stands in front of its prompt, and is the cluster of its items; the input of an instruction follows it.

    Raises `SuiteError` where the column is missing or holds no text.
    """
    layout = Layout.of(rows, question=prompt, usual=tuple(dict.fromkeys(("prompt", *QUESTION_COLUMNS))), answers=False)
    out = _LeftOut()
    made = []
    for row, said, passage in _distinct(((row, *layout.prompt_of(row)) for row in rows), "prompt", out):
        with _at(row):
            made.append(
                OpenItem(id=_id(capability, said), capability=capability, cluster=_passage(passage), prompt=said)
            )
    return Made(tuple(made), (*layout.unread(rows), *out.notes))


def _distinct(said_by: Iterable[tuple[Row, str, str]], noun: str, out: _LeftOut) -> Iterator[tuple[Row, str, str]]:
    """Rows, each with its text and what else is known of it, without those that are empty, too long or repeated."""
    seen: set[str] = set()
    for row, said, more in said_by:
        if not said:
            out.add(f"the {noun} is empty", row.place)
        elif len(said) > LONGEST:
            out.add(f"the {noun} is longer than {LONGEST:,} characters", row.place)
        elif fold(said) in seen:
            out.add(f"the {noun} was there before", row.place)
        else:
            seen.add(fold(said))
            yield row, said, more


def _answer_item(capability: str, asked: _Question) -> AnswerItem:
    match: Match = "number" if all(type_of(answer) == "number" for answer in asked.answers) else "contains"
    short = tuple(answer for answer in asked.answers if len(answer) <= LONGEST_ANSWER)
    with _at(asked.row):
        return AnswerItem(
            id=_id(capability, asked.prompt, *asked.answers),
            capability=capability,
            cluster=_passage(asked.passage),
            prompt=asked.prompt,
            answers=short,
            match=match,
        )


def _choice_item(capability: str, asked: _Question) -> ChoiceItem:
    # The kind is in the hash: a question may be asked in both ways in one suite. It then stays in one half.
    question = _id(capability, asked.prompt, *asked.answers)
    with _at(asked.row):
        return ChoiceItem(
            id=_id(capability, "choice", asked.prompt, *asked.answers, *asked.own),
            capability=capability,
            cluster=_passage(asked.passage) or question,
            prompt=asked.prompt,
            choices=asked.choices,
            gold=asked.gold,
        )


def _with_distractors(good: Sequence[_Question]) -> tuple[list[_Question], tuple[str, ...]]:
    """The questions with drawn choices, and what is to be said of them."""
    pools = pools_of(answer for asked in good for answer in asked.answers[:1])
    different = sum(map(len, pools.values()))
    if good and different <= DISTRACTORS:
        raise SuiteError(
            f"{good[0].row.place}: the file has {number_of(different, 'different answer')}, and a choice item needs "
            f"one right and {DISTRACTORS} wrong ones; add rows, or make items of kind answer (--kind answer)"
        )
    found: list[_Question] = []
    other: list[str] = []
    for asked in good:
        wrong, alike = distractors(asked.prompt, asked.answers, pools)
        if len(wrong) < DISTRACTORS:
            are = "is" if len(wrong) == 1 else "are"
            raise SuiteError(
                f"{asked.row.place}: only {len(wrong)} of the other answers {are} wrong here, {DISTRACTORS} are "
                "needed; add rows with other answers, or make items of kind answer (--kind answer)"
            )
        if not alike:
            other.append(asked.row.place)
        right = asked.answers[0]
        choices = tuple(sorted((right, *wrong), key=lambda choice: digest("order", asked.prompt, choice)))
        found.append(replace(asked, choices=choices, gold=choices.index(right)))
    notes: tuple[str, ...] = ()
    if other:
        notes = (
            f"{len(other)} item{'s have' if len(other) > 1 else ' has'} distractors of another type or length than "
            f"the answer, the first is {other[0]}; such items are easy: more rows of the same kind would help",
        )
    return found, notes


@contextlib.contextmanager
def _at(row: Row) -> Iterator[None]:
    """Says where it was when an item cannot be made inside."""
    try:
        yield
    except SuiteError as bad:
        raise SuiteError(f"{row.place}: {bad}") from None


def _passage(text: str) -> str | None:
    """Name of the cluster of what is asked about a passage, whatever the capability is called."""
    return f"passage/{digest(text)[:12]}" if text else None


def _id(capability: str, *content: str) -> str:
    return f"{capability}/{digest(*content)[:12]}"
