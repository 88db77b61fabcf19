"""A repair's own account: what was asked, what came of it, what to do. It has no training to diagnose. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backslide.report.line import Balance, Point, describe
from backslide.verdict import Verdict, Zone

REPAIRED = "repaired"
NO_POINT = "no point keeps the abilities"
NOTHING_GAINED = "no point is better than the base"
NOT_BOTH = "no point that keeps the abilities is better than the base"
REFUSED = "refused by the gate half"

_AGAIN = (
    "train again so that less is forgotten: with original-domain data mixed in or an anchor (replay, anchor under "
    "[cure]), or at a lower learning rate."
)


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a repair came to, in words."""

    outcome: str
    """`REPAIRED`, or why nothing was shipped: `NO_POINT`, `NOTHING_GAINED`, `NOT_BOTH` or `REFUSED`."""
    story: tuple[str, ...]
    """What was asked and what came of it, a sentence each."""
    advice: tuple[str, ...]
    """What to do, the likeliest help first; empty where the abilities are proven to be kept."""

    def to_dict(self) -> dict[str, Any]:
        """The account as JSON can hold it."""
        return {"outcome": self.outcome, "story": list(self.story), "advice": list(self.advice)}


def account_of(config: Mapping[str, Any], verdict: Verdict, points: Sequence[Point], balance: Balance) -> Account:
    """Tell of a repair that has ended.

    Args:
        config: its `run.json`.
        verdict: on the gate half, or that no point may be taken.
        points: of the line, from the tuned end.
        balance: what it gave back and kept.
    """
    outcome = _outcome(config, points, balance)
    asked = [point for point in points if point.kept is not None]
    return Account(
        outcome=outcome,
        story=(_asked(config), _tried(asked), *_came(outcome, config, verdict, asked), *map(_sentence, balance.lines)),
        advice=_advice(outcome, config, verdict, asked),
    )


def _outcome(config: Mapping[str, Any], points: Sequence[Point], balance: Balance) -> str:
    if balance.shipped:
        return REPAIRED
    if config.get("chosen") is not None:
        return REFUSED
    # The search asks for the lowest loss first, and where that is the base's for nothing more.
    losses = {point.at: math.inf if point.loss is None else point.loss for point in points}
    if _held_out(config) and 0.0 in losses and min(losses.values()) == losses[0.0]:
        return NOTHING_GAINED
    return NOT_BOTH if any(point.kept for point in points) else NO_POINT


def _held_out(config: Mapping[str, Any]) -> bool:
    repair = config.get("repair")
    return isinstance(repair, dict) and repair.get("held_out") is not None


def _asked(config: Mapping[str, Any]) -> str:
    most = "lowest loss on the held-out data" if _held_out(config) else "most of the tuned model"
    return (
        f"Asked for was, of the line between {config.get('base')} and {config.get('tuned')}, the point with the {most} "
        f"that keeps the abilities: no capability proven regressed (α = {config['alpha']:g}), and a drop of all items "
        f"together of at most {config['tolerance'] * 100:g} points."
    )


def _tried(asked: Sequence[Point]) -> str:
    if not asked:
        return "No point was asked the monitor half."
    kept = sum(bool(point.kept) for point in asked)
    what = "1 point was" if len(asked) == 1 else f"{len(asked)} points were"
    return f"{what} asked the monitor half, and {kept or 'none'} kept the abilities."


def _came(outcome: str, config: Mapping[str, Any], verdict: Verdict, asked: Sequence[Point]) -> list[str]:
    if outcome == NO_POINT:
        return [f"The nearest to the base of them, {describe(asked[-1])}."] if asked else []
    if outcome in (NOTHING_GAINED, NOT_BOTH):
        return [_sentence(verdict.reasons[0])]
    at = config.get("chosen")
    if outcome == REFUSED:
        return [
            f"The monitor half chose α = {at:.5g}, and the sealed gate half proves a loss there: {verdict.reasons[0]}. "
            "Nothing was shipped."
        ]
    return [f"What was chosen is α = {at:.5g}; written, loaded again and asked the sealed gate half: {verdict.zone}."]


def _advice(outcome: str, config: Mapping[str, Any], verdict: Verdict, asked: Sequence[Point]) -> tuple[str, ...]:
    if outcome == REPAIRED:
        few = "add items to the undecided capabilities, or accept a larger tolerance."
        return (few,) if verdict.zone is Zone.UNDECIDED else ()
    if outcome == NOTHING_GAINED:
        return (
            "see whether the held-out data are of the task that was trained for.",
            "train again, on more and more varied examples, in fewer passes, or at a lower learning rate.",
        )
    larger = (
        f"accept a larger tolerance (--tolerance, with another --out; {config['tolerance'] * 100:g} points were asked "
        "for), where the use of the model allows for it"
    )
    if outcome == REFUSED:
        return (
            "give it more items: the monitor half took for kept what the gate half proves lost.",
            f"{larger}; a further opening of the same gate half certifies less.",
            _AGAIN,
        )
    # What fails for want of a proof may keep the abilities.
    unproven = [point.at for point in asked if point.kept is False and not point.regressed]
    more = (
        f"give it more items: at α = {at:.5g} no loss is proven, but neither that it is within tolerance."
        for at in unproven[-1:]
    )
    return (f"{larger}.", *more, _AGAIN)


def _sentence(line: str) -> str:
    return f"{line[:1].upper()}{line[1:]}."
