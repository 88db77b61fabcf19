"""Rows that hold an item of the suite that watches the run are not practised, whoever names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backslide.cure.anchor import Anchor
from backslide.cure.replay import Replay
from backslide.errors import ConfigError, DataError
from backslide.guard.callback import Guard
from backslide.suite.item import ChoiceItem
from backslide.suite.suite import Suite
from replay_runs import OLD, make, texts, tokens

EXAM = "Which of the seven rivers of the northern country freezes over first in a cold and windy winter"
HELD = [{"text": f"Page {i}. {EXAM}? it is so."} for i in range(3)]
REPLAYED = "replay: 3 of 10 rows of the old data hold 1 of the items of the suite exam, and are left out"
ANCHORED = "anchor: 3 rows left out: they hold 1 item of the suite exam"


def guarded(folder: Path) -> Guard:
    items = [
        ChoiceItem(id=f"c{i}", capability="c", prompt=f"{EXAM} {i}" if i else EXAM, choices=("it is so", "no"), gold=0)
        for i in range(30)
    ]
    return Guard(Suite("exam", tuple(items)), every=9, say=lambda _: None, run_dir=folder / "run", cache=False)


def practised(trainer: Any, anchor: Anchor) -> tuple[int, int]:
    """Old rows that were trained on, and that hold the item; the anchor has none with it."""
    rows = [row for batch in trainer.seen for row in texts(batch)]
    assert anchor.rows is not None and len(anchor.rows.rows) == len(OLD)
    return sum("OLD" in row for row in rows), sum("Page" in row for row in rows)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_the_guard_names_the_suite(tmp_path: Path, when: str, kind: str) -> None:
    said: list[str] = []
    rows = [*OLD, *HELD]
    old: Any = rows if kind == "text" else tokens([row["text"] for row in rows])
    guard = guarded(tmp_path)
    trainer = make(tmp_path, callbacks=[guard] if when == "before" else [], max_steps=3, save_strategy="no")
    replay = Replay(old, 0.4, say=said.append).attach(trainer)
    anchor = Anchor(rows, 0.1, folder=tmp_path / "a", say=said.append).attach(trainer)
    if when == "after":
        assert not said
        trainer.add_callback(guard)
    trainer.train()
    old_rows, held = practised(trainer, anchor)
    assert old_rows >= 4 and held == 0 and replay.share > 0.2
    # Once, though the suite is looked for at each beginning.
    trainer.train()
    assert [line for line in said if "suite exam" in line] == [REPLAYED, ANCHORED]
    assert [f"anchor: {note}" for note in anchor.notes] == [ANCHORED]


def test_a_guard_that_comes_when_the_base_is_gone_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_steps=1, save_strategy="no")
    Anchor([*OLD, *HELD], 0.1, folder=tmp_path / "a", say=lambda _: None).attach(trainer)
    trainer.train()
    trainer.add_callback(guarded(tmp_path))
    with pytest.raises(ConfigError, match="suite exam, of a guard that was added after a training.* before the first"):
        trainer.train()


def test_a_suite_that_is_given_is_not_searched_for_twice(tmp_path: Path) -> None:
    said: list[str] = []
    guard = guarded(tmp_path)
    trainer = make(tmp_path, callbacks=[guard])
    Replay([*OLD, *HELD], suite=guard.suite, say=said.append).attach(trainer)
    Anchor([*OLD, *HELD], suite=guard.suite, say=said.append).attach(trainer)
    assert said == [REPLAYED, ANCHORED]


def test_where_nothing_is_left_it_is_refused(tmp_path: Path) -> None:
    for made in (Replay(HELD, say=lambda _: None), Anchor(HELD, say=lambda _: None)):
        with pytest.raises(DataError, match="suite exam"):
            made.attach(make(tmp_path, callbacks=[guarded(tmp_path)]))
