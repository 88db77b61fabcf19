"""Borrow a model for scoring, and give it back exactly as it was.

Base and candidate must be scored alike, and a training run must not notice that it was watched. So a session puts
every submodule into eval mode, switches gradients and (where asked) adapters off, and on leaving restores each
submodule's mode, every random number generator, the cache switch and the tokenizer's padding side, also when it
is left by an exception.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from backslide.scoring.adapters import base_of, fast_lora


@contextlib.contextmanager
def session(model: Any, tokenizer: Any, *, adapters: bool = True) -> Iterator[None]:
    """Score inside this context.

    Args:
        model: the model, of which nothing is changed on leaving.
        tokenizer: its tokenizer; pads on the left inside, as generation needs.
        adapters: False switches PEFT adapters off, which gives the base model without a second copy of it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(random_state())
        stack.enter_context(_shards(model))
        stack.enter_context(_modes(model))
        stack.enter_context(_attribute(tokenizer, "padding_side", "left"))
        stack.enter_context(_plain_forward(model))
        if not adapters:
            stack.enter_context(_requires_grad(model))
            stack.enter_context(base_of(model))
        stack.enter_context(torch.no_grad())
        model.eval()
        if adapters:
            stack.enter_context(fast_lora(model))
        yield


@contextlib.contextmanager
def as_base(model: Any) -> Iterator[None]:
    """Compute with the base under the adapters of a model that is being trained: in eval mode, without gradients.

    Unlike in a `session` the mixed precision of the training stays on, so that the two differ by nothing but the
    adapters. Modes, random state and `requires_grad` are on leaving what they were.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(random_state())
        stack.enter_context(_modes(model))
        stack.enter_context(_requires_grad(model))
        stack.enter_context(base_of(model))
        stack.enter_context(torch.no_grad())
        model.eval()
        yield


@contextlib.contextmanager
def random_state() -> Iterator[None]:
    """Leave every random number generator as it was, whatever is drawn within."""
    python, numpy = random.getstate(), np.random.get_state()
    # fork_rng covers torch's CPU generator and those of every accelerator that has been used.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _shards(model: Any) -> Iterator[None]:
    # A pass without a backward pass leaves the outermost parameters of FSDP2 whole, where the optimizer has shards.
    try:
        yield
    finally:
        for module in model.modules():
            if hasattr(module, "reshard") and hasattr(module, "unshard"):
                module.reshard()


@contextlib.contextmanager
def _modes(model: Any) -> Iterator[None]:
    # Not model.train() on leaving: a user may keep single submodules in eval mode.
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _plain_forward(model: Any) -> Iterator[None]:
    # Under mixed precision accelerate wraps forward() in autocast. A model is scored as it will be loaded from its
    # checkpoint, so that a baseline from elsewhere and a later `backslide check` meet the same conditions.
    wrapped = model.__dict__.get("forward")
    if wrapped is None or "_original_forward" not in model.__dict__:
        yield
        return
    model.forward = model.__dict__["_original_forward"]
    try:
        yield
    finally:
        model.forward = wrapped


@contextlib.contextmanager
def _requires_grad(model: Any) -> Iterator[None]:
    # PEFT switches requires_grad of adapters when they are disabled and enabled again.
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
