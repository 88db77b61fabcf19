"""`[cure]` in the configuration of `tune`: replay, anchor, auto, and where their data come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cure_ranks
from backslide.config import TuneConfig
from backslide.errors import ConfigError, DataError, SuiteError
from backslide.files import write_lines
from backslide.suite.item import ChoiceItem
from backslide.suite.suite import Suite
from backslide.tune import Tuned, tune
from guard_runs import SMALL
from guard_runs import suite as fragile
from processes import two

OLD = [{"text": f"Once upon a time there were {i} mice in a house."} for i in range(20)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cure keeps for later runs is not found by other tests."""
    monkeypatch.setenv("BACKSLIDE_CACHE", str(tmp_path / "cache"))


def config(tmp_path: Path, base: Path, cure: dict[str, Any], **sections: dict[str, Any]) -> TuneConfig:
    write_lines(tmp_path / "train.jsonl", [{"text": f"Question {i:02}? Answer {i:02}."} for i in range(12)])
    write_lines(tmp_path / "old.jsonl", OLD)
    content: dict[str, dict[str, Any]] = {
        "model": {"base": str(base), "dtype": "float32"},
        "data": {"train": str(tmp_path / "train.jsonl")},
        "train": {"steps": 6, "batch_size": 4, "max_length": 64, "learning_rate": 1e-3},
        "guard": {"every": 2},
        "cure": cure,
        "output": {"dir": str(tmp_path / "run")},
    }
    for name, section in sections.items():
        content[name] = {**content[name], **section}
    return TuneConfig.from_dict(content)


def run(setup: TuneConfig, **more: Any) -> tuple[Tuned, list[str]]:
    said: list[str] = []
    return tune(setup, suite=fragile(), settings=SMALL, say=said.append, **more), said


@pytest.mark.parametrize("method", ["lora", "full"])
def test_replay_and_anchor_by_configuration(tmp_path: Path, tiny_folder: Path, method: str) -> None:
    cure = {"replay": 0.25, "anchor": 0.5, "data": str(tmp_path / "old.jsonl")}
    plain, _ = run(config(tmp_path, tiny_folder, {}, train={"method": method}, output={"dir": str(tmp_path / "plain")}))
    cured, said = run(config(tmp_path, tiny_folder, cure, train={"method": method}))
    assert cured.steps == plain.steps == 6

    def losses(tuned: Tuned) -> list[float]:
        return [e["loss"] for e in tuned.run.events() if e["event"] == "loss" and "loss" in e]

    assert losses(cured) != losses(plain), "other rows, another gradient"
    assert cured.run.config["config"]["cure"] == {**cure, "prompts": None, "on_regression": None}
    assert any("log-probabilities" in line for line in said) == (method == "full")
    # The diagnosis goes on from there.
    assert cured.run.config["setup"].items() >= {"replay": 0.25, "anchor": 0.5}.items()
    assert not {"replay", "anchor"} & plain.run.config["setup"].keys()


def test_without_cures_nothing_is_changed(tmp_path: Path, tiny_folder: Path) -> None:
    one, _ = run(config(tmp_path, tiny_folder, {}, output={"dir": str(tmp_path / "a")}))
    two, said = run(config(tmp_path, tiny_folder, {"data": str(tmp_path / "old.jsonl")}))
    assert "cure.data is not used: no cure of this run needs data; set cure.replay or cure.anchor" in said
    weights = [(tuned.model / "adapter_model.safetensors").read_bytes() for tuned in (one, two)]
    assert weights[0] == weights[1]


def test_auto_brings_in_what_it_needs(tmp_path: Path, tiny_folder: Path) -> None:
    cure = {"data": str(tmp_path / "old.jsonl"), "on_regression": "auto"}
    train = {"method": "full", "learning_rate": 0.3, "steps": 12, "scheduler": "constant"}
    tuned, _ = run(config(tmp_path, tiny_folder, cure, train=train, guard={"every": 1}))
    actions = [e for e in tuned.run.events() if e["event"] == "action"]
    assert actions and actions[0]["action"] == "rollback" and "replay" not in actions[0]["cures"]
    raised = [a for a in actions if "replay" in a.get("cures", ())]
    assert raised and "old data from 0 to 0.01 of the tokens" in raised[0]["says"]
    assert tuned.run.config["setup"]["replay"] >= 0.01, "as it ended, not as it began"
    assert tuned.verdict.zone != "regressed"


def test_other_prompts_begin_another_file_of_replies(tmp_path: Path, tiny_folder: Path) -> None:
    for prompts in (6, 4):
        cure = {"anchor": 0.1, "prompts": prompts}
        tuned, said = run(config(tmp_path, tiny_folder, cure, train={"steps": 2}))
        assert (tuned.run.path / f"replies-{prompts}.jsonl").is_file()
        assert any(f"replies of {prompts} can be rehearsed" in line for line in said)
    _, said = run(config(tmp_path, tiny_folder, {"prompts": 4}, train={"steps": 2}))
    assert "cure.prompts is not used: no cure of this run needs replies of the base" in said


