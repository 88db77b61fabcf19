"""The diagnosis of a run: what it is doing, since when, what was lost, why, and what to set next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from backslide.diagnosis import states
from backslide.diagnosis.causes import Cause, Setup, causes, next_setting, number, say_setting
from backslide.diagnosis.curves import Losses, Points, clean
from backslide.diagnosis.knowledge import Knowledge
from backslide.diagnosis.onset import Onset, find_onset
from backslide.diagnosis.states import Facts, state_of
from backslide.verdict import Verdict, Zone


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What happened, and what to change."""

    state: str
    """One of `backslide.diagnosis.states.STATES`; see there for what each means."""
    also: tuple[str, ...] = ()
    """Others of them that are true as well, such as `overfitting` of a run that forgets."""
    regressed_at: int | None = None
    """Step of the look that first proved a regression."""
    onset: Onset | None = None
    """When the ability began to fall; None where no loss is proven or no look was taken."""
    knowledge: Knowledge | None = None
    """What the log-likelihoods of answers that are no longer given say; None where there are none."""
    causes: tuple[Cause, ...] = ()
    """Likely causes, the likeliest first."""
    next_setting: Mapping[str, Any]
    """Values for the next run by name, such as `learning_rate`; empty where there is nothing to change."""
    story: tuple[str, ...]
    """What happened, a sentence each."""
    advice: tuple[str, ...]
    """What to change, the likeliest help first."""

    @property
    def kind(self) -> str | None:
        """Of what was lost: `knowledge`, `format`, `both` or `unclear`; None where nothing is known of it."""
        return None if self.knowledge is None else self.knowledge.kind

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON can hold it."""
        return {
            "state": self.state,
            "also": list(self.also),
            "regressed_at": self.regressed_at,
            "onset": None if self.onset is None else self.onset.to_dict(),
            "kind": self.kind,
            "knowledge": None if self.knowledge is None else self.knowledge.to_dict(),
            "causes": [cause.to_dict() for cause in self.causes],
            "next_setting": dict(self.next_setting),
            "story": list(self.story),
            "advice": list(self.advice),
        }


MORE_REPLAY = (0.05, 0.1, 0.25)
"""Shares of original-domain data, one after the other; what more than a quarter buys was not measured."""


def diagnose(
    losses: Losses,
    looks: Iterable[tuple[int, Verdict]],
    verdict: Verdict,
    setup: Setup,
    *,
    knowledge: Knowledge | None = None,
    final: bool = False,
) -> Diagnosis:
    """Put the curves and the verdicts together, at a look or at the end of a run.

    Args:
        losses: the target's curves so far.
        looks: step and verdict of each look so far, this one among them; of several at one step the last counts.
        verdict: of this look, or of the final model.
        setup: of the run; see `backslide.diagnosis.causes.causes`.
        knowledge: of this look's record against the baseline, from `backslide.diagnosis.knowledge.compare`.
        final: whether the run has ended.
    """
    taken = sorted(dict(looks).items())
    facts = Facts.of(losses, verdict)
    state, also = state_of(facts, final=final)
    problem = _problem(facts)
    found = causes(problem, setup) if problem is not None else ()
    setting = next_setting(problem, setup, found) if problem is not None else {}
    regressed_at = next((step for step, look in taken if look.zone is Zone.REGRESSED), None)
    # Steps of a look that broke show no fall, and neither do looks at a run in which nothing is proven.
    onset = find_onset(taken) if facts.forgets else None
    story = [
        *_losses(losses, facts),
        *_retention(facts, verdict, taken, regressed_at, final),
        *_onset(onset),
        *(_knowledge(knowledge) if knowledge is not None else ()),
    ]
    return Diagnosis(
        state=state,
        also=also,
        regressed_at=regressed_at,
        onset=onset,
        knowledge=knowledge,
        causes=found,
        next_setting=setting,
        story=tuple(story),
        advice=_advice(facts, state, found, setting, knowledge, setup),
    )


def _problem(facts: Facts) -> str | None:
    """What causes are sought for: the first of these that is there."""
    if facts.diverged or facts.broken:
        return "diverged"
    if facts.forgets:
        return "forgetting"
    if facts.turned_at is not None:
        return "overfitting"
    return "not learning" if facts.learned is False else None


def _losses(losses: Losses, facts: Facts) -> list[str]:
    """The ends of the curves, and what else they show."""
    lines = []
    named: tuple[tuple[str, Points], ...] = (
        ("training loss", losses.train), ("held-out loss", losses.held_out), ("reward", losses.rewards)
    )  # fmt: skip
    for name, points in named:
        series = clean(points)
        if len(series) > 1:
            first, last = series[0][1], series[-1][1]
            how = "fell" if last < first else "rose" if last > first else "stayed"
            lines.append(
                f"The {name} on the new task {how} from {first:.2f} to {last:.2f}."
                if how != "stayed"
                else f"The {name} on the new task stayed at {first:.2f}."
            )
    if losses.not_finite:
        lines.append(f"A loss was not a finite number at step {losses.not_finite[0]}: the training diverged.")
    elif facts.diverged:
        lines.append("The training loss ended well above its start: the training diverged.")
    if facts.turned_at is not None:
        if facts.learned:
            lines.append(
                f"From step {facts.turned_at} on the held-out loss rose while the training loss fell: overfitting."
            )
        else:
            lines.append(
                "It learnt its examples by heart, not the task: on examples that it did not see it got no better."
            )
    elif facts.converged:
        lines.append("The loss is flat over the last third of the steps, within its noise: it has converged.")
    return lines


def _retention(
    facts: Facts, verdict: Verdict, looks: list[tuple[int, Verdict]], regressed_at: int | None, final: bool
) -> list[str]:
    lines = []
    if facts.broken:
        lines.append(f"The run cannot pass: {verdict.reasons[0]}.")
    elif facts.forgets:
        drifted = _drifted(verdict)
        fell = "The model drifted from the base" if drifted else "The original abilities fell"
        called = "its own replies are no longer what it says" if drifted else "this is capability regression"
        if facts.learned:
            lines.append(f"{fell} while it did: {called}.")
        elif facts.turned_at is not None:
            lines.append(f"{fell} while the training loss did: {called}.")
        elif facts.learned is False:
            lines.append(f"{fell}, and nothing was gained for it.")
        else:
            lines.append(f"{fell}; of what was learnt too little is known.")
        if drifted:
            lines.append("Whether it became worse no item says: items with right answers would.")
        if regressed_at is not None:
            lines.append(
                f"The {'drift' if drifted else 'regression'} was proven at step {regressed_at}, during training."
            )
    elif facts.zone is Zone.RETAINED:
        lines.append("Every capability is proven to be kept within its tolerance.")
    elif not verdict.capabilities:
        lines.append(f"Nothing was compared: {verdict.reasons[0]}.")
    else:
        lost, won = _flips(verdict)
        lines.append(
            f"No loss of an original ability is proven ({lost} {'item' if lost == 1 else 'items'} lost, {won} won), "
            "but there are too few items to prove that all are kept within tolerance."
        )
    if regressed_at is not None and facts.zone is not Zone.REGRESSED:
        where = "on the gate half" if final else "at this look"
        lines.append(f"A regression was proven at step {regressed_at}; {where} none is.")
    return lines


def _drifted(verdict: Verdict) -> bool:
    """Whether all that is proven is drift from the base: a change, of which no item says whether for the worse."""
    failed = [row for row in verdict.capabilities if row.zone is Zone.REGRESSED]
    pooled = verdict.pooled is not None and verdict.pooled.zone is Zone.REGRESSED
    return bool(failed) and all(row.unit == "drift" for row in failed) and not pooled


def _onset(onset: Onset | None) -> list[str]:
    if onset is None:
        return []
    what = f"{onset.of}, {onset.measure}"
    if not onset.seen:
        return [f"Since when is not to be told from {_looks(onset.looks)} ({what})."]
    share = "more than 99%" if onset.probability > 0.99 else f"{onset.probability:.0%}"
    began = "drift" if onset.measure == "drift" else "fall"
    return [
        f"It began to {began} between step {onset.after} and step {onset.before} (probability {share}), most likely at "
        f"about step {onset.step:.0f}; from step {onset.low:.0f} to step {onset.high:.0f} with {onset.level:.0%} "
        f"({what}, {_looks(onset.looks)})."
    ]


def _knowledge(seen: Knowledge) -> list[str]:
    items = f"{seen.lost} {'answer that was' if seen.lost == 1 else 'answers that were'} right before and wrong now"
    if not seen.counted:
        return [f"Of {items}, none was preferred before to the answers of other questions: they tell nothing."]
    share = seen.known / seen.counted
    means = {
        "format": "the knowledge is there; what changed is how the model replies",
        "knowledge": "the knowledge itself is gone",
        "both": "a part of the knowledge is gone, and a part is there and no longer said",
        "unclear": "not enough to tell whether knowledge is gone or only the replies changed",
    }[seen.kind]
    preferred = "" if seen.counted == seen.lost else f"; {seen.counted} of them count, since it preferred these before"
    return [
        f"Of {items}, the model still prefers the accepted answer to those of other questions in {seen.known} "
        f"({share:.0%}, {seen.low:.0%} to {seen.high:.0%}; blindly {seen.chance:.0%}{preferred}): {means}."
    ]


def _advice(
    facts: Facts,
    state: str,
    found: tuple[Cause, ...],
    setting: Mapping[str, Any],
    knowledge: Knowledge | None,
    setup: Setup,
) -> tuple[str, ...]:
    lines = []
    problem = _problem(facts)
    if setting:
        lines.append(f"next setting: {say_setting(setting)}.")
    if problem == "diverged":
        if not setting:
            lines.append("lower the learning rate, by a factor of 3 to 10, and warm it up over the first steps.")
    elif problem == "forgetting":
        lines += _against_forgetting(found, setting, knowledge, setup)
    elif problem == "overfitting":
        if facts.learned:
            lines.append(f"stop earlier: the held-out loss was lowest at about step {facts.turned_at}.")
        lines.append("give it more and more varied examples, or make fewer passes over them.")
    elif problem == "not learning" and not setting:
        lines.append(
            "train longer, or raise the learning rate: there is room."
            if facts.zone is Zone.RETAINED
            else "train longer, or raise the learning rate, and watch what it keeps."
        )
    if state == states.CONVERGED:
        lines.append("stop here: further steps gain nothing and can only cost what is kept.")
    if facts.zone is Zone.UNDECIDED:
        lines.append("add items to the undecided capabilities, or accept a larger tolerance.")
    return tuple(lines)


def _against_forgetting(
    found: tuple[Cause, ...], setting: Mapping[str, Any], knowledge: Knowledge | None, setup: Setup
) -> list[str]:
    """What helps beside the next setting, in the order in which it is worth trying."""
    lines = []
    if knowledge is not None and knowledge.kind == "format":
        lines.append(
            "the answers are still known and no longer given: some replies of the old form mixed in may be enough, or "
            "asking in the form that was trained."
        )
    if "learning_rate" not in setting:
        lines.append("lower the learning rate first, by a factor of 3 to 10.")
    replay = number(setup, "replay")
    if "replay" not in setting and not any(cause.name == "no original-domain data" for cause in found):
        more = next((ratio for ratio in MORE_REPLAY if ratio > (replay or 0.0)), None)
        if replay is None:
            lines.append("mix in more original-domain data.")
        elif more is not None:
            lines.append(f"mix in more original-domain data: replay = {more:g} instead of {replay:g}.")
    if not number(setup, "anchor"):
        lines.append(
            "or hold the model near the base with an anchor (anchor = 0.1 under [cure], or Anchor), which takes about "
            "twice the time of a step."
        )
    lines.append(
        "without training anew: take an earlier checkpoint, or move the weights back towards the base "
        "(backslide repair)."
    )
    if setup.get("method") == "full" and "method" not in setting:
        lines.append("or train an adapter of small rank (LoRA, r = 8) instead of all weights.")
    return lines


def _looks(count: int) -> str:
    return f"{count} look" + ("" if count == 1 else "s")


def _flips(verdict: Verdict) -> tuple[int, int]:
    return sum(r.lost or 0 for r in verdict.capabilities), sum(r.won or 0 for r in verdict.capabilities)
