"""Training files: three formats, one of them a file, and the line that breaks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backslide.data import TrainingData
from backslide.errors import DataError

USER = {"role": "user", "content": "Hi"}
BOT = {"role": "assistant", "content": " Hello\nthere "}


def written(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "kind", "kept"),
    [
        ({"text": "a", "label": 3}, "text", {"text": "a"}),
        ({"completion": "b", "prompt": "a"}, "prompt/completion", {"prompt": "a", "completion": "b"}),
        ({"prompt": "", "completion": "b"}, "prompt/completion", {"prompt": "", "completion": "b"}),
        ({"prompt": [USER], "completion": [BOT]}, "prompt/completion", {"prompt": [USER], "completion": [BOT]}),
        ({"messages": [USER, BOT], "id": 1}, "messages", {"messages": [USER, BOT]}),
        ({"messages": [USER, BOT], "text": "a"}, "messages", {"messages": [USER, BOT]}),
    ],
)
def test_three_formats(tmp_path: Path, row: dict[str, Any], kind: str, kept: dict[str, Any]) -> None:
    data = TrainingData.load(written(tmp_path, row, row))
    assert (data.format, data.rows, data.skipped) == (kind, (kept, kept), 0)


def test_empty_examples_are_counted_and_left_out(tmp_path: Path) -> None:
    data = TrainingData.load(written(tmp_path, {"text": " \n"}, {"text": "a"}, {"text": ""}))
    assert data.rows == ({"text": "a"},) and data.skipped == 2
    data = TrainingData.load(written(tmp_path, {"prompt": "a", "completion": " "}, {"prompt": "a", "completion": "b"}))
    assert len(data.rows) == 1 and data.skipped == 1
    silent = [{"messages": []}, {"messages": [USER]}, {"messages": [USER, {"role": "assistant", "content": " "}]}]
    data = TrainingData.load(written(tmp_path, *silent, {"messages": [USER, BOT]}))
    assert len(data.rows) == 1 and data.skipped == 3


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"prompt": "a", "completion": "b"}],
            "is of the format prompt/completion, the lines before are text; keep to",
        ),
        ([{"messages": [USER, BOT]}], "is of the format messages, the lines before are text; keep to one format"),
        (
            [{"txt": "a", "id": 1}],
            "has the keys id, txt; a training line needs text, or prompt and completion, or mess",
        ),
        ([{}], "has the keys none; a training line needs"),
        ([{"prompt": "a"}], "has the keys prompt; a training line needs"),
        ([{"text": 3}], "text is int, text is needed"),
        ([{"text": None}], "text is NoneType, text is needed"),
        ([{"text": "\ud83d"}], "holds half a surrogate pair, which is not text; leave the line out or mend it"),
        (["text"], "is 'text', a JSON object in braces is needed"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, rows: list[Any], says: str) -> None:
    path = written(tmp_path, {"text": "a"}, *rows)
    with pytest.raises(DataError, match=rf"t\.jsonl:2: {says}") as raised:
        TrainingData.load(path)
    assert str(raised.value).startswith(f"{path}:2: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("Hi", "messages is str, a list of messages is needed"),
        ([USER, "Hi"], "message 2 is str, an object with role and content is needed"),
        ([USER, {"role": "assistant"}], "message 2 has no text in 'content'"),
        ([{"content": "Hi"}], "message 1 has no text in 'role'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1 has no text in 'content'"),
        ([USER, {"role": "assistant", "content": "\udc00"}], "holds half a surrogate pair"),
    ],
)
def test_a_bad_message_is_named(tmp_path: Path, messages: Any, says: str) -> None:
    with pytest.raises(DataError, match=rf"t\.jsonl:1: {says}"):
        TrainingData.load(written(tmp_path, {"messages": messages}))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": 3, "completion": "b"}], "1: prompt is int, text is needed"),
        ([{"prompt": [USER], "completion": "b"}], "1: completion is str, a list of messages is needed"),
        ([{"prompt": "a", "completion": [BOT]}], "1: prompt is str, a list of messages is needed"),
        ([{"prompt": ["a"], "completion": [BOT]}], "1: message 1 of the prompt is str, an object with role"),
        ([{"prompt": [USER], "completion": [{"role": "assistant"}]}], "1: message 1 of the completion has no text in"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": [USER], "completion": [BOT]}],
         "2: has prompt or completion as messages, the lines before as text; keep to one of them"),
        ([{"prompt": [USER], "completion": [BOT]}, {"prompt": "a", "completion": "b"}],
         "2: has prompt or completion as text, the lines before as messages; keep to one of them"),
    ],
)  # fmt: skip
def test_prompt_and_completion_are_texts_or_messages(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=rf"t\.jsonl:{says}"):
        TrainingData.load(written(tmp_path, *rows))


def test_conversational_rows(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "system", "content": "Be kind."}, USER], "completion": [BOT]}
    silent = [{"prompt": [USER], "completion": []}, {"prompt": [], "completion": [BOT]}]
    path = written(tmp_path, row, *silent)
    data = TrainingData.load(path)
    assert data.rows == (row,) and data.skipped == 2 and data.chats
    plain = data.as_text()
    assert plain.rows == ({"prompt": "System: Be kind.\nUser: Hi\n", "completion": "Assistant: Hello\nthere"},)
    assert not plain.chats and plain.as_text() is plain and plain.format == "prompt/completion"


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n\n\n{"text": "a\n')
    with pytest.raises(DataError, match=r"t\.jsonl:4: not JSON"):
        TrainingData.load(path)


@pytest.mark.parametrize(
    ("rows", "says"),
    [([], "no usable text: the file has no line"), ([{"text": " "}] * 2, "no usable text: all 2 lines are empty")],
)
def test_a_file_without_text(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        TrainingData.load(written(tmp_path, *rows))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        TrainingData.load(tmp_path / "none.jsonl")


def test_messages_become_plain_text_and_other_formats_stay(tmp_path: Path) -> None:
    data = TrainingData.load(written(tmp_path, {"messages": [{"role": "system", "content": "Be kind."}, USER, BOT]}))
    plain = data.as_text()
    assert plain.rows == ({"text": "System: Be kind.\nUser: Hi\nAssistant: Hello\nthere"},) and plain.format == "text"
    assert plain.as_text() is plain
