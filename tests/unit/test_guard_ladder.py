"""The order in which `auto` brings cures in, and what it acts on."""

from __future__ import annotations

import dataclasses
from typing import Any

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


def row(step: int, **losses: float | None) -> dict[str, Any]:
    return {"event": "loss", "step": step, **losses}


def cured(cures: list[str], step: int, drop: float, losses: list[dict[str, Any]], **more: Any) -> Cured:
    found = Cured()
    found.looked(step, undecided(drop))
    found.by(cures, step, len(losses), **more)
    return found


def test_the_effect_of_a_cure_is_what_the_next_look_and_loss_see() -> None:
    before = [row(4, loss=2.0), row(4, eval_loss=1.5)]
    found = cured(["lower_lr"], 4, 0.1, before)
    assert found.effects(before, 5) == [], "no look yet"
    found.looked(6, undecided(0.05))
    later = [*before, row(6, loss=0.5)]
    assert found.effects(later, 6) == [], "the held-out loss of the same weights is still to come"
    (event,) = found.effects([*later, row(6, eval_loss=1.25)], 6)
    assert (event["step"], event["of"], event["drop_before"], event["drop_after"]) == (6, 4, 0.1, 0.05)
    assert (event["loss_of"], event["loss_before"], event["loss_after"]) == ("eval_loss", 1.5, 1.25)
    assert event["says"] == (
        "lower_lr after step 4: the drop went from 10.0% to 5.0%, the held-out loss on the new task from 1.500 to 1.250"
    )
    assert found.effects(later, 7) == found.end(later, 7, None) == [], "each once"


def test_a_training_loss_is_logged_after_the_look_of_its_step() -> None:
    losses = [row(2, loss=3.0)]
    found = cured(["lower_lr"], 4, 0.1, losses)
    # It is of the weights before the cure, though it is logged after it.
    losses.append(row(4, loss=2.0))
    found.looked(6, undecided(0.05))
    assert found.effects(losses, 6) == []
    (event,) = found.effects([*losses, row(6, loss=1.0)], 6)
    assert (event["loss_of"], event["loss_before"], event["loss_after"]) == ("loss", 2.0, 1.0)
    assert event["loss_steps"] == [4, 6] and "the training loss on the new task from 2.000 to 1.000" in event["says"]


def test_a_loss_of_another_step_is_told_with_its_step() -> None:
    losses = [row(3, loss=2.0), row(5, loss=1.0)]
    found = cured(["lower_lr"], 4, 0.1, losses[:1])
    found.looked(6, undecided(0.05))
    assert found.effects(losses, 6) == [], "that of the look's own step may come"
    (event,) = found.effects(losses, 7)
    assert event["loss_steps"] == [3, 5] and "from 2.000 (step 3) to 1.000 (step 5)" in event["says"]
    # None between cure and look, but one after it.
    found = cured(["lower_lr"], 4, 0.1, losses[:1])
    found.looked(6, undecided(0.05))
    (event,) = found.effects([losses[0], row(8, loss=0.5)], 8)
    assert event["loss_steps"] == [3, 8]


def test_a_held_out_loss_of_weights_that_were_gone_back_to_is_none_of_the_cure_before() -> None:
    losses = [row(4, loss=2.0)]
    found = cured(["rollback"], 4, 0.1, losses)
    # A trainer evaluates after the guard has acted.
    losses.append(row(4, eval_loss=9.0))
    found.looked(6, undecided(0.2))
    assert found.effects(losses, 6) == [] and found.taken_back(losses, 6) == []
    found.by(["rollback", "replay"], 6, len(losses))
    (event,) = found.effects([*losses, row(6, loss=1.0)], 6)
    assert (event["of"], event["loss_of"], event["loss_before"], event["loss_after"]) == (4, "loss", 2.0, 1.0)
    losses += [row(6, loss=1.0), row(6, eval_loss=8.0), row(8, loss=0.5), row(8, eval_loss=7.0)]
    found.looked(8, undecided(0.0))
    (event,) = found.effects(losses, 8)
    assert (event["of"], event["loss_before"], event["loss_after"], event["loss_steps"]) == (6, 9.0, 7.0, [4, 8])
    assert event["drop_before"] == 0.2 and "from 9.000 (step 4) to 7.000" in event["says"]


