"""Guard: one line in a training script. A thin `transformers.TrainerCallback`, and the same for a loop of one's own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from backslide.errors import ConfigError, InputError
from backslide.guard import trainer_log
from backslide.guard.actions import Tools
from backslide.guard.options import Options, Training
from backslide.guard.policy import Policy
from backslide.guard.setup import evaluations, setup_of, setup_of_callbacks, setup_of_trainer
from backslide.guard.watch import Watch
from backslide.leaks import found_in
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.scoring.engine import Settings
from backslide.scoring.work import Progress
from backslide.suite.suite import Suite
from backslide.verdict import Verdict, Zone


class Guard(TrainerCallback):
    """Watch a training run: measure before it, during it and after it, and say whether something was lost.

    In a script with a trainer, `callbacks=[guard]` is all. In a loop of one's own: `before_training`, then `after_step`
    after each optimizer step, then `finish`.

    Args:
        suite: what the model is asked, or where to read it. Default: the bundled repertoire.
        every: look after every so many optimizer steps, at the whole monitor half unless `budget` is given too.
        looks: number of looks, denser early, each at the whole monitor half unless `budget` is given too.
        budget: share of the training's time that the looks may take, getting ready for them included; the judgement at
            the end and the baseline are counted apart. Looks take as many items as that pays for. Default, where
            neither `every` nor `looks` is given: 0.05.
        on_regression: `warn`, `stop`, `rollback`, `lower_lr`, `replay`, `auto`, or a function from a look's `Verdict`
            to one of these or None; see `backslide.guard.policy.ACTIONS`.
        tolerance: accepted drop in accuracy of a capability, as a share.
        alpha: probability of a false alarm over the whole run.
        test: how α is kept over the looks. `exact`: shared out to looks and capabilities, valid whatever the outcomes
            are. `joint`: sign-flips of whole trajectories, which sees smaller drops; exact where each item's drops are
            as likely as their mirror image if nothing was lost, else asymptotic; a budget then passes looks over
            instead of making them smaller.
        train: the training data, before any tokenizer: a file (JSON Lines or plain text) or a list of files, or rows
            such as a data set, all text of which is read. Items of the suite that are in it are said, noted, measured,
            and left out of all verdicts (see `backslide.suite.leakage`), those that another process found in its share
            too. Default: none is looked through. A run is resumed with the same.
        strict: refuse a run on data in which items are.
        leave_out: ids of further items that are known to be in the training data; a run is resumed with the same.
        baseline: a record of the base model, or its file, so that it is not measured again.
        cache: whether a baseline that an earlier run measured on the very same model is taken, and this one kept.
        snapshots: where the state to go back to is kept: `memory` (of the CPU) or `disk`; default: in memory for
            `rollback` and `auto`, else nowhere.
        lr_factor: what `rollback` and `lower_lr` multiply the learning rate by; `auto` by this or less, see
            `backslide.guard.policy.cut`.
        replay: called by the actions `replay` and `auto`: `backslide.cure.replay.Replay.more`, or a function of yours.
        anchor: called by `auto`: `backslide.cure.anchor.Anchor.more`, or a function of yours.
        run_dir: the run's folder. Default: `backslide` in the trainer's `output_dir`, or here.
        settings: how the suite is asked.
        name: the model's name, for people. Default: what it was loaded from.
        extra: further fields for the run's `run.json`.
        say: told what happens, a line each. Default: the logger `backslide`, as warnings, which transformers shows.
        quiet: say nothing but what went wrong.
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
        budget: float | None = None,
        on_regression: Policy = "warn",
        tolerance: float = 0.03,
        alpha: float = 0.05,
        test: str = "exact",
        train: Any = None,
        strict: bool = False,
        leave_out: Collection[str] = (),
        baseline: Record | str | Path | None = None,
        cache: bool = True,
        snapshots: str | None = None,
        lr_factor: float = 1 / 3,
        replay: Callable[[], object] | None = None,
        anchor: Callable[[], object] | None = None,
        run_dir: str | Path | None = None,
        settings: Settings | None = None,
        name: str | None = None,
        extra: Mapping[str, Any] | None = None,
        say: Callable[[str], None] | None = None,
        quiet: bool = False,
        progress: Progress | None = None,
    ) -> None:
        if suite is None:
            suite = Suite.repertoire()
        self.suite = suite if isinstance(suite, Suite) else Suite.load(suite)
        if strict and train is None:
            raise ConfigError("strict is for train, which is not given; give the data too, or leave strict out")
        self._options = Options(
            suite=self.suite,
            every=every,
            looks=looks,
            budget=budget,
            on_regression=on_regression,
            tolerance=tolerance,
            alpha=alpha,
            test=test,
            leave_out=frozenset(leave_out),
            baseline=Record.load(baseline) if isinstance(baseline, (str, Path)) else baseline,
            cache=cache,
            snapshots=snapshots,
            lr_factor=lr_factor,
            replay=replay,
            anchor=anchor,
            settings=settings,
            name=name,
            extra=dict(extra or {}),
            say=say,
            quiet=quiet,
            progress=progress,
        )
        if train is not None:
            # Last, since it may take minutes: what is wrong with the rest has been said.
            leaks, leaked = found_in(self.suite, train, strict=strict, progress=progress)
            out = self._options.leave_out | {leak.item for leak in leaks}
            self._options = dataclasses.replace(self._options, leave_out=out, leaks=leaks, leaked=leaked)
        self._run_dir = Path(run_dir) if run_dir is not None else None
        self._watch: Watch | None = None
        self._trainer: Any = None
        self._tools: Tools | None = None
        self._step = 0

    # What was found.

    @property
    def run(self) -> RunFolder | None:
        """The run's folder, once training has begun."""
        return self._watch.run if self._watch is not None else None

    @property
    def baseline(self) -> Record | None:
        """What the model did before training."""
        return self._watch.baseline if self._watch is not None else None

    @property
    def looks(self) -> list[Verdict]:
        """The verdict of each look during training."""
        return self._watch.looks if self._watch is not None else []

    @property
    def final(self) -> Record | None:
        """What the final model did on the gate half."""
        return self._watch.final if self._watch is not None else None

    @property
    def verdict(self) -> Verdict | None:
        """The final verdict, once training has ended."""
        return self._watch.verdict if self._watch is not None else None

    @property
    def regressed_at(self) -> int | None:
        """Step of the look that first proved a regression."""
        return self._watch.state.regressed_at if self._watch is not None else None

    # A trainer's events.

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure the baseline, or load it where the run is resumed."""
        self._watch = None
        self._trainer = trainer_log.find_trainer(self)
        if self._trainer is not None:
            # Before the trackers, which close at the end of training, so that they are told the verdict too.
            callbacks = self._trainer.callback_handler.callbacks
            callbacks.insert(0, callbacks.pop(callbacks.index(self)))
        training = Training(
            folder=self._run_dir or Path(args.output_dir) / "backslide",
            steps=state.max_steps,
            step=state.global_step,
            setup={**setup_of_trainer(args, state, model, kwargs), **setup_of_callbacks(self._trainer)},
            evaluations=self._evaluations(args, state, kwargs),
            best=bool(getattr(args, "load_best_model_at_end", False)),
        )
        if 0 < state.max_steps <= state.global_step:
            self._options.warn(
                f"the run is resumed at step {state.global_step}, and had made all of its {state.max_steps} steps; "
                "transformers makes one more then. To have only the verdict, use `backslide check` on the checkpoint"
            )
        if getattr(args, "push_to_hub", False) and self._run_dir is None:
            self._options.warn(
                f"{training.folder}: lies in output_dir, all of which push_to_hub uploads: the suite's questions and "
                "the model's replies as well; give the guard a run_dir elsewhere if they are private"
            )
        tokenizer = _tokenizer(kwargs.get("processing_class"))
        self._watch = Watch(self._options, training, model, tokenizer, _tools(model, kwargs))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the time of a step, which the budget is a share of."""
        if self._watch is not None:
            self._watch.pacer.step_begins()

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Note the target's losses."""
        if self._watch is not None and self._watch.verdict is None:
            self._watch.losses(state.global_step, logs or {}, _tools(model, kwargs))
            if self._watch.acted == "rollback":
                trainer_log.forget_loss(self._trainer)
            self._watch.acted = None
            control.should_training_stop |= self._watch.stop
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> Any:
        """Look, where a look is due."""
        if self._watch is None:
            return control
        self._watch.pacer.step_ends()
        if self._watch.due(state.global_step):
            verdict = self._watch.look(model, state.global_step, _tools(model, kwargs))
            if verdict is not None:
                trainer_log.log(self._trainer, state, trainer_log.numbers_of(verdict))
            control.should_training_stop |= self._watch.stop
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **_: Any) -> None:
        """Put the guarded loss into the metrics, by which the best checkpoint may be picked."""
        wanted = trainer_log.is_guarded(getattr(args, "metric_for_best_model", None))
        if self._watch is not None and metrics is not None and wanted:
            added = trainer_log.add_guarded_loss(metrics, regressed=self._watch.zone is Zone.REGRESSED)
            finite = {name: value for name, value in added.items() if math.isfinite(value)}
            if self._trainer is not None and finite:
                trainer_log.log(self._trainer, state, finite)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Judge the final model on the gate half, and write verdict and report."""
        if self._watch is not None and self._watch.verdict is None:
            verdict = self._watch.finish(
                model, state.global_step, epochs=state.epoch, **setup_of_callbacks(self._trainer)
            )
            final = {f"{trainer_log.PREFIX}final/{zone}": float(verdict.zone is zone) for zone in Zone}
            trainer_log.log(self._trainer, state, final)
            # To the trackers alone: scripts take the last entry of the history for the training's own.
            state.log_history.pop()
        self._trainer = None

    def _evaluations(self, args: Any, state: Any, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        free = self._options.every is None and self._options.looks is None
        if not free or not trainer_log.is_guarded(getattr(args, "metric_for_best_model", None)):
            return ()
        return evaluations(args, state, kwargs.get("train_dataloader"))

    # A loop of one's own.

    def before_training(
        self,
        model: Any,
        tokenizer: Any,
        *,
        steps: int | None = None,
        step: int = 0,
        optimizer: Any = None,
        scheduler: Any = None,
        setup: Mapping[str, Any] | None = None,
    ) -> None:
        """Measure the baseline, or load it where the run is resumed.

        Args:
            model: the model that will be trained; wrapped by DistributedDataParallel or not.
            tokenizer: its tokenizer.
            steps: optimizer steps that will be made. None: not known, and then the looks come ever less often.
            step: optimizer steps that were made before, where a run is resumed.
            optimizer: needed by `rollback`, `lower_lr` and `auto`.
            scheduler: of the learning rate, if there is one; needed by the same.
            setup: how the model is trained, for the diagnosis: `learning_rate`, `batch_size`, `epochs`, `examples`.

        Raises:
            InputError: suite, baseline or model do not fit.
        """
        self._tools = Tools(model, optimizer, scheduler)
        self._step = step
        training = Training(
            folder=self._run_dir or Path("backslide"),
            steps=steps,
            step=step,
            setup={**setup_of(model, optimizer), "max_steps": steps, **(setup or {})},
        )
        self._watch = Watch(self._options, training, model, _tokenizer(tokenizer), self._tools)
        self._watch.pacer.step_begins()

    def after_step(self, step: int, loss: float | None = None, *, eval_loss: float | None = None) -> str | None:
        """An optimizer step was made: look, where a look is due.

        Args:
            step: optimizer steps made so far, from 1.
            loss: of this step, if it is known.
            eval_loss: of the target's held-out data, if it was evaluated now.

        Returns:
            What was done: one of `backslide.guard.policy.ACTIONS`, or None. After `stop` leave the loop.
        """
        watch, tools = self._begun()
        watch.pacer.step_ends()
        self._step = step
        watch.acted = None
        # A loss of one process that is no number is one of all: they act alike.
        told = watch.ranks.gather({"loss": loss, "eval_loss": eval_loss})
        losses: dict[str, float] = {}
        for name in ("loss", "eval_loss"):
            values = [float(value) for one in told if (value := one[name]) is not None]
            if values:
                losses[name] = next((value for value in values if not math.isfinite(value)), values[0])
        watch.losses(step, losses, tools)
        if watch.due(step):
            watch.look(tools.model, step, tools)
        watch.pacer.step_begins()
        return watch.acted

    def finish(self) -> Verdict:
        """Judge the final model on the gate half, and write verdict and report."""
        watch, tools = self._begun()
        return watch.finish(tools.model, self._step)

    def _begun(self) -> tuple[Watch, Tools]:
        if self._watch is None or self._tools is None:
            raise InputError("the guard was not begun: call before_training(model, tokenizer) before the first step")
        return self._watch, self._tools


def _tools(model: Any, kwargs: Mapping[str, Any]) -> Tools:
    return Tools(model, kwargs.get("optimizer"), kwargs.get("lr_scheduler"))


def _tokenizer(processing: Any) -> Any:
    if processing is None:
        raise InputError("the trainer has no tokenizer; give it one as processing_class, so that items can be asked")
    # A processor of a vision-language model holds its tokenizer.
    return getattr(processing, "tokenizer", processing)
