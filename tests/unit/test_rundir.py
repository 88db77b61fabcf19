"""The folder of a run: nothing that was measured is lost, whatever ended the run before."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from backslide.errors import RecordError
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.verdict import broken
from builders import choices, record


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_second_run_moves_all_of_the_first_aside(run: RunFolder) -> None:
    contents: list[dict[str, bytes]] = []
    for number in range(3):
        run.begin({"number": number})
        assert sorted(p.name for p in run.path.iterdir() if p.name not in ("notes.txt", ".lock")) == (
            ["earlier", "run.json"] if number else ["run.json"]
        )
        (run.path / "notes.txt").write_text("not of a run")
        record(choices([True] * 3)).save(run.baseline)
        record(choices([True] * 3), step=number).save(run.step(5))
        record(choices([False] * 3)).save(run.final)
        run.append([{"event": "loss", "step": number}])
        run.save_verdict(broken("x", step=number))
        run.report.write_text(f"report {number}")
        (run.path / "model").mkdir()
        (run.path / "model" / "weights").write_text(str(number))
        contents.append(_files(run.path))
    kept = [_files(folder) for folder in (run.path / "earlier").iterdir()]
    assert len(kept) == 2
    for before in contents[:2]:
        assert before in kept
    assert _files(run.path) == contents[2] and (run.path / "notes.txt").exists()


def _files(path: Path) -> dict[str, bytes]:
    files = [p for p in path.rglob("*") if p.is_file() and "earlier" not in p.relative_to(path).parts]
    return {str(p.relative_to(path)): p.read_bytes() for p in files if p.name not in ("notes.txt", ".lock")}


def test_a_run_killed_while_it_moved_the_first_aside_loses_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.begin({"number": 0})
    run.append([{"event": "loss", "step": 1}])
    run.save_verdict(broken("x"))
    rename = Path.rename
    moved: list[Path] = []

    def killed(self: Path, target: Path) -> Path:
        if moved:
            raise KeyboardInterrupt
        moved.append(self)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        run.begin({"number": 1})
    monkeypatch.undo()
    run.begin({"number": 2})
    names = sorted(p.name for p in (run.path / "earlier").rglob("*") if p.is_file())
    assert names == ["events.jsonl", "run.json", "verdict.json"] and run.config == {"number": 2}


def test_a_file_in_the_place_of_the_folder(run: RunFolder) -> None:
    run.path.write_text("precious")
    with pytest.raises(RecordError, match="run: is a file; name a folder for the run"):
        run.begin({})
    assert run.path.read_text() == "precious"


def test_events_after_a_half_written_line_are_kept(run: RunFolder) -> None:
    run.begin({})
    run.append([{"event": "loss", "step": 1}, {"event": "loss", "step": 2, "text": "a\u2028b\nc"}])
    path = run.path / "events.jsonl"
    whole = path.read_bytes()
    half = '{"event": "loss", "step": 3, "text": "ü'.encode()[:-1]  # in the middle of a character
    path.write_bytes(whole + half)
    assert [event["step"] for event in run.events()] == [1, 2]
    run.append([{"event": "loss", "step": 4}])
    assert [event["step"] for event in run.events()] == [1, 2, 4]
    assert path.read_bytes().startswith(whole + half + b"\n"), "appending changes nothing that was there"
    assert run.events()[1]["text"] == "a\u2028b\nc"


def test_an_event_that_only_lacks_its_newline_is_kept(run: RunFolder) -> None:
    run.begin({})
    (run.path / "events.jsonl").write_text('{"event": "loss", "step": 1}')
    run.append([{"event": "loss", "step": 2}])
    assert [event["step"] for event in run.events()] == [1, 2]


def test_events_have_the_time_and_lines_that_are_no_event_are_passed_over(run: RunFolder) -> None:
    assert run.events() == []
    run.begin({})
    run.append([{"event": "loss", "step": 1}])
    with open(run.path / "events.jsonl", "a") as file:
        file.write("[1]\n\n3\nnull\n")
    (event,) = run.events()
    assert abs(event["time"] - os.stat(run.path / "events.jsonl").st_mtime) < 60


@pytest.mark.parametrize("what", ["config", "verdict", "record"])
def test_a_write_that_is_killed_leaves_the_old_file(run: RunFolder, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    old = record(choices([True] * 3))
    run.begin({"a": 1})
    run.save_verdict(broken("old"))
    old.save(run.baseline)
    before = _files(run.path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        {
            "config": lambda: run.update(a=2),
            "verdict": lambda: run.save_verdict(broken("new")),
            "record": lambda: record(choices([False] * 3)).save(run.baseline),
        }[what]()
    assert _files(run.path) == before and run.config == {"a": 1} and str(run.verdict()) == "regressed: old"
    assert Record.load(run.baseline) == old


def test_fields_of_the_configuration_are_changed_and_the_others_stay(run: RunFolder) -> None:
    assert not run.exists()
    run.begin({"a": 1, "b": {"c": 2}})
    run.update(b=3, d="ü")
    assert run.exists() and run.config == {"a": 1, "b": 3, "d": "ü"}
    (run.path / "run.json").write_text("[1]")
    with pytest.raises(RecordError, match=r"run\.json: a JSON object is needed"):
        run.config  # noqa: B018


def test_looks_are_read_in_order(run: RunFolder) -> None:
    run.begin({})
    assert run.steps() == []
    for step in (1_000_000, 50, 999_999, 7):
        record(choices([True]), step=step).save(run.step(step))
    assert [look.header.step for look in run.steps()] == [7, 50, 999_999, 1_000_000]


@pytest.mark.parametrize("content", ["{}", "[]", "{oops", '{"zone": "fine"}', "null", ""])
def test_a_verdict_that_is_none_names_its_file_once(run: RunFolder, content: str) -> None:
    assert run.verdict() is None
    run.begin({})
    path = run.path / "verdict.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=r"verdict\.json") as raised:
        run.verdict()
    assert str(raised.value).count(str(path)) == 1


def test_a_verdict_survives_its_file(run: RunFolder) -> None:
    run.begin({})
    made = broken("the loss is nan", step=3)
    run.save_verdict(made)
    assert run.verdict() == made
    assert json.loads((run.path / "verdict.json").read_text())["zone"] == "regressed"
