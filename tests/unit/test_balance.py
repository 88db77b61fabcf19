"""What a repair gave back and kept, in numbers and in words, and the points that a folder's events tell of."""

from __future__ import annotations

import math
from typing import Any

import pytest

from backslide.report.line import Balance, Point, balance_of, describe, points_of, rows
from builders import choices, record


def balance(**fields: Any) -> Balance:
    default: dict[str, Any] = {
        "base": 0.6, "tuned": 0.4, "repaired": 0.55, "base_loss": 5.0, "tuned_loss": 3.0, "repaired_loss": 3.5,
        "best_loss": 3.0,
    }  # fmt: skip
    return Balance(**{**default, **fields})


def test_shares_are_of_what_was_lost_and_of_what_was_gained() -> None:
    found = balance()
    assert found.back == pytest.approx(0.75) and found.kept == found.of_best == pytest.approx(0.75)
    assert found.lines == (
        "75% of the lost accuracy is back: base 60.0%, tuned 40.0%, repaired 55.0%, on the gate half",
        "75% of the gain in target loss is kept: base 5.000, tuned 3.000, repaired 3.500, on held-out data",
    )


def test_a_tuned_model_that_gained_nothing_has_no_gain_to_keep() -> None:
    found = balance(tuned_loss=6.0, best_loss=3.25)
    assert found.kept is None and found.of_best == pytest.approx(1.5 / 1.75)
    assert (
        "had gained nothing on held-out data" in found.lines[1]
        and "86% of the most that the line has" in found.lines[1]
    )
    assert "tuned not finite" in balance(tuned_loss=None).lines[1]


def test_a_tuned_model_that_lost_nothing_has_nothing_to_give_back() -> None:
    found = balance(tuned=0.6)
    assert found.back is None and "had lost none" in found.lines[0]
    assert balance(tuned=None).back is None and "base 60.0%, repaired 55.0%" in balance(tuned=None).lines[0]
    assert "no item" in balance(base=None).lines[0]
    assert "not known" in balance(base_loss=None, tuned_loss=None, repaired_loss=None, best_loss=None).lines[1]
    assert "base not finite, tuned 3.000, repaired 3.500" in balance(base_loss=None).lines[1]


def test_of_what_was_not_shipped_no_more_is_said_than_is_known() -> None:
    none = balance(base=None, tuned=None, repaired=None, repaired_loss=None, best_loss=2.5, shipped=False, opened=False)
    assert none.lines == (
        "accuracy: nothing was shipped, and the gate half was not opened",
        "target loss on held-out data: base 5.000, tuned 3.000, lowest 2.500",
    )
    refused = balance(tuned=None, shipped=False)
    assert refused.lines == (
        "accuracy on the gate half: base 60.0%, chosen 55.0%, which was not shipped",
        "target loss on held-out data: base 5.000, tuned 3.000, lowest 3.000, chosen 3.500, which was not shipped",
    )
    # The gate half was asked, and holds texts alone.
    assert "no item of the gate half has a right answer" in balance(base=None, repaired=None, shipped=False).lines[0]
    unknown = dict.fromkeys(("base_loss", "tuned_loss", "repaired_loss", "best_loss"))
    assert balance(shipped=False, **unknown).lines[1] == "target: without held-out data its loss is not known"


def test_accuracies_are_of_the_items_that_the_repaired_model_was_asked() -> None:
    base = record(choices([True] * 8 + [False] * 2))
    tuned, repaired = (record(choices([True] * 10)[:4] + choices(right)[4:]) for right in ([False] * 10, [True] * 10))
    points = (Point(at=1.0, loss=2.0), Point(at=0.5, loss=1.5), Point(at=0.0, loss=3.0))
    found = balance_of(base, tuned, repaired, points, 0.5)
    assert (found.base, found.tuned, found.repaired) == (0.8, 0.4, 1.0) and found.back == pytest.approx(1.5)
    assert (found.base_loss, found.tuned_loss, found.repaired_loss, found.best_loss) == (3.0, 2.0, 1.5, 1.5)
    nothing = balance_of(base, None, None, points, None, shipped=False)
    assert nothing.repaired is None and not nothing.opened and not nothing.shipped and found.opened


def test_events_tell_the_points_from_the_tuned_end() -> None:
    looked = Point(at=0.5, loss=1.0, kept=False, drop=0.05, upper=0.09, lost=9, won=4, items=100, regressed=("math",))
    events = [
        {"event": "point", **Point(at=0.0, loss=2.0).to_dict(), "model": "f", "says": "…"},
        {"event": "point", **looked.to_dict()},
        # An interrupted repair that goes on notes a loss again.
        {"event": "point", **Point(at=0.5, loss=1.0).to_dict()},
        {"event": "gate", "at": 1.0},
        {"event": "point"},
        {"event": "point", **Point(at=1.0, loss=None).to_dict()},
    ]
    found = points_of(events)
    assert [point.at for point in found] == [1.0, 0.5, 0.0] and found[1] == looked
    assert [row[-1] for row in rows(found, 0.5)] == ["not asked", "a loss is proven, chosen", "the base"]
    assert describe(looked) == (
        "at 0.5 of the line: held-out loss 1.000, drop +5.0, lost 9 and won 4 of 100 items: a loss is proven"
    )
    assert "not finite" in describe(found[0])
    assert rows([Point(at=0.5, loss=1.0, kept=True, drop=math.inf, upper=None)], None)[0][2:4] == ("–", "–")
