"""One process at a time writes into a folder: two would move each other's files away. No torch.

The lock is the operating system's (`fcntl`, record locks): it ends with the process, however that ends, children that
are forked off don't inherit it, and NFS has it too. Where there is none (Windows, some file systems) nothing is held.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backslide.errors import BusyError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
"""In a run's folder, while a process writes there; one that was killed leaves it, which keeps nobody out."""
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
"""Where launchers tell a process which one it is, before torch.distributed is begun."""


def first_process() -> bool:
    """Whether this is the process that writes for all that train together."""
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"


@dataclass
class _Held:
    handle: int
    pid: int
    made: tuple[Path, ...]
    """Folders that were made for the lock, the innermost first."""
    count: int = 1


_held: dict[Path, _Held] = {}


class Claim:
    """A folder that is this process's until `release`, until nobody has the claim any more, or until the process ends.

    A process that claims a folder several times holds it until it has released it as often.

    Args:
        folder: to be claimed; made where it isn't there, and removed by the release if it is still empty then.
        file: of the lock; None: `FILE` in the folder.

    Raises:
        BusyError: another process holds it.
    """

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        self._release: Callable[[], object] = lambda: None
        path = (file or folder / FILE).expanduser().resolve()
        held = _held.get(path)
        if held is not None and held.pid == os.getpid():
            held.count += 1
        elif (held := _take(path, folder)) is not None:
            _held[path] = held
        if held is not None:
            self._release = weakref.finalize(self, _give_back, path, held)

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        self._release()


@contextlib.contextmanager
def claimed(folder: Path, file: Path | None = None) -> Iterator[None]:
    """The same, for the length of a block."""
    claim = Claim(folder, file)
    try:
        yield
    finally:
        claim.release()


def _take(path: Path, folder: Path) -> _Held | None:
    """The lock; None where there can be none. Raises `BusyError` where another process has it."""
    if fcntl is None:
        return None
    made = tuple(parent for parent in path.parents if not parent.exists())
    for _ in range(1000):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, FileExistsError):
            continue  # whoever had it before has just removed the folder (or it is a file, and stays one)
        except OSError:
            break  # no writing here, which is said by whoever writes
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return _Held(handle, os.getpid(), made)
        except (BlockingIOError, PermissionError):
            os.close(handle)
            raise BusyError(
                f"{folder}: another process is writing there; wait until it has ended (a notebook's kernel holds an "
                "interrupted run), or name another folder"
            ) from None
        except FileNotFoundError:
            pass
        except OSError:
            os.close(handle)
            break  # a file system without locks
        # The file is no longer the one of this name: whoever had it before has removed it.
        os.close(handle)
    _remove(made)
    return None


def _give_back(path: Path, held: _Held) -> None:
    # A forked child has its parent's claims in memory, and no lock.
    if held.pid != os.getpid():
        return
    held.count -= 1
    if held.count == 0:
        del _held[path]
        # First the name, then the lock: else another one could take the file that is just going.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(held.handle)
        _remove(held.made)


def _remove(made: tuple[Path, ...]) -> None:
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()
