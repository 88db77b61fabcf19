"""A plan on a model: log-likelihoods.

One forward pass a batch of rows. Where rows have branches, a 4-D mask lets each token see its ancestors alone and
position ids count depth in the tree; a batch's prefix is computed once, and its keys and values stand before every
row's. Only the rows that are read go through the vocabulary projection, gathered into one 2-D tensor, so no tensor
of shape [batch, length, vocabulary] ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from backslide.record import Likeliest
from backslide.scoring.forward import accepts, dtype_of, project_only, uncompiled
from backslide.scoring.memory import Memory
from backslide.scoring.plan import Batch, Plan, halves
from backslide.scoring.prefix import Shared, read_prefix
from backslide.scoring.requests import Request, Tokens

ROWS_AT_ONCE = 64
"""Rows through the softmax at once: bounds the extra memory at this many times the vocabulary, in fp32."""

RANKED_AT_ONCE = 16
"""Rows of those that are searched for their likeliest tokens at once, each in a copy of its own."""


@dataclass(frozen=True, slots=True)
class Score:
    """The log-likelihood of one request."""

    logprob: float
    """Sum over the continuation's tokens, in nats; NaN or infinite where the model's output is."""
    greedy: bool
    """Whether every token of the continuation was the model's first."""
    likeliest: tuple[Likeliest, ...] = ()
    """For each token what was likeliest in its place, where the request asks for it; may hold NaN and infinities."""


@torch.no_grad()  # type: ignore[untyped-decorator]
def execute(
    model: Any,
    plan: Plan,
    requests: Sequence[Request],
    *,
    pad: int,
    memory: Memory | None = None,
    progress: Callable[[int], None] | None = None,
    finished: Callable[[int, list[tuple[int, Score]]], None] | None = None,
) -> list[Score]:
    """Score `requests`, which `plan` was made from, on a causal language model in eval mode.

    Where memory runs out, the batch is halved and done again; `memory` remembers the size that worked.

    Args:
        model: a Hugging Face causal language model, wrapped by PEFT or not.
        plan: where each request's tokens are.
        requests: what was planned.
        pad: id of a token to fill rows with; it is never seen by another token.
        memory: what is known of the size that fits; kept by the caller from one call to the next.
        progress: called with the number of requests done after each batch.
        finished: called after each batch of the plan with its number there and the requests' places and scores.

    Returns:
        A score for each request, in their order.
    """
    model = uncompiled(model)
    memory = memory or Memory()
    scores: list[Score | None] = [None] * len(requests)
    shared: Shared | None = None
    of: Tokens = ()
    for number, planned in enumerate(plan.batches):
        found: list[tuple[int, Score]] = []
        if planned.prefix != of:
            shared, of = None, planned.prefix  # the one before is let go before the next is made
            shared = read_prefix(model, of) if of else None
        waiting = [planned]
        while waiting:
            batch = waiting.pop()
            size = len(batch.rows) * (len(batch.prefix) + batch.length)
            if not memory.fits(size) and (parts := halves(batch, requests)):
                waiting += reversed(parts)
                continue
            with memory.watched(size, last=not batch.divisible) as attempt:
                done = list(_batch(model, batch, requests, pad, plan.tree, shared))
            if attempt.failed:
                waiting.append(batch)
                continue
            for index, score in done:
                scores[index] = score
            found += done
            if progress is not None:
                progress(len(done))
        if finished is not None:
            finished(number, found)
    return [score for score in scores if score is not None]


