"""What is looked through for leaks: files of any columns, and rows in memory of any kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backslide.errors import DataError
from backslide.passages import passages, passages_of

USER = {"role": "user", "content": "Hi"}
BOT = {"role": "assistant", "content": " Hello\nthere "}


def written(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Mapped:
    """A data set as torch has them: some are read beyond their end, or know no IndexError."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> dict[str, Any]:
        return [{"text": "a"}, {"text": "b"}][place % 2]


class Broken(Mapped):
    def __getitem__(self, place: int) -> dict[str, Any]:
        return {0: {"text": "a"}}[place]


def texts(rows: Any) -> list[str]:
    return [passage.text for passage in passages_of(rows)]


def test_all_text_of_rows_in_memory_is_read() -> None:
    rows = ["plain", {"instruction": "Add", "input": "", "output": ["one", "two"], "none": None, "ok": True},
            {"prompt": [USER], "chosen": [BOT], "rejected": "No"}, {"labels": [1, 2]},
            {"prompt": [USER], "answer": 42, "score": float("nan")}]  # fmt: skip
    found = list(passages_of(rows))
    assert [(text, place) for place, text, _ in found] == [
        ("plain", "train[0]"), ("Add\n\none\ntwo", "train[1]"), ("Hi\n Hello\nthere \nNo", "train[2]"),
        ("Hi\n42", "train[4]"),
    ]  # fmt: skip
    assert texts(Mapped()) == ["a", "b"]


def test_chats_in_arrays_as_tables_and_numpy_have_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    rows = datasets.Dataset.from_list([{"id": "x", "messages": [USER, {"role": "assistant", "content": "Hello"}]}])
    expected = ["x\nHi\nHello"]
    assert texts(rows) == texts(rows.with_format("numpy")) == expected
    rows.to_parquet(tmp_path / "t.parquet")
    table = pandas.read_parquet(tmp_path / "t.parquet")
    assert type(table["messages"][0]).__name__ == "ndarray" and texts(table.to_dict("records")) == expected
    with pytest.raises(DataError, match="train is DataFrame; give its rows, as to_dict"):
        texts(table)


def test_what_is_no_text_is_not_decoded() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"text": "a", "sound": {"bytes": b"no sound", "path": None}}])
    assert texts(rows.cast_column("sound", datasets.Audio())) == ["a"]


def test_progress_of_rows_in_memory() -> None:
    seen: list[tuple[int, int]] = []
    list(passages_of(["x"] * 2500, progress=lambda _, done, total: seen.append((done, total))))
    assert seen == [(1000, 2500), (2000, 2500), (2500, 2500)]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "train has no row; give what is trained on"),
        (
            [{"input_ids": [1], "source": "web"}],
            r"train\[0\]: is tokens \(input_ids\); give the data as they are before",
        ),
        ([3], "train: its rows are int, and no text is in any; give texts, or rows"),
        ([{"text": " "}], "its rows have text, and no text is in any"),
        ({"train": [], "test": []}, "train is dict of train, test; give one of these"),
        ((row for row in ["x"]), "train is generator, and nothing is left of it to train on; give a list"),
        (7, "train is int; a file is needed, or rows such as a data set"),
        ([{"tokens": [1, 2], "length": 2}], "its rows have tokens, length, and no text is in any"),
        (["half \ud83d"], r"train\[0\]: holds half a surrogate pair, which is not text"),
        (Broken(), r"train\[1\]: cannot be read: KeyError: 1"),
    ],
)
def test_rows_in_memory_that_are_none(rows: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as raised:
        list(passages_of(rows))
    assert len(str(raised.value).splitlines()) == 1


def test_lines_of_a_file_may_have_any_columns(tmp_path: Path) -> None:
    rows = [
        {"question": "6 times 7?", "answer": 42},
        {"text": "a"},
        {"id": None},
        {"id": 7},
        {"prompt": [USER], "completion": [BOT]},
    ]
    path = written(tmp_path, *rows)
    assert [(passage.place, passage.text) for passage in passages(path)] == [
        (f"{path}:1", "6 times 7?\n42"), (f"{path}:2", "a"), (f"{path}:5", "Hi\n Hello\nthere "),
    ]  # fmt: skip
