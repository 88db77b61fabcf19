"""Whatever the requests, their order and the sizes: every layout of every model scores as one plain sequence does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backslide.scoring.execute import execute
from backslide.scoring.memory import Memory
from backslide.scoring.plan import plan
from backslide.scoring.requests import Request
from backslide.scoring.support import layout_for
from backslide.testing import tiny_model
from backslide_models import other_model

CLOSE = 1e-4
PAD = 1
MANY = settings(deadline=None, max_examples=40)

# Few different tokens, so that beginnings are shared by chance as well as on purpose; 5 and up are plain bytes.
token = st.integers(5, 8)
tokens = st.lists(token, max_size=9).map(tuple)
sizes = st.fixed_dictionaries(
    {
        "row_tokens": st.sampled_from([1, 8, 24, 4096]),
        "batch_tokens": st.sampled_from([1, 40, 65536]),
        "shared": st.sampled_from([1, 4]),
    }
)


@st.composite
def asked(draw: st.DrawFn) -> list[Request]:
    beginning = draw(tokens)
    requests = []
    for item in range(draw(st.integers(1, 6))):
        context = (*beginning, *draw(tokens), draw(token))
        for choice in range(draw(st.integers(1, 3))):
            targets = tuple(draw(st.lists(token, min_size=1, max_size=4)))
            requests.append(Request(f"item {item}", choice, (*context, *targets)[:-1], targets))
    return requests


@cache
def model_of(kind: str) -> Any:
    return tiny_model() if kind == "llama" else other_model(kind)


@torch.no_grad()
def plain(model: Any, request: Request) -> tuple[float, bool]:
    """From the definition: one sequence, no padding, no cache."""
    logits = model(input_ids=torch.tensor([request.fed]), use_cache=False).logits[0].double()
    rows = torch.log_softmax(logits, dim=-1)[-len(request.targets) :]
    total = sum(float(row[token]) for row, token in zip(rows, request.targets, strict=True))
    return total, rows.argmax(dim=-1).tolist() == list(request.targets)


def agree(model: Any, requests: Sequence[Request], scores: Sequence[Any]) -> None:
    assert len(scores) == len(requests)
    for request, score in zip(requests, scores, strict=True):
        logprob, greedy = plain(model, request)
        assert abs(score.logprob - logprob) <= CLOSE
        assert score.greedy == greedy


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma3", "mistral", "mamba"])
def test_every_layout_scores_as_a_plain_sequence_does(kind: str) -> None:
    model = model_of(kind)

    @MANY
    @given(asked(), sizes, st.randoms(use_true_random=False), st.sampled_from([None, 16, 64]))
    def holds(requests: list[Request], size: Any, drawn: random.Random, limit: int | None) -> None:
        drawn.shuffle(requests)
        layout = layout_for(model, requests, pad=PAD)
        # Rows of two different tokens may not tell whether a tiny model reads position ids: plain rows are right then.
        poor = all(len(set(request.fed)) <= 2 for request in requests) and not layout.tree
        assert layout.tree is (kind in ("llama", "qwen2", "gpt2")) or poor
        ways = [(False, None)] + ([(True, None), (True, 0)] if layout.tree else [])
        for tree, saved in ways:
            memory = Memory()
            memory.limit = limit  # as after running out of memory: batches come in halves
            packed = plan(requests, tree=tree, saved=saved, **size)
            agree(model, requests, execute(model, packed, requests, pad=PAD, memory=memory))

    holds()
