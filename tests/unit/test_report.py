"""Reports: they say what decided, they can be rebuilt, and nothing that a model says comes to life in them."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console

from backslide.diagnosis import compare
from backslide.errors import RecordError
from backslide.guard.monitor import State, conclude
from backslide.judge import Alarms, judge
from backslide.record import Outcome, Record
from backslide.report.format import points
from backslide.report.markdown import write_report
from backslide.report.summary import Summary, accuracies
from backslide.report.terminal import (
    accuracy_table,
    headline,
    outcomes_table,
    replies_table,
    runs_table,
    verdict_table,
)
from backslide.report.text import markdown, plain
from backslide.rundir import RunFolder
from backslide.stats.paired import OPEN_ZERO
from backslide.verdict import Level, broken
from builders import flipped, record, run_folder, texts
from hostile import HOSTILE, spread

# What a reader's site would make of the page. HTML is on, so that any that is left is seen.
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@functools.lru_cache(maxsize=4)
def parsed(page: str) -> list[Token]:
    return PARSER.parse(page)


def shape(page: str) -> list[str]:
    """The structure of a page without its words: every block and every span in it."""
    found: list[str] = []

    def walk(tokens: list[Token]) -> None:
        for token in tokens:
            if token.type not in ("text", "inline", "text_special"):
                found.append(f"{token.type} {token.tag} {token.level}")
            walk(token.children or [])

    walk(parsed(page))
    return found


def words(page: str) -> list[str]:
    """The text of each paragraph, cell and heading, as a reader sees it."""
    lines = []
    for token in parsed(page):
        if token.type == "inline":
            lines.append("".join(child.content for child in token.children or []).replace("\u2060", ""))
    return lines


@pytest.fixture(scope="module", params=HOSTILE.values(), ids=HOSTILE.keys())
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunFolder]:
    return request.param, spread(tmp_path_factory.mktemp("hostile") / "run", request.param)


@pytest.fixture(scope="module")
def tame(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(spread(tmp_path_factory.mktemp("tame") / "run", "harmless")).read_text()


def test_a_hostile_text_stays_a_text_wherever_it_stands(hostile: tuple[str, RunFolder], tame: str) -> None:
    text, run = hostile
    page = write_report(run).read_text()
    assert shape(page) == shape(tame)
    assert "html" not in " ".join(shape(page)) and "link" not in " ".join(shape(page))
    # Where it is shown, it reads as it was said: as the reply after training, among others.
    shown = plain(text, limit=4000)
    assert f"after: {shown}" in words(page) and f"before: {shown}" in words(page)
    # A value is cut at 4000 characters; the line of flipped items has three.
    assert len(words(page)) == len(words(tame)) and max(map(len, words(page))) < 3 * 4000 + 200
    # What sites link although Markdown does not.
    assert not re.search(r"(?i)(https?|ftp):|www\.|@\w", page)
    bad = [c for c in page if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c != "\n"]
    assert bad == [] and not set("\u202e\u2066\u2069\u200f\u061c") & set(page)


def test_a_hostile_text_stays_a_text_on_the_terminal(hostile: tuple[str, RunFolder]) -> None:
    text, run = hostile
    summary = Summary.of(run)
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None, emoji=True)
    for table in (
        verdict_table(summary.verdict),
        accuracy_table(accuracies(summary.baseline)),
        replies_table([summary.replies], [text]),
        runs_table({text: summary}),
        outcomes_table({text: (summary.verdict, None)}, start=None),
        headline(summary.verdict),
    ):
        console.print(table)
    output: Any = console.file
    shown = output.getvalue()
    assert "\x1b" not in shown and not [c for c in shown if unicodedata.category(c) == "Cc" and c != "\n"]
    assert not set("\u202e\u2066\u2069\u200f\u061c\u2028") & set(shown) and len(shown) < 60_000
    beginning = plain(text)[:12].rstrip()
    assert beginning in shown.replace("\n", " "), "shown as it was said, markup and all"


def test_models_made_from_one_base_side_by_side() -> None:
    old, new = flipped(40, lost=10, won=2)
    verdict = judge(record(old), record(new))
    console = Console(file=io.StringIO(), width=120)
    console.print(outcomes_table({"tuned": (verdict, 1.25), "repaired": (broken("no point"), None)}, start=4.936))
    output: Any = console.file
    lines = [re.split(r"\s{2,}", line.strip()) for line in output.getvalue().splitlines()]
    assert ["held-out loss of the target", "4.94 → 1.25", "4.94 → –"] in lines
    assert ["items lost / won", "10 / 2 of 40", "–"] in lines
    assert any(line[0] == "verdict" and line[2] == "regressed" for line in lines)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters() | st.sampled_from("|`*_[]()<>&\\#-+=~!$@:/.{}^\n\t 1ahtpw\u202e\x1b\u2028")))
def test_any_text_is_one_line_that_reads_as_it_is(text: str) -> None:
    line = markdown(text)
    assert "\n" not in line
    line.encode()
    for page, skeleton in ((f"x {line}\n", "x y\n"), (f"{line}\n", "y\n"), (f"- {line}\n", "- y\n")):
        if plain(text):
            assert shape(page) == shape(skeleton), ascii(page)
    assert words(f"x {line}\n") == [f"x {plain(text)}".rstrip().replace("\u2060", "")]
    cells = f"| a | b |\n|---|---|\n| {line} | end |\n"
    assert words(cells) == ["a", "b", plain(text).replace("\u2060", ""), "end"]


@given(st.text(st.characters()), st.integers(1, 50))
def test_plain_text_is_one_short_line(text: str, limit: int) -> None:
    line = plain(text, limit)
    assert len(line) <= limit and line == line.strip()
    line.encode()
    assert not [c for c in line if unicodedata.category(c) in ("Cc", "Zl", "Zp")]
    assert plain(line, limit) == line


def test_prose_is_left_alone() -> None:
    prose = "Water boils at 100 °C (212 °F), doesn't it? Yes: “always” – at sea level; 3.5 km up, at 88 °C."
    assert plain(prose) == markdown(prose) == prose
    assert plain("x" * 500) == "x" * 399 + "…" and plain("a\ud800b") == "a\ufffdb"


def test_the_report_says_which_test_decided_at_which_level(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run")).read_text()
    # Two capabilities and all items: a third of the gate's share of α each; P(Bin(14, 1/2) >= 12) = 106 / 2^14.
    assert (
        '- math, accuracy (**decided**): exact (McNemar; Berger-Boos); "nothing was lost" tested at level 0.0083, '
        "p = 0.0065; bounds " in page
    )
    assert page.count("at levels 0.0083 and 0.05, tolerance 3.0%") == 3
    lines = words(page)
    assert lines[0] == "regressed: m"
    assert lines[1].startswith("regressed: math: lost 12 and won 2 of 50 items; that something was lost is proven")
    assert any(line.startswith("What it covers: 100 items of the suite w (the sealed gate half)") for line in lines)
    assert "The regression was proven at step 10, during training." in page
    assert "next setting: learning_rate = 0.001, replay = 0.05." in lines
    assert "time spent measuring | 2.0 s" in page and "steps | 20 of 40 planned" in page


def test_the_tables_hold_the_numbers_of_the_records(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run")).read_text()
    rows = [line.strip("| \n").split(" | ") for line in page.splitlines()]
    (math,) = [row for row in rows if row[:2] == ["math", "50"]]
    assert math[2:5] + math[6:] == ["96.0%", "76.0%", "+20.0", "12", "2", "–", "regressed", "accuracy"]
    (pooled,) = [row for row in rows if row[:2] == ["all items", "100"]]
    assert pooled[2:5] + pooled[6:8] == ["98.0%", "88.0%", "+10.0", "12", "2"]
    (look,) = [row for row in rows if row[0] == "10" and len(row) == 8]
    assert look == ["10", "2.00", "–", "98.0%", "85.0%", "15", "2", "regressed"]


def test_replies_stand_before_and_after_and_flipped_items_are_named(tmp_path: Path) -> None:
    lines = words(write_report(run_folder(tmp_path / "run", before="Heat it.", after="")).read_text())
    place = lines.index("How do you boil water?")
    assert lines[place + 1 : place + 3] == ["before: Heat it.", "after: (nothing)"]
    lost = ", ".join(f"math/{i}" for i in range(12))
    assert f"math: lost 12 ({lost}), won 2 (math/48, math/49)" in lines


def test_the_diagnosis_is_in_the_report(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    lines = words(write_report(run).read_text())
    (happened,) = [line for line in lines if line.startswith("learning and forgetting.")]
    assert "It began to fall between step 0 and step 10" in happened
    assert (
        "learning rate (0.85): it was 0.01, 10 times the 0.001 that is usual for an adapter (lora) on a model with 1k "
        "parameters; above 0.0001 it is the first suspect."
    ) in lines
    (began,) = [line for line in lines if line.startswith("When it began (posterior of a step or ramp")]
    assert began.endswith("between step 0 and step 10 most likely, from step 0 to step 10 with 95.0%.")


def test_knowledge_or_format_is_in_the_report(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    known = [
        Outcome(id=f"q/{i}", kind="answer", capability="q", request="r", correct=True, reply="x", scores=(-1.0, -5.0))
        for i in range(20)
    ]
    gone = [dataclasses.replace(o, correct=False, reply="y") for o in known]
    record(known, suite_hash="x").save(run.baseline)
    final = record(gone[:10], suite_hash="x", part="gate", step=10)
    final.save(run.final)
    run.save_verdict(judge(Record.load(run.baseline), final))
    page = "\n".join(words(write_report(run).read_text()))
    assert "the model still prefers the accepted answer to those of other questions in 10 (100%, 69% to 100%" in page
    assert "the knowledge is there; what changed is how the model replies" in page
    # The monitor half was looked at with the same weights: it counts as well.
    record(gone[10:], suite_hash="x", part="monitor", step=10).save(run.step(10))
    assert "in 20 (100%, 83% to 100%" in "\n".join(words(write_report(run).read_text()))
    # Other weights: it does not.
    record(gone[10:], suite_hash="x", part="monitor", step=10, model_fingerprint="o").save(run.step(10))
    assert Summary.of(run).knowledge == compare(Record.load(run.baseline), final)


def test_a_suite_of_texts_is_reported_in_bits_per_byte(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    old, new = texts([-50.0 - i for i in range(60)]), texts([-60.0 - i - i % 2 for i in range(60)])
    base, final = record(old, suite_hash="x"), record(new, suite_hash="x")
    base.save(run.baseline)
    final.save(run.final)
    verdict = judge(base, final, level=Level(fail=0.025))
    run.save_verdict(verdict)
    run.append([{"event": "look", "step": 15, "zone": verdict.zone, "verdict": verdict.to_dict(), "seconds": 1.0}])
    page = write_report(run).read_text()
    before, after = verdict.capabilities[0].baseline, verdict.capabilities[0].candidate
    assert f"| prose (bits per byte) | 60 | {before:.3f} | {after:.3f} |" in page
    (look,) = [line for line in page.splitlines() if line.startswith("| 15 |")]
    assert f"| {before:.3f} | {after:.3f} | – | – | regressed |" in look, "bits per byte are no percentage"


def test_what_the_monitor_half_proved_is_in_the_report(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    run.update(test="joint")
    old, lost = flipped(60, 20, 0)
    last = judge(record(old), record(lost, part="monitor"), alarms=Alarms(frozenset({"math"}), 0.02, "joint test"))
    gate = judge(record(old), record(old, part="gate"))
    run.save_verdict(conclude(State(looks=(5,), alpha=0.05), last, gate))
    page = write_report(run).read_text()
    assert "Monitor half, the final weights:" in page and "Gate half:" in page
    assert page.count("| math | 60 |") == 2
    decided = next(line for line in page.splitlines() if "**decided**" in line)
    assert decided.startswith("- Monitor half, the final weights: math, accuracy (**decided**): joint test; exact")
    assert "(asymptotic)" in decided and "p =" not in decided
    assert "| test over the looks | joint |" in page and "Together at most 0.05" in page


def test_a_bound_that_claims_no_size_is_shown_so() -> None:
    assert points(OPEN_ZERO) == "&gt;0" and points(0.0) == "+0.0" and points(-0.01) == "−1.0"


def test_a_look_in_the_form_of_an_earlier_version_is_passed_over(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    run.append([{"event": "look", "step": 15, "zone": "undecided", "verdict": {"zone": "undecided"}, "seconds": 1.0}])
    assert [look.step for look in Summary.of(run).looks] == [10]


def test_rebuilding_gives_the_same_file_byte_for_byte(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    first = write_report(run).read_bytes()
    run.report.unlink()
    assert write_report(RunFolder(str(run.path))).read_bytes() == first
    moved = run.path.rename(tmp_path / "elsewhere")
    assert write_report(RunFolder(moved)).read_bytes() == first


def test_a_run_without_a_verdict_is_one_clear_line(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", verdict=False)
    with pytest.raises(
        RecordError, match=r"run: no verdict\.json: no run was begun here, or it has not ended"
    ) as raised:
        write_report(run)
    assert "\n" not in str(raised.value) and not run.report.exists()
    with pytest.raises(RecordError, match="no run was begun here"):
        write_report(RunFolder(tmp_path / "none"))


@pytest.mark.parametrize("name", ["run.json", "baseline.jsonl", "verdict.json"])
@pytest.mark.parametrize("content", ["", "{", "{}\n", "[1]\n", "\x00"])
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    run = run_folder(tmp_path / "run")
    write_report(run)
    before = run.report.read_bytes()
    (run.path / name).write_text(content)
    with pytest.raises(RecordError, match=re.escape(str(run.path / name))):
        write_report(run)
    assert run.report.read_bytes() == before, "the report that was there stays"


def test_a_check_without_training_has_a_report_too(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    config = {key: value for key, value in run.config.items() if key not in ("setup", "questions")}
    (run.path / "run.json").write_text(json.dumps(config))
    (run.path / "events.jsonl").unlink()
    page = write_report(run).read_text()
    assert "## During training" not in page and "learning rate |" not in page
    assert "talk/1" in page, "without its question an open item goes by its id"


def test_a_run_that_broke_has_a_report_too(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    run.save_verdict(broken("the training loss is nan at step 3", step=3))
    page = write_report(run).read_text()
    assert "No items were compared: the training loss is nan at step 3." in words(page)
    assert "The run cannot pass: the training loss is nan at step 3." in page
