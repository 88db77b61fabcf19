"""Real processes: that train together (torchrun, gloo), and one that holds a run's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def two(script: str | Path, *arguments: str | Path) -> str:
    """Run a script in two processes that can find each other; what they printed. A failure fails the test."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


HOLD = """
import sys, time
from backslide.rundir import RunFolder
run = RunFolder(sys.argv[1])
run.begin({})
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has begun a run in the folder and goes on with it until the end of the block."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, env=env
    ) as made:
        assert made.stdout is not None and made.stdout.readline() == "held\n"
        try:
            yield made
        finally:
            made.kill()
