"""Where the demo is told."""

from __future__ import annotations

from typing import Any, Protocol

from rich.text import Text


class Screen(Protocol):
    """Where the story is told."""

    def say(self, line: str) -> None:
        """Show a line about what is going on."""

    def show(self, thing: Any = "") -> None:
        """Show a result."""

    def progress(self, name: str, done: int, total: int) -> None:
        """Move a progress bar."""


def heading(screen: Screen, title: str, more: str) -> None:
    """Begin a part of the story."""
    screen.show()
    screen.show(Text.assemble((title, "bold"), f"\n   {more}"))
    screen.show()
