"""How far a model went from its base, where the two are asked: the KL divergence on three kinds of text.

`prose`: the repertoire's texts, on which the table reads its old loss. `answers`: replies that the base drew to
questions of the repertoire. `task`: replies that the base drew to what the users of held-out dialogues say first.

KL(base ‖ model) over the whole vocabulary at each token, in nats a token; both are asked in fp32, whatever they are
trained in. On texts that the base drew its mean is by
how much the loss on them rises, so it is at least 0, and 0 only where nothing changed; on other texts it is that too,
but for the rise in loss, which may be a fall. On inputs of the new task with the base's own replies it is what Shenfeld
et al. 2025 (RL's Razor, arXiv 2509.04259) found to foretell forgetting.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cures_data import BUILD, HELD_OUT, dialogues, suites
from torch.nn.functional import log_softmax

from backslide.cure.synthesis import synthesise
from backslide.models import BUILTIN, load_model
from backslide.scoring.requests import Request, ask
from backslide.suite.item import AnswerItem, ChoiceItem, OpenItem, TextItem

QUESTIONS, TOKENS, LENGTH = 5, 48, 1024
"""Questions of each capability; tokens of a reply at most; and of a request."""


def prompts(data: Path) -> dict[str, list[str]]:
    """What the base is asked to reply to."""
    seen: Counter[str] = Counter()
    questions = []
    for item in suites(data)["repertoire"].items:
        if isinstance(item, (AnswerItem, ChoiceItem)) and seen[item.capability] < QUESTIONS:
            seen[item.capability] += 1
            questions.append(item.prompt)
    openings = [row["messages"][0]["content"] for row in dialogues(data)[-HELD_OUT:]]
    return {"answers": list(dict.fromkeys(questions)), "task": list(dict.fromkeys(openings))}


def drawn(data: Path, kind: str, base: Any) -> list[OpenItem]:
    """The prompts with replies that the base drew to them, kept in build/."""
    said = synthesise(
        base.model, base.tokenizer, prompts=prompts(data)[kind], out=BUILD / f"drawn-{kind}.jsonl",
        max_new_tokens=TOKENS, temperature=1.0,
    )  # fmt: skip
    texts = [[message["content"] for message in row["messages"]] for row in (*said.rows, *said.unended)]
    return [
        OpenItem(id=f"{kind}-{place}", capability=kind, prompt=prompt, reference=reply)
        for place, (prompt, reply) in enumerate(sorted(texts))
        if reply.strip()
    ]


@torch.no_grad()
def distributions(model: Any, request: Request) -> torch.Tensor:
    """The logits that predict a request's targets, a row each."""
    fed = torch.tensor([request.fed], device=model.device)
    return torch.as_tensor(model(fed, logits_to_keep=len(request.targets)).logits[0])


@functools.cache
def old(data: Path) -> list[tuple[str, int, Request, torch.Tensor]]:
    """Kind, bytes, request and the base's logits, of every text."""
    base = load_model(BUILTIN, dtype="float32")
    texts = [item for item in suites(data)["repertoire"].items if isinstance(item, TextItem)]
    items: dict[str, Sequence[Any]] = {"prose": texts} | {kind: drawn(data, kind, base) for kind in ("answers", "task")}
    found = []
    for kind, own in items.items():
        sizes = {item.id: len(item.text.encode()) for item in own if isinstance(item, TextItem)}
        for request in ask(own, base.tokenizer, chat=True, max_length=LENGTH).requests:
            found.append((kind, sizes.get(request.item, 0), request, distributions(base.model, request)))
    return found


@torch.no_grad()
def divergences(data: Path, model: Any) -> dict[str, Any]:
    """KL to the base in nats a token, by kind of text; how many tokens that are; and the prose's bits a byte."""
    model = copy.deepcopy(model).float()
    kl: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    bits = []
    for kind, size, request, before in old(data):
        then, now = log_softmax(before.float(), -1), log_softmax(distributions(model, request).float(), -1)
        kl[kind] += float((then.exp() * (then - now)).sum())
        tokens[kind] += len(request.targets)
        if size:
            targets = torch.tensor(request.targets, device=now.device)
            bits.append(-float(now.gather(1, targets[:, None]).sum()) / math.log(2) / size)
    return {"kl": {kind: kl[kind] / tokens[kind] for kind in kl}, "tokens": dict(tokens), "bits": sum(bits) / len(bits)}
