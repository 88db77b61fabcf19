"""Each opening of the gate half is counted in the run's folder: at the end of a run, after a resume, by `check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import guard_runs
from backslide.cli.main import run as command
from backslide.gate import check_model, take_baseline
from backslide.guard.callback import Guard
from backslide.rundir import RunFolder
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from guard_runs import SMALL, make

SUITE = guard_runs.suite()
AGAIN = "The gate half was opened {} times in this folder"


def guard_of(lines: list[str] | None = None, **more: Any) -> Guard:
    say = lines.append if lines is not None else (lambda _: None)
    return Guard(SUITE, **{"every": 3, "settings": SMALL, "say": say, **more})


def openings(run: RunFolder, kind: str = "opened") -> list[int]:
    return [event["opening"] for event in run.events() if event["event"] == kind]


def test_the_end_of_a_run_opens_the_gate_half_and_one_that_goes_on_opens_it_again(tmp_path: Path) -> None:
    run, lines = RunFolder(tmp_path / "backslide"), list[str]()
    first = guard_of(lines, on_regression="rollback")
    # Back to the base on the way: what happens at the looks is no opening.
    make(tmp_path, first, learning_rate=0.3).train()
    kinds = [event["event"] for event in run.events()]
    assert "rollback" in [event.get("action") for event in run.events()]
    assert kinds.count("opened") == kinds.count("gate") == 1 and kinds.index("opened") < kinds.index("gate")
    assert first.verdict is not None and first.verdict.opening == 1 and run.verdict() == first.verdict
    assert json.loads((run.path / "verdict.json").read_text())["opening"] == 1
    assert "was opened" not in run.report.read_text() + "".join(lines)

    # From a step before its end: what came out of it had its verdict, so the next one is another opening.
    for number in (2, 3):
        again = guard_of(lines, on_regression="rollback")
        make(tmp_path, again, learning_rate=0.3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert again.verdict is not None and again.verdict.opening == number
        assert openings(run) == openings(run, "gate") == list(range(1, number + 1))
        assert AGAIN.format(number) in run.report.read_text()
        assert sum(AGAIN.format(number) in line for line in lines) == 1


class Interrupt(guard_runs.Killer):
    """Ctrl-C at a place."""

    def kill(self) -> None:
        raise KeyboardInterrupt


def test_an_opening_that_was_interrupted_goes_on_with_the_same_weights_alone(tmp_path: Path) -> None:
    for name, number in (("same", 1), ("other", 2), ("anew", 1)):
        folder = tmp_path / name
        stopper = Interrupt("gate")
        with pytest.raises(KeyboardInterrupt):
            make(folder, guard_of(cache=False, progress=stopper.progress)).train()
        run = RunFolder(folder / "backslide")
        assert openings(run) == [1] and openings(run, "gate") == [] and run.verdict() is None
        assert list(run.path.glob("final.part-*")), "some of its outcomes are on the disk"
        again = guard_of()
        trainer = make(folder, again)
        if name == "other":
            trainer.train_dataset = trainer.train_dataset[:3]
        # As of a run that had saved no checkpoint yet: it comes to the same weights from its first step.
        trainer.train(resume_from_checkpoint=None if name == "anew" else str(folder / "checkpoint-6"))
        assert again.verdict is not None and again.verdict.opening == number, name
        assert openings(run) == [1, number] and openings(run, "gate") == [number]


def test_a_run_that_starts_anew_in_the_folder_goes_on_counting(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "backslide")
    for number in (1, 2):
        guard = guard_of()
        make(tmp_path, guard, save_strategy="no", learning_rate=1e-2 * number).train()
        assert guard.verdict is not None and guard.verdict.opening == number
    kinds = [event["event"] for event in run.events() if event["event"] != "loss"]
    assert kinds[:4] == ["opened", "gate", "baseline", "plan"] and openings(run) == [1, 2]
    assert AGAIN.format(2) in run.report.read_text()


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    sys.argv = ["backslide", *map(str, arguments)]
    with pytest.raises(SystemExit) as ended:
        command()
    return int(ended.value.code or 0), capsys.readouterr().out


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    folder = tmp_path / "tuned"
    tiny_model(seed=3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_every_check_into_a_folder_counts(
    tmp_path: Path, tiny_folder: Path, tuned: Path, known_suite: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    known_suite.save(tmp_path / "s.jsonl")
    base = tmp_path / "baseline.jsonl"
    take_baseline(str(tiny_folder), base, suite=str(tmp_path / "s.jsonl"))
    line = ("check", tuned, "--baseline", base, "--suite", tmp_path / "s.jsonl")
    into = (*line, "--out", tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    _, out = call(capsys, *into, "--format", "json")
    assert json.loads(out)["opening"] == 1 and openings(run) == openings(run, "gate") == [1]
    assert "was opened" not in run.report.read_text()
    # A look at the monitor half in the same folder opens nothing, and forgets nothing.
    _, out = call(capsys, *into, "--part", "monitor")
    assert "was opened" not in out and openings(run) == [1] and run.verdict().opening is None  # type: ignore[union-attr]
    _, out = call(capsys, *into)
    assert " ".join(out.split()).count(AGAIN.format(2)) == 1 and AGAIN.format(2) in run.report.read_text()
    # All items: the gate half is among them.
    _, out = call(capsys, *into, "--part", "all", "--format", "json")
    assert json.loads(out)["opening"] == 3 and openings(run) == openings(run, "gate") == [1, 2, 3]
    seconds = {event["event"]: event for event in run.events() if "seconds" in event}
    assert len(seconds) == 1, "the time of earlier checks is not that of this one"
    _, out = call(capsys, "report", tmp_path / "run", "--format", "json")
    assert json.loads(out)["openings"] == 3 and json.loads(out)["verdict"]["opening"] == 3
    _, out = call(capsys, "report", tmp_path / "run")
    assert AGAIN.format(3) in " ".join(out.split())
    # Another folder, and none.
    _, out = call(capsys, *line, "--out", tmp_path / "other", "--format", "json")
    assert json.loads(out)["opening"] == 1
    _, out = call(capsys, *line, "--format", "json")
    assert json.loads(out)["opening"] is None


def test_a_check_into_the_folder_of_a_guarded_run_is_the_next_opening(tmp_path: Path, tuned: Path) -> None:
    guard = guard_of()
    make(tmp_path, guard).train()
    run = RunFolder(tmp_path / "backslide")
    verdicts = [check_model(str(tuned), run.baseline, suite=SUITE, out=run.path) for _ in range(2)]
    assert [verdict.opening for verdict in verdicts] == [2, 3] and openings(run) == [1, 2, 3]
    assert AGAIN.format(3) in run.report.read_text()
    assert len(list(run.path.glob("earlier/*/steps"))) == 1, "the run that was checked is there as it was"
    # The other way round: the run goes on, and its end is the next one.
    again = guard_of()
    make(tmp_path, again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.verdict is not None and again.verdict.opening == 4


def test_the_gate_half_of_another_suite_is_counted_for_itself(tmp_path: Path, tiny_folder: Path) -> None:
    out = tmp_path / "run"
    suites = [Suite(name, tuple(i for i in SUITE.items if i.kind == "choice")[:20]) for name in ("one", "two")]
    found = []
    for place in (0, 1, 0):
        base = take_baseline(str(tiny_folder), tmp_path / f"{place}.jsonl", suite=suites[place])
        found.append(check_model(str(tiny_folder), base, suite=suites[place], out=out).opening)
    assert found == [1, 1, 2]
