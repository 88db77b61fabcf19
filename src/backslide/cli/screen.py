"""Results on standard output, progress and remarks on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

WIDTH = 120
"""Columns where the output is not a terminal: the widest table fits, with names of capabilities of 20 characters."""


class Screen:
    """Where a command shows things. With `as_json`, standard output gets one JSON value and nothing else."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._json = as_json
        self._out = _console(stderr=False)
        self._err = _console(stderr=True)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    @contextmanager
    def working(self) -> Iterator[None]:
        """Show progress bars inside; none where standard error is not a terminal."""
        # Bars and results share a terminal: printed through the bars' console, lines go above them.
        bars = Progress(
            TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
            console=self._err, transient=True, disable=not self._err.is_terminal,
            # Only where both share a terminal: `backslide demo > file` is to get its results.
            redirect_stdout=self._out.is_terminal,
        )  # fmt: skip
        with bars:
            self._bars = bars
            try:
                yield
            finally:
                self._bars, self._tasks = None, {}

    def progress(self, name: str, done: int, total: int) -> None:
        """Move the bar of `name`; it goes when it is full."""
        if self._bars is None or self._bars.disable:
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(name))

    def say(self, line: str) -> None:
        """Show a line about what is going on, on standard error."""
        self._err.print(Text(line), style="dim", soft_wrap=not self._err.is_terminal)

    def show(self, thing: Any = "") -> None:
        """Show a result on standard output; nothing where that is for JSON."""
        if not self._json:
            # Where no terminal reads it, a line stays a line: names and paths are found again by who reads a log.
            line = isinstance(thing, (str, Text)) and not self._out.is_terminal
            self._out.print(Text(thing) if isinstance(thing, str) else thing, soft_wrap=line)

    def result(self, value: Any) -> None:
        """Print the JSON value, where it was asked for."""
        if self._json:
            print(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))

    def error(self, line: str) -> None:
        """Show an error in one line on standard error."""
        self._err.print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)


class _Rate(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, emoji=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, emoji=False, width=WIDTH)
