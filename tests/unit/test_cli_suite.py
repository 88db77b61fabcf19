"""`backslide suite`: what it shows, as text and as JSON, and its exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from backslide.cli.main import run as command
from backslide.suite.item import AnswerItem, OpenItem, TextItem
from backslide.suite.suite import Suite, half_of
from builders import choice

ITEMS = (
    choice("geo/france", capability="geo", prompt="What is the capital of France?", choices=("Lyon", "Paris"), gold=1),
    choice(
        "geo/spain", capability="geo", prompt="What is the capital of Spain?", choices=("Madrid", "Vigo"), cluster="k"
    ),
    AnswerItem(id="sum", capability="sums", cluster="k", prompt="What is 17 + 5?", answers=("22",), match="number"),
    TextItem(id="prose", capability="[bold]prose[/bold]", text="\x1b[31mAll happy families are alike, it is said."),
    OpenItem(id="tea", capability="talk", prompt="How do you make tea?"),
)


@pytest.fixture
def suite() -> Path:
    Suite("s", ITEMS).save("s.jsonl")
    return Path("s.jsonl")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    sys.argv = ["backslide", "suite", *map(str, arguments)]
    with pytest.raises(SystemExit) as ended:
        command()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def train(*texts: str) -> Path:
    path = Path("train.jsonl")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


CLEAN = ("Where is the Seine?", "What is the capital of Latvia? Riga.")
LEAKY = (*CLEAN, "User: what is the capital of FRANCE\nBot: Paris!", "Then 17 + 5. What is 17+5? It is 22.")


@pytest.mark.parametrize("strict", [False, True])
def test_check_lists_both_places_and_warns_or_fails(
    suite: Path, capsys: pytest.CaptureFixture[str], strict: bool
) -> None:
    flags = ["--strict"] if strict else []
    code, out, err = call(capsys, "check", suite, "--train", train(*LEAKY), *flags)
    assert code == int(strict)
    shown = "".join(out.split())
    for part in ("geo/france", "s.jsonl:1", "train.jsonl:3", "exact100%", "sum", "s.jsonl:3", "train.jsonl:4"):
        assert part in shown, part
    assert "geo/spain" not in shown
    assert err == "warning: 2 items of 5 in s: found in train.jsonl\n"
    code, out, err = call(capsys, "check", suite, "--train", train(*CLEAN), *flags)
    assert (code, err) == (0, "") and out == "none of the 5 items of s was found in train.jsonl\n"


def test_check_as_json(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = train(*LEAKY, LEAKY[2])
    code, out, _ = call(capsys, "check", suite, "--train", path, "--format", "json", "--strict")
    found: dict[str, Any] = json.loads(out)
    assert code == 1 and found["items"] == ["geo/france", "sum"] and found["hash"] == Suite.load(suite).hash
    places = [(leak["item"], leak["item_place"], leak["place"]) for leak in found["leaks"]]
    assert places == [
        ("geo/france", "s.jsonl:1", f"{path}:3"), ("geo/france", "s.jsonl:1", f"{path}:5"),
        ("sum", "s.jsonl:3", f"{path}:4"),
    ]  # fmt: skip
    code, out, _ = call(capsys, "check", suite, "--train", train(*CLEAN), "--format", "json", "--strict")
    assert code == 0 and json.loads(out)["leaks"] == [] and json.loads(out)["train"] == str(path)


def test_check_alone_reads_the_suite(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "check", suite)
    assert (code, err) == (0, "") and out.startswith("s: 5 items, no error")
    code, out, _ = call(capsys, "check", suite, "--format", "json")
    assert code == 0 and json.loads(out)["train"] is None
    # A pipeline that forgot the training data is not to pass.
    code, out, err = call(capsys, "check", suite, "--strict")
    assert (code, out) == (2, "") and err.startswith("error: --strict is for items that are in the training data, and")
    assert err.endswith("none is given; name it with --train\n")
    code, out, err = call(capsys, "check", "")
    assert (code, out) == (2, "") and err.startswith("error: the suite's name is empty; give a .jsonl file")


def test_one_item_is_no_items(capsys: pytest.CaptureFixture[str]) -> None:
    Suite("one", ITEMS[:1]).save("one.jsonl")
    for words, says in (
        (("check", "one.jsonl"), "one: 1 item, no error"),
        (("check", "one.jsonl", "--train", train(*CLEAN)), "the only item of one was not found in train.jsonl"),
        (("show", "one.jsonl"), "suite one, 1 item, hash"),
    ):
        code, out, _ = call(capsys, *words)
        assert code == 0 and says in out


def test_many_leaks_are_cut_in_the_table_and_whole_in_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    many = Suite(
        "many", tuple(choice(str(i), prompt=f"Who is number {i} of them all?", choices=("x", "y")) for i in range(150))
    )
    many.save("many.jsonl")
    path = train(*(f"Who is number {i} of them all? x" for i in range(150)))
    _, out, _ = call(capsys, "check", "many.jsonl", "--train", path)
    assert "and 50 more places; --format json lists all" in out
    _, out, _ = call(capsys, "check", "many.jsonl", "--train", path, "--format", "json")
    assert len(json.loads(out)["items"]) == 150


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n{"text": 3}\n', "train.jsonl:2: text is int, text is needed"),
        ('{"text": "a"}\n{"input_ids": [1], "id": "b"}\n', "train.jsonl:2: is tokens (input_ids); give the data"),
        ("", "no text: the file has no line"),
        (None, "no such file"),
    ],
)
def test_bad_training_data_is_one_line_and_code_2(
    suite: Path, capsys: pytest.CaptureFixture[str], content: str | None, says: str
) -> None:
    path = Path("train.jsonl")
    if content is not None:
        path.write_text(content)
    code, out, err = call(capsys, "check", suite, "--train", path)
    assert code == 2 and out == "" and err.count("\n") == 1 and says in err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{oops\n", "s.jsonl:1: not JSON"),
        (
            b'{"id": "../../x", "kind": "text", "capability": "c", "text": "t"}\n',
            "s.jsonl:1: id is '../../x', which could",
        ),
        (
            b'{"id": "a", "kind": "text", "capability": "c", "text": "\xff"}\n',
            "s.jsonl:1: byte 56 is 0xff, which is not UTF-8",
        ),
        (b"", "s.jsonl: the suite is empty"),
        (None, "no such suite; give a .jsonl file"),
    ],
)
@pytest.mark.parametrize("verb", ["check", "show"])
def test_a_bad_suite_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], verb: str, content: bytes | None, says: str
) -> None:
    path = Path("s.jsonl")
    if content is not None:
        path.write_bytes(content)
    code, out, err = call(capsys, verb, path)
    assert code == 2 and out == "" and err.count("\n") == 1 and says in err


def test_ls_counts_halves(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "ls", "--suite", suite, "--format", "json")
    found = json.loads(out)
    geo = [half_of(item) for item in ITEMS[:2]]
    assert code == 0 and found["capabilities"]["geo"] == {
        "items": 2, "monitor": geo.count("monitor"), "gate": geo.count("gate"),
    }  # fmt: skip
    _, out, _ = call(capsys, "ls", "--suite", suite)
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert ["geo", "2", str(geo.count("monitor")), str(geo.count("gate"))] in lines
    assert next(line for line in lines if line[0] == "all")[:3] == ["all", "items", "5"]
    assert lines[-1] == ["suite", "s,", "hash", Suite.load(suite).hash[:12]]


def test_show_tells_kinds_clusters_and_hash_and_no_markup_comes_to_life(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "show", suite)
    assert code == 0 and Suite.load(suite).hash in out and "2 choice" in out and "1 answer" in out
    assert "[bold]prose[/bold]" in out and "\x1b" not in out
    assert "What is the capital of France?" in out and "Paris" in out and "22" in out
    code, out, _ = call(capsys, "show", suite, "--format", "json")
    (geo, sums, prose, talk) = json.loads(out)["capabilities"]
    assert (geo["capability"], geo["items"], geo["clusters"], geo["kinds"]) == ("geo", 2, 2, {"choice": 2})
    assert (sums["kinds"], prose["kinds"], talk["kinds"]) == ({"answer": 1}, {"text": 1}, {"open": 1})


def test_the_bundled_suite_is_shown_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "show")
    assert code == 0 and "world_facts" in out and Suite.repertoire().hash in out
    # What a model made of it: base accuracy, and the smallest drop that each half proves.
    assert "gate proves" in out and "SmolLM2" in out
    # The page has the same numbers: drops, without a sign.
    page = (Path(__file__).parents[2] / "docs" / "suites.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")
    ]
    known = set(Suite.repertoire().capabilities)
    shown = {" ".join(line.split()) for line in out.splitlines()}
    listed = [row for row in rows if row[0] in known]
    assert len(listed) == 13 and {" ".join(row) for row in listed} <= shown
    code, out, _ = call(capsys, "show", "--format", "json")
    measured = json.loads(out)["measured"]
    assert measured["conditions"]["hash"] == Suite.repertoire().hash
    assert 0 < measured["capabilities"]["science"]["gate"] < measured["capabilities"]["science"]["monitor"] < 1
