"""Which layouts a model can take: seen on its configuration, then on its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import CONFIG_MAPPING

from backslide.scoring.execute import Score, execute
from backslide.scoring.forward import accepts, is_exact
from backslide.scoring.memory import out_of_memory
from backslide.scoring.plan import Batch, Plan, Read, Row, plan
from backslide.scoring.requests import Request, Tokens

CHECKED = {True: 2, False: 4}
"""Items that are scored in every layout before a model is trusted with it, in fp32 and in half precision."""
EXACT = 1e-3
"""Nats by which the score of a request may differ between layouts in fp32."""
ROUGH = 0.35
"""The same in half precision, as a root mean square over requests, for a continuation of one token. The order of sums
alone makes it 0.02 to 0.17 (SmolLM2, bf16), a mask that is not read 0.5 to 2.9."""
_WINDOWS = ("window_size", "attention_window", "attention_chunk_size", "chunk_size", "local_window_size")
"""Names under which configurations keep a window that attention is limited to."""
CONTEXT = 32
"""Tokens of their contexts that are enough for that."""


@dataclass(frozen=True)
class Layout:
    """How requests may be laid out for a model."""

    tree: bool
    """In packed trees, under a mask of our own; else in plain rows."""
    prefix: bool
    """Behind a common prefix, whose keys and values are computed once."""
    notes: tuple[str, ...] = ()
    """For the record: what is not possible, and why."""


def layout_for(model: Any, requests: Sequence[Request], *, pad: int) -> Layout:
    """Find the fastest layout in which the model gives the numbers that it gives in plain rows.

    A model that says itself that it has sliding windows or the like gets plain rows; any other is tried on the
    shortest items of `requests` (on the longest too where its code is not part of transformers).
    """
    if reason := _unable(model):
        return Layout(False, False, (f"scored in plain rows, not in packed trees: the model {reason}",))
    few = _sample(model, requests)
    big = 1 << 30
    # What fails in plain rows is no question of layout, and is raised.
    flat = execute(model, plan(few, row_tokens=big, batch_tokens=big, tree=False), few, pad=pad)
    if reason := _difference(model, plan(few, row_tokens=big, batch_tokens=big, saved=None), few, flat, pad):
        return Layout(False, False, (f"scored in plain rows, not in packed trees: the model {reason}",))
    # One item alone behind a prefix of its own; an item that begins with what is scored can have none.
    one = next((r.item for r in sorted(few, key=lambda r: len(r.fed)) if len(r.fed) > len(r.targets)), None)
    alone = [(request, score) for request, score in zip(few, flat, strict=True) if request.item == one]
    apart = [request for request, _ in alone]
    packed = plan(apart, row_tokens=1, batch_tokens=big, shared=1, saved=0)
    if reason := _difference(model, packed, apart, [score for _, score in alone], pad):
        return Layout(True, False, (f"common prefixes are computed in every row: the model {reason}",))
    return Layout(True, True)


def _sample(model: Any, requests: Sequence[Request]) -> list[Request]:
    longest: dict[str, int] = {}
    for request in requests:
        longest[request.item] = max(longest.get(request.item, 0), len(request.fed))
    items = sorted(longest, key=lambda item: (longest[item], item))
    chosen = set(items[: CHECKED[is_exact(model)]])
    sample = [_shortened(request) for request in requests if request.item in chosen]
    big = 1 << 30
    if all(
        row.linear for batch in plan(sample, row_tokens=big, batch_tokens=big, saved=None).batches for row in batch.rows
    ):
        # Short items that end alike and ask for one token are a single sequence, which tries no mask.
        sample += _branching(sample[0])
    if getattr(model.config, "model_type", None) not in CONFIG_MAPPING:
        # Remote code may have a window that only a long request is longer than.
        sample += [request for request in requests if request.item == items[-1] and items[-1] not in chosen]
    return sample


def _branching(request: Request) -> list[Request]:
    """Two requests on the same tokens in another order, which part before their last token."""
    tokens = (*request.fed, *request.targets)
    first, last = tokens[0], tokens[-1]
    # Where all tokens are alike, any other two will do.
    one, other = (first, last) if first != last else (first, first + 1 if first == 0 else first - 1)
    context = (one, other, *tokens[-8:], other)
    return [
        Request("probe", index, (*context, *targets)[:-1], targets)
        for index, targets in enumerate(((one, other, one), (other, one, other)))
    ]


def _shortened(request: Request) -> Request:
    """The request with the end of its context alone, which its item's other requests keep in common with it."""
    context = len(request.fed) - len(request.targets) + 1
    return replace(request, fed=request.fed[max(0, context - CONTEXT) :])


