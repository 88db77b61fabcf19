"""The tutorial on the real small model, as a user runs it but with fewer items; a file of its own, so that another worker can take it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backslide.models import BUILTIN

pytestmark = pytest.mark.real


def test_the_tutorial(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "tutorial.py"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script), BUILTIN, "repertoire:4"],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("before: ") == done.stdout.count("after: ") == 3 and "Paris" in done.stdout
    verdict = json.loads((tmp_path / "runs/tutorial/backslide/verdict.json").read_text())
    assert verdict["zone"] != "regressed", "six steps at 5e-5 are harmless, as the tutorial says"
