"""What replay and anchor need of the trainer that they are attached to: refused in a line, or read off it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer

from backslide.errors import ConfigError, InputError
from backslide.guard.callback import Guard
from backslide.models import is_adapter
from backslide.scoring.forward import uncompiled
from backslide.suite.suite import Suite

PEEKED = 1000
"""New rows that are looked at for the length at which old texts are cut."""

ROWS = ("trl.trainer.sft_trainer", "trl.trainer.base_trainer")
"""Modules of TRL's trainers whose batches are rows of tokens."""


def suites_of(trainer: Any) -> tuple[Suite, ...]:
    """The suites of the guards among a trainer's callbacks: what they ask is not to be trained on."""
    return tuple(found.suite for found in trainer.callback_handler.callbacks if isinstance(found, Guard))


def moves(model: Any) -> bool:
    """Whether training changes weights that are still there with the adapters off."""
    return any(p.requires_grad and not is_adapter(name) for name, p in model.named_parameters())


def check_anchored(trainer: Any) -> None:
    """Refuse what the term could not be added to, or would be added to wrongly."""
    if not isinstance(trainer, Trainer):
        raise ConfigError(f"the anchor is attached to {type(trainer).__name__}, a transformers Trainer is needed")
    # Known beforehand only, each by its own switch.
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    lomo = "lomo" in str(getattr(trainer.args.optim, "value", trainer.args.optim))
    for name, found in (
        ("DeepSpeed, which makes the optimizer's step within the backward pass", trainer.is_deepspeed_enabled),
        ("FSDP, which shares the weights out over processes", trainer.is_fsdp_enabled),
        ("tensor, context or sequence parallelism", getattr(parallel, "non_data_parallel_size", 1) > 1),
        (f"the optimizer {trainer.args.optim}, which steps within the backward pass", lomo),
    ):
        if found:
            raise ConfigError(f"the anchor cannot be used with {name}; use DDP or one process, with another optimizer")
    model = uncompiled(trainer.model)
    if getattr(model.config, "is_encoder_decoder", False):
        kind = type(model).__name__
        raise ConfigError(
            f"the anchor needs a causal language model, {kind} is an encoder with a decoder; leave the anchor out"
        )
    for config in (getattr(model, "peft_config", None) or {}).values():
        if getattr(config, "is_prompt_learning", False):
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise ConfigError(f"the anchor cannot be used with {kind}: its tokens shift places; use LoRA")


def check_replayed(trainer: Any) -> None:
    """Raise `InputError` for a trainer that old rows cannot be added to."""
    if not isinstance(trainer, Trainer):
        raise ConfigError(f"replay: a transformers Trainer is needed, this is a {type(trainer).__name__}")
    if getattr(trainer, "_backslide_replay", None) is not None:
        raise ConfigError("replay: the trainer has a replay attached already; give all old rows to one")
    kind = type(trainer)
    homes = {base.__module__ for base in kind.__mro__}
    if any(home.startswith("trl.") and home not in ROWS for home in homes):
        raise ConfigError(f"replay: the batches of {kind.__name__} are prompts or pairs, to which no old rows can be "
                          "added; use SFTTrainer or Trainer, or mix the data sets beforehand")  # fmt: skip
    if trainer.train_dataset is None:
        raise ConfigError(
            "replay: the trainer has no train_dataset to mix old rows into (it is None); give it one before attach"
        )
    sizes = [
        getattr(trainer, name)() for name in ("get_tp_size", "get_cp_size", "get_sp_size") if hasattr(trainer, name)
    ]
    if max(sizes, default=1) > 1:
        raise ConfigError("replay: with tensor, context or sequence parallelism several processes share a batch, which "
                          "is not supported; use data parallelism (DDP, FSDP, DeepSpeed ZeRO)")  # fmt: skip
    data = trainer.train_dataset
    if isinstance(data, torch.utils.data.IterableDataset):
        dispatched = trainer.accelerator.dataloader_config.dispatch_batches is not False
        if trainer.args.world_size > 1 and dispatched:
            raise ConfigError("replay: the main process reads the stream for all and cuts its batches up; set "
                              "accelerator_config={'dispatch_batches': False} so that each reads its own")  # fmt: skip
    elif len(data) > 0:
        check_row(data[0])


def check_row(row: Any) -> None:
    """Raise `InputError` for a new row without tokens."""
    if not isinstance(row, Mapping) or row.get("input_ids") is None:
        what = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise InputError(f"replay: new rows with input_ids are needed, those of the trainer have: {what}")


def longest(trainer: Any) -> int | None:
    """Tokens of the longest of a trainer's first new rows; None for a stream, or where there is none."""
    data = trainer.train_dataset
    if isinstance(data, torch.utils.data.IterableDataset):
        return None
    peeked = itertools.islice((data[place] for place in range(len(data))), PEEKED)
    return max((len(row["input_ids"]) for row in peeked), default=None)
