"""The model, optimizer and scheduler inside the wrappers that trainers put around them, without importing any."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from backslide.errors import ConfigError


def plain_model(model: Any) -> Any:
    """The model inside the wrappers of DDP and of `torch.compile`, with FSDP2's shards in place.

    Raises:
        ConfigError: FSDP1 or DeepSpeed ZeRO-3, whose parameters are not what the optimizer holds.
    """
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            break
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise ConfigError("the model is wrapped in FSDP1, of which no snapshot can be taken; use fsdp_version 2")
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            # A forward pass without a backward pass may leave whole parameters in the place of the shards.
            module.reshard()
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ConfigError("the model is sharded by DeepSpeed ZeRO-3, of which no snapshot can be taken; use FSDP2")
    return model


def plain_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside accelerate's wrapper; None stays None.

    Raises:
        ConfigError: it keeps its state or its rates elsewhere than torch's optimizers do.
    """
    while type(optimizer).__module__.startswith("accelerate.") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if optimizer is None:
        return None
    elsewhere = (
        not isinstance(optimizer, torch.optim.Optimizer)
        or type(optimizer).__module__.startswith("deepspeed")
        or hasattr(optimizer, "optimizer_dict")  # transformers' layer-wise optimizers: one for each, in hooks
        or hasattr(optimizer, "consolidate_state_dict")  # torch's ZeroRedundancyOptimizer
    )
    if elsewhere:
        raise ConfigError(
            f"optimizer {type(optimizer).__name__} does not keep state and rates as torch's own optimizers do, so "
            "training cannot go back or change its rate with it; use another one, such as AdamW"
        )
    return optimizer


def plain_scheduler(scheduler: Any) -> Any:
    """The scheduler inside accelerate's wrapper; None stays None."""
    while type(scheduler).__module__.startswith("accelerate.") and hasattr(scheduler, "scheduler"):
        scheduler = scheduler.scheduler
    return scheduler
