"""The stored results of `benchmarks/peers.py`: nobody is left out, all had the same case, and the page shows them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backslide.files import read_json

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "peers"
SEEDS = (0,)
"""That were run for all."""

if not RESULTS.is_dir():
    pytest.skip("the results of the benchmarks are not in this copy", allow_module_level=True)

RUNS: list[dict[str, Any]] = [read_json(path) for path in sorted(RESULTS.glob("*-*.json"))]


@pytest.fixture(scope="module")
def peers() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        before = set(sys.modules)
        import peers

        yield peers
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("peers", "peers_case", "peers_contestants", "peers_own", "scatter"):
                del sys.modules[name]


def of(name: str, seed: int) -> dict[str, Any] | None:
    return next((run for run in RUNS if (run["contestant"], run["seed"]) == (name, seed)), None)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_contestant_left_a_model_or_says_where_it_failed(peers: Any, seed: int) -> None:
    for name in peers.CONTESTANTS:
        run = of(name, seed)
        if run is None:
            assert name in peers.FIRST_SEED_ALONE and seed > 0, f"{name} has no result for seed {seed}"
        elif "failed" in run:
            assert run["failed"]["stage"] != "start" and run["failed"]["error"], f"{name}, seed {seed}"
        else:
            assert 0 < run["model"]["accuracy"]["gate"] < 1 and run["model"]["target loss"] > 0, f"{name}, seed {seed}"


def test_all_had_the_same_case_and_budget(peers: Any) -> None:
    assert {(run["rate"], run["steps"]) for run in RUNS} == {(peers.RATE, peers.STEPS)}
    assert len({run["rehearsal"] for run in RUNS}) == 1
    assert len({(run["versions"]["torch"], run["versions"]["transformers"]) for run in RUNS}) == 1
    assert len({tuple(run["model"]["items"].items()) for run in RUNS if "model" in run}) == 1
    for run in RUNS:
        assert "failed" in run or run["cpu seconds"] <= peers.LIMIT, f"{run['contestant']}, seed {run['seed']}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_repair_of_ours_begins_where_the_plain_run_ends(seed: int) -> None:
    plain, repair = of("plain", seed), of("repair", seed)
    assert plain is not None and repair is not None
    assert repair["before"] == plain["model"]


def test_the_table_has_all_of_them(peers: Any) -> None:
    table = peers.table()
    for run in RUNS:
        name = run["contestant"]
        if "model" in run:
            assert f"\n| {name} | " in table
        if "failed" in run:
            assert f"\n`{name}` " in table and run["failed"]["error"] in table


def test_the_page_has_the_table_and_the_plot(peers: Any) -> None:
    page = (ROOT / "docs" / "cures.md").read_text("utf-8")
    assert peers.table() in page
    assert (ROOT / "docs" / "peers.svg").read_text("utf-8") == peers.plot()
    assert "](peers.svg)" in page
