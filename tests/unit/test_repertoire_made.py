"""The bundled suite is what its makers make: `tools/repertoire/make.py` gives the committed files, byte for byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = Path("src", "backslide", "suite", "repertoire")


def test_the_makers_give_the_committed_files(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / BUNDLED).mkdir(parents=True)
    # The makers write beside their own folder, and use the package that is being tested.
    subprocess.run(
        [sys.executable, str(tmp_path / "tools" / "repertoire" / "make.py")],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
    )
    made = {path.name: path.read_bytes() for path in (tmp_path / BUNDLED).glob("*.jsonl")}
    committed = {path.name: path.read_bytes() for path in (ROOT / BUNDLED).glob("*.jsonl")}
    assert set(committed) - set(made) == {"open.jsonl"}, "three questions that were written by hand"
    assert [name for name in made if made[name] != committed.get(name)] == []
