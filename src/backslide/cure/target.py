"""The target's loss on held-out data: mean cross-entropy a token, in nats, over the tokens that training learns from.

What is a token of the loss is what TRL's SFTTrainer makes it: of text all of it with an end token, of prompt and
completion the completion with an end token, of messages all that the chat template writes; nothing after `max_length`
tokens. The mean is over all tokens of the file; the trainer's `eval_loss` is the mean over examples of the mean of each
batch, so the two differ a little where examples differ in length.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from backslide.data import TrainingData
from backslide.errors import DataError, ModelError
from backslide.scoring.requests import Request
from backslide.scoring.runner import Runner, default_batch
from backslide.scoring.session import session
from backslide.scoring.work import Progress


class TargetLoss:
    """Held-out data, made ready for one tokenizer; measured on as many models as wanted.

    Args:
        data: the held-out rows; messages are taken as plain text where the tokenizer has no chat template.
        tokenizer: of the tuned model.
        max_length: tokens of an example; longer ones are cut at the end, as in training.

    Raises:
        DataError: no example has a token to learn from.
        ModelError: the tokenizer has no end token, which training puts behind each example.
    """

    def __init__(self, data: TrainingData, tokenizer: Any, max_length: int) -> None:
        if data.chats and not getattr(tokenizer, "chat_template", None):
            data = data.as_text()
        if not data.chats and tokenizer.eos_token is None:
            raise ModelError("the tokenizer has no end token, which training puts behind each example; set eos_token")
        self.tokenizer = tokenizer
        self.requests = tuple(
            Request(str(place), 0, tuple(tokens[:-1]), tuple(tokens[first:]))
            for place, row in enumerate(data.rows)
            for tokens, first in [_example(row, data.format, tokenizer, max_length)]
            if len(tokens) > first
        )
        if not self.requests:
            raise DataError(f"{data.path}: no example has a token to learn from within {max_length} tokens")
        self.tokens = sum(len(request.targets) for request in self.requests)
        """Tokens that the loss is a mean over."""
        self._runner: Runner | None = None

    def digest(self) -> str:
        """Of all token ids that are asked: equal digests mean the same loss."""
        content = json.dumps([(request.fed, request.targets) for request in self.requests])
        return hashlib.sha256(content.encode()).hexdigest()

    def measure(self, model: Any, progress: Progress | None = None) -> float:
        """The loss of `model` in nats a token; infinite where it is not a number."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress("held-out loss", done, len(self.requests))

        shown: Callable[[int], None] | None = advance if progress is not None else None
        with session(model, self.tokenizer):
            self._runner = self._runner or Runner(self.tokenizer, row_tokens=256, batch_tokens=default_batch(model))
            scores, _ = self._runner.score(model, self.requests, name="target", progress=shown)
        total = math.fsum(-score.logprob for score in scores if math.isfinite(score.logprob))
        finite = all(math.isfinite(score.logprob) for score in scores)
        return total / self.tokens if finite else math.inf


def _example(row: dict[str, Any], kind: str, tokenizer: Any, max_length: int) -> tuple[list[int], int]:
    """Token ids of an example, and the place of the first that is learnt: the very first one is never predicted."""
    if kind == "messages":
        tokens = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
        return list(tokens)[:max_length], 1
    if not isinstance(row.get("prompt", ""), str):
        # As TRL makes it: all behind the beginning of the reply is learnt, and the template ends it.
        asked, both = (
            list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **more)["input_ids"])
            for turns, more in (
                (row["prompt"], {"add_generation_prompt": True}),
                ([*row["prompt"], *row["completion"]], {}),
            )
        )
        return both[:max_length], max(1, _shared(asked, both))
    end = tokenizer.eos_token
    text = row["completion"] if kind == "prompt/completion" else row["text"]
    text = text if text.endswith(end) else text + end
    if kind == "text":
        return list(tokenizer(text)["input_ids"])[:max_length], 1
    whole = list(tokenizer(row["prompt"] + text)["input_ids"])
    asked = tokenizer(row["prompt"])["input_ids"] if row["prompt"] else []
    return whole[:max_length], max(1, _shared(asked, whole))


def _shared(asked: list[int], whole: list[int]) -> int:
    """Where the completion begins: where tokens merge across the boundary, where the two part."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, whole, strict=False)))
