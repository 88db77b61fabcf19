"""Items from the user's own material: questions with answers, texts, prompts.

An item's id is a hash of its content, so an item keeps its id, and with it its half, whatever is added to the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from backslide.errors import SuiteError
from backslide.suite.item import AnswerItem, ChoiceItem, Item, Match, OpenItem, TextItem
from backslide.suite.matching import fold, matches, numbers
from backslide.suite.sources import ANSWER_COLUMNS, QUESTION_COLUMNS, TEXT_COLUMNS, Row, answers_of, column, text_of
from backslide.suite.suite import Suite

LONGEST = 20_000
"""Characters of a prompt or text; longer ones are left out, and said."""
LONGEST_ANSWER = 200
"""Characters of an accepted answer of kind `answer`: no model repeats a longer one word for word."""
DISTRACTORS = 3
"""Wrong choices of a `choice` item."""
POOL = 400
"""Answers of one type from which distractors are drawn, where there are more: those with the smallest hash."""

_NUMBER = re.compile(r"[-−+]?[$€£]?\d[\d,]*(\.\d+)?\s?%?")
_YES_NO = frozenset(("yes", "no", "true", "false"))


@dataclass(frozen=True)
class Made:
    """Items, and what the user should know of the rows that became none."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()

    def suite(self, name: str) -> Suite:
        """The items as a suite. Raises `SuiteError` where there are none."""
        if not self.items:
            raise SuiteError(f"{name}: no item came of it: " + ("; ".join(self.notes) or "there was no row"))
        return Suite(name, self.items)

    def limited(self, limit: int | None) -> Made:
        """At most `limit` items: those with the smallest hash, in their order, so that the choice is a random one
        that hardly changes when rows are added.
        """
        if limit is None or len(self.items) <= limit:
            return self
        kept = {item.id for item in sorted(self.items, key=lambda item: _hash("limit", item.id))[:limit]}
        note = f"{limit} of {len(self.items)} items are kept, as asked"
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
            f"left out, {reason}: {len(places)} row{'s' if len(places) > 1 else ''}, the first is {places[0]}"
            for reason, places in self.places.items()
        )


def from_qa(
    rows: Sequence[Row],
    capability: str,
    *,
    kind: Literal["answer", "choice"] = "answer",
    question: str | None = None,
    answer: str | None = None,
) -> Made:
    """Items from questions with their accepted answers.

    Kind `answer`: replies are matched as `number` where all accepted answers of the item are numbers, else as
    `contains`. Kind `choice`: the first accepted answer among three distractors, which are drawn from the other rows'
    answers of the same type and similar length, by a hash of question and answer: an item's distractors change only
    where an added answer comes before them in that order.

    Args:
        rows: at least one.
        capability: of the items.
        kind: of the items.
        question: column with the question; None: the first usual name that is there.
        answer: column with the answer or the list of accepted answers; None: likewise.

    Raises:
        SuiteError: a column is missing or of the wrong type, or there are too few other answers for distractors.
    """
    asks = column(list(rows), question, QUESTION_COLUMNS, "--question-column")
    says = column(list(rows), answer, ANSWER_COLUMNS, "--answer-column")
    out = _LeftOut()
    asked: dict[str, tuple[str, ...]] = {}
    good: list[tuple[Row, str, tuple[str, ...]]] = []
    for row in rows:
        prompt = text_of(row, asks)
        answers = tuple(answer for answer in answers_of(row, says) if fold(answer))  # "." is none
        if not prompt or not answers:
            out.add(f"the {'question' if not prompt else 'answer'} is empty", row.place)
        elif len(prompt) > LONGEST:
            out.add(f"the question is longer than {LONGEST:,} characters", row.place)
        elif kind == "answer" and min(map(len, answers)) > LONGEST_ANSWER:
            out.add(f"the answer is longer than {LONGEST_ANSWER} characters, to be matched in a reply", row.place)
        elif (before := asked.get(fold(prompt))) is not None:
            same = sorted(map(fold, before)) == sorted(map(fold, answers))
            out.add("the question was there before" + ("" if same else ", with another answer"), row.place)
        else:
            asked[fold(prompt)] = answers
            good.append((row, prompt, answers))
    if kind == "answer":
        items = []
        for row, prompt, answers in good:
            with _at(row):
                items.append(_answer_item(capability, prompt, answers))
        return Made(tuple(items), out.notes)
    chosen, notes = _choice_items(good, capability)
    return Made(tuple(chosen), (*out.notes, *notes))


def from_texts(rows: Sequence[Row], capability: str, *, text: str | None = None) -> Made:
    """Items of kind `text`, from rows with a text column; None: the first usual name that is there.

    Raises `SuiteError` where the column is missing or holds no text.
    """
    name = column(list(rows), text, TEXT_COLUMNS, "--text-column")
    kept, notes = _distinct(rows, name, "text")
    made = []
    for row, said in kept:
        with _at(row):
            made.append(TextItem(id=_id(capability, said), capability=capability, text=said))
    return Made(tuple(made), notes)


def from_prompts(rows: Sequence[Row], capability: str, *, prompt: str | None = None) -> Made:
    """Items of kind `open`, without a reference, from rows with a prompt column; None: the first usual name.

    Raises `SuiteError` where the column is missing or holds no text.
    """
    name = column(list(rows), prompt, ("prompt", *QUESTION_COLUMNS), "--question-column")
    kept, notes = _distinct(rows, name, "prompt")
    made = []
    for row, said in kept:
        with _at(row):
            made.append(OpenItem(id=_id(capability, said), capability=capability, prompt=said))
    return Made(tuple(made), notes)


