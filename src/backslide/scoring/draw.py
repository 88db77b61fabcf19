"""Tokens drawn at random in place of the likeliest ones, the same for a prompt whatever company it is asked in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from backslide.errors import ConfigError
from backslide.scoring.requests import Prompt


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Raises `ConfigError` for a temperature that is not above 0."""

    temperature: float = 1.0
    """Logits are divided by it; 1 draws from what the model says."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature!r}, a number above 0 is needed")


class Draws:
    """The random numbers of a batch of prompts: each prompt's are made from its own tokens and the seed."""

    def __init__(self, sampling: Sampling, prompts: Sequence[Prompt], count: int) -> None:
        self._temperature = sampling.temperature
        rows = []
        for prompt in prompts:
            key = hashlib.sha256(f"{sampling.seed} {prompt.tokens}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
            rows.append(torch.rand(count, generator=generator))
        self._uniform = torch.stack(rows)  # (prompts, count)

    def choose(self, logits: Any, rows: Sequence[int], step: int) -> Any:
        """Tokens (rows,) for logits (rows, vocabulary), by inverting the distribution function.

        Args:
            logits: of the prompts' next tokens.
            rows: which prompts these are.
            step: tokens of the reply before.
        """
        below = torch.softmax(logits.float() / self._temperature, dim=-1).cumsum(-1)
        drawn = self._uniform[list(rows), step].to(below.device)[:, None] * below[:, -1:]
        return torch.searchsorted(below, drawn, right=True)[:, 0].clamp(max=below.shape[-1] - 1)


def processor(draws: Draws, longest: int) -> Any:
    """The same for `model.generate`: leaves the drawn token alone; rows stay in their places there."""
    from transformers import LogitsProcessor

    class Drawn(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            chosen = draws.choose(scores, range(len(scores)), input_ids.shape[1] - longest)
            return torch.full_like(scores, float("-inf")).scatter(1, chosen[:, None], 0.0)

    return Drawn()
