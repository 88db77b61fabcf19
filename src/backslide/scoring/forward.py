"""What the engine needs to know of a model's forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from backslide.errors import ModelError


@contextmanager
def project_only(model: Any, where: Any) -> Iterator[None]:
    """Let only the hidden states at `where` (flat places in batch and length) into the vocabulary projection.

    A hook on the output layer rather than `logits_to_keep`: it takes other places in each row, works for every
    version and wrapper because the model's own forward runs, and hands the layer a contiguous 2-D tensor. With
    frozen weights a sliced 3-D one makes torch copy the vocabulary matrix for every row of the batch.
    """
    asked = 0

    def gather(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal asked
        asked += 1
        hidden = args[0]  # (B, L, H)
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, where.to(hidden.device)), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()
    if asked != 1:
        # A compiled graph, for one, runs without hooks that were added later; the logits are then of other places.
        raise ModelError(f"the model's output layer was called {asked} times in a pass, not once: it cannot be scored")


def uncompiled(model: Any) -> Any:
    """The model behind `torch.compile` and behind what runs it on several devices.

    A compiled graph was traced without the hook of `project_only`; a replica's wrapper would wait for other processes
    at each pass, which score other items.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def is_exact(model: Any) -> bool:
    """Whether the model computes in fp32 throughout, so that layouts can be compared to the last digits."""
    if getattr(model.config, "quantization_config", None) is not None:
        return False
    # Quantised weights are whole numbers; under them embeddings and norms are often kept in fp32.
    return all(parameter.dtype == torch.float32 for parameter in model.parameters())


def dtype_of(model: Any) -> Any:
    """The dtype that the model computes in."""
    if torch.is_autocast_enabled(next(model.parameters()).device.type):
        return torch.get_autocast_dtype(next(model.parameters()).device.type)
    return next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)


def accepts(model: Any) -> set[str]:
    """Names of the arguments that the model's forward takes."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(inner.forward).parameters)
