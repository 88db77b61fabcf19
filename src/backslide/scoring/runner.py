"""Scores and replies of one model after another on the same requests: planned once, run as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from backslide.scoring.execute import Score, execute
from backslide.scoring.forward import uncompiled
from backslide.scoring.generate import BATCH, generate, in_batches, pad_token
from backslide.scoring.memory import Memory
from backslide.scoring.plan import SAVED, Plan, plan
from backslide.scoring.requests import Prompt, Request
from backslide.scoring.support import Layout, layout_for

Advance = Callable[[int], None]


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
    ) -> tuple[list[Score], int]:
        """Log-likelihoods of `requests` and the number of tokens computed; the plan is kept under `name`, if any.

        With `only`, which must be the items of whole packs, the log-likelihoods of their requests, in their order.
        """
        if not requests:
            return [], 0
        model = uncompiled(model)
        packed = self._plan(model, requests, name)
        if only is not None:
            batches = [
                b for b in packed.batches if {requests[i.request].item for r in b.rows for i in r.reads} <= set(only)
            ]
            packed = replace(packed, batches=tuple(batches))
        pad = pad_token(self.tokenizer)
        return execute(model, packed, requests, pad=pad, memory=self.memory, progress=progress), packed.tokens

    def packs(
        self, model: Any, requests: Sequence[Request], prompts: Sequence[Prompt], *, name: str
    ) -> list[frozenset[str]]:
        """The items of each part that can be looked at by itself, in the very company in which the whole is scored."""
        found: list[frozenset[str]] = []
        if requests:
            packed = self._plan(uncompiled(model), requests, name)
            for pack in packed.packs(requests):
                rows = [row for number in pack for row in packed.batches[number].rows]
                found.append(frozenset(requests[read.request].item for row in rows for read in row.reads))
        return found + [frozenset(prompts[i].item for i in group) for group in in_batches(prompts, self.prompts)]

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
        self, model: Any, prompts: Sequence[Prompt], *, max_new_tokens: int, progress: Advance | None = None
    ) -> list[str]:
        """Greedy replies to `prompts`, in their order."""
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
            progress=progress,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the record should say of how it went."""
        return (self.layout.notes if self.layout else ()) + self.memory.notes + self.reply_memory.notes
