"""The readers take any bytes: a suite, items or passages, or one line of `InputError` that names the file and is short."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backslide.data import TrainingData
from backslide.errors import InputError, SuiteError
from backslide.passages import passages
from backslide.suite.item import KINDS
from backslide.suite.make import Made, from_prompts, from_qa, from_texts
from backslide.suite.sources import read_prompts, read_rows, read_texts
from backslide.suite.suite import Suite

GOOD: dict[str, Any] = {
    "id": "a", "kind": "choice", "capability": "c", "prompt": "p", "choices": ["x", "y"], "gold": 1, "cluster": "k",
    "answers": ["12"], "match": "number", "stop": ["\n"], "text": "t",
    "reference": "r", "contexts": ["2+2 is"], "continuations": [" 4", " 5"], "greedy": True,
    "max_new_tokens": 8, "filters": '[["take_first", {}]]', "metric": '{"ignore_case": true}',
}  # fmt: skip
FIELDS = {
    "choice": ("prompt", "choices", "gold"), "answer": ("prompt", "answers", "match", "stop"), "text": ("text",),
    "open": ("prompt", "reference"), "continuation": ("contexts", "continuations", "gold", "greedy"),
    "generation": ("prompt", "answers", "stop", "max_new_tokens", "filters", "metric"),
}  # fmt: skip
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.just("\ud800")
    | st.just("x" * 5000),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
HOSTILE = st.sampled_from([
    "../../etc/passwd", "/root", "a//b", "a/", "..", ".", "a/../b", "..\\..\\x", "C:\\x", "a\nb", "a\0b", "\x1b[31m",
    "\u202egnp", "a\u2028b", " ", "", "a" * 301, "x/" * 200, "~", "a/b/c", "é", "🙂",
])  # fmt: skip


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line of a suite: mostly right, with one or two things wrong, or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    kind = draw(st.sampled_from(sorted(KINDS)))
    row = {key: GOOD[key] for key in ("id", "kind", "capability", *FIELDS[kind])} | {"kind": kind}
    if kind == "continuation":
        row["gold"] = [1]
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from([*GOOD, draw(st.text(max_size=12))]))
        match draw(st.sampled_from(["drop", "change", "hostile"])):
            case "drop":
                row.pop(key, None)
            case "change":
                row[key] = draw(VALUE)
            case _:
                row[draw(st.sampled_from(["id", "capability", "cluster", "prompt"]))] = draw(HOSTILE)
    text = json.dumps(row, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    cut = draw(st.integers(0, len(text))) if draw(st.integers(0, 9)) == 0 else len(text)
    return text[:cut]


@settings(max_examples=300, deadline=None)
@given(st.lists(lines(), max_size=4).map(b"\n".join))
@example(b"")
@example(b"\xef\xbb\xbf")
@example(b"\xff\xfe{\x00}\x00")
@example(b'{"id": NaN}')
@example(b'{"kind": "answer", "id": "a", "capability": "c", "prompt": "p", "match": "regex", "answers": ["[[a]"]}')
@example(
    b'{"kind": "answer", "id": "a", "capability": "c", "prompt": "p", "match": "regex", "answers": ["a{99999999999999999999}"]}'
)
@example(
    b'{"kind": "answer", "id": "a", "capability": "c", "prompt": "p", "match": "regex", "answers": ["'
    + b"(" * 5000
    + b'"]}'
)
@example(b'{"id": ' + b"[" * 900 + b"]" * 900 + b', "kind": "text", "capability": "c", "text": "t"}')
@example(
    b'{"id": "a", "kind": "generation", "capability": "c", "prompt": "p", "answers": ["x"], "filters": "'
    + b"[" * 100_000
    + b'"}'
)
@example(b'{"' + b"k" * 100_000 + b'": 1, "kind": "text"}')
def test_any_file_is_a_suite_or_one_short_line(content: bytes) -> None:
    path = Path("s.jsonl")
    path.write_bytes(content)
    try:
        suite = Suite.load(path)
    except SuiteError as bad:
        line = str(bad)
        assert line.startswith("s.jsonl") and "\n" not in line and len(line) < 600, line
        assert line.isprintable(), line
        return
    for item in suite.items:
        parts = item.id.split("/")
        assert all(part not in ("", ".", "..") for part in parts) and item.id.isprintable() and len(item.id) <= 300
    suite.save("again.jsonl")
    assert Suite.load("again.jsonl").hash == suite.hash


@given(st.text(max_size=300) | HOSTILE)
@example("a" * 5000)
@example("\0")
def test_any_path_is_a_suite_or_one_line(name: str) -> None:
    try:
        assert Suite.load(name).items
    except SuiteError as bad:
        assert str(bad).startswith(str(Path(name)) if name else "the suite's name is empty")


@pytest.mark.parametrize("id", ["../../x", "/x", "a//b", "a/", ".", "..", "a/../b", "a/./b", "...", "a\\b"])
def test_an_id_does_not_lead_out_of_a_folder(id: str) -> None:
    row = {"id": id, "kind": "text", "capability": "c", "text": "t"}
    Path("s.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(SuiteError, match=r"s\.jsonl:1: id is .*, which could lead out of a folder; leave out backsl"):
        Suite.load("s.jsonl")


@pytest.mark.parametrize("field", ["id", "capability"])
@pytest.mark.parametrize("name", ["a\nb", "a\0", "\x1b[2J", "a\u202eb", "a\u2029", "a\x85"])
def test_a_name_is_one_line(field: str, name: str) -> None:
    row = {"id": "a", "kind": "text", "capability": "c", "text": "t", field: name}
    Path("s.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(SuiteError, match=rf"s\.jsonl:1: {field} is .*, with a line break or a control character; le"):
        Suite.load("s.jsonl")


@pytest.mark.parametrize("id", ["math/algebra/7", "a.b", "..a", "a..", "Frage 1: ä", "🙂", "سؤال", "~/x", "a:b"])
def test_ordinary_ids_are_taken(id: str) -> None:
    Path("s.jsonl").write_text(json.dumps({"id": id, "kind": "text", "capability": "c", "text": "t"}), encoding="utf-8")
    assert [item.id for item in Suite.load("s.jsonl").items] == [id]


# The user's own files.

COLUMNS = (
    "question", "prompt", "instruction", "input", "answer", "answers", "output", "label", "answerKey", "choices", "options",
    "context", "text", "content", "messages", "completion", "a\nb", "\x1b[31m", "", "x" * 300,
)  # fmt: skip
CELL = st.sampled_from([
    "Who?", "Ann", "7", "1,000", "A", "", " ", ".", "\u200b", "e\u0301", "\ud800", "$-3%", "[", '["a", "b"]', "a\nb", 'say "x"', "x" * 300,
    7, 0, 1, -1, 2.5, 1e300, float("inf"), True, None, [], ["a", "b"], ["a", "a"], ["x", ""], ["a", None, 3], {"text": ["a", "b"], "label": ["A", "B"]},
    {"A": "a", "B": "b"}, {"text": "a"}, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], [{"role": "user"}],
])  # fmt: skip
ROW = st.one_of(
    st.fixed_dictionaries({"question": st.text(min_size=1, max_size=8), "answer": st.text(min_size=1, max_size=5)}),
    st.fixed_dictionaries({"question": CELL, "choices": st.lists(CELL, max_size=4), "answer": CELL}),
    st.fixed_dictionaries({"prompt": CELL, "completion": CELL}),
    st.fixed_dictionaries({"text": CELL}),
    st.fixed_dictionaries({"messages": CELL}),
    st.dictionaries(st.sampled_from(COLUMNS), CELL | VALUE, max_size=5),
)
ROWS = st.lists(ROW, min_size=1, max_size=6)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Ending and content of a file: rows, alike or not, as JSON Lines or CSV, sometimes with a few bytes changed; or any."""
    ending = draw(st.sampled_from([".jsonl", ".csv", ".tsv", ".txt", ""]))
    if draw(st.integers(0, 7)) == 0:
        return ending, draw(st.binary(max_size=80))
    rows = draw(ROWS)
    if ending == ".jsonl":
        text = "\n".join(json.dumps(row, ensure_ascii=draw(st.booleans())) for row in rows)
    else:
        table = io.StringIO()
        writer = csv.writer(table, delimiter="\t" if ending == ".tsv" else ",")
        writer.writerow(rows[0])
        for row in rows:
            cells = [row.get(name) for name in rows[0]]
            writer.writerow(json.dumps(cell) if isinstance(cell, (list, dict)) else cell for cell in cells)
        text = table.getvalue()
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(0, 2)) if draw(st.booleans()) else 0):
        place = draw(st.integers(0, len(content)))
        content[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return ending, bytes(content)


def one_line(bad: InputError, path: Path) -> None:
    line = str(bad)
    assert line.startswith(str(path)) and "\n" not in line and len(line) < 1500, line
    assert line.isprintable(), line


MADE: dict[str, Callable[[Path], Made]] = {
    "qa": lambda path: from_qa(read_rows(path), "c"),
    "qa as answers": lambda path: from_qa(read_rows(path), "c", kind="answer"),
    "qa as choices": lambda path: from_qa(read_rows(path), "c", kind="choice"),
    "qa of others": lambda path: from_qa(read_rows(path), "c", strict=False),
    "texts": lambda path: from_texts(read_texts(path), "c"),
    "prompts": lambda path: from_prompts(read_prompts(path), "c"),
}


@settings(max_examples=400, deadline=None)
@given(files(), st.sampled_from(sorted(MADE)))
@example((".jsonl", b'{"a\\nb": 1}'), "qa")
@example((".csv", b"a\x1bb\nc"), "texts")
@example((".csv", b"\xef\xbb\xbf"), "qa")
@example((".csv", b"\0"), "qa")
@example((".tsv", b'text\n"a"b\n'), "qa")
@example((".jsonl", b'{"question": "q", "answer": ["1", "' + b"2" * 400 + b'"]}'), "qa")
@example((".jsonl", b'{"question": "q", "answer": ' + b"9" * 4000 + b"}"), "qa as answers")
@example((".csv", b"text\n" + b"[" * 100_000), "texts")
def test_any_material_is_items_or_one_short_line(file: tuple[str, bytes], way: str) -> None:
    ending, content = file
    path = Path(f"m{ending}")
    path.write_bytes(content)
    try:
        made = MADE[way](path)
        for note in made.notes:
            assert note.isprintable() and len(note) < 1500, note
        suite = made.suite("c", str(path))
    except InputError as bad:
        one_line(bad, path)
        return
    suite.save("again.jsonl")
    assert Suite.load("again.jsonl").hash == suite.hash


@settings(max_examples=200, deadline=None)
@given(files())
@example((".jsonl", b'{"a\\nb": 1}'))
@example((".jsonl", b'{"text": NaN}'))
@example((".jsonl", b'{"prompt": [], "completion": [{"role": "user", "content": 1}]}'))
@example((".jsonl", b'{"text": ' + b"[" * 900 + b'"a"' + b"]" * 900 + b"}"))
@example((".jsonl", b'{"text": "a", "n": ' + b"9" * 4000 + b"}"))
@example((".jsonl", b'{"text": "\\ud83d"}'))
@example((".txt", b"\xff\xfe"))
def test_any_training_data_is_passages_or_one_short_line(file: tuple[str, bytes]) -> None:
    ending, content = file
    path = Path(f"t{ending}")
    path.write_bytes(content)
    for read in (lambda: list(passages(path, lambda *_: None)), lambda: TrainingData.load(path).rows):
        try:
            assert read()
        except InputError as bad:
            one_line(bad, path)
