"""Saving and loading a record is the identity; what is cut from its file is always noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backslide.errors import RecordError
from backslide.record import LEAST_LOG, Header, Outcome, Record, pair

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALAR = st.none() | st.booleans() | st.integers() | FINITE | TEXT

HEADERS = st.builds(
    Header,
    suite=TEXT,
    suite_hash=TEXT,
    part=st.sampled_from(["monitor", "gate", "all"]),
    model=TEXT,
    model_fingerprint=TEXT,
    tokenizer_fingerprint=TEXT,
    conditions=st.dictionaries(TEXT, SCALAR, max_size=4),
    step=st.none() | st.integers(0),
    cost=st.dictionaries(TEXT, FINITE, max_size=3),
    versions=st.dictionaries(TEXT, TEXT, max_size=3),
    notes=st.lists(TEXT, max_size=3).map(tuple),
)


def places(size: int) -> st.SearchStrategy[Any]:
    """What was likeliest in place of a token."""
    ids = st.lists(st.integers(0, 2**31 - 1), min_size=size, max_size=size, unique=True).map(tuple)
    return st.tuples(ids, st.lists(st.floats(LEAST_LOG, 0), min_size=size + 1, max_size=size + 1).map(tuple))


OUTCOMES = st.builds(
    Outcome,
    id=TEXT,
    kind=st.sampled_from(["choice", "answer", "text", "open"]),
    capability=TEXT,
    request=TEXT,
    correct=st.none() | st.booleans(),
    p=st.none() | st.floats(0, 1),
    scores=st.lists(st.none() | FINITE, max_size=4).map(tuple),
    greedy=st.lists(st.booleans(), max_size=4).map(tuple),
    bytes=st.none() | st.integers(1),
    likeliest=st.sampled_from([1, 3]).flatmap(lambda size: st.lists(places(size), max_size=3)).map(tuple),
    reply=st.none() | TEXT,
)


def records(**fields: Any) -> st.SearchStrategy[Record]:
    outcomes = st.lists(OUTCOMES, min_size=1, max_size=6, unique_by=lambda outcome: outcome.id)
    return st.builds(Record, HEADERS, outcomes.map(tuple))


@settings(deadline=None)
@given(records())
def test_saving_and_loading_is_the_identity(made: Record) -> None:
    path = Path("r.jsonl")
    made.save(path)
    loaded = Record.load(path)
    assert loaded == made
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first
    assert pair(loaded, made) == [(o, o) for o in made.outcomes]


@settings(deadline=None)
@given(records(), st.data())
def test_a_file_cut_anywhere_is_refused(made: Record, data: st.DataObject) -> None:
    path = Path("r.jsonl")
    made.save(path)
    whole = path.read_bytes()
    # Without its last newline a file is still whole.
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 2))])
    with pytest.raises(RecordError, match=r"^r\.jsonl"):
        Record.load(path)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40) | TEXT.map(str.encode), max_size=5).map(b"\n".join))
def test_no_file_raises_anything_but_record_error(content: bytes) -> None:
    path = Path("r.jsonl")
    path.write_bytes(content)
    with pytest.raises(RecordError):
        Record.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.sampled_from(list(Outcome.__dataclass_fields__)), JSON)
def test_no_value_of_an_outcome_raises_anything_but_record_error(field: str, value: object) -> None:
    row = {"id": "i", "kind": "choice", "capability": "c", "request": "r", field: value}
    try:
        made = Outcome.from_dict(row)
    except RecordError as bad:
        assert field in str(bad)
    else:
        assert Outcome.from_dict(made.to_dict()) == made
