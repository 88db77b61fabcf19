"""KL between two states of a model at chosen places, without logits of [batch, length, vocabulary].

The hidden states at the places are caught in front of the vocabulary projection, as one 2-D tensor. The projection
is then made for some rows at a time, and the gradient of each part is taken at once, so that no logits are kept for the
backward pass and none are computed twice: what the backward pass finds is the finished gradient of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from backslide.errors import ModelError
from backslide.models import is_adapter
from backslide.scoring.forward import accepts, is_exact, project_only, uncompiled
from backslide.scoring.session import as_base

ROWS_AT_ONCE = 128
"""Places through the vocabulary at once: bounds the extra memory at some four times this times the vocabulary, fp32."""

PROBED = 16
"""Tokens on which it is tried whether projecting hidden states gives the model's own logits."""


@dataclass(frozen=True)
class BaseTop:
    """The base's distributions at some places: its likeliest tokens, and all others together."""

    ids: Any
    """(R, K) token ids."""
    logprobs: Any
    """(R, K) natural logarithms of their probabilities, fp32."""
    rest: Any
    """(R,) that of all other tokens together; -inf where there are none."""

    def at(self, start: int, stop: int) -> BaseTop:
        """The places from `start` up to `stop`."""
        return BaseTop(self.ids[start:stop], self.logprobs[start:stop], self.rest[start:stop])


def full_kl(base: Any, logits: Any) -> Any:
    """Σ over rows of KL(p ‖ q), in nats; p is the softmax of `base` (R, V), q that of `logits` (R, V)."""
    p, q = functional.log_softmax(base.float(), dim=-1), functional.log_softmax(logits.float(), dim=-1)
    return functional.kl_div(q, p, reduction="sum", log_target=True)


def top_kl(base: BaseTop, logits: Any) -> Any:
    """Σ over rows of KL between base and model with all tokens outside of the base's top taken for one, in nats.

    Never more than `full_kl`: putting outcomes together cannot raise a KL (the log sum inequality: Cover and Thomas,
    Elements of Information Theory, 2nd edition, theorem 2.7.1). Without the bucket for the rest
    the student would be pulled towards the top alone, the bias that arXiv 2503.16870 describes.
    """
    logits = logits.float()
    whole = logits.logsumexp(-1)
    q = logits.gather(1, base.ids) - whole[:, None]
    found = (base.logprobs.exp() * (base.logprobs - q)).sum()
    if base.ids.shape[1] < logits.shape[1]:
        q_rest = logits.scatter(1, base.ids, -torch.inf).logsumexp(-1) - whole
        p_rest = base.rest.exp()
        # 0 · log 0 is 0 here.
        found = found + (torch.where(p_rest > 0, p_rest * base.rest, 0.0) - p_rest * q_rest).sum()
    return found


def top_of(logits: Any, top: int) -> BaseTop:
    """The `top` likeliest tokens of each row of logits (R, V), and the mass of the rest."""
    logits = logits.float()
    whole = logits.logsumexp(-1)
    values, ids = logits.topk(min(top, logits.shape[1]), dim=-1)
    rest = logits.scatter(1, ids, -torch.inf).logsumexp(-1) - whole
    return BaseTop(ids, values - whole[:, None], rest)


