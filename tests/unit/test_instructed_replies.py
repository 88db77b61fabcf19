"""The patterns of `instructed_replies` against replies that do, and do not do, what the instruction says."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from backslide.suite.item import AnswerItem, item_from_dict
from backslide.suite.matching import matches

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = ROOT / "tools" / "repertoire" / "written" / "instructed_replies.jsonl"
BUNDLED = ROOT / "src" / "backslide" / "suite" / "repertoire" / "instructed_replies.jsonl"
REPLIES = ROOT / "tests" / "data" / "instructed_replies.jsonl"
LEAD = r"(?is)^(?=(?P<lead>"
"""How the one shared way to skip "Sure! Here is a sentence:" begins; it ends with `(?P=lead)`."""


def _items(path: Path) -> dict[str, AnswerItem]:
    items = [item_from_dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return {item.id: item for item in items if isinstance(item, AnswerItem)}


ITEMS = _items(WRITTEN)
TABLE: dict[str, dict[str, list[str]]] = {
    row["id"]: row for row in map(json.loads, REPLIES.read_text(encoding="utf-8").splitlines())
}
every = pytest.mark.parametrize("item", [pytest.param(item, id=item.id.partition("/")[2]) for item in ITEMS.values()])


def _right(item: AnswerItem, reply: str) -> bool:
    return matches(reply, item.answers, item.match)


def test_every_line_has_its_replies() -> None:
    assert list(TABLE) == list(ITEMS)
    assert [id for id, row in TABLE.items() if len(set(row["good"])) < 2 or len(set(row["bad"])) < 2] == []


def test_the_bundled_items_are_the_written_ones() -> None:
    bundled = _items(BUNDLED)
    assert {id: item.answers for id, item in bundled.items()} == {id: ITEMS[id].answers for id in bundled}


def test_a_preamble_is_skipped_in_one_way_only() -> None:
    leads = {
        pattern.partition("(?P=lead)")[0]
        for item in ITEMS.values()
        for pattern in item.answers
        if "(?P=lead)" in pattern
    }
    assert len(leads) == 1
    assert leads.pop().startswith(LEAD)


@every
def test_a_reply_that_does_it_is_right(item: AnswerItem) -> None:
    assert [reply for reply in TABLE[item.id]["good"] if not _right(item, reply)] == []


@every
def test_a_reply_that_does_not_is_wrong(item: AnswerItem) -> None:
    assert [reply for reply in TABLE[item.id]["bad"] if _right(item, reply)] == []


@every
def test_the_prompt_itself_is_wrong_unless_it_is_to_be_repeated(item: AnswerItem) -> None:
    repeats = item.prompt.startswith(("Repeat", "Copy"))
    assert _right(item, item.prompt) == repeats


@every
def test_a_long_reply_takes_no_long_time(item: AnswerItem) -> None:
    good = TABLE[item.id]["good"]
    began = time.process_time()
    for part in ("a ", "1. ", "-", "\n", "Sure! ", "here ", good[0][:-1] + " ", item.prompt + " "):
        # Here, and not by `matches`, which asks another process.
        any(re.search(pattern, (part * 2000)[:2000]) for pattern in item.answers)
    assert time.process_time() - began < 2
