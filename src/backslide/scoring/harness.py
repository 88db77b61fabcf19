"""lm-eval's evaluator on this engine: the same requests and the same numbers as its HF backend, in less time.

An `lm_eval` model to be handed to `lm_eval.simple_evaluate(model=…)` or `lm_eval.evaluate`::

    from backslide.scoring.harness import EngineLM

    lm_eval.simple_evaluate(model=EngineLM(model, tokenizer), tasks=["arc_easy", "piqa"], num_fewshot=5)

Importing this module needs the package `lm-eval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, resolve_max_length

from backslide.errors import ModelError
from backslide.scoring.requests import Prompt, Tokens, continuations, encode, prefix_token, windows
from backslide.scoring.runner import Runner, default_batch
from backslide.scoring.session import session

_GREEDY: dict[str, tuple[Any, ...]] = {
    "do_sample": (False, None),
    "temperature": (0, 0.0, None),
    "num_beams": (1, None),
    "repetition_penalty": (1, 1.0, None),
    "num_return_sequences": (1, None),
}
"""Settings of generation with the values that leave it greedy."""


class EngineLM(TemplateLM):
    """A Hugging Face causal language model, as `lm_eval.models.huggingface.HFLM` would score it.

    The model is left exactly as found after each call, so it may be one that is being trained.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        row_tokens: int = 256,
        batch_tokens: int | None = None,
        adapters: bool = True,
    ) -> None:
        """Make the model known to lm-eval.

        Args:
            pretrained: the model itself, wrapped by PEFT or not.
            tokenizer: its tokenizer.
            max_length: the most tokens of a request; None: what lm-eval takes for this model.
            row_tokens: tokens in a packed row.
            batch_tokens: tokens in a forward pass, padding included; None: see `default_batch`.
            adapters: False scores the base under a PEFT model.
        """
        super().__init__()
        self._model = pretrained
        self.tokenizer = tokenizer
        self.max_length = int(max_length or resolve_max_length(pretrained.config, tokenizer))
        self.runner = Runner(tokenizer, row_tokens=row_tokens, batch_tokens=batch_tokens or default_batch(pretrained))
        self.adapters = adapters

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context."""
        return prefix_token(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """For the cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; None: the tokenizer's special tokens, unless it starts with the prefix token."""
        return list(encode(self.tokenizer, [string], special=add_special_tokens is not False)[0])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text, through the tokenizer's template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation in nats, and whether it is greedy.

        Instances of one document stay together, as their contexts mostly are the same.
        """
        owners = [_owner(request, number) for number, request in enumerate(requests)]
        asked = continuations(self.tokenizer, owners, [request.args for request in requests], self.max_length)
        return [(score.logprob, score.greedy) for score in self._score(asked)]

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("loglikelihood makes requests of its own")

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text in nats, over windows that do not overlap."""
        texts = [request.args[0] for request in requests]
        asked = windows(self.tokenizer, [str(number) for number in range(len(texts))], texts, self.max_length)
        totals = [0.0] * len(texts)
        for request, score in zip(asked, self._score(asked), strict=True):
            totals[int(request.item)] += score.logprob
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy replies, each cut before the first of its stop strings.

        Raises `ModelError` for settings that ask for anything but greedy replies.
        """
        replies = [""] * len(requests)
        groups: dict[int, list[tuple[int, Prompt]]] = {}
        end = self.tokenizer.decode(self.eot_token_id)
        contexts = encode(self.tokenizer, [request.args[0] for request in requests])
        for number, (request, tokens) in enumerate(zip(requests, contexts, strict=True)):
            options = dict(normalize_gen_kwargs(dict(request.args[1]), 256))
            stop = tuple(s for s in handle_stop_sequences(options.pop("until", None), eos=end) if s)
            limit = int(options.pop("max_gen_toks"))
            if limit >= self.max_length:
                raise ModelError(f"max_gen_toks is {limit}, less than the model's {self.max_length} tokens is needed")
            # What is left must leave greedy decoding as it is.
            if any(value not in _GREEDY.get(name, ()) for name, value in options.items()):
                raise ModelError(f"generation settings {options!r} are not greedy; only greedy replies are supported")
            fed: Tokens = tokens[-(self.max_length - limit) :] or (self.prefix_token_id,)
            groups.setdefault(limit, []).append((number, Prompt(str(number), fed, stop)))
        with session(self._model, self.tokenizer, adapters=self.adapters):
            for limit, group in groups.items():
                said = self.runner.reply(self._model, [prompt for _, prompt in group], max_new_tokens=limit)
                for (number, _), reply in zip(group, said, strict=True):
                    replies[number] = reply.text
        return replies

    def _score(self, asked: Any) -> list[Any]:
        with session(self._model, self.tokenizer, adapters=self.adapters):
            # Every call asks something else: no plan is kept.
            return self.runner.score(self._model, asked, name=None)[0]


def _owner(request: Any, number: int) -> tuple[str, int]:
    """Document and place in it; instances that lm-eval gave no document stand for themselves."""
    if getattr(request, "doc_id", None) is None:
        return f"request {number}", 0
    return f"{request.task_name}/{request.doc_id}", number
