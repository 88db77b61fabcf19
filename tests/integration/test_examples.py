"""The examples, each run as a user runs it, on a tiny model; and a script of TRL's own documentation with a guard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))

# TRL's quick start for SFT (docs/source/quickstart.md), its model and data being the two arguments, and `use_cpu` for
# machines without a GPU; all other settings are TRL's own. The guard is the last argument, and its import.
QUICKSTART = """
import sys
from trl import SFTConfig, SFTTrainer
from datasets import load_dataset
from backslide import Guard

trainer = SFTTrainer(
    model=sys.argv[1],
    args=SFTConfig(use_cpu=True),
    train_dataset=load_dataset("json", data_files=sys.argv[2], split="train"),
    callbacks=[Guard()],
)
trainer.train()
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples: a base that one of them has measured, the others need not measure again."""
    return tmp_path_factory.mktemp("cache")


def run(script: Path, folder: Path, cache: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "BACKSLIDE_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
    }
    environment["HF_DATASETS_CACHE"] = str(folder / "datasets")
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_example(tmp_path: Path, tiny_folder: Path, cache: Path, name: str) -> None:
    said = run(EXAMPLES / f"{name}.py", tmp_path, cache, str(tiny_folder))
    assert said.count("verdict: ") >= 1
    assert "measured the base model before training" in said or "an earlier run has measured this very base" in said
    (folder,) = (tmp_path / "runs").glob("**/verdict.json")
    assert json.loads(folder.read_text())["zone"] in ("retained", "undecided", "regressed")


def test_there_is_an_example_for_each_trainer() -> None:
    assert {"trainer", "sft", "dpo", "grpo", "loop", "tutorial"} == set(NAMES)
    assert len((EXAMPLES / "tutorial.py").read_text().splitlines()) <= 40


def test_a_script_of_trls_documentation_with_one_line_added(tmp_path: Path, tiny_folder: Path, cache: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Order {n}?"}, {"role": "assistant", "content": "One latte."}]}
        for n in range(24)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "script.py").write_text(QUICKSTART)
    said = run(tmp_path / "script.py", tmp_path, cache, str(tiny_folder), str(tmp_path / "data.jsonl"))
    assert "backslide: final model, gate half: " in said
    assert len(list(tmp_path.glob("**/backslide/report.md"))) == 1
