"""Items to token requests, split exactly as lm-eval splits them.

A request is a context and a continuation in token ids; its score is the log-likelihood of the continuation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backslide.errors import ModelError, SuiteError
from backslide.suite.item import (
    AnswerItem,
    ChoiceItem,
    ContinuationItem,
    GenerationItem,
    Item,
    OpenItem,
    TextItem,
)

Tokens = tuple[int, ...]

LIKELIEST = 16
"""Tokens besides the reference's own whose probabilities are kept at each place of a reference, so that the KL between
two records can be bounded. More make the bound tighter and the record larger (`docs/suites.md`)."""


@dataclass(frozen=True, slots=True)
class Request:
    """The continuation whose log-likelihood is asked, after its context."""

    item: str
    """Id of the item that asks."""
    index: int
    """Which choice of the item, or which window of its text; 0 for a reference."""
    fed: Tokens
    """What the model is fed: context and continuation without its last token."""
    targets: Tokens
    """The continuation; `targets[j]` is predicted at position `len(fed) - len(targets) + j`."""
    likeliest: int = 0
    """How many of the likeliest other tokens are told with each of the continuation's; 0: none."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens after which the model is to reply."""

    item: str
    tokens: Tokens
    stop: tuple[str, ...] = ()
    """Strings before which the reply ends."""
    limit: int | None = None
    """Tokens of the reply at most; None: what all prompts share."""


@dataclass(frozen=True)
class Asked:
    """Everything that a list of items asks of a model, in tokens."""

    requests: tuple[Request, ...]
    prompts: tuple[Prompt, ...]
    digests: dict[str, str]
    """For each item the digest of its token ids; equal digests mean equal questions."""
    notes: tuple[str, ...] = ()


def ask(items: Iterable[Item], tokenizer: Any, *, chat: bool, max_length: int, max_new_tokens: int = 0) -> Asked:
    """Write down what `items` ask.

    Prompts go through the tokenizer's chat template when `chat` is true, the choice or reference being the assistant's
    reply; else they read `Question: … Answer:` on two lines and the choice or reference follows after a space. An
    open item with a reference asks for its log-likelihood, one without for a reply. Items of the kinds `continuation`
    and `generation` are asked word for word.

    Args:
        items: what to ask.
        tokenizer: a Hugging Face tokenizer.
        chat: render prompts through the chat template.
        max_length: the most tokens that the model takes; longer requests lose tokens on the left, as in lm-eval.
        max_new_tokens: room that is kept for the reply after a prompt, within `max_length`.
    """
    items = list(items)
    requests: list[Request] = []
    prompts: list[Prompt] = []
    asked = [item for item in items if isinstance(item, (ChoiceItem, AnswerItem, OpenItem))]
    contexts = dict(zip((i.id for i in asked), (rendered(i.prompt, tokenizer, chat) for i in asked), strict=True))
    delimiter = "" if chat else " "

    choosing = [item for item in items if isinstance(item, ChoiceItem)]
    pairs = [(contexts[item.id], delimiter + choice) for item in choosing for choice in item.choices]
    owners = [(item.id, index) for item in choosing for index in range(len(item.choices))]
    for item in items:
        if isinstance(item, ContinuationItem):
            pairs += item.pairs
            owners += [(item.id, index) for index in range(len(item.continuations))]
    cut: dict[str, None] = {}
    requests += continuations(tokenizer, owners, pairs, max_length, cut=cut)

    referring = [item for item in asked if isinstance(item, OpenItem) and item.judged]
    beginnings: list[str] = []
    for item, (before, after) in zip(referring, _replies(tokenizer, referring, contexts, delimiter), strict=True):
        if not after or len(after) > max_length:
            size = "is longer than the model's {max_length} tokens" if after else "becomes no token with this tokenizer"
            raise SuiteError(f"item {item.id}: the reference {size.format(max_length=max_length)}")
        if len(before) + len(after) > max_length + 1:
            beginnings.append(item.id)
        requests.append(Request(item.id, 0, (before + after)[-(max_length + 1) :][:-1], after, LIKELIEST))

    # A reference is scored, not made anew: replies to all of a user's prompts would cost more than the rest of a look.
    replying = [item for item in asked if isinstance(item, AnswerItem) or not item.judged]
    if replying and max_new_tokens >= max_length:
        raise ModelError(
            f"a reply may have max_new_tokens = {max_new_tokens} tokens, but max_length is {max_length}: nothing is "
            "left for the prompt; lower max_new_tokens"
        )
    encoded = encode(tokenizer, [contexts[item.id] for item in replying])
    room = max(1, max_length - max_new_tokens)
    prompts.extend(
        Prompt(item.id, tokens[-room:], item.stop if isinstance(item, AnswerItem) else ())
        for item, tokens in zip(replying, encoded, strict=True)
    )
    told, short = _word_for_word([item for item in items if isinstance(item, GenerationItem)], tokenizer, max_length)
    prompts += told
    texts = [item for item in items if isinstance(item, TextItem)]
    requests += windows(tokenizer, [item.id for item in texts], [item.text for item in texts], max_length)

    digests = {item.id: hashlib.sha256() for item in items}
    for request in requests:
        digests[request.item].update(_bytes(request.fed) + b"|" + _bytes(request.targets) + b";")
    for prompt in prompts:
        digests[prompt.item].update(_bytes(prompt.tokens) + "".join(f"|{stop}" for stop in prompt.stop).encode())
        if prompt.limit is not None:
            digests[prompt.item].update(f"|{prompt.limit}".encode())
    long = [item.id for item, tokens in zip(replying, encoded, strict=True) if len(tokens) > room]
    notes = [
        f"{len(ids)} {what} longer than {size} tokens and lose their beginning, such as {ids[0]!r}"
        for ids, what, size in (
            (long, "prompts are", room),
            (short, "prompts with their replies are", max_length),
            (list(cut), "items with their choices are", max_length),
            (beginnings, "prompts with their references are", max_length),
        )
        if ids
    ]
    return Asked(tuple(requests), tuple(prompts), {id: h.hexdigest()[:16] for id, h in digests.items()}, tuple(notes))


