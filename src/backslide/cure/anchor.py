"""The anchor: KL to the base on other text, as a further loss, keeps what the new data does not speak of.

The term added to each micro-batch's loss is

    weight · 1/|T| Σ_{t ∈ T} KL(p_base(· | x_<t) ‖ p_model(· | x_<t))

over the anchored tokens T of a few rows of other text, such as replies that the base itself gave. It is the forward KL
of knowledge distillation with the base as teacher: learning without forgetting (Li and Hoiem, arXiv 1606.09282), for
language models with replayed text in arXiv 2512.22337. No token of the rows is taught, only the base's opinion of it.

With adapters the base is the same model with its adapter off. In full fine-tuning it is gone after the first step, so
its likeliest tokens and the mass of the rest are kept on disk beforehand (`anchor_targets`), and the KL is that between
these buckets, a lower bound of the full one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from backslide.cure.anchor_kl import BaseTop, Reader, mean_kl
from backslide.cure.anchor_rows import AnchorRows, drawn, read_rows, tokenised, without
from backslide.cure.anchor_targets import Targets, batch_of, is_kept, key_of, write_targets
from backslide.cure.fit import check_anchored, moves, suites_of
from backslide.errors import ConfigError, DataError, InputError, shown
from backslide.guard import trainer_log
from backslide.models import cache_folder
from backslide.scoring.forward import uncompiled
from backslide.scoring.ranks import Ranks, is_sharded
from backslide.scoring.session import as_base, random_state
from backslide.suite.suite import Suite

STEPS = (0.1, 0.3, 1.0, 3.0)
"""Weights that `Anchor.more` goes through."""

SAVED = "backslide_anchor"
"""Name under which the checkpoint's `trainer_state.json` holds what a resumed run needs."""

logger = logging.getLogger("backslide")


