"""Scores and replies of one model after another on the same requests: planned once, run as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from backslide.scoring.draw import Sampling
from backslide.scoring.execute import Score, execute
from backslide.scoring.forward import uncompiled
from backslide.scoring.generate import BATCH, Reply, generate, in_batches, pad_token
from backslide.scoring.memory import Memory
from backslide.scoring.plan import SAVED, Plan, plan
from backslide.scoring.requests import Prompt, Request
from backslide.scoring.support import Layout, layout_for

Advance = Callable[[int], None]

REPLY_TOKENS = 48
"""Tokens that a reply counts for where work is shared out before any was timed."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Items that are scored in each other's company."""

    items: frozenset[str]
    tokens: int
    """About how many tokens it takes, to share work out by."""


def default_batch(model: Any) -> int:
    """Tokens in a forward pass: few where the caches are small, many where only large ones keep the device busy."""
    return 1024 if next(model.parameters()).device.type == "cpu" else 16384


class Runner:
    """What is found out about a model, and kept: the layout it takes, the plans, the memory there is.

    The model is to be in eval mode (see `backslide.scoring.session`).
    """

    def __init__(self, tokenizer: Any, *, row_tokens: int, batch_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.row_tokens = row_tokens
        self.batch_tokens = batch_tokens
        self.prompts = BATCH
        # A reply's cache costs other memory than a pass.
        self.memory, self.reply_memory = Memory(), Memory()
        self.layout: Layout | None = None
        self._plans: dict[str, Plan] = {}

    def score(
        self,
        model: Any,
        requests: Sequence[Request],
        *,
        name: str | None,
        only: Collection[str] | None = None,
        progress: Advance | None = None,
        finished: Callable[[frozenset[str], Mapping[int, Score]], None] | None = None,
    ) -> tuple[list[Score], int]:
        """Log-likelihoods of `requests` and the number of tokens computed; the plan is kept under `name`, if any.

        With `only`, which must be the items of whole packs, the log-likelihoods of their requests, in their order.
        `finished` is told the items and scores of each pack as soon as it is done, by place in `requests`.
        """
        if not requests:
            return [], 0
        model = uncompiled(model)
        packed = self._plan(model, requests, name)
        packs = packed.packs(requests)
        if only is not None:
            items = set(only)
            packs = tuple(pack for pack in packs if _items(packed, pack, requests) <= items)
            chosen = sorted(number for pack in packs for number in pack)
            place = {number: new for new, number in enumerate(chosen)}
            packed = replace(packed, batches=tuple(packed.batches[number] for number in chosen))
            packs = tuple(tuple(place[number] for number in pack) for pack in packs)
        home = {number: pack for pack in packs for number in pack}
        left = {pack: len(pack) for pack in packs}
        found: dict[tuple[int, ...], dict[int, Score]] = {pack: {} for pack in packs}

        def done(number: int, scores: list[tuple[int, Score]]) -> None:
            pack = home[number]
            left[pack] -= 1
            found[pack].update(scores)
            if not left[pack] and finished is not None:
                finished(_items(packed, pack, requests), found.pop(pack))

        pad = pad_token(self.tokenizer)
        scores = execute(
            model, packed, requests, pad=pad, memory=self.memory, progress=progress, finished=done if finished else None
        )
        return scores, packed.tokens

    def packs(self, model: Any, requests: Sequence[Request], prompts: Sequence[Prompt], *, name: str) -> list[Pack]:
        """What can be looked at by itself, in the very company in which the whole is scored. An item is in one pack."""
        found: list[Pack] = []
        if requests:
            packed = self._plan(uncompiled(model), requests, name)
            for pack in packed.packs(requests):
                size = sum(len(row.tokens) for number in pack for row in packed.batches[number].rows)
                found.append(Pack(_items(packed, pack, requests), size))
        for group in in_batches(prompts, self.prompts):
            size = sum(len(prompts[i].tokens) + REPLY_TOKENS for i in group)
            found.append(Pack(frozenset(prompts[i].item for i in group), size))
        return found

    def _plan(self, model: Any, requests: Sequence[Request], name: str | None) -> Plan:
        if self.layout is None:
            self.layout = layout_for(model, requests, pad=pad_token(self.tokenizer))
        packed = self._plans.get(name or "") or self.planned(requests, self.layout)
        if name:
            self._plans[name] = packed
        return packed

    def planned(self, requests: Sequence[Request], layout: Layout) -> Plan:
        """The plan of `requests` in a layout."""
        return plan(
            requests,
            row_tokens=self.row_tokens,
            batch_tokens=self.batch_tokens,
            tree=layout.tree,
            saved=SAVED if layout.prefix else None,
        )

    def reply(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        progress: Advance | None = None,
    ) -> list[Reply]:
        """Replies to `prompts`, in their order; greedy ones without `sampling`."""
        if not prompts:
            return []
        model = uncompiled(model)
        if self.layout is None:
            # The first prompt in place of a request: one of its tokens is asked for.
            shortest = min(prompts, key=lambda prompt: (len(prompt.tokens), prompt.item)).tokens
            probes = [Request("probe", k, (*shortest, token), (token, token)) for k, token in enumerate(shortest[:2])]
            self.layout = layout_for(model, probes, pad=pad_token(self.tokenizer))
        return generate(
            model,
            self.tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            plain=self.layout.tree and self.layout.prefix,
            batch=self.prompts,
            memory=self.reply_memory,
            sampling=sampling,
            progress=progress,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the record should say of how it went."""
        return (self.layout.notes if self.layout else ()) + self.memory.notes + self.reply_memory.notes


def _items(packed: Plan, pack: Sequence[int], requests: Sequence[Request]) -> frozenset[str]:
    rows = [row for number in pack for row in packed.batches[number].rows]
    return frozenset(requests[read.request].item for row in rows for read in row.reads)
