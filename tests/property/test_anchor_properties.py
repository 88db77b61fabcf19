"""KL in parts, through any projection and on any top, is what autograd finds on whole logits."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from backslide.cure import anchor_kl
from backslide.cure.anchor_kl import BaseTop, Reader, full_kl, mean_kl, top_kl, top_of
from backslide.cure.anchor_rows import tokenised
from backslide.cure.anchor_targets import Targets, batch_of, write_targets
from backslide.data import TrainingData
from backslide.errors import InputError, ModelError
from backslide.testing import tiny_model, tiny_tokenizer
from backslide_models import other_model

MANY = settings(deadline=None, max_examples=60)
ROWS = [{"text": "x" * n + str(n)} for n in (3, 40, 17)]


def rows() -> Any:
    return tokenised(TrainingData.of(ROWS), tiny_tokenizer(), 512)


def read(model: Any) -> Reader:
    return Reader(model, contextlib.nullcontext)


def changed(model: Any, by: float = 0.02) -> Any:
    """The model after a step in a random direction."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter += by * torch.randn_like(parameter)
    return model


@MANY
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 40), st.floats(0.01, 20))
def test_buckets_bound_the_kl_from_below_and_more_of_them_from_nearer(
    seed: int, count: int, vocabulary: int, scale: float
) -> None:
    made = torch.Generator().manual_seed(seed)
    base, logits = (torch.randn(count, vocabulary, generator=made, dtype=torch.float64) * scale for _ in range(2))
    p, q = base.log_softmax(-1), logits.log_softmax(-1)
    whole = float((p.exp() * (p - q)).sum())
    close = 1e-4 * max(1.0, whole)
    assert float(full_kl(base, logits)) == pytest.approx(whole, abs=close)
    found = [float(top_kl(top_of(base, top), logits)) for top in (1, 2, vocabulary // 2 + 1, vocabulary)]
    assert all(low <= high + close for low, high in itertools.pairwise(found)) and found[0] >= -close
    assert found[-1] == pytest.approx(whole, abs=close)
    # By hand for the middle one: the rest is one outcome.
    kept = top_of(base, 2)
    rest = [1 - x.exp().gather(1, kept.ids).sum(-1) for x in (p, q)]
    if vocabulary > 2 and min(float(r.min()) for r in rest) > 1e-3:
        inside = (p.exp() * (p - q)).gather(1, kept.ids).sum()
        assert found[1] == pytest.approx(float(inside + (rest[0] * (rest[0] / rest[1]).log()).sum()), abs=10 * close)


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "mistral", "gpt2", "gemma3", "capped", "mamba", "cohere", "granite"]
)
@pytest.mark.parametrize("at_once", [7, 4096])
def test_every_architecture_is_read_through_its_own_projection(
    kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchor_kl, "ROWS_AT_ONCE", at_once)
    base, model = of(kind), changed(of(kind))
    inputs, where = batch_of(rows(), [1, 0, 2], "cpu")
    reader = read(model)
    assert reader.projects and reader.vocabulary == 261
    sizes: list[int] = []
    handle = reader.head.register_forward_hook(lambda module, args, out: sizes.append(out.shape[:-1].numel()))
    with torch.no_grad():
        target = read(base).states(inputs, where)
        wanted = base(**inputs).logits.reshape(-1, 261)[where]
        assert torch.allclose(read(base).logits(target), wanted, atol=1e-4, rtol=1e-4)
        whole = top_of(wanted, 261)
    kl = mean_kl(reader, reader.states(inputs, where), whole)
    kl.backward()
    # One row while they are caught, and then so many at a time: never all places of a batch.
    handle.remove()
    assert sizes[0] == 1 and max(sizes) <= max(at_once, 1)
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = model(**inputs).logits.reshape(-1, 261)[where]
    plain = functional.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)
    plain.backward()
    assert float(kl.detach()) == pytest.approx(float(plain.detach()), rel=1e-4)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            largest = float(parameter.grad.abs().max())
            assert torch.allclose(ours[name], parameter.grad, atol=1e-4 * max(largest, 1e-3)), name


