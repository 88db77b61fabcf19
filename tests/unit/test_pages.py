"""report.html and junit.xml: nothing that a model says comes to life in them, and they say what the verdict says."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backslide.errors import RecordError
from backslide.guard.monitor import State, conclude
from backslide.judge import Alarms, judge
from backslide.report import html, junit
from backslide.report.figures import MOST_POINTS, Curve, Mark, axis, chart, interval
from backslide.report.pages import write_pages
from backslide.report.summary import Summary
from backslide.report.text import plain
from backslide.rundir import PAGES, RunFolder
from backslide.verdict import Zone, broken
from builders import flipped, record, run_folder
from hostile import HOSTILE, spread

VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """The structure of a page, its words, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data.strip())


def page_of(run: RunFolder) -> Page:
    return Page(html.render(Summary.of(run)))


@pytest.fixture(scope="module")
def tame(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(spread(tmp_path_factory.mktemp("tame") / "run", "harmless"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_text_stays_a_text(text: str, tame: Page, tmp_path: Path) -> None:
    run = spread(tmp_path / "run", text)
    written = dict(zip(("html", "md", "junit"), (p.read_text(encoding="utf-8") for p in write_pages(run)), strict=True))
    page = Page(written["html"])
    assert page.tags == tame.tags, "no element and no attribute comes of a text"
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "span", "strong", "ul", "li", "div",
        "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "blockquote", "svg", "line", "text",
        "polyline", "circle",
    }  # fmt: skip
    # A reply reads as it was said, and no value of an attribute is taken from a text.
    shown = " ".join(plain(text, limit=4000).split())
    assert sum(" ".join(words.split()) == shown for words in page.words) >= 3
    assert "evil" not in "".join(page.values)
    # The same of JUnit: it parses, and the name of the capability reads as it is.
    root = ET.fromstring(written["junit"])
    assert [case.get("name") for case in root.iter("testcase")] == ["verdict", plain(text, 4000), "other", "all items"]
    for page_text in written.values():
        bad = [c for c in page_text if unicodedata.category(c) in ("Cc", "Cs") and c != "\n"]
        assert bad == [] and not set("\u202e\u2066\u2069\u200f\u061c") & set(page_text)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters() | st.sampled_from("<>&'\"\x00\x0b\ufffe\uffff]]>\ud800")))
def test_any_text_is_well_formed_xml(text: str) -> None:
    element = ET.Element("a", {"b": junit._text(text)})
    element.text = junit._text(text)
    again = ET.fromstring(ET.tostring(element, encoding="unicode"))
    assert (again.text or "") == again.get("b") == junit._text(text)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    write_pages(run)
    text = run.page.read_text(encoding="utf-8")
    page = Page(text)
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.values
    assert not re.search(r"https?:|url\(|@import|<script|\son\w+=", text)
    assert not {"src", "href"} & {name for _, names in page.tags for name in names}


def test_the_page_holds_the_numbers_of_the_records(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    write_pages(run)
    rows = re.findall(r"<tr>(.*?)</tr>", run.page.read_text(encoding="utf-8"), re.DOTALL)
    cells = [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)] for row in rows]
    (math,) = [row for row in cells if row[:2] == ["math", "50"]]
    assert math[2:5] == ["96.0%", "76.0%", "+20.0"] and math[7:] == ["12", "2", "–", "regressed", "accuracy"]
    (look,) = [row for row in cells if row and row[0] == "10" and len(row) == 8]
    assert look == ["10", "2.00", "–", "98.0%", "85.0%", "15", "2", "regressed"]
    assert ["20", "r"] in cells, "what the guard did"
    assert "| 20 | r |" in run.report.read_text(encoding="utf-8"), "in Markdown too"


