"""Replies drawn at random: from the model's own probabilities, the same for a prompt in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from backslide.errors import ConfigError
from backslide.scoring.draw import Draws, Sampling
from backslide.scoring.generate import generate
from backslide.scoring.requests import Prompt
from backslide.testing import tiny_model, tiny_tokenizer
from backslide_models import other_model

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_a_drawn_reply_depends_on_its_prompt_and_the_seed_alone(kind: str, tokenizer: Any) -> None:
    model = tiny_model() if kind == "llama" else other_model(kind)
    prompts = [Prompt(str(n), tuple(range(7, 10 + n))) for n in range(5)]

    def said(some: list[Prompt], **more: Any) -> list[Any]:
        options = {"plain": kind == "llama", "sampling": Sampling(1.5, 3), **more}
        return generate(model, tokenizer, some, max_new_tokens=12, **options)

    before = torch.get_rng_state()
    together = said(prompts)
    assert [said([prompt])[0] for prompt in prompts] == together
    assert said(prompts[::-1], batch=2)[::-1] == together
    assert said(prompts, sampling=Sampling(1.5, 4)) != together
    # Nearly without heat it is the likeliest token.
    assert said(prompts, sampling=Sampling(1e-4)) == said(prompts, sampling=None)
    assert torch.equal(torch.get_rng_state(), before)


def test_both_ways_draw_the_same(tokenizer: Any) -> None:
    model = tiny_model()
    prompts = [Prompt(str(n), tuple(range(7, 10 + n))) for n in range(5)]
    ways = [
        generate(model, tokenizer, prompts, max_new_tokens=12, plain=plain, sampling=Sampling(1.0, 1))
        for plain in (True, False)
    ]
    assert ways[0] == ways[1]


def test_drawn_tokens_have_the_probabilities_of_the_model() -> None:
    count = 20_000
    logits = torch.tensor([1.0, -0.5, 0.3, -float("inf"), 2.0])
    draws = Draws(Sampling(0.7), [Prompt("p", (1, 2))], count)
    chosen = torch.cat([draws.choose(logits[None], [0], step) for step in range(count)])
    expected = torch.softmax(logits.double() / 0.7, -1).numpy() * count
    found = torch.bincount(chosen, minlength=5).numpy()
    assert found[3] == 0
    some = expected > 0
    # Fixed random numbers: chisquare is below its 99.9% point, or it is wrong for good.
    assert chisquare(found[some], expected[some]).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_is_above_zero(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature is .*, a number above 0 is needed"):
        Sampling(temperature)
