"""Real processes that train together (torchrun, gloo)."""

from __future__ import annotations

import os
import subprocess
import sys
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
