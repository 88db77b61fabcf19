"""What a cure did: the look and the loss after it beside those before, as an event. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backslide.errors import RecordError
from backslide.verdict import Verdict, main_row

Losses = Sequence[Mapping[str, Any]]
"""The loss events of a run, in order."""

Point = tuple[int, float]
"""A step, and the loss that was logged at it."""


@dataclass(frozen=True)
class Cure:
    """What was brought in at once after a look, whose effect is still to be seen."""

    cures: tuple[str, ...]
    step: int
    before: float | None
    """Drop of the look that it answers."""
    tried: float | None
    """Drop of the weights that it went back to, where they were measured as a point on the line."""
    known: int
    """Losses that were logged until then: held-out ones of later on are of other weights."""
    look: tuple[int, float | None] | None = None
    """Step and drop of the look after it."""
    until: int | None = None
    """Losses that were logged when the weights were taken back again, if they were since that look."""

    def points(self, losses: Losses, name: str) -> tuple[Point | None, Point | None]:
        """The losses nearest before the two looks, the second one of after the cure; None where there is none.

        A training loss was made on the way to its step, so it is of the weights before what was done after that step,
        though a trainer logs it later. A held-out loss is of the weights that are there when it is logged. Where none
        was logged between cure and look, the first one after the look is taken.
        """
        assert self.look is not None
        at = self.look[0]
        if name == "eval_loss":
            # With no step made, what was evaluated since is of the weights that were gone back to.
            since = self.step + (at > self.step)
            before = _points(losses[: self.known], name)
            after = [point for point in _points(losses[self.known : self.until], name) if point[0] >= since]
        else:
            before = [point for point in _points(losses, name) if point[0] <= self.step]
            after = [
                point for point in _points(losses, name)
                if point[0] > self.step and (self.until is None or point[0] <= at)
            ]  # fmt: skip
        near = [point for point in after if point[0] <= at]
        return (before[-1] if before else None), (near[-1] if near else after[0] if after else None)

    def ready(self, losses: Losses, step: int) -> bool:
        """Whether all that is to come of the look's own step is there: a trainer logs after the looks."""
        if self.look is None:
            return False
        if step > self.look[0]:
            return True
        trained, (before, evaluated) = self.points(losses, "loss")[1], self.points(losses, "eval_loss")
        if evaluated is not None and evaluated[0] == step:
            return before is not None or trained is not None
        waits = self.until is None and any(event.get("eval_loss") is not None for event in losses)
        return trained is not None and trained[0] == step and not waits

    def event(self, losses: Losses) -> dict[str, Any]:
        """What was seen of it. Held-out losses where both are known, else training losses, else what there is."""
        assert self.look is not None
        at, drop = self.look
        pairs = [(name, self.points(losses, name)) for name in ("eval_loss", "loss")]
        name, (before, after) = max(pairs, key=lambda pair: 2 - pair[1].count(None))
        made, known = at - self.step, before is not None or after is not None
        kind = {"eval_loss": "held-out ", "loss": "training "}[name] if known else ""
        loss = f"the {kind}loss on the new task {_loss(before, after, (self.step, at))}"
        of = f"{', '.join(self.cures)} after step {self.step}" + ("" if made else ", with no step after it")
        return {
            "event": "effect", "step": at, "of": self.step, "cures": list(self.cures), "steps": made,
            "drop_before": self.before, "drop_after": drop, "loss_of": name if known else None,
            "loss_before": before and before[1], "loss_after": after and after[1],
            "loss_steps": [before and before[0], after and after[0]],
            "says": f"{of}: {_drop(self.before, drop, made)}, {loss}",
        }  # fmt: skip


