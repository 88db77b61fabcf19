"""Is a pattern found in a reply? By Python's `re`, in a process of its own, which is ended where it takes too long.

A pattern such as ``(a+)+$`` keeps `re` busy for hours on a reply that almost fits, and neither patterns nor replies are
to be trusted. Nothing inside a process can end `re`: it holds the lock that every other thread needs. (The package
`regex` has a time limit, but reads word characters and word boundaries otherwise beside emoji and accents: "❤️ Yes"
would be another verdict.)

The process is started with the first pattern and kept; a question and its answer take less than a thousandth of a
second.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

from backslide.errors import number_of, shown

SECONDS = 1.0
"""Of computing that a pattern has for a reply. Honest ones take thousandths."""

# What counts is the time that it computes, however busy the machine is; the other clock is for systems without that.
_PROGRAM = """
import faulthandler, json, os, re, signal, sys, warnings
warnings.simplefilter("ignore")
nowhere = open(os.devnull, "w")
timer = getattr(signal, "setitimer", None)
if timer:
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
for line in sys.stdin.buffer:
    seconds, pattern, text, everywhere = json.loads(line)
    try:
        found = re.compile(pattern)
    except Exception:
        found = re.compile("(?!)")  # what is no pattern is found nowhere
    faulthandler.dump_traceback_later(30 * seconds, exit=True, file=nowhere)
    if timer:
        timer(signal.ITIMER_VIRTUAL, seconds)
    if everywhere:
        answer = any([True for _ in found.finditer(text)])
    else:
        answer = found.search(text) is not None
    if timer:
        timer(signal.ITIMER_VIRTUAL, 0)
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.buffer.write(b"1\\n" if answer else b"0\\n")
    sys.stdout.buffer.flush()
"""


_TIME_IS_UP = (1, -int(getattr(signal, "SIGVTALRM", 26)))
"""Exit codes: by the one clock, or by the other."""


class Unended(Exception):
    """A pattern was not through with a reply in time, so whether it is found is not known."""

    def __init__(self, pattern: str) -> None:
        super().__init__(pattern)
        self.pattern = pattern


def is_found(pattern: str, text: str, *, everywhere: bool = False) -> bool:
    """Whether `re.search` finds `pattern` in `text`; with `everywhere`, whether it does once all places are looked for.

    Raises:
        Unended: it took longer than `SECONDS`.
    """
    return _searchers.setdefault(os.getpid(), _Searcher()).search(pattern, text, everywhere)


def slow_note(slow: Mapping[str, str]) -> tuple[str, ...]:
    """What is to be said of patterns that were ended, by the id of their item; nothing where none was."""
    if not slow:
        return ()
    id, pattern = min(slow.items())
    return (
        f"a pattern was not through with a reply after {SECONDS:g} s, so the reply counts as wrong: "
        f"{number_of(len(slow), 'item')}, the first is {id} with {shown(pattern)}; simplify the pattern",
    )


class _Searcher:
    """The other process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def search(self, pattern: str, text: str, everywhere: bool) -> bool:
        asked = json.dumps([SECONDS, pattern, text, everywhere]).encode() + b"\n"
        with self._lock:
            # The second try is for a process that something else ended while nobody asked.
            for again in (True, False):
                process = self._process or self._start()
                if process is None:
                    return re.search(pattern, text) is not None
                said = self._answer(process, asked)
                if said:
                    return said == b"1\n"
                code = self.end()
                if code in _TIME_IS_UP or not again:
                    break
            raise Unended(pattern)

    def _start(self) -> subprocess.Popen[bytes] | None:
        """None where no process can be started: then nothing ends a search."""
        if not sys.executable or getattr(sys, "frozen", False):  # an executable that is no Python
            return None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt at the terminal is for this process alone
            )
        except OSError:
            return None
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], asked: bytes) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(asked)
            process.stdin.flush()
            return process.stdout.readline()
        except OSError:
            return b""
        except BaseException:
            # An answer that nobody waited for would be taken for that to the next question.
            self.end()
            raise

    def end(self) -> int:
        """End the process, and tell its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


_searchers: dict[int, _Searcher] = {}
"""By process: a forked one must not talk to the searcher of its parent."""


@atexit.register
def _end() -> None:
    searcher = _searchers.pop(os.getpid(), None)
    if searcher is not None:
        searcher.end()
