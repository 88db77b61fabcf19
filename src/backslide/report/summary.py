"""What a run's folder says, read back and put together: the one source of every page and table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from backslide import openings
from backslide.diagnosis import Diagnosis, Knowledge, Losses, compare, diagnose, losses_of
from backslide.errors import RecordError
from backslide.record import Record
from backslide.report.account import Account, account_of
from backslide.report.line import Point, balance_of, points_of, rows
from backslide.rundir import RunFolder
from backslide.verdict import CapabilityVerdict, Verdict, Zone, main_row


@dataclass(frozen=True)
class Look:
    """A look during training."""

    step: int
    verdict: Verdict
    seconds: float | None
    train_loss: float | None
    """The last one logged up to this step."""
    held_out_loss: float | None

    @property
    def main(self) -> CapabilityVerdict | None:
        """The row that stands for all: of all items together, else of the only capability."""
        return main_row(self.verdict)


@dataclass(frozen=True)
class Reply:
    """An open question and what the model said. Untrusted text."""

    question: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Done:
    """What a guard did at a step, or found on the way."""

    step: int
    kind: str
    """Of an action, such as `stop`; `tried` and `effect` for what `auto` measured."""
    says: str

    @property
    def acted(self) -> bool:
        """Whether it changed the run."""
        return self.kind not in ("warn", "tried", "effect")


@dataclass(frozen=True)
class Summary:
    """A run that has ended."""

    run: RunFolder
    config: dict[str, Any]
    baseline: Record
    final: Record | None
    verdict: Verdict
    losses: Losses
    looks: tuple[Look, ...]

    @classmethod
    def of(cls, run: RunFolder) -> Summary:
        """Read a run's folder. Raises `RecordError` where the run has no verdict, or a file of it is malformed."""
        verdict = run.verdict()
        if verdict is None:
            raise RecordError(f"{run.path}: no verdict.json: no run was begun here, or it has not ended")
        config = run.config
        missing = [key for key in ("model", "suite", "suite_hash", "alpha", "tolerance") if key not in config]
        if missing:
            raise RecordError(f"{run.path / 'run.json'}: has no {missing[0]}")
        events = run.events()
        losses, line_of = losses_of(events), lived(events)
        looks = tuple(
            Look(
                step=int(event["step"]),
                verdict=verdict_of,
                seconds=event.get("seconds"),
                train_loss=_at(losses.train, int(event["step"])),
                held_out_loss=dict(losses.held_out).get(int(event["step"])),
            )
            for event in line_of
            if event.get("event") == "look" and (verdict_of := _readable(event)) is not None
        )
        return cls(
            run=run,
            config=config,
            baseline=Record.load(run.baseline),
            final=Record.load(run.final) if run.final.exists() else None,
            verdict=verdict,
            losses=losses,
            looks=looks,
        )

    @property
    def setup(self) -> dict[str, Any]:
        """How the model was trained; empty where that is not known."""
        setup = self.config.get("setup")
        return setup if isinstance(setup, dict) else {}

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """What happened, and what to change."""
        looks = [(look.step, look.verdict) for look in self.looks]
        return diagnose(self.losses, looks, self.verdict, self.setup, knowledge=self.knowledge, final=True)

    @cached_property
    def knowledge(self) -> Knowledge | None:
        """What became of the answers that the final model no longer gives: of the gate half, and of the monitor half
        where the last look was at the very same weights.
        """
        if self.final is None:
            return None
        seen = [self.final]
        last = self.run.step(self.looks[-1].step) if self.looks else None
        if last is not None and last.exists():
            look = Record.load(last)
            if look.header.model_fingerprint == self.final.header.model_fingerprint:
                seen.append(look)
        return compare(self.baseline, *seen)

    @property
    def stopped_at(self) -> int | None:
        """Step at which the guard stopped the run."""
        stops = [done.step for done in self.actions if done.kind == "stop"]
        return stops[0] if stops else None

    @cached_property
    def actions(self) -> tuple[Done, ...]:
        """What the guard did and what it measured of it, in order."""
        found = []
        for event in lived(self.run.events()):
            kind = event.get("action") if event.get("event") == "action" else event.get("event")
            if event.get("event") in ("action", "tried", "effect") and isinstance(event.get("step"), int):
                found.append(Done(event["step"], str(kind), str(event.get("says") or event.get("reason") or kind)))
        return tuple(found)

    @property
    def ended_at(self) -> float | None:
        """When the last event was written, in seconds since 1970; None where none says."""
        times = [event["time"] for event in self.run.events() if isinstance(event.get("time"), (int, float))]
        return times[-1] if times else None

    @property
    def openings(self) -> int:
        """How often the gate half of the suite was opened in this folder."""
        return openings.count(self.run.events(), str(self.config["suite"]))

    @property
    def opened_again(self) -> str | None:
        """What it means that the gate half was opened more than once; None where it was not."""
        return openings.warning(self.openings)

    @property
    def rows(self) -> tuple[CapabilityVerdict, ...]:
        """The capabilities, then all items together."""
        return rows_of(self.verdict)

    @property
    def tables(self) -> tuple[tuple[str, tuple[CapabilityVerdict, ...]], ...]:
        """The rows of the verdict, and those of the look at the monitor half where that decided beside it."""
        if self.verdict.beside is None:
            return (("", self.rows),)
        return (("Gate half", self.rows), ("Monitor half, the final weights", rows_of(self.verdict.beside)))

    @property
    def drifts(self) -> bool:
        """Whether a row is about drift from the base."""
        return any(row.unit == "drift" for _, rows in self.tables for row in rows)

    @property
    def diverges(self) -> bool:
        """Whether a row says how far the model's distributions are from the base's."""
        return any(row.kl is not None for _, rows in self.tables for row in rows)

    @property
    def replies(self) -> tuple[Reply, ...]:
        """The open questions with the replies before and after."""
        questions = self.config.get("questions", {})
        after = self.final.replies if self.final is not None else {}
        return tuple(
            Reply(str(questions.get(id, id)), before, after.get(id)) for id, before in self.baseline.replies.items()
        )

    @property
    def flips(self) -> dict[str, tuple[list[str], list[str]]]:
        """Of each capability the ids of the items that were lost, and of those that were won."""
        found: dict[str, tuple[list[str], list[str]]] = {}
        for new in self.final.outcomes if self.final is not None else ():
            old = self.baseline.by_id.get(new.id)
            if old is not None and old.correct is not None and old.correct != new.correct:
                found.setdefault(new.capability, ([], []))[0 if old.correct else 1].append(new.id)
        return found

    @property
    def leaked(self) -> tuple[str, ...]:
        """The items that were found in the training data before the run, each with the place there."""
        leaks = self.config.get("leaks")
        rows = [leak for leak in leaks if isinstance(leak, dict)] if isinstance(leaks, list) else []
        return tuple(f"{leak.get('item')} ({leak.get('kind')}, {leak.get('place')})" for leak in rows)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Of a repair the points of the line that were tried; none for other runs."""
        return points_of(self.run.events())

    @cached_property
    def account(self) -> Account | None:
        """What a repair came to; None for other runs, which have a diagnosis."""
        if not isinstance(self.config.get("repair"), dict):
            return None
        tuned = self.run.path / "tuned.jsonl"
        balance = balance_of(
            self.baseline,
            Record.load(tuned) if tuned.is_file() else None,
            self.final,
            self.points,
            self.config.get("chosen"),
            shipped=self.verdict.zone is not Zone.REGRESSED,
        )
        return account_of(self.config, self.verdict, self.points, balance)

    @cached_property
    def line(self) -> tuple[tuple[str, ...], ...]:
        """Of a repair the points of the line that were tried, as a table; empty for other runs."""
        return tuple(rows(self.points, self.config.get("chosen")))

    @property
    def seconds(self) -> float:
        """Seconds that measuring took, all looks together."""
        return sum(float(e["seconds"]) for e in self.run.events() if isinstance(e.get("seconds"), (int, float)))


def rows_of(verdict: Verdict) -> tuple[CapabilityVerdict, ...]:
    """The capabilities of a verdict, then all items together."""
    return (*verdict.capabilities, verdict.pooled) if verdict.pooled is not None else verdict.capabilities


def lived(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events that led to the final weights: without those behind the checkpoint that a run was resumed from."""
    line: list[dict[str, Any]] = []
    for event in events:
        step = event.get("step")
        if event.get("event") == "resumed" and isinstance(step, int):
            line = [before for before in line if not isinstance(before.get("step"), int) or before["step"] <= step]
        line.append(event)
    return line


def _readable(event: dict[str, Any]) -> Verdict | None:
    """The verdict of a look; None where it has no step, or an earlier version wrote it in another form."""
    try:
        return Verdict.from_dict(event["verdict"]) if isinstance(event.get("step"), int) else None
    except (KeyError, RecordError):
        return None


def accuracies(record: Record, part: set[str] | None = None) -> dict[str, tuple[int, int]]:
    """Right answers and items of each capability that has right answers; only of the ids in `part` where given."""
    found: dict[str, tuple[int, int]] = {}
    for outcome in record.outcomes:
        if outcome.correct is not None and (part is None or outcome.id in part):
            right, count = found.get(outcome.capability, (0, 0))
            found[outcome.capability] = (right + outcome.correct, count + 1)
    return found


def loss_span(losses: Losses) -> tuple[str, float, float] | None:
    """Which loss it is, its first and its last value; None where it was not logged."""
    points = losses.best
    if len(points) < 2:
        return None
    return ("held-out" if points is losses.held_out else "training"), points[0][1], points[-1][1]


def _at(points: tuple[tuple[int, float], ...], step: int) -> float | None:
    before = [value for at, value in points if at <= step]
    return before[-1] if before else None
