"""Writing a run's files without ever ending the training: what cannot be written now is kept, and tried again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backslide.rundir import RunFolder


class Writer:
    """Writes into the run's folder; a full disk is warned of once, and costs nothing if there is room again later.

    Args:
        run: where to.
        writes: whether this process writes; else every call does nothing and says that it did.
        warn: told what could not be written.
    """

    def __init__(self, run: RunFolder, *, writes: bool, warn: Callable[[str], None]) -> None:
        self.run, self._writes, self._warn = run, writes, warn
        self._events: list[Mapping[str, Any]] = []
        self._left: dict[str, Callable[[], object]] = {}
        self._warned = False

    def append(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Write events down."""
        if self._writes:
            self._events += events
            self._try_again()

    def do(self, name: str, write: Callable[[], object]) -> bool:
        """Write the file `name`; whether it is written. If not, it is tried again at the next call."""
        if not self._writes:
            return True
        self._left[name] = write
        self._try_again()
        return name not in self._left

    def end(self) -> None:
        """Try everything a last time, say what is lost, and let others write there."""
        if self._writes and not self._try_again():
            lost = [*(["events.jsonl"] if self._events else []), *self._left]
            self._warn(
                f"{self.run.path}: could not be written: {', '.join(lost)}; what they say is lost with this process"
            )
        self.run.release()

    def _try_again(self) -> bool:
        try:
            if self._events:
                # A loss a step is not worth a wait for the disk; a look that comes after it brings it there.
                self.run.append(self._events, sync=any(event.get("event") != "loss" for event in self._events))
                self._events = []
            for name in list(self._left):
                try:
                    self._left[name]()
                except OSError:
                    raise
                except Exception as bad:
                    # A fault of ours, in a page that can be made again, must not end a training.
                    self._warn(f"{self.run.path / name}: could not be made: {type(bad).__name__}: {bad}")
                del self._left[name]
        except OSError as bad:
            if not self._warned:
                self._warned = True
                self._warn(
                    f"{self.run.path}: cannot be written: {bad.strerror or bad}; the training goes on, and writing is "
                    "tried again at the next look"
                )
            return False
        return True
