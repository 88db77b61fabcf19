"""The training's own numbers: steps, rate, adapter, schedule. No torch."""

from __future__ import annotations

import math

from backslide.config import TuneConfig
from backslide.data import TrainingData
from backslide.diagnosis.causes import ADAPTER_FACTOR, PASSES, RANK, SCALING, usual_rate
from backslide.doctor.findings import Notebook

FAR_ABOVE = 3.0
"""Times the usual rate above which it is a warning; between 1 and this a note."""
BARELY = 10
"""Steps below which a run is hardly one."""


def steps_of(config: TuneConfig, train: TrainingData | None, mute: float = 0.0) -> int | None:
    """Optimizer steps of the run; None where the training data could not be read.

    Args:
        config: of the run.
        train: the training data.
        mute: share of the examples in which nothing is learnt, which the trainer leaves out.
    """
    settings = config.train
    if settings.steps is not None:
        return settings.steps
    if train is None:
        return None
    # As transformers counts: a last batch that is not full makes a step, in each pass.
    batches = -(-max(1, round(len(train.rows) * (1 - mute))) // settings.batch_size)
    a_pass = -(-batches // settings.gradient_accumulation)
    return max(1, math.ceil((settings.epochs or 1.0) * a_pass))


def look_at_setting(
    config: TuneConfig, train: TrainingData | None, parameters: int | None, steps: int | None, notes: Notebook
) -> None:
    """Say which numbers are far from what is usual."""
    settings = config.train
    if steps is not None:
        notes.fact("optimizer steps", f"{steps:,} of {settings.batch_size * settings.gradient_accumulation} examples")
        if steps < BARELY:
            notes.warning(
                "train.steps", f"the run has {steps} steps: too few to learn from", "give more data or epochs"
            )
        if settings.warmup_steps >= steps:
            notes.warning(
                "train.warmup_steps",
                f"{settings.warmup_steps}, and the run has {steps} steps: it would never reach its learning rate",
                f"set it to {max(0, round(0.1 * steps))}",
            )
    if steps is not None and train is not None:
        seen = steps * settings.batch_size * settings.gradient_accumulation / len(train.rows)
        if seen > PASSES:
            notes.warning(
                "train.steps" if settings.steps is not None else "train.epochs",
                f"{len(train.rows):,} examples would be seen {seen:.1f} times; 1 to {PASSES:g} passes are usual, and "
                "more are learnt by heart",
                f"give more data, or {max(1, int(steps * PASSES / seen))} steps",
            )
    _rate(config, parameters, notes)
    if settings.scheduler == "constant":
        notes.note("train.scheduler", "constant: the rate is kept up to the end instead of falling", 'or "linear"')
    if settings.method == "lora":
        _adapter(config, notes)


def _rate(config: TuneConfig, parameters: int | None, notes: Notebook) -> None:
    rate, method = config.train.rate, config.train.method
    usual = usual_rate(method, parameters)
    size = f" of {parameters:,} parameters" if parameters is not None else ""
    what = f"all weights{size}" if method == "full" else f"an adapter on a model{size}"
    notes.fact("learning rate", f"{rate:g}; {usual:.2g} is usual for {what}")
    if rate > usual:
        tell = notes.warning if rate > FAR_ABOVE * usual else notes.note
        tell(
            "train.learning_rate",
            f"{rate:g} is {rate / usual:.2g} times the {usual:.2g} that is usual for {what}: of all settings the rate "
            "moves forgetting most",
            f"try {usual:.2g} first",
        )
    elif rate < usual / 30:
        notes.warning(
            "train.learning_rate",
            f"{rate:g} is a {usual / rate:.0f}th of the {usual:.2g} that is usual for {what}: it may learn nothing",
            f"try {usual / 3:.2g}",
        )
    if method == "full" and config.model.dtype in ("bfloat16", "float16"):
        notes.warning(
            "model.dtype",
            f"{config.model.dtype} with all weights: a step of the size of the rate is lost to rounding in most of "
            "them (96% at 2e-5, docs/cures.md)",
            'use dtype = "float32", or an adapter',
        )


def _adapter(config: TuneConfig, notes: Notebook) -> None:
    rank, alpha = config.lora.r, config.lora.alpha
    if alpha / rank > SCALING:
        notes.warning(
            "lora.alpha",
            f"{alpha:g} over r = {rank} multiplies the adapter's update by {alpha / rank:.3g}; {SCALING:g} is usual, "
            f"and the rate of an adapter is {ADAPTER_FACTOR} times that of all weights already",
            f"set alpha = {SCALING * rank:g}",
        )
    if rank > RANK:
        notes.note("lora.r", f"{rank}; 8 to {RANK} are usual", "a larger rank can learn more and forget more")