def _batch(
    model: Any, batch: Batch, requests: Sequence[Request], pad: int, tree: bool, shared: Shared | None
) -> Iterator[tuple[int, Score]]:
    device = next(model.parameters()).device
    rows, length = batch.rows, batch.length
    tokens = np.full((len(rows), length), pad, dtype=np.int64)  # (B, L)
    depths = np.zeros((len(rows), length), dtype=np.int64)
    for b, row in enumerate(rows):
        tokens[b, : len(row.tokens)] = row.tokens
        depths[b, : len(row.tokens)] = row.depths

    # The distinct places that are read, each once however many choices share it: (R,) into the flat (B·L).
    places: dict[int, int] = {}
    asked: list[tuple[int, list[int]]] = []
    for b, row in enumerate(rows):
        for read in row.reads:
            asked.append((read.request, [places.setdefault(b * length + n, len(places)) for n in read.nodes]))
    where = torch.tensor(list(places), device=device)

    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(tokens).to(device)}
    if tree and (shared is not None or not all(row.linear for row in rows)):
        inputs["attention_mask"] = _ancestors(batch, dtype_of(model), device)
        inputs["position_ids"] = torch.from_numpy(depths).to(device)
    else:
        # Single sequences need no mask of (L, L), which a long text could not afford.
        lengths = torch.tensor([len(row.tokens) for row in rows])
        inputs["attention_mask"] = (torch.arange(length) < lengths[:, None]).long().to(device)
    if shared is not None:
        inputs["past_key_values"] = shared.before(len(rows))
        inputs["use_cache"] = True
    elif "use_cache" in accepts(model):
        inputs["use_cache"] = False
    with project_only(model, where):
        logits = model(**inputs).logits.reshape(where.numel(), -1)  # (R, V)

    flat_rows = [place for _, nodes in asked for place in nodes]
    flat_targets = [token for index, _ in asked for token in requests[index].targets]
    flat_sizes = [requests[index].likeliest for index, nodes in asked for _ in nodes]
    logprobs, first, likeliest = _read(logits, flat_rows, flat_targets, flat_sizes)
    start = 0
    for index, nodes in asked:
        end = start + len(nodes)
        ranked = tuple(likeliest[i] for i in range(start, end)) if requests[index].likeliest else ()
        # Summed in fp32 by torch, as lm-eval does: its rounding is 3e-5 at a log-likelihood of -300.
        yield index, Score(float(logprobs[start:end].sum()), bool(first[start:end].all()), ranked)
        start = end


def _read(
    logits: Any, rows: Sequence[int], targets: Sequence[int], sizes: Sequence[int]
) -> tuple[Any, Any, dict[int, Likeliest]]:
    """Log-probability of `targets[i]` in row `rows[i]`, in fp32, and whether it is the argmax of that row.

    Where `sizes[i]` is not 0, by i, also what is likeliest there (see `_likeliest`).

    `log_softmax` of whole rows, as lm-eval takes it, although `logsumexp` needs less: on a CPU the two differ by some
    1e-5 a token, always in the same direction, which would add up over a long continuation.
    """
    order = np.argsort(rows, kind="stable")
    logprobs, first = torch.empty(len(rows)), torch.empty(len(rows), dtype=torch.bool)
    ordered = np.asarray(rows)[order]
    likeliest: dict[int, Likeliest] = {}
    for start in range(0, logits.shape[0], ROWS_AT_ONCE):
        chunk = functional.log_softmax(logits[start : start + ROWS_AT_ONCE], dim=-1, dtype=torch.float32)
        mine = order[np.searchsorted(ordered, start) : np.searchsorted(ordered, start + ROWS_AT_ONCE)]
        row = torch.tensor([rows[i] - start for i in mine], dtype=torch.long, device=logits.device)
        token = torch.tensor([targets[i] for i in mine], dtype=torch.long, device=logits.device)
        logprobs[mine] = chunk[row, token].cpu()
        first[mine] = (chunk.argmax(dim=-1)[row] == token).cpu()
        for size in {sizes[i] for i in mine} - {0}:
            wanted = [place for place, i in enumerate(mine) if sizes[i] == size]
            for begin in range(0, len(wanted), RANKED_AT_ONCE):
                few = wanted[begin : begin + RANKED_AT_ONCE]
                found = _likeliest(chunk[row[few]], token[few], size)
                likeliest.update(zip((int(mine[place]) for place in few), found, strict=True))
    return logprobs, first, likeliest


def _likeliest(rows: Any, targets: Any, size: int) -> list[Likeliest]:
    """In each row of log-probabilities (R, V) the target, the `size` likeliest others, and all that remain together.

    `rows` is used up.
    """
    target = targets[:, None]  # (R, 1)
    own = rows.gather(1, target)
    rows.scatter_(1, target, -torch.inf)
    others = rows.topk(min(size, rows.shape[1] - 1), dim=-1)
    ids, logs = torch.cat([target, others.indices], dim=1), torch.cat([own, others.values], dim=1)
    if ids.shape[1] < rows.shape[1]:
        # Summed as it is: one minus the others would be rounding where they are nearly all.
        rest = rows.scatter_(1, others.indices, -torch.inf).logsumexp(-1, keepdim=True)
        logs = torch.cat([logs, rest], dim=1)
    return [(tuple(one), tuple(other)) for one, other in zip(ids.tolist(), logs.tolist(), strict=True)]


def _ancestors(batch: Batch, dtype: Any, device: Any) -> Any:
    """(B, 1, L, P + L): 0 where the column is the row's token or an ancestor of it, the lowest number elsewhere.

    The first P columns are the batch's prefix, an ancestor of every token.
    """
    length, prefix = batch.length, len(batch.prefix)
    seen = np.zeros((len(batch.rows), length, prefix + length), dtype=bool)
    seen[:, :, :prefix] = True
    for b, row in enumerate(batch.rows):
        mask = seen[b, :, prefix:]
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
