"""A plan on a model: log-likelihoods.

One forward pass a batch of rows. Where rows have branches, a 4-D mask lets each token see its ancestors alone and
position ids count depth in the tree. Only the rows that are read go through the vocabulary projection, gathered
into one 2-D tensor, so no tensor of shape [batch, length, vocabulary] ever exists.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from backslide.scoring.plan import Plan, Row
from backslide.scoring.requests import Request

ROWS_AT_ONCE = 1024
"""Rows through the softmax at once: bounds the extra memory at this many times the vocabulary, in fp32."""


@dataclass(frozen=True, slots=True)
class Score:
    """The log-likelihood of one request."""

    logprob: float
    """Sum over the continuation's tokens, in nats; NaN or infinite where the model's output is."""
    greedy: bool
    """Whether every token of the continuation was the model's first."""


def execute(
    model: Any,
    plan: Plan,
    requests: Sequence[Request],
    *,
    pad: int,
    progress: Callable[[int], None] | None = None,
) -> list[Score]:
    """Score `requests`, which `plan` was made from, on a causal language model in eval mode.

    Args:
        model: a Hugging Face causal language model, wrapped by PEFT or not.
        plan: where each request's tokens are.
        requests: what was planned.
        pad: id of a token to fill rows with; it is never seen by another token.
        progress: called with the number of requests done after each batch.

    Returns:
        A score for each request, in their order.
    """
    scores: list[Score | None] = [None] * len(requests)
    for batch in plan.batches:
        for index, score in _batch(model, batch, requests, pad, plan.tree):
            scores[index] = score
        if progress is not None:
            progress(sum(len(row.reads) for row in batch))
    return [score for score in scores if score is not None]


def _batch(
    model: Any, batch: Sequence[Row], requests: Sequence[Request], pad: int, tree: bool
) -> Iterator[tuple[int, Score]]:
    device = next(model.parameters()).device
    length = max(len(row.tokens) for row in batch)
    tokens = np.full((len(batch), length), pad, dtype=np.int64)  # (B, L)
    depths = np.zeros((len(batch), length), dtype=np.int64)
    for b, row in enumerate(batch):
        tokens[b, : len(row.tokens)] = row.tokens
        depths[b, : len(row.tokens)] = row.depths

    # The distinct places that are read, each once however many choices share it: (R,) into the flat (B·L).
    places: dict[int, int] = {}
    asked: list[tuple[int, list[int]]] = []
    for b, row in enumerate(batch):
        for read in row.reads:
            asked.append((read.request, [places.setdefault(b * length + n, len(places)) for n in read.nodes]))
    where = torch.tensor(list(places), device=device)

    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(tokens).to(device)}
    if tree:
        inputs["attention_mask"] = _ancestors(batch, length, _dtype(model), device)
        inputs["position_ids"] = torch.from_numpy(depths).to(device)
    else:
        lengths = torch.tensor([len(row.tokens) for row in batch])
        inputs["attention_mask"] = (torch.arange(length) < lengths[:, None]).long().to(device)
    accepted = _accepts(model)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    with _project_only(model, where):
        logits = model(**inputs).logits.reshape(where.numel(), -1)  # (R, V)

    flat_rows = [place for _, nodes in asked for place in nodes]
    flat_targets = [token for index, _ in asked for token in requests[index].targets]
    logprobs, first = _read(logits, flat_rows, flat_targets)
    start = 0
    for index, nodes in asked:
        end = start + len(nodes)
        yield index, Score(float(logprobs[start:end].sum()), bool(first[start:end].all()))
        start = end


def _read(logits: Any, rows: Sequence[int], targets: Sequence[int]) -> tuple[Any, Any]:
    """Log-probability of `targets[i]` in row `rows[i]`, in fp32, and whether it is the argmax of that row."""
    normaliser, first = [], []
    for start in range(0, logits.shape[0], ROWS_AT_ONCE):
        chunk = logits[start : start + ROWS_AT_ONCE].float()
        normaliser.append(torch.logsumexp(chunk, dim=-1))
        first.append(chunk.argmax(dim=-1))
    row = torch.tensor(rows, device=logits.device)
    token = torch.tensor(targets, device=logits.device)
    logprobs = logits[row, token].float() - torch.cat(normaliser)[row]
    return logprobs.double().cpu().numpy(), (torch.cat(first)[row] == token).cpu().numpy()


def _ancestors(batch: Sequence[Row], length: int, dtype: Any, device: Any) -> Any:
    """(B, 1, L, L): 0 where the column is the row's token or an ancestor of it, the lowest number elsewhere."""
    seen = np.zeros((len(batch), length, length), dtype=bool)
    for b, row in enumerate(batch):
        mask = seen[b]
        for place, parent in enumerate(row.parents):
            if parent >= 0:
                # The parent stands before its child, so its own row is complete.
                mask[place, : parent + 1] = mask[parent, : parent + 1]
            mask[place, place] = True
        # Padding sees itself, so that no softmax is over nothing.
        fill = np.arange(len(row.tokens), length)
        mask[fill, fill] = True
    see = torch.from_numpy(seen)[:, None].to(device)
    return torch.zeros(see.shape, dtype=dtype, device=device).masked_fill_(~see, torch.finfo(dtype).min)


@contextmanager
def _project_only(model: Any, where: Any) -> Iterator[None]:
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


def _dtype(model: Any) -> Any:
    if torch.is_autocast_enabled(next(model.parameters()).device.type):
        return torch.get_autocast_dtype(next(model.parameters()).device.type)
    return next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)


def _accepts(model: Any) -> set[str]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(inner.forward).parameters)


def takes_tree(model: Any) -> str | None:
    """Why the model cannot take a mask of our own, or None where, as far as it says itself, it can."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"has layers other than full attention ({', '.join(sorted(kinds - {'full_attention'}))})"
    # Some name a window and switch it off (Qwen2's use_sliding_window).
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "has a sliding window"
    attention = getattr(config, "_attn_implementation", None) or "eager"
    if attention not in ("eager", "sdpa"):
        return f"uses the attention implementation {attention}, which takes no mask"
    if not {"position_ids", "attention_mask"} <= _accepts(model):
        return "takes no position ids or no mask"
    return None
