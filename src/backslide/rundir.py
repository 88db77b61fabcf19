"""The folder of a run: where each file is, and how it is read back. No torch.

::

    run.json                 config, versions, seeds, suite hash, α, tolerance, planned looks
    baseline.jsonl           the record before training
    steps/step-000050.jsonl  a record for each look
    steps/lost/              looks at weights that are no part of the run any more, since it was resumed before them
    tried/                   records of weights that `auto` drew back after a step
    final.jsonl              the gate half (and the open items' replies) of the final model
    final-monitor.jsonl      the monitor half of the final model, where its weights are not those of the last look
    events.jsonl             appended and flushed: losses, looks, openings of the gate half, verdicts, actions, seconds
    verdict.json             the final verdict
    report.html report.md junit.xml
    model/                   the trained model or adapter, where `backslide tune` made the run
    checkpoints/             what that goes on from where it was interrupted; see `backslide.resume`
    .lock                    while a process writes here; see `backslide.lock`
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from backslide import openings
from backslide.errors import RecordError
from backslide.files import dump, read_json, write_json, write_lines
from backslide.lock import Claim
from backslide.record import Record
from backslide.verdict import Verdict

PAGES = ("report.html", "report.md", "junit.xml")
"""What is rebuilt from the other files."""
CHECKPOINTS = "checkpoints"
_OWN = (
    "run.json", "baseline.jsonl", "steps", "final.jsonl", "final-monitor.jsonl", "events.jsonl", "verdict.json",
    *PAGES, "snapshot", "model", "tried", CHECKPOINTS,
)  # fmt: skip


class RunFolder:
    """A run's folder. Reading raises `RecordError` naming the file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._claim: Claim | None = None

    def claim(self) -> None:
        """Keep other processes from writing here, until `release` or the end of this one.

        Raises `BusyError` where another one is at it.
        """
        self._claim = self._claim or Claim(self.path)

    def release(self) -> None:
        """Let others write."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "run.json").is_file()

    def begin(self, config: Mapping[str, Any]) -> None:
        """Claim the folder and start a run. What an earlier one left moves to `earlier/`: nothing measured is lost.

        How often the gate half was opened stays known: the new events begin with the openings of before.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RecordError(f"{self.path}: is a file; name a folder for the run")
        self.claim()
        left = [name for name in _OWN if _holds(self.path / name)]
        if left:
            target, opened = self._earlier(), openings.carried(self.events())
            for name in left:
                if name == "events.jsonl" and opened:
                    # Never a moment without them: a process that is killed here leaves the old events or the new ones.
                    shutil.copy2(self.path / name, target / name)
                    write_lines(self.path / name, opened)
                else:
                    (self.path / name).rename(target / name)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "run.json", config)

    def update(self, **fields: Any) -> None:
        """Change fields of `run.json`."""
        write_json(self.path / "run.json", {**self.config, **fields})

    @property
    def config(self) -> dict[str, Any]:
        """What `run.json` holds."""
        value = read_json(self.path / "run.json", RecordError)
        if not isinstance(value, dict):
            raise RecordError(f"{self.path / 'run.json'}: a JSON object is needed")
        return value

    @property
    def baseline(self) -> Path:
        """The record before training."""
        return self.path / "baseline.jsonl"

    @property
    def final(self) -> Path:
        """The record of the final model on the gate half."""
        return self.path / "final.jsonl"

    @property
    def final_monitor(self) -> Path:
        """The record of the final model on the monitor half."""
        return self.path / "final-monitor.jsonl"

    @property
    def snapshot(self) -> Path:
        """The folder of the state that a rollback goes back to."""
        return self.path / "snapshot"

    @property
    def report(self) -> Path:
        """The report in Markdown."""
        return self.path / "report.md"

    @property
    def page(self) -> Path:
        """The report as a page for a browser."""
        return self.path / "report.html"

    @property
    def junit(self) -> Path:
        """The verdict for build servers."""
        return self.path / "junit.xml"

    def step(self, step: int) -> Path:
        """The record of the look after `step`."""
        return self.path / "steps" / f"step-{step:06d}.jsonl"

    def tried(self, step: int, share: float) -> Path:
        """The record of weights that were drawn back after `step`, so that `share` of what was learned is left."""
        return self.path / "tried" / f"step-{step:06d}-{share:g}.jsonl"

    def steps(self) -> list[Record]:
        """The records of all looks, in order."""
        # From a million steps on the names get longer.
        paths = sorted((self.path / "steps").glob("step-*.jsonl"), key=lambda path: (len(path.name), path.name))
        return [Record.load(path) for path in paths]

    def lost(self) -> list[Record]:
        """The records of looks at weights that are no part of the run any more."""
        return [Record.load(path) for path in sorted((self.path / "steps" / "lost").glob("step-*.jsonl"))]

    def set_aside(self, *names: str) -> None:
        """Move files of the run to `earlier/`: a run that goes on has not ended."""
        left = [name for name in names if (self.path / name).exists()]
        if left:
            target = self._earlier()
            for name in left:
                (self.path / name).rename(target / name)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        write_json(self.path / "run.json", config)

    def _earlier(self) -> Path:
        # Never a name that exists: two runs may end within one second.
        stamp = time.strftime("%Y%m%dT%H%M%S")
        target = next(
            t for i in range(10_000) if not (t := self.path / "earlier" / (f"{stamp}-{i}" if i else stamp)).exists()
        )
        target.mkdir(parents=True)
        return target

    def lose(self, step: int) -> None:
        """Put the record of the look after `step` aside: its weights are no part of the run any more."""
        place = self.path / "steps" / "lost"
        place.mkdir(parents=True, exist_ok=True)
        name = self.step(step).stem
        free = next(t for i in range(10_000) if not (t := place / f"{name}{f'-{i}' if i else ''}.jsonl").exists())
        self.step(step).rename(free)

    def append(self, events: Iterable[Mapping[str, Any]], *, sync: bool = True) -> None:
        """Write events down, each with the time; with `sync`, see them, and all before them, onto the disk."""
        path = self.path / "events.jsonl"
        text = "".join(dump({"time": round(time.time(), 3), **event}) + "\n" for event in events)
        size = path.stat().st_size if path.exists() else 0
        if size and not self._ends_with_newline():
            # A killed process left half a line; close it, so that the next event has its own.
            text = "\n" + text
        try:
            with open(path, "a", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        except OSError:
            # The disk is full: all of it or nothing, so that whoever tries again writes no event twice.
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise

    def events(self) -> list[dict[str, Any]]:
        """All events, in order; a line that a killed process left half written is passed over."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]

    def save_verdict(self, verdict: Verdict) -> None:
        """Write `verdict.json`."""
        write_json(self.path / "verdict.json", verdict.to_dict())

    def verdict(self) -> Verdict | None:
        """The final verdict; None while there is none."""
        path = self.path / "verdict.json"
        if not path.exists():
            return None
        try:
            return Verdict.from_dict(read_json(path, RecordError))
        except RecordError as bad:
            raise bad if str(path) in str(bad) else RecordError(f"{path}: {bad}") from None

    def _ends_with_newline(self) -> bool:
        with open(self.path / "events.jsonl", "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def run_of(model: str | Path) -> RunFolder | None:
    """The run of `backslide tune` that left a model in `RUN/model`; None where it was no such run."""
    path = Path(model).expanduser()
    run = RunFolder(path.resolve().parent)
    return run if path.is_dir() and path.resolve().name == "model" and run.exists() else None


def _holds(path: Path) -> bool:
    # A trainer makes the folder of its checkpoints before there is one.
    return path.exists() and (path.name != CHECKPOINTS or any(path.iterdir()))
