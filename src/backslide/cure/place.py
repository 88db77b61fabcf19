"""The folder of a repair: the model in the folder itself, the repair's records in `backslide/` inside it.

::

    DIR/                         loads with from_pretrained; nothing but backslide/ until it is certified
      config.json, model.safetensors, tokenizer.json, …   or adapter_config.json, adapter_model.safetensors
      README.md                  the model card
      backslide/
        run.json                 what is repaired, and by what numbers
        baseline.jsonl           the record of the base
        line/at-0.31250.jsonl    a record of the monitor half for each point that was looked at
        final.jsonl              the gate half of what was written
        tuned.jsonl              the gate half of the tuned model
        events.jsonl verdict.json report.html report.md junit.xml
        *.part-0                 outcomes of a record that is being measured

While it is worked on, weights are in `.DIR.repair` beside it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backslide.errors import ConfigError, InputError, RecordError
from backslide.files import check_writable
from backslide.lock import claimed
from backslide.record import Record
from backslide.rundir import RunFolder

RECORDS = "backslide"
_LAST = ("config.json", "adapter_config.json")


def sole(out: str | Path) -> contextlib.AbstractContextManager[None]:
    """Keep other processes from repairing into `out`: what is there, and its weights in the making, are one's own.

    Raises `BusyError` where another one is at it.
    """
    full = Path(out).expanduser().resolve()
    # Beside it: a folder that holds anything is none for a repair.
    return claimed(Path(out), full.parent / f".{full.name}.lock")


class Place:
    """Where a repair goes.

    Raises `ConfigError` where something else is there already, which is left as it is.
    """

    def __init__(self, out: str | Path, identity: dict[str, Any]) -> None:
        self.out = Path(out).expanduser()
        self.run = RunFolder(self.out / RECORDS)
        full = self.out.resolve()
        self.work = full.parent / f".{full.name}.repair"
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out}: is a file; give a folder for the repaired model, with --out")
        if self.run.exists():
            if (old := self.run.config.get("repair")) != identity:
                raise ConfigError(
                    f"{self.out}: holds a repair of other inputs ({_differ(old, identity)}); give another folder"
                )
        elif self.out.is_dir() and any(path.name != RECORDS for path in self.out.iterdir()):
            raise ConfigError(f"{self.out}: is not empty, and no repair; give another folder with --out")
        if self.outcome is None:
            check_writable(self.out, ConfigError, folder=True)

    @property
    def outcome(self) -> str | None:
        """`repaired` or `nothing`; None while it has not ended."""
        return self.run.config.get("outcome") if self.run.exists() else None

    @property
    def tuned(self) -> Path:
        """The record of the tuned model on the gate half."""
        return self.run.path / "tuned.jsonl"

    def look(self, at: float) -> Path:
        """The record of the monitor half at a point of the line."""
        return self.run.path / "line" / f"at-{at:.5f}.jsonl"

    def looks(self) -> list[Record]:
        """Those that are there; what cannot be read is measured again."""
        found = []
        for path in sorted((self.run.path / "line").glob("at-*.jsonl")):
            try:
                found.append(Record.load(path))
            except RecordError:
                continue
        return found

    @contextlib.contextmanager
    def trial(self) -> Iterator[None]:
        """Where what is done inside is refused, what it made here goes again; what was there before stays."""
        begun = self.run.exists()
        made = [folder for folder in (self.run.path, *self.run.path.parents) if not folder.exists()]
        try:
            yield
        except InputError:
            self.clear()
            if not begun:
                (self.run.path / "run.json").unlink(missing_ok=True)
                if made[:1] == [self.run.path]:
                    shutil.rmtree(self.run.path, ignore_errors=True)
                for folder in made:
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            raise

    def fresh(self, name: str) -> Path:
        """An empty folder for weights, beside the repair's."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def ship(self, folder: Path) -> None:
        """Move a model into place. Until the last file has come, its configuration, it does not load."""
        for path in sorted(folder.iterdir(), key=lambda path: (path.name in _LAST, path.name)):
            target = self.out / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
        self.clear()

    def close(self) -> None:
        """Let others write into the repair's records."""
        self.run.release()

    def clear(self) -> None:
        """Remove what was worked with."""
        shutil.rmtree(self.work, ignore_errors=True)

    def clear_journals(self) -> None:
        """Remove what measurements were killed over: their records are there."""
        for path in (*self.run.path.glob("*.part-*"), *(self.run.path / "line").glob("*.part-*")):
            with contextlib.suppress(OSError):
                path.unlink()


def _differ(old: Any, new: dict[str, Any]) -> str:
    if not isinstance(old, dict):
        return "of what is not known"
    other = [key for key in sorted(new) if old.get(key) != new[key]]
    return "another " + ", ".join(other)