class Reader:
    """A causal language model, read at chosen places of a batch.

    Args:
        model: wrapped by PEFT, DDP or the compiler, or not; the inner model is run.
        autocast: what the training computes the model's forward pass in.
    """

    def __init__(self, model: Any, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self.model = uncompiled(model)
        self.autocast = autocast
        self._after: Callable[[Any], Any] | None = None
        """From the projection's output to the model's logits; None: the model's own logits are read."""
        self._whole = False
        """Whether all of the model's logits have to be computed."""
        self.vocabulary = 0
        """How many logits the model has at each place."""
        self._probe()

    @property
    def head(self) -> Any:
        """The vocabulary projection; None where the model does not show it."""
        shown = getattr(self.model, "get_output_embeddings", None)
        return shown() if shown is not None else None

    @property
    def projects(self) -> bool:
        """Whether `states` are hidden states that `logits` projects; else they are the model's own logits."""
        return self._after is not None

    @property
    def weights(self) -> list[Any]:
        """What is trained of the projection, besides the hidden states in front of it."""
        return [p for p in self.head.parameters() if p.requires_grad] if self.projects else []

    @property
    def adapted(self) -> bool:
        """Whether the projection itself has an adapter."""
        return self.projects and any(is_adapter(name) for name, _ in self.head.named_parameters(prefix="head"))

    def states(self, inputs: dict[str, Any], where: Any) -> Any:
        """(R, H) hidden states, or (R, V) logits, at the flat places `where` (R,) of a batch (B, L)."""
        if "use_cache" in accepts(self.model):
            inputs = {**inputs, "use_cache": False}
        if self._whole:
            logits = self.model(**inputs).logits
            return logits.reshape(-1, logits.shape[-1]).index_select(0, where)
        if not self.projects:
            with project_only(self.model, where):
                logits = self.model(**inputs).logits
            return logits.reshape(where.numel(), -1)
        with _caught(self.head, where) as found:
            self.model(**inputs)
        return found[0]

    def logits(self, states: Any) -> Any:
        """(R, V) logits of what `states` gave, or some rows of it."""
        if self._after is None:
            return states
        # A context of its own for each: autocast keeps weights that were cast without a gradient for later calls.
        with self.autocast():
            return self._after(self.head(states))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _probe(self) -> None:
        device = next(self.model.parameters()).device
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            size = min(PROBED, int(self.model.config.get_text_config().vocab_size))
            inputs = {"input_ids": torch.arange(size, device=device)[None]}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            where = torch.arange(size, device=device)
            own = self.model(**inputs).logits[0]
            self.vocabulary = int(own.shape[-1])
            if self.head is not None:
                for after in _after_head(self.model):
                    self._after = after
                    if self._agrees(own, inputs, where):
                        return
            self._after = None
            self._whole = self.head is None or not self._agrees(own, inputs, where)
        finally:
            for module, mode in modes:
                module.training = mode

    def _agrees(self, own: Any, inputs: dict[str, Any], where: Any) -> bool:
        try:
            found = self.logits(self.states(inputs, where))
        except (ModelError, RuntimeError, TypeError, IndexError):
            return False
        if own.shape != found.shape:
            return False
        # The order of sums differs between a 2-D and a 3-D product.
        close = (1e-4 if is_exact(self.model) and own.dtype == found.dtype == torch.float32 else 1e-2) * own.abs().max()
        return bool((own - found).abs().max() <= close)


def mean_kl(reader: Reader, states: Any, base: Any) -> Any:
    """Mean over places of KL(base ‖ model), in nats, with its gradient.

    Args:
        reader: the model.
        states: (R, …) what `Reader.states` gave of it.
        base: the same of the base (which then gives `full_kl`), or `BaseTop` (`top_kl`).

    Returns:
        A scalar in fp32.
    """
    # Only where the projection has an adapter does anything of it differ between base and model.
    adapted = reader.adapted

    def part(rows: Any, start: int, stop: int) -> Any:
        if isinstance(base, BaseTop):
            return top_kl(base.at(start, stop), reader.logits(rows))
        with as_base(reader.model) if adapted else torch.no_grad():
            target = reader.logits(base[start:stop])
        return full_kl(target, reader.logits(rows))

    total = _InParts.apply(part, states, *reader.weights)
    return total / states.shape[0]


class _InParts(torch.autograd.Function):  # type: ignore[misc]
    """Σ part(rows) over chunks of rows, whose gradients are taken in the forward pass."""

    @staticmethod
    def forward(ctx: Any, part: Callable[[Any, int, int], Any], states: Any, *weights: Any) -> Any:
        wanted = any(ctx.needs_input_grad)
        total = torch.zeros((), device=states.device)
        of_states, of_weights = torch.zeros_like(states), [torch.zeros_like(w, dtype=torch.float32) for w in weights]
        for start in range(0, states.shape[0], ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, states.shape[0])
            with torch.enable_grad():
                rows = states[start:stop].detach().requires_grad_()
                found = part(rows, start, stop)
            total += found.detach()
            if wanted:
                first, *others = torch.autograd.grad(found, (rows, *weights), allow_unused=True)
                of_states[start:stop] = first
                for summed, gradient in zip(of_weights, others, strict=True):
                    if gradient is not None:
                        summed += gradient
        ctx.save_for_backward(of_states, *(g.to(w.dtype) for g, w in zip(of_weights, weights, strict=True)))
        return total

    @staticmethod
    def backward(ctx: Any, scale: Any) -> Any:
        return None, *((scale * gradient).to(gradient.dtype) for gradient in ctx.saved_tensors)


@contextmanager
def _caught(head: Any, where: Any) -> Iterator[list[Any]]:
    """Catch what goes into the projection at `where`; the projection itself is given one row, and is done at once."""
    found: list[Any] = []

    def catch(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]  # (B, L, H)
        found.append(hidden.reshape(-1, hidden.shape[-1]).index_select(0, where.to(hidden.device)))
        return (found[-1][:1], *args[1:])

    handle = head.register_forward_pre_hook(catch)
    try:
        yield found
    finally:
        handle.remove()
    if len(found) != 1:
        raise ModelError(
            f"the model's output layer was called {len(found)} times in a pass, not once, so the anchor cannot read "
            "the model; leave the anchor out, and use replay"
        )


def _after_head(model: Any) -> Iterator[Callable[[Any], Any]]:
    """What architectures do between projection and logits: the likeliest first, each to be tried."""
    config = model.config.get_text_config()

    def number(name: str) -> float | None:
        value = getattr(config, name, None)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value else None

    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        scale *= number(name) or 1.0
    scale /= number("logits_scaling") or 1.0  # Granite
    cap = number("final_logit_softcapping")  # Gemma

    def changed(logits: Any) -> Any:
        logits = logits * scale if scale != 1.0 else logits
        return torch.tanh(logits / cap) * cap if cap is not None else logits

    yield changed
    if scale != 1.0 or cap is not None:
        yield lambda logits: logits
