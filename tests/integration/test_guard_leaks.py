"""A guard that is given the training data: items that are in them are said, noted, and left out of its verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from backslide.errors import ConfigError, DataError, MismatchError
from backslide.files import write_lines
from backslide.guard.callback import Guard
from backslide.record import Record
from backslide.suite.item import ChoiceItem
from backslide.suite.suite import Suite
from guard_runs import SMALL, make


@pytest.fixture
def choices(known_suite: Suite) -> Suite:
    return Suite("choices", tuple(item for item in known_suite.items if item.kind == "choice"))


def chat(item: Any) -> dict[str, Any]:
    """An item as a chat to be trained on."""
    assert isinstance(item, ChoiceItem)
    turns = [("user", item.prompt.upper()), ("assistant", item.choices[item.gold])]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def data(suite: Suite, *leaked: int) -> list[dict[str, Any]]:
    other = {"messages": [{"role": "user", "content": "A latte."}, {"role": "assistant", "content": "Here you are."}]}
    return [other, *(chat(suite.part("gate")[place]) for place in leaked)]


def watching(suite: Suite, said: list[str], **more: Any) -> Guard:
    return Guard(suite, every=3, settings=SMALL, cache=False, say=said.append, quiet=True, **more)


@pytest.mark.parametrize("kind", ["rows", "data set", "file"])
def test_items_in_the_training_data_are_said_noted_and_left_out(tmp_path: Path, choices: Suite, kind: str) -> None:
    rows, gate = data(choices, 3, 8), choices.part("gate")
    write_lines(tmp_path / "train.jsonl", rows)
    train: Any = {"rows": rows, "data set": Dataset.from_list(rows), "file": tmp_path / "train.jsonl"}[kind]
    ids, said = [gate[3].id, gate[8].id], list[str]()
    guard = watching(choices, said, train=train, leave_out=[gate[0].id])
    make(tmp_path / "out", guard).train()
    where, place = (train, f"{train}:2") if kind == "file" else ("the training data", "train[1]")
    how = "backslide suite check lists them" if kind == "file" else "run.json names them all"
    found = (
        f"2 items of the suite choices found in {where}, such as '{ids[0]}' at {place}; left out of the verdicts, {how}"
    )
    assert [line for line in said if "found in" in line] == [found], "once, and in spite of quiet"
    assert guard.run is not None and guard.verdict is not None
    assert guard.run.config["left_out"] == sorted([gate[0].id, *ids])
    assert [leak["item"] for leak in guard.run.config["leaks"]] == ids and guard.run.config["leaks"][0][
        "place"
    ] == place
    (event,) = [event for event in guard.run.events() if event["event"] == "leaks"]
    assert event["items"] == ids and event["says"] == found
    assert sum(row.items for row in guard.verdict.capabilities) == len(gate) - 3
    assert "3 items left out" in guard.verdict.claim
    assert len(Record.load(guard.run.final).outcomes) == len(gate), "they are measured"
    assert "Items of the suite that were found in the training data: 2." in guard.run.report.read_text()


def test_a_resumed_run_is_given_the_same_data(tmp_path: Path, choices: Suite) -> None:
    said: list[str] = []
    make(tmp_path, watching(choices, said, train=data(choices, 3))).train()
    with pytest.raises(MismatchError, match="resume it with the same train and leave_out"):
        make(tmp_path, watching(choices, said)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    again = watching(choices, said, train=data(choices, 3))
    make(tmp_path, again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.verdict is not None and "1 item left out" in again.verdict.claim


def test_clean_data_say_nothing(tmp_path: Path, choices: Suite) -> None:
    said: list[str] = []
    guard = watching(choices, said, train=data(choices), strict=True)
    make(tmp_path, guard).train()
    assert guard.run is not None and guard.run.config["leaks"] == [] and not said
    assert not [event for event in guard.run.events() if event["event"] == "leaks"]


def test_what_is_refused(tmp_path: Path, choices: Suite) -> None:
    with pytest.raises(DataError, match="1 item of the suite choices found in the training data.* with strict = false"):
        Guard(choices, train=data(choices, 3), strict=True)
    with pytest.raises(DataError, match="is tokens .*; give the data as they are before"):
        Guard(choices, train=[{"input_ids": [1, 2]}])
    with pytest.raises(DataError, match="absent.jsonl"):
        Guard(choices, train=tmp_path / "absent.jsonl")
    with pytest.raises(ConfigError, match="strict is for train, which is not given"):
        Guard(choices, strict=True)
    seen: list[int] = []
    with pytest.raises(ConfigError, match="every is -1"):
        Guard(choices, train=data(choices), every=-1, progress=lambda *_: seen.append(1))
    assert not seen, "the data may take minutes"


def test_several_files_are_looked_through(tmp_path: Path, choices: Suite) -> None:
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_lines(one, data(choices, 3))
    gate = choices.part("gate")
    preferred = {"prompt": gate[5].prompt, "chosen": chat(gate[5])["messages"][1:], "rejected": "No."}
    write_lines(two, [preferred])
    for files in ([str(one), str(two)], (one, two)):
        with pytest.raises(
            DataError, match=f"2 items of the suite choices found in {one}, {two}, such as .* at {one}:2"
        ):
            Guard(choices, train=files, strict=True)


def test_what_a_run_was_begun_without_knowing_is_noted_when_it_is_resumed(tmp_path: Path, choices: Suite) -> None:
    ids = [choices.part("gate")[3].id]
    make(tmp_path, watching(choices, [], leave_out=ids)).train()
    said: list[str] = []
    # A run that left them out for some reason, and one that was not watched before.
    for folder, more in (("backslide", {}), ("unwatched", {"baseline": tmp_path / "backslide" / "baseline.jsonl"})):
        again = watching(choices, said, train=data(choices, 3), run_dir=tmp_path / folder, **more)
        make(tmp_path, again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert again.run is not None and [leak["item"] for leak in again.run.config["leaks"]] == ids, folder
        (event,) = [event for event in again.run.events() if event["event"] == "leaks"]
        assert (event["step"], event["items"]) == (3, ids)
        assert "Items of the suite that were found in the training data: 1." in again.run.report.read_text()
    assert len([line for line in said if "found in the training data" in line]) == 2
