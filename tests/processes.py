"""Real processes: scripts to be killed, two that train together (gloo), and one that holds a run's folder.

What the scripts import takes longer than what they do, so all but the first of a kind are forked off a server that has
imported it already. A forked process is a process of its own: it has its own memory, environment and standard streams,
and dies alone.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

LONGEST = 300
"""Seconds that a script may take."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["guard_runs", "tune_runs", "trl.trainer.sft_trainer", "peft", "datasets"])


class Forked:
    """A script that runs in a process forked off the server, as `python script arguments` would run it."""

    def __init__(self, script: str | Path, *arguments: str | Path, env: Mapping[str, str] = os.environ) -> None:
        self._streams = [tempfile.NamedTemporaryFile("w+", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        names = [stream.name for stream in self._streams]
        argv = [str(script), *map(str, arguments)]
        self.process = _server.Process(target=_become, args=(argv, names, dict(env), os.getcwd()), daemon=True)
        self.process.start()

    def wait(self) -> subprocess.CompletedProcess[str]:
        """What came of it; the exit status is negative where a signal ended it."""
        try:
            self.process.join(LONGEST)
            if self.process.exitcode is None:
                self.process.kill()
                raise AssertionError(f"a script was not done after {LONGEST} s: {self._said()}")
            return subprocess.CompletedProcess([], self.process.exitcode, *self._said())
        finally:
            for stream in self._streams:
                stream.close()

    def _said(self) -> list[str]:
        return [Path(stream.name).read_text(encoding="utf-8", errors="replace") for stream in self._streams]


def _become(argv: list[str], streams: list[str], env: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for number, name in enumerate(streams, start=1):
        with open(name, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), number)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def forked(script: str | Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script to its end in a forked process."""
    return Forked(script, *arguments).wait()


def fresh(script: str | Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script to its end in a new interpreter, as a user does: with other hashes, and so another order of sets."""
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)


def two(script: str | Path, *arguments: str | Path) -> str:
    """Run a script in two forked processes that can find each other, as torchrun's do; what they printed.

    A failure of one fails the test, as it ends torchrun.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    pair = [
        Forked(script, *arguments, env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]
    multiprocessing.connection.wait([one.process.sentinel for one in pair], timeout=LONGEST)
    if any(one.process.exitcode for one in pair):
        for one in pair:
            one.process.join(5)
            one.process.kill()
    done = [one.wait() for one in pair]
    said = "".join(one.stdout + one.stderr for one in done)
    assert [one.returncode for one in done] == [0, 0], said[-6000:]
    return "".join(one.stdout for one in done)


def two_by_torchrun(script: str | Path, *arguments: str | Path) -> str:
    """The same by torchrun itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LONGEST,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


HOLD = """
import sys, time
from pathlib import Path
from backslide.cure.place import sole
from backslide.rundir import RunFolder
folder, what = sys.argv[1:]
if what == "repair":
    kept = sole(folder)
    kept.__enter__()
else:
    kept = RunFolder(folder)
    kept.begin({})
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def another(folder: Path, what: str = "run") -> Iterator[subprocess.Popen[str]]:
    """Another process, which has begun a run or a repair in the folder and is at it until the end of the block."""
    command = [sys.executable, "-c", HOLD, str(folder), what]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as made:
        assert made.stdout is not None and made.stdout.readline() == "held\n"
        try:
            yield made
        finally:
            made.kill()
