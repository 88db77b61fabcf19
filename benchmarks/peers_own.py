"""The plain run that all contestants of `peers.py` are compared against, and this project's own.

They call the public API as docs/cures.md and docs/guard.md show it, and are given what the peers are: the rows of
training, the base, the rehearsal file. Two take more than that. `repair` chooses its point by the loss on the case's
validation rows, that nobody trains on or is scored by. `repair` and `auto` ask the monitor half of the suite by whose
two halves all are scored, so that half has steered them. Both ask its gate half once, at their end. It chooses no
point and acts on no run; but a repair whose point it proves regressed is not shipped, and the tuned model remains.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from peers_case import BUILTIN, EACH, LENGTH, PLAIN, Case, stage, trainer_of

SHARE, WEIGHT, LOOKS = 0.25, 1.0, 5
"""Replayed tokens as a share of all; the anchor's weight; looks of the guard that acts."""


def plain(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """The fine-tune alone."""
    trainer = trainer_of(case, folder, seed)
    trainer.train()
    trainer.model.save_pretrained(folder / "model")
    return {"settings": PLAIN}


def repair(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """The plain run, then `backslide repair` on what it left; where nothing is shipped, that is what remains."""
    from backslide.cure.repair import repair as repaired

    stage.name = "training"
    trainer = trainer_of(case, folder, seed)
    trainer.train()
    trainer.model.save_pretrained(folder / "before")
    del trainer
    stage.name = "repair"
    done = repaired(
        BUILTIN, str(folder / "before"), folder / "repaired", held_out=case.validation, suite=_suite(),
        dtype="bfloat16", max_length=LENGTH, say=print,
    )  # fmt: skip
    shutil.copytree(folder / ("before" if done.at is None else "repaired"), folder / "model")
    return {
        "settings": {**PLAIN, "items": EACH},
        "shipped": done.at is not None,
        "at": done.at,
        "exit code": done.exit_code,
        "its verdict": done.verdict.zone.value,
        "its reason": done.verdict.reasons[0],
        "points": [
            {"at": p.at, "loss": p.loss, "kept": p.kept, "drop": p.drop, "lost": p.lost, "won": p.won}
            for p in done.points
        ],
    }


def replay(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """The plain run, with rows of the rehearsal file beside its own: a quarter of all tokens."""
    from backslide.cure.replay import Replay

    trainer = trainer_of(case, folder, seed)
    mixed = Replay(case.rehearsal(), SHARE, seed=seed, suite=_suite()).attach(trainer)
    stage.name = "training"
    trainer.train()
    trainer.model.save_pretrained(folder / "model")
    return {"settings": {**PLAIN, "ratio": SHARE}, "share": round(mixed.share, 4)}


def anchor(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """The plain run, with the KL to the base on rows of the rehearsal file added to its loss."""
    from backslide.cure.anchor import Anchor

    trainer = trainer_of(case, folder, seed)
    held = Anchor(case.rehearsal(), WEIGHT, seed=seed, max_length=LENGTH, suite=_suite()).attach(trainer)
    stage.name = "training"
    trainer.train()
    trainer.model.save_pretrained(folder / "model")
    rows = len(held.rows.rows) if held.rows is not None else 0
    return {"settings": {**PLAIN, "weight": WEIGHT, "rows beside a batch": 4}, "rows": rows}


def auto(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """The plain run under a guard that acts by itself; it has replay and anchor at hand, both off at the start.

    The base is measured anew: a baseline out of the cache would make every run but the first cheaper.
    """
    from backslide.cure.anchor import Anchor
    from backslide.cure.replay import Replay
    from backslide.guard.callback import Guard

    suite, rows = _suite(), case.rehearsal()
    old = Replay(rows, 0.0, seed=seed, suite=suite)
    held = Anchor(rows, 0.0, seed=seed, max_length=LENGTH, suite=suite)
    guard = Guard(
        suite, looks=LOOKS, on_regression="auto", replay=old.more, anchor=held.more, cache=False,
        run_dir=folder / "run",
    )  # fmt: skip
    trainer = trainer_of(case, folder, seed, guard)
    old.attach(trainer)
    held.attach(trainer)
    stage.name = "training under the guard"
    trainer.train()
    trainer.model.save_pretrained(folder / "model")
    assert guard.verdict is not None and guard.run is not None
    told = ("look", "action", "tried", "effect")
    return {
        "settings": {**PLAIN, "items": EACH, "looks": LOOKS},
        "its verdict": guard.verdict.zone.value,
        "looks": [{"step": look.step, "zone": look.zone.value} for look in guard.looks],
        "events": [event["says"] for event in guard.run.events() if event["event"] in told],
        "share": round(old.share, 4),
        "weight": held.weight,
    }


def _suite() -> Any:
    from backslide.suite.suite import Suite

    logging.basicConfig(level=logging.WARNING)
    return Suite.repertoire().sample(EACH)
