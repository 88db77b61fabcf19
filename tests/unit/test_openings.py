"""How often the gate half was opened: each once, however a run was interrupted, and whatever came into its folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from backslide.openings import carried, count, next_opening, warning
from backslide.report.markdown import write_report
from backslide.report.summary import Summary
from backslide.rundir import RunFolder
from builders import run_folder


def opened(number: Any, model: str = "a", suite: str = "s") -> dict[str, Any]:
    return {"event": "opened", "opening": number, "suite": suite, "model": model, "step": 7}


def gate(number: Any, model: str = "a", suite: str = "s") -> dict[str, Any]:
    return {**opened(number, model, suite), "event": "gate", "zone": "retained", "seconds": 2.0, "tokens": 9}


def goes_on(events: list[dict[str, Any]], model: str = "a", suite: str = "s") -> tuple[int, bool]:
    found = next_opening(events, suite=suite, model=model)
    return found.number, found.again


def test_the_first_opening_and_those_after_it() -> None:
    assert count([], "s") == 0 and goes_on([]) == (1, False)
    one = [opened(1), gate(1)]
    assert count(one, "s") == 1
    # The same weights or others: what has had its verdict is not opened once more for nothing.
    assert goes_on(one) == goes_on(one, "b") == (2, False)
    assert goes_on([*one, opened(2), gate(2)]) == (3, False)


def test_an_interrupted_opening_goes_on_with_the_same_weights_and_no_others() -> None:
    for before in ([], [opened(1), gate(1)]):
        number = count(before, "s") + 1
        cut = [*before, opened(number)]
        assert goes_on(cut) == (number, True)
        assert goes_on(cut, "b") == (number + 1, False)
        # Interrupted twice, and then with its verdict.
        assert goes_on([*cut, opened(number)]) == (number, True) and count([*cut, opened(number)], "s") == number
        assert goes_on([*cut, opened(number), gate(number)]) == (number + 1, False)


def test_another_suite_has_a_gate_half_of_its_own() -> None:
    events = [opened(1), gate(1), opened(1, suite="other"), opened(2), gate(2)]
    assert (count(events, "s"), count(events, "other"), count(events, "third")) == (2, 1, 0)
    assert goes_on(events, suite="other") == (1, True) and goes_on(events) == (3, False)


@pytest.mark.parametrize("odd", [None, "2", 0, -1, 1.5, [1]])
def test_events_that_say_no_number_count_nothing(odd: Any) -> None:
    events = [{"event": "opened"}, {"event": "look", "opening": 4, "suite": "s"}, opened(odd), gate(odd)]
    assert count(events, "s") == 0 and goes_on(events) == (1, False) and carried(events) == []


def test_what_the_next_run_in_the_folder_begins_with() -> None:
    events = [{"event": "loss", "step": 1}, opened(1), {"event": "end", "step": 7}, gate(1), opened(2, "b")]
    kept = carried(events)
    assert [(e["event"], e["opening"], e["earlier"]) for e in kept] == [
        ("opened", 1, True), ("gate", 1, True), ("opened", 2, True),
    ]  # fmt: skip
    assert all("seconds" not in e and "tokens" not in e for e in kept), "what it cost is not of the new run"
    assert carried(kept) == kept
    assert all(goes_on(kept, model) == goes_on(events, model) for model in "abc")


def test_more_than_one_opening_is_said_with_what_it_means() -> None:
    assert warning(None) is warning(0) is warning(1) is None
    line = warning(3)
    assert line is not None and line.startswith("The gate half was opened 3 times in this folder. The α of a verdict")
    assert "is for one opening" in line and "up to 3 times as likely" in line


def test_the_events_say_which_opening_it_is() -> None:
    says = [next_opening(events, suite="s", model="a").opened["says"] for events in ([], [opened(1)], [opened(1, "b")])]
    assert says == [
        "opened the sealed gate half",
        "opening 1 of the gate half, which was interrupted, goes on with the same weights",
        "opened the gate half again: opening 2 of it in this folder",
    ]


# In a run's folder.


def test_the_count_outlives_a_new_run_in_the_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for number in (1, 2, 3):
        run.begin({})
        run.append([{"event": "loss", "step": number}])
        found = next_opening(run.events(), suite="s", model="a")
        run.append([found.opened, {**gate(found.number), "step": number}])
        assert found.number == number == count(run.events(), "s")
    assert [e["step"] for e in run.events() if e["event"] == "loss"] == [3]
    assert [e["opening"] for e in run.events() if e.get("earlier")] == [1, 1, 2, 2]
    # All that the earlier ones wrote is there too, as it was.
    told = [json.loads(line) for f in run.path.glob("earlier/*/events.jsonl") for line in f.read_text().splitlines()]
    assert sorted(e["step"] for e in told if e["event"] == "loss") == [1, 2]


def test_the_count_outlives_a_kill_at_every_point_of_beginning_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, 8):
        run = RunFolder(tmp_path / str(at))
        run.begin({"number": 0})
        run.append([opened(1), gate(1)])
        run.report.write_text("r")
        calls: list[int] = []

        def killed(real: Any, at: int = at, calls: list[int] = calls) -> Any:
            def call(*arguments: Any, **more: Any) -> Any:
                calls.append(1)
                if len(calls) == at:
                    raise KeyboardInterrupt
                return real(*arguments, **more)

            return call

        with monkeypatch.context() as patch:
            for place, name in ((Path, "rename"), (shutil, "copy2"), (os, "replace")):
                patch.setattr(place, name, killed(getattr(place, name)))
            try:
                run.begin({"number": 1})
                finished = True
            except KeyboardInterrupt:
                finished = False
        assert count(run.events(), "s") == 1, at
        run.begin({"number": 2})
        assert count(run.events(), "s") == 1 and run.config == {"number": 2}, at
        if finished:
            return
    raise AssertionError("it was never left to end")


def test_the_report_says_that_the_gate_half_was_opened_again(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    run.append([opened(1, suite="w"), gate(1, suite="w")])
    assert Summary.of(run).openings == 1 and "was opened" not in write_report(run).read_text()
    run.append([opened(2, suite="w"), gate(2, suite="w")])
    page = write_report(run).read_text()
    place, said = page.index("What it covers"), page.index("The gate half was opened 2 times in this folder.")
    assert place < said < page.index("Which test decided") and "likelier still" in page
    assert Summary.of(run).openings == 2
