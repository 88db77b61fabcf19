"""Models, adapters and settings that were once scored wrong without a word, or broke."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from backslide.errors import ModelError
from backslide.scoring.engine import Scorer, Settings
from backslide.scoring.execute import execute
from backslide.scoring.forward import is_exact
from backslide.scoring.generate import generate
from backslide.scoring.memory import Memory
from backslide.scoring.plan import plan
from backslide.scoring.requests import Prompt, ask
from backslide.scoring.support import layout_for
from backslide.suite.item import AnswerItem, ChoiceItem, TextItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer

LETTERS = Suite(
    "letters",
    tuple(
        ChoiceItem(id=f"c{i}", capability="c", prompt=f"{i}? The letter alone.", choices=("A", "B", "C"), gold=0)
        for i in range(6)
    ),
)


@pytest.fixture
def tokenizer() -> Any:
    return tiny_tokenizer()


def scores(model: Any, tokenizer: Any, suite: Suite = LETTERS, **more: Any) -> list[Any]:
    return [outcome.scores for outcome in Scorer(suite, model, tokenizer).measure(model, **more).outcomes]


def lora(**more: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **more))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_a_pattern_that_no_reply_ends_is_wrong_and_said(tokenizer: Any) -> None:
    def item(id: str, pattern: str) -> AnswerItem:
        return AnswerItem(id=id, capability="c", prompt="Go on.", answers=(pattern,), match="regex")

    model = tiny_model()
    scorer = Scorer(
        Suite("s", (item("a", r"(?s)(.+)+(?!)"), item("b", r"(?s)."))), model, tokenizer, Settings(max_new_tokens=60)
    )
    record = scorer.measure(model)
    reply = record.by_id["b"].reply or ""
    assert len(reply) > 25 and record.by_id["b"].correct
    assert record.by_id["a"].correct is False and record.by_id["a"].reply == reply
    (note,) = (note for note in record.header.notes if "pattern" in note)
    assert "1 item, the first is a with '(?s)(.+)+(?!)'" in note


# Models


def test_local_layers_that_no_usual_field_names(tokenizer: Any) -> None:
    """GPT-Neo's window is longer than what the check tries."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    sizes = {"vocab_size": 261, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 256}
    for kinds, tree in ((["global", "local"], False), (["global", "global"], True)):
        config = GPTNeoConfig(**sizes, attention_types=[[kinds, 1]], bos_token_id=0, eos_token_id=0)
        model = GPTNeoForCausalLM(config).eval()
        asked = ask(LETTERS.items, tokenizer, chat=True, max_length=256).requests
        layout = layout_for(model, asked, pad=1)
        assert layout.tree is tree, kinds
        assert tree or "window" in layout.notes[0]


def test_positions_that_turn_with_the_batch(tokenizer: Any) -> None:
    model = tiny_model()
    model.config.rope_parameters = {"rope_type": "longrope", "rope_theta": 10000.0}
    layout = layout_for(model, ask(LETTERS.items, tokenizer, chat=True, max_length=256).requests, pad=1)
    assert not layout.tree and "longrope" in layout.notes[0]


def test_a_compiled_model_is_scored_as_what_it_was_compiled_from(tokenizer: Any) -> None:
    model = tiny_model()
    expected = scores(model, tokenizer)
    compiled = torch.compile(model, backend="eager", dynamic=True)
    with torch.no_grad():
        for length in (9, 20):
            compiled(input_ids=torch.arange(10, 10 + length)[None], attention_mask=torch.ones(1, length).long())
    assert scores(compiled, tokenizer) == expected


def test_an_output_layer_that_is_not_called_is_an_error(tokenizer: Any) -> None:
    class Other(type(tiny_model())):  # type: ignore[misc]
        def get_output_embeddings(self) -> Any:
            return torch.nn.Linear(1, 1)

    model = tiny_model()
    model.__class__ = Other
    with pytest.raises(ModelError, match="output layer was called 0 times"):
        scores(model, tokenizer)


def test_short_items_that_end_alike_still_try_the_mask(tokenizer: Any) -> None:
    """One letter after one and the same closing: the two shortest items are a single sequence without branches."""

    class Deaf(type(tiny_model())):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **m: Any) -> Any:
            return super().forward(input_ids=input_ids, **m)

    model = tiny_model()
    model.__class__ = Deaf
    asked = ask(LETTERS.items, tokenizer, chat=True, max_length=256).requests
    assert not layout_for(model, asked, pad=1).tree
    assert layout_for(tiny_model(), asked, pad=1).tree


def test_what_counts_as_exact() -> None:
    assert is_exact(tiny_model())
    assert not is_exact(tiny_model().to(torch.bfloat16))
    mixed = tiny_model()
    mixed.model.layers[0].mlp.to(torch.bfloat16)
    assert not is_exact(mixed)
    quantised = tiny_model()
    quantised.config.quantization_config = SimpleNamespace()
    assert not is_exact(quantised)


