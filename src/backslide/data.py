"""Training data: JSON Lines with `text`, with `prompt` and `completion`, or with chat `messages`. No torch.

Prompt and completion are texts, or both lists of chat messages, which TRL calls conversational.

What is only looked through for leaks may have other columns: see `backslide.passages`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backslide.errors import DataError, listed
from backslide.files import read_lines

FORMATS = {"messages": ("messages",), "prompt/completion": ("prompt", "completion"), "text": ("text",)}
"""Name and keys of each format, in TRL's words."""


@dataclass(frozen=True)
class TrainingData:
    """The rows of a training file."""

    path: Path
    format: str
    """One of `FORMATS`."""
    rows: tuple[dict[str, Any], ...]
    """Only the keys of the format; other columns are of no use to the trainer."""
    skipped: int
    """Rows left out because their text is empty."""

    @classmethod
    def load(cls, path: str | Path) -> TrainingData:
        """Read a file.

        Raises `DataError`, naming file and line, where it is missing, malformed, mixes formats or has no usable text.
        """
        path = Path(path)
        rows: list[dict[str, Any]] = []
        kind, skipped = "text", 0
        for _, found, row, usable in _rows(path):
            kind = found
            if usable:
                rows.append(row)
            else:
                skipped += 1
        if not rows:
            raise _no_text(path, skipped)
        return cls(path, kind, tuple(rows), skipped)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], name: str = "rows") -> TrainingData:
        """Rows that are in memory already; `name` stands for the file in messages.

        Raises `DataError` as `load` does, with the number of the row (from 1).
        """
        kept: list[dict[str, Any]] = []
        kind, skipped = "text", 0
        for _, found, row, usable in _checked(name, enumerate(rows, start=1)):
            kind = found
            if usable:
                kept.append(row)
            else:
                skipped += 1
        if not kept:
            why = f"all {skipped} are empty" if skipped else "there are none"
            raise DataError(f"{name}: no usable text: {why}; give rows such as {{'text': '…'}}")
        return cls(Path(name), kind, tuple(kept), skipped)

    @property
    def chats(self) -> bool:
        """Whether the rows are chat messages, for which a chat template is needed."""
        return self.format == "messages" or _in_turns(self.rows[0], self.format)

    def as_text(self) -> TrainingData:
        """Chat messages as plain text, a line a turn, for a tokenizer without a chat template."""
        if not self.chats:
            return self
        if self.format == "messages":
            rows = tuple({"text": _lines(row["messages"])} for row in self.rows)
            return TrainingData(self.path, "text", rows, self.skipped)
        rows = tuple(
            {"prompt": _lines(row["prompt"]) + "\n", "completion": _lines(row["completion"])} for row in self.rows
        )
        return TrainingData(self.path, self.format, rows, self.skipped)


def text_of(row: Mapping[str, Any]) -> str:
    """All text of a row, whatever its format, a line a part."""
    keys = next(keys for keys in FORMATS.values() if all(key in row for key in keys))
    parts = (row[key] if isinstance(row[key], str) else [m["content"] for m in row[key]] for key in keys)
    return "\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts)


def _lines(turns: Iterable[Mapping[str, str]]) -> str:
    return "\n".join(f"{turn['role'].capitalize()}: {turn['content'].strip()}" for turn in turns)


def _rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any], bool]]:
    """Line, format and row of each line, and whether it has text; one format, and only its keys."""
    yield from _checked(path, read_lines(path, DataError))


def _checked(
    name: str | Path, rows: Iterable[tuple[int, Mapping[str, Any]]]
) -> Iterator[tuple[int, str, dict[str, Any], bool]]:
    kind: str | None = None
    turns = False
    for number, row in rows:
        try:
            found = _format(row)
            if kind is not None and found != kind:
                raise DataError(f"is of the format {found}, the lines before are {kind}; keep to one format")
            if kind is not None and _in_turns(row, found) != turns:
                was, now = ("messages", "text") if turns else ("text", "messages")
                raise DataError(f"has prompt or completion as {now}, the lines before as {was}; keep to one of them")
            kind, turns = found, _in_turns(row, found)
            usable = _usable(row, kind)
            kept = {key: row[key] for key in FORMATS[kind]}
            _encodable(kept)
        except DataError as bad:
            raise DataError(f"{name}:{number}: {bad}") from None
        yield number, kind, kept, usable


def _no_text(path: Path, skipped: int) -> DataError:
    why = f"all {skipped} lines are empty" if skipped else "the file has no line"
    return DataError(f'{path}: no usable text: {why}; give a line for each example, such as {{"text": "…"}}')


def _format(row: Mapping[str, Any]) -> str:
    if not isinstance(row, Mapping):
        raise DataError(f"is {type(row).__name__}, an object with keys is needed")
    for name, keys in FORMATS.items():
        if all(key in row for key in keys):
            return name
    found = listed(sorted(map(str, row))) or "none"
    raise DataError(f"has the keys {found}; a training line needs text, or prompt and completion, or messages")


def _usable(row: Mapping[str, Any], kind: str) -> bool:
    if kind == "messages":
        messages = _turns(row, kind)
        return any(message["role"] == "assistant" and message["content"].strip() for message in messages)
    if _in_turns(row, kind):
        # Of a conversational row all of the completion is learnt, whoever says it; without a prompt there is no turn
        # that it answers.
        asked, said = (_turns(row, key) for key in FORMATS[kind])
        return bool(asked) and any(message["content"].strip() for message in said)
    for key in FORMATS[kind]:
        if not isinstance(row[key], str):
            raise DataError(f"{key} is {type(row[key]).__name__}, text is needed")
    # A prompt may be empty; what is learnt is the text, or the completion.
    return bool(row[FORMATS[kind][-1]].strip())


def _in_turns(row: Mapping[str, Any], kind: str) -> bool:
    """Whether prompt or completion are messages."""
    return kind == "prompt/completion" and any(isinstance(row[key], list) for key in FORMATS[kind])


def _turns(row: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    turns = row[key]
    if not isinstance(turns, list):
        raise DataError(f"{key} is {type(turns).__name__}, a list of messages is needed")
    of = "" if key == "messages" else f" of the {key}"
    for place, message in enumerate(turns, start=1):
        if not isinstance(message, dict):
            raise DataError(
                f"message {place}{of} is {type(message).__name__}, an object with role and content is needed"
            )
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                raise DataError(f"message {place}{of} has no text in {name!r}")
    return turns


def _encodable(row: Mapping[str, Any]) -> None:
    # A lone surrogate comes out of "\ud83d" in JSON, where a tool cut a text inside an emoji; no tokenizer takes it.
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError("holds half a surrogate pair, which is not text; leave the line out or mend it") from None
