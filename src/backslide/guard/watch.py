"""One run, watched: measures, judges, decides, writes down. Knows models and records, and no trainer.

What drives it (`backslide.Guard`: a trainer's callbacks, or the user's own loop) says when training begins, when a step
has ended and when the training has. All processes of a run call it alike; the first one writes and speaks.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from backslide.diagnosis import diagnose, losses_of
from backslide.errors import BackslideError, MismatchError, ModelError, RunError
from backslide.guard import joint, monitor, schedule, words
from backslide.guard.actions import Actor, Tools
from backslide.guard.baseline import take_baseline
from backslide.guard.journal import Journal
from backslide.guard.options import Options, Training
from backslide.guard.pacing import Pacer
from backslide.guard.policy import Action
from backslide.guard.writer import Writer
from backslide.judge import Alarms, judge
from backslide.record import Record
from backslide.report.markdown import write_report
from backslide.rundir import RunFolder
from backslide.scoring.engine import Scorer, versions
from backslide.scoring.forward import uncompiled
from backslide.scoring.ranks import Ranks
from backslide.suite.item import OpenItem
from backslide.verdict import Level, Tolerance, Verdict, Zone


class Watch:
    """A run that is watched, from its first step on.

    Raises:
        InputError: suite, baseline or model do not fit, or a resumed run was begun otherwise.
        RunError: the run's folder cannot be written, or a resumed run has lost its baseline.
    """

    def __init__(self, options: Options, training: Training, model: Any, tokenizer: Any, tools: Tools) -> None:
        self.options, self.training = options, training
        self.ranks = Ranks.of(model)
        model = uncompiled(model)
        self.run = RunFolder(training.folder)
        self._writer = Writer(self.run, writes=self.ranks.first, warn=options.warn)
        self._scorer = Scorer(options.suite, model, tokenizer, options.settings)
        self._name = options.name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        self.looks: list[Verdict] = []
        self.final: Record | None = None
        self.verdict: Verdict | None = None
        self.stop = False
        """Whether the training is to end after this step."""
        self.acted: str | None = None
        """What was done last; whoever reads it forgets it."""
        self._last: Verdict | None = None
        self._kept: Verdict | None = None
        self._looked = training.step
        self._back_at: int | None = None
        self._losses: list[dict[str, Any]] = []
        self._waiting: dict[int, Record] = {}
        resumed = training.step > 0
        config = self.ranks.agreed(self.run.config if resumed and self.run.exists() else None)
        self.state = self._plan(config)
        self._joint = joint.Joint(self.state.looks_alpha, self.state.shares) if options.test == "joint" else None
        # First what may be refused, then the folder: a baseline that does not fit leaves nothing behind.
        self._actor = Actor(options, self.run.snapshot, writes=self.ranks.first)
        self._actor.check(tools)
        if resumed:
            self.baseline = self._saved_baseline()
            self._replay(training.step)
        else:
            self.baseline = self._begin(model)
        self.pacer = Pacer(
            self._scorer, model, self.baseline, budget=options.share, whole=self._joint is not None, ranks=self.ranks
        )
        if self._last is None or self._last.zone is not Zone.REGRESSED:
            self._actor.keep(tools, training.step)

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
        self.state, events = monitor.on_log(self.state, step, log)
        self._losses += [event for event in events if event["event"] == "loss"]
        self._write(events)
        broke = self.state.broke
        if broke is None or was is not None:
            return
        if self._back_at == step:
            # The weights that made this loss are gone already.
            self.state = dataclasses.replace(self.state, broke=None)
            return
        self._tell(f"step {step}: the run broke: {broke}")
        # More of the old data, or a lower rate, mend no weights that are not finite; a function is asked at looks.
        if self.options.on_regression in ("stop", "rollback"):
            self._act(Action(str(self.options.on_regression), broke), step, tools)

    def due(self, step: int) -> bool:
        """Whether to look after `step`."""
        if not self.state.open:
            return self.state.due(step)
        every = self.options.every
        return step % every == 0 if every is not None else step >= schedule.next_look(self._looked)

    def look(self, model: Any, step: int, tools: Tools) -> Verdict | None:
        """Look at the monitor half, decide, and act; None where the look was passed over or could not be made."""
        model = uncompiled(model)
        self._looked = step
        number = len(self.state.done) + 1 if self.state.open else self.state.place(step)
        # Where each evaluation asks for what the look says, none is passed over.
        always = bool(self.training.evaluations)
        only = self.pacer.take(number, self.state.shares, self.training.steps, always=always)
        if only is not None and not only:
            self._write(
                [{"event": "passed", "step": step, "number": number, "says": "too dear for the budget; passed over"}]
            )
            return None
        record = self._measure(model, "monitor", step, self.run.step(step), only=only)
        if record is None:
            return None
        verdict = self._judge_look(record, step)
        self._last = verdict
        self.looks.append(verdict)
        self.state, events, action = monitor.on_look(self.state, step, verdict, self.options.on_regression)
        action = self.ranks.agreed(action)
        found = diagnose(
            losses_of(self._losses), [(v.step or 0, v.zone) for v in self.looks], verdict, self.training.setup
        )
        items = sum(row.items for row in verdict.capabilities)
        of = f"look {number}" if self.state.open else f"look {number} of {self.state.shares}"
        seconds = record.header.cost.get("seconds", 0.0)
        events[0] |= record.header.cost
        events[0] |= {
            "number": number,
            "items": items,
            "says": f"{of}, {words.counted(items, 'item')}: {words.seen(verdict)}",
        }
        says = f"{verdict}; {found.state}; " + (action.kind if action is not None else "nothing to do")
        decision = {"event": "decision", "step": step, "zone": verdict.zone, "state": found.state, "says": says}
        self._write([*events, decision])
        self._tell(
            f"step {step} ({of}, {items} items, {seconds:.1f} s): {words.brief(verdict)}"
            + (f" → {action.kind}" if action else "")
        )
        if action is not None:
            self._act(action, step, tools)
        elif verdict.zone is not Zone.REGRESSED and self._actor.keep(tools, step, verdict):
            self._kept = verdict
        return verdict

    def finish(self, model: Any, step: int, *, changed: bool = False, **setup: Any) -> Verdict:
        """Judge the final model on the gate half, and write verdict and report.

        Args:
            model: the final model.
            step: optimizer steps made.
            changed: whether its weights may be others than those after that step, such as the best checkpoint's.
            setup: what is known of the training now that it has ended.
        """
        model = uncompiled(model)
        # The final weights may be others than the last look's: an early stop, or the best checkpoint loaded.
        if self._last is None or self._last.step != step or changed:
            last = self._measure(model, "monitor", step, self.run.final_monitor)
            self._last = None if last is None else self._judge_look(last, step, last=True)
        self.final = self._measure(model, "gate", step, self.run.final, replies=True)
        gate = None if self.final is None else self._judge(self.final, self.state.gate_level)
        self.verdict = monitor.conclude(self.state, self._last, gate)
        events: list[dict[str, Any]] = []
        if gate is not None and self.final is not None:
            says = f"judged the final model on the sealed gate half: {words.seen(gate)}; {gate}"
            events.append({"event": "gate", "step": step, "zone": gate.zone, **self.final.header.cost, "says": says})
        reason = self.verdict.reasons[0]
        events.append(
            {"event": "end", "step": step, "zone": self.verdict.zone, "reason": reason, "says": str(self.verdict)}
        )
        self._write(events)
        verdict = self.verdict
        self._writer.do("run.json", lambda: self.run.update(setup={**self.run.config["setup"], "steps": step, **setup}))
        self._writer.do("verdict.json", lambda: self.run.save_verdict(verdict))
        self._writer.do("report.md", lambda: write_report(self.run))
        self._writer.end()
        shown = words.brief(gate) if gate is not None else "not measured"
        self._tell(f"final model, gate half: {shown}; verdict: {self.verdict.zone}")
        return self.verdict

    # Beginning.

    def _plan(self, config: Mapping[str, Any] | None) -> monitor.State:
        options, training = self.options, self.training
        alpha = options.alpha
        if training.steps is None:
            return monitor.State(looks=(), alpha=alpha, open=True)
        looks = training.evaluations or schedule.plan_looks(training.steps, every=options.every, looks=options.looks)
        planned = len(looks) + training.best
        if config is not None:
            asked = {"alpha": alpha, "test": options.test, "tolerance": options.tolerance}
            for name, value in asked.items():
                if config.get(name, value) != value:
                    raise MismatchError(
                        f"{self.run.path}: the run was begun with {name} = {config[name]!r} and is resumed with "
                        f"{value!r}; false alarms are counted over the whole run, so resume it with the same"
                    )
            planned = int(config.get("planned", len(config.get("looks", ())) or planned))
        return monitor.State(looks=looks, alpha=alpha, planned=planned)

    def _begin(self, model: Any) -> Record:
        began = time.perf_counter()
        journal = self._journal(model, "all", self.run.baseline, adapters=False)
        try:
            baseline, how = take_baseline(self.options, self._scorer, model, journal, self.ranks, name=self._name)
        except (BackslideError, torch.OutOfMemoryError):
            raise
        except Exception as bad:
            # Whatever a model's own code raises; the run has not begun, and without a baseline it would be unwatched.
            why = " ".join(str(bad).split())[:300]
            raise ModelError(
                f"{self._name}: could not be measured before training: {type(bad).__name__}: {why}; a causal language "
                "model is needed whose forward takes input_ids and attention_mask alone"
            ) from bad
        try:
            if self.ranks.first:
                self.run.begin(self._config(model))
                baseline.save(self.run.baseline)
            journal.close(done=True)
        except OSError as bad:
            raise RunError(
                f"{self.run.path}: cannot be written: {bad.strerror or bad}; make room, or give another run_dir"
            ) from bad
        finally:
            journal.close(done=False)
        seconds = round(time.perf_counter() - began, 3)
        cost = {**baseline.header.cost, "seconds": seconds} if how != "measured" else baseline.header.cost
        looks = self.state.looks
        says = words.of_plan(looks, self.training.steps, self.options.share)
        self._write([
            {"event": "baseline", "step": 0, "how": how, **cost, "says": words.of_baseline(baseline, how)},
            {"event": "plan", "step": 0, "looks": list(looks), "budget": self.options.share, "says": says},
        ])  # fmt: skip
        self._tell(words.of_baseline(baseline, how))
        self._tell(says)
        return baseline

    def _saved_baseline(self) -> Record:
        found: Record | None = None
        if self.ranks.first and self.run.baseline.exists():
            found = Record.load(self.run.baseline)
        found = self.ranks.agreed(found)
        if found is None:
            raise RunError(
                f"{self.run.baseline}: the run is resumed at step {self.training.step}, but the baseline that was "
                "measured before training is not there; start the run anew, since a trained model cannot be its own "
                "baseline"
            )
        if found.header.suite_hash != self.options.suite.hash:
            raise MismatchError(f"{self.run.baseline}: was measured on another suite than {self.options.suite.name}")
        return found

    def _replay(self, step: int) -> None:
        """Stand where the run stood at `step`: the looks up to it, and those after it that will come by again."""
        events, records = self.ranks.agreed((self.run.events(), self.run.steps()) if self.ranks.first else ([], []))
        broke = [e for e in events if e.get("event") == "broke" and e.get("step", 0) <= step]
        if broke:
            self.state = dataclasses.replace(self.state, broke=str(broke[0].get("reason")))
        self._losses = [event for event in events if event.get("event") == "loss" and event.get("step", 0) <= step]
        for record in records:
            at = record.header.step
            if at is not None and at <= step:
                verdict = self._judge_look(record, at)
                self.state, _, _ = monitor.on_look(self.state, at, verdict, "warn")
                self.looks.append(verdict)
                self._last = verdict
        self._waiting = {r.header.step: r for r in records if r.header.step is not None and r.header.step > step}
        self.state = monitor.wait(self.state, tuple(self._waiting))

    # Measuring.

    def _measure(
        self, model: Any, part: Any, step: int, path: Path, *, only: frozenset[str] | None = None, replies: bool = False
    ) -> Record | None:
        """Measure, and save what was found; None where it could not be measured, which is said and written down."""
        began = time.perf_counter()
        journal: Journal | None = None
        try:
            earlier = self._earlier(model, step) if part == "monitor" and path == self.run.step(step) else None
            if earlier is not None:
                return earlier
            journal = self._journal(model, part, path)
            known = self.ranks.agreed(journal.known())
            record = self._scorer.measure(
                model,
                part=part,
                only=None if only is None else only | known.keys(),
                replies=replies,
                known=known,
                keep=journal.keep if self.ranks.split or self.ranks.first else None,
                ranks=self.ranks,
                name=self._name,
                step=step,
                progress=self.options.progress,
            )
        except Exception as bad:
            why = " ".join(str(bad).split())[:300]
            says = f"the {part} half could not be measured at step {step}: {type(bad).__name__}: {why}"
            self._write([{"event": "failed", "step": step, "part": part, "says": says}])
            self.options.warn(f"{says}; the training goes on, and nothing is taken for retained")
            return None
        finally:
            if journal is not None:
                journal.close(done=False)
        journal.close(done=self._writer.do(path.name, lambda: record.save(path)))
        if part == "monitor" and not known:
            self.pacer.looked([outcome.id for outcome in record.outcomes], time.perf_counter() - began)
        return record

    def _earlier(self, model: Any, step: int) -> Record | None:
        """The look that was taken at `step` before the run was resumed, if the weights have come out the same."""
        record = self._waiting.pop(step, None)
        if record is None:
            return None
        header = self._scorer.header(model, part="monitor", name=self._name, step=step)
        same = (record.header.model_fingerprint, record.header.conditions) == (
            header.model_fingerprint,
            header.conditions,
        )
        if self.ranks.agreed(same):
            self.state = monitor.again(self.state, step)
            return record
        if self._joint is not None:
            self._joint, _ = joint.on_record(self._joint, self.baseline, record)
        self._writer.do("steps/lost", lambda: self.run.lose(step))
        self.options.warn(
            f"step {step} comes by again with other weights than before the run was resumed; the look that was taken "
            "then has had this look's share of α, so this one proves nothing"
        )
        return None

    def _journal(self, model: Any, part: Any, path: Path, *, adapters: bool = True) -> Journal:
        header = self._scorer.header(model, part=part, adapters=adapters)
        return Journal(path, header, rank=self.ranks.rank, warn=self.options.warn)

    # Judging.

    def _judge(self, record: Record, level: Level, alarms: Alarms | None = None) -> Verdict:
        tolerance = Tolerance(accuracy=self.options.tolerance)
        return judge(self.baseline, record, tolerance=tolerance, level=level, alarms=alarms)

    def _judge_look(self, record: Record, step: int, *, last: bool = False) -> Verdict:
        state = self.state
        level = state.level(step, last=last)
        if level is None:
            # Nothing is left to test at, such as at the end of a run that looked at its last step: it proves nothing.
            rest = Level(fail=state.looks_alpha, passing=state.alpha)
            return self._judge(record, rest, Alarms(frozenset(), state.looks_alpha, "no test left"))
        if self._joint is None:
            return self._judge(record, level)
        self._joint, alarms = joint.on_record(self._joint, self.baseline, record)
        return self._judge(record, level, alarms)

    # Acting, writing and speaking.

    def _act(self, action: Action, step: int, tools: Tools) -> None:
        done = self._actor.do(action, tools, step)
        self.acted = done.kind
        self.stop |= done.kind == "stop"
        if done.kind == "rollback":
            self._last, self._back_at = self._kept, step
        if done.mends and self.state.broke is not None:
            self.state = dataclasses.replace(self.state, broke=None)
        event = {"event": "action", "step": step, "action": done.kind, "reason": action.reason, "says": done.says}
        self._write([{**event, **done.values}])
        if done.kind != "warn":
            self._tell(f"step {step}: {done.says}")

    def _config(self, model: Any) -> dict[str, Any]:
        options, suite = self.options, self.options.suite
        return {
            "model": self._name,
            "suite": suite.name,
            "suite_hash": suite.hash,
            "alpha": options.alpha,
            "tolerance": options.tolerance,
            "test": options.test,
            "looks": list(self.state.looks),
            "planned": self.state.shares,
            "budget": options.share,
            "on_regression": options.on_regression if isinstance(options.on_regression, str) else "function",
            "setup": dict(self.training.setup),
            "processes": self.ranks.size,
            "questions": {item.id: item.prompt for item in suite.items if isinstance(item, OpenItem)},
            "versions": versions(),
            **options.extra,
        }

    def _write(self, events: list[dict[str, Any]]) -> None:
        if events:
            self._writer.append(events)

    def _tell(self, line: str) -> None:
        if self.ranks.first:
            self.options.tell(line)
