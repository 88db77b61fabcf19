"""What would write where another process is writing is refused, before its work, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from backslide.cure.place import RECORDS
from backslide.cure.repair import repair
from backslide.errors import BusyError
from backslide.gate import check_model, take_baseline
from backslide.guard.callback import Guard
from backslide.lock import FILE
from backslide.suite.suite import Suite
from guard_runs import SMALL, make, suite
from processes import another
from tune_runs import config, run


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKSLIDE_CACHE", str(tmp_path / "cache"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(folder: Path, says: str = "another process is writing there") -> pytest.RaisesExc[BusyError]:
    return pytest.raises(BusyError, match=f"^{folder}: {says}")


def test_tune_given_twice(tmp_path: Path, tiny_folder: Path) -> None:
    """Half a checkpoint of the first is not for the second to remove."""
    setup = config(tmp_path, tiny_folder, "lora")
    with another(setup.folder):
        half = setup.folder / "checkpoints" / "checkpoint-3"
        half.mkdir(parents=True)
        with refuse(setup.folder):
            run(setup)
        assert half.is_dir() and not (setup.folder / "earlier").exists()


def test_a_script_given_twice(tmp_path: Path) -> None:
    folder = tmp_path / "backslide"
    with another(folder):
        before = files(folder)
        with refuse(folder):
            make(tmp_path, Guard(suite(), every=2, settings=SMALL, cache=False, say=lambda _: None)).train()
        assert files(folder) == before


def test_a_guarded_run_lets_go_at_its_end(tmp_path: Path) -> None:
    guard = Guard(suite(), every=4, settings=SMALL, cache=False, say=lambda _: None)
    make(tmp_path, guard).train()
    assert guard.verdict is not None
    with another(tmp_path / "backslide"):
        pass


def test_one_that_is_refused_lets_go_too(tmp_path: Path, tiny_folder: Path) -> None:
    wrong = take_baseline(str(tiny_folder), tmp_path / "wrong.jsonl", suite=suite(), dtype="float32")
    guard = Guard(suite(), every=4, settings=SMALL, baseline=wrong, say=lambda _: None)
    with pytest.raises(Exception, match="baseline"):
        make(tmp_path, guard).train()
    assert not (tmp_path / "backslide").exists()
    with another(tmp_path / "backslide"):
        pass


def test_check_into_a_folder_in_use(tmp_path: Path, tiny_folder: Path, known_suite: Suite) -> None:
    take_baseline(str(tiny_folder), tmp_path / "base.jsonl", suite=known_suite, dtype="float32")
    measured: list[str] = []
    with another(tmp_path / "out"):
        before = files(tmp_path / "out")
        with refuse(tmp_path / "out"):
            check_model(
                str(tiny_folder), tmp_path / "base.jsonl", suite=known_suite, out=tmp_path / "out",
                progress=lambda what, done, total: measured.append(what),
            )  # fmt: skip
        assert files(tmp_path / "out") == before and not measured
    check_model(str(tiny_folder), tmp_path / "base.jsonl", suite=known_suite, out=tmp_path / "out")
    with another(tmp_path / "out"):
        pass


def test_repair_given_twice(tmp_path: Path, tiny_folder: Path) -> None:
    """The weights that the first is making lie beside its folder."""
    tuned, _ = run(config(tmp_path, tiny_folder, "lora"))
    out, work = tmp_path / "out", tmp_path / ".out.repair" / "point"
    with another(out, "repair"):
        work.mkdir(parents=True)
        with refuse(out):
            repair(str(tiny_folder), str(tuned.model), out, suite=suite(), settings=SMALL)
        assert work.is_dir() and not out.exists()
    repair(str(tiny_folder), str(tuned.model), out, suite=suite(), settings=SMALL)
    assert not list(tmp_path.glob(".out.*")) and not list(tmp_path.rglob(FILE)), "what has ended holds nothing"
    with another(out, "repair"), another(out / RECORDS):
        pass


def test_repair_that_is_interrupted_lets_go(tmp_path: Path, tiny_folder: Path) -> None:
    def interrupt(*_: object) -> None:
        if (tmp_path / "out" / RECORDS / FILE).exists():
            raise KeyboardInterrupt

    tuned, _ = run(config(tmp_path, tiny_folder, "lora"))
    with pytest.raises(KeyboardInterrupt) as kept:
        repair(str(tiny_folder), str(tuned.model), tmp_path / "out", suite=suite(), settings=SMALL, progress=interrupt)
    assert kept.tb is not None, "as a notebook keeps the last error, and all that it was in"
    with another(tmp_path / "out", "repair"), another(tmp_path / "out" / RECORDS):
        pass
