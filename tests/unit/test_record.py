"""Records: what a file may hold, the one line on what it may not, and which two records may be compared."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from backslide.errors import MismatchError, RecordError
from backslide.record import Outcome, Record, pair
from builders import choices, opened, record, texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "r.jsonl"
    record(choices([True, False, True]), notes=("a note",), step=3).save(path)
    return path


def test_a_saved_record_begins_with_its_header(path: Path) -> None:
    head, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert head["schema"] == "backslide.record/1" and head["outcomes"] == 3 and head["step"] == 3
    assert rows[0] == {
        "id": "math/0", "kind": "choice", "capability": "math", "request": "r0", "correct": True,
        "scores": [-1.0, -2.0], "greedy": [True, False],
    }  # fmt: skip


@pytest.mark.parametrize("cut", [1, 5, 20, 60])
def test_a_half_written_last_line_is_named(path: Path, cut: int) -> None:
    whole = path.read_text().rstrip("\n")
    path.write_text(whole[:-cut])
    with pytest.raises(RecordError, match=r"r\.jsonl:4: not JSON"):
        Record.load(path)


def test_a_file_cut_at_the_end_of_a_line_is_refused(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(RecordError, match=r"r\.jsonl: was cut short: 2 outcomes of 3"):
        Record.load(path)


def test_a_file_without_outcomes_or_without_anything(path: Path) -> None:
    head = path.read_text().splitlines()[0]
    path.write_text(head + "\n")
    with pytest.raises(RecordError, match="holds no outcome; measure it again with `backslide baseline`"):
        Record.load(path)
    path.write_text("\n")
    with pytest.raises(RecordError, match="is empty; make it with `backslide baseline`"):
        Record.load(path)
    with pytest.raises(RecordError, match="no such file"):
        Record.load(path.with_name("none"))


def test_only_the_missing_last_newline_is_no_harm(path: Path) -> None:
    before = Record.load(path)
    path.write_text(path.read_text().rstrip("\n"))
    assert Record.load(path) == before


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("schema", "backslide.record/9", r"schema is 'backslide\.record/9', this version of backslide reads"),
        ("schema", None, "schema is None"),
        ("suite_hash", 3, "suite_hash is 3, which is of the wrong type"),
        ("conditions", [], r"conditions is \[\], which is of the wrong type"),
        ("notes", "a note", "notes is 'a note', which is of the wrong type"),
        ("step", "3", "step is '3', which is of the wrong type"),
    ],
)
def test_a_bad_header_is_named(path: Path, field: str, value: object, says: str) -> None:
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(head), field: value}), *rows]))
    with pytest.raises(RecordError, match=rf"r\.jsonl:1: {says}"):
        Record.load(path)


def test_a_header_without_a_field_and_a_file_that_is_no_record(path: Path) -> None:
    head, *rows = path.read_text().splitlines()
    row = json.loads(head)
    del row["suite"]
    path.write_text("\n".join([json.dumps(row), *rows]))
    with pytest.raises(RecordError, match=r"r\.jsonl:1: the header has no suite"):
        Record.load(path)
    path.write_text("\n".join(rows))
    with pytest.raises(RecordError, match=r"r\.jsonl:1: schema is None"):
        Record.load(path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"p": math.nan}, "p is nan, a probability from 0 to 1 is needed"),
        ({"p": 1.5}, r"p is 1\.5, a probability"),
        ({"p": True}, "p is True, float or int or nothing is needed"),
        ({"scores": [math.nan]}, r"scores is \[nan\], finite numbers or null are needed"),
        ({"scores": [-math.inf, -1.0]}, r"scores is \[-inf, -1\.0\], finite"),
        ({"scores": [10**400]}, "scores is .*, finite numbers or null are needed"),
        ({"scores": ["-1"]}, r"scores is \['-1'\], finite"),
        ({"scores": [True]}, r"scores is \[True\], finite"),
        ({"scores": -1.0}, r"scores is -1\.0, list or tuple or nothing is needed"),
        ({"greedy": [1, 0]}, r"greedy is \[1, 0\], true or false for each choice is needed"),
        ({"correct": 1}, "correct is 1, bool or nothing is needed"),
        ({"correct": "yes"}, "correct is 'yes', bool"),
        ({"id": 4}, "id is 4, str is needed"),
        ({"request": None}, "request is None, str is needed"),
        ({"bytes": 0}, "bytes is 0, a positive number is needed"),
        ({"bytes": 1.5}, r"bytes is 1\.5, int or nothing is needed"),
        ({"reply": ["x"]}, r"reply is \['x'\], str or nothing is needed"),
        ({"replied": "x"}, "unknown key 'replied' in an outcome"),
        ({"id": "math/0"}, "the item 'math/0' has an outcome already"),
    ],
)
def test_a_bad_outcome_is_named_with_its_line(path: Path, fields: dict[str, Any], says: str) -> None:
    lines = path.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), **fields})
    path.write_text("\n".join(lines))
    with pytest.raises(RecordError, match=rf"r\.jsonl:3: {says}") as raised:
        Record.load(path)
    assert "\n" not in str(raised.value)


def test_null_is_read_as_absent(path: Path) -> None:
    lines = path.read_text().splitlines()
    nothing = {"correct": None, "p": None, "scores": None, "greedy": None, "bytes": None, "reply": None}
    lines[1] = json.dumps({**json.loads(lines[1]), **nothing})
    path.write_text("\n".join(lines))
    assert Record.load(path).outcomes[0] == Outcome(id="math/0", kind="choice", capability="math", request="r0")


def test_scores_that_were_not_finite_are_kept_as_null(tmp_path: Path) -> None:
    made = record(choices([True, False], broken=[1]), texts([None, -50.0]))
    made.save(tmp_path / "r.jsonl")
    loaded = Record.load(tmp_path / "r.jsonl")
    assert loaded == made and loaded.not_finite == ("math/1", "prose/0")


def test_bits_per_byte() -> None:
    worse, none = texts([-100 * math.log(2), None], size=50)
    assert worse.bits_per_byte == pytest.approx(2) and none.bits_per_byte is None
    assert choices([True])[0].bits_per_byte is None


def test_replies_are_those_to_open_items() -> None:
    said = Outcome(id="a", kind="answer", capability="c", request="r", correct=True, reply="12")
    assert record([said], opened({"o": "Hi", "silent": None})).replies == {"o": "Hi"}


OLD = choices([True] * 5)


def test_pairs_follow_the_candidate_and_the_baseline_may_cover_more() -> None:
    new = choices([False] * 5)
    pairs = pair(record(OLD), record([new[3], new[1]]))
    assert pairs == [(OLD[3], new[3]), (OLD[1], new[1])]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            record(OLD),
            record(OLD, suite="other", suite_hash="0123456789abcdef"),
            r"another suite \(s h\) than the candidate \(other 0123456789ab\); measure it again with this suite",
        ),
        (
            record(OLD[:3], part="gate"),
            record(OLD),
            r"no outcome for 2 of 5 items, the first is 'math/3'; it covers the part 'gate', measure it with `--part",
        ),
        (
            record(OLD),
            record([*OLD[:4], dataclasses.replace(OLD[4], request="x")]),
            "another tokenizer or chat template: 1 of 5 items become other tokens, the first is 'math/4'",
        ),
        (
            record(OLD),
            record(OLD, conditions={"dtype": "bfloat16"}),
            "with dtype = 'float32', the candidate with 'bfloat16'; measure both under the same conditions",
        ),
        (
            record(OLD),
            record(OLD, conditions={"dtype": "float32", "chat": True}),
            "with chat = None, the candidate with True",
        ),
        (
            record(OLD, conditions={"dtype": "float32", "chat": True}),
            record(OLD),
            "with chat = True, the candidate with None",
        ),
    ],
    ids=["suite", "items", "tokens", "dtype", "new condition", "old condition"],
)
def test_records_that_were_not_measured_alike_are_not_paired(old: Record, new: Record, says: str) -> None:
    with pytest.raises(MismatchError, match=says) as raised:
        pair(old, new)
    assert "\n" not in str(raised.value)


def test_other_weights_and_another_step_are_what_pairs_are_for() -> None:
    new = record(OLD, model="tuned", model_fingerprint="other", step=50, part="gate", cost={"seconds": 1.0})
    assert len(pair(record(OLD), new)) == 5
