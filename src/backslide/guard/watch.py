"""One run, watched: measures, judges, decides, writes down. Knows models and records, and no trainer.

What drives it (`backslide.Guard`: a trainer's callbacks, or the user's own loop) says when training begins, when a step
has ended and when the training has. All processes of a run call it alike; the first one writes and speaks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backslide import openings
from backslide.diagnosis import compare, diagnose, losses_of
from backslide.guard import joint, monitor, schedule, words
from backslide.guard.actions import Actor, Tools, Trial
from backslide.guard.begin import Begun, begin
from backslide.guard.cured import Cured, drop_of
from backslide.guard.journal import Journal
from backslide.guard.options import Options, Training
from backslide.guard.pacing import Pacer
from backslide.guard.policy import Action, is_kept
from backslide.guard.writer import Writer
from backslide.judge import Alarms, judge
from backslide.openings import Opening
from backslide.record import Header, Record
from backslide.report.pages import write_pages
from backslide.scoring.forward import uncompiled
from backslide.verdict import Level, Tolerance, Verdict, Zone


class Watch:
    """A run that is watched, from its first step on.

    Raises:
        InputError: suite, baseline or model do not fit, or a resumed run was begun otherwise.
        RunError: the run's folder cannot be written, or a resumed run has lost its baseline.
    """

    def __init__(self, options: Options, training: Training, model: Any, tokenizer: Any, tools: Tools) -> None:
        began = time.perf_counter()
        self.training = training
        self._actor = Actor(options, training.folder)
        self._actor.check(tools)
        begun: Begun = begin(options, training, uncompiled(model), tokenizer)
        self.ranks, self.run, self._scorer, self._name = begun.ranks, begun.run, begun.scorer, begun.name
        self.options, self.baseline, self.state = begun.options, begun.baseline, begun.state
        self._writer = Writer(self.run, writes=self.ranks.first, warn=options.warn)
        self._write(begun.events)
        self.looks: list[Verdict] = list(begun.looks)
        self.final: Record | None = None
        self.verdict: Verdict | None = None
        self.stop = False
        """Whether the training is to end after this step."""
        self.acted: str | None = None
        """What was done last; whoever reads it forgets it."""
        self._joint = begun.joint
        self._waiting = begun.waiting
        self._losses: list[Mapping[str, Any]] = begun.past.of("loss")
        # What is known of the present weights: the last look's verdict, and the fingerprint that it was of.
        self._last: Verdict | None = None if begun.past.back else (self.looks[-1] if self.looks else None)
        self._kept: Verdict | None = None
        self._cured = Cured.of(begun.past.line)
        self._looked = self.state.done[-1] if self.state.done else 0
        self._back_at: int | None = None
        self.pacer = Pacer(
            self._scorer, uncompiled(model), self.baseline, budget=options.share, whole=self._joint is not None,
            ranks=self.ranks,
        )  # fmt: skip
        # What makes the suite ready is paid by the looks, which would not be without it.
        baseline = sum(event.get("seconds", 0.0) for event in begun.events if event["event"] == "baseline")
        self.pacer.spent = begun.past.spent + max(0.0, time.perf_counter() - began - baseline)
        held = all(self.ranks.gather(self._actor.resume(begun.past, training.step)))
        if not held and (self._last is None or is_kept(self._last)):
            self._keep(tools, training.step, None)
        elif not held:
            self._actor.bare(training.step)

    @property
    def zone(self) -> Zone | None:
        """What the last look says of the present weights; None before the first."""
        if self.state.broke is not None:
            return Zone.REGRESSED
        return self._last.zone if self._last is not None else None

    # What the driver calls.

    def losses(self, step: int, log: Mapping[str, Any], tools: Tools) -> None:
        """Note the target's losses; one that is not finite breaks the run, and is acted on as a regression is."""
        was = self.state.broke
        state, events = monitor.on_log(self.state, step, log)
        if self._back_at == step and was is None and state.broke is not None:
            # The weights that made this loss are gone already.
            state, events = dataclasses.replace(state, broke=None), events[:1]
        self.state = state
        self._losses += [event for event in events if event["event"] == "loss"]
        self._write([*events, *self._cured.effects(self._losses, step)])
        broke = self.state.broke
        if broke is None or was is not None:
            return
        self._tell(f"step {step}: the run broke: {broke}")
        # More of the old data, or a lower rate, mend no weights that are not finite; a function is asked at looks.
        if self.options.on_regression in ("stop", "rollback", "auto"):
            self._act(Action(str(self.options.on_regression), broke), step, tools)

    def due(self, step: int) -> bool:
        """Whether to look after `step`."""
        if not self.state.open:
            return self.state.due(step)
        every = self.options.every
        return step % every == 0 if every is not None else step >= schedule.next_look(self._looked)

    def look(self, model: Any, step: int, tools: Tools) -> Verdict | None:
        """Look at the monitor half, decide, and act; None where the look was passed over or could not be made."""
        began = time.perf_counter()
        model = uncompiled(model)
        self._looked = step
        number = len(self.state.done) + 1 if self.state.open else self.state.place(step)
        looks = 0 if self.state.open else len(self.state.looks)
        earlier = self._earlier(model, step)
        only: frozenset[str] | None = None
        if earlier is None:
            # Where each evaluation asks for what the look says, none is passed over.
            always = bool(self.training.evaluations)
            only = self.pacer.take(number, looks, self.training.steps, always=always)
            if only is not None and not only:
                says = "too dear for the budget; passed over"
                self._write([{"event": "passed", "step": step, "number": number, "says": says}])
                return None
        record = earlier or self._measure(model, "monitor", step, self.run.step(step), only=only)
        verdict = None if record is None else self._judged(record, step)
        if record is None or verdict is None:
            return None
        self._cured.looked(step, verdict)
        self._last = verdict
        self.looks.append(verdict)
        self.state, events, action = monitor.on_look(self.state, step, verdict, self.options.on_regression)
        action = self.ranks.agreed(action)
        curve = [(v.step or 0, v) for v in self.looks]
        losses, known = losses_of(self._losses), compare(self.baseline, record)
        found = diagnose(losses, curve, verdict, self.training.setup, knowledge=known)
        items = sum(row.items for row in verdict.capabilities)
        of = f"look {number}" if self.state.open else f"look {number} of {looks}"
        says = f"{of}, {words.counted(items, 'item')}: {words.seen(verdict)}"
        more = {"number": number, "items": items, "model": record.header.model_fingerprint, **record.header.cost}
        doing = action.kind if action is not None else "nothing to do"
        self._write([
            {**events[0], **more, "says": says},
            {"event": "diagnosis", "step": step, **found.to_dict(), "says": f"{found.state}. {' '.join(found.story)}"},
            {"event": "decision", "step": step, "zone": verdict.zone, "says": f"{verdict} → {doing}"},
            *self._cured.effects(self._losses, step),
        ])  # fmt: skip
        seconds = record.header.cost.get("seconds", 0.0)
        self.pacer.spent += max(0.0, time.perf_counter() - began - seconds) if earlier is None else 0.0
        then = f" → {action.kind}" if action else ""
        self._tell(f"step {step} ({of}, {items} items, {seconds:.1f} s): {words.brief(verdict)}{then}")
        if action is not None:
            # Between weights that are no numbers and others are no numbers.
            sound = set(record.not_finite) <= set(self.baseline.not_finite)
            self._act(action, step, tools, self._trial(record, step, tools) if sound else None)
        elif verdict.zone is not Zone.REGRESSED:
            self._keep(tools, step, verdict)
        return verdict

    def finish(self, model: Any, step: int, **setup: Any) -> Verdict:
        """Judge the final model on the gate half, and write verdict and report.

        Args:
            model: the final model, whatever weights it has now: the last step's, or the best checkpoint's.
            step: optimizer steps made.
            setup: what is known of the training now that it has ended.
        """
        model = uncompiled(model)
        events: list[dict[str, Any]] = []
        header = self._header(model, "monitor", step)
        if self._last is None or header is None or header.model_fingerprint != self._seen:
            last = self._measure(model, "monitor", step, self.run.final_monitor, header=header)
            self._last = None if last is None else self._judged(last, step, last=True)
            if last is not None and self._last is not None:
                self.state, (look,), _ = monitor.on_look(self.state, step, self._last, "warn", last=True)
                says = f"a last look, at the weights that the run ended with: {words.seen(self._last)}"
                events.append({**look, "final": True, "model": self._seen, **last.header.cost, "says": says})
        # Of the best checkpoint, where that is what the run ends with, a cure that came later has no part.
        events += self._cured.end(self._losses, step, None if self.training.best else self._last)
        opening, header = None, self._header(model, "gate", step)
        if header is not None:
            opening = self._opens(header, step)
            self.final = self._measure(model, "gate", step, self.run.final, header=header, replies=True)
        gate = None if self.final is None else self._judged(self.final, step, gate=True)
        concluded = monitor.conclude(self.state, self._last, gate)
        self.verdict = dataclasses.replace(concluded, opening=opening.number if opening is not None else None)
        if gate is not None and self.final is not None and opening is not None:
            says = f"judged the final model on the sealed gate half: {words.seen(gate)}; {gate}"
            judged = {"event": "gate", "step": step, **opening.fields, "zone": gate.zone}
            events.append({**judged, **self.final.header.cost, "says": says})
        end = {"event": "end", "step": step, "zone": self.verdict.zone, "reason": self.verdict.reasons[0]}
        self._write([*events, {**end, "says": str(self.verdict)}])
        verdict = self.verdict
        self._writer.do("run.json", lambda: self.run.update(setup={**self.run.config["setup"], "steps": step, **setup}))
        self._writer.do("verdict.json", lambda: self.run.save_verdict(verdict))
        self._writer.do("report", lambda: write_pages(self.run))
        self._writer.end()
        shown = words.brief(gate) if gate is not None else "not measured"
        self._tell(f"final model, gate half: {shown}; verdict: {self.verdict.zone}")
        spent = openings.warning(self.verdict.opening)
        if spent is not None and self.ranks.first:
            self.options.warn(spent)
        return self.verdict

    def _opens(self, header: Header, step: int) -> Opening:
        """Which opening of the gate half this is; written down before anything of it is seen."""
        earlier: list[dict[str, Any]] = []
        if self.ranks.first:
            with contextlib.suppress(OSError):
                earlier = self.run.events()
        opening = openings.next_opening(earlier, suite=header.suite, model=header.model_fingerprint)
        opening = self.ranks.agreed(opening)
        self._write([{**opening.opened, "step": step}])
        return opening

    # Measuring.

    @property
    def _seen(self) -> str | None:
        """Fingerprint of the weights that the last look was of."""
        return self._fingerprint if self._last is not None else None

    _fingerprint: str | None = None

    def _header(self, model: Any, part: Any, step: int) -> Header | None:
        try:
            return self._scorer.header(model, part=part, name=self._name, step=step)
        except Exception as bad:
            self._failed(part, step, bad)
            return None

    def _measure(
        self,
        model: Any,
        part: Any,
        step: int,
        path: Path,
        *,
        header: Header | None = None,
        only: frozenset[str] | None = None,
        replies: bool = False,
        paced: bool = True,
    ) -> Record | None:
        """Measure, and save what was found; None where it could not be measured, which is said and written down."""
        header = header or self._header(model, part, step)
        if header is None:
            return None
        journal = Journal(path, header, rank=self.ranks.rank, warn=self.options.warn)
        try:
            known = self.ranks.agreed(journal.known())
            record = self._scorer.measure(
                model,
                part=part,
                only=None if only is None else only | known.keys(),
                replies=replies,
                # Only where there is something to compare with: a given baseline may be without.
                probe=only is None and any(o.kind == "answer" and o.scores for o in self.baseline.outcomes),
                known=known,
                keep=journal.keep if self.ranks.split or self.ranks.first else None,
                ranks=self.ranks,
                header=header,
                progress=self.options.progress,
            )
        except Exception as bad:
            self._failed(part, step, bad)
            return None
        finally:
            journal.close(done=False)
        if self.ranks.first:
            # It alone removes journals, and only once the record is on the disk.
            journal.close(done=self._writer.do(path.name, lambda: record.save(path)))
        if part == "monitor" and paced and not known:
            self.pacer.looked([outcome.id for outcome in record.outcomes], record.header.cost["seconds"])
        return record

    def _failed(self, part: Any, step: int, bad: Exception) -> None:
        why = " ".join(str(bad).split())[:300]
        says = f"the {part} half could not be measured at step {step}: {type(bad).__name__}: {why}"
        self._write([{"event": "failed", "step": step, "part": part, "says": says}])
        self.options.warn(f"{says}; the training goes on, and nothing is taken for retained")

    def _earlier(self, model: Any, step: int) -> Record | None:
        """The look that was taken at `step` before the run was resumed, if the weights have come out the same."""
        records = self._waiting.pop(step, None)
        header = self._header(model, "monitor", step) if records else None
        if not records or header is None:
            return None
        for record in records:
            now, then = header.model_fingerprint, record.header.model_fingerprint
            if self.ranks.agreed(now == then and header.conditions == record.header.conditions):
                self.state = monitor.again(self.state, step, then)
                if self.ranks.first:
                    self._writer.do(f"step {step}", lambda r=record: r.save(self.run.step(step)))  # type: ignore[misc]
                return record
        if self._joint is not None:
            self._joint, _ = joint.on_record(self._joint, self.baseline, records[0], self.options.leave_out)
        self._writer.do("steps/lost", lambda: self.run.lose(step))
        self._tell(
            f"step {step} comes by again with other weights than before the run was resumed; the look that was taken "
            "then has had this look's share of α, so this one proves nothing"
        )
        return None

    # Judging.

    def _judged(
        self, record: Record, step: int, *, last: bool = False, gate: bool = False, steers: bool = False
    ) -> Verdict | None:
        """The verdict on a record; None where it cannot be compared, which is said, and ends no training."""
        try:
            verdict = self._judge(record, step, last=last, gate=gate, steers=steers)
        except Exception as bad:
            self._failed(record.header.part, step, bad)
            return None
        if not gate:
            self._fingerprint = record.header.model_fingerprint
        return verdict

    def _judge(self, record: Record, step: int, *, last: bool, gate: bool, steers: bool) -> Verdict:
        tolerance = Tolerance(accuracy=self.options.tolerance)
        state, out = self.state, self.options.leave_out
        level = state.gate_level if gate else state.level(step, last=last)
        alarms: Alarms | None = None
        if steers:
            # It raises no alarm, so it has nothing of the run's α, nor a part in a test over the looks.
            level = Level(fail=state.alpha, passing=state.alpha)
        elif level is None:
            # Nothing is left to test at, such as at the end of a run that looked at its last step: it proves nothing.
            level = Level(fail=state.looks_alpha, passing=state.alpha)
            alarms = Alarms(frozenset(), state.looks_alpha, "no test left")
        elif self._joint is not None and not gate:
            self._joint, alarms = joint.on_record(self._joint, self.baseline, record, out)
        return judge(self.baseline, record, tolerance=tolerance, level=level, alarms=alarms, leave_out=out)

    # Acting, writing and speaking.

    def _keep(self, tools: Tools, step: int, verdict: Verdict | None) -> None:
        took = self._actor.keep(tools, step, verdict)
        if took is None:
            return
        # All or none: one that could not keep it would go back to another state than the others.
        if all(self.ranks.gather(took)):
            self._kept = verdict
        else:
            self._actor.forget()

    def _trial(self, record: Record, step: int, tools: Tools) -> Trial:
        """Measures the items of a look again, on weights that were drawn back since.

        It does not count for the budget, since only a run that goes wrong pays for it.
        """
        only = frozenset(outcome.id for outcome in record.outcomes)

        def trial(share: float) -> Verdict | None:
            path = self.run.tried(step, share)
            found = self._measure(uncompiled(tools.model), "monitor", step, path, only=only, paced=False)
            verdict = None if found is None else self._judged(found, step, steers=True)
            if verdict is not None:
                self._write([words.of_trial(step, share, verdict)])
            return verdict

        return trial

    def _act(self, action: Action, step: int, tools: Tools, trial: Trial | None = None) -> None:
        left = None if self.state.open else max(0, self.state.looks[-1] - step)
        done = self._actor.do(action, tools, step, trial, left=left)
        kinds = self.ranks.gather(done.told)
        if len(set(kinds)) > 1:
            done = self._actor.apart(action, step, kinds)
        self.acted = done.kind
        self.stop |= done.kind == "stop"
        if done.mends:
            if done.verdict is not None:
                self._keep(tools, step, done.verdict)
            self._last, self._back_at = done.verdict or self._kept, step
        if done.mends and self.state.broke is not None:
            self.state = dataclasses.replace(self.state, broke=None)
        event = {"event": "action", "step": step, "action": done.kind, "reason": action.reason, "says": done.says}
        told = self._cured.taken_back(self._losses, step) if done.mends else []
        self._write([*told, {**event, **done.values, **({"mends": True} if done.mends else {})}])
        if "cures" in done.values:
            self._cured.by(done.values["cures"], step, len(self._losses), tried=drop_of(done.verdict))
        if done.kind != "warn":
            self._tell(f"step {step}: {done.says}")

    def _write(self, events: list[dict[str, Any]]) -> None:
        if events:
            self._writer.append(events)

    def _tell(self, line: str) -> None:
        if self.ranks.first:
            self.options.tell(line)
