"""Training data: JSON Lines with `text`, with `prompt` and `completion`, or with chat `messages`. No torch.

Prompt and completion are texts, or both lists of chat messages, which TRL calls conversational.

`TrainingData` holds a file that is trained on; `passages` goes through one of any size, plain text too, to look for
what is in it, and `passages_of` through rows in memory, whatever their columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backslide.errors import DataError, listed
from backslide.files import line_count, read_lines, text_lines
from backslide.suite.leakage import OVERLAP, Passage

FORMATS = {"messages": ("messages",), "prompt/completion": ("prompt", "completion"), "text": ("text",)}
"""Name and keys of each format, in TRL's words."""

COLUMNS = {"text", "messages", "prompt", "completion", "chosen", "rejected", "conversations", "question", "instruction"}
"""Columns with texts, one of which stands beside tokens where a data set has kept them."""
MEDIA = ("Audio", "Image", "Pdf", "Video")
"""Kinds of columns of a data set that are not text, and take time or libraries to decode."""

PLAIN = (".txt", ".md")
"""Names of files that are text, not JSON Lines."""
BLOCK = 1 << 17
"""Characters of a plain text that are looked through at a time."""


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


def passages(
    path: str | Path, progress: Callable[[str, int, int], None] | None = None, *, any_columns: bool = False
) -> Iterator[Passage]:
    """Every example of a training file as text, with its place; of plain text (`.txt`, `.md`) overlapping blocks.

    Args:
        path: JSON Lines in one of `FORMATS`, or plain text; read a line at a time, whatever its size.
        progress: called with the lines read, and with their number.
        any_columns: whether lines may be in no format of `FORMATS`; all their text is read then, as by `passages_of`.

    Raises:
        DataError: as `TrainingData.load` does.
    """
    path = Path(path)
    total, some, line = 0, False, 0
    read = _plain if path.suffix.lower() in PLAIN else _lines_of if any_columns else _examples
    for line, passage in read(path):
        if passage.text.strip():
            some = True
            yield passage
        if progress is not None and line % 1000 == 0:
            total = total or line_count(path)
            progress("looking for leaks", line, max(total, line))
    if not some:
        raise _no_text(path, line)
    if progress is not None:
        total = total or line
        progress("looking for leaks", total, total)


def passages_of(
    rows: Any, name: str = "train", progress: Callable[[str, int, int], None] | None = None
) -> Iterator[Passage]:
    """All text of each row that is in memory, in whatever columns it stands; its place is as in `train[3]`.

    Args:
        rows: texts, or mappings as a data set has them, gone through once. Of chat messages the contents are text;
            a number is text where it is the value of a column. Images, sounds and videos are not decoded.
        name: what they are, for messages.
        progress: called with the rows read, and with their number where the rows have one.

    Raises:
        DataError: `rows` are none, or can be gone through once only, or cannot be read, or hold no text.
    """
    total = len(rows) if isinstance(rows, Sized) else 0
    some, count, first = False, 0, None
    for count, row in enumerate(_read(rows, name), start=1):
        first = row if count == 1 else first
        if isinstance(row, Mapping) and "input_ids" in row and not COLUMNS & row.keys():
            raise DataError(f"{name}[{count - 1}]: is tokens (input_ids); give the data as they are before a tokenizer")
        if (text := "\n".join(_texts(row))).strip():
            some = True
            yield Passage(f"{name}[{count - 1}]", text)
        if progress is not None and count % 1000 == 0:
            progress("looking for leaks", count, max(total, count))
    if not count:
        raise DataError(f"{name} has no row; give what is trained on")
    if not some:
        holds = f"have {listed(map(str, first))}" if isinstance(first, Mapping) else f"are {type(first).__name__}"
        raise DataError(f"{name}: its rows {holds}, and no text is in any; give texts, or rows with texts in columns")
    if progress is not None:
        progress("looking for leaks", count, count)


def _read(rows: Any, name: str) -> Iterator[Any]:
    """The rows themselves; what cannot be read is told in a line."""
    kind = type(rows).__name__
    if isinstance(rows, Mapping):
        raise DataError(f"{name} is {kind} of {listed(map(str, rows)) or 'nothing'}; give one of these")
    if hasattr(rows, "itertuples"):
        # Gone through it gives the names of its columns, which are text.
        raise DataError(f"{name} is {kind}; give its rows, as to_dict('records') makes them")
    if isinstance(rows, Iterator):
        raise DataError(f"{name} is {kind}, and nothing is left of it to train on; give a list or a data set")
    features = getattr(rows, "features", None)
    if isinstance(features, Mapping) and hasattr(rows, "select_columns"):
        rows = rows.select_columns([key for key, of in features.items() if type(of).__name__ not in MEDIA])
    if hasattr(rows, "__iter__"):
        each = iter(rows)
    elif isinstance(rows, Sized) and hasattr(rows, "__getitem__"):
        # As torch's: some are read beyond their end without a word.
        each = (rows[place] for place in range(len(rows)))
    else:
        raise DataError(f"{name} is {kind}; a file is needed, or rows such as a data set")
    place = 0
    while True:
        try:
            row = next(each)
        except StopIteration:
            return
        except Exception as bad:
            why = " ".join(f"{type(bad).__name__}: {bad}".split())[:300]
            raise DataError(f"{name}[{place}]: cannot be read: {why}") from bad
        yield row
        place += 1


def _texts(value: Any, *, column: bool = False) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in (value["content"],) if {"role", "content"} <= value.keys() else value.values():
            yield from _texts(part, column=True)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    elif hasattr(value, "tolist") and getattr(getattr(value, "dtype", None), "kind", "") in ("O", "U", "T"):
        # An array of numpy, as tables of pandas and Parquet have instead of a list; not one of numbers.
        yield from _texts(value.tolist())
    elif column and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield str(value)


def _examples(path: Path) -> Iterator[tuple[int, Passage]]:
    for number, _, row, usable in _rows(path):
        yield number, Passage(f"{path}:{number}", text_of(row) if usable else "")


def _lines_of(path: Path) -> Iterator[tuple[int, Passage]]:
    for number, row in read_lines(path, DataError):
        yield number, Passage(f"{path}:{number}", "\n".join(_texts(row)))


def text_of(row: Mapping[str, Any]) -> str:
    """All text of a row, whatever its format, a line a part."""
    keys = next(keys for keys in FORMATS.values() if all(key in row for key in keys))
    parts = (row[key] if isinstance(row[key], str) else [m["content"] for m in row[key]] for key in keys)
    return "\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts)


def _lines(turns: Iterable[Mapping[str, str]]) -> str:
    return "\n".join(f"{turn['role'].capitalize()}: {turn['content'].strip()}" for turn in turns)


def _plain(path: Path) -> Iterator[tuple[int, Passage]]:
    lines: list[str] = []
    first, size, number = 1, 0, 0
    for number, line in text_lines(path, DataError):
        lines.append(line)
        size += len(line) + 1
        if size >= BLOCK:
            yield number, Passage(str(path), "\n".join(lines), first)
            # What lies across the end of this block lies within the next.
            while lines and size > OVERLAP:
                size -= len(lines.pop(0)) + 1
            first = number - len(lines) + 1
    if lines:
        yield number, Passage(str(path), "\n".join(lines), first)


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
