"""One process at a time writes into a run's folder: two would move each other's files away. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from backslide.errors import ConfigError

FILE = ".lock"
"""In the run's folder; empty. It stays: whoever removed it could remove the one that another process just took."""


class Claim:
    """A run's folder, claimed for this process until `release`, or until the process ends, however it does.

    A process that claims a folder twice holds it until it has released it twice.

    Raises:
        ConfigError: another process holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._lock: BaseFileLock | None = FileLock(
            str(folder.resolve() / FILE), timeout=0, thread_local=False, is_singleton=True
        )
        try:
            self._lock.acquire()
        except Timeout:
            raise ConfigError(
                f"{folder}: another process is writing its run there; wait until it has ended, or name another folder"
            ) from None
        except (OSError, NotImplementedError):
            # A file system without locks, or one that cannot be written: the latter is said by whoever writes.
            self._lock = None

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The same, for the length of a block."""
    claim = Claim(folder)
    try:
        yield
    finally:
        claim.release()