def _word_for_word(items: Sequence[GenerationItem], tokenizer: Any, max_length: int) -> tuple[list[Prompt], list[str]]:
    """Prompts as they are, as lm-eval takes them, and the ids of those that lose their beginning."""
    prompts, short = [], []
    end = tokenizer.decode(tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else ""
    for item, tokens in zip(items, encode(tokenizer, [item.prompt for item in items]), strict=True):
        room = max_length - item.max_new_tokens
        if room < 1:
            raise ModelError(
                f"item {item.id}: a reply may have {item.max_new_tokens} tokens, but the model takes {max_length} in "
                "all; leave its task out"
            )
        if len(tokens) > room:
            short.append(item.id)
        stop = tuple(dict.fromkeys([*item.stop, end] if end else item.stop))
        prompts.append(Prompt(item.id, tokens[-room:] or (prefix_token(tokenizer),), stop, item.max_new_tokens))
    return prompts, short


def continuations(
    tokenizer: Any,
    owners: Sequence[tuple[str, int]],
    pairs: Sequence[tuple[str, str]],
    max_length: int,
    *,
    cut: dict[str, None] | None = None,
) -> list[Request]:
    """A request for each pair of context and continuation.

    Args:
        tokenizer: a Hugging Face tokenizer.
        owners: for each pair the item that asks, and which of its choices it is.
        pairs: context and continuation, as text.
        max_length: the most tokens that the model takes; longer requests lose tokens on the left, as in lm-eval.
        cut: takes down the items that lost some, in order.

    Raises:
        SuiteError: a continuation is no token, or more than the model takes.
    """
    requests = []
    for (owner, index), (context, continuation) in zip(owners, encode_pairs(tokenizer, pairs), strict=True):
        if not continuation:
            raise SuiteError(f"item {owner}: choice {index} becomes no token with this tokenizer")
        if len(continuation) > max_length:
            raise SuiteError(f"item {owner}: choice {index} is longer than the model's {max_length} tokens")
        if cut is not None and len(context) + len(continuation) > max_length + 1:
            cut[owner] = None
        requests.append(Request(owner, index, (context + continuation)[-(max_length + 1) :][:-1], continuation))
    return requests


def _replies(
    tokenizer: Any, items: Sequence[OpenItem], contexts: Mapping[str, str], delimiter: str
) -> list[tuple[Tokens, Tokens]]:
    """Prompt and reference in tokens, the prompt just as it stood when the reply was made.

    Not split as choices are: white space at the end of a chat template would become the reference's first token.
    """
    befores = encode(tokenizer, [contexts[item.id] for item in items])
    afters = [f"{delimiter}{item.reference}" for item in items]
    wholes = encode(tokenizer, [contexts[item.id] + after for item, after in zip(items, afters, strict=True)])
    alone = encode(tokenizer, afters, special=False)
    return [
        # Where both grow together into other tokens, the reference is encoded by itself.
        (before, whole[len(before) :] if whole[: len(before)] == before else own)
        for before, whole, own in zip(befores, wholes, alone, strict=True)
    ]


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[Tokens, Tokens]]:
    """Context and continuation in token ids, split as `lm_eval.api.model.TemplateLM.loglikelihood` splits them.

    White space at the end of the context moves to the continuation; both are encoded together, and the
    continuation is what follows after as many tokens as the context alone has. An empty context becomes the
    prefix token (BOS, else EOS), or the continuation's first token where that is the prefix token already.
    """
    moved = []
    for context, continuation in pairs:
        stripped = context.rstrip()
        moved.append((stripped, context[len(stripped) :] + continuation))
    befores = encode(tokenizer, [before for before, _ in moved])
    wholes = encode(tokenizer, [before + after for before, after in moved])
    alone = [continuation for context, continuation in pairs if not context]
    without = dict(zip(alone, encode(tokenizer, alone, special=False), strict=True))
    split: list[tuple[Tokens, Tokens]] = []
    for (context, continuation), before, whole in zip(pairs, befores, wholes, strict=True):
        # A context of white space alone is no token either (lm-eval stops there).
        after = whole[len(before) :] if context else without[continuation]
        if context and before:
            split.append((before, after))
        else:
            prefix = prefix_token(tokenizer)
            split.append((after[:1], after[1:]) if after[:1] == (prefix,) else ((prefix,), after))
    return split


