"""What happened in a run, in plain words, and what to change. Losses and verdicts in, text out; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backslide.verdict import Verdict, Zone

LEARNED = 0.02
"""Relative fall of the target's loss from which a run counts as learning."""

FIRST_SUSPECT_RATE = 1e-4
"""Learning rate of full fine-tuning above which it is the first suspect; adapters bear about ten times as much
(arXiv 2509.20758; `docs/papers.md`)."""


@dataclass(frozen=True)
class Losses:
    """The target's loss over a run."""

    train: tuple[tuple[int, float], ...] = ()
    """Step and training loss."""
    held_out: tuple[tuple[int, float], ...] = ()
    """Step and loss on held-out data; step 0 is the base model."""

    @property
    def best(self) -> tuple[tuple[int, float], ...]:
        """The held-out losses where there are at least two, else the training losses."""
        return self.held_out if len(self.held_out) > 1 else self.train


@dataclass(frozen=True)
class Diagnosis:
    """What happened, and what to change."""

    state: str
    """`learning and keeping`, `learning and forgetting`, `not learning but forgetting`, `not learning`, `broken`,
    or `learning, retention undecided`."""
    regressed_at: int | None
    """Step of the look that first proved a regression."""
    story: tuple[str, ...]
    """What happened, a sentence each."""
    advice: tuple[str, ...]
    """What to change, the likeliest help first."""


def losses_of(events: Sequence[Mapping[str, Any]]) -> Losses:
    """The losses in a run's events."""
    series: dict[str, list[tuple[int, float]]] = {"loss": [], "eval_loss": []}
    for event in events:
        if event.get("event") == "loss":
            for name, points in series.items():
                if event.get(name) is not None:
                    points.append((int(event["step"]), float(event[name])))
    return Losses(tuple(series["loss"]), tuple(series["eval_loss"]))


def diagnose(
    losses: Losses, looks: Sequence[tuple[int, Zone]], verdict: Verdict, setup: Mapping[str, Any]
) -> Diagnosis:
    """Put the curves and the verdict together.

    Args:
        losses: the target's loss.
        looks: step and zone of each look during the run.
        verdict: the final verdict.
        setup: of the run: `method` (`full` or a PEFT method), `learning_rate`, `rank`, `epochs`; any may be absent.
    """
    points = losses.best
    learned = len(points) > 1 and _fell(points)
    regressed_at = next((step for step, zone in looks if zone is Zone.REGRESSED), None)
    story = [
        f"The {name} loss on the new task {'fell' if series[-1][1] < series[0][1] else 'rose'} "
        f"from {series[0][1]:.2f} to {series[-1][1]:.2f}."
        for name, series in (("training", losses.train), ("held-out", losses.held_out))
        if len(series) > 1
    ]
    by_heart = not learned and len(losses.train) > 1 and _fell(losses.train)
    if by_heart:
        story.append("It learnt its examples by heart, not the task: on examples that it did not see it got no better.")
    regressed = [row for row in verdict.capabilities if row.zone is Zone.REGRESSED]
    # Drift is a change, and no item says whether for the worse.
    drifted = bool(regressed) and all(row.unit == "drift" for row in regressed) and not _pooled_loss(verdict)
    fell = "The model drifted from the base" if drifted else "The original abilities fell"
    called = "its own replies are no longer what it says" if drifted else "this is capability regression"
    if verdict.zone is Zone.REGRESSED:
        state = "learning and forgetting" if learned else "not learning but forgetting"
        if not verdict.capabilities:
            state = "broken"
            story.append(f"The run cannot pass: {verdict.reasons[0]}.")
        elif learned:
            story.append(f"{fell} while it did: {called}.")
        elif by_heart:
            story.append(f"{fell} while the training loss did: {called}.")
        else:
            story.append(f"{fell}, and nothing was gained for it.")
        if drifted:
            story.append("Whether it became worse no item says: items with right answers would.")
        if regressed_at is not None:
            what = "drift" if drifted else "regression"
            story.append(f"The {what} was proven at step {regressed_at}, during training.")
        advice = _advice(setup)
    elif verdict.zone is Zone.RETAINED:
        state = "learning and keeping" if learned else "not learning"
        story.append("Every capability is proven to be kept within its tolerance.")
        if by_heart:
            advice = ("give it more and more varied examples, or make fewer passes over them.",)
        else:
            advice = () if learned else ("train longer, or raise the learning rate: there is room.",)
    else:
        state = "learning, retention undecided" if learned else "not learning"
        lost, won = _flips(verdict)
        story.append(
            f"No loss of an original ability is proven ({lost} {'item' if lost == 1 else 'items'} lost, {won} won), "
            "but there are too few items to prove that all are kept within tolerance."
        )
        advice = ("add items to the undecided capabilities, or accept a larger tolerance.",)
    return Diagnosis(state, regressed_at, tuple(story), tuple(advice))


def _pooled_loss(verdict: Verdict) -> bool:
    return verdict.pooled is not None and verdict.pooled.zone is Zone.REGRESSED


def _fell(points: Sequence[tuple[int, float]]) -> bool:
    return points[-1][1] < points[0][1] * (1 - LEARNED)


def _advice(setup: Mapping[str, Any]) -> tuple[str, ...]:
    rate, method = setup.get("learning_rate"), setup.get("method")
    advice = []
    if isinstance(rate, (int, float)):
        usual = FIRST_SUSPECT_RATE if method == "full" else 10 * FIRST_SUSPECT_RATE
        suspect = f", which is {rate / usual:.0f} times what is usual at most" if rate >= 2 * usual else ""
        advice.append(f"lower the learning rate first: it was {rate:g}{suspect}; try {rate / 10:.0e}.")
    else:
        advice.append("lower the learning rate first, by a factor of 3 to 10.")
    if method == "full":
        advice.append("or train an adapter of small rank (LoRA, r = 8) instead of all weights.")
    elif isinstance(setup.get("rank"), int):
        advice.append(f"or use an adapter of smaller rank than {setup['rank']}.")
    advice.append("or mix 1 to 5% of original-domain data into the training data.")
    epochs = setup.get("epochs")
    if isinstance(epochs, (int, float)) and epochs > 3:
        advice.append(f"or make fewer passes over the data: it was seen {epochs:.1f} times.")
    return tuple(advice)


def _flips(verdict: Verdict) -> tuple[int, int]:
    return sum(r.lost or 0 for r in verdict.capabilities), sum(r.won or 0 for r in verdict.capabilities)
