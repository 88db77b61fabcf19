"""How a model is trained, read off the trainer: what the diagnosis asks about, and where evaluations are."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from backslide.scoring.forward import uncompiled


def setup_of(model: Any, optimizer: Any = None) -> dict[str, Any]:
    """What the model itself says of it: the method, its size, and the share of it that is trained."""
    model = uncompiled(model)
    peft = getattr(model, "peft_config", None)
    adapter = next(iter(peft.values())) if peft else None
    rates = [group["lr"] for group in getattr(optimizer, "param_groups", ())]
    return {
        "method": str(getattr(adapter.peft_type, "value", adapter.peft_type)).lower() if adapter else "full",
        "rank": getattr(adapter, "r", None),
        "lora_alpha": getattr(adapter, "lora_alpha", None),
        "rslora": bool(getattr(adapter, "use_rslora", False)),
        "learning_rate": float(max(rates)) if rates else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def setup_of_trainer(args: Any, state: Any, model: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same with what a trainer's arguments say."""
    examples = None
    with contextlib.suppress(TypeError, AttributeError):
        # A data set that streams has no length.
        examples = len(kwargs["train_dataloader"].dataset)
    scheduler = getattr(args, "lr_scheduler_type", None)
    return {
        **setup_of(model),
        "learning_rate": args.learning_rate,
        "scheduler": str(getattr(scheduler, "value", scheduler)) if scheduler is not None else None,
        "warmup_steps": args.get_warmup_steps(state.max_steps),
        "max_steps": state.max_steps,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * max(args.world_size, 1),
        "examples": examples,
        "seed": args.seed,
    }


def setup_of_callbacks(trainer: Any) -> dict[str, Any]:
    """What a trainer's callbacks say of themselves: the share of replay, the weight of an anchor.

    Each that has a `backslide_setup`, a mapping, is asked; the cures are above the guard, which knows none of them.
    """
    found: dict[str, Any] = {}
    for callback in getattr(getattr(trainer, "callback_handler", None), "callbacks", ()):
        told = getattr(callback, "backslide_setup", None)
        found.update(told if isinstance(told, Mapping) else {})
    return found


def evaluations(args: Any, state: Any, loader: Any) -> tuple[int, ...]:
    """The steps after which a trainer evaluates; none where that is not known before training."""
    strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    if strategy == "steps" and state.eval_steps:
        every = int(state.eval_steps)
    elif strategy == "epoch":
        try:
            batches = len(loader)
        except TypeError:
            return ()
        # As transformers counts them: a last batch that is not full makes a step too.
        every = max(1, -(-batches // args.gradient_accumulation_steps))
    else:
        return ()
    return tuple(sorted({*range(every, state.max_steps + 1, every), state.max_steps}))
