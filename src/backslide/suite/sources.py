"""The rows of a user's file, each with its place: JSON Lines, CSV, or plain text."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backslide.errors import SuiteError, number_of, shown
from backslide.files import LONGEST_LINE, read_lines, text_lines

TABLES = (".jsonl", ".csv", ".tsv")
"""Endings of files with rows under names, in small letters or large."""
TEXTS = (".txt", ".md", "")
"""Endings of plain text."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row and where it stands."""

    place: str
    """`FILE:LINE`, for messages."""
    values: Mapping[str, Any]


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a JSON Lines file, or of a CSV or TSV file with a header line.

    Raises `SuiteError` naming file and line; another ending than `.jsonl`, `.csv` or `.tsv` is refused.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in TABLES:
        raise _other_ending(path, TABLES)
    if ending == ".jsonl":
        return _some(path, [Row(f"{path}:{number}", row) for number, row in read_lines(path, SuiteError)])
    with _long_cells():
        return list(_read_csv(path, "\t" if ending == ".tsv" else ","))


def read_texts(path: str | Path) -> list[Row]:
    """Rows with a `text`: the paragraphs of a text file, which blank lines part; or what `read_rows` reads.

    Raises `SuiteError` as `read_rows` does.
    """
    path = Path(path)
    return read_rows(path) if _is_table(path) else _some(path, list(_paragraphs(path)))


def read_prompts(path: str | Path) -> list[Row]:
    """Rows with a `prompt`: the lines of a text file; or what `read_rows` reads.

    Raises `SuiteError` as `read_rows` does.
    """
    path = Path(path)
    if _is_table(path):
        return read_rows(path)
    lines = text_lines(path, SuiteError)
    return _some(path, [Row(f"{path}:{number}", {"prompt": line.strip()}) for number, line in lines if line.strip()])


def _is_table(path: Path) -> bool:
    """Whether a file has rows under names and is no plain text; any other ending is refused."""
    ending = path.suffix.lower()
    if ending not in (*TABLES, *TEXTS):
        raise _other_ending(path, (".txt", ".md", *TABLES))
    return ending in TABLES


def _other_ending(path: Path, known: tuple[str, ...]) -> SuiteError:
    if path.suffix.lower() in (".json", ".ndjson"):
        return SuiteError(f"{path}: JSON Lines is needed, one object a line, in a file whose name ends in .jsonl")
    names = f"{', '.join(known[:-1])} or {known[-1]}"
    return SuiteError(f"{path}: the name ends in {path.suffix!r}; give a {names} file")


def _paragraphs(path: Path) -> Iterator[Row]:
    lines: list[str] = []
    first = size = 0
    for number, line in text_lines(path, SuiteError):
        if line.strip():
            first, size = (first, size + len(line)) if lines else (number, len(line))
            if size > LONGEST_LINE:
                raise SuiteError(
                    f"{path}:{first}: the paragraph is longer than {LONGEST_LINE >> 20} MiB; part it by blank lines"
                )
            lines.append(line.rstrip())
        elif lines:
            yield Row(f"{path}:{first}", {"text": "\n".join(lines)})
            lines = []
    if lines:
        yield Row(f"{path}:{first}", {"text": "\n".join(lines)})


def _some(path: Path, rows: list[Row]) -> list[Row]:
    if not rows:
        raise _empty(path)
    return rows


def _empty(path: Path) -> SuiteError:
    return SuiteError(f"{path}: is empty; a line a row is needed")


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Cells as long as lines of JSON Lines inside: the csv module's own limit, one for the process, is 128 KiB."""
    before = csv.field_size_limit(LONGEST_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_csv(path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(_broken(text_lines(path, SuiteError)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line, above, some = 1, "", False
    try:
        for cells in reader:
            place, line = f"{path}:{line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells) and (header is not None or len(cells) < 2):
                continue
            if header is None:
                header, above = [cell.strip() for cell in cells], place
                if not any(header):
                    raise SuiteError(
                        f"{place}: the header is {shown(delimiter.join(cells))}, which names no column; give each "
                        "column a name, such as question and answer"
                    )
                twice = [name for name in header if header.count(name) > 1]
                if twice:
                    raise SuiteError(f"{place}: the column {twice[0]!r} is there twice; rename one")
                continue
            if len(cells) != len(header):
                raise SuiteError(
                    f"{place}: has {number_of(len(cells), 'cell')}, the header has {len(header)}; put cells with a "
                    "comma or a line break into double quotes"
                )
            yield Row(place, {name: _cell(cell) for name, cell in zip(header, cells, strict=True)})
            some = True
        if not some:
            if header is None:
                raise _empty(path)
            raise SuiteError(f"{above}: the header is {shown(header)}, with no row below it; add a line a row")
    except csv.Error as bad:
        why = f"not CSV: {bad}".replace("'\t'", "a tab")
        if "field limit" in str(bad):
            why = f"a cell is longer than {LONGEST_LINE >> 20} MiB; close the double quotes that it begins with"
        else:
            why += "; close the double quotes that a cell begins with, and double those that are within one"
        raise SuiteError(f"{path}:{line}: {why}") from None


def _broken(lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    # A cell in quotes may go over several lines; some old programs break lines by a carriage return alone.
    for _, line in lines:
        for part in line.split("\r"):
            yield part + "\n"


def _cell(cell: str) -> Any:
    # Several accepted answers in one cell; any other text that begins like a list stays what it is.
    if cell.lstrip().startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        if isinstance(value, list) and all(isinstance(v, (str, int, float)) and v is not True for v in value):
            return value
    return cell