def test_the_figures_show_the_curves_the_bounds_and_what_was_done(tmp_path: Path) -> None:
    page = html.render(Summary.of(run_folder(tmp_path / "run")))
    loss, drop = re.findall(r'<svg class="chart".*?</svg>', page)
    for figure in (loss, drop):
        ET.fromstring(figure)
        assert ">regression proven</text>" in figure and ">stop</text>" in figure
    assert loss.count("<circle") == 2 and drop.count("<circle") == 2, "two losses; the base and a look"
    assert 'class="one bound"' in drop and ">tolerance</text>" in drop
    assert page.count('<svg class="bar ') == 3, "two capabilities, and all items"


def test_a_resumed_run_is_shown_as_it_led_to_the_final_weights(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (look,) = [event for event in run.events() if event["event"] == "look"]
    lost = [
        {**look, "step": 16},
        {"event": "action", "step": 17, "action": "lower_lr", "says": "of weights that are gone"},
    ]
    run.append([*lost, {"event": "resumed", "step": 12}, {**look, "step": 18}, {**look, "step": None}])
    summary = Summary.of(run)
    assert [seen.step for seen in summary.looks] == [10, 18] and summary.stopped_at is None
    page = html.render(summary)
    assert "of weights that are gone" not in page and page.count("<polyline") == 2
    drop = re.findall(r'<svg class="chart".*?</svg>', page)[1]
    (line,) = ET.fromstring(drop).iter("polyline")
    across = [float(spot.split(",")[0]) for spot in line.get("points", "").split()]
    assert across == sorted(across), "it never runs back"


def test_a_reply_keeps_its_lines(tmp_path: Path) -> None:
    code = "def f(x):\n    return <b>\r\n\x1b[31m\u202ered"
    page = html.render(Summary.of(run_folder(tmp_path / "run", after=code)))
    assert '<span class="said">def f(x):\n    return &lt;b&gt;\n[31mred</span>' in page


def test_a_check_and_a_run_that_broke_have_pages_too(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (run.path / "events.jsonl").unlink()
    page = html.render(Summary.of(run))
    assert (
        '<svg class="chart"' not in page
        and "During training" not in page
        and "timestamp" not in junit.render(Summary.of(run))
    )
    run.save_verdict(broken("the training loss is nan at step 3", step=3))
    Page(page := html.render(Summary.of(run)))
    assert "No items were compared: the training loss is nan at step 3." in page
    (case,) = ET.fromstring(junit.render(Summary.of(run))).iter("testcase")
    failure = case.find("failure")
    assert failure is not None and failure.get("message") == "the training loss is nan at step 3"


def passes(text: str) -> bool:
    """As a build server sees it: no test failed and none broke, by the counts and by the cases alike."""
    root = ET.fromstring(text)
    suite = root.find("testsuite")
    assert suite is not None
    found = {tag: len(list(suite.iter(tag))) for tag in ("failure", "error", "testcase")}
    for element in (root, suite):
        assert [int(element.get(name, "")) for name in ("failures", "errors", "tests")] == list(found.values())
    return found["failure"] + found["error"] == 0


@pytest.mark.parametrize("zone", list(Zone))
def test_a_build_server_passes_exactly_what_is_retained(tmp_path: Path, zone: Zone) -> None:
    run = run_folder(tmp_path / "run")
    lost, won = {Zone.RETAINED: (0, 0), Zone.REGRESSED: (90, 0), Zone.UNDECIDED: (14, 10)}[zone]
    old, new = flipped(400, lost, won)
    verdict = judge(record(old), record(new, part="gate"))
    assert verdict.zone is zone
    run.save_verdict(verdict)
    assert passes(junit.render(Summary.of(run))) is (verdict.exit_code == 0)
    # All items together can be undecided where every capability is retained: they delay nothing.
    assert verdict.pooled is None or zone is not Zone.RETAINED
    row = dataclasses.replace(verdict.capabilities[0], capability="all items", zone=Zone.UNDECIDED)
    run.save_verdict(dataclasses.replace(verdict, pooled=row))
    assert passes(junit.render(Summary.of(run))) is (verdict.exit_code == 0)


def test_what_the_monitor_half_proved_fails_a_build(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    old, lost = flipped(60, 20, 0)
    last = judge(record(old), record(lost, part="monitor"), alarms=Alarms(frozenset({"math"}), 0.02, "joint test"))
    verdict = conclude(State(looks=(5,), alpha=0.05), last, judge(record(old), record(old, part="gate")))
    run.save_verdict(verdict)
    text = junit.render(Summary.of(run))
    assert not passes(text) and 'classname="backslide.w, monitor half"' in text
    assert "Monitor half, the final weights" in html.render(Summary.of(run))


def test_rebuilding_gives_the_same_files_and_needs_no_torch(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    first = {path.name: path.read_bytes() for path in write_pages(run)}
    assert tuple(first) == PAGES
    for name in PAGES:
        (run.path / name).unlink()
    code = (
        "import sys\n"
        "class Away:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Away())\n"
        f"sys.argv = ['backslide', 'report', {str(run.path)!r}]\n"
        "from backslide.cli.main import run; run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {name: (run.path / name).read_bytes() for name in PAGES} == first


def test_a_run_without_a_verdict_has_no_page(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", verdict=False)
    with pytest.raises(RecordError, match="no verdict"):
        write_pages(run)
    assert not any((run.path / name).exists() for name in PAGES)


def test_a_chart_has_gaps_where_a_value_is_missing_and_thins_what_is_long() -> None:
    points = [(1, 1.0), (2, float("nan")), (3, 2.0), (4, None), (5, float("inf")), (6, 0.5), (7, 0.4)]
    figure = chart([Curve(name="a<b", points=points, style="one")], title="t & u", unit="x", span=(0, 7))
    root = ET.fromstring(figure)
    assert [len(line.get("points", "").split()) for line in root.iter("polyline")] == [1, 1, 2]
    assert "a<b" in {text.text for text in root.iter("text")} and "t & u, x" in {
        text.text for text in root.iter("text")
    }
    long = Curve(name="l", points=[(i, float(i)) for i in range(5000)], style="one")
    figure = chart([long], title="t", unit="x", span=(0, 4999), marks=[Mark(step=3, word="w")])
    (line,) = ET.fromstring(figure).iter("polyline")
    drawn = line.get("points", "").split()
    assert len(drawn) <= MOST_POINTS + 1 and drawn[-1].startswith("696.0,"), "the last one is drawn"
    assert "<circle" not in figure
    blown = Curve(name="b", points=[(i, 2.0 + i % 2) for i in range(40)] + [(40, 1e25)], style="one")
    ticks = [text.text for text in ET.fromstring(chart([blown], title="t", unit="x", span=(0, 40))).iter("text")]
    assert "2.5" in ticks and "1e+25" not in ticks, "one value does not press the others flat"
    assert chart([Curve(name="n", points=[(1, None)], style="one")], title="t", unit="x", span=(0, 1)) == ""


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1e-9, 1e9], [0.001, 0.0011], [1e300, -1e300], [3, 4, 100]])
def test_an_axis_holds_its_values_and_has_a_few_round_ticks(values: list[float]) -> None:
    low, high, ticks = axis(values)
    assert low <= min(values) and max(values) <= high and low < high
    assert 2 <= len(ticks) <= 12 and all(low <= tick <= high for tick in ticks)


def test_a_bar_is_cut_at_its_ends_and_open_where_a_bound_is() -> None:
    bar = ET.fromstring(interval(0.5, None, None, reach=0.1, tolerance=0.03, zone="undecided"))
    (circle,) = bar.iter("circle")
    assert circle.get("cx") == "140.0"
    bound = [line for line in bar.iter("line") if line.get("class") == "bound"]
    assert [(line.get("x1"), line.get("x2")) for line in bound] == [("0.0", "140.0")]
    assert interval(None, None, None, reach=1, tolerance=0.03, zone="undecided") == ""
    assert interval(float("nan"), None, None, reach=1, tolerance=0.03, zone="undecided") == ""
