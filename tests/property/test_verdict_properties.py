"""What must hold of every verdict, whatever the records."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from backslide.record import Outcome, Record
from backslide.verdict import CapabilityVerdict, Level, Tolerance, Verdict, Zone, judge
from builders import choices, opened, record, texts

Pair = tuple[Record, Record]
LEVELS = st.builds(Level, fail=st.sampled_from([0.0125, 0.05, 0.3]), passing=st.sampled_from([0.05, 0.3]))
TOLERANCES = st.builds(Tolerance, accuracy=st.sampled_from([0.0, 0.03, 0.2]))
FEW = settings(deadline=None, max_examples=30)
# Log-likelihoods of a text of a hundred bytes, from certain to hopeless.
SCORES = st.floats(-1000, 0, allow_subnormal=False).map(lambda score: round(score, 6))


@st.composite
def pairs(draw: st.DrawFn, *, broken: bool = True) -> Pair:
    old: list[Outcome] = []
    new: list[Outcome] = []
    for number in range(draw(st.integers(0, 3))):
        n = draw(st.integers(1, 30))
        before = draw(st.lists(st.booleans(), min_size=n, max_size=n))
        kept, back = draw(st.floats(0, 1)), draw(st.floats(0, 1))
        rng = draw(st.randoms(use_true_random=False))
        after = [rng.random() < (kept if right else back) for right in before]
        bad = st.lists(st.integers(0, n - 1), max_size=2) if broken and draw(st.booleans()) else st.just([])
        old += choices(before, f"c{number}", broken=draw(bad))
        new += choices(after, f"c{number}", broken=draw(bad))
    scores = st.lists(
        st.tuples(SCORES, SCORES) | st.tuples(st.none(), st.none()) if broken else st.tuples(SCORES, SCORES)
    )
    both = draw(scores)
    old += texts([a for a, _ in both])
    new += texts([b for _, b in both])
    old += opened({"o": "before"})
    new += opened({"o": "after"})
    return record(old), record(new, part="gate", step=draw(st.none() | st.integers(0, 99)))


def rows_of(verdict: Verdict) -> list[CapabilityVerdict]:
    pooled = [verdict.pooled] if verdict.pooled is not None else []
    return [*verdict.capabilities, *pooled]


def members(records: Pair, row: CapabilityVerdict) -> list[tuple[Outcome, Outcome]]:
    both = [(records[0].by_id[new.id], new) for new in records[1].outcomes if new.kind != "open"]
    if row.capability == "all items":
        return [(old, new) for old, new in both if new.correct is not None]
    return [(old, new) for old, new in both if new.capability == row.capability]


@FEW
@given(pairs(), TOLERANCES, LEVELS)
def test_each_row_is_what_its_definition_says(records: Pair, tolerance: Tolerance, level: Level) -> None:
    verdict = judge(*records, tolerance=tolerance, level=level)
    for row in rows_of(verdict):
        both = members(records, row)
        assert row.items == len(both)
        now = [new.id for old, new in both if None in new.scores and None not in old.scores]
        always = [new.id for old, new in both if None in old.scores]
        if now:
            assert row.zone is Zone.REGRESSED and "not finite" in row.reason and repr(min(now)) in row.reason
            continue
        if always:
            assert row.zone is not Zone.RETAINED
        if row.unit == "accuracy":
            row_is_mcnemar(row, both, always=bool(always))
        elif row.lower is not None and row.upper is not None and row.drop is not None:
            assert row.lower <= row.drop <= row.upper
            kept = row.upper <= row.tolerance and not always
            assert (row.zone is Zone.RETAINED) == kept
            assert (row.zone is Zone.REGRESSED) == (row.lower > 0 and row.upper > row.tolerance)
        else:
            assert row.zone is Zone.UNDECIDED
        assert row.items_to_decide is None or row.items_to_decide > row.items


def row_is_mcnemar(row: CapabilityVerdict, both: list[tuple[Outcome, Outcome]], *, always: bool) -> None:
    lost = sum(bool(old.correct) and not new.correct for old, new in both)
    won = sum(bool(new.correct) and not old.correct for old, new in both)
    p = binomtest(lost, lost + won, alternative="greater").pvalue if lost + won else 1.0
    assert (row.lost, row.won, row.exact) == (lost, won, True)
    assert row.drop == pytest.approx((lost - won) / len(both), abs=1e-12) and row.p_value == pytest.approx(p)
    assert row.lower is not None and row.upper is not None
    assert row.lower - 1e-12 <= row.drop <= row.upper + 1e-12
    kept = row.upper <= row.tolerance
    assert (row.zone is Zone.RETAINED) == (kept and not always)
    assert (row.zone is Zone.REGRESSED) == (p <= row.alpha_fail and not kept)


@FEW
@given(pairs(), LEVELS)
def test_the_overall_zone_and_the_levels(records: Pair, level: Level) -> None:
    verdict = judge(*records, level=level)
    rows = rows_of(verdict)
    assert sum(row.alpha_fail for row in rows) == pytest.approx(level.fail if rows else 0)
    assert {row.alpha_pass for row in rows} <= {level.passing}
    hard = [row for row in verdict.capabilities if row.unit == "accuracy"]
    assert (verdict.pooled is not None) == (len(hard) > 1)
    zones = [row.zone for row in verdict.capabilities]
    if Zone.REGRESSED in [row.zone for row in rows]:
        assert verdict.zone is Zone.REGRESSED
        assert len(verdict.reasons) == [row.zone for row in rows].count(Zone.REGRESSED)
    elif zones and set(zones) == {Zone.RETAINED}:
        assert verdict.zone is Zone.RETAINED
    else:
        assert verdict.zone is Zone.UNDECIDED
    assert verdict.reasons and f"{level.fail:.3g}" in verdict.claim and f"{level.passing:.3g}" in verdict.claim


@FEW
@given(pairs(), st.randoms(use_true_random=False))
def test_the_order_of_items_never_changes_a_verdict(records: Pair, rng: random.Random) -> None:
    mixed = [Record(r.header, tuple(rng.sample(r.outcomes, len(r.outcomes)))) for r in records]
    one, other = judge(*records), judge(*mixed)
    # The rows come in the suite's order; each is the same to the last digit.
    assert {row.capability: row for row in one.capabilities} == {row.capability: row for row in other.capabilities}
    assert (one.zone, one.pooled, one.claim) == (other.zone, other.pooled, other.claim)
    assert set(one.reasons) == set(other.reasons)


@FEW
@given(pairs())
def test_a_verdict_survives_json(records: Pair) -> None:
    verdict = judge(*records)
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False))) == verdict


@FEW
@given(pairs(), LEVELS)
def test_a_model_against_itself_has_no_flip_and_never_fails(records: Pair, level: Level) -> None:
    base = records[0]
    verdict = judge(base, base, level=level)
    assert verdict.zone is not Zone.REGRESSED
    for row in rows_of(verdict):
        assert not row.lost and not row.won and not row.drop
    if base.not_finite:
        assert verdict.zone is Zone.UNDECIDED


@FEW
@given(pairs(broken=False), st.data())
def test_one_score_that_is_not_finite_fails_the_candidate(records: Pair, data: st.DataObject) -> None:
    old, new = records
    places = [i for i, outcome in enumerate(new.outcomes) if outcome.scores]
    if not places:
        return
    place = data.draw(st.sampled_from(places))
    bad: dict[str, Any] = {"scores": (None,) * len(new.outcomes[place].scores)}
    outcomes = list(new.outcomes)
    outcomes[place] = dataclasses.replace(outcomes[place], **bad)
    verdict = judge(old, Record(new.header, tuple(outcomes)))
    assert verdict.zone is Zone.REGRESSED
    assert any(f"not finite, such as {outcomes[place].id!r}" in reason for reason in verdict.reasons)
