"""The verdict as a whole: what `judge` says of records whose truth is known, with both measures at once."""

from __future__ import annotations

import numpy as np
import pytest
from simulate import Report, broken

from backslide.judge import judge
from backslide.record import Header, Outcome, Record
from backslide.verdict import Level, Zone

ALPHA, TOLERANCE, LOOKS = 0.05, 0.03, 5


def record(correct: np.ndarray, p: np.ndarray, capability: str = "c") -> list[Outcome]:
    return [
        Outcome(id=f"{capability}/{i}", kind="choice", capability=capability, request="r", correct=bool(c), p=float(q))
        for i, (c, q) in enumerate(zip(correct, p, strict=True))
    ]


def records(*groups: list[Outcome]) -> Record:
    header = Header(
        suite="s",
        suite_hash="h",
        part="all",
        model="m",
        model_fingerprint="f",
        tokenizer_fingerprint="t",
        conditions={},
    )
    return Record(header, tuple(outcome for group in groups for outcome in group))


def judged(report: Report, claim: str, setting: str, hits: int, runs: int) -> None:
    bad = broken(hits, runs, ALPHA)
    report(claim, setting, ALPHA, hits / runs, runs, "broken" if bad else "holds")
    assert not bad


@pytest.mark.parametrize("items", [200, 500])
@pytest.mark.parametrize("drop", [0.03, 0.06])
def test_false_retained_where_probabilities_hardly_move(items: int, drop: float, report: Report) -> None:
    """Items near a tie: answers are lost, by the tolerance or twice that, while the mean probability stays."""
    rng, runs, hits = np.random.default_rng([items, round(1000 * drop)]), 300, 0
    for _ in range(runs):
        before = 0.27 + 0.02 * rng.standard_normal(items)
        right = rng.random(items) < 0.5
        flips = 0.12
        lost = right & (rng.random(items) < (flips + drop))
        won = ~right & (rng.random(items) < (flips - drop))
        after = before + 0.01 * rng.standard_normal(items)
        old, new = record(right, before), record((right & ~lost) | won, after)
        hits += judge(records(old), records(new)).zone is Zone.RETAINED
    setting = f"{items} items near a tie, accuracy drops {100 * drop:g} points, probability 0"
    judged(report, "false retained, the verdict", setting, hits, runs)


def test_family_wise_false_alarms_of_the_verdict(report: Report) -> None:
    """Accuracy and probability of three capabilities and all items together, over five looks at the same items."""
    items, runs, hits = 100, 250, 0
    rng = np.random.default_rng(1)
    for _ in range(runs):
        base = [rng.standard_normal(items) for _ in range(3)]
        state = [np.zeros(items) for _ in range(3)]
        alarmed = False
        for _ in range(LOOKS):
            state = [0.9 * z + np.sqrt(1 - 0.81) * rng.standard_normal(items) for z in state]
            groups = []
            for name, logit, z in zip("abc", base, state, strict=True):
                # The sign of a change is as likely up as down for every item, whatever it was before.
                before, after = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-(logit + z)))
                swap = rng.random(items) < 0.5
                one, other = np.where(swap, after, before), np.where(swap, before, after)
                groups.append((record(one > 0.5, one, name), record(other > 0.5, other, name)))
            old, new = records(*(g[0] for g in groups)), records(*(g[1] for g in groups))
            alarmed |= judge(old, new, level=Level(fail=ALPHA / LOOKS)).zone is Zone.REGRESSED
        hits += alarmed
    judged(
        report, "family-wise false alarms, the verdict", f"3 x {items} items, {LOOKS} looks, both measures", hits, runs
    )
