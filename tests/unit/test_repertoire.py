"""The bundled suite: its size, balance and the golds that can be computed."""

from __future__ import annotations

import operator
import re
import subprocess
import sys
from collections import Counter, defaultdict
from fractions import Fraction

import pytest

from backslide.suite.item import ChoiceItem, OpenItem
from backslide.suite.suite import Suite, half_of

SUITE = Suite.repertoire()
CHOICES: dict[str, list[ChoiceItem]] = defaultdict(list)
for _item in SUITE.items:
    if isinstance(_item, ChoiceItem):
        CHOICES[_item.capability].append(_item)

capability = pytest.mark.parametrize("capability", sorted(CHOICES))


def test_it_is_large_enough() -> None:
    assert sum(map(len, CHOICES.values())) >= 200
    assert len(CHOICES) >= 5


def test_loading_it_needs_no_torch() -> None:
    code = "import sys; from backslide.suite.suite import Suite; Suite.repertoire(); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_load_by_name_is_the_same_suite() -> None:
    assert Suite.load("repertoire").hash == SUITE.hash


def test_ids_start_with_their_capability() -> None:
    assert [item.id for item in SUITE.items if not item.id.startswith(f"{item.capability}/")] == []


@capability
def test_each_half_has_enough_items(capability: str) -> None:
    halves = Counter(half_of(item) for item in CHOICES[capability])
    assert min(halves["monitor"], halves["gate"]) >= 25, halves


@capability
def test_there_are_four_different_choices(capability: str) -> None:
    bad = [item.id for item in CHOICES[capability] if len({_plain(choice) for choice in item.choices}) != 4]
    assert bad == []


@capability
def test_no_position_is_the_gold_one_too_often(capability: str) -> None:
    items = CHOICES[capability]
    positions = Counter(item.gold for item in items)
    assert max(positions.values()) <= 0.35 * len(items), positions


@capability
def test_length_does_not_give_the_gold_away(capability: str) -> None:
    items = CHOICES[capability]
    longest = shortest = 0
    for item in items:
        lengths = [len(choice) for choice in item.choices]
        gold = lengths.pop(item.gold)
        longest += gold > max(lengths)
        shortest += gold < min(lengths)
    assert longest <= 0.45 * len(items)
    assert shortest <= 0.45 * len(items)


def test_no_prompt_is_there_twice() -> None:
    seen = Counter(_plain(item.prompt) for item in SUITE.items if isinstance(item, (ChoiceItem, OpenItem)))
    assert [prompt for prompt, count in seen.items() if count > 1] == []


def test_the_three_open_questions_are_there() -> None:
    open_prompts = {item.prompt for item in SUITE.items if isinstance(item, OpenItem)}
    assert {"What is 2+2?", "What is the capital of France?", "How do you boil water?"} <= open_prompts


# Arithmetic: what a small parser makes of the prompt must be the gold choice and no other.

NUMBER = r"(\d+)"
RULES: list[tuple[str, str]] = [
    # What the prompt (numbers as digits, lower case) contains; how its numbers are put together.
    (rf"{NUMBER} ?\+ ?{NUMBER} ?\+ ?{NUMBER}", "sum"),
    (rf"{NUMBER} ?(?:\+|plus) ?{NUMBER}", "sum"),
    (rf"(?:add|sum of|what do) {NUMBER} and {NUMBER}", "sum"),
    (rf"{NUMBER} ?(?:-|minus|take away) ?{NUMBER}\?", "minus"),
    (rf"difference between {NUMBER} and {NUMBER}", "minus"),
    (rf"subtract {NUMBER} from {NUMBER}", "from"),
    (rf"{NUMBER} (?:x|times|multiplied by) {NUMBER}", "times"),
    (rf"product of {NUMBER} and {NUMBER}", "times"),
    (rf"{NUMBER} (?:/|divided by) {NUMBER}", "by"),
    (rf"(?:twice|double) {NUMBER}", "double"),
    (rf"half of {NUMBER}", "half"),
    (rf"{NUMBER} squared", "square"),
    (rf"square root of {NUMBER}", "root"),
    (rf"right after {NUMBER}", "next"),
    (rf"just before {NUMBER}", "previous"),
    (rf": {NUMBER}, {NUMBER}, {NUMBER}\?", "series"),
    (rf"(?:largest|greatest): {NUMBER}, {NUMBER}, {NUMBER} or {NUMBER}", "largest"),
    (rf"smallest: {NUMBER}, {NUMBER}, {NUMBER} or {NUMBER}", "smallest"),
    (rf"even: {NUMBER}, {NUMBER}, {NUMBER} or {NUMBER}", "even"),
    (rf"odd: {NUMBER}, {NUMBER}, {NUMBER} or {NUMBER}", "odd"),
    # Word problems.
    (rf"has {NUMBER} \w+ and gets {NUMBER} more", "sum"),
    (rf"had {NUMBER} \w+ and ate {NUMBER}\.", "minus"),
    (rf"are {NUMBER} \w+ and {NUMBER} flies away", "minus"),
    (rf"holds {NUMBER} \w+\. how many \w+ are in {NUMBER} ", "times"),
    (rf"{NUMBER} children share {NUMBER} ", "shared"),
    (rf"costs {NUMBER} dollars\. what do {NUMBER} ", "times"),
    (rf"pay {NUMBER} dollars for a {NUMBER}-dollar", "minus"),
    (rf"is {NUMBER} years old\. how old will she be next year", "next"),
]


