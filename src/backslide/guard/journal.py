"""Outcomes on their way into a record: kept pack by pack, so that a process killed in the middle of a look loses none.

A journal is a file beside the record that is being measured. Its first line says what is measured; the next process
takes its outcomes over if it measures the very same: same weights, same tokens, same conditions.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backslide.errors import RecordError
from backslide.files import dump
from backslide.record import Header, Outcome

SCHEMA = "backslide.part/1"


class Journal:
    """The outcomes found so far on the way to the record at `path`.

    Args:
        path: where the finished record will be; None keeps nothing.
        header: of the record.
        rank: this process; each writes a file of its own, all are read.
        warn: told, once, where the outcomes cannot be written; measuring goes on.
    """

    def __init__(self, path: Path | None, header: Header, *, rank: int = 0, warn: Callable[[str], None]) -> None:
        self._path, self._rank, self._warn = path, rank, warn
        self._key = dump({
            "schema": SCHEMA,
            "suite": header.suite_hash,
            "model": header.model_fingerprint,
            "tokenizer": header.tokenizer_fingerprint,
            "conditions": header.conditions,
        })  # fmt: skip
        self._file: Any = None
        self._failed = False

    def known(self) -> dict[str, Outcome]:
        """What earlier processes found, by item id."""
        found: dict[str, Outcome] = {}
        for path in self._files():
            with contextlib.suppress(OSError):
                lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
                if lines[0] != self._key:
                    continue
                # The last line is whole only if a line break follows it.
                for line in lines[1:-1]:
                    with contextlib.suppress(json.JSONDecodeError, RecordError, TypeError):
                        outcome = Outcome.from_dict(json.loads(line))
                        found[outcome.id] = outcome
        return found

    def keep(self, outcomes: Sequence[Outcome]) -> None:
        """Write outcomes down, and see them onto the disk."""
        if self._path is None or self._failed:
            return
        try:
            if self._file is None:
                self._file = self._open(self._path)
            self._file.write("".join(dump(outcome.to_dict()) + "\n" for outcome in outcomes))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as bad:
            self._failed = True
            self._warn(
                f"{self._name(self._path)}: cannot be written ({bad.strerror or bad}); measuring goes on, but what an "
                "interrupted look has found will be lost"
            )

    def close(self, *, done: bool) -> None:
        """Let the file go; with `done` the record is saved and the journal is of no more use."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        if done:
            for path in self._files():
                with contextlib.suppress(OSError):
                    path.unlink()

    def _open(self, path: Path) -> Any:
        name = self._name(path)
        name.parent.mkdir(parents=True, exist_ok=True)
        whole = name.exists() and name.read_text(encoding="utf-8", errors="replace").startswith(self._key + "\n")
        file = open(name, "a" if whole else "w", encoding="utf-8", newline="\n")  # noqa: SIM115
        # After a line that a killed process left half written.
        file.write("\n" if whole else self._key + "\n")
        return file

    def _name(self, path: Path) -> Path:
        return path.with_name(f"{path.stem}.part-{self._rank}")

    def _files(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.stem}.part-*")) if self._path is not None else []
