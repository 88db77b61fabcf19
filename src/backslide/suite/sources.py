"""The rows of a user's file, each with its place: JSON Lines, CSV, or plain text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backslide.errors import SuiteError
from backslide.files import read_lines, read_text


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
    if path.suffix == ".jsonl":
        rows = [Row(f"{path}:{number}", row) for number, row in read_lines(path, SuiteError)]
    elif path.suffix in (".csv", ".tsv"):
        rows = list(_read_csv(path))
    else:
        raise SuiteError(f"{path}: the name ends in {path.suffix!r}; give a .jsonl, .csv or .tsv file")
    return _some(path, rows)


def read_texts(path: str | Path) -> list[Row]:
    """Rows with a `text`: the paragraphs of a text file, which blank lines part; or what `read_rows` reads.

    Raises `SuiteError` as `read_rows` does.
    """
    path = Path(path)
    if path.suffix in (".jsonl", ".csv", ".tsv"):
        return read_rows(path)
    rows: list[Row] = []
    lines: list[str] = []
    # One blank line more, so that the last paragraph ends as the others do.
    for number, line in enumerate((*read_text(path, SuiteError).split("\n"), ""), start=1):
        if line.strip():
            lines.append(line.rstrip())
        elif lines:
            rows.append(Row(f"{path}:{number - len(lines)}", {"text": "\n".join(lines)}))
            lines = []
    return _some(path, rows)


def read_prompts(path: str | Path) -> list[Row]:
    """Rows with a `prompt`: the lines of a text file; or what `read_rows` reads.

    Raises `SuiteError` as `read_rows` does.
    """
    path = Path(path)
    if path.suffix in (".jsonl", ".csv", ".tsv"):
        return read_rows(path)
    lines = enumerate(read_text(path, SuiteError).split("\n"), start=1)
    return _some(path, [Row(f"{path}:{number}", {"prompt": line.strip()}) for number, line in lines if line.strip()])


def _some(path: Path, rows: list[Row]) -> list[Row]:
    if not rows:
        raise SuiteError(f"{path}: is empty; a line a row is needed")
    return rows


def _read_csv(path: Path) -> Iterator[Row]:
    # newline="" leaves line breaks inside quotes to the reader, as the csv module wants it.
    text = io.StringIO(read_text(path, SuiteError), newline="")
    reader = csv.reader(text, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            place, line = f"{path}:{line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                twice = [name for name in header if header.count(name) > 1]
                if twice:
                    raise SuiteError(f"{place}: the column {twice[0]!r} is there twice; rename one")
                continue
            if len(cells) != len(header):
                raise SuiteError(
                    f"{place}: has {len(cells)} cells, the header has {len(header)}; put cells with a comma or a "
                    "line break into double quotes"
                )
            yield Row(place, {name: _cell(cell) for name, cell in zip(header, cells, strict=True)})
    except csv.Error as bad:
        raise SuiteError(f"{path}:{line}: not CSV: {bad}") from None


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
