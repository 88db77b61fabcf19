"""The pages of a repair: the line as a table, and an account of its own in place of a diagnosis of the training."""

from __future__ import annotations

import dataclasses
import html
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from backslide.cli.main import app
from backslide.report.account import NO_POINT, NOT_BOTH, NOTHING_GAINED, REFUSED, REPAIRED, Account
from backslide.report.line import Point, rows
from backslide.report.markdown import write_report
from backslide.report.pages import write_pages
from backslide.report.summary import Summary
from builders import run_folder
from hostile import HOSTILE
from repair_folders import point, repair_folder

TRIED = (point(1.0, 3.0, 300, 0), point(0.5, 2.5, 90, 10), point(0.25, 2.75, 6, 4), Point(at=0.0, loss=4.0))


def tables(page: str) -> list[list[list[str]]]:
    """The cells of each table of a page, row by row, as a reader sees them."""
    found: list[list[list[str]]] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    for token, inside in pairwise(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append("".join(child.content for child in inside.children or []))
    return found


def test_the_line_is_a_table_with_a_cell_for_each_value(tmp_path: Path) -> None:
    run = repair_folder(tmp_path / "run", points=TRIED, chosen=0.25, gate=(600, 5, 5))
    (line,) = (table for table in tables(write_report(run).read_text()) if table[0][0] == "α on the line")
    assert len(line[0]) == 8
    assert [tuple(row) for row in line[1:]] == rows(TRIED, 0.25)
    assert [row[-1] for row in line[1:]] == ["a loss is proven", "a loss is proven", "kept, chosen", "the base"]


LOST = (point(1.0, 3.0, 300, 0), point(0.5, 2.5, 90, 10), point(0.25, 2.75, 19, 12), Point(at=0.0, loss=4.0))
WORSE = (point(1.0, 5.0, 300, 0), Point(at=0.5, loss=4.5), Point(at=0.0, loss=4.0))
LATE = (point(1.0, 3.0, 300, 0), point(0.5, 3.5, 90, 10), point(0.25, 4.5, 6, 4), Point(at=0.0, loss=4.0))
NO_LOSS = tuple(dataclasses.replace(point, loss=None) for point in LOST)

ENDS: dict[str, dict[str, Any]] = {
    NO_POINT: {"points": LOST, "reason": "no point of the line keeps the abilities"},
    "no held-out data": {"points": NO_LOSS, "reason": "no point of the line keeps the abilities", "held_out": False},
    NOTHING_GAINED: {"points": WORSE, "reason": "on held-out data no point of the line is better than the base"},
    NOT_BOTH: {"points": LATE, "reason": "no point that keeps the abilities is better on held-out data than the base"},
    REFUSED: {"points": TRIED, "chosen": 0.25, "gate": (600, 60, 5)},
    REPAIRED: {"points": TRIED, "chosen": 0.25, "gate": (2000, 5, 5)},
    "undecided": {"points": TRIED, "chosen": 0.25, "gate": (100, 5, 5)},
}
DIAGNOSED = ("broken", "warm it up", "backslide repair", "likely causes", "next setting", "The run cannot pass")


@pytest.mark.parametrize("end", list(ENDS))
def test_a_repair_has_an_account_and_no_diagnosis_of_a_training(tmp_path: Path, end: str) -> None:
    run = repair_folder(tmp_path / "run", **ENDS[end])
    account = Summary.of(run).account
    assert account is not None
    outcome = {"no held-out data": NO_POINT, "undecided": REPAIRED}.get(end, end)
    assert account.outcome == outcome
    page, text = (path.read_text() for path in write_pages(run)[:2])
    shown = {"md": text, "html": html.unescape(page)}
    for form in ((), ("--format", "json")):
        ran = CliRunner().invoke(app, ["report", str(run.path), *form])
        assert ran.exit_code == 0, ran.output
        shown[" ".join(form) or "terminal"] = ran.stdout
    result = json.loads(ran.stdout)
    assert result["repair"] == account.to_dict() and result["diagnosis"] is None
    assert result["advice"] == list(account.advice) and "balance" not in result
    for name, words in shown.items():
        plainly = " ".join(words.replace("\\", "").split())
        assert not [said for said in DIAGNOSED if said in plainly], name
        assert all(sentence.split("(")[0] in plainly for sentence in (*account.story, *account.advice)), name
    assert all(sentence.endswith(".") for sentence in (*account.story, *account.advice))


def account_of(path: Path, end: str) -> Account:
    account = Summary.of(repair_folder(path, **ENDS[end])).account
    assert account is not None
    return account


def test_what_was_asked_and_what_to_do_depends_on_what_came_of_it(tmp_path: Path) -> None:
    found = {end: account_of(tmp_path / str(place), end) for place, end in enumerate(ENDS)}
    for account in found.values():
        assert "at most 3 points" in account.story[0] and "between base and tuned" in account.story[0]
    assert "lowest loss on the held-out data" in found[NO_POINT].story[0]
    assert "most of the tuned model" in found["no held-out data"].story[0]
    assert found[NO_POINT].story[1] == "3 points were asked the monitor half, and none kept the abilities."
    assert "at 0.25 of the line" in found[NO_POINT].story[2] and "lost 19 and won 12" in found[NO_POINT].story[2]
    assert "proves a loss there: math: lost 60 and won 5" in found[REFUSED].story[2]
    told = {end: " ".join(account.advice) for end, account in found.items()}
    for end in (NO_POINT, NOT_BOTH, REFUSED):
        assert "larger tolerance" in told[end] and "lower learning rate" in told[end] and "anchor" in told[end]
    assert "at α = 0.25 no loss is proven" in told[NO_POINT], "more items may prove that little is lost"
    assert "more items" in told[REFUSED]
    assert "tolerance" not in told[NOTHING_GAINED] and "held-out data are of the task" in told[NOTHING_GAINED]
    assert told[REPAIRED] == "" and "undecided" in told["undecided"]


def test_what_is_not_shipped_has_a_balance_that_says_no_more_than_is_known(tmp_path: Path) -> None:
    lines = {end: account_of(tmp_path / str(place), end).story[-2:] for place, end in enumerate(ENDS)}
    for end in (NO_POINT, "no held-out data", NOTHING_GAINED, NOT_BOTH):
        assert lines[end][0] == "Accuracy: nothing was shipped, and the gate half was not opened."
    assert lines[NO_POINT][1] == "Target loss on held-out data: base 4.000, tuned 3.000, lowest 2.500."
    assert lines["no held-out data"][1] == "Target: without held-out data its loss is not known."
    assert "which was not shipped" in lines[REFUSED][0] and "chosen 2.750, which was not shipped" in lines[REFUSED][1]
    assert "lost accuracy is back" in lines[REPAIRED][0]


def test_a_training_keeps_its_diagnosis(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    assert Summary.of(run).account is None
    ran = CliRunner().invoke(app, ["report", str(run.path), "--format", "json"])
    result = json.loads(ran.stdout)
    assert result["repair"] is None and result["diagnosis"]["state"] and result["advice"]
    assert "What to change:" in run.report.read_text() and "What to change:" in run.page.read_text()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_name_stays_a_name(tmp_path: Path, text: str) -> None:
    def structure(name: str, folder: str) -> list[str]:
        run = repair_folder(tmp_path / folder, **ENDS[REFUSED])
        run.update(base=name, tuned=name)
        page = write_report(run).read_text()
        return [token.type for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(page)]

    assert structure(text, "hostile") == structure("harmless", "tame")
