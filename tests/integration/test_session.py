"""A session borrows a model: whatever happens inside, it gives it back as found."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model

from backslide.scoring.engine import Scorer
from backslide.scoring.session import session
from backslide.suite.item import AnswerItem, ChoiceItem, Item, OpenItem, TextItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer

KINDS: tuple[Item, ...] = (
    *(ChoiceItem(id=f"c{i}", capability="c", prompt=f"{i}?", choices=("a", "bb"), gold=0) for i in range(4)),
    TextItem(id="t", capability="t", text="It was a bright cold day."),
    AnswerItem(id="a", capability="a", prompt="Name one.", answers=("x",)),
    OpenItem(id="o", capability="o", prompt="Why?"),
)
SUITE = Suite("kinds", KINDS)


class Left(Exception):
    """Raised inside a session."""


def lora(**more: Any) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **more))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def disturbed(model: Any) -> Any:
    """A state that no default gives: single modules and parameters differ from their neighbours."""
    model.train()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.model.layers[0].eval()
    base.model.norm.eval()
    base.model.layers[1].mlp.gate_proj.weight.requires_grad_(False)
    base.model.norm.weight.requires_grad_(True)
    base.model.norm.weight.grad = torch.ones_like(base.model.norm.weight)
    base.config.use_cache = False
    return model


def state(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Everything that a session could leave behind."""
    return {
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "requires_grad": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "weights": [(name, p.detach().clone().numpy().tobytes()) for name, p in model.named_parameters()],
        "grads": [(name, None if p.grad is None else p.grad.numpy().tobytes()) for name, p in model.named_parameters()],
        "hooks": [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()],
        "disabled": [(n, m.disable_adapters) for n, m in model.named_modules() if hasattr(m, "disable_adapters")],
        "active": getattr(model, "active_adapters", None),
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "own": sorted(model.__dict__),
        "forward": model.__dict__.get("forward"),
        "python": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
    }


def draw(model: Any) -> None:
    """Disturb everything a session restores."""
    random.random(), np.random.rand(), torch.rand(3)


@contextlib.contextmanager
def left(by_exception: bool) -> Any:
    with pytest.raises(Left) if by_exception else contextlib.nullcontext():
        yield


@pytest.mark.parametrize("by_exception", [False, True])
@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("kind", ["bare", "lora", "lora switched off"])
def test_all_is_as_found(kind: str, adapters: bool, by_exception: bool) -> None:
    model, tokenizer = disturbed(tiny_model() if kind == "bare" else lora()), tiny_tokenizer()
    tokenizer.padding_side = "right"
    if kind == "lora switched off":
        model.base_model.disable_adapter_layers()
        disturbed(model)
    before = state(model, tokenizer)
    with left(by_exception), session(model, tokenizer, adapters=adapters):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        assert tokenizer.padding_side == "left"
        draw(model)
        if by_exception:
            raise Left
    assert state(model, tokenizer) == before


@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("kind", ["bare", "lora"])
def test_a_measurement_leaves_all_as_found(kind: str, adapters: bool) -> None:
    model, tokenizer = disturbed(tiny_model() if kind == "bare" else lora()), tiny_tokenizer()
    tokenizer.padding_side = "right"
    scorer = Scorer(SUITE, model, tokenizer)
    before = state(model, tokenizer)
    scorer.measure(model, adapters=adapters)
    assert state(model, tokenizer) == before


def test_a_measurement_that_breaks_leaves_all_as_found() -> None:
    model, tokenizer = disturbed(lora()), tiny_tokenizer()
    scorer = Scorer(SUITE, model, tokenizer)
    before = state(model, tokenizer)
    seen = 0

    def progress(name: str, done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise Left

    with pytest.raises(Left):
        scorer.measure(model, adapters=False, progress=progress)
    assert state(model, tokenizer) == before


def test_the_next_random_numbers_are_those_without_the_session() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()

    def numbers(inside: bool) -> list[float]:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if inside:
            Scorer(SUITE, model, tokenizer).measure(model)
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]

    assert numbers(True) == numbers(False)


def test_training_after_a_session_still_has_gradients() -> None:
    model, tokenizer = lora().train(), tiny_tokenizer()
    Scorer(SUITE, model, tokenizer).measure(model, adapters=False)
    batch = torch.arange(10, 20)[None]
    model(input_ids=batch, labels=batch).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_" in name)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """One of mixed precision; accelerate keeps the first one's precision for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("by_exception", [False, True])
def test_a_forward_under_mixed_precision_is_taken_off_and_put_back(
    by_exception: bool, accelerator: Accelerator
) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    plain = Scorer(SUITE, model, tokenizer).measure(model)
    wrapped = accelerator.prepare_model(model)
    assert wrapped is model and "_original_forward" in model.__dict__
    before = state(model, tokenizer)
    tokens = torch.arange(10, 30)[None]
    with torch.no_grad():
        rounded = model(input_ids=tokens).logits
    with left(by_exception), session(model, tokenizer):
        assert not torch.equal(model(input_ids=tokens).logits, rounded), "in bf16 the numbers are others"
        if by_exception:
            raise Left
    assert state(model, tokenizer) == before
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, rounded)
    again = Scorer(SUITE, model, tokenizer).measure(model)
    assert again.outcomes == plain.outcomes
    assert again.header.conditions == plain.header.conditions


def test_a_forward_of_the_users_own_stays() -> None:
    """Only accelerate's wrapper is taken off: a patched forward is part of the model."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    inner, calls = model.forward, []

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    model.forward = patched
    with session(model, tokenizer):
        model(input_ids=torch.tensor([[5]]))
    assert calls and model.forward is patched
