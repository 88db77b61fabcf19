"""Adapters while scoring: switched off to get at the base, and LoRA layers computed in two matrix products.

PEFT keeps adapters in fp32 over half-precision weights, which is right for training. While scoring, the chain of
casting the input up, two small products in fp32, scaling, adding and casting down takes nearly as long as the model
itself on a CPU. Inside `fast_lora` each plain LoRA layer adds its share to the base layer's result in place, in the
dtype of the model; weights are not touched, and no second copy of them is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from backslide.errors import ModelError

KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to initialise LoRA that leave the weights of the base as they are."""


@contextmanager
def base_of(model: Any) -> Iterator[None]:
    """Within the context, `model` is the base under its adapters, whoever put them there; without any it is itself.

    Raises `ModelError` where the base is not there any more: the adapter is merged into it, or took a part of it when
    it was made (PiSSA, OLoRA and the like).
    """
    layers = [module for module in model.modules() if hasattr(module, "base_layer") and hasattr(module, "merged")]
    if any(layer.merged for layer in layers):
        raise ModelError("the adapter is merged into the weights of its base; call unmerge_adapter() before measuring")
    for config in (getattr(model, "peft_config", None) or {}).values():
        how = getattr(config, "init_lora_weights", True)
        if how not in KEEPS_BASE:
            raise ModelError(
                f"the adapter was made with init_lora_weights={how!r}, which takes a part of the base's weights: with "
                "the adapter off it is another model; use init_lora_weights=True"
            )
    if hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            yield
    elif layers and hasattr(model, "disable_adapters"):
        # Adapters of transformers' own (model.add_adapter).
        off = [layer.disable_adapters for layer in layers]
        model.disable_adapters()
        try:
            yield
        finally:
            if not all(off):
                model.enable_adapters()
    elif layers:
        raise ModelError("the model has adapters that cannot be switched off; wrap it with peft.get_peft_model")
    else:
        yield


@contextmanager
def fast_lora(model: Any) -> Iterator[None]:
    """Within the context, plain LoRA layers of `model` run their short form; forward passes take no gradient."""
    replaced: list[Any] = []
    try:
        for module in model.modules():
            if "lora_A" in module._modules and "forward" not in module.__dict__:
                pairs = _pairs(module)
                if pairs is not None:
                    module.forward = _Fused(module.base_layer, pairs)
                    replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward


class _Fused:
    """x ↦ Wx + b + Σ scaling · B A x."""

    def __init__(self, base: Any, pairs: list[tuple[Any, Any, float]]) -> None:
        self.base = base
        self.pairs = pairs
        """A (r, in), Bᵀ (r, out) and the scaling of each active adapter."""

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        result = self.base(x, *args, **kwargs)
        rows = result.reshape(-1, result.shape[-1])
        flat = x.reshape(-1, x.shape[-1]).to(rows.dtype)
        for down, up, scaling in self.pairs:
            rows = torch.addmm(rows, functional.linear(flat, down), up, alpha=scaling, out=rows)
        return rows.view(result.shape)


def _pairs(layer: Any) -> list[tuple[Any, Any, float]] | None:
    """The matrices of a plain LoRA layer's active adapters; None for what is not plain, which stays as it is."""
    base: Any = getattr(layer, "base_layer", None)
    if type(base) is not torch.nn.Linear or layer.disable_adapters or layer.merged:
        return None
    if torch.is_autocast_enabled(base.weight.device.type):
        return None  # it casts what the two products would not
    pairs: list[tuple[Any, Any, float]] = []
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        down, up = _matrix(layer.lora_A[name]), _matrix(layer.lora_B[name])
        if down is None or up is None or name in getattr(layer, "lora_variant", {}):
            return None
        dtype = base.weight.dtype
        pairs.append((down.to(dtype), up.to(dtype).t(), float(layer.scaling[name])))
    return pairs


def _matrix(layer: Any) -> Any:
    """The weight of a linear layer without bias; None for any other layer."""
    return layer.weight.detach() if type(layer) is torch.nn.Linear and layer.bias is None else None
