"""The interval of the cures' table covers, whatever the seeds have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulate import broken, detection

results = pytest.importorskip("cures_results", reason="the benchmarks are not in this copy", exc_type=ImportError)

RUNS, ITEMS, SEEDS = 400, 150, 3
LOSE, WIN = 0.2, 0.1
"""Chances of an item to be lost and won: the mean drop is 10 points."""


def flips(rng: np.random.Generator, alike: float) -> np.ndarray:
    """Drops of shape (SEEDS, ITEMS) in {-1, 0, 1}; with chance `alike` an item does in a seed what all seeds share."""
    common, own = rng.random(ITEMS), rng.random((SEEDS, ITEMS))
    u = np.where(rng.random((SEEDS, ITEMS)) < alike, common, own)
    return (u < LOSE).astype(int) - (u > 1 - WIN)


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_misses_of_the_accuracy_s_interval(alike: float, report: Any) -> None:
    assert detection(RUNS, rate=0.11) > 0.9, "enough runs to notice"
    rng = np.random.default_rng(int(10 * alike))
    misses, width = 0, 0.0
    for _ in range(RUNS):
        drops = flips(rng, alike)
        rows = [
            {"retention": {"x": {
                "items": ITEMS, "before": 0.6, "after": 0.6 - d.mean(), "lost": int((d > 0).sum()),
                "won": int((d < 0).sum()),
            }}}
            for d in drops
        ]  # fmt: skip
        got = results.kept(rows, "x")
        misses += not got.low <= 0.6 - (LOSE - WIN) <= got.high
        width += (got.high - got.low) / RUNS
    setting = f"{SEEDS} seeds of {ITEMS} items, {alike:.0%} of the flips in common, mean width {100 * width:.0f} points"
    ok = not broken(misses, RUNS, 1 - results.LEVEL)
    report("misses, accuracy in the cures' table", setting, 1 - results.LEVEL, misses / RUNS, RUNS,
           "holds" if ok else "broken")  # fmt: skip
    assert ok
