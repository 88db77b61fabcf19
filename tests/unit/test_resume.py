"""Checkpoints in a folder, without a model: which is whole, which is passed over, what is kept."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from backslide.resume import (
    WHOLE,
    broken,
    checkpoints,
    keep_snapshot,
    prune,
    restore_snapshot,
    seal,
    step_of,
)


def made(folder: Path, step: int, *, whole: bool = True) -> Path:
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(place / name, "w") as parts:
            parts.writestr("data.pkl", os.urandom(2000))
    (place / "trainer_state.json").write_text("{}")
    (place / "model.safetensors").write_bytes(os.urandom(100))
    if whole:
        seal(place)
    return place


def test_a_sealed_one_is_whole_and_any_damage_is_seen(tmp_path: Path) -> None:
    good = made(tmp_path, 10)
    assert broken(good) == "" and step_of(good) == 10
    assert broken(made(tmp_path, 20, whole=False)).startswith("whole.json cannot be read")
    for number, (name, says) in enumerate(
        [
            ("model.safetensors", "model.safetensors has 98 bytes of 100"),
            ("rng_state.pth", "rng_state.pth has "),
            (WHOLE, "whole.json cannot be read"),
        ],
        start=3,
    ):
        bad = made(tmp_path, 10 * number)
        (bad / name).write_bytes((bad / name).read_bytes()[:-2])
        assert says in broken(bad)
    flipped = made(tmp_path, 60)
    content = bytearray((flipped / "optimizer.pt").read_bytes())
    content[1000] ^= 1
    (flipped / "optimizer.pt").write_bytes(bytes(content))
    assert "optimizer.pt is damaged at data.pkl" in broken(flipped) or "Bad CRC" in broken(flipped)
    lost = made(tmp_path, 70)
    (lost / "scheduler.pt").unlink()
    assert broken(lost) == "scheduler.pt cannot be read (No such file or directory)"
    never = made(tmp_path, 80, whole=False)
    (never / "optimizer.pt").unlink()
    seal(never)
    assert broken(never) == "optimizer.pt is missing"
    whole = json.loads((good / WHOLE).read_text())
    (good / WHOLE).write_text(json.dumps({**whole, "schema": "backslide.checkpoint/9"}))
    assert broken(good) == "trainer_state.json is missing"


def test_the_newest_whole_ones_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100, 2):
        made(tmp_path, step)
    made(tmp_path, 200, whole=False)
    (tmp_path / "checkpoint-best").mkdir()
    assert [step_of(path) for path in checkpoints(tmp_path)] == [2, 9, 10, 100, 200], "by number, not by name"
    prune(tmp_path, 2)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [10, 100]
    prune(tmp_path, 0)
    assert checkpoints(tmp_path) == [] and (tmp_path / "checkpoint-best").exists()


@pytest.mark.parametrize("linked", [True, False])
def test_the_state_to_go_back_to_is_the_checkpoints_own(
    tmp_path: Path, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "present" / "run"  # the name of a folder above means nothing
    place = made(run / "checkpoints", 10, whole=False)
    state = run / "snapshot" / "process-1" / "snapshot.safetensors"
    (run / "snapshot" / "present").mkdir(parents=True)
    state.parent.mkdir()
    state.write_text("of step 8")
    (run / "snapshot" / "present" / "snapshot.safetensors").write_text("of an auto that was killed")
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    keep_snapshot(run, place)
    kept = place / "snapshot" / "process-1" / "snapshot.safetensors"
    assert kept.samefile(state) is linked and not (place / "snapshot" / "present").exists()
    restore_snapshot(place, run)
    assert state.read_text() == "of step 8" and len(list(state.parent.iterdir())) == 1
    # A later one takes its place as files are written here: beside it, then renamed.
    (run / "new").write_text("of step 12")
    (run / "new").replace(state)
    assert kept.read_text() == "of step 8"
    restore_snapshot(place, run)
    assert state.read_text() == "of step 8" and len(list(state.parent.iterdir())) == 1
