"""A beginning that many rows share: its keys and values, computed once and attended to by every row."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from backslide.scoring.forward import project_only
from backslide.scoring.requests import Tokens


class _Before(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer that stand before those of every row, and are never added to."""

    def __init__(self, keys: Any, values: Any) -> None:
        super().__init__()
        self.keys, self.values = keys, values  # (1, heads, P, size)
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


class Shared:
    """What a model made of a prefix."""

    def __init__(self, tokens: Tokens, layers: list[tuple[Any, Any]]) -> None:
        self.tokens = tokens
        self.layers = layers
        """Keys and values of each layer, (1, heads, P, size)."""

    def before(self, rows: int) -> Any:
        """A cache for a forward pass of `rows` rows, which it does not grow by."""
        return Cache(layers=[_Before(keys, values) for keys, values in self.layers])

    def grown(self, rows: int) -> Any:
        """A cache that a generation of `rows` replies goes on from."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
        return cache


def read_prefix(model: Any, tokens: Tokens) -> Shared:
    """Run `tokens` through the model once; nothing of them goes through the vocabulary projection but one row."""
    device = next(model.parameters()).device
    cache = DynamicCache()
    with project_only(model, torch.zeros(1, dtype=torch.long, device=device)):
        model(input_ids=torch.tensor([tokens], device=device), past_key_values=cache, use_cache=True)
    return Shared(tokens, [(layer.keys, layer.values) for layer in cache.layers])
