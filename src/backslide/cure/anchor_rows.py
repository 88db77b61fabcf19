"""The text that a model is anchored on: rows to tokens, the places that count, which rows a step takes. No torch."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backslide.data import TrainingData, text_of
from backslide.errors import DataError
from backslide.suite.leakage import Passage, counted, find_leaks
from backslide.suite.suite import Suite


@dataclass(frozen=True, slots=True)
class AnchorRow:
    """A text in tokens."""

    tokens: tuple[int, ...]
    places: tuple[int, ...]
    """Ascending positions in `tokens`, from 0, whose distribution over the next token is anchored."""


@dataclass(frozen=True)
class AnchorRows:
    """All texts that a model is anchored on."""

    rows: tuple[AnchorRow, ...]
    notes: tuple[str, ...] = ()
    """What was left out or cut, and why."""

    @functools.cached_property
    def digest(self) -> str:
        """Equal for the same tokens and places in the same order."""
        found = hashlib.sha256()
        for row in self.rows:
            for part in (row.tokens, row.places):
                found.update(f"{len(part)} ".encode() + np.asarray(part, dtype="<i4").tobytes())
        return found.hexdigest()

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """For each row the number of anchored places before it, and at the end the number of all."""
        return (0, *np.cumsum([len(row.places) for row in self.rows]).tolist())


def read_rows(rows: Iterable[Mapping[str, Any]] | str | Path, suite: Suite | None) -> tuple[TrainingData, list[str]]:
    """The rows without those that hold an item of the suite, and what is to be said of it.

    Raises `DataError` where a row is malformed or none is left.
    """
    data = TrainingData.load(rows) if isinstance(rows, (str, Path)) else TrainingData.of(rows, "anchor rows")
    notes = [f"{data.skipped} empty rows left out"] if data.skipped else []
    return (data, notes) if suite is None else without(data, suite, notes)


def without(data: TrainingData, suite: Suite, notes: Sequence[str] = ()) -> tuple[TrainingData, list[str]]:
    """The rows that hold no item of the suite, and what is to be said, behind what is known already.

    Raises `DataError` where none is left.
    """
    notes = list(notes)
    texts = [Passage(str(number), text_of(row)) for number, row in enumerate(data.rows)]
    # All places of an item, not the first few: none of these rows may stay.
    leaks = find_leaks(suite, texts, places=len(texts))
    leaked = {int(leak.place) for leak in leaks}
    if not leaked:
        return data, notes
    notes.append(f"{len(leaked)} rows left out: they hold {counted(leaks)} of the suite {suite.name}")
    kept = tuple(row for number, row in enumerate(data.rows) if number not in leaked)
    if not kept:
        raise DataError(f"{data.path}: every row holds an item of the suite {suite.name}; anchor on other text")
    return TrainingData(data.path, data.format, kept, data.skipped), notes


def tokenised(data: TrainingData, tokenizer: Any, max_length: int, notes: Sequence[str] = ()) -> AnchorRows:
    """The rows in tokens, and their anchored places.

    Of chat messages the places are those that predict a token of an assistant's message, its end included; of prompt
    and completion those that predict the completion and what follows it; of plain text all. Only distributions are
    kept, never a next token taught, so a text may end anywhere.

    Args:
        data: the rows.
        tokenizer: a Hugging Face tokenizer; without a chat template chats are read as plain text, a line a turn.
        max_length: rows are cut behind this many tokens.
        notes: what is known already.

    Raises:
        DataError: no row has a place left.
    """
    if data.chats and getattr(tokenizer, "chat_template", None) is None:
        data = data.as_text()
    of = {"messages": _chat, "prompt/completion": _completion, "text": _plain}[data.format]
    kept, cut, lost = [], 0, 0
    for row in data.rows:
        tokens, places = of(row, tokenizer)
        within = tuple(place for place in places if place < max_length)
        if not within:
            lost += 1
            continue
        cut += len(tokens) > max_length
        kept.append(AnchorRow(tuple(tokens[:max_length]), within))
    said = list(notes)
    if cut:
        said.append(f"{cut} of {len(kept)} rows cut at max_length = {max_length} tokens")
    if lost:
        said.append(f"{lost} rows left out: no token of a reply within max_length = {max_length}")
    if not kept:
        raise DataError(
            f"{data.path}: none of {len(data.rows)} rows has a token of a reply within max_length = {max_length}; "
            "raise it, or anchor on other text"
        )
    return AnchorRows(tuple(kept), tuple(said))


def drawn(seed: int, batch: int, size: int, count: int) -> list[int]:
    """Which of `count` rows the batch of this number takes: `size` in a row of endless shuffled passes over all.

    A pure function, so that a run that is resumed goes on as if nothing had happened.
    """
    positions = range(batch * size, (batch + 1) * size)
    return [_pass(seed, position // count, count)[position % count] for position in positions]


@functools.lru_cache(maxsize=4)
def _pass(seed: int, number: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, number]).permutation(count).tolist())


def _chat(row: Mapping[str, Any], tokenizer: Any) -> tuple[Sequence[int], list[int]]:
    messages = row["messages"]
    # What follows the last reply has none.
    while messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    whole = _rendered(tokenizer, messages, prompt=False)
    tokens = _encoded(tokenizer, whole, special=False)
    places: list[int] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(tokenizer, messages[:number], prompt=True) if number else ""
        behind = _rendered(tokenizer, messages[: number + 1], prompt=False)
        if not (whole.startswith(before) and whole.startswith(behind)):
            # Some templates write an earlier turn otherwise than the last, such as without its reasoning.
            continue
        start = _common(tokens, _encoded(tokenizer, before, special=False))
        stop = _common(tokens, _encoded(tokenizer, behind, special=False))
        places += range(max(start - 1, 0), stop - 1)
    return tokens, places


def _completion(row: Mapping[str, Any], tokenizer: Any) -> tuple[Sequence[int], list[int]]:
    if not isinstance(row["prompt"], str):
        tokens = _encoded(
            tokenizer, _rendered(tokenizer, [*row["prompt"], *row["completion"]], prompt=False), special=False
        )
        start = _common(tokens, _encoded(tokenizer, _rendered(tokenizer, row["prompt"], prompt=True), special=False))
        return tokens, list(range(max(start - 1, 0), len(tokens) - 1))
    tokens = _encoded(tokenizer, row["prompt"] + row["completion"], special=True)
    start = _common(tokens, _encoded(tokenizer, row["prompt"], special=True))
    return tokens, list(range(max(start - 1, 0), len(tokens)))


def _plain(row: Mapping[str, Any], tokenizer: Any) -> tuple[Sequence[int], list[int]]:
    tokens = _encoded(tokenizer, row["text"], special=True)
    return tokens, list(range(len(tokens)))


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, prompt: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))
    except Exception as bad:  # whatever a template raises, on two turns of one role above all
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"the chat template takes no messages of {roles}: {' '.join(str(bad).split())[:200]}; mend or leave out "
            "such rows"
        ) from None


def _encoded(tokenizer: Any, text: str, *, special: bool) -> Sequence[int]:
    # A long text is cut later: no need for the tokenizer's warning.
    found: Sequence[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return found


def _common(tokens: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens the two begin with in common: a token may lie across the border of prompt and reply."""
    return next(
        (n for n, (one, two) in enumerate(zip(tokens, other, strict=False)) if one != two), min(len(tokens), len(other))
    )
