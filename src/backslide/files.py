"""Reading and writing the project's files: atomic writes, JSON Lines with line numbers.

Every file of a run is written to a temporary name in the same folder, flushed to disk and renamed, so a
killed process leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from backslide.errors import InputError, number_of, shown

LONGEST_LINE = 1 << 24
"""Bytes of a line of a JSON Lines file: a line takes several times its size in memory, and no entry is so long."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` at the end of the block; an exception inside leaves `path` as it was.

    Its folder is made where needed. A process that is killed inside leaves `path`, and a file `.NAME.*` beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes a private file; give it the rights that open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def check_writable(path: Path, error: type[InputError] = InputError, *, folder: bool = False) -> None:
    """Refuse before the work a file, or with `folder` a folder, that could not be written after it.

    What is tried leaves nothing behind: the file is not made, and folders that were made for the trial go again.
    """
    place = path if folder else path.parent
    new = [one for one in (place, *place.parents) if not os.path.lexists(one)]
    try:
        with writing(path, error):
            above = next((one for one in (place, *place.parents) if one not in new), place)
            if above not in new and not above.is_dir():
                raise error(f"{path}: cannot be written, since {above} is no folder; give another path")
            # A rename would put a plain file in the place of /dev/null.
            if not folder and path.exists() and not path.is_file():
                raise error(f"{path}: is no file that can be written anew; give another path")
            place.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=place)
            os.close(handle)
            os.unlink(name)
    finally:
        for one in new:
            with contextlib.suppress(OSError):
                one.rmdir()


@contextlib.contextmanager
def writing(path: Path, error: type[InputError] = InputError) -> Iterator[None]:
    """Say in one line that `path` could not be written inside, and why."""
    try:
        yield
    except OSError as bad:
        raise error(f"{path}: cannot be written: {bad.strerror or bad}; make room, or give another path") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, making its folder where needed."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def dump(value: Any) -> str:
    """One line of JSON; refuses NaN and infinity, which are not JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` as JSON Lines, atomically."""
    write_text(path, "".join(dump(row) + "\n" for row in rows))


def read_text(path: Path, error: type[InputError] = InputError) -> str:
    """The text of `path`, or `error` with one line that says what is wrong with the file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as bad:
        raise error(f"{path}: {_no_utf8(bad)}") from None
    except (OSError, ValueError) as bad:
        raise error(f"{path}: {_why(bad)}") from None


def read_json(path: Path, error: type[InputError] = InputError) -> Any:
    """The JSON value in `path`, or `error` with the line at which it breaks."""
    text = read_text(path, error)
    try:
        return json.loads(text)
    except json.JSONDecodeError as bad:
        raise error(f"{path}:{bad.lineno}: {_no_json(bad)}; correct the file") from None
    except (ValueError, RecursionError) as bad:
        raise error(f"{path}: {_no_value(bad, text)}") from None


def read_lines(path: Path, error: type[InputError] = InputError) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of every non-blank line of a JSON Lines file."""
    for number, line in text_lines(path, error):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except _Twice as bad:
            raise error(f"{path}:{number}: the key {shown(bad.key)} is there twice; leave one out") from None
        except json.JSONDecodeError as bad:
            raise error(f"{path}:{number}: {_no_json(bad)}; write one whole JSON object a line") from None
        except (ValueError, RecursionError) as bad:
            raise error(f"{path}:{number}: {_no_value(bad, line)}") from None
        if not isinstance(row, dict):
            raise error(f"{path}:{number}: is {shown(row)}, a JSON object in braces is needed")
        yield number, row


def text_lines(path: Path, error: type[InputError] = InputError) -> Iterator[tuple[int, str]]:
    """Line number (from 1) and text of every line, without its line break, one at a time."""
    try:
        with open(path, "rb") as file:
            # Not str.splitlines(): that also breaks at U+2028 and friends, which are legal inside JSON strings.
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(line) > LONGEST_LINE:
                    limit = f"{LONGEST_LINE >> 20} MiB"
                    raise error(f"{path}:{number}: the line is longer than {limit}; give each entry a line of its own")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as bad:
                    raise error(f"{path}:{number}: {_no_utf8(bad)}") from None
                yield number, text.rstrip("\r\n")
    except (OSError, ValueError) as bad:
        raise error(f"{path}: {_why(bad)}") from None


def line_count(path: Path) -> int:
    """How many lines a file has, whatever their length; 0 where it cannot be read, which its reader then says."""
    count, last = 0, b"\n"
    try:
        with open(path, "rb") as file:
            # Not line by line: one line may be the whole file.
            for block in iter(lambda: file.read(1 << 20), b""):
                count += block.count(b"\n")
                last = block[-1:]
    except (OSError, ValueError):
        return 0
    return count + (last != b"\n")


class _Twice(Exception):
    """A key of a JSON object is there twice: which of the values is meant, nobody can tell."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for place, key in enumerate(keys) if key in keys[:place]))
    return row


def _no_utf8(bad: UnicodeDecodeError) -> str:
    return f"byte {bad.start} is 0x{bad.object[bad.start]:02x}, which is not UTF-8; save the file as UTF-8"


def _no_json(bad: json.JSONDecodeError) -> str:
    line = bad.doc.split("\n")[bad.lineno - 1]
    near = line[max(bad.colno - 21, 0) : bad.colno + 19]
    return f"not JSON: {bad.msg} at column {bad.colno}, near {shown(near)}"


def _no_value(bad: ValueError | RecursionError, text: str) -> str:
    """What is JSON by its form and cannot be read: nested thousandfold, or a number of thousands of digits."""
    if isinstance(bad, RecursionError):
        return f"JSON nested too deeply, it begins {shown(text[:40])}; put less into one another"
    digits = max(re.findall(r"\d+", text), key=len, default="")
    return (
        f"has a number of {number_of(len(digits), 'digit')}, {shown(digits)}; write a shorter one, or a text in double "
        "quotes"
    )


def _why(bad: OSError | ValueError) -> str:
    if isinstance(bad, FileNotFoundError):
        return "no such file"
    if isinstance(bad, IsADirectoryError):
        return "is a folder, a file is needed"
    return f"cannot be read: {(bad.strerror if isinstance(bad, OSError) else None) or bad}"
