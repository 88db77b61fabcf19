"""What the guard says: a line on the console, and the sentence of an event, so that the events read as a story."""

from __future__ import annotations

from typing import Any

from backslide.record import Record
from backslide.verdict import Verdict, Zone, main_row


def seen(verdict: Verdict) -> str:
    """What a look saw, in a few words: all items together."""
    row = main_row(verdict)
    if row is None or row.baseline is None or row.candidate is None:
        return "nothing that could be compared"
    if row.unit == "accuracy":
        return f"accuracy {row.baseline:.1%} → {row.candidate:.1%}, {row.lost} lost, {row.won} won"
    unit = "the base's own replies, nats a token:" if row.unit == "drift" else row.unit
    kl = "" if row.kl is None else f", KL to the base at least {row.kl:.3f}"
    return f"{unit} {row.baseline:.3f} → {row.candidate:.3f}{kl}"


def brief(verdict: Verdict) -> str:
    """A verdict in a few words: why, where something was lost, else what was seen."""
    if verdict.zone is Zone.REGRESSED or main_row(verdict) is None:
        return str(verdict)
    return f"{verdict.zone}, {seen(verdict)}"


def of_baseline(record: Record, how: str) -> str:
    """How the baseline was come by."""
    right = [outcome.correct for outcome in record.outcomes if outcome.correct is not None]
    share = f"{sum(right) / len(right):.1%} of {len(right)} items right" if right else f"{len(record.outcomes)} items"
    took = record.header.cost.get("seconds")
    return {
        "measured": f"measured the base model before training: {share}" + (f", in {took:.1f} s" if took else ""),
        "cached": f"an earlier run has measured this very base model: {share}",
        "given": f"took the baseline that was given: {share}",
    }[how]


def of_plan(looks: tuple[int, ...], steps: int | None, budget: float | None) -> str:
    """When will be looked."""
    cost = "each at the whole monitor half" if budget is None else f"within {budget:.0%} of the training's time"
    if steps is None:
        return f"will look ever less often, {cost}; the run's length is not known"
    shown = ", ".join(map(str, looks[:12])) + (", …" if len(looks) > 12 else "")
    return f"will look {len(looks)} times in {steps} steps, {cost}: after {shown}"


def of_trial(step: int, share: float, verdict: Verdict) -> dict[str, Any]:
    """The event of weights that were drawn back and measured."""
    row = main_row(verdict)
    numbers = {} if row is None else {"drop": row.drop, "lost": row.lost, "won": row.won}
    says = f"with {100 * share:g}% of what was learned since the last good state: {seen(verdict)}; {verdict.zone}"
    return {"event": "tried", "step": step, "share": share, "zone": verdict.zone, **numbers, "says": says}


def counted(number: int, word: str) -> str:
    """`1 item`, `2 items`."""
    return f"{number} {word}{'' if number == 1 else 's'}"
