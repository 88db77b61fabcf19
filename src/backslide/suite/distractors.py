"""Wrong choices for a question: other answers of the same type and similar length, drawn by hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from backslide.suite.matching import fold, matches, numbers

DISTRACTORS = 3
"""Wrong choices of a `choice` item."""
POOL = 400
"""Answers of one type from which distractors are drawn, where there are more: those with the smallest hash."""

_NUMBER = re.compile(r"[-−+]?[$€£]?\d[\d,]*(\.\d+)?\s?%?")
_YES_NO = frozenset(("yes", "no", "true", "false"))


def pools_of(answers: Iterable[str]) -> dict[str, list[str]]:
    """Different answers by type, at most `POOL` of a type."""
    distinct: dict[str, str] = {}
    for answer in answers:
        distinct.setdefault(fold(answer), answer)
    pools: dict[str, list[str]] = {}
    for answer in sorted(distinct.values(), key=lambda answer: digest("pool", fold(answer))):
        pool = pools.setdefault(type_of(answer), [])
        if len(pool) < POOL:
            pool.append(answer)
    return pools


def distractors(prompt: str, answers: tuple[str, ...], pools: dict[str, list[str]]) -> tuple[list[str], bool]:
    """Wrong choices, and whether all are of the answer's type and of similar length."""
    gold = answers[0]
    same = pools.get(type_of(gold), [])
    # Nearest first: same type and length, same type, anything.
    tiers = (
        [answer for answer in same if _similar(gold, answer)],
        same,
        [answer for pool in pools.values() for answer in pool],
    )
    found: list[str] = []
    alike = True
    for number, tier in enumerate(tiers):
        for answer in sorted(tier, key=lambda answer: digest(prompt, answer)):
            if len(found) == DISTRACTORS:
                return found, alike
            if answer not in found and not any(_equal(answer, right) for right in (*answers, *found)):
                found.append(answer)
                alike = alike and number == 0
    return found, alike


def _equal(a: str, b: str) -> bool:
    """Whether the one is right where the other is: equal after folding, the same number, or words of the other."""
    if type_of(a) == type_of(b) == "number":
        return numbers(a)[-1:] == numbers(b)[-1:]
    return fold(a) == fold(b) or matches(a, [b], "contains") or matches(b, [a], "contains")


def _similar(a: str, b: str) -> bool:
    short, long = sorted((len(a), len(b)))
    return long <= 2 * short or long - short <= 4


def type_of(answer: str) -> str:
    """What sort of answer it is, so that a number stands among numbers and a name among names."""
    if _NUMBER.fullmatch(answer):
        return "number"
    if fold(answer) in _YES_NO:
        return "yes or no"
    if any(character.isdigit() for character in answer):
        return "with digits"
    return "name" if answer[:1].isupper() else "words"


def digest(*parts: str) -> str:
    """SHA-256 of texts in their order."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
