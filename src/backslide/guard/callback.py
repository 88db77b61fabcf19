"""Guard: one line in a training script. A thin `transformers.TrainerCallback` over schedule, monitor and policy."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from backslide.errors import ConfigError, InputError, MismatchError, RunError, SuiteError
from backslide.guard import joint, monitor, policy, schedule
from backslide.judge import Alarms, judge
from backslide.record import Record, pair
from backslide.report.markdown import write_report
from backslide.rundir import RunFolder
from backslide.scoring.engine import Progress, Scorer, Settings, versions
from backslide.suite.item import OpenItem
from backslide.suite.suite import Suite
from backslide.verdict import Level, Tolerance, Verdict, Zone, main_row

logger = logging.getLogger("backslide")


class Guard(TrainerCallback):
    """Watch a training run: measure before it, during it and after it, and say whether something was lost.

    Args:
        suite: what the model is asked, or where to read it. Default: the bundled repertoire.
        every: look after every so many optimizer steps. Default: `looks` of them, denser early.
        looks: number of looks.
        on_regression: `warn`, `stop`, or a function from a look's `Verdict` to one of these or None.
        tolerance: accepted drop in accuracy of a capability, as a share.
        alpha: probability of a false alarm over the whole run.
        test: how α is kept over the looks. `exact`: shared out to looks and capabilities, valid whatever the outcomes
            are. `joint`: sign-flips of whole trajectories, which sees smaller drops; exact where each item's drops are
            as likely as their mirror image if nothing was lost, else asymptotic.
        baseline: a record of the base model, or its file, so that it is not measured again.
        run_dir: the run's folder. Default: `backslide` in the trainer's `output_dir`.
        settings: how the suite is asked.
        name: the model's name, for people. Default: what it was loaded from.
        extra: further fields for the run's `run.json`.
        say: told what happens, a line each. Default: the logger `backslide`, as warnings, which transformers shows.
        progress: called while items are scored.

    Raises:
        InputError: an argument or the suite is wrong.
    """

    def __init__(
        self,
        suite: Suite | str | Path | None = None,
        *,
        every: int | None = None,
        looks: int | None = None,
        on_regression: policy.Policy = "warn",
        tolerance: float = 0.03,
        alpha: float = 0.05,
        test: str = "exact",
        baseline: Record | str | Path | None = None,
        run_dir: str | Path | None = None,
        settings: Settings | None = None,
        name: str | None = None,
        extra: Mapping[str, Any] | None = None,
        say: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        if suite is None:
            suite = Suite.repertoire()
        self.suite = suite if isinstance(suite, Suite) else Suite.load(suite)
        _both_halves(self.suite)
        schedule.plan_looks(1, every=every, looks=looks)
        self._every, self._looks = every, looks
        self._policy = policy.check(on_regression)
        self._tolerance = Tolerance(accuracy=tolerance)
        self._alpha = Level(fail=alpha, passing=alpha).fail
        if test not in monitor.TESTS:
            raise ConfigError(f"test is {test!r}, one of {', '.join(monitor.TESTS)} is needed")
        self._test = test
        self._joint: joint.Joint | None = None
        self._given = Record.load(baseline) if isinstance(baseline, (str, Path)) else baseline
        self._run_dir = Path(run_dir) if run_dir is not None else None
        self._settings = settings
        self._name = name
        self._extra = dict(extra or {})
        self._tell = say or (lambda line: logger.warning("backslide: %s", line))
        self._progress = progress
        self._scorer: Scorer | None = None
        self._state: monitor.State | None = None
        self._last: Verdict | None = None
        self._writes = True
        self.run: RunFolder | None = None
        """The run's folder, once training has begun."""
        self.baseline: Record | None = None
        """What the model did before training."""
        self.final: Record | None = None
        """What the final model did on the gate half."""
        self.verdict: Verdict | None = None
        """The final verdict, once training has ended."""
        self.looks: list[Verdict] = []
        """The verdict of each look during training."""

    @property
    def regressed_at(self) -> int | None:
        """Step of the look that first proved a regression."""
        return self._state.regressed_at if self._state is not None else None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure the baseline, or load it where the run is resumed."""
        tokenizer = _tokenizer(kwargs.get("processing_class"))
        self._writes = bool(state.is_world_process_zero)
        self.run = RunFolder(self._run_dir or Path(args.output_dir) / "backslide")
        self._scorer = Scorer(self.suite, model, tokenizer, self._settings)
        self.looks, self._last, self.verdict, self.final = [], None, None, None
        resumed = state.global_step > 0
        looks = schedule.plan_looks(state.max_steps, every=self._every, looks=self._looks)
        planned = len(looks) + bool(getattr(args, "load_best_model_at_end", False))
        if resumed and self.run.exists():
            planned = self._same_plan(planned)
        self._state = monitor.State(looks=looks, alpha=self._alpha, planned=planned)
        self._joint = joint.Joint(self._state.looks_alpha, planned) if self._test == "joint" else None
        if resumed:
            self._resume(state.global_step)
            return
        # First what may be refused, then the folder: a baseline that does not fit leaves nothing behind.
        self.baseline = self._take_baseline(model)
        if self._writes:
            self.run.begin(self._config(args, model, looks, kwargs.get("train_dataloader")))
            self.baseline.save(self.run.baseline)
        cost = self.baseline.header.cost
        self._write([{"event": "baseline", "step": 0, "given": self._given is not None, **cost}])

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Note the target's losses."""
        if self._state is not None:
            self._state, events = monitor.on_log(self._state, state.global_step, logs or {})
            self._write(events)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> Any:
        """Look, where a look is due."""
        if self._state is None or not self._state.due(state.global_step):
            return control
        action = self._look(model, state.global_step)
        self._state_into(state)
        if action is not None and action.kind == "stop":
            control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Judge the final model on the gate half, and write verdict and report."""
        if self._state is None or self.baseline is None or self._scorer is None:
            return
        step = state.global_step
        # The final weights may be others than the last look's: an early stop, or the best checkpoint loaded.
        if self._last is None or self._last.step != step or getattr(args, "load_best_model_at_end", False):
            self._last = self._judge_look(self._measure(model, "monitor", step))
        self.final = self._measure(model, "gate", step, replies=True)
        gate = self._judge(self.final, self._state.gate_level)
        self.verdict = monitor.conclude(self._state, self._last, gate)
        self._write([
            {"event": "gate", "step": step, "zone": gate.zone, **self.final.header.cost},
            {"event": "end", "step": step, "zone": self.verdict.zone, "reason": self.verdict.reasons[0]},
        ])  # fmt: skip
        if self._writes and self.run is not None:
            self.final.save(self.run.final)
            setup = {**self.run.config["setup"], "steps": step, "epochs": state.epoch}
            self.run.update(setup=setup)
            self.run.save_verdict(self.verdict)
            write_report(self.run)
        self._say(f"final model, gate half: {_brief(gate)}; verdict: {self.verdict.zone}")

    def _take_baseline(self, model: Any) -> Record:
        assert self._scorer is not None
        if self._given is None:
            return self._scorer.baseline(
                model, adapters=False, probe=True, name=self._name or _name(model), progress=self._progress
            )
        # Everything that must be equal, before a step is made.
        unanswered = self._scorer.unanswered(model, adapters=False)
        pair(self._given, unanswered)
        now, then = unanswered.header.model_fingerprint, self._given.header.model_fingerprint
        if now != then:
            raise MismatchError(
                f"the baseline was measured on other weights ({self._given.header.model}, {then[:12]}) than the "
                f"model that is about to be trained ({now[:12]}); measure it again, or leave it out"
            )
        return self._given

    def _look(self, model: Any, step: int) -> policy.Action | None:
        assert self._state is not None
        record = self._measure(model, "monitor", step)
        if self._writes and self.run is not None:
            record.save(self.run.step(step))
        verdict = self._judge_look(record)
        self._state, events, action = monitor.on_look(self._state, step, verdict, self._policy)
        events[0].update(record.header.cost)
        self._write(events)
        self._last = verdict
        self.looks.append(verdict)
        self._say(f"step {step}: {_brief(verdict)}" + (f" → {action.kind}" if action else ""))
        return action

    def _measure(self, model: Any, part: Any, step: int, *, replies: bool = False) -> Record:
        assert self._scorer is not None and self.baseline is not None
        # Only where there is something to compare with: a given baseline may be without.
        probe = any(outcome.kind == "answer" and outcome.scores for outcome in self.baseline.outcomes)
        return self._scorer.measure(
            model,
            part=part,
            replies=replies,
            probe=probe,
            name=self._name or _name(model),
            step=step,
            progress=self._progress,
        )

    def _judge(self, record: Record, level: Level, alarms: Alarms | None = None) -> Verdict:
        assert self.baseline is not None
        return judge(self.baseline, record, tolerance=self._tolerance, level=level, alarms=alarms)

    def _judge_look(self, record: Record) -> Verdict:
        assert self._state is not None and self.baseline is not None
        if self._state.spent:
            # Beyond what was planned, such as a run resumed at its last step: it proves nothing, and α is kept.
            return self._judge(record, self._state.level, Alarms(frozenset(), self._state.looks_alpha, "no test left"))
        if self._joint is None:
            return self._judge(record, self._state.level)
        self._joint, alarms = joint.on_record(self._joint, self.baseline, record)
        return self._judge(record, self._state.level, alarms)

    def _same_plan(self, planned: int) -> int:
        """The number of looks that the run was begun with. Raises `MismatchError` where its α would not be kept."""
        assert self.run is not None
        config = self.run.config
        asked = {"alpha": self._alpha, "test": self._test, "tolerance": self._tolerance.accuracy}
        for name, value in asked.items():
            if config.get(name, value) != value:
                raise MismatchError(
                    f"{self.run.path}: the run was begun with {name} = {config[name]!r} and is resumed with {value!r}; "
                    "false alarms are counted over the whole run, so resume it with the same"
                )
        return int(config.get("planned", len(config.get("looks", ())) or planned))

    def _resume(self, step: int) -> None:
        assert self.run is not None and self._state is not None
        if not self.run.baseline.exists():
            raise RunError(
                f"{self.run.baseline}: the run is resumed at step {step}, but the baseline that was measured before "
                "training is not there; start the run anew, since a trained model cannot be its own baseline"
            )
        self.baseline = Record.load(self.run.baseline)
        if self.baseline.header.suite_hash != self.suite.hash:
            raise MismatchError(f"{self.run.baseline}: was measured on another suite than {self.suite.name}")
        for event in self.run.events():
            if event.get("event") == "broke" and event.get("step", 0) <= step:
                self._state = dataclasses.replace(self._state, broke=str(event.get("reason")))
        for record in self.run.steps():
            at = record.header.step
            if at is None:
                continue
            verdict = self._judge_look(record)
            if at > step:
                # It was taken on weights that are gone; what it said is not kept, and what it cost is.
                self._state = dataclasses.replace(self._state, lost=self._state.lost + 1)
                continue
            self._state, _, _ = monitor.on_look(self._state, at, verdict, "warn")
            self._last = verdict
            self.looks.append(verdict)
        due = sum(self._state.due(look) for look in self._state.looks)
        left = self._state.shares - len(self._state.done) - self._state.lost
        if due > left:
            self._say(
                f"the run was begun with {self._state.shares} looks, {max(left, 0)} of them are left for {due}: "
                "the last ones have no α and prove nothing; the gate half decides as before"
            )
        self._write([{"event": "resumed", "step": step}])

    def _state_into(self, state: Any) -> None:
        """Put the look into the trainer's log history, where its own losses are."""
        if self._last is not None:
            drop = self._last.pooled.drop if self._last.pooled else None
            entry: dict[str, Any] = {"backslide/zone": str(self._last.zone), "step": state.global_step}
            if drop is not None:
                entry["backslide/drop"] = drop
            for row in self._last.capabilities:
                if row.candidate is not None and math.isfinite(row.candidate):
                    entry[f"backslide/{row.capability}"] = row.candidate
            state.log_history.append(entry)

    def _config(self, args: Any, model: Any, looks: tuple[int, ...], data: Any) -> dict[str, Any]:
        peft = getattr(model, "peft_config", None)
        adapter = next(iter(peft.values())) if peft else None
        total = sum(p.numel() for p in model.parameters())
        return {
            "model": self._name or _name(model),
            "suite": self.suite.name,
            "suite_hash": self.suite.hash,
            "alpha": self._alpha,
            "tolerance": self._tolerance.accuracy,
            "test": self._test,
            "looks": list(looks),
            "planned": self._state.shares if self._state is not None else len(looks),
            "on_regression": self._policy if isinstance(self._policy, str) else "function",
            "setup": {
                "method": str(getattr(adapter.peft_type, "value", adapter.peft_type)).lower() if adapter else "full",
                "rank": getattr(adapter, "r", None),
                "lora_alpha": getattr(adapter, "lora_alpha", None),
                "rslora": bool(getattr(adapter, "use_rslora", False)),
                "learning_rate": args.learning_rate,
                "max_steps": looks[-1],
                "warmup_steps": args.get_warmup_steps(looks[-1]),
                "scheduler": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
                "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps,
                "examples": _examples(data),
                "seed": args.seed,
                "parameters": total,
                "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            },
            "questions": {item.id: item.prompt for item in self.suite.items if isinstance(item, OpenItem)},
            "versions": versions(),
            **self._extra,
        }

    def _write(self, events: list[dict[str, Any]]) -> None:
        if events and self._writes and self.run is not None:
            self.run.append(events)

    def _say(self, line: str) -> None:
        if self._writes:
            self._tell(line)


def _both_halves(suite: Suite) -> None:
    # Better now than after the training: looks need the monitor half, the verdict needs the gate half.
    for half in ("monitor", "gate"):
        if all(item.kind == "open" for item in suite.part(half)):
            raise SuiteError(f"suite {suite.name}: its {half} half has no item that can be judged; add items")


def _tokenizer(processing: Any) -> Any:
    if processing is None:
        raise InputError("the trainer has no tokenizer; give it one as processing_class, so that items can be asked")
    # A processor of a vision-language model holds its tokenizer.
    return getattr(processing, "tokenizer", processing)


def _examples(loader: Any) -> int | None:
    """Number of training examples; None of a stream, whose length is not known."""
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


def _brief(verdict: Verdict) -> str:
    """A look in a few words: all items together, and why where something was lost."""
    row = main_row(verdict)
    if verdict.zone is Zone.REGRESSED or row is None or row.baseline is None or row.candidate is None:
        return str(verdict)
    if row.unit == "accuracy":
        return f"{verdict.zone}, accuracy {row.baseline:.1%} → {row.candidate:.1%}, {row.lost} lost, {row.won} won"
    return f"{verdict.zone}, {row.unit} {row.baseline:.3f} → {row.candidate:.3f}"


def _name(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
