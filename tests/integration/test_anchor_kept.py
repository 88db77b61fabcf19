"""The base's log-probabilities on disk: what was interrupted goes on, and nothing of another base is taken."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from anchor_runs import ROWS, new_model
from backslide.cure import anchor_targets
from backslide.cure.anchor import Anchor
from backslide.errors import InputError, RunError
from backslide.lock import claimed
from backslide.testing import tiny_model
from guard_runs import make

MANY = [{"text": f"old text {i} " * (i % 4 + 1)} for i in range(20)]


class Computed:
    """The rows whose log-probabilities are computed, and where that is interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.stop: int | None = None
        real = anchor_targets._computed

        def noted(*args: Any) -> Any:
            for numbers, found in real(*args):
                self.rows += numbers
                yield numbers, found

        monkeypatch.setattr(anchor_targets, "_computed", noted)
        monkeypatch.setattr(anchor_targets, "BATCH_TOKENS", 64)

    def progress(self, what: str, done: int, total: int) -> None:
        assert what == "base log-probabilities" and total == len(MANY)
        if self.stop is not None and done >= self.stop:
            raise KeyboardInterrupt


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Computed:
    return Computed(monkeypatch)


def kept(folder: Path, computed: Computed, model: Any = None, rows: Any = MANY) -> bytes:
    """Have them kept in the folder, and give the file; `computed` has the rows of this call alone."""
    computed.rows.clear()
    trainer = make(folder / "run", None, model=model or tiny_model())
    Anchor(rows, folder=folder / "a", say=lambda _: None, progress=computed.progress).attach(trainer).keep_base()
    assert not list((folder / "a").glob(".*")), "nothing but whole files is left"
    return max((folder / "a").iterdir(), key=lambda path: path.stat().st_mtime_ns).read_bytes()


def interrupted(folder: Path, computed: Computed, at: int = 8) -> set[int]:
    computed.stop = at
    with pytest.raises(KeyboardInterrupt):
        kept(folder, computed)
    computed.stop = None
    assert {path.suffix for path in (folder / "a").iterdir()} == {".partial", ".rows"}
    return set(computed.rows)


def test_what_was_interrupted_goes_on(tmp_path: Path, computed: Computed) -> None:
    whole = kept(tmp_path / "whole", computed)
    assert sorted(computed.rows) == list(range(len(MANY)))
    first = interrupted(tmp_path, computed)
    assert 8 <= len(first) < 16
    assert kept(tmp_path, computed) == whole
    assert set(computed.rows) == set(range(len(MANY))) - first, "none is computed twice"
    kept(tmp_path, computed)
    assert computed.rows == []


@pytest.mark.parametrize("damage", ["a torn line", "another head", "another list", "no list", "no number"])
def test_what_a_killed_process_left_is_taken_as_far_as_it_is_whole(
    tmp_path: Path, computed: Computed, damage: str
) -> None:
    whole = kept(tmp_path / "whole", computed)
    first = interrupted(tmp_path, computed)
    place, said = (next((tmp_path / "a").glob(f".*{end}")) for end in (".partial", ".rows"))
    lines = said.read_text().splitlines()
    again = set(range(len(MANY)))
    if damage == "a torn line":
        said.write_text(said.read_text()[:-2])
        again -= first - set(map(int, lines[-1].split()))
    elif damage == "another head":
        place.write_bytes(b"x" + place.read_bytes()[1:])
    elif damage == "another list":
        said.write_text(said.read_text().replace(lines[0], lines[0][::-1]))
    elif damage == "no number":
        said.write_text(said.read_text() + "99\n")
    else:
        said.unlink()
    assert kept(tmp_path, computed) == whole
    assert set(computed.rows) == again


