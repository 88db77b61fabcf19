"""What the bundled suite was measured to be, on the small model that the benchmarks use. No torch."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backslide.suite.suite import REPERTOIRE, Suite

FILE = "measured.json"
"""Beside the suite's own files; written by `benchmarks/suites.py --save`."""


@dataclass(frozen=True)
class Measured:
    """One capability of a suite, on the model that `Measurement` names."""

    base: float
    """Share of right answers; bits per byte where the items are texts."""
    gate: float | None
    """Smallest drop, as a share, that one look at the gate half proves; None where nothing can be right or wrong."""
    monitor: float | None
    """The same for one of the looks of a guarded run."""


@dataclass(frozen=True)
class Measurement:
    """A suite as a model answered it."""

    conditions: Mapping[str, Any]
    """`model`, `dtype`, `alpha`, `power`, `looks` and the suite's `hash`."""
    capabilities: Mapping[str, Measured]


def bundled_measurement(suite: Suite) -> Measurement | None:
    """What is known of `suite`: None unless it is the bundled one as it was measured."""
    found = _read()
    return found if found is not None and found.conditions["hash"] == suite.hash else None


@functools.cache
def _read() -> Measurement | None:
    file = importlib.resources.files("backslide.suite") / REPERTOIRE / FILE
    if not file.is_file():
        return None
    row = json.loads(file.read_text(encoding="utf-8"))
    return Measurement(row["conditions"], {name: Measured(**found) for name, found in row["capabilities"].items()})
