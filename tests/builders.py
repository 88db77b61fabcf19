"""Small records, suites and run folders for tests that need no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backslide.judge import judge
from backslide.record import Header, Outcome, Record
from backslide.rundir import RunFolder
from backslide.suite.item import ChoiceItem
from backslide.verdict import Level


def header(**fields: Any) -> Header:
    default: dict[str, Any] = {
        "suite": "s",
        "suite_hash": "h",
        "part": "all",
        "model": "m",
        "model_fingerprint": "f",
        "tokenizer_fingerprint": "t",
        "conditions": {"dtype": "float32"},
    }
    return Header(**{**default, **fields})


def choices(
    correct: Sequence[bool],
    capability: str = "math",
    *,
    broken: Sequence[int] = (),
    p: Sequence[float] | None = None,
    cluster: int | None = None,
) -> list[Outcome]:
    """Right-or-wrong outcomes, with probabilities on the gold choice where given; `cluster` items share a source."""
    return [
        Outcome(
            id=f"{capability}/{place}",
            kind="choice",
            capability=capability,
            request=f"r{place}",
            correct=right and place not in broken,
            p=None if p is None or place in broken else p[place],
            scores=(None, -1.0) if place in broken else (-1.0, -2.0),
            greedy=(True, False),
            cluster=None if cluster is None else f"{capability}/{place // cluster}",
        )
        for place, right in enumerate(correct)
    ]


def flipped(n: int, lost: int, won: int, name: str = "math") -> tuple[list[Outcome], list[Outcome]]:
    """Outcomes before and after: the first `lost` of n items go wrong, the last `won` come right."""
    old = [i < n - won for i in range(n)]
    new = [lost <= i for i in range(n)]
    return choices(old, name), choices(new, name)


def texts(scores: Sequence[float | None], capability: str = "prose", *, size: int = 100) -> list[Outcome]:
    """Outcomes of kind `text`: log-likelihoods in nats, each of a text of `size` bytes."""
    return [
        Outcome(
            id=f"{capability}/{place}", kind="text", capability=capability, request="r", scores=(score,), bytes=size
        )
        for place, score in enumerate(scores)
    ]


def opened(replies: Mapping[str, str | None]) -> list[Outcome]:
    """Outcomes of kind `open`: replies by item id."""
    return [Outcome(id=id, kind="open", capability="talk", request="r", reply=said) for id, said in replies.items()]


def referred(
    nats: Sequence[float | None], capability: str = "chat", *, tokens: int = 10, cluster: int | None = None
) -> list[Outcome]:
    """Outcomes of kind `open` with a reference: negative log-likelihoods a token of references of `tokens` tokens."""
    return [
        Outcome(
            id=f"{capability}/{place}",
            kind="open",
            capability=capability,
            request=f"r{place}",
            scores=(None if value is None else -value * tokens,),
            tokens=tokens,
            cluster=None if cluster is None else f"{capability}/{place // cluster}",
        )
        for place, value in enumerate(nats)
    ]


def record(*groups: Sequence[Outcome], **fields: Any) -> Record:
    return Record(header(**fields), tuple(outcome for group in groups for outcome in group))


def choice(id: str = "a", **fields: Any) -> ChoiceItem:
    default: dict[str, Any] = {"capability": "c", "prompt": "p", "choices": ("x", "y"), "gold": 0}
    return ChoiceItem(id=id, **{**default, **fields})


def run_folder(
    path: Path,
    *,
    capability: str = "math",
    model: str = "m",
    before: str = "Boil it.",
    after: str = "Dear customer.",
    question: str = "How do you boil water?",
    note: str = "",
    word: str = "w",
    verdict: bool = True,
) -> RunFolder:
    """A run that lost 15 of 50 items of one capability at its look, and 12 in the end; `word` stands elsewhere."""
    fields: dict[str, Any] = {
        "suite": word, "suite_hash": "0123456789abcdef", "conditions": {"dtype": "float32", word: word},
    }  # fmt: skip
    old, seen = flipped(50, 15, 2, capability)
    _, new = flipped(50, 12, 2, capability)
    other = choices([True] * 50, "other")
    base = record(
        old, other, opened({"talk/1": before}), model=model, versions={"torch": word}, notes=(note,) if note else (),
        **fields,
    )  # fmt: skip
    look = record(seen, other, part="monitor", step=10, **fields)
    final = record(new, other, opened({"talk/1": after}), part="gate", step=20, **fields)
    run = RunFolder(path)
    run.begin(
        {
            "model": model,
            "suite": word,
            "suite_hash": "0123456789abcdef",
            "alpha": 0.05,
            "tolerance": 0.03,
            "questions": {"talk/1": question},
            "setup": {
                "method": "lora" if word == "w" else word,
                "rank": 8,
                "learning_rate": 0.01,
                "steps": 20,
                "max_steps": 40,
                "batch_size": 8,
                "seed": 1,
                "parameters": 1000,
                "trainable": 10,
            },
        }
    )
    base.save(run.baseline)
    look.save(run.step(10))
    at_look = judge(base, look, level=Level(fail=0.0125))
    run.append(
        [
            {"event": "baseline", "step": 0, "seconds": 1.5},
            {"event": "loss", "step": 5, "loss": 3.0},
            {"event": "loss", "step": 10, "loss": 2.0},
            {"event": "look", "step": 10, "zone": at_look.zone, "verdict": at_look.to_dict(), "seconds": 0.5},
            {"event": "action", "step": 20, "action": "stop", "reason": "r"},
        ]
    )
    final.save(run.final)
    if verdict:
        run.save_verdict(judge(base, final, level=Level(fail=0.025)))
    return run
