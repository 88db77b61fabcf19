"""A screen for tests of the demo, which keeps what it was told."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from rich.console import Console


class Told:
    """A screen that keeps what it was told.

    Args:
        watch: told of all progress; what it raises ends the story.
    """

    def __init__(self, watch: Callable[[str, int, int], None] | None = None) -> None:
        self.watch = watch
        self.console = Console(width=160, record=True, file=io.StringIO())
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def show(self, thing: Any = "") -> None:
        self.console.print(thing, markup=False)

    def progress(self, name: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        if self.watch is not None:
            self.watch(name, done, total)