def _difference(model: Any, packed: Plan, requests: Sequence[Request], flat: Sequence[Score], pad: int) -> str | None:
    """Why a layout cannot be used, or None where it gives the same numbers."""
    try:
        scores = execute(model, packed, requests, pad=pad)
    except Exception as error:
        if out_of_memory(error):
            raise
        return f"cannot take it ({type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''})"
    # NaN on both ways says nothing of the mask: the items themselves will be reported as not finite.
    gaps = [
        (abs(one.logprob - other.logprob), len(request.targets))
        for request, one, other in zip(requests, scores, flat, strict=True)
        if not (math.isnan(one.logprob) and math.isnan(other.logprob))
    ]
    largest = max((gap for gap, _ in gaps), default=0.0)
    if is_exact(model):
        agrees = largest <= EXACT
    else:
        agrees = not gaps or math.sqrt(sum(gap * gap / tokens for gap, tokens in gaps) / len(gaps)) <= ROUGH
    other = _deaf(model, packed, requests, pad) if agrees and gaps else None
    return other if agrees else f"differs by {largest:.2g} nats between this layout and plain rows"


def _deaf(model: Any, packed: Plan, requests: Sequence[Request], pad: int) -> str | None:
    """What closeness may hide, in half precision above all: a mask or position ids that are not quite read.

    Of the first row with branches, the request that sees the most different tokens is scored again with the tokens
    changed that it must not see, and with other positions. The same shapes mean the same arithmetic, so in any
    precision a score changes with what it depends on and with nothing else.
    """
    found = [(batch, row) for batch in packed.batches for row in batch.rows if not row.linear]
    if not found:
        return None
    batch, row = found[0]
    seen, read = max(
        ((_seen(row, read), read) for read in row.reads),
        key=lambda pair: len({row.tokens[place] for place in pair[0]}),
    )

    def scored(changed: Row) -> float:
        scores = execute(model, Plan((Batch((changed,), batch.prefix),), packed.tree), requests, pad=pad)
        place = sorted(one.request for one in row.reads).index(read.request)
        return float(scores[place].logprob)

    usual = scored(row)
    if not abs(scored(replace(row, tokens=_where(row.tokens, seen, pad))) - usual) <= EXACT:
        return "sees tokens of other requests"
    different = len({row.tokens[place] for place in seen}) > 1
    if different and scored(replace(row, depths=row.depths[::-1])) == usual:
        return "does not read position ids"
    return None


def _seen(row: Row, read: Read) -> set[int]:
    """The places of a row that a request is scored from."""
    seen: set[int] = set()
    for place in read.nodes:
        while place >= 0 and place not in seen:
            seen.add(place)
            place = row.parents[place]
    return seen


def _where(tokens: Tokens, kept: set[int], other: int) -> Tokens:
    return tuple(token if place in kept else other for place, token in enumerate(tokens))


def _unable(model: Any) -> str | None:
    """Why the model cannot take a mask of our own, or None where, as far as it says itself, it can."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"has layers other than full attention ({', '.join(sorted(kinds - {'full_attention'}))})"
    # Some name a window and switch it off (Qwen2's use_sliding_window).
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "has a sliding window"
    # GPT-Neo names each layer's kind, and a window that only its local layers have.
    local = getattr(config, "attention_layers", None)
    if "local" in local if local else any(getattr(config, name, None) for name in _WINDOWS):
        return "has layers that attend to a window"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if (kind := rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None) in ("longrope", "dynamic"):
        return f"turns positions by the length of the whole batch ({kind})"
    attention = getattr(config, "_attn_implementation", None) or "eager"
    if attention not in ("eager", "sdpa"):
        return f"uses the attention implementation {attention}, which takes no mask"
    if not {"position_ids", "attention_mask"} <= accepts(model):
        return "takes no position ids or no mask"
    return None
