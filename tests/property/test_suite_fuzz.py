"""The suite's reader takes any bytes: a suite, or one line of `SuiteError` that names the file and is short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backslide.errors import SuiteError
from backslide.suite.item import KINDS
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
