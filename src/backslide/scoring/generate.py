"""Greedy replies, in left-padded batches of prompts of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from backslide.scoring.requests import Prompt


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> dict[str, str]:
    """The model's greedy reply to each prompt, by item id, special tokens left out.

    A reply ends at the end-of-sequence token, at the chat template's end of turn, or after `max_new_tokens`.
    """
    order = sorted(prompts, key=lambda prompt: (len(prompt.tokens), prompt.item))
    device = next(model.parameters()).device
    pad = pad_token(tokenizer)
    replies: dict[str, str] = {}
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        longest = max(len(prompt.tokens) for prompt in group)
        tokens = [[pad] * (longest - len(p.tokens)) + list(p.tokens) for p in group]
        seen = [[0] * (longest - len(p.tokens)) + [1] * len(p.tokens) for p in group]
        output = model.generate(
            input_ids=torch.tensor(tokens, device=device),
            attention_mask=torch.tensor(seen, device=device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            # A model's own sampling defaults do not apply to greedy replies; unset, they only warn.
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad,
            use_cache=True,
        )
        for prompt, reply in zip(group, output[:, longest:].tolist(), strict=True):
            replies[prompt.item] = tokenizer.decode(reply, skip_special_tokens=True).strip()
        if progress is not None:
            progress(len(group))
    return replies


def pad_token(tokenizer: Any) -> int:
    """The id to fill rows with; any will do, since padding is masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    return 0