def of(kind: str) -> Any:
    from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig

    if kind == "llama":
        return tiny_model()
    if kind == "capped":
        model = other_model("gemma3")
        model.config.final_logit_softcapping = 3.0
        return model
    if kind in ("cohere", "granite"):
        sizes = {
            "vocab_size": 261, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "bos_token_id": 0,
            "eos_token_id": 0,
        }  # fmt: skip
        config = (
            CohereConfig(**sizes, logit_scale=0.3) if kind == "cohere" else GraniteConfig(**sizes, logits_scaling=5)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(config).eval()
    return other_model(kind)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_model_that_does_something_else_behind_its_projection_is_read_by_its_own_logits(
    hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    own = type(model).forward

    def forward(self: Any, *args: Any, **more: Any) -> Any:
        found = own(self, *args, **more)
        found.logits = found.logits * 0.5 + 1.0 * torch.arange(261) / 261
        return found

    monkeypatch.setattr(type(model), "forward", forward)
    if hidden:
        monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: None)
    reader = read(model)
    inputs, where = batch_of(rows(), [0, 1], "cpu")
    assert not reader.projects and reader.weights == []
    states = reader.states(inputs, where)
    wanted = model(**inputs).logits.reshape(-1, 261)[where]
    assert states.shape == wanted.shape and torch.allclose(reader.logits(states), wanted, atol=1e-4)
    kl = mean_kl(reader, states, torch.zeros_like(states))
    kl.backward()
    assert model.lm_head.weight.grad.abs().max() > 0


def test_what_is_kept_is_what_is_computed_and_with_the_whole_vocabulary_it_is_the_kl_itself(tmp_path: Path) -> None:
    base, model, given_rows = tiny_model(), changed(tiny_model()), rows()
    write_targets(tmp_path / "all", read(base), given_rows, 1000)
    write_targets(tmp_path / "few", read(base), given_rows, 5)
    every, few = Targets(tmp_path / "all", given_rows), Targets(tmp_path / "few", given_rows)
    assert (every.top, few.top, few.vocabulary) == (261, 5, 261)
    reader = read(model)
    for numbers in ([0], [2, 0], [1, 1, 2]):
        inputs, where = batch_of(given_rows, numbers, "cpu")
        with torch.no_grad():
            wanted = base(**inputs).logits.reshape(-1, 261)[where]
        kept = few.of(numbers, "cpu")
        direct = top_of(wanted, 5)
        assert torch.equal(kept.ids, direct.ids)
        assert torch.allclose(kept.logprobs, direct.logprobs, atol=1e-4) and torch.allclose(
            kept.rest, direct.rest, atol=1e-4
        )
        states = reader.states(inputs, where)
        plain = full_kl(wanted, model(**inputs).logits.reshape(-1, 261)[where]) / where.numel()
        assert float(mean_kl(reader, states, every.of(numbers, "cpu")).detach()) == pytest.approx(
            float(plain.detach()), rel=1e-4
        )
        assert 0 < float(mean_kl(reader, states, kept).detach()) < float(plain.detach())


def test_a_file_of_other_rows_or_a_damaged_one_is_told_in_a_line(tmp_path: Path) -> None:
    write_targets(tmp_path / "f", read(tiny_model()), rows(), 5)
    other = tokenised(TrainingData.of(ROWS[:2]), tiny_tokenizer(), 512)
    with pytest.raises(InputError, match="f: holds log-probabilities of other rows"):
        Targets(tmp_path / "f", other)
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:200])
    with pytest.raises(InputError, match="f: cannot be read: "):
        Targets(tmp_path / "f", rows())
    with pytest.raises(InputError, match="no such file"):
        Targets(tmp_path / "none", rows())


def test_an_output_layer_that_is_called_twice_is_told_with_the_mend() -> None:
    model = tiny_model()
    reader = read(model)

    def again(module: Any, args: Any, output: Any) -> None:
        module.lm_head(torch.zeros(1, 600, 32))

    model.register_forward_hook(again)
    inputs, where = batch_of(rows(), [0], "cpu")
    with pytest.raises(
        ModelError, match="called 2 times in a pass, not once, so .*; leave the anchor out, and use replay"
    ):
        reader.states(inputs, where)


def test_no_mass_outside_of_the_top_is_no_error() -> None:
    base = torch.tensor([[200.0, 0.0, -300.0]], dtype=torch.float32)
    logits = torch.tensor([[0.0, 1.0, 150.0]], requires_grad=True)
    kept = top_of(base, 1)
    assert isinstance(kept, BaseTop) and float(kept.rest.exp()) == 0
    found = top_kl(kept, logits)
    found.backward()
    assert float(found.detach()) == pytest.approx(150.0) and bool(logits.grad.isfinite().all())
