"""Does the model still know an answer that it no longer gives? A hidden choice behind each `answer` item.

The log-likelihood of the item's first accepted answer is compared with those of *foils*, the first accepted answers of
other items of its capability, all as continuations of the same prompt. The item stays what it is: its reply decides
whether it is right, and its digest does not depend on the foils. `backslide.diagnosis.knowledge` reads the scores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from backslide.record import Outcome
from backslide.scoring.requests import Request, continuations, encode_pairs, rendered
from backslide.scoring.runner import Runner
from backslide.suite.item import AnswerItem, Item
from backslide.suite.matching import fold, matches

FOILS = 3
"""Other answers beside the accepted one, at most."""


def foils(items: Iterable[Item]) -> dict[str, tuple[str, ...]]:
    """Of each item that can be probed its first accepted answer, then its foils. Give it the whole suite.

    A foil is the first accepted answer of another item of the same capability and matcher; those of the same sort
    (numbers, words with a capital, others) come first, and then a hash of item and foil decides, so that a foil
    depends on nothing but the suite. Left out are answers that the item would accept, and those that one of the two
    begins with: the beginning of a text is always as likely as the text or likelier. Patterns (`regex`) are no answers.
    """
    groups: dict[tuple[str, str], list[AnswerItem]] = {}
    for item in items:
        if isinstance(item, AnswerItem) and item.match != "regex":
            groups.setdefault((item.capability, item.match), []).append(item)
    found = {}
    for members in groups.values():
        # Of answers that differ in case or white space alone the first by order, whatever the order of the items.
        pool: dict[str, str] = {}
        for answer in sorted(item.answers[0] for item in members):
            pool.setdefault(fold(answer), answer)
        for item in members:
            own = item.answers[0]
            others = [answer for answer in pool.values() if _differs(answer, item)]
            ranked = sorted((_sort(answer) != _sort(own), _hash(item.id, answer), answer) for answer in others)
            if ranked:
                found[item.id] = (own, *(answer for _, _, answer in ranked[:FOILS]))
    return found


def probe(
    runner: Runner,
    model: Any,
    items: Sequence[Item],
    answers: dict[str, tuple[str, ...]],
    *,
    chat: bool,
    max_length: int,
    name: str,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[dict[str, tuple[float | None, ...]], int]:
    """Log-likelihoods of the answers of `foils` to each of `items`, and the number of tokens computed.

    Args:
        runner: what scores; the model is to be inside a `backslide.scoring.session`.
        model: a Hugging Face causal language model.
        items: what is probed, of which those in `answers` count.
        answers: what `foils` gives for the whole suite.
        chat: ask through the chat template.
        max_length: the most tokens that the model takes.
        name: what progress is told.
        progress: called with `name`, how many answers are scored, and of how many.

    Returns:
        For each item that was probed the score of the accepted answer, then those of its foils; None where one is not
        finite.
    """
    requests = written(runner.tokenizer, items, answers, chat=chat, max_length=max_length)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(name, done, len(requests))

    # Planned anew each time: which items these are depends on how many processes share them.
    scores, tokens = runner.score(model, requests, name=None, progress=advance)
    found: dict[str, list[float | None]] = {}
    for request, score in zip(requests, scores, strict=True):
        found.setdefault(request.item, []).append(score.logprob if math.isfinite(score.logprob) else None)
    return {item: tuple(values) for item, values in found.items()}, tokens


def written(
    tokenizer: Any, items: Sequence[Item], answers: dict[str, tuple[str, ...]], *, chat: bool, max_length: int
) -> list[Request]:
    """The requests of a probe, split as those of choices are.

    An item with an answer that is no token, or more than the model takes, is left out: unlike the choices of an item,
    nothing is decided by it.
    """
    asked = [item for item in items if isinstance(item, AnswerItem) and item.id in answers]
    delimiter = "" if chat else " "
    owners = [(item.id, index) for item in asked for index in range(len(answers[item.id]))]
    prompts = {item.id: rendered(item.prompt, tokenizer, chat) for item in asked}
    pairs = [(prompts[item.id], delimiter + answer) for item in asked for answer in answers[item.id]]
    sizes = [len(continuation) for _, continuation in encode_pairs(tokenizer, pairs)]
    unfit = {owner for (owner, _), size in zip(owners, sizes, strict=True) if not 0 < size <= max_length}
    kept = [(owner, pair) for owner, pair in zip(owners, pairs, strict=True) if owner[0] not in unfit]
    return continuations(tokenizer, [owner for owner, _ in kept], [pair for _, pair in kept], max_length)


def probed(outcomes: Iterable[Outcome], scores: dict[str, tuple[float | None, ...]]) -> list[Outcome]:
    """The outcomes with the scores of a probe, where there are some; nothing else of them changes."""
    return [dataclasses.replace(o, scores=scores[o.id]) if o.id in scores else o for o in outcomes]


def _differs(answer: str, item: AnswerItem) -> bool:
    if matches(answer, item.answers, item.match):
        return False
    other = fold(answer)
    return not any((own := fold(a)).startswith(other) or other.startswith(own) for a in item.answers)


def _sort(answer: str) -> str:
    if any(character.isdigit() for character in answer):
        return "number"
    return "name" if answer[:1].isupper() else "word"


def _hash(item: str, answer: str) -> bytes:
    return hashlib.sha256(f"{item}\0{answer}".encode()).digest()
