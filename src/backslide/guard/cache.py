"""Baselines from earlier runs, found again by everything that they depend on.

The base model of ten runs is measured once. A baseline is taken from the cache only where all of these are equal: every
weight and the configuration of the model, the tokenizer, the suite, how it was asked, the versions of the
libraries and the kind of device.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import torch

from backslide.errors import RecordError
from backslide.files import dump
from backslide.models import cache_folder, is_adapter
from backslide.record import Header, Record

_CHUNK = 1 << 22
"""Values that are summed at once."""


def baseline_path(header: Header, model: Any) -> Path:
    """Where the cache has, or will have, the baseline with this header, measured on `model` without its adapters."""
    device = header.conditions.get("device")
    key = {
        "suite": header.suite_hash,
        "tokenizer": header.tokenizer_fingerprint,
        "conditions": header.conditions,
        "versions": header.versions,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "config": _config(model),
        "weights": weights_digest(model),
    }
    return cache_folder() / "baselines" / f"{hashlib.sha256(dump(key).encode()).hexdigest()[:32]}.jsonl"


def find(path: Path, header: Header) -> Record | None:
    """The cached baseline; None where there is none, or its file was damaged."""
    try:
        record = Record.load(path)
    except RecordError:
        return None
    return record if record.header.suite_hash == header.suite_hash else None


def weights_digest(model: Any) -> str:
    """A digest that every value of every weight and buffer takes part in, adapters left out.

    Not by a cryptographic hash, which would take a minute for a large model, but by sums of the values' bits times
    numbers that depend on the place, modulo 2^64, where the weights are.
    """
    digest = hashlib.sha256()
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in sorted((name, tensor) for name, tensor in named if not is_adapter(name)):
        plain = name.replace("base_model.model.", "").replace(".base_layer", "").replace(".original_module", "")
        digest.update(f"{plain} {tuple(tensor.shape)} {tensor.dtype} {_sum(tensor)}".encode())
    return digest.hexdigest()


def _sum(tensor: Any) -> int:
    size = tensor.element_size()
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    flat = tensor.detach().contiguous().reshape(-1).view(bits)
    total = 0
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK].long()
        place = torch.arange(start, start + part.numel(), device=part.device)
        # Odd multipliers that differ from place to place; overflow wraps, which is meant.
        total += int((part * (place * 0x9E3779B97F4A7C1 + 1 | 1)).sum())
    return total % (1 << 64)


def _config(model: Any) -> dict[str, Any]:
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "use_cache", "torch_dtype", "dtype"):
        config.pop(name, None)
    attention = getattr(model.config, "_attn_implementation", None)
    return {"attention": attention, **{key: str(value) for key, value in sorted(config.items())}}
