"""The texts of training data, as they are looked through for items of a suite: files of any size, rows in memory.

All text of a row is read, in whatever columns it stands: data that a trainer is fed otherwise, such as pairs of
preferences, hold items as well. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

from backslide.errors import DataError, listed
from backslide.files import line_count, read_lines, text_lines
from backslide.suite.leakage import OVERLAP, Passage

Progress = Callable[[str, int, int], None]

PLAIN = (".txt", ".md")
"""Names of files that are text, not JSON Lines."""
BLOCK = 1 << 17
"""Characters of a plain text that are looked through at a time."""
COLUMNS = {"text", "messages", "prompt", "completion", "chosen", "rejected", "conversations", "question", "instruction"}
"""Columns with texts, one of which stands beside tokens where a data set has kept them."""
MEDIA = ("Audio", "Image", "Pdf", "Video")
"""Kinds of columns of a data set that are not text, and take time or libraries to decode."""


def passages(path: str | Path, progress: Progress | None = None) -> Iterator[Passage]:
    """The text of every line of a file, with its place; of plain text (`.txt`, `.md`) overlapping blocks.

    Args:
        path: JSON Lines with any columns, or plain text; read a line at a time, whatever its size.
        progress: called with the lines read, and with their number.

    Raises:
        DataError: the file is missing or malformed, or holds tokens or no text; with the line.
    """
    path = Path(path)
    total, some, line = 0, False, 0
    for line, passage in (_plain if path.suffix.lower() in PLAIN else _lines)(path):
        if passage.text.strip():
            some = True
            yield passage
        if progress is not None and line % 1000 == 0:
            total = total or line_count(path)
            progress("looking for leaks", line, max(total, line))
    if not some:
        why = f"there is none in its {line} lines" if line else "the file has no line"
        raise DataError(f'{path}: no text: {why}; give a line for each example, such as {{"text": "…"}}')
    if progress is not None:
        total = total or line
        progress("looking for leaks", total, total)


def passages_of(rows: Any, name: str = "train", progress: Progress | None = None) -> Iterator[Passage]:
    """The text of every row that is in memory; its place is as in `train[3]`.

    Args:
        rows: texts, or mappings as a data set has them, gone through once. Images, sounds and videos are not decoded.
        name: what they are, for messages.
        progress: called with the rows read, and with their number where the rows have one.

    Raises:
        DataError: `rows` are none, or can be gone through once only, or cannot be read, or hold tokens or no text.
    """
    total = len(rows) if isinstance(rows, Sized) else 0
    some, count, first = False, 0, None
    for count, row in enumerate(_read(rows, name), start=1):
        first = row if count == 1 else first
        place = f"{name}[{count - 1}]"
        if (text := text_in(row, place)).strip():
            some = True
            yield Passage(place, text)
        if progress is not None and count % 1000 == 0:
            progress("looking for leaks", count, max(total, count))
    if not count:
        raise DataError(f"{name} has no row; give what is trained on")
    if not some:
        holds = f"have {listed(map(str, first))}" if isinstance(first, Mapping) else f"are {type(first).__name__}"
        raise DataError(f"{name}: its rows {holds}, and no text is in any; give texts, or rows with texts in columns")
    if progress is not None:
        progress("looking for leaks", count, count)


def text_in(row: Any, place: str) -> str:
    """All text of a row, a line a part; "" where there is none.

    Of chat messages the contents are text; a number is where it stands in a column beside texts, as an answer may.

    Raises `DataError` where the row is tokens, or holds what is no text.
    """
    if isinstance(row, Mapping) and "input_ids" in row and not COLUMNS & row.keys():
        raise DataError(f"{place}: is tokens (input_ids); give the data as they are before a tokenizer")
    if isinstance(row, Mapping) and isinstance(number := row.get("text"), (bool, int, float)):
        raise DataError(f"{place}: text is {type(number).__name__}, text is needed")
    try:
        text = "\n".join(_texts(row))
        text.encode("utf-8")
    except RecursionError:
        raise DataError(f"{place}: is nested too deeply to be read; leave the line out") from None
    except UnicodeEncodeError:
        # Out of "\\ud83d" in JSON, where a tool cut a text inside an emoji.
        raise DataError(
            f"{place}: holds half a surrogate pair, which is not text; leave the line out or mend it"
        ) from None
    return text


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        if {"role", "content"} <= value.keys():
            return _texts(value["content"])
        parts = [(_number(part), _texts(part)) for part in value.values()]
        beside = any(texts for _, texts in parts)
        return [text for number, texts in parts for text in (texts or ([number] if number and beside else []))]
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in _texts(part)]
    if hasattr(value, "tolist") and getattr(getattr(value, "dtype", None), "kind", "") in ("O", "U", "T"):
        # An array of numpy, as tables of pandas and Parquet have instead of a list; not one of numbers.
        return _texts(value.tolist())
    return []


def _number(value: Any) -> str:
    """A number in digits; "" for anything else."""
    if type(value) is float:
        return str(value) if math.isfinite(value) else ""
    # Beyond so many bits Python writes no digits, and no answer has them.
    return str(value) if type(value) is int and value.bit_length() < 10_000 else ""


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


def _lines(path: Path) -> Iterator[tuple[int, Passage]]:
    for number, row in read_lines(path, DataError):
        place = f"{path}:{number}"
        yield number, Passage(place, text_in(row, place))


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