@dataclass
class Cured:
    """The cures whose effect is still to be seen: those of the last action, and before them others that have a look
    and wait for the loss that is logged after it.
    """

    pending: list[Cure] = field(default_factory=list)
    drop: float | None = None
    """Of the last look."""

    @classmethod
    def of(cls, line: Iterable[Mapping[str, Any]]) -> Cured:
        """Stand where a run stood, from the events that led to its present weights."""
        found, known = cls(), 0
        tried: dict[tuple[int, Any], float | None] = {}
        for event in line:
            kind, step = event.get("event"), event["step"]
            known += kind == "loss"
            if kind == "look":
                try:
                    found.looked(step, Verdict.from_dict(event["verdict"]))
                except (KeyError, RecordError):
                    continue
            elif kind == "tried":
                tried[step, event.get("share")] = event.get("drop")
            elif kind == "action":
                if event.get("mends"):
                    found._taken_back(known)
                if event.get("cures"):
                    found.by(event["cures"], step, known, tried=tried.get((step, event.get("share"))))
            elif kind == "effect":
                found.pending = [cure for cure in found.pending if cure.step != event.get("of")]
        return found

    def by(self, cures: Sequence[str], step: int, known: int, *, tried: float | None = None) -> None:
        """Cures were brought in after the look at `step`, when so many losses were logged."""
        self.pending.append(Cure(tuple(cures), step, self.drop, tried, known))

    def looked(self, step: int, verdict: Verdict) -> None:
        """A look was made."""
        self.drop = drop_of(verdict)
        self.pending = [
            dataclasses.replace(cure, look=(step, self.drop)) if cure.look is None else cure for cure in self.pending
        ]

    def effects(self, losses: Losses, step: int) -> list[dict[str, Any]]:
        """The events of what is known by now, each once: when the losses of the look's step are there, and without
        them when a later step has come.
        """
        ready = [cure for cure in self.pending if cure.ready(losses, step)]
        self.pending = [cure for cure in self.pending if cure not in ready]
        return [cure.event(losses) for cure in ready]

    def taken_back(self, losses: Losses, step: int) -> list[dict[str, Any]]:
        """The weights were taken back: no later look is of those that a cure without one led to."""
        return [dataclasses.replace(cure, look=(step, None)).event(losses) for cure in self._taken_back(len(losses))]

    def _taken_back(self, known: int) -> list[Cure]:
        unseen = [cure for cure in self.pending if cure.look is None]
        self.pending = [
            dataclasses.replace(cure, until=known) if cure.until is None else cure
            for cure in self.pending if cure.look is not None
        ]  # fmt: skip
        return unseen

    def end(self, losses: Losses, step: int, last: Verdict | None) -> list[dict[str, Any]]:
        """The events of all that is left when the run ends.

        Args:
            losses: all of them.
            step: steps made.
            last: what was measured of the weights after them; None: nothing.
        """
        left, self.pending = self.pending, []
        events = []
        for cure in left:
            if cure.look is None:
                drop = cure.tried if cure.tried is not None and step == cure.step else drop_of(last)
                cure = dataclasses.replace(cure, look=(step, drop))
            events.append(cure.event(losses))
        return events


def _points(losses: Losses, name: str) -> list[Point]:
    return [(int(event["step"]), float(event[name])) for event in losses if event.get(name) is not None]


def drop_of(verdict: Verdict | None) -> float | None:
    """The drop of all items together, as far as it is known."""
    row = main_row(verdict) if verdict is not None else None
    return None if row is None else row.drop


def _drop(before: float | None, after: float | None, made: int) -> str:
    if after is None:
        since = "was not measured since" if made else "the weights that were gone back to were not measured"
        return "the drop is unknown" if before is None else f"the drop was {before:.1%}, and {since}"
    of = "" if made else ", measured of the weights that were gone back to"
    return f"the drop {'is' if before is None else f'went from {before:.1%} to'} {after:.1%}{of}"


def _loss(before: Point | None, after: Point | None, looks: tuple[int, int]) -> str:
    """In words, with the step where it is not the look's own."""
    first, second = (
        "" if point is None else f"{point[1]:.3f}" + (f" (step {point[0]})" if point[0] != at else "")
        for point, at in zip((before, after), looks, strict=True)
    )
    if first and second:
        return f"from {first} to {second}"
    if first:
        since = "none that is a number was logged since" if looks[1] > looks[0] else "was not measured of them"
        return f"was {first}, and {since}"
    return f"is {second}, and none was logged before" if second else "is unknown, since none was logged"