def _distinct(rows: Iterable[Row], name: str, noun: str) -> tuple[list[tuple[Row, str]], tuple[str, ...]]:
    out = _LeftOut()
    seen: set[str] = set()
    kept = []
    for row in rows:
        said = text_of(row, name)
        if not said:
            out.add(f"the {noun} is empty", row.place)
        elif len(said) > LONGEST:
            out.add(f"the {noun} is longer than {LONGEST:,} characters", row.place)
        elif fold(said) in seen:
            out.add(f"the {noun} was there before", row.place)
        else:
            seen.add(fold(said))
            kept.append((row, said))
    return kept, out.notes


def _answer_item(capability: str, prompt: str, answers: tuple[str, ...]) -> AnswerItem:
    match: Match = "number" if all(_type(answer) == "number" for answer in answers) else "contains"
    short = tuple(answer for answer in answers if len(answer) <= LONGEST_ANSWER)
    return AnswerItem(
        id=_id(capability, prompt, *answers), capability=capability, prompt=prompt, answers=short, match=match
    )


def _choice_items(
    good: Sequence[tuple[Row, str, tuple[str, ...]]], capability: str
) -> tuple[list[ChoiceItem], tuple[str, ...]]:
    pools = _pools(answer for _, _, answers in good for answer in answers[:1])
    different = sum(map(len, pools.values()))
    if good and different <= DISTRACTORS:
        raise SuiteError(
            f"{good[0][0].place}: the file has {different} different answers, and a choice item needs one right and "
            f"{DISTRACTORS} wrong ones; add rows, or make items of kind answer (--kind answer)"
        )
    items: list[ChoiceItem] = []
    other: list[str] = []
    for row, prompt, answers in good:
        wrong, alike = _distractors(prompt, answers, pools)
        if len(wrong) < DISTRACTORS:
            raise SuiteError(
                f"{row.place}: only {len(wrong)} of the other answers are wrong here, {DISTRACTORS} are needed; add "
                "rows with other answers, or make items of kind answer (--kind answer)"
            )
        if not alike:
            other.append(row.place)
        choices = sorted((answers[0], *wrong), key=lambda choice: _hash("order", prompt, choice))
        with _at(row):
            items.append(
                ChoiceItem(
                    id=_id(capability, prompt, *answers),
                    capability=capability,
                    prompt=prompt,
                    choices=tuple(choices),
                    gold=choices.index(answers[0]),
                )
            )
    notes: tuple[str, ...] = ()
    if other:
        notes = (
            f"{len(other)} item{'s have' if len(other) > 1 else ' has'} distractors of another type or length than "
            f"the answer, the first is {other[0]}; such items are easy: more rows of the same kind would help",
        )
    return items, notes


def _pools(answers: Iterable[str]) -> dict[str, list[str]]:
    """Different answers by type, at most `POOL` of a type."""
    distinct: dict[str, str] = {}
    for answer in answers:
        distinct.setdefault(fold(answer), answer)
    pools: dict[str, list[str]] = {}
    for answer in sorted(distinct.values(), key=lambda answer: _hash("pool", fold(answer))):
        pool = pools.setdefault(_type(answer), [])
        if len(pool) < POOL:
            pool.append(answer)
    return pools


def _distractors(prompt: str, answers: tuple[str, ...], pools: dict[str, list[str]]) -> tuple[list[str], bool]:
    """Wrong choices, and whether all are of the answer's type and of similar length."""
    gold = answers[0]
    same = pools.get(_type(gold), [])
    # Nearest first: same type and length, same type, anything.
    tiers = (
        [answer for answer in same if _similar(gold, answer)],
        same,
        [answer for pool in pools.values() for answer in pool],
    )
    found: list[str] = []
    alike = True
    for number, tier in enumerate(tiers):
        for answer in sorted(tier, key=lambda answer: _hash(prompt, answer)):
            if len(found) == DISTRACTORS:
                return found, alike
            if answer not in found and not any(_equal(answer, right) for right in (*answers, *found)):
                found.append(answer)
                alike = alike and number == 0
    return found, alike


def _equal(a: str, b: str) -> bool:
    """Whether the one is right where the other is: equal after folding, the same number, or words of the other."""
    if _type(a) == _type(b) == "number":
        return numbers(a)[-1:] == numbers(b)[-1:]
    return fold(a) == fold(b) or matches(a, [b], "contains") or matches(b, [a], "contains")


def _similar(a: str, b: str) -> bool:
    short, long = sorted((len(a), len(b)))
    return long <= 2 * short or long - short <= 4


def _type(answer: str) -> str:
    """What sort of answer it is, so that a number stands among numbers and a name among names."""
    if _NUMBER.fullmatch(answer):
        return "number"
    if fold(answer) in _YES_NO:
        return "yes or no"
    if any(character.isdigit() for character in answer):
        return "with digits"
    return "name" if answer[:1].isupper() else "words"


@contextlib.contextmanager
def _at(row: Row) -> Iterator[None]:
    """Says where it was when an item cannot be made inside."""
    try:
        yield
    except SuiteError as bad:
        raise SuiteError(f"{row.place}: {bad}") from None


def _id(capability: str, *content: str) -> str:
    return f"{capability}/{_hash(*content)[:12]}"


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
