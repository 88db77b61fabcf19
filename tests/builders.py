"""Small records and suites for tests that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backslide.record import Header, Outcome, Record


def header(**fields: Any) -> Header:
    default: dict[str, Any] = {
        "suite": "s",
        "suite_hash": "h",
        "part": "all",
        "model": "m",
        "model_fingerprint": "f",
        "tokenizer_fingerprint": "t",
        "conditions": {"dtype": "float32"},
    }
    return Header(**{**default, **fields})


def choices(correct: Sequence[bool], capability: str = "math", *, broken: Sequence[int] = ()) -> list[Outcome]:
    return [
        Outcome(
            id=f"{capability}/{place}",
            kind="choice",
            capability=capability,
            request=f"r{place}",
            correct=right and place not in broken,
            p=None if place in broken else (0.9 if right else 0.1),
            scores=(None, -1.0) if place in broken else (-1.0, -2.0),
            greedy=(True, False),
        )
        for place, right in enumerate(correct)
    ]


def record(*groups: Sequence[Outcome], **fields: Any) -> Record:
    return Record(header(**fields), tuple(outcome for group in groups for outcome in group))
