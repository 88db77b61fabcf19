"""The bundled suite: its size, balance and the golds that can be computed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict
from fractions import Fraction

import pytest

from backslide.suite.item import AnswerItem, ChoiceItem, OpenItem, TextItem
from backslide.suite.matching import matches
from backslide.suite.measured import bundled_measurement
from backslide.suite.suite import Suite, half_of

SUITE = Suite.repertoire()
CHOICES: dict[str, list[ChoiceItem]] = defaultdict(list)
for _item in SUITE.items:
    if isinstance(_item, ChoiceItem):
        CHOICES[_item.capability].append(_item)

capability = pytest.mark.parametrize("capability", sorted(CHOICES))


COMPUTED = {"arithmetic", "code", "language", "science", "short_answers", "world_facts"}
"""Capabilities whose items a program makes, from tables of facts or by computing."""
OTHERS = {"common_sense", "everyday", "instructed_replies", "instructions", "reading", "safety", "prose"}


def test_it_asks_what_a_general_assistant_can_do() -> None:
    counts = SUITE.capabilities
    assert {*COMPUTED, *OTHERS} <= set(counts)
    assert {name: counts[name] for name in COMPUTED if counts[name] < 400} == {}
    assert {name: counts[name] for name in OTHERS if counts[name] < 150} == {}


def test_loading_it_needs_no_torch() -> None:
    code = "import sys; from backslide.suite.suite import Suite; Suite.repertoire(); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_load_by_name_is_the_same_suite() -> None:
    assert Suite.load("repertoire").hash == SUITE.hash


def test_what_was_measured_is_of_this_very_suite() -> None:
    measured = bundled_measurement(SUITE)
    assert measured is not None, "run benchmarks/suites.py --save"
    assert set(measured.capabilities) == set(SUITE.capabilities) - {"conversation"}
    accuracies = {name: row.base for name, row in measured.capabilities.items() if row.gate is not None}
    assert {name: base for name, base in accuracies.items() if not 0.4 <= base <= 0.95} == {}
    assert bundled_measurement(SUITE.sample(9)) is None


def test_ids_start_with_their_capability() -> None:
    assert [item.id for item in SUITE.items if not item.id.startswith(f"{item.capability}/")] == []


@capability
def test_the_halves_are_of_about_one_size(capability: str) -> None:
    halves = Counter(half_of(item) for item in CHOICES[capability])
    assert min(halves.values()) >= 0.42 * halves.total(), halves


def test_no_item_shares_its_cluster() -> None:
    """Items that move together count as one, so of each family one was kept."""
    clusters = Counter(item.cluster for item in SUITE.items if item.cluster is not None)
    assert [name for name, count in clusters.items() if count > 1] == []


@capability
def test_the_choices_are_different(capability: str) -> None:
    # As they are: in code and in instructions case and white space may be all that differs.
    bad = [item.id for item in CHOICES[capability] if len(set(item.choices)) < len(item.choices)]
    assert bad == []
    assert {len(item.choices) for item in CHOICES[capability]} <= {2, 4}


@capability
def test_no_position_is_the_gold_one_too_often(capability: str) -> None:
    for size in (2, 4):
        items = [item for item in CHOICES[capability] if len(item.choices) == size]
        positions = Counter(item.gold for item in items)
        assert max(positions.values(), default=0) <= 1.2 * len(items) / size + 1, positions


@capability
def test_length_does_not_give_the_gold_away(capability: str) -> None:
    items = CHOICES[capability]
    chance = sum(1 / len(item.choices) for item in items) / len(items)
    longest = shortest = 0
    for item in items:
        lengths = [len(choice) for choice in item.choices]
        gold = lengths.pop(item.gold)
        longest += gold > max(lengths)
        shortest += gold < min(lengths)
    assert max(longest, shortest) <= 1.25 * chance * len(items)


def test_no_two_items_are_alike() -> None:
    seen: dict[object, list[str]] = defaultdict(list)
    for item in SUITE.items:
        if isinstance(item, ChoiceItem):
            # "Which sentence is correct?" may come with other choices.
            seen[(_plain(item.prompt), *sorted(item.choices))].append(item.id)
        elif isinstance(item, TextItem):
            seen[_plain(item.text)].append(item.id)
        elif isinstance(item, (AnswerItem, OpenItem)):
            seen[_plain(item.prompt)].append(item.id)
    assert [ids for ids in seen.values() if len(ids) > 1] == []


def test_no_question_is_asked_in_two_capabilities() -> None:
    seen: dict[str, set[str]] = defaultdict(set)
    for item in SUITE.items:
        if isinstance(item, (ChoiceItem, AnswerItem)):
            seen[_plain(item.prompt)].add(item.capability)
    assert {prompt: names for prompt, names in seen.items() if len(names) > 1} == {}


def test_no_generated_answer_stands_in_its_question() -> None:
    answers = [item for item in SUITE.items if isinstance(item, AnswerItem) and item.match != "regex"]
    assert [item.id for item in answers if matches(item.prompt, item.answers, item.match)] == []


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
    (rf"^(?!.*(?:even|odd)).*right after {NUMBER}", "next"),
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


def _next_in_series(n: list[int]) -> Fraction | None:
    if n[1] - n[0] == n[2] - n[1]:
        return Fraction(2 * n[2] - n[1])
    if n[1] * n[1] == n[0] * n[2]:
        return Fraction(n[2] * n[2], n[1])
    return None


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
            if len(re.findall(r"\d+", text)) != len(found.groups()):
                return None  # there is more to it than the rule sees
            value = VALUE[how]([int(number) for number in found.groups()])
            return None if value is None else Fraction(value)
    return None


def _value_of_choice(choice: str) -> int:
    # "8 x 2 = 16", "2, 4, 6, 8" and "The root is 3" end with their number; "14 dollars" and "Only 6 is even" have one.
    # In "27 comes before 28." it is the first.
    return int(re.findall(r"(?:(?<== )-)?\d+", choice)[0 if "comes" in choice else -1])


def _computable() -> list[tuple[ChoiceItem, Fraction]]:
    pairs = ((item, _value_of_prompt(item.prompt)) for item in CHOICES["arithmetic"])
    spelled = (all(re.search(r"\d", choice) for choice in item.choices) for item in CHOICES["arithmetic"])
    return [(item, value) for (item, value), digits in zip(pairs, spelled, strict=True) if value is not None and digits]


def test_most_arithmetic_prompts_can_be_computed() -> None:
    assert len(_computable()) >= 120


@pytest.mark.parametrize(("item", "value"), [pytest.param(item, value, id=item.id) for item, value in _computable()])
def test_the_arithmetic_gold_is_right_and_no_other_choice_is(item: ChoiceItem, value: Fraction) -> None:
    right = [index for index, choice in enumerate(item.choices) if _value_of_choice(choice) == value]
    assert right == [item.gold], f"{item.prompt} is {value}: {item.choices}"


EQUATION = re.compile(r"([-(\d][-\d+x/(). ]*) = (-?[\d.]+)")


@pytest.mark.parametrize("item", [pytest.param(item, id=item.id) for item in CHOICES["arithmetic"]])
def test_the_equation_of_the_gold_holds_and_the_same_with_another_result_does_not(item: ChoiceItem) -> None:
    gold = EQUATION.fullmatch(item.choices[item.gold])
    for index, choice in enumerate(item.choices):
        if equation := EQUATION.fullmatch(choice):
            left, right = equation.groups()
            # Numbers, signs and brackets alone, as the pattern has it.
            holds = abs(eval(left.replace("x", "*")) - float(right)) < 1e-9
            if index == item.gold:
                assert holds, choice
            elif gold is not None and gold[1] == left:
                assert not holds, choice  # one with another left side is another way to go wrong