def test_of_two_processes_one_makes_the_replies_and_speaks(tmp_path: Path) -> None:
    two(cure_ranks.__file__, tmp_path)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["broke"] == second["broke"] == ["DataError", "the first replies came to nothing; try again"]
    assert len(first["made"]) == 30 == len(set(first["made"])) and second["made"] == []
    assert first["zone"] == second["zone"]
    notes = [line for line in first["said"] if line.startswith("the base's own replies: ")]
    assert any("of 30 can be rehearsed" in note for note in notes) and len(notes) == len(set(notes))
    assert not [line for line in second["said"] if "replies" in line]
    lines = (tmp_path / "run" / "replies-30.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 31 and all(json.loads(line) for line in lines)
    # What goes wrong in one process, whatever it is, leaves none waiting.
    assert first["told"] == ["ValueError", "a fault\nof its own"]
    assert second["told"] == ["RunError", "another process failed: ValueError: a fault of its own"]
    assert first["shared"] == second["shared"] == ["DataError", "process 1 failed"]


def test_rows_that_hold_an_item_are_not_practised(tmp_path: Path, tiny_folder: Path) -> None:
    asked = "Which of these animals is known to lay the largest eggs of all living birds?"
    items = [
        ChoiceItem(id=f"c{i}", capability="p", prompt=f"{asked} ({i})" if i else asked, choices=("ostrich", "dog"), gold=0)
        for i in range(20)
    ]  # fmt: skip
    setup = config(tmp_path, tiny_folder, {"replay": 0.25, "data": str(tmp_path / "old.jsonl")})
    write_lines(tmp_path / "old.jsonl", [*OLD, {"text": f"Question: {asked} Answer: ostrich"}])
    said: list[str] = []
    tune(setup, suite=Suite("birds", tuple(items)), settings=SMALL, say=said.append)
    assert any("1 of 21 rows" in line and "are left out" in line for line in said)


def test_wrong_cures_are_said_before_anything_is_loaded(tmp_path: Path, tiny_folder: Path) -> None:
    for cure, told in (
        ({"replay": 0.7}, r"cure.replay is 0\.7, a share of the tokens from 0 to 0\.5 is needed"),
        ({"anchor": -1.0}, r"cure.anchor is -1\.0, a number from 0 up is needed"),
        ({"on_regression": "pray"}, "cure.on_regression is 'pray', one of warn, stop, rollback"),
        ({"data": " "}, "cure.data is ' ', a file or 'self' is needed"),
        ({"prompts": 0}, "cure.prompts is 0, a whole number from 1 is needed"),
        ({"prompts": "200"}, "cure.prompts is '200', a number without quotes or a file is needed"),
        ({"prompts": True}, "cure.prompts is True, a whole number or text in quotes is needed"),
        ({"prompts": 9, "data": "old.jsonl"}, "cure.prompts is for replies of the base, and cure.data is 'old.jsonl'"),
    ):
        with pytest.raises(ConfigError, match=told):
            config(tmp_path, tiny_folder, cure)
    with pytest.raises(ConfigError, match="cure.on_regression is 'auto' and guard.on_regression is 'stop'; keep one"):
        config(tmp_path, tiny_folder, {"on_regression": "auto"}, guard={"on_regression": "stop"})
    with pytest.raises(SuiteError, match="nowhere.txt"):
        run(config(tmp_path, Path("no such model"), {"replay": 0.1, "prompts": str(tmp_path / "nowhere.txt")}))
    # Of a file that no cure needs as well: whoever named it meant it.
    (tmp_path / "broken.jsonl").write_text("{")
    for more in ({"replay": 0.1}, {}):
        for name, told in (("nowhere.jsonl", "no such file"), ("broken.jsonl", "1: not JSON")):
            with pytest.raises(DataError, match=rf"{name}.*{told}"):
                run(config(tmp_path, Path("no such model"), {**more, "data": str(tmp_path / name)}))
    with pytest.raises(SuiteError, match="nowhere.txt"):
        run(config(tmp_path, Path("no such model"), {"prompts": str(tmp_path / "nowhere.txt")}))
    assert not (tmp_path / "run").exists()


def test_the_events_of_a_cured_run_are_json(tmp_path: Path, tiny_folder: Path) -> None:
    cure = {"data": str(tmp_path / "old.jsonl"), "on_regression": "auto"}
    train = {"method": "full", "learning_rate": 0.3, "steps": 4, "scheduler": "constant"}
    tuned, _ = run(config(tmp_path, tiny_folder, cure, train=train))
    for line in (tuned.run.path / "events.jsonl").read_text("utf-8").splitlines():
        assert "says" in json.loads(line) or json.loads(line)["event"] in ("loss", "leaks", "opened", "broke")