def prefix_token(tokenizer: Any) -> int:
    """The token that stands for an empty context: BOS, else EOS."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ModelError("the tokenizer has neither a BOS nor an EOS token; set tokenizer.eos_token")


def rendered(prompt: str, tokenizer: Any, chat: bool) -> str:
    """The text in front of a choice or a reply: the prompt in the chat template, or as a question on two lines."""
    if not chat:
        return f"Question: {prompt}\nAnswer:"
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def encode(tokenizer: Any, texts: Sequence[str], *, special: bool = True) -> list[Tokens]:
    """Token ids of each text; a text that occurs several times is encoded once.

    With `special`, the tokenizer's own special tokens are added, unless the text starts with the prefix token.
    """
    known: dict[str, Tokens] = {}
    prefix = tokenizer.decode(prefix_token(tokenizer)) if special else ""
    with_special = {text: special and not text.startswith(prefix) for text in texts}
    for kind in (True, False):
        group = [text for text, own in with_special.items() if own is kind]
        if group:
            # A long text is cut into windows or on the left later: no need for the tokenizer's warning.
            rows = tokenizer(
                group,
                add_special_tokens=kind,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            known.update(zip(group, map(tuple, rows), strict=True))
    return [known[text] for text in texts]


def windows(tokenizer: Any, owners: Sequence[str], texts: Sequence[str], max_length: int) -> list[Request]:
    """Every token of each text predicted once, from windows that do not overlap but for one token of context.

    `lm_eval.utils.get_rolling_token_windows(context_len=1)`: the first window starts after the prefix token; a
    last, shorter window is filled up with context on its left.
    """
    requests = []
    for owner, tokens in zip(owners, encode(tokenizer, texts), strict=True):
        stream = (prefix_token(tokenizer), *tokens)
        for index, start in enumerate(range(0, len(tokens), max_length)):
            end = min(start + max_length, len(tokens))
            # Predict tokens[start:end], which stand one further to the right in the stream.
            left = 0 if start == 0 else end - max_length
            requests.append(Request(owner, index, stream[left:end], tokens[start:end]))
    return requests


def _bytes(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, dtype="<i4").tobytes()