def test_held_out_losses_that_are_rare_give_way_to_the_training_loss() -> None:
    losses = [row(0, eval_loss=9.0), row(4, loss=2.0)]
    found = cured(["lower_lr"], 4, 0.1, losses)
    found.looked(6, undecided(0.05))
    losses.append(row(6, loss=1.0))
    assert found.effects(losses, 6) == []
    (event,) = found.effects([*losses, row(7, loss=0.5)], 7)
    assert (event["loss_of"], event["loss_before"], event["loss_after"]) == ("loss", 2.0, 1.0)


def test_unknown_is_only_what_was_never_logged() -> None:
    def says(*losses: dict[str, Any], known: int = 0) -> str:
        found = cured(["lower_lr"], 4, 0.1, list(losses[:known]))
        found.looked(6, undecided(0.05))
        (event,) = found.end(list(losses), 6, None)
        return str(event["says"]).split(", ", 1)[1]

    assert says() == "the loss on the new task is unknown, since none was logged"
    assert says(row(4, loss=None), row(6, loss=None)) == "the loss on the new task is unknown, since none was logged"
    assert says(row(4, eval_loss=1.5), known=1) == (
        "the held-out loss on the new task was 1.500, and none that is a number was logged since"
    )
    assert says(row(5, loss=1.5)) == "the training loss on the new task is 1.500 (step 5), and none was logged before"


def test_at_the_end_an_action_without_a_look_after_it_says_what_is_known() -> None:
    losses = [row(4, loss=2.0)]
    (event,) = cured(["rescale"], 4, 0.3, losses, tried=0.0).end(losses, 4, undecided(0.2))
    assert (event["step"], event["of"], event["steps"], event["drop_after"], event["loss_after"]) == (
        4,
        4,
        0,
        0.0,
        None,
    )
    assert event["says"] == (
        "rescale after step 4, with no step after it: the drop went from 30.0% to 0.0%, measured of the weights that "
        "were gone back to, the training loss on the new task was 2.000, and was not measured of them"
    )
    (event,) = cured(["rollback"], 4, 0.3, losses).end([*losses, row(4, eval_loss=2.5)], 4, undecided(0.05))
    assert (event["drop_after"], event["loss_of"], event["loss_after"]) == (0.05, "eval_loss", 2.5)
    assert "the held-out loss on the new task is 2.500, and none was logged before" in event["says"]
    (event,) = cured(["rollback"], 4, 0.3, losses).end(losses, 4, None)
    assert "the drop was 30.0%, and the weights that were gone back to were not measured" in event["says"]
    (event,) = cured(["rescale"], 4, 0.3, losses, tried=0.0).end([*losses, row(5, loss=1.0)], 5, undecided(0.1))
    assert (event["steps"], event["drop_after"], event["loss_after"]) == (1, 0.1, 1.0), "steps were made since"


def test_a_cure_that_never_had_a_look_says_so_when_the_weights_are_taken_back() -> None:
    losses = [row(4, loss=2.0)]
    found = cured(["rollback"], 4, 0.3, losses)
    (event,) = found.taken_back([*losses, row(5, loss=None)], 5)
    assert (event["of"], event["step"], event["drop_after"], event["loss_after"]) == (4, 5, None, None)
    assert "the drop was 30.0%, and was not measured since" in event["says"] and found.pending == []


def test_what_is_pending_is_found_again_in_the_events() -> None:
    look = {"event": "look", "step": 4, "verdict": undecided(0.1).to_dict()}
    acts = {"event": "action", "step": 4, "mends": True, "share": 0.5, "cures": ["rescale"]}
    line = [
        row(2, loss=3.0), look, {"event": "tried", "step": 4, "share": 0.75, "drop": 0.2},
        {"event": "tried", "step": 4, "share": 0.5, "drop": 0.025}, acts, row(4, loss=2.0),
    ]  # fmt: skip
    live = Cured()
    live.looked(4, undecided(0.1))
    live.by(["rescale"], 4, 1, tried=0.025)
    assert Cured.of(line) == live
    again = [*line, look | {"step": 6}, acts | {"step": 6, "share": 0}]
    live.looked(6, undecided(0.1))
    live.taken_back([row(2), row(4)], 6)
    live.by(["rescale"], 6, 2)
    assert Cured.of(again) == live and [cure.until for cure in live.pending] == [2, None]
    assert [cure.step for cure in Cured.of([*again, {"event": "effect", "step": 6, "of": 4}]).pending] == [6]