# Adapters


def test_adapters_of_transformers_own_are_switched_off(tokenizer: Any) -> None:
    bare = scores(tiny_model(), tokenizer)
    model = tiny_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    on = scores(model, tokenizer)
    assert scores(model, tokenizer, adapters=False) == bare != on
    assert scores(model, tokenizer) == on, "and on again"
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_a_merged_adapter_has_no_base_to_measure(tokenizer: Any) -> None:
    model = lora()
    model.merge_adapter()
    merged = scores(model, tokenizer)
    with pytest.raises(ModelError, match="merged into the weights"):
        scores(model, tokenizer, adapters=False)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.merged and scores(model, tokenizer) == merged


@pytest.mark.parametrize("how", ["pissa", "olora"])
def test_an_adapter_that_took_a_part_of_the_base_is_refused(how: str, tokenizer: Any) -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=how))
    with pytest.raises(ModelError, match=f"init_lora_weights='{how}'"):
        scores(model, tokenizer, adapters=False)
    assert scores(model, tokenizer)


def test_an_adapter_under_autocast(tokenizer: Any) -> None:
    model = lora()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        record = Scorer(LETTERS, model, tokenizer).measure(model)
    assert record.header.conditions["autocast"] == "bfloat16" and not record.not_finite


# Replies


def speaking(tokens: list[int]) -> Any:
    """A model whose greedy reply to any prompt runs through `tokens` over and over."""
    model = tiny_model()
    following = dict(zip(tokens, tokens[1:] + tokens[:1], strict=True))

    class Says(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, **more: Any) -> Any:
            out = super().forward(input_ids=input_ids, **more)
            last = input_ids[:, -1].tolist()
            out.logits = torch.nn.functional.one_hot(
                torch.tensor([[following.get(token, tokens[0])] for token in last]), 261
            ).float()
            return out

    model.__class__ = Says
    return model


@pytest.mark.parametrize("plain", [True, False])
def test_a_stop_string_that_is_a_special_token_ends_the_reply(plain: bool, tokenizer: Any) -> None:
    a, b, user = tokenizer("ab")["input_ids"] + [tokenizer.convert_tokens_to_ids("<|user|>")]
    model = speaking([a, b, user])
    prompts = [Prompt("p", (7, 8), ("<|user|>",)), Prompt("q", (7, 8), ("b",)), Prompt("r", (7, 8))]
    said = generate(model, tokenizer, prompts, max_new_tokens=7, plain=plain)
    assert [(reply.text, reply.ended) for reply in said] == [("ab", True), ("a", True), ("ababa", False)]


@pytest.mark.parametrize("plain", [True, False])
def test_the_tokenizers_own_end_ends_a_reply_too(plain: bool, tokenizer: Any) -> None:
    a = tokenizer("a")["input_ids"][0]
    model = speaking([a, tokenizer.eos_token_id])
    model.generation_config.eos_token_id = 3
    assert generate(model, tokenizer, [Prompt("p", (7, 8))], max_new_tokens=5, plain=plain) == [("a", 1, True)]


def test_a_reply_longer_than_the_model_is_refused_and_a_cut_prompt_is_said(tokenizer: Any) -> None:
    item = AnswerItem(id="long", capability="a", prompt="Far back. " * 20, answers=("x",))
    model = tiny_model()
    with pytest.raises(ModelError, match=r"max_new_tokens = 48 tokens, but max_length is 40"):
        Scorer(Suite("s", (item,)), model, tokenizer, Settings(max_length=40)).measure(model)
    settings = Settings(max_length=60, max_new_tokens=8)
    record = Scorer(Suite("s", (item,)), model, tokenizer, settings).measure(model)
    assert any("longer than 52 tokens" in note and "'long'" in note for note in record.header.notes)


# Memory


def test_a_text_needs_no_mask_of_its_length_squared(tokenizer: Any) -> None:
    model = tiny_model()
    asked = ask([TextItem(id="t", capability="t", text="abc " * 90)], tokenizer, chat=True, max_length=512).requests
    shapes: list[Any] = []

    class Seen(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, attention_mask: Any = None, **more: Any) -> Any:
            shapes.append(tuple(attention_mask.shape))
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **more)

    model.__class__ = Seen
    execute(model, plan(asked, row_tokens=256, batch_tokens=1024), asked, pad=1)
    assert shapes == [(1, 360)]


def test_running_out_once_keeps_the_size_that_worked() -> None:
    memory = Memory()
    with memory.watched(400, last=False):
        pass
    with memory.watched(500, last=False) as attempt:
        raise MemoryError
    assert attempt.failed and memory.limit == 400
    with memory.watched(400, last=False):
        raise MemoryError
    assert memory.limit == 399, "and it still comes down"
