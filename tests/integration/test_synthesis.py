"""The base model's own replies as rehearsal data: greedy, made once, found again, and nothing of the suite in them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backslide.cure.synthesis import SCHEMA, Synthesis, synthesise
from backslide.data import TrainingData
from backslide.errors import DataError, ModelError, RunError
from backslide.files import dump, write_lines
from backslide.suite.item import AnswerItem, OpenItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("single_thread")

PROMPTS = [
    f"{word}, what about {number} of {word}?"
    for number, word in enumerate(["tea", "rain", "owls", "moss", "coal", "ink"])
]
PROMPTS += [
    f"Tell me of {word}." for word in ("salt", "the north wind", "glass and of those who blow it", "ice", "wax")
]
TOKENS = 24


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BACKSLIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def talking() -> Any:
    """A tiny model that often comes to an end: its end token weighs more than the others."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[0] *= 2.5
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return talking()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def make(model: Any, tokenizer: Any, out: Path, **more: Any) -> Synthesis:
    return synthesise(
        model, tokenizer, **{"prompts": PROMPTS, "out": out, "max_new_tokens": TOKENS, "batch": 4, **more}
    )


def asked_of(model: Any) -> list[int]:
    """Gets the size of every batch that the model is asked from now on."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda module, args, more: sizes.append(len(more["input_ids"])), with_kwargs=True)
    return sizes


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# What is in the file and in the rows.


def test_replies_are_the_models_own_greedy_ones(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    made = make(model, tokenizer, tmp_path / "r.jsonl")
    header, *rows = lines(made.path)
    assert header["schema"] == SCHEMA
    assert [row["messages"][0]["content"] for row in rows] == PROMPTS
    for prompt, row in zip(PROMPTS, rows, strict=True):
        fed = tokenizer(f"<|user|>{prompt}<|end|><|assistant|>", return_tensors="pt")["input_ids"]
        said = model.generate(
            fed, attention_mask=torch.ones_like(fed), max_new_tokens=TOKENS, do_sample=False, pad_token_id=1
        )[0, fed.shape[1] :].tolist()
        ended = tokenizer.eos_token_id in said
        text = tokenizer.decode(said, skip_special_tokens=True)
        assert row["messages"][1] == {"role": "assistant", "content": text}
        assert (row["ended"], row["tokens"]) == (ended, len(said) - ended)
    assert {row["ended"] for row in rows} == {True, False}


def test_only_what_ended_is_to_be_learnt(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    made = make(model, tokenizer, tmp_path / "r.jsonl")
    rows = lines(made.path)[1:]
    ended = [{"messages": row["messages"]} for row in rows if row["ended"] and row["messages"][1]["content"].strip()]
    assert list(made.rows) == ended and ended
    cut = [{"messages": row["messages"]} for row in rows if not row["ended"]]
    assert made.unended and all(row in cut for row in made.unended)
    assert made.notes[0].startswith(f"{len(ended)} replies of {len(PROMPTS)} can be rehearsed, ")
    assert any(f"did not end within its tokens: {len(made.unended)} prompts" in note for note in made.notes)
    # They are training data as the project reads it.
    write_lines(tmp_path / "train.jsonl", made.rows)
    assert TrainingData.load(tmp_path / "train.jsonl").rows == made.rows


def test_without_a_chat_template_rows_are_prompt_and_completion(model: Any, tmp_path: Path) -> None:
    made = make(model, tiny_tokenizer(chat=False), tmp_path / "r.jsonl")
    assert {tuple(row) for row in made.rows} == {("prompt", "completion")}
    assert all(row["prompt"].startswith("Question: ") and row["prompt"].endswith("?\nAnswer:") for row in made.rows[:3])


def test_where_no_reply_ends_there_is_something_for_the_anchor_alone(tokenizer: Any, tmp_path: Path) -> None:
    made = make(tiny_model(), tokenizer, tmp_path / "r.jsonl", max_new_tokens=3)
    assert made.rows == () and made.unended
    assert made.notes[0].startswith("0 replies of 11 can be rehearsed")


def test_a_prompt_that_leaves_no_room_is_left_out(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    made = make(model, tokenizer, tmp_path / "r.jsonl", prompts=[*PROMPTS, "long " * 120])
    assert len(lines(made.path)) == 1 + len(PROMPTS)
    assert any("longer than the model takes: 1 prompts" in note for note in made.notes)
    with pytest.raises(DataError, match="the model takes 512 tokens, too few for any of the 1 prompts"):
        make(model, tokenizer, tmp_path / "s.jsonl", prompts=["long " * 120])


def test_rows_with_an_item_of_the_suite_are_left_out(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    full = make(model, tokenizer, tmp_path / "r.jsonl")
    first, last = (full.rows[place]["messages"] for place in (0, -1))
    leaking = [
        OpenItem(id="prompt", capability="x", prompt=first[0]["content"]),
        AnswerItem(
            id="other", capability="x", prompt="What is it that nobody has asked of it so far?", answers=("no",)
        ),
    ]
    made = make(model, tokenizer, tmp_path / "r.jsonl", suite=Suite("own", tuple(leaking)))
    assert made.rows == full.rows[1:]
    assert last in [row["messages"] for row in made.rows]
    assert any("left out, with 1 item of the suite: 1 prompts" in note for note in made.notes)
    every = tuple(OpenItem(id=str(n), capability="x", prompt=prompt) for n, prompt in enumerate(PROMPTS))
    with pytest.raises(DataError, match="no reply is left to rehearse"):
        make(model, tokenizer, tmp_path / "r.jsonl", suite=Suite("own", every))


# Made once, and kept.


@pytest.mark.parametrize("torn", [0, 30])
def test_what_was_interrupted_goes_on(tokenizer: Any, tmp_path: Path, torn: int) -> None:
    whole = make(talking(), tokenizer, tmp_path / "whole.jsonl", cache=False)
    out = tmp_path / "r.jsonl"

    def stop(what: str, done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(talking(), tokenizer, out, progress=stop, cache=False)
    kept = out.read_bytes()
    assert len(lines(out)) == 9
    # A process that was killed leaves half a line.
    out.write_bytes(kept[: len(kept) - torn] if torn else kept)
    model = talking()
    sizes = asked_of(model)
    done: list[int] = []
    made = make(model, tokenizer, out, cache=False, progress=lambda what, count, total: done.append(count))
    # The batch of which a line was lost is asked again as a whole; the others are not.
    assert max(sizes) == (4 if torn else 3)
    assert done == [4, 8, 11]
    assert made.path.read_bytes() == whole.path.read_bytes()
    assert (made.rows, made.notes, made.unended) == (whole.rows, whole.notes, whole.unended)


def test_replies_are_found_again(tokenizer: Any, tmp_path: Path, cache: Path) -> None:
    first = make(talking(), tokenizer, tmp_path / "a.jsonl")
    model = talking()
    sizes = asked_of(model)
    for out in ("a.jsonl", "elsewhere/b.jsonl"):
        again = make(model, tokenizer, tmp_path / out)
        assert again.rows == first.rows and again.path.read_bytes() == first.path.read_bytes()
    assert sizes == []
    make(model, tokenizer, tmp_path / "c.jsonl", cache=False)
    assert sizes
    # Another length, prompt, tokenizer or weight is another file.
    assert len(list((cache / "synthesis").iterdir())) == 1
    make(model, tokenizer, tmp_path / "d.jsonl", max_new_tokens=TOKENS + 1)
    make(model, tokenizer, tmp_path / "e.jsonl", prompts=PROMPTS[:-1])
    make(model, tiny_tokenizer(chat=False), tmp_path / "f.jsonl")
    with torch.no_grad():
        model.lm_head.weight[0] *= 1.1
    make(model, tokenizer, tmp_path / "g.jsonl")
    assert len(list((cache / "synthesis").iterdir())) == 5


def test_drawn_replies_are_kept_by_their_seed(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    greedy = make(model, tokenizer, tmp_path / "greedy.jsonl")
    one = make(model, tokenizer, tmp_path / "one.jsonl", temperature=1.0, seed=1)
    two = make(model, tokenizer, tmp_path / "two.jsonl", temperature=1.0, seed=2)
    assert len({dump(lines(made.path)[1:]) for made in (greedy, one, two)}) == 3
    # Whatever the other prompts are, and in what batches.
    some = make(model, tokenizer, tmp_path / "some.jsonl", temperature=1.0, seed=1, prompts=PROMPTS[3:8], batch=2)
    assert lines(some.path)[1:] == lines(one.path)[4:9]
    with pytest.raises(DataError, match="holds replies made with another seed"):
        make(model, tokenizer, one.path, temperature=1.0, seed=2)


def test_a_damaged_file_in_the_cache_is_made_anew(model: Any, tokenizer: Any, tmp_path: Path, cache: Path) -> None:
    first = make(model, tokenizer, tmp_path / "a.jsonl")
    (place,) = (cache / "synthesis").iterdir()
    place.write_text("not a header\n", encoding="utf-8")
    again = make(model, tokenizer, tmp_path / "b.jsonl")
    assert again.rows == first.rows
    assert place.read_bytes() == first.path.read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_new_tokens": TOKENS - 1}, "another max_new_tokens"),
        ({"prompts": PROMPTS[1:]}, "other prompts"),
        ({"tokenizer": tiny_tokenizer(chat=False)}, "another tokenizer or chat template"),
        ({"model": tiny_model(seed=1)}, "other weights"),
    ],
)
def test_the_replies_of_another_model_are_not_overwritten(
    model: Any, tokenizer: Any, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    out = tmp_path / "r.jsonl"
    make(model, tokenizer, out)
    before = out.read_bytes()
    with pytest.raises(DataError, match=f"holds replies made with {said}; delete it"):
        make(**{"model": model, "tokenizer": tokenizer, "out": out, **change})
    assert out.read_bytes() == before


def test_a_users_own_file_is_not_overwritten(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "mine"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"mine\.jsonl: is no file of replies, its first line is .*give another name"):
        make(model, tokenizer, tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text(encoding="utf-8") == '{"text": "mine"}\n'


def test_a_file_that_cannot_be_written_is_said(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read: .*give another file"):
        make(model, tokenizer, tmp_path)
    with pytest.raises((RunError, DataError), match="cannot be"):
        make(model, tokenizer, tmp_path / "file" / "r.jsonl")


def test_wrong_numbers_are_refused(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="max_new_tokens is 0"):
        make(model, tokenizer, tmp_path / "r.jsonl", max_new_tokens=0)
    with pytest.raises(DataError, match="too few for any"):
        make(model, tokenizer, tmp_path / "r.jsonl", max_new_tokens=600)


# The model is left as found.


def test_it_is_the_base_that_replies_and_nothing_is_changed(tokenizer: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    bare = make(talking(), tokenizer, tmp_path / "bare.jsonl", cache=False)
    model = get_peft_model(talking(), LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "v_proj"]))
    model.train()
    model.base_model.model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    fed = torch.tensor([[7, 8, 9]])
    tuned = model(input_ids=fed).logits
    state = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    side = tokenizer.padding_side
    made = make(model, tokenizer, tmp_path / "peft.jsonl", cache=False)
    assert made.path.read_bytes() == bare.path.read_bytes()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[1:]
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert torch.equal(model(input_ids=fed).logits, tuned)
    assert tokenizer.padding_side == side
    with model.disable_adapter():
        assert not torch.equal(model(input_ids=fed).logits, tuned)


def test_an_adapter_does_not_hide_what_the_cache_has(tokenizer: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    first = make(talking(), tokenizer, tmp_path / "a.jsonl")
    model = get_peft_model(talking(), LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"]))
    sizes = asked_of(model)
    assert make(model, tokenizer, tmp_path / "b.jsonl").rows == first.rows
    assert sizes == []
