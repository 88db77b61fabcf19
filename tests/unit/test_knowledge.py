"""Knowledge or format: which items count, and what their share says."""

from __future__ import annotations

import dataclasses
import math

import pytest
from scipy.stats import binom

from backslide.diagnosis import Knowledge, compare
from backslide.diagnosis.knowledge import exact_interval
from backslide.judge import judge
from backslide.record import Outcome, Record
from backslide.verdict import Zone
from builders import choices, record

KNOWS, FORGOT = (-1.0, -5.0, -6.0, -7.0), (-5.0, -1.0, -6.0, -7.0)


def answer(id: str, correct: bool, scores: tuple[float | None, ...] = KNOWS) -> Outcome:
    return Outcome(
        id=id, kind="answer", capability="short", request="r", correct=correct, reply="x", scores=scores
    )  # fmt: skip


def pairs(known: int, gone: int) -> tuple[Record, Record]:
    """Items that were known and given before, and are given no more; `known` of them are preferred still."""
    ids = [str(i) for i in range(known + gone)]
    old = [answer(id, True) for id in ids]
    new = [answer(id, False, KNOWS if place < known else FORGOT) for place, id in enumerate(ids)]
    return record(old), record(new)


@pytest.mark.parametrize(
    ("known", "gone", "kind"),
    [
        (20, 0, "format"), (18, 2, "format"), (0, 20, "knowledge"), (3, 17, "knowledge"), (30, 30, "both"),
        (3, 2, "unclear"), (1, 0, "unclear"), (6, 0, "format"), (5, 0, "unclear"), (5, 5, "unclear"),
    ],
)  # fmt: skip
def test_kinds(known: int, gone: int, kind: str) -> None:
    found = compare(*pairs(known, gone))
    assert found is not None and found.kind == kind
    assert (found.lost, found.counted, found.known, found.chance) == (known + gone, known + gone, known, 0.25)
    assert found.to_dict()["kind"] == kind


def test_only_lost_items_that_were_preferred_before_count() -> None:
    old = [
        answer("lost", True), answer("kept", True), answer("never", False), answer("guessed", True, FORGOT),
        answer("tied", True, (-1.0, -1.0)), answer("unprobed", True, ()), answer("not finite", True),
        answer("alone", True, (-1.0,)), answer("fewer", True),
    ]  # fmt: skip
    new = [
        answer("lost", False), answer("kept", True, FORGOT), answer("never", False), answer("guessed", False),
        answer("tied", False, (-1.0, -2.0)), answer("unprobed", False), answer("not finite", False, (None, -1.0, -2.0, -3.0)),
        answer("alone", False, (-1.0,)), answer("fewer", False, (-1.0, -2.0)),
    ]  # fmt: skip
    found = compare(record(old, choices([True] * 5)), record(new, choices([False] * 5)))
    assert found is not None
    assert (found.lost, found.counted, found.known) == (3, 1, 1), "lost, guessed and tied; of these only lost counts"


def test_nothing_lost_or_nothing_scored_is_no_evidence() -> None:
    old, new = pairs(3, 2)
    assert compare(old, old) is None
    bare = [dataclasses.replace(o, scores=()) for o in old.outcomes]
    assert compare(record(bare), new) is None, "a record of an earlier version has no scores"
    assert compare(old) is None and compare(old, record([answer("other", False)])) is None
    guessed = compare(record([answer("a", True, FORGOT)]), record([answer("a", False)]))
    assert guessed is not None and (guessed.counted, guessed.low, guessed.high, guessed.kind) == (
        0,
        0.0,
        1.0,
        "unclear",
    )


def test_both_halves_count_together() -> None:
    old, new = pairs(4, 4)
    halves = [record(new.outcomes[:4]), record(new.outcomes[4:])]
    assert compare(old, *halves) == compare(old, new)


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (0, 10), (3, 10), (10, 10), (17, 40)])
def test_the_interval_inverts_the_exact_tests(hits: int, trials: int) -> None:
    low, high = exact_interval(hits, trials)
    assert low == 0 if hits == 0 else binom.sf(hits - 1, trials, low) == pytest.approx(0.025)
    assert high == 1 if hits == trials else binom.cdf(hits, trials, high) == pytest.approx(0.025)
    assert low <= hits / trials <= high


def test_the_interval_covers_at_every_share() -> None:
    for trials in (1, 4, 15):
        ends = [exact_interval(hits, trials) for hits in range(trials + 1)]
        for share in [k / 200 for k in range(201)]:
            inside = [hits for hits, (low, high) in enumerate(ends) if low <= share <= high]
            assert sum(binom.pmf(hits, trials, share) for hits in inside) >= 0.95 - 1e-9


def test_no_trials_say_nothing_and_nonsense_is_refused() -> None:
    assert exact_interval(0, 0) == (0.0, 1.0)
    for hits, trials in ((2, 1), (-1, 3)):
        with pytest.raises(ValueError, match="are needed"):
            exact_interval(hits, trials)


def test_evidence_is_plain_numbers() -> None:
    row = Knowledge(5, 4, 3, 0.1, 0.9, 0.25).to_dict()
    assert row == {"lost": 5, "counted": 4, "known": 3, "low": 0.1, "high": 0.9, "chance": 0.25, "kind": "unclear"}


def test_an_answer_with_a_score_that_is_not_finite_fails_its_capability() -> None:
    old = [answer(str(i), True) for i in range(60)]
    new = [answer(str(i), True, (None, -1.0, -1.0, -1.0) if i == 3 else KNOWS) for i in range(60)]
    verdict = judge(record(old), record(new))
    assert verdict.zone is Zone.REGRESSED and "not finite, such as '3'" in verdict.reasons[0]
    assert record(new).not_finite == ("3",) and record(old).not_finite == ()


def test_scores_of_answers_change_no_verdict() -> None:
    old, new = pairs(10, 10)
    bare = [record([dataclasses.replace(o, scores=()) for o in r.outcomes]) for r in (old, new)]
    assert judge(old, new) == judge(*bare) == judge(bare[0], new)


def test_records_with_and_without_scores_are_read_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    old, _ = pairs(2, 2)
    mixed = record([*old.outcomes, answer("bare", True, ()), answer("broken", True, (None, -1.0))])
    mixed.save(tmp_path / "r.jsonl")
    back = Record.load(tmp_path / "r.jsonl")
    assert back == mixed and back.not_finite == ("broken",) and math.isclose(back.by_id["0"].scores[0] or 0, -1.0)
