"""How much of the KL to the base is seen in the likeliest tokens that a record keeps, on real fine-tunes.

    python benchmarks/divergence.py [MODEL …]

Of SmolLM2-135M-Instruct, in fp32: the models of `backslide demo`, such as runs/demo/aggressive/model. Asked are
bundled prompts, with the base's own replies as references. For each model the KL of the whole distributions along
them, the share of it that lists of several lengths see (`kl_between`), and the drift. First what the lists cost.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from backslide.cure.prompts import bundled_prompts
from backslide.drops import kl_between
from backslide.models import BUILTIN, load_model
from backslide.record import Record
from backslide.scoring import requests
from backslide.scoring.engine import Scorer, Settings
from backslide.scoring.requests import ask
from backslide.suite.item import OpenItem
from backslide.suite.suite import Suite

PROMPTS, TOKENS, MAX_LENGTH = 64, 48, 512
KEPT = requests.LIKELIEST
LENGTHS = (KEPT // 2, KEPT, 2 * KEPT)


def suite_of_replies() -> Suite:
    """The prompts with what the base says to them."""
    asked = [row["prompt"] for row in bundled_prompts(PROMPTS)]
    bare = Suite("prompts", tuple(OpenItem(id=f"p{i}", capability="chat", prompt=p) for i, p in enumerate(asked)))
    base = load_model(BUILTIN, dtype="float32")
    replies = Scorer(bare, base.model, base.tokenizer, Settings(max_new_tokens=TOKENS)).measure(base.model).replies
    return Suite(
        "replies",
        tuple(
            OpenItem(id=f"p{i}", capability="chat", prompt=p, reference=replies[f"p{i}"])
            for i, p in enumerate(asked)
            if replies[f"p{i}"].strip()
        ),
    )


def record(name: str, suite: Suite, length: int) -> Record:
    """Of a model, with so many tokens at each place."""
    requests.LIKELIEST = length
    loaded = load_model(name, dtype="float32")
    return Scorer(suite, loaded.model, loaded.tokenizer, Settings(max_length=MAX_LENGTH)).measure(loaded.model)


@torch.no_grad()
def whole(name: str, suite: Suite) -> dict[str, float]:
    """By item: the mean over its reference's tokens of Σ p log p/q over the vocabulary."""
    base, now = (load_model(of, dtype="float32") for of in (BUILTIN, name))
    found = {}
    for request in ask(suite.items, base.tokenizer, chat=True, max_length=MAX_LENGTH).requests:
        fed = torch.tensor([request.fed])
        p, q = (
            of.model(input_ids=fed, logits_to_keep=len(request.targets)).logits[0].double().log_softmax(-1)
            for of in (base, now)
        )
        found[request.item] = float((p.exp() * (p - q)).sum(-1).mean())
    return found


def cost(suite: Suite) -> float:
    """Scoring references with their lists, in times of scoring them without: CPU time, the best of three, by turns."""
    loaded = load_model(BUILTIN, dtype="float32")
    seconds: dict[int, list[float]] = {0: [], KEPT: []}
    for length in (*seconds, *seconds, *seconds):
        requests.LIKELIEST = length
        scorer = Scorer(suite, loaded.model, loaded.tokenizer, Settings(max_length=MAX_LENGTH))
        scorer.prepare()
        began = time.process_time()
        scorer.measure(loaded.model)
        seconds[length].append(time.process_time() - began)
    return min(seconds[KEPT]) / min(seconds[0])


def main() -> None:
    """Print what the lists cost, and a line a model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", metavar="MODEL")
    models = parser.parse_args().models
    suite = suite_of_replies()
    print(f"references with lists of {KEPT} tokens: {cost(suite):.2f} times the CPU time of those without")
    if not models:
        return
    bases = {length: record(BUILTIN, suite, length) for length in LENGTHS}
    print(f"{len(suite.items)} replies; share of the KL that lists of {', '.join(map(str, LENGTHS))} tokens see")
    for name in models:
        full = whole(name, suite)
        shares, drift = [], 0.0
        for length, base in bases.items():
            now = record(name, suite, length)
            seen = {id: kl_between(base.by_id[id], now.by_id[id]) or 0.0 for id in full}
            assert all(seen[id] <= full[id] + 1e-5 for id in full), "it is a lower bound"
            shares.append(sum(seen.values()) / sum(full.values()))
            drift = statistics.fmean(
                (base.by_id[id].scores[0] - now.by_id[id].scores[0]) / len(now.by_id[id].likeliest) for id in full
            )
        told = ", ".join(f"{share:.1%}" for share in shares)
        print(f"{name}: KL {statistics.fmean(full.values()):.4f} nats a token, drift {drift:.4f}; seen {told}")


if __name__ == "__main__":
    main()