def test_nothing_is_taken_of_another_base_or_of_other_rows(tmp_path: Path, computed: Computed) -> None:
    other = tiny_model()
    with torch.no_grad():
        other.lm_head.weight[0] *= 1.1
    cases: tuple[dict[str, Any], ...] = ({"model": other}, {"rows": [*MANY[1:], MANY[0]]})
    for more in cases:
        folder = tmp_path / next(iter(more))
        wanted = kept(folder / "alone", computed, **more)
        interrupted(folder, computed)
        left = {path: path.read_bytes() for path in (folder / "a").iterdir()}
        trainer = make(folder / "run", None, model=more.get("model") or tiny_model())
        anchor = Anchor(more.get("rows", MANY), folder=folder / "a", say=lambda _: None).attach(trainer)
        computed.rows.clear()
        anchor.keep_base()
        assert sorted(computed.rows) == list(range(len(MANY)))
        (made,) = (folder / "a").glob("*.safetensors")
        assert made.read_bytes() == wanted
        assert all(path.read_bytes() == content for path, content in left.items())


def test_beside_another_process_it_is_computed_apart(tmp_path: Path, computed: Computed) -> None:
    whole = kept(tmp_path / "whole", computed)
    (name,) = (path.stem for path in (tmp_path / "whole" / "a").iterdir())
    interrupted(tmp_path, computed)
    left = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    with pytest.MonkeyPatch.context() as patch:

        def busy(*_: Any) -> Any:
            raise anchor_targets.BusyError("another process is writing there")

        patch.setattr(anchor_targets, "Claim", busy)
        trainer = make(tmp_path / "run", None, model=tiny_model())
        computed.rows.clear()
        Anchor(MANY, folder=tmp_path / "a", say=lambda _: None).attach(trainer).keep_base()
    assert len(computed.rows) == len(MANY) and (tmp_path / "a" / f"{name}.safetensors").read_bytes() == whole
    assert all(path.read_bytes() == content for path, content in left.items())
    with claimed(tmp_path / "a", tmp_path / "a" / f".{name}.lock"):
        pass  # it is free again


def test_a_full_disk_and_a_base_without_numbers_are_said_with_the_mend(
    tmp_path: Path, computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(anchor_targets.os, "fsync", full)
        with pytest.raises(
            RunError, match="cannot be kept: No space left on device; make room, or keep them elsewhere"
        ):
            kept(tmp_path, computed)
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight[5] = float("nan")
    with pytest.raises(RunError, match=r"no finite numbers: nan on row \d+ of the anchor's; load the base in float32"):
        kept(tmp_path, computed, model=broken)


def test_a_resumed_run_may_have_them_made_anew_from_the_base(tmp_path: Path) -> None:
    def trained(resumed: str | None = None, *, again: bool = False, method: str = "full") -> Any:
        trainer = make(tmp_path / method, None, model=new_model(method), max_steps=4)
        anchor = Anchor(ROWS, 0.5, folder=tmp_path / "a", say=lambda _: None).attach(trainer)
        if again:
            anchor.keep_base()
        trainer.train(resume_from_checkpoint=resumed)
        return trainer.model.state_dict()

    whole, checkpoint = trained(), str(tmp_path / "full" / "checkpoint-3")
    (place,) = (tmp_path / "a").iterdir()
    place.unlink()
    with pytest.raises(InputError, match=r"call keep_base\(\) of the anchor before train\(\)"):
        trained(checkpoint)
    found = trained(checkpoint, again=True)
    assert place.is_file() and all(torch.equal(whole[name], found[name]) for name in whole)
    place.unlink()
    trained(again=True, method="lora")
    assert not list((tmp_path / "a").iterdir()), "an adapter's base is always there"


def test_another_weight_than_the_run_was_begun_with_is_said(tmp_path: Path) -> None:
    def resumed(weight: float) -> tuple[float, list[str]]:
        said: list[str] = []
        trainer = make(tmp_path, None, model=new_model("lora"), max_steps=5)
        anchor = Anchor(ROWS, weight, say=said.append).attach(trainer)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        return anchor.weight, said

    trainer = make(tmp_path, None, model=new_model("lora"), max_steps=3)
    Anchor(ROWS, 0.5, say=lambda _: None).attach(trainer)
    trainer.train()
    assert resumed(0.5) == (0.5, [])
    line = "anchor: the run was begun with weight 0.5 and is resumed with 2, which holds from here on"
    assert resumed(2.0) == (2.0, [line])
