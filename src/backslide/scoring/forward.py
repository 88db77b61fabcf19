"""What the engine needs to know of a model's forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def project_only(model: Any, where: Any) -> Iterator[None]:
    """Let only the hidden states at `where` (flat places in batch and length) into the vocabulary projection.

    A hook on the output layer rather than `logits_to_keep`: it takes other places in each row, works for every
    version and wrapper because the model's own forward runs, and hands the layer a contiguous 2-D tensor. With
    frozen weights a sliced 3-D one makes torch copy the vocabulary matrix for every row of the batch.
    """

    def gather(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]  # (B, L, H)
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, where), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def dtype_of(model: Any) -> Any:
    """The dtype that the model computes in."""
    if torch.is_autocast_enabled(next(model.parameters()).device.type):
        return torch.get_autocast_dtype(next(model.parameters()).device.type)
    return next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)


def accepts(model: Any) -> set[str]:
    """Names of the arguments that the model's forward takes."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(inner.forward).parameters)
