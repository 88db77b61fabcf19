"""`check`: items that are in the training data are left out of the verdict, whoever found them, and said and noted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from backslide.cli.main import run as command
from backslide.errors import DataError
from backslide.files import write_json, write_lines
from backslide.gate import check_model, take_baseline
from backslide.record import Record
from backslide.rundir import RunFolder, run_of
from backslide.suite.item import ChoiceItem
from backslide.suite.suite import Suite

Given = tuple[str, Suite, Record]


@pytest.fixture
def given(tmp_path: Path, tiny_folder: Path, known_suite: Suite) -> Given:
    """A model, a suite, and the model's own record of it in `base.jsonl`."""
    suite = Suite("choices", tuple(item for item in known_suite.items if item.kind == "choice"))
    suite.save(tmp_path / "choices.jsonl")
    return str(tiny_folder), suite, take_baseline(str(tiny_folder), tmp_path / "base.jsonl", suite=suite)


def texts(path: Path, *items: object) -> Path:
    """Training data that holds these items, behind a line that is none."""
    rows = ["Customer: where is my order? Agent: on its way."]
    for item in items:
        assert isinstance(item, ChoiceItem)
        rows.append(f"Question: {item.prompt.upper()} Answer: {item.choices[item.gold]}")
    write_lines(path, [{"text": row} for row in rows])
    return path


def test_what_is_in_the_training_data_is_left_out_said_and_noted(tmp_path: Path, given: Given) -> None:
    model, suite, base = given
    gate = suite.part("gate")
    two, one = texts(tmp_path / "a.jsonl", gate[3], gate[8]), texts(tmp_path / "b.jsonl", gate[8], gate[9])
    said: list[str] = []
    verdict = check_model(model, base, suite=suite, train=[two, one], out=tmp_path / "run", say=said.append)
    ids = [gate[place].id for place in (3, 8, 9)]
    assert sum(row.items for row in verdict.capabilities) == len(gate) - 3
    assert "3 items left out, found in the training data" in verdict.claim
    assert [line for line in said if "found in" in line] == [
        f"2 items of the suite choices found in {path}, such as '{first}' at {path}:2; left out of the verdict, backslide "
        "suite check lists them"
        for path, first in ((two, ids[0]), (one, ids[1]))
    ]
    run = RunFolder(tmp_path / "run")
    assert run.config["left_out"] == sorted(ids) and run.config["train"] == [str(two), str(one)]
    assert [(leak["item"], leak["place"]) for leak in run.config["leaks"]] == [
        (ids[0], f"{two}:2"), (ids[1], f"{two}:3"), (ids[2], f"{one}:3"),
    ]  # fmt: skip
    assert [event["items"] for event in run.events() if event["event"] == "leaks"] == [ids]
    assert "Items of the suite that were found in the training data: 3." in run.report.read_text()
    # They are measured all the same.
    assert len(Record.load(run.final).outcomes) == len(gate)

    clean = check_model(model, base, suite=suite, train=texts(tmp_path / "c.jsonl"), out=tmp_path / "clean")
    assert sum(row.items for row in clean.capabilities) == len(gate) and "left out" not in clean.claim
    assert RunFolder(tmp_path / "clean").config["left_out"] == []
    assert not [event for event in RunFolder(tmp_path / "clean").events() if event["event"] == "leaks"]


@pytest.mark.parametrize("known_by", ["baseline", "out", "model"])
def test_what_a_run_left_out_stays_left_out(tmp_path: Path, given: Given, known_by: str) -> None:
    model, suite, base = given
    gate = suite.part("gate")
    run = RunFolder(tmp_path / "run")
    run.begin({
        "suite": "choices", "left_out": [gate[0].id, "of/another suite"],
        "leaks": [{"item": gate[1].id, "place": "train.jsonl:7", "kind": "exact", "overlap": 1.0}],
    })  # fmt: skip
    base.save(run.baseline)
    run.release()
    out = tmp_path / "out"
    if known_by == "model":
        (run.path / "model").symlink_to(model)
        # Of a link the place counts that it leads to.
        assert run_of(run.path / "model") is None
        (run.path / "model").unlink()
        (run.path / "model").mkdir()
        for file in Path(model).iterdir():
            (run.path / "model" / file.name).write_bytes(file.read_bytes())
        model = str(run.path / "model")
    said: list[str] = []
    verdict = check_model(
        model,
        run.baseline if known_by == "baseline" else base,
        suite=suite,
        out=run.path if known_by == "out" else out,
        train=texts(tmp_path / "a.jsonl", gate[1]),
        say=said.append,
    )
    assert sum(row.items for row in verdict.capabilities) == len(gate) - 2
    assert [line for line in said if "as of the run" in line] == [
        f"1 more item of the suite choices, such as '{gate[0].id}': left out of the verdict, as of the run in {run.path}"
    ]
    noted = RunFolder(run.path if known_by == "out" else out).config
    assert noted["left_out"] == sorted([gate[0].id, gate[1].id, "of/another suite"])
    assert [leak["item"] for leak in noted["leaks"]] == [gate[1].id]
    # The folder of a check is one that knows, too.
    again = check_model(model, base, suite=suite, out=run.path if known_by == "out" else out)
    assert sum(row.items for row in again.capabilities) == len(gate) - 2


def test_a_baseline_beside_no_run_says_nothing_of_leaks(tmp_path: Path, given: Given) -> None:
    model, suite, _ = given
    write_json(tmp_path / "run.json", {"left_out": [suite.part("gate")[0].id]})
    # Another file in a run's folder is not its baseline.
    verdict = check_model(model, tmp_path / "base.jsonl", suite=suite)
    assert "left out" not in verdict.claim


def test_wrong_training_data_is_seen_before_the_model_is_loaded(tmp_path: Path, given: Given) -> None:
    _, suite, base = given
    (tmp_path / "bad.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: text is int"):
        check_model("./nowhere", base, suite=suite, train=tmp_path / "bad.jsonl", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line(tmp_path: Path, given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    model, suite, _ = given
    gate = suite.part("gate")
    files = [texts(tmp_path / f"{name}.jsonl", gate[place]) for name, place in (("a", 0), ("b", 1))]
    other = gate[2]
    assert isinstance(other, ChoiceItem)
    (tmp_path / "c.txt").write_text(f"Notes.\n{other.prompt} {other.choices[other.gold]}\n")
    trained = [word for file in [*files, tmp_path / "c.txt"] for word in ("--train", str(file))]
    sys.argv = ["backslide", "check", model, "--baseline", str(tmp_path / "base.jsonl"),
                "--suite", str(tmp_path / "choices.jsonl"), *trained, "--format", "json"]  # fmt: skip
    with pytest.raises(SystemExit):
        command()
    out, err = capsys.readouterr()
    assert "3 items left out, found in the training data" in json.loads(out)["claim"]
    assert err.count("left out of the verdict, backslide suite check lists them") == 3
