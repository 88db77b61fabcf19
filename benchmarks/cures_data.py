"""What the runs of the cures' table are trained on and asked."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from lm_eval_tasks import FILES

from backslide.suite.item import ChoiceItem
from backslide.suite.suite import Suite

BUILD = Path(__file__).parents[1] / "build" / "cures"
BATCH, LENGTH, EACH, DOCS, HELD_OUT = 4, 128, 44, 200, 32


def dialogues(data: Path) -> list[dict[str, Any]]:
    """The dialogues, the held-out ones last, whatever the seed."""
    lines = (data / "dialogues/taskmaster4.jsonl").read_text("utf-8").splitlines()
    return [{"messages": json.loads(line)["messages"]} for line in lines]


def benchmark(data: Path, name: str) -> Suite:
    """The first documents of a benchmark as a suite, but for those that have a choice twice."""
    lines = (data / "benchmarks" / f"{FILES[name]}.jsonl").read_text("utf-8").splitlines()[:DOCS]
    rows = [row for line in lines if len(set((row := json.loads(line))["choices"])) == len(row["choices"])]
    return Suite(name, tuple(
        ChoiceItem(id=f"{name}-{place}", capability=name, prompt=f"{row['query']}\nAnswer:",
                   choices=tuple(row["choices"]), gold=row["gold"])
        for place, row in enumerate(rows)
    ))  # fmt: skip


def original(data: Path) -> list[dict[str, str]]:
    """Texts such as the base was made of, none of which is asked: passages of books and of an encyclopedia."""
    books = [
        json.loads(line) for line in (data / "benchmarks" / f"{FILES['lambada']}.jsonl").read_text("utf-8").splitlines()
    ]
    return [{"text": f"{row['context']} {row['continuation']}"} for row in books]


@functools.cache
def suites(data: Path) -> dict[str, Suite]:
    """What every model is asked."""
    named = {name: benchmark(data, name) for name in ("arc_easy", "piqa")}
    return {"repertoire": Suite.repertoire().sample(EACH), **named}
