"""Atomic writes, and JSON Lines that say at which line they break."""

from __future__ import annotations

import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from backslide.errors import InputError, RecordError
from backslide.files import (
    LONGEST_LINE,
    check_writable,
    dump,
    line_count,
    read_json,
    read_lines,
    read_text,
    write_json,
    write_lines,
    write_text,
    writing,
)


def test_a_write_that_is_killed_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_text(path, "old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_row_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    write_lines(path, [{"a": 1}])
    for bad in (float("nan"), "\ud800"):
        with pytest.raises(ValueError):
            write_lines(path, [{"a": 2}, {"a": bad}])
    assert list(read_lines(path)) == [(1, {"a": 1})] and [p.name for p in tmp_path.iterdir()] == ["f.jsonl"]


def test_a_file_gets_the_rights_that_open_would_give(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "f", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_json_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError):
        dump({"a": value})
    with pytest.raises(ValueError):
        write_json(tmp_path / "f.json", {"a": value})
    assert list(tmp_path.iterdir()) == []


def test_separators_of_unicode_inside_strings_end_no_line(tmp_path: Path) -> None:
    rows = [{"a": "one\u2028two\u2029three\x85four\x0b\x0c\x1c"}, {"a": "\r\n"}]
    write_lines(tmp_path / "f.jsonl", rows)
    assert list(read_lines(tmp_path / "f.jsonl")) == [(1, rows[0]), (2, rows[1])]


def test_blank_lines_count_and_a_byte_order_mark_does_not(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert list(read_lines(path)) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            b'{"a": 1}\n{"a": \n',
            r":2: not JSON: Expecting value at column 7, near '\{\"a\": '; write one whole JSON object a line",
        ),
        (b'{"a": 1}\n"text"\n', r":2: is 'text', a JSON object in braces is needed"),
        (b"null\n", r":1: is None, a JSON object in braces is needed"),
        (b"[" * 100_000, r":1: JSON nested too deeply, it begins '\[{40}'; put less into one another"),
        (
            b'{"a": ' + b"9" * 5000 + b"}",
            r":1: has a number of 5000 digits, '9+\.\.\.9+'; write a shorter one, or a text in double quotes",
        ),
        (b'{"a": 1, "b": 2, "a": 3}', r":1: the key 'a' is there twice; leave one out"),
        (b'{"a": {"b": 1, "b": 1}}', r":1: the key 'b' is there twice"),
        (b'{"a": "\xff"}', r":1: byte 7 is 0xff, which is not UTF-8; save the file as UTF-8"),
    ],
)
def test_bad_lines_are_one_line_of_the_error_asked_for(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=says) as raised:
        list(read_lines(path, RecordError))
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


def test_a_line_of_a_gigabyte_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        file.truncate(1 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(
            RecordError, match=r"f\.jsonl:2: the line is longer than 16 MiB; give each entry a line"
        ) as raised:
            list(read_lines(path, RecordError))
        assert tracemalloc.get_traced_memory()[1] < 3 * LONGEST_LINE
    finally:
        tracemalloc.stop()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "count"), [(b"", 0), (b"\n", 1), (b"a", 1), (b"a\nb", 2), (b"a\r\n\nb\n", 3), (b"\n" * (1 << 20) + b"a", (1 << 20) + 1)]
)  # fmt: skip
def test_lines_are_counted(tmp_path: Path, content: bytes, count: int) -> None:
    (tmp_path / "f").write_bytes(content)
    assert line_count(tmp_path / "f") == count
    assert line_count(tmp_path / "none") == 0


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"a": "%s"}\n' % ("x" * 10**6) * 40 + "oops\n")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"f\.jsonl:41: not JSON"):
            for _ in read_lines(path):
                pass
        assert tracemalloc.get_traced_memory()[1] < 8 * 10**6, "forty lines of a megabyte"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", ['{"a": 1,\n"b"}', "[" * 100_000, "9" * 5000, ""])
def test_bad_json_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"f\.json") as raised:
        read_json(path)
    assert "\n" not in str(raised.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such file"):
        read_text(tmp_path / "none")
    with pytest.raises(InputError, match="is a folder, a file is needed"):
        read_text(tmp_path)


def test_what_can_be_written_is_tried_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("new", "old", "a/b/new"):
        check_writable(tmp_path / name)
    check_writable(tmp_path / "run" / "folder", folder=True)
    check_writable(tmp_path, folder=True)
    assert [p.name for p in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, folder, says in (
        (tmp_path / "file" / "a" / "b", False, f"cannot be written, since {tmp_path / 'file'} is no folder; give"),
        (tmp_path / "file", True, f"cannot be written, since {tmp_path / 'file'} is no folder; give another path"),
        (Path("/proc/b.jsonl"), False, "cannot be written: No such file or directory; make room, or give another path"),
        (Path("/proc/b/c.jsonl"), False, "cannot be written: "),
        (Path("/dev/null"), False, "is no file that can be written anew; give another path"),
        (tmp_path / ("x" * 250), False, "cannot be written: File name too long"),
    ):
        with pytest.raises(RecordError) as bad:
            check_writable(path, RecordError, folder=folder)
        assert str(bad.value).startswith(f"{path}: {says}") and "\n" not in str(bad.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_names_path_and_reason(tmp_path: Path) -> None:
    with (
        pytest.raises(RecordError, match="f: cannot be written: No space left on device; make room, or give another"),
        writing(tmp_path / "f", RecordError),
    ):
        raise OSError(28, "No space left on device")
