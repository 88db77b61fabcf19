"""How far a demo has come: one that was interrupted goes on in its folder, one that has ended is told anew.

What was made stands in the runs' own folders; `demo.json` beside them says whose it is and whether the story has ended.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from backslide.config import TuneConfig
from backslide.errors import BusyError, InputError
from backslide.files import read_json, write_json
from backslide.guard.journal import Journal
from backslide.lock import claimed
from backslide.record import Header
from backslide.report.summary import Summary
from backslide.rundir import RunFolder

FIRST = Path("runs/demo")
FILE, BASELINE = "demo.json", "baseline.jsonl"
SCHEMA = "backslide.demo/1"


class Mark:
    """Of the story that is told in a folder.

    Args:
        folder: the demo's.
        story: what decides what is made: a story of another one is not gone on with.
    """

    def __init__(self, folder: Path, story: Mapping[str, Any]) -> None:
        self._folder = folder
        self._story = {"schema": SCHEMA, **story}
        self.goes_on = _read(folder) == {**self._story, "ended": False}
        """Whether such a story was interrupted here."""
        if not self.goes_on:
            self._forget()
        write_json(folder / FILE, {**self._story, "ended": False})

    def journal(self, header: Header, warn: Callable[[str], None]) -> Journal:
        """Of what the base does: the runs' folders have the record, this has what was found before an interruption."""
        return Journal(self._folder / BASELINE, header, warn=warn)

    def end(self) -> None:
        """The story has been told."""
        write_json(self._folder / FILE, {**self._story, "ended": True})
        self._forget()

    def run(self, config: TuneConfig, suite_hash: str) -> Summary | None:
        """The run of this configuration, if the interrupted story had ended it."""
        run = RunFolder(config.folder)
        with contextlib.suppress(InputError):
            if self.goes_on and run.exists() and run.verdict() is not None:
                same = run.config.get("config") == json.loads(json.dumps(config.to_dict()))
                return Summary.of(run) if same and run.config.get("suite_hash") == suite_hash else None
        return None

    def _forget(self) -> None:
        for path in self._folder.glob(f"{Path(BASELINE).stem}.part-*"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def place(out: Path | None, first: Path = FIRST) -> Iterator[Path]:
    """The folder in which a demo is told, this process's alone meanwhile.

    Args:
        out: what the user named; None: the newest of the demos' folders where one was interrupted, else a new one.
        first: the folder of the first demo; later ones have a number behind its name.

    Raises:
        BusyError: another process is writing there.
    """
    tries = _folders(first) if out is None else [out]
    with contextlib.ExitStack() as held:
        while True:
            folder = tries.pop(0)
            try:
                held.enter_context(claimed(folder))
                break
            except BusyError:
                # Not interrupted, then, but under way.
                if not tries:
                    raise
        yield folder


def _folders(first: Path) -> list[Path]:
    """Where a demo may be told, best first."""
    tries = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    there = list(itertools.takewhile(Path.exists, itertools.chain((first,), tries)))
    new = first if not there else first.with_name(f"{first.name}-{len(there) + 1}")
    return [*(path for path in there[-1:] if _read(path).get("ended") is False), new]


def _read(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(InputError):
        found = read_json(folder / FILE)
        return found if isinstance(found, dict) else {}
    return {}
