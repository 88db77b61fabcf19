"""What an adapter calls its base: a name that PEFT knows, and that is found here without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from backslide.config import TuneConfig
from backslide.cure.line import open_line
from backslide.files import write_lines
from backslide.models import (
    BASE_NOTE,
    BUILTIN,
    BUILTIN_HUB,
    base_of,
    lasting_name,
    load_model,
    model_fingerprint,
    name_base,
    resolve,
)
from backslide.suite.suite import Suite
from backslide.tune import tune


@pytest.fixture
def builtin(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in the place of the built-in one."""
    monkeypatch.setenv("BACKSLIDE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny_folder, tmp_path / "cache" / "models" / BUILTIN))


def named(adapter: Path) -> str:
    return str(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])


def test_an_adapter_on_the_built_in_model_names_it_as_the_hub_does_and_loads_here(
    tmp_path: Path, builtin: Path, known_suite: Suite
) -> None:
    write_lines(tmp_path / "train.jsonl", [{"text": f"Answer {i:02}."} for i in range(4)])
    known_suite.save(tmp_path / "suite.jsonl")
    content: dict[str, Any] = {
        "model": {"base": BUILTIN, "dtype": "float32"},
        "data": {"train": str(tmp_path / "train.jsonl")},
        "train": {"steps": 1, "batch_size": 2, "max_length": 32, "method": "lora", "learning_rate": 1e-2},
        "guard": {"looks": 1, "suite": str(tmp_path / "suite.jsonl")},
        "output": {"dir": str(tmp_path / "run")},
    }
    tuned = tune(TuneConfig.from_dict(content)).model
    assert named(tuned) == BUILTIN_HUB
    # Whatever an earlier version called it.
    settings = json.loads((tuned / "adapter_config.json").read_text())
    (tuned / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": BUILTIN}))
    open_line(BUILTIN, str(tuned)).write(tmp_path / "half", 0.5)
    assert named(tmp_path / "half") == BUILTIN_HUB
    said: list[str] = []
    base = model_fingerprint(load_model(builtin, dtype="float32").model)
    here = load_model(tmp_path / "half", dtype="float32", say=said.append).model
    assert model_fingerprint(here, adapters=False) == base and said == []


def test_the_hub_id_by_itself_is_the_hubs_model(tmp_path: Path, builtin: Path) -> None:
    # Whoever names it, or trained an adapter on it elsewhere, means its weights, which the built-in ones are near to.
    assert resolve(BUILTIN_HUB) == BUILTIN_HUB and resolve(BUILTIN) == str(builtin)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 8, "base_model_name_or_path": "x"}')
    name_base(tmp_path / "adapter", BUILTIN)
    assert base_of(tmp_path / "adapter") == BUILTIN and named(tmp_path / "adapter") == BUILTIN_HUB
    name_base(tmp_path / "adapter", BUILTIN_HUB)
    assert base_of(tmp_path / "adapter") == BUILTIN_HUB and not (tmp_path / "adapter" / BASE_NOTE).exists()


def test_a_name_lasts_wherever_it_is_read(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_folder.parent)
    assert lasting_name(tiny_folder.name) == lasting_name(str(tiny_folder)) == str(tiny_folder.resolve())
    assert lasting_name("org/name") == "org/name" and lasting_name(BUILTIN) == BUILTIN_HUB
