"""Two real gloo processes: items are shared out, each is scored once, there is one verdict, and all act alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import guard_ranks
from backslide.guard.callback import Guard
from backslide.leaks import found_in
from backslide.rundir import RunFolder
from backslide.scoring.ranks import Ranks
from guard_runs import SMALL, STEPS, make, suite
from processes import two, two_by_torchrun


def watched(folder: Path, kind: str, launch: Callable[..., str] = two) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    launch(guard_ranks.__file__, folder, kind)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def same(first: dict[str, Any], second: dict[str, Any], *names: str) -> None:
    for name in ("verdict", "looks", "baseline", "step", *names):
        assert first[name] == second[name], name


def test_each_item_is_scored_once_and_all_have_the_record_of_one_process(tmp_path: Path) -> None:
    first, second = watched(tmp_path, "trainer", two_by_torchrun)
    same(first, second, "weights")
    assert first["scored"] and second["scored"] and not set(first["scored"]) & set(second["scored"])
    work = sorted(len(rank["scored"]) for rank in (first, second))
    assert work[0] > 0.6 * work[1], "the work is shared out evenly"
    alone = Guard(suite(), every=2, settings=SMALL, cache=False, say=lambda _: None)
    make(tmp_path / "alone", alone, save_strategy="no").train()
    assert alone.baseline is not None
    assert first["baseline"] == json.loads(json.dumps([outcome.to_dict() for outcome in alone.baseline.outcomes]))
    everything = len(alone.baseline.outcomes)
    monitor = len([item for item in suite().part("monitor") if item.kind != "open"])
    # Baseline, four looks at one half, the other half and the open item at the end.
    assert sum(work) == everything + 4 * monitor + (everything - 1 - monitor) + 1
    # One of them writes and speaks.
    assert second["lines"] == [] and any("verdict" in line for line in first["lines"])
    run = RunFolder(tmp_path / "backslide")
    assert [e["step"] for e in run.events() if e["event"] == "look"] == [2, 4, 6, STEPS]
    assert run.config["processes"] == 2 and not list(run.path.rglob("*.part-*"))


@pytest.mark.parametrize("kind", ["stop", "rollback"])
def test_all_processes_act_alike(tmp_path: Path, kind: str) -> None:
    first, second = watched(tmp_path, kind)
    same(first, second, "weights")
    actions = [e for e in RunFolder(tmp_path / "backslide").events() if e["event"] == "action"]
    assert actions and actions[0]["action"] == kind
    assert first["step"] == (actions[0]["step"] if kind == "stop" else STEPS)


def test_what_one_process_finds_in_its_share_of_the_data_all_leave_out(tmp_path: Path) -> None:
    first, second = watched(tmp_path, "shares")
    same(first, second, "weights")
    each = [{leak.item for leak in found_in(suite(), rows, strict=False)[0]} for rows in guard_ranks.SHARES]
    ids = each[0] | each[1]
    assert each[0] and each[0] != ids
    run = RunFolder(tmp_path / "backslide")
    assert run.config["left_out"] == sorted(ids) == sorted(leak["item"] for leak in run.config["leaks"])
    (line,) = [line for line in first["lines"] if "found in" in line]
    assert line.startswith(f"{len(ids)} items of the suite many found in the training data of all processes, such as ")
    assert second["lines"] == []


def test_where_a_users_policy_differs_the_first_process_decides(tmp_path: Path) -> None:
    first, second = watched(tmp_path, "function")
    same(first, second, "weights")
    assert first["step"] == STEPS, "the second process alone had asked to stop"


def test_a_fault_of_one_process_leaves_none_waiting(tmp_path: Path) -> None:
    first, second = watched(tmp_path, "breaks")
    same(first, second, "weights")
    assert first["step"] == STEPS and len(first["looks"]) == 1
    assert first["verdict"]["zone"] == "undecided"
    assert any("process 1 could not measure its share: ValueError: a fault of" in line for line in first["lines"])


@pytest.mark.parametrize("kind", ["loop", "fsdp"])
def test_a_loop_of_ones_own_with_replicas_and_with_shards(tmp_path: Path, kind: str) -> None:
    first, second = watched(tmp_path, kind)
    same(first, second)
    assert [look["step"] for look in first["looks"]] == [2, 4]
    if kind == "loop":
        assert not set(first["scored"]) & set(second["scored"])
    else:
        # Every pass needs all shards, so all processes make all passes; the first keeps what is found.
        assert first["scored"] and not second["scored"]
    alone = Guard(suite(), every=4, settings=SMALL, cache=False, say=lambda _: None)
    make(tmp_path / "alone", alone, save_strategy="no", max_steps=1).train()
    assert alone.baseline is not None
    wanted = [outcome.to_dict() for outcome in alone.baseline.outcomes]
    assert [row["id"] for row in first["baseline"]] == [row["id"] for row in wanted]
    for row, other in zip(first["baseline"], wanted, strict=True):
        assert row.get("correct") == other.get("correct") and row.get("reply") == other.get("reply")
        assert row.get("scores", []) == pytest.approx(list(other.get("scores", ())), abs=1e-4)


def test_packs_are_dealt_out_by_weight() -> None:
    weights = [5.0, 1.0, 4.0, 3.0, 3.0, 1.0, 1.0]
    shares = [Ranks(rank, 3).mine(weights) for rank in range(3)]
    assert sorted(place for share in shares for place in share) == list(range(7))
    loads = [sum(weights[place] for place in share) for share in shares]
    assert max(loads) - min(loads) <= 1.0
    assert Ranks().mine(weights) == list(range(7)) == Ranks(1, 3, split=False).mine(weights)