def _only(numbers: list[int], remainder: int) -> int:
    (found,) = [number for number in numbers if number % 2 == remainder]
    return found


def _root(number: int) -> int:
    (found,) = [root for root in range(number + 1) if root * root == number]
    return found


def _next_in_series(n: list[int]) -> int:
    assert n[1] - n[0] == n[2] - n[1]
    return 2 * n[2] - n[1]


VALUE = {
    "sum": sum,
    "minus": lambda n: n[0] - n[1],
    "from": lambda n: n[1] - n[0],
    "times": lambda n: n[0] * n[1],
    "by": lambda n: Fraction(n[0], n[1]),
    "shared": lambda n: Fraction(n[1], n[0]),
    "double": lambda n: 2 * n[0],
    "half": lambda n: Fraction(n[0], 2),
    "square": lambda n: n[0] ** 2,
    "root": lambda n: _root(n[0]),
    "next": lambda n: n[0] + 1,
    "previous": lambda n: n[0] - 1,
    "series": _next_in_series,
    "largest": max,
    "smallest": min,
    "even": lambda n: _only(n, 0),
    "odd": lambda n: _only(n, 1),
}
WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", text).casefold()


def _value_of_prompt(prompt: str) -> Fraction | None:
    text = re.sub(r"\b[a-z]+\b", lambda word: str(WORDS.get(word[0], word[0])), prompt.lower())
    for pattern, how in RULES:
        if found := re.search(pattern, text):
            return Fraction(VALUE[how]([int(number) for number in found.groups()]))
    return None


def _value_of_choice(choice: str) -> int:
    # "8 x 2 = 16", "2, 4, 6, 8" and "The root is 3" end with their number; "14 dollars" and "Only 6 is even" have one.
    return int(re.findall(r"\d+", choice)[-1])


def _computable() -> list[tuple[ChoiceItem, Fraction]]:
    pairs = ((item, _value_of_prompt(item.prompt)) for item in CHOICES["arithmetic"])
    return [(item, value) for item, value in pairs if value is not None]


def test_most_arithmetic_prompts_can_be_computed() -> None:
    assert len(_computable()) >= 60


@pytest.mark.parametrize(("item", "value"), [pytest.param(item, value, id=item.id) for item, value in _computable()])
def test_the_arithmetic_gold_is_right_and_no_other_choice_is(item: ChoiceItem, value: Fraction) -> None:
    right = [index for index, choice in enumerate(item.choices) if _value_of_choice(choice) == value]
    assert right == [item.gold], f"{item.prompt} is {value}: {item.choices}"


STEP = {"+": operator.add, "-": operator.sub, "x": operator.mul, "/": operator.truediv}
EQUATION = re.compile(r"(\d+(?: [+\-x/] \d+)+) = (\d+)")


@pytest.mark.parametrize("item", [pytest.param(item, id=item.id) for item in CHOICES["arithmetic"]])
def test_an_equation_holds_if_and_only_if_it_is_the_gold(item: ChoiceItem) -> None:
    for index, choice in enumerate(item.choices):
        if equation := EQUATION.fullmatch(choice):
            left, right = equation.groups()
            value, *steps = left.split(" ")
            value = Fraction(value)
            for sign, number in zip(steps[::2], steps[1::2], strict=True):
                value = STEP[sign](value, int(number))
            assert (value == int(right)) == (index == item.gold), choice
