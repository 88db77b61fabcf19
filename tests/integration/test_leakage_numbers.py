"""The numbers of `benchmarks/leakage.py` at a small size: recall on planted copies, and no false hit on the demo."""

from __future__ import annotations

import importlib.resources
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from backslide.passages import passages
from backslide.suite.leakage import find_leaks
from backslide.suite.suite import Suite

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "leakage.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not in this copy")
    spec = importlib.util.spec_from_file_location("benchmark_leakage", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("which", "near"), [("made-up", 0.98), ("repertoire", 0.93)])
def test_planted_copies_are_found_and_nothing_else_is(
    benchmark: ModuleType, tmp_path: Path, which: str, near: float
) -> None:
    text = benchmark.prose(0)
    suite = benchmark.made_up(600, text) if which == "made-up" else Suite.repertoire()
    spare = benchmark.spare_nothing if which == "made-up" else benchmark.spare_what_decides
    planted = benchmark.plant(tmp_path / "train.jsonl", suite, text, 1600, spare)
    found = {
        (leak.place, leak.item): leak.kind for leak in find_leaks(suite, passages(tmp_path / "train.jsonl"), places=50)
    }
    assert all(len(copies) >= min(300, len(suite.items) // 2) for copies in planted.values())
    assert all(found.get(place) == "exact" for place in planted["exact"].items())
    recall = sum(place in found for place in planted["near"].items()) / len(planted["near"])
    assert recall >= near
    everywhere = planted["exact"] | planted["near"]
    assert not [place for place, _ in found if place not in everywhere], "where nothing was planted"
    others = [place for place, item in found if everywhere[place] != item]
    assert len(others) <= 0.02 * len(everywhere), "where another item was planted"


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_the_demo_holds_nothing_of_the_bundled_suite(name: str) -> None:
    with importlib.resources.as_file(importlib.resources.files("backslide.demo") / "data" / f"{name}.jsonl") as file:
        assert find_leaks(Suite.repertoire(), passages(file)) == ()
