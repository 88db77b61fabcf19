"""Replies: prompts by length, a common beginning read once, a row given up as soon as its reply has ended.

Greedy, unless asked to draw the tokens (see `backslide.scoring.draw`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from backslide.scoring.draw import Draws, Sampling, processor
from backslide.scoring.forward import accepts, project_only
from backslide.scoring.memory import Memory
from backslide.scoring.plan import SHARED
from backslide.scoring.prefix import Shared, read_prefix
from backslide.scoring.requests import Prompt, Tokens

BATCH = 64
"""Prompts that are replied to at once."""

# What makes greedy decoding differ from taking the likeliest token each time, and the values that do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0),
    "watermarking_config": (None,),
}


class Reply(NamedTuple):
    """What a model says after a prompt."""

    text: str
    tokens: int
    """Without the one that ends it."""
    ended: bool
    """By a token that ends it or a stop string; False: it was cut off at its longest."""


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    plain: bool = True,
    batch: int = BATCH,
    memory: Memory | None = None,
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Reply]:
    """The model's greedy reply to each prompt, in their order, special tokens left out.

    A reply ends at an end-of-sequence token of the model (the chat template's end of turn, for a chat model), before
    a stop string of its prompt, or after `max_new_tokens`.

    Args:
        model: a Hugging Face causal language model in eval mode.
        tokenizer: its tokenizer.
        prompts: what to reply to.
        max_new_tokens: length of a reply at most, in tokens.
        plain: the model has full attention throughout. False leaves generation to `model.generate`, as do settings
            of the model's generation beyond taking the likeliest token, such as a repetition penalty.
        batch: prompts at once.
        memory: what is known of the size that fits.
        sampling: draw each token at random; None takes the likeliest.
        progress: called with the number of replies done after each batch.
    """
    memory = memory or Memory()
    replies = [Reply("", 0, False)] * len(prompts)
    by_hand = plain and _is_plain(model)
    shared: Shared | None = None
    waiting = in_batches(prompts, batch)[::-1]
    while waiting:
        group = waiting.pop()
        longest = max(len(prompts[i].tokens) for i in group)
        size = len(group) * (longest + max_new_tokens)
        if len(group) > 1 and not memory.fits(size):
            waiting += [group[len(group) // 2 :], group[: len(group) // 2]]
            continue
        some = [prompts[i] for i in group]
        draws = Draws(sampling, some, max_new_tokens) if sampling is not None else None
        with memory.watched(size, last=len(group) == 1) as attempt:
            if by_hand:
                shared = _shared(model, some, shared)
                rows = _own(model, tokenizer, some, max_new_tokens, shared, draws)
            else:
                rows = _library(model, tokenizer, some, max_new_tokens, draws)
        if attempt.failed:
            shared = None
            waiting.append(group)
            continue
        for index, (row, ended) in zip(group, rows, strict=True):
            replies[index] = Reply(_until(_text(tokenizer, row), prompts[index].stop), len(row), ended)
        if progress is not None:
            progress(len(group))
    return replies


def in_batches(prompts: Sequence[Prompt], batch: int) -> list[list[int]]:
    """Indices of the prompts that are replied to together, where memory allows: by length, then by item.

    Prompts whose replies may have another length are in other batches.
    """
    groups: dict[int | None, list[int]] = {}
    for i in sorted(range(len(prompts)), key=lambda i: (len(prompts[i].tokens), prompts[i].item)):
        groups.setdefault(prompts[i].limit, []).append(i)
    return [order[start : start + batch] for order in groups.values() for start in range(0, len(order), batch)]


@torch.no_grad()  # type: ignore[untyped-decorator]
def _own(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    shared: Shared | None,
    draws: Draws | None,
) -> list[tuple[list[int], bool]]:
    """Tokens of each reply, and whether it ended by itself.

    A row that has ended leaves the batch, which `model.generate` computes to the end.
    """
    from transformers.cache_utils import DynamicCache

    device = next(model.parameters()).device
    skip = len(shared.tokens) if shared else 0
    rest = [prompt.tokens[skip:] for prompt in prompts]
    longest = max(map(len, rest))
    pad = pad_token(tokenizer)
    tokens = torch.tensor([[pad] * (longest - len(r)) + list(r) for r in rest], device=device)  # (B, L)
    seen = torch.tensor([[1] * skip + [0] * (longest - len(r)) + [1] * len(r) for r in rest], device=device)
    places = (seen.cumsum(-1) - 1).clamp(min=0)[:, skip:]
    cache = shared.grown(len(rest)) if shared else DynamicCache()
    ends = _ends(model, tokenizer)
    stops = [_Stops(tokenizer, prompt.stop) for prompt in prompts]
    replies: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    ended = [False] * len(prompts)
    extra = {"use_cache": True} if "use_cache" in accepts(model) else {}
    for step in range(max_new_tokens):
        last = torch.arange(1, len(alive) + 1, device=device) * tokens.shape[1] - 1
        with project_only(model, last):
            logits = model(
                input_ids=tokens, attention_mask=seen, position_ids=places, past_key_values=cache, **extra
            ).logits
        logits = logits.reshape(len(alive), -1)
        chosen = logits.argmax(-1) if draws is None else draws.choose(logits, alive, step)  # (B,)
        keep = []
        for row, (index, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
            if token in ends or token in stops[index].tokens:
                ended[index] = True
                continue
            replies[index].append(token)
            if stops[index].reached(replies[index]):
                ended[index] = True
            else:
                keep.append(row)
        if not keep or step + 1 == max_new_tokens:
            break
        tokens, places = chosen[:, None], places[:, -1:] + 1
        seen = torch.cat([seen, seen.new_ones(len(alive), 1)], dim=1)
        if len(keep) < len(alive):
            rows = torch.tensor(keep, device=device)
            cache.batch_select_indices(rows)
            tokens, places, seen = tokens[rows], places[rows], seen[rows]
            alive = [alive[row] for row in keep]
    return list(zip(replies, ended, strict=True))


def _library(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int, draws: Draws | None
) -> list[tuple[list[int], bool]]:
    device = next(model.parameters()).device
    pad = pad_token(tokenizer)
    ends = _ends(model, tokenizer)
    longest = max(len(prompt.tokens) for prompt in prompts)
    tokens = [[pad] * (longest - len(p.tokens)) + list(p.tokens) for p in prompts]
    seen = [[0] * (longest - len(p.tokens)) + [1] * len(p.tokens) for p in prompts]
    output = model.generate(
        input_ids=torch.tensor(tokens, device=device),
        attention_mask=torch.tensor(seen, device=device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        logits_processor=[] if draws is None else [processor(draws, longest)],
        # A model's own sampling defaults do not apply to these replies; unset, they only warn.
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
        use_cache=True,
        # Settings that would give another thing than one row of tokens a prompt.
        return_dict_in_generate=False,
        num_return_sequences=1,
        stop_strings=None,
    )
    rows: list[list[int]] = output[:, longest:].tolist()
    found = []
    for row, prompt in zip(rows, prompts, strict=True):
        stops = _Stops(tokenizer, prompt.stop)
        end = next((place for place, token in enumerate(row) if token in ends | stops.tokens), None)
        reply = row[:end]
        found.append((reply, end is not None or stops.within(reply)))
    return found


class _Stops:
    """Whether a reply has come to one of its stop strings."""

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        # A special token is no text: it is seen by its id, and ends the reply before it.
        special = tokenizer.get_added_vocab() if strings else {}
        self.tokens = {int(special[string]) for string in strings if string in special}
        self.strings = [string for string in strings if string not in special]
        # A string's bytes bound its tokens however the model cuts it, but for a token that reaches out on each side.
        self.tail = max((len(string.encode()) for string in self.strings), default=0) + 2

    def reached(self, reply: Sequence[int]) -> bool:
        return self.within(reply[-self.tail :])

    def within(self, tokens: Sequence[int]) -> bool:
        """Whether one of the strings is in the text of these tokens."""
        if not self.strings:
            return False
        text = _text(self.tokenizer, tokens)
        return any(string in text for string in self.strings)


def _until(text: str, strings: Sequence[str]) -> str:
    for string in strings:
        text = text.split(string, 1)[0]
    return text


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def _shared(model: Any, prompts: Sequence[Prompt], before: Shared | None) -> Shared | None:
    """What all prompts of a batch begin with, where it is long enough; computed once for batches that agree."""
    first, last = (f(prompt.tokens for prompt in prompts) for f in (min, max))
    common = 0
    # One token stays for the pass that gives the first token of the reply.
    for a, b in zip(first[:-1], last, strict=False):
        if a != b:
            break
        common += 1
    common = min(common, min(len(prompt.tokens) for prompt in prompts) - 1)
    if common < SHARED or len(prompts) == 1:
        return None
    tokens: Tokens = first[:common]
    # Only the very same one: what a batch says must not depend on the batches before it.
    if before is not None and before.tokens == tokens:
        return before
    with torch.no_grad():
        return read_prefix(model, tokens)


def _is_plain(model: Any) -> bool:
    config = getattr(model, "generation_config", None)
    return "past_key_values" in accepts(model) and all(
        getattr(config, name, None) in values for name, values in _PLAIN.items()
    )


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The model's end tokens and the tokenizer's: a template put on a base model ends turns with the latter."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = end if isinstance(end, (list, tuple)) else [end]
    return {int(token) for token in (*ends, tokenizer.eos_token_id) if token is not None}


def pad_token(tokenizer: Any) -> int:
    """The id to fill rows with; any will do, since padding is masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    return 0
