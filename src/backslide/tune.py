"""One configuration → a guarded fine-tune with TRL's SFTTrainer, PEFT LoRA or all weights."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from backslide.asking import suite_for
from backslide.checkpoints import Checkpoints
from backslide.config import TuneConfig
from backslide.cure.attached import Cures
from backslide.data import TrainingData
from backslide.errors import BackslideError, ConfigError, DataError, InputError, ModelError, RunError, number_of
from backslide.guard.callback import Guard
from backslide.lock import claimed, first_process
from backslide.models import DTYPES, Loaded, load_model, model_fingerprint, quiet
from backslide.record import Record
from backslide.resume import Start, anew_of, digests, find, restore_snapshot
from backslide.rundir import CHECKPOINTS, RunFolder
from backslide.saving import SaveModel
from backslide.schedules import check_schedule
from backslide.scoring.engine import Settings
from backslide.scoring.work import Progress
from backslide.suite.suite import Suite
from backslide.verdict import Verdict

__all__ = ["Tuned", "TuneConfig", "tune"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Tuned:
    """What a guarded fine-tune left behind."""

    run: RunFolder
    verdict: Verdict
    model: Path
    """Folder of the trained model, or of the adapter."""
    steps: int
    """Optimizer steps that were made; fewer than planned where the guard stopped the run."""
    planned: int


def tune(
    config: TuneConfig,
    *,
    suite: Suite | None = None,
    baseline: Record | None = None,
    settings: Settings | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    anew: bool = False,
) -> Tuned:
    """Fine-tune as `config` says, watched by a `Guard`, and save the model in the run's folder.

    Where the folder holds an unfinished run of the same configuration it goes on from its last checkpoint, and ends as
    if it had not been interrupted. Another run there is moved to `earlier/`.

    Everything that the user gave is read and checked before the model is loaded, and the model is checked before the
    run's folder is begun: bad input leaves nothing behind.

    Args:
        config: what to do.
        suite: instead of the one that the configuration names.
        baseline: instead of the one that the configuration names.
        settings: how the suite is asked.
        say: told what the user should know, a line each.
        progress: called while the model is trained and while items are scored.
        callbacks: further callbacks of the trainer.
        anew: begin anew, also where there is a run to go on with.

    Raises:
        InputError: configuration, data, suite, baseline or model are wrong.
        RunError: training itself broke.
    """
    say = say or logging.getLogger("backslide").info
    # The guard knows by itself what more than one process has to say.
    told: Say = say if first_process() else lambda _: None
    with quiet():
        check_schedule(config.train.scheduler, config.train.warmup_steps)
    if config.model.dtype not in DTYPES:
        raise ConfigError(f"model.dtype is {config.model.dtype!r}, one of {', '.join(DTYPES)} is needed")
    data = TrainingData.load(config.data.train)
    held_out = TrainingData.load(config.data.held_out) if config.data.held_out is not None else None
    if held_out is not None and held_out.format != data.format:
        raise DataError(f"{held_out.path}: is of the format {held_out.format}, the training file is {data.format}")
    suite = suite or suite_for(config.guard.suite, config.guard.tasks, config.model.base, told)
    if baseline is None and config.guard.baseline is not None:
        baseline = Record.load(config.guard.baseline)
    sources = digests(config)
    cures = Cures(config, suite, told, progress)
    guard = Guard(
        suite,
        every=config.guard.every,
        looks=config.guard.looks,
        budget=config.guard.budget,
        on_regression=config.on_regression,
        replay=cures.more_replay,
        anchor=cures.more_anchor,
        lr_factor=config.guard.lr_factor,
        snapshots=config.snapshots,
        cache=config.guard.cache,
        tolerance=config.guard.tolerance,
        alpha=config.guard.alpha,
        test=config.guard.test,
        baseline=baseline,
        run_dir=config.folder,
        settings=settings,
        name=config.model.base,
        train=config.data.train,
        strict=config.guard.strict,
        extra={"config": config.to_dict(), "sources": sources},
        say=say,
        progress=progress,
    )
    for part in (data, held_out):
        if part is not None and part.skipped:
            told(f"{part.path}: {number_of(part.skipped, 'empty line')} left out")
    with _folder(config.folder), claimed(config.folder) if first_process() else contextlib.nullcontext():
        start = find(config, suite.hash, sources, anew=anew)
        try:
            return _tune(config, data, held_out, guard, cures, told, progress, callbacks, start)
        finally:
            if guard.run is not None:
                guard.run.release()


def _tune(
    config: TuneConfig,
    data: TrainingData,
    held_out: TrainingData | None,
    guard: Guard,
    cures: Cures,
    say: Say,
    progress: Progress | None,
    callbacks: Sequence[TrainerCallback],
    start: Start,
) -> Tuned:
    loaded = load_model(config.model.base, dtype=_dtype(config), say=say)
    if hasattr(loaded.model, "peft_config"):
        raise ModelError(f"{config.model.base}: is an adapter; merge it into its base, or give the base itself")
    _ready(loaded, say)
    if data.chats and not loaded.tokenizer.chat_template:
        say("the tokenizer has no chat template: messages are trained on as plain text, 'Role: content' a line each")
        data, held_out = data.as_text(), held_out.as_text() if held_out is not None else None
    if not data.chats and loaded.tokenizer.eos_token is None:
        raise ModelError(
            f"{loaded.name}: the tokenizer has no end token, which is put behind each example; set eos_token"
        )
    if start.checkpoint is not None and model_fingerprint(loaded.model) != start.base:
        start = anew_of(config, f"the run there was begun with other weights of {config.model.base}")
    for line in start.says:
        say(line)
    resumed = start.checkpoint
    bars = [_Bar(progress)] if progress is not None else []
    trainer = _trainer(config, loaded, data, held_out, [*bars, guard, *callbacks], resumed=resumed is not None)
    _say_cut(trainer, config, say)
    cures.attach(trainer, loaded, resumed=resumed is not None)
    if held_out is not None:
        trainer.add_callback(_EvaluateAtLooks(guard))
    target = config.folder / "model"
    trainer.add_callback(SaveModel(trainer, loaded, target))
    checkpoints = Checkpoints(config.folder, config.output.checkpoints, say)
    if config.output.checkpoints != 0:
        checkpoints.attach(trainer)
    try:
        if resumed is not None:
            restore_snapshot(resumed, config.folder)
        with quiet():
            trainer.train(resume_from_checkpoint=str(resumed) if resumed is not None else None)
    except torch.OutOfMemoryError as bad:
        raise RunError(
            f"training ran out of memory; lower train.batch_size ({config.train.batch_size}) and raise "
            "train.gradient_accumulation by the same factor, or set train.gradient_checkpointing = true"
        ) from bad
    except KeyboardInterrupt:
        if (last := checkpoints.last) is not None and guard.run is not None:
            say(f"interrupted at step {trainer.state.global_step}; the same command goes on at step {last}")
        raise
    except BackslideError:
        raise
    except Exception as bad:
        if resumed is None or guard.run is not None:
            raise
        why = " ".join(f"{type(bad).__name__}: {bad}".split())[:300]
        raise RunError(
            f"{resumed}: the run cannot go on from it: {why}; remove it to go on from the one before, or begin anew "
            "with --anew"
        ) from bad
    assert guard.verdict is not None and guard.run is not None
    checkpoints.remove(keep=config.output.keep_checkpoints)
    if config.guard.snapshots is None:
        # It was there to outlive the process.
        shutil.rmtree(guard.run.snapshot, ignore_errors=True)
    return Tuned(guard.run, guard.verdict, target, trainer.state.global_step, trainer.state.max_steps)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make the run's folder; where the run is refused, what is still empty goes again."""
    new = [folder for folder in (path / CHECKPOINTS, path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as bad:
        raise ConfigError(f"output.dir is {str(path)!r}, which cannot be made: {bad.strerror}; name another") from None
    try:
        yield
    except InputError:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


class _Bar(TrainerCallback):
    """Training steps for the same progress display as scoring's."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress("training", state.global_step, state.max_steps)


class _EvaluateAtLooks(TrainerCallback):
    """The target's loss on held-out data at the steps where the guard looks, so that the two curves meet."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self._guard.looks and self._guard.looks[-1].step == state.global_step:
            control.should_evaluate = True
        return control


def _dtype(config: TuneConfig) -> str:
    return "float32" if config.model.dtype == "auto" and config.train.method == "full" else config.model.dtype


def _ready(loaded: Loaded, say: Say) -> None:
    """Give the tokenizer a padding token where it has none."""
    tokenizer = loaded.tokenizer
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"{loaded.name}: the tokenizer has neither a padding nor an end token; set pad_token")
        tokenizer.pad_token = tokenizer.eos_token
        say(f"the tokenizer has no padding token: {tokenizer.eos_token!r} fills short rows, masked from the loss")


def _trainer(
    config: TuneConfig,
    loaded: Loaded,
    data: TrainingData,
    held_out: TrainingData | None,
    callbacks: list[TrainerCallback],
    *,
    resumed: bool,
) -> Any:
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl import SFTConfig, SFTTrainer

    disable_progress_bar()
    train, cuda = config.train, torch.cuda.is_available()
    settings = dict(
        # Of nothing but the checkpoints.
        output_dir=str(config.folder / CHECKPOINTS if config.output.checkpoints != 0 else config.folder),
        learning_rate=train.rate,
        max_steps=train.steps if train.steps is not None else -1,
        num_train_epochs=train.epochs if train.epochs is not None else 1.0,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        max_length=train.max_length,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_steps,
        seed=train.seed,
        gradient_checkpointing=train.gradient_checkpointing,
        # Both are decided by the dtype that the weights were loaded in; TRL's default is bf16 whatever the machine.
        bf16=False,
        fp16=False,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        logging_steps=1 if (train.steps or 0) <= 200 else 10,
        # A loss that is not finite is to be seen, not averaged away.
        logging_nan_inf_filter=False,
        # Checkpoints are asked for by `Checkpoints`.
        save_strategy="no",
        # The base model's own loss on the new task is step 0 of the curve.
        eval_on_start=held_out is not None and not resumed,
        report_to="none",
        disable_tqdm=True,
    )
    lora = None
    if train.method == "lora":
        from peft import LoraConfig

        lora = LoraConfig(
            r=config.lora.r,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=config.lora.target_modules,
            task_type="CAUSAL_LM",
        )
    try:
        with quiet():
            trainer = SFTTrainer(
                model=loaded.model,
                args=SFTConfig(**settings),
                train_dataset=Dataset.from_list(list(data.rows)),
                eval_dataset=Dataset.from_list(list(held_out.rows)) if held_out is not None else None,
                processing_class=loaded.tokenizer,
                peft_config=lora,
                callbacks=callbacks,
            )
    except ValueError as bad:
        # What PEFT and transformers say of an unknown module or schedule, in one line.
        raise ConfigError(" ".join(str(bad).split())[:400]) from bad
    # What it prints is in the events of the run, and the guard says what matters.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _say_cut(trainer: Any, config: TuneConfig, say: Say) -> None:
    limit = config.train.max_length
    lengths = [len(row) for row in trainer.train_dataset["input_ids"]]
    cut = sum(length >= limit for length in lengths)
    if cut:
        say(f"{cut} of {len(lengths)} training examples are cut at train.max_length = {limit} tokens")
    if not lengths:
        raise DataError(f"{config.data.train}: no usable text is left after tokenizing")