class Anchor:
    """Keep a model near its base on other text while it is trained.

    In a script: `Anchor(rows).attach(trainer)` after the trainer is made. The trainer's own loss is logged as before,
    the KL apart from it, as `backslide/anchor_kl` (of the first process's rows).

    Args:
        rows: texts in a format of `backslide.data` (`messages`, `prompt` and `completion`, or `text`), or their file.
        weight: what the mean KL is multiplied by; 0 adds nothing and costs nothing. It may be changed during the run.
        batch_size: rows for each micro-batch of the training, and process.
        top: tokens of each of the base's distributions that are kept one by one in full fine-tuning.
        seed: of the order in which rows are taken.
        max_length: rows are cut behind this many tokens.
        most: `more` goes no higher.
        suite: rows that hold an item of it are left out. Those of the suite of a `Guard` of the same trainer are left
            out in any case.
        folder: where log-probabilities of the base are kept. Default: `anchor` in the cache folder.
        say: told what happens, a line each. Default: the logger `backslide`, as warnings.
        progress: called while the base's log-probabilities are computed.

    Raises:
        InputError: an argument or the rows are wrong.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]] | str | Path,
        weight: float = 0.1,
        *,
        batch_size: int = 4,
        top: int = 64,
        seed: int = 0,
        max_length: int = 512,
        most: float = 1.0,
        suite: Suite | None = None,
        folder: str | Path | None = None,
        say: Callable[[str], None] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        counts = {"batch_size": (batch_size, 1), "top": (top, 1), "max_length": (max_length, 2), "seed": (seed, 0)}
        for name, (value, least) in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"anchor: {name} is {shown(value)}, a whole number of at least {least} is needed")
        self._given = self._weight = _checked(weight, "weight")
        self._most = _checked(most, "most")
        self._batch_size, self._top, self._seed, self._max_length = batch_size, top, seed, max_length
        self._data, self._said = read_rows(rows, suite)
        self._searched = {suite.hash} if suite is not None else set()
        self._folder = Path(folder) if folder is not None else cache_folder() / "anchor"
        self._say, self._progress = say, progress
        self.rows: AnchorRows | None = None
        """The rows in tokens, once attached."""
        self.notes: tuple[str, ...] = ()
        """What was left out or cut, once attached."""
        self.skipped = 0
        """Micro-batches whose KL was no finite number, and was not added."""
        self.kl: float | None = None
        """Mean KL of this process's micro-batches since the last line of the log, in nats a token."""
        self._trainer: Any = None
        self._reader: Reader | None = None
        self._targets: Targets | None = None
        self._saved: dict[str, Any] = {}
        self._substep = 0
        self._kls: list[float] = []

    @property
    def weight(self) -> float:
        """What the mean KL is multiplied by from the next micro-batch on."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = _checked(value, "weight")
        self._saved["weight"] = self._weight

    def more(self) -> str:
        """Raise the weight to the next of `STEPS`, to `most` at most; says so in a few words. Made for the guard."""
        higher = next((step for step in STEPS if step > self._weight), self._most)
        before, after = self._weight, max(self._weight, min(higher, self._most))
        self.weight = after
        return (
            f"anchor weight {before:g} → {after:g}" if after > before else f"anchor weight stays {before:g}, the most"
        )

    def attach(self, trainer: Any) -> Anchor:
        """Add the term to a `transformers.Trainer`, or one of TRL's. Once, before `train`; gives the anchor itself.

        Raises:
            InputError: the trainer or its model cannot be anchored, or the rows do not fit the tokenizer.
        """
        if self._trainer is not None:
            raise ConfigError("the anchor is attached already; make one for each trainer")
        check_anchored(trainer)
        tokenizer = trainer.processing_class
        # A processor of a vision-language model holds its tokenizer.
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if tokenizer is None:
            raise ConfigError(
                "the trainer has no tokenizer; give it one as processing_class, to read the anchor's rows"
            )
        self._leave_out(trainer)
        self.rows = tokenised(self._data, tokenizer, self._max_length, self._said)
        self._trainer, self._tokenizer = trainer, tokenizer
        self._note(self.rows.notes)
        step = trainer.training_step

        def training_step(model: Any, *args: Any, **kwargs: Any) -> Any:
            # Before the task's own pass: its backward hands the gradients round among processes (DDP) once, with
            # what is already there. After it, they would be handed round twice.
            if self._weight:
                self._pull(model)
            self._substep += 1
            return step(model, *args, **kwargs)

        trainer.training_step = training_step
        trainer.add_callback(_Events(self))
        return self

    def keep_base(self) -> None:
        """Have the base's log-probabilities on disk while the attached trainer's model is still the base.

        It is done at the beginning of a run anyway. Before one that is resumed, whose trainer was made with the base
        itself, it makes a file anew that has gone since. With adapters there is nothing to do.

        Raises:
            BackslideError: they cannot be computed or kept.
        """
        rows, model = self._ready(), uncompiled(self._trainer.model)
        if moves(model):
            with random_state():
                reader = Reader(model, self._trainer.accelerator.autocast)
                self._keep(key_of(reader, self._tokenizer, rows, self._top), reader)

    # What the trainer's events call.

    def begin(self, state: Any) -> None:
        """Before the first step: find how the model is read, and keep or load the base's log-probabilities."""
        trainer = self._trainer
        # A guard may have been added since.
        if notes := self._leave_out(trainer):
            if self._targets is not None:
                raise ConfigError(
                    f"anchor: {notes[0]}, of a guard that was added after a training, and the base is gone; add the "
                    "guard before the first train()"
                )
            self.rows = tokenised(self._data, self._tokenizer, self._max_length, self._said)
            self._note(notes)
        rows = self._ready()
        model = uncompiled(trainer.model)
        if is_sharded(model):
            raise ConfigError(
                "the model's weights are shared out over processes, which the anchor cannot read; use DDP"
            )
        if self._reader is None or self._reader.model is not model:
            with random_state():
                self._reader = Reader(model, trainer.accelerator.autocast)
        self._substep, self._kls = 0, []
        saved = (state.stateful_callbacks.get(SAVED) or {}).get("attributes") if state.global_step else None
        if saved is not None:
            self._restore(saved)
        with as_base(model):
            pass  # raises where the adapter cannot be switched off
        key = None
        if moves(model):
            key = self._load(saved, state.global_step)
        self._saved = {
            "rows": rows.digest,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "top": self._top,
            "given": self._given,
            "weight": self._weight,
            "targets": key,
        }
        # Transformers writes it into each checkpoint.
        state.stateful_callbacks[SAVED] = {"args": {}, "attributes": self._saved}

    def step_begins(self) -> None:
        """An optimizer step begins."""
        self._substep = 0

    def log(self, state: Any) -> None:
        """Log the mean KL since the last time."""
        if self._kls:
            self.kl, self._kls = sum(self._kls) / len(self._kls), []
            values = {f"{trainer_log.PREFIX}anchor_kl": self.kl, f"{trainer_log.PREFIX}anchor_weight": self._weight}
            trainer_log.log(self._trainer, state, values)

    def _pull(self, model: Any) -> None:
        """Add the gradient of the weighted KL of this micro-batch's rows."""
        trainer, rows, reader = self._trainer, self._ready(), self._reader
        assert reader is not None  # a trainer begins before it steps
        accelerator = trainer.accelerator
        number = trainer.state.global_step * trainer.args.gradient_accumulation_steps + self._substep
        batch = number * accelerator.num_processes + accelerator.process_index
        numbers = drawn(self._seed, batch, self._batch_size, len(rows.rows))
        device = next(reader.model.parameters()).device
        inputs, where = batch_of(rows, numbers, device)
        model.train()
        if callable(getattr(trainer.optimizer, "train", None)):
            trainer.optimizer.train()
        # Dropout draws from a state of the micro-batch's own: the task's masks are those of a run without an anchor.
        with random_state():
            _seed(self._seed, batch)
            base: BaseTop | Any
            if self._targets is not None:
                base = self._targets.of(numbers, device)
            else:
                with as_base(reader.model):
                    base = reader.states(inputs, where)
            kl = mean_kl(reader, reader.states(inputs, where), base)
            value = float(kl.detach())
            if not math.isfinite(value):
                self._skip(value, trainer.state.global_step)
                return
            self._kls.append(value)
            # The mean over the micro-batches of a step; how the task's loss is normalised is the task's.
            accelerator.backward(self._weight * kl / trainer.current_gradient_accumulation_steps)

    def _skip(self, value: float, step: int) -> None:
        self.skipped += 1
        if self.skipped == 1:
            self._tell(
                f"anchor: at step {step} the KL to the base is {value}: the term is left out there, and wherever it is "
                "no finite number (not said again)"
            )

    def _restore(self, saved: Mapping[str, Any]) -> None:
        ours = {"rows": self._ready().digest, "seed": self._seed, "batch_size": self._batch_size, "top": self._top}
        for name, value in ours.items():
            if saved.get(name) != value:
                told = "its rows are others" if name == "rows" else f"{name} was {saved.get(name)}, now it is {value}"
                raise ConfigError(f"the run was begun with another anchor: {told}; resume with the same, or begin anew")
        if saved.get("given") == self._given:
            # It may have been raised during the run.
            self._weight = float(saved["weight"])
        else:
            self._tell(
                f"anchor: the run was begun with weight {saved.get('given')} and is resumed with {self._given:g}, "
                "which holds from here on"
            )

    def _load(self, saved: Mapping[str, Any] | None, step: int) -> str:
        """Have the base's log-probabilities on disk, open them, and give their key."""
        assert self._reader is not None
        rows = self._ready()
        if step == 0 and self._targets is not None and self._saved.get("targets"):
            return str(self._saved["targets"])  # trained a second time: the base is still the first one
        if step:
            key = (saved or {}).get("targets")
            if key is None:
                raise ConfigError(
                    f"the run is resumed at step {step} and had no anchor with log-probabilities of the base, which "
                    "cannot be had from trained weights; begin the run anew, or resume without the anchor"
                )
        else:
            key = key_of(self._reader, self._tokenizer, rows, self._top)
        path = self._folder / f"{key}.safetensors"
        if step == 0:
            self._keep(str(key), self._reader)
        try:
            self._targets = Targets(path, rows)
        except InputError as bad:
            raise InputError(
                f"{bad}; the base's log-probabilities cannot be had from trained weights: put the file back, call "
                "keep_base() of the anchor before train() where the trainer was made with the base, or begin the run "
                "anew (backslide tune --anew)"
            ) from None
        if self._targets.vocabulary != self._reader.vocabulary:
            raise ConfigError(
                f"the model has {self._reader.vocabulary} tokens, the base had {self._targets.vocabulary} when its "
                "log-probabilities were kept; change the vocabulary before the run begins"
            )
        return str(key)

    def _keep(self, key: str, reader: Reader) -> None:
        """Have the base's log-probabilities on disk: of the processes of a machine one computes them."""
        rows, path = self._ready(), self._folder / f"{key}.safetensors"
        failed: Exception | None = None
        if self._trainer.accelerator.is_local_main_process:
            try:
                if not is_kept(path, rows):
                    write_targets(path, reader, rows, self._top, self._progress)
                    what = f"{rows.starts[-1]} tokens are kept in {path} ({path.stat().st_size / 1e6:.1f} MB)"
                    self._tell(f"anchor: the base's log-probabilities of {what}")
            except Exception as bad:
                failed = bad
        # The others wait here, and don't go on without them.
        Ranks.here().share_failure(failed)

    def _leave_out(self, trainer: Any) -> list[str]:
        """Leave out rows with an item of the suite of a guard of the trainer; what is to be said of it."""
        known = len(self._said)
        for suite in suites_of(trainer):
            if suite.hash not in self._searched:
                self._data, self._said = without(self._data, suite, self._said)
                self._searched.add(suite.hash)
        return self._said[known:]

    def _note(self, notes: Sequence[str]) -> None:
        self.notes += tuple(notes)
        for note in notes:
            self._tell(f"anchor: {note}")

    def _ready(self) -> AnchorRows:
        if self.rows is None:
            raise DataError("the anchor is not attached: call attach(trainer) first")
        return self.rows

    def _tell(self, line: str) -> None:
        if self._trainer is not None and not self._trainer.is_world_process_zero():
            return
        if self._say is not None:
            self._say(line)
        else:
            logger.warning("backslide: %s", line)


class _Events(TrainerCallback):  # type: ignore[misc]
    def __init__(self, anchor: Anchor) -> None:
        self._anchor = anchor

    @property
    def backslide_setup(self) -> dict[str, float]:
        """For `guard.setup.setup_of_callbacks`."""
        return {"anchor": self._anchor.weight}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._anchor.begin(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._anchor.step_begins()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if "loss" in (logs or {}):
            self._anchor.log(state)


def _seed(seed: int, batch: int) -> None:
    number = int(np.random.SeedSequence([seed, batch]).generate_state(1)[0])
    # Not torch.manual_seed, which also seeds devices whose state is not given back.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def _checked(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ConfigError(f"anchor: {name} is {shown(value)}, a number from 0 up is needed (0.1)")
    return float(value)
