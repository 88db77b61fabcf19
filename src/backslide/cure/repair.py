"""After training, and without any: the nearest thing to the tuned model that keeps the abilities of its base.

    line ── search: monitor half, held-out loss ──► a point ── written, loaded again ── gate half, once ──► shipped
                                                                                                       └──► or not

The monitor half and the held-out loss choose the point; the gate half, which had no part in that, certifies what is
on disk. Nothing is shipped that it proves regressed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backslide import openings
from backslide.cure.card import card
from backslide.cure.inputs import Inputs, gather
from backslide.cure.known import half
from backslide.cure.line import AdapterLine, Line, open_line
from backslide.cure.measuring import Measuring
from backslide.cure.moving import Moving
from backslide.cure.origin import check_base, check_base_itself, tell_differences, tell_other_base
from backslide.cure.place import Place, sole
from backslide.cure.search import GRID, Found, Keeping, search
from backslide.cure.target import TargetLoss
from backslide.errors import RunError
from backslide.files import read_text, write_text
from backslide.judge import judge
from backslide.models import BUILTIN, BUILTIN_HUB, load_model, model_fingerprint
from backslide.record import Record
from backslide.report.line import Balance, Point, balance_of, describe, point_of, points_of
from backslide.report.pages import write_pages
from backslide.scoring.engine import Scorer, Settings, versions
from backslide.scoring.work import Progress
from backslide.suite.item import OpenItem
from backslide.suite.lm_eval import TaskOptions, options_of
from backslide.suite.suite import Suite
from backslide.verdict import Verdict, Zone, broken

Say = Callable[[str], None]


@dataclass(frozen=True)
class Repaired:
    """What a repair came to."""

    out: Path
    """Its folder; a model where one was shipped."""
    at: float | None
    """The place on the line of what was shipped; None: nothing was."""
    verdict: Verdict
    """On the gate half; where no point may be taken, `regressed` with that reason."""
    points: tuple[Point, ...]
    """What was tried."""
    balance: Balance

    @property
    def exit_code(self) -> int:
        """0 retained, 1 regressed or nothing shipped, 3 undecided."""
        return self.verdict.exit_code


def repair(
    base: str,
    tuned: str,
    out: str | Path,
    *,
    held_out: str | Path | None = None,
    suite: Suite | str | None = None,
    tasks: TaskOptions | None = None,
    baseline: Record | str | Path | None = None,
    dtype: str | None = None,
    max_length: int | None = None,
    tolerance: float | None = None,
    drift: float | None = None,
    alpha: float | None = None,
    settings: Settings | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Repaired:
    """Find the point between `base` and `tuned` that keeps the abilities and the most of what was learned.

    Where `tuned` is the `model` folder of a run of `backslide tune`, what is not given is taken from that run. A
    repair that was interrupted goes on in its folder; one that has ended is only read.

    Args:
        base: a model folder, hub id or `smollm2-135m-instruct`.
        tuned: what was trained from it, a whole model or a LoRA adapter.
        out: the folder of the repaired model.
        held_out: data of the task that was trained for, in a format of `backslide.data`; None: that of the run, else
            the target's loss is not known.
        suite: what is asked; None: that of the run or the baseline, else the repertoire.
        tasks: how lm-eval's tasks are asked; where no suite is named, what is not given is taken from the run.
        baseline: the record of the base on both halves; None: that of the run, else the base is measured first.
        dtype: in which models are measured, see `load_model`; None: that of the baseline. What is written has the
            dtype of `tuned`.
        max_length: tokens of a held-out example; None: that of the run, else 1024.
        tolerance: accepted drop in accuracy, as a share; None: that of the run, else 0.03.
        drift: accepted drift, in nats a token; None: that of the run, else 0.1.
        alpha: probability of a false `regressed`, and of a false `retained` of each capability; None: that of the
            run, else 0.05.
        settings: how the suite is asked, where there is no baseline.
        say: told what the user should know.
        progress: called while something is measured.

    Raises:
        InputError: something that was given is wrong, or `out` holds something else.
        RunError: what was written is not what was chosen.
    """
    say = say or logging.getLogger("backslide").info
    inputs = gather(
        tuned, suite=suite, tasks=tasks, baseline=baseline, held_out=held_out, dtype=dtype, max_length=max_length,
        tolerance=tolerance, drift=drift, alpha=alpha, say=say,
    )  # fmt: skip
    line = open_line(base, tuned, say)
    tell_other_base(line, say)
    tell_differences(line, say)
    identity = _identity(line, inputs)
    with sole(out):
        place = Place(out, identity)
        if place.outcome is not None:
            say(f"{place.out}: this repair has ended already; what came of it is shown again")
        else:
            with contextlib.closing(place):
                _Repair(line, inputs, place, settings, say, progress).run(identity)
        return _read(place)


def _identity(line: Line, inputs: Inputs) -> dict[str, Any]:
    """What must be the same for a repair to go on, or to be the one that was asked for."""
    start, end = line.fingerprints()
    rows = json.dumps(inputs.held_out.rows) if inputs.held_out is not None else None
    return {
        "base": start,
        "tuned": end,
        "suite": inputs.suite.hash,
        "held_out": hashlib.sha256(rows.encode()).hexdigest() if rows is not None else None,
        "max_length": inputs.max_length,
        "dtype": inputs.dtype,
        "tolerance": inputs.tolerance.accuracy,
        "drift": inputs.tolerance.drift,
        "alpha": inputs.level.fail,
        "left_out": sorted(inputs.left_out),
    }


class _Repair:
    """One repair that is under way."""

    def __init__(
        self, line: Line, inputs: Inputs, place: Place, settings: Settings | None, say: Say, progress: Progress | None
    ) -> None:
        self.line, self.inputs, self.place, self.say, self.progress = line, inputs, place, say, progress
        self.models = Moving(line, place, inputs.dtype, say)
        self.measuring = Measuring(line, inputs, place, settings, say, progress)
        self._scorer: Scorer | None = None
        self._target: TargetLoss | None = None
        self._keeping: Keeping | None = None

    def run(self, identity: dict[str, Any]) -> None:
        """From the inputs to an outcome."""
        run = self.place.run
        baseline = self._begun(identity)
        verdict = run.verdict()
        if verdict is None:
            at = run.config.get("chosen")
            if at is None:
                found = self._search(baseline)
                if found.chosen is None:
                    self._end(broken(f"{found.reason}; nothing was shipped"))
                    return
                at = found.chosen / GRID
                run.update(chosen=at)
                run.append([{"event": "chosen", "at": at, "says": f"chose {at:.5g} of the line: {found.reason}"}])
                self.say(f"chose {at:.5g} of the line: {found.reason}")
            self.models.drop()
            verdict = self._certify(baseline, at)
        if verdict.zone is Zone.REGRESSED:
            self._end(verdict)
            return
        self.models.drop()
        self._ship(baseline, run.config["chosen"], verdict)

    def _begun(self, identity: dict[str, Any]) -> Record:
        """The record of the base; what does not fit is refused, and has left nothing."""
        run, baseline = self.place.run, self.inputs.baseline
        with self.place.trial():
            if baseline is not None:
                # Before anything is written down.
                self._prepare(baseline)
            if not run.exists():
                run.begin(self._config(identity))
                run.append([{"event": "begin", "says": f"repairing {self.line.tuned} towards {self.line.base}"}])
            else:
                run.append([{"event": "resumed", "says": "goes on where it was interrupted"}])
            if baseline is None:
                baseline = self.measuring.base()
                self._prepare(baseline)
        if self.inputs.baseline is not None:
            baseline.save(run.baseline)
        return baseline

    def _prepare(self, baseline: Record) -> None:
        """Make ready what is measured with. Raises `InputError` where something does not fit together."""
        line, given = self.line, self.inputs.baseline is not None
        if given and not line.exact_start:
            check_base_itself(line, baseline, self.inputs.dtype, self.say)
        self._scorer = self.measuring.ready(self.models.at(1.0), baseline)
        if given and line.exact_start:
            check_base(line, baseline, self.models.at(0.0).model)
        if self.inputs.held_out is not None:
            self._target = TargetLoss(self.inputs.held_out, self._scorer.tokenizer, self.inputs.max_length)
        unchanged = self._judge(baseline, half(baseline, self.inputs.suite))
        self._keeping = Keeping.of(unchanged, self.inputs.tolerance, self.inputs.level)

    def _config(self, identity: dict[str, Any]) -> dict[str, Any]:
        inputs = self.inputs
        return {
            "model": f"{self.line.tuned}, repaired",
            "base": self.line.base,
            "tuned": self.line.tuned,
            "suite": inputs.suite.name,
            "suite_hash": inputs.suite.hash,
            "tasks": options_of(inputs.suite),
            "alpha": inputs.level.fail,
            "tolerance": inputs.tolerance.accuracy,
            "tolerance_drift": inputs.tolerance.drift,
            "left_out": sorted(inputs.left_out),
            "questions": {item.id: item.prompt for item in inputs.suite.items if isinstance(item, OpenItem)},
            "versions": versions(),
            "repair": identity,
        }

    def _search(self, baseline: Record) -> Found:
        assert self._keeping is not None
        if self._keeping.note:
            self.say(self._keeping.note)
            self.place.run.append([{"event": "note", "says": self._keeping.note}])
        if self._target is not None:
            self._loss(0)
        return search(lambda step: self._look(step, baseline), self._loss if self._target is not None else None)

    def _loss(self, step: int) -> float:
        at = step / GRID
        # At 0 it is the base's that counts. (Where the vocabulary has grown the base lacks tokens that are asked.)
        itself = step == 0 and self.line.differences and not self.line.grown
        model = (self.models.base() if itself else self.models.at(at)).model
        fingerprint = model_fingerprint(model)
        for event in self.place.run.events():
            same = event.get("event") == "point" and event.get("model") == fingerprint and event.get("at") == at
            if same and event.get("target") == self._digest:
                return math.inf if event["loss"] is None else float(event["loss"])
        assert self._target is not None
        value = self._target.measure(model, self.progress)
        self._note(Point(at=at, loss=value if math.isfinite(value) else None), fingerprint)
        return value

    @property
    def _digest(self) -> str | None:
        return self._target.digest() if self._target is not None else None

    def _look(self, step: int, baseline: Record) -> bool:
        at = step / GRID
        loss = self._loss(step) if self._target is not None else math.inf
        model, scorer, keeping = self.models.at(at).model, self._scorer, self._keeping
        assert scorer is not None and keeping is not None
        record = self.measuring.look(scorer, model, at, baseline)
        verdict = self._judge(baseline, record)
        kept = keeping.kept(verdict)
        self._note(
            point_of(at, loss if math.isfinite(loss) else None, verdict, kept), record.header.model_fingerprint,
            **record.header.cost,
        )  # fmt: skip
        return kept

    def _note(self, point: Point, fingerprint: str, **more: Any) -> None:
        says = describe(point)
        self.place.run.append(
            [{"event": "point", **point.to_dict(), "model": fingerprint, "target": self._digest, **more, "says": says}]
        )
        self.say(says)

    def _judge(self, baseline: Record, record: Record) -> Verdict:
        return judge(
            baseline, record, tolerance=self.inputs.tolerance, level=self.inputs.level, leave_out=self.inputs.left_out
        )

    def _written(self, at: float) -> Path:
        """The point in a folder beside the repair's, as it will be shipped."""
        folder = self.place.fresh("model")
        self.line.write(folder, at)
        return folder

    def _certify(self, baseline: Record, at: float) -> Verdict:
        """Judge what is on disk by the gate half, and write down that it was opened."""
        run = self.place.run
        folder = self._written(at)
        loaded = load_model(folder, dtype=self.inputs.dtype, say=self.say)
        scorer = self.measuring.ready(loaded, baseline)
        header = scorer.header(loaded.model, part="gate", name=f"{at:.5g} of the line")
        fingerprint = header.model_fingerprint
        if fingerprint != Record.load(self.place.look(at)).header.model_fingerprint:
            raise RunError(f"{folder}: what was written is not what was chosen; is the disk sound?")
        opening = openings.next_opening(run.events(), suite=self.inputs.suite.name, model=fingerprint)
        run.append([opening.opened])
        record = self.measuring.gate(scorer, loaded.model, header, baseline)
        verdict = dataclasses.replace(self._judge(baseline, record), opening=opening.number)
        run.save_verdict(verdict)
        run.append(
            [{"event": "gate", "zone": verdict.zone, **record.header.cost, **opening.fields, "says": str(verdict)}]
        )
        return verdict

    def _ship(self, baseline: Record, at: float, verdict: Verdict) -> None:
        run = self.place.run
        tuned = self.measuring.tuned_gate(baseline)
        points = points_of(run.events())
        balance = balance_of(baseline, tuned, Record.load(run.final), points, at)
        folder = self._written(at)
        given = self.line.folder / "README.md"
        base = BUILTIN_HUB if self.line.base == BUILTIN else self.line.base
        text = card(
            base=base, tuned=self.line.tuned, is_adapter=isinstance(self.line, AdapterLine), at=at, points=points,
            balance=balance, verdict=verdict, given=read_text(given) if given.is_file() else None,
        )  # fmt: skip
        write_text(folder / "README.md", text)
        self.place.ship(folder)
        self._end(verdict)

    def _end(self, verdict: Verdict) -> None:
        run = self.place.run
        run.save_verdict(verdict)
        shipped = verdict.zone is not Zone.REGRESSED
        says = "the model is in place" if shipped else f"nothing was shipped: {verdict.reasons[0]}"
        run.append([{"event": "end", "zone": verdict.zone, "says": says}])
        write_pages(run)
        run.update(outcome="repaired" if shipped else "nothing")
        self.place.clear()
        self.place.clear_journals()


def _read(place: Place) -> Repaired:
    """What came of a repair that has ended, from its folder."""
    run = place.run
    verdict, config = run.verdict(), run.config
    assert verdict is not None
    at = config.get("chosen") if config.get("outcome") == "repaired" else None
    points = points_of(run.events())
    final = Record.load(run.final) if run.final.is_file() else None
    tuned = Record.load(place.tuned) if place.tuned.is_file() else None
    balance = balance_of(Record.load(run.baseline), tuned, final, points, config.get("chosen"), shipped=at is not None)
    return Repaired(place.out, at, verdict, points, balance)
