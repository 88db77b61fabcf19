"""The user's files: which endings are read, and how large files and cells may be."""

from __future__ import annotations

import csv
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from backslide.errors import SuiteError
from backslide.files import LONGEST_LINE
from backslide.suite.make import from_qa, from_texts
from backslide.suite.sources import Row, read_prompts, read_rows, read_texts

Reader = Callable[[Path], list[Row]]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("read", [read_rows, read_texts, read_prompts])
def test_endings_in_large_letters_are_the_same_endings(tmp_path: Path, read: Reader) -> None:
    for name, text in (("A.CSV", "text,prompt\na,b\n"), ("A.TSV", "text\tprompt\na\tb\n"), ("A.JSONL", '{"text": "a", "prompt": "b"}')):  # fmt: skip
        assert [row.values for row in read(write(tmp_path / name, text))] == [{"text": "a", "prompt": "b"}]


@pytest.mark.parametrize("read", [read_texts, read_prompts])
def test_only_plain_text_is_read_as_text(tmp_path: Path, read: Reader) -> None:
    for name in ("a.txt", "a.TXT", "a.md", "a"):
        assert [list(row.values.values()) for row in read(write(tmp_path / name, "One.\r\n\r\nTwo."))] == [["One."], ["Two."]]  # fmt: skip
    for name, says in (
        ("tokenizer.json", "JSON Lines is needed, one object a line, in a file whose name ends in .jsonl"),
        ("a.parquet", "the name ends in '.parquet'; give a .txt, .md, .jsonl, .csv or .tsv file"),
        ("a.jsonl.gz", "the name ends in '.gz'; give a .txt"),
    ):
        path = write(tmp_path / name, "{}\n")
        with pytest.raises(SuiteError) as bad:
            read(path)
        assert str(bad.value).startswith(f"{path}: {says}")


def test_long_cells_are_read_as_long_lines_are(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = write(tmp_path / "a.csv", f"text\n{'word ' * 40_000}\nshort\n")
    made = from_texts(read_texts(path), "a")
    assert len(made.items) == 1
    assert made.notes == (f"left out, the text is longer than 20,000 characters: 1 row, the first is {path}:2",)
    with pytest.raises(SuiteError, match=r"a.csv:2: the line is longer than 16 MiB; give each entry a line of its own"):
        read_texts(write(path, f"text\n{'x' * (LONGEST_LINE + 1)}\n"))
    with pytest.raises(SuiteError, match=r"a.csv:3: a cell is longer than 16 MiB; close the double quotes that it beg"):
        read_texts(write(path, 'text\na\n"' + ("x" * 1000 + "\n") * 17_000))
    assert csv.field_size_limit() == before


def test_line_breaks_of_every_sort_part_rows_and_stay_in_quotes(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        path = write(tmp_path / "a.csv", end.join(["question,answer", '"Who', 'then?",Ann', "Why?,So.", ""]))
        read = read_rows(path)
        assert [(row.place, row.values["question"]) for row in read] == [(f"{path}:2", "Who\nthen?"), (f"{path}:4", "Why?")]  # fmt: skip
        assert len(from_qa(read, "qa").items) == 2


def test_a_long_paragraph_is_refused_where_it_begins(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "One.\n\n" + ("x" * 1000 + "\n") * 17_000)
    with pytest.raises(SuiteError, match=r"a.txt:3: the paragraph is longer than 16 MiB; part it by blank lines"):
        read_texts(path)


@pytest.mark.parametrize(("name", "read"), [("a.csv", read_rows), ("a.txt", read_texts), ("a.txt", read_prompts)])
def test_files_are_read_a_line_at_a_time(tmp_path: Path, name: str, read: Reader) -> None:
    path = tmp_path / name
    with open(path, "wb") as file:
        file.write(b"text\na\n")
        file.truncate(1 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(SuiteError, match=r":3: the line is longer than 16 MiB"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * LONGEST_LINE
    finally:
        tracemalloc.stop()
