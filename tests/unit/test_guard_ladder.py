"""The order in which `auto` brings cures in, and what it acts on."""

from __future__ import annotations

import dataclasses

from backslide.guard.cured import Cured
from backslide.guard.policy import CUTS, SHARES, cut, decide, is_kept, rungs
from backslide.judge import judge
from backslide.verdict import Verdict, Zone
from builders import flipped, record


def undecided(drop: float) -> Verdict:
    old, new = flipped(40, lost=round(40 * drop), won=0)
    found = judge(record(old), record(new))
    return dataclasses.replace(found, zone=Zone.UNDECIDED)


def test_cures_come_in_one_after_the_other() -> None:
    assert [rungs(times, ("anchor", "replay")) for times in (1, 2, 3, 4)] == [
        (), ("replay",), ("replay", "anchor"), ("replay", "anchor"),
    ]  # fmt: skip
    assert rungs(3, ()) == () and rungs(2, ("anchor",)) == ("anchor",)


def test_the_rate_is_cut_by_how_far_the_weights_may_go() -> None:
    assert cut(1 / 3, 0.75, 10, 10) == 1 / 3, "never by less than the guard's factor"
    assert cut(1 / 3, 0.25, 10, 10) == 0.25
    assert cut(1 / 3, 0.25, 10, 40) == 0.125, "four times the steps go twice as far"
    assert cut(1 / 3, 0, 10, 10) == SHARES[-1] / 2, "of no point that was kept: nearer than any that was tried"
    assert cut(1 / 3, 0, 1, 10**6) == (1 / 3) ** CUTS, "at most as three cuts at once"
    assert cut(1 / 3, 0.5, 10, None) == cut(1 / 3, 0.5, 10, 0) == 1 / 3, "nothing is known of steps to come"
    assert cut(1e-3, 0, 1, 100) == 1e-3


def test_at_the_end_auto_acts_on_what_is_not_good_enough_too() -> None:
    small, large = undecided(0.0), undecided(0.1)
    assert is_kept(small) and not is_kept(large)
    assert decide("auto", large) is None and decide("auto", small, end=True) is None
    action = decide("auto", large, end=True)
    assert action is not None and action.kind == "auto"
    assert decide("rollback", large, end=True) is None


def test_the_effect_of_a_cure_is_what_the_next_look_and_loss_see() -> None:
    cured = Cured()
    cured.looked(2, undecided(0.2))
    assert cured.effect([]) == []
    before = [{"step": 4, "loss": 2.0}, {"step": 4, "eval_loss": 1.5}]
    cured.by(["lower_lr"], 4, undecided(0.1), before)
    assert cured.effect(before) == [], "no look yet"
    cured.looked(6, undecided(0.05))
    later = [*before, {"step": 6, "loss": 0.5}]
    assert cured.effect(later) == [], "the held-out loss of the same weights is still to come"
    (event,) = cured.effect([*later, {"step": 6, "eval_loss": 1.25}])
    assert (event["step"], event["of"], event["drop_before"], event["drop_after"]) == (6, 4, 0.1, 0.05)
    assert (event["loss_before"], event["loss_after"]) == (1.5, 1.25)
    assert "10.0% to 5.0%" in event["says"] and "1.500 to 1.250" in event["says"]
    assert cured.effect(later, last=True) == []


def test_where_the_weights_are_changed_first_the_loss_is_that_of_before_or_unknown() -> None:
    cured, before = Cured(), [{"step": 4, "eval_loss": 1.5}]
    cured.by(["lower_lr"], 4, undecided(0.1), before)
    cured.looked(6, undecided(0.05))
    (event,) = cured.effect(before, last=True)
    assert event["loss_before"] == 1.5 and event["loss_after"] is None and "to unknown" in event["says"]
