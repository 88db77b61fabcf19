"""Folders of repairs as they are left when they end, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backslide.cure.search import Keeping
from backslide.judge import judge
from backslide.report.line import Point, point_of
from backslide.rundir import RunFolder
from backslide.verdict import Level, Tolerance, Verdict, broken
from builders import flipped, record

FIELDS: dict[str, Any] = {"suite": "w", "suite_hash": "0123456789abcdef", "conditions": {"dtype": "float32"}}


def point(at: float, loss: float | None, lost: int, won: int, items: int = 600) -> Point:
    """A point at which so many of the items were lost and won."""
    old, new = flipped(items, lost, won)
    verdict = judge(record(old), record(new, part="monitor"))
    rule = Keeping.of(judge(record(old), record(old)), Tolerance(), Level())
    return point_of(at, loss, verdict, rule.kept(verdict))


def repair_folder(
    path: Path,
    *,
    points: tuple[Point, ...],
    chosen: float | None = None,
    gate: tuple[int, int, int] | None = None,
    reason: str = "",
    held_out: bool = True,
) -> RunFolder:
    """A repair that has ended.

    Args:
        path: where its records go.
        points: what was tried.
        chosen: the point that was, or was to be, shipped.
        gate: items of the gate half, and how many of them the chosen point lost and won; None: it was not opened.
        reason: why no point was chosen.
        held_out: whether there were held-out data.
    """
    run = RunFolder(path)
    run.begin(
        {
            "model": "tuned, repaired", "base": "base", "tuned": "tuned", "suite": "w", "suite_hash": "0123456789abcdef",
            "alpha": 0.05, "tolerance": 0.03, "tolerance_drift": 0.1, "questions": {},
            "repair": {"base": "a", "tuned": "b", "held_out": "c" if held_out else None},
        }
    )  # fmt: skip
    run.append([{"event": "point", **point.to_dict(), "says": "…"} for point in points])
    old, new = flipped(*gate) if gate is not None else flipped(100, 0, 0)
    record(old, **FIELDS).save(run.baseline)
    verdict: Verdict = broken(f"{reason}; nothing was shipped")
    if gate is not None:
        record(new, part="gate", **FIELDS).save(run.final)
        verdict = judge(record(old), record(new, part="gate"))
        if verdict.exit_code != 1:
            record(flipped(gate[0], gate[0] // 2, 0)[1], part="gate", **FIELDS).save(run.path / "tuned.jsonl")
    run.update(**({"chosen": chosen} if chosen is not None else {}))
    run.save_verdict(verdict)
    run.append([{"event": "end", "zone": verdict.zone, "says": "…"}])
    run.update(outcome="nothing" if verdict.exit_code == 1 else "repaired")
    return run
