"""The engine against the installed lm-eval: the same requests, item by item, and the same results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from backslide.errors import ModelError
from backslide.testing import tiny_model, tiny_tokenizer
from backslide_models import other_model
from local_tasks import TASKS, WORDS, local_task

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

CLOSE = 1e-4


def harness(model: Any, tokenizer: Any, **more: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, **{"batch_size": 4, **more})


def engine(model: Any, tokenizer: Any, **more: Any) -> Any:
    from backslide.scoring.harness import EngineLM

    return EngineLM(model, tokenizer, **more)


def instances(kind: str, arguments: Sequence[tuple[Any, ...]], docs: Sequence[int] | None = None) -> list[Any]:
    from lm_eval.api.instance import Instance

    where = docs or range(len(arguments))
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=i, metadata=("task", doc, 1))
        for i, (doc, a) in enumerate(zip(where, arguments, strict=True))
    ]


def agree(theirs: list[tuple[float, bool]], ours: list[tuple[float, bool]]) -> None:
    assert [a for a, _ in ours] == pytest.approx([a for a, _ in theirs], abs=CLOSE, rel=0)
    assert [b for _, b in ours] == [b for _, b in theirs]


def merging_tokenizer() -> Any:
    """Byte-level BPE whose merges cross from the context into the continuation."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=261, initial_alphabet=alphabet, special_tokens=["<e>"], show_progress=False
    )
    raw.train_from_iterator(["is north"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<e>", pad_token="<e>")


def bos_tokenizer() -> Any:
    """Puts a beginning-of-sequence token in front of every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|system|>"
    place = tokenizer.convert_tokens_to_ids("<|system|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", place)]
    )
    assert tokenizer("a")["input_ids"] == [place, *tokenizer("a", add_special_tokens=False)["input_ids"]]
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": tiny_tokenizer,
    "merging": merging_tokenizer,
    "BOS-adding": bos_tokenizer,
    "without padding": lambda: tiny_tokenizer(pad=False),
}

PAIRS = {
    "plain": ("Question: which way?\nAnswer:", " north by west"),
    "sibling": ("Question: which way?\nAnswer:", " north by east"),
    "prefix of the sibling": ("Question: which way?\nAnswer:", " north"),
    "trailing space": ("Which way? ", "north"),
    "trailing lines": ("Which way?\n\n", " north"),
    "empty context": ("", "north by west"),
    "empty context, one token": ("", "n"),
    "white space in front": ("  Which", " way"),
    "merge over the edge": ("It is nor", "th by west"),
    "other scripts": ("Où est l’œuf ?", " là-bas 🥚"),
    "one token": ("Pick one:", "A"),
    "other context": ("Pick two:", "A"),
    "same again": ("Question: which way?\nAnswer:", " north by west"),
    "starts with the prefix token": ("<|system|>Which way?", " north"),
    "ends with it": ("Which way?<|end|>", " north"),
    "continuation is the prefix token": ("", "<|end|>x"),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pairs_of_every_sort(kind: str, model: Any) -> None:
    tokenizer = TOKENIZERS[kind]()
    asked = instances("loglikelihood", list(PAIRS.values()))
    agree(
        harness(model, tokenizer).loglikelihood(asked, disable_tqdm=True), engine(model, tokenizer).loglikelihood(asked)
    )


def test_a_context_of_white_space_alone(model: Any) -> None:
    """lm-eval stops at an empty context here; ours is conditioned on the prefix token, as an empty one is."""
    tokenizer = tiny_tokenizer()
    blank, empty = engine(model, tokenizer).loglikelihood(instances("loglikelihood", [("  ", "a"), ("", "  a")]))
    assert blank == pytest.approx(empty)


@pytest.mark.parametrize("limit", [24, 25, 40, 512])
@pytest.mark.parametrize("kind", ["bytes", "BOS-adding"])
def test_long_contexts_are_cut_on_the_left(kind: str, limit: int, model: Any) -> None:
    tokenizer = TOKENIZERS[kind]()
    pairs = [(" ".join(WORDS * n) + ":", f" {word}") for n in (1, 2, 3) for word in ("north", "nor", "the traveller")]
    asked = instances("loglikelihood", pairs, [n // 3 for n in range(9)])
    theirs = harness(model, tokenizer, max_length=limit).loglikelihood(asked, disable_tqdm=True)
    agree(theirs, engine(model, tokenizer, max_length=limit).loglikelihood(asked))


@pytest.mark.parametrize("limit", [2, 16, 63, 512])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_rolling_windows(kind: str, limit: int, model: Any) -> None:
    tokenizer = TOKENIZERS[kind]()
    texts = ["x", " ".join(WORDS), " ".join(WORDS) * 3, "Où est l’œuf ?\n\n  🥚", "<|system|>Which", "ab " * 32]
    asked = instances("loglikelihood_rolling", [(text,) for text in texts])
    theirs = harness(model, tokenizer, max_length=limit).loglikelihood_rolling(asked, disable_tqdm=True)
    ours = engine(model, tokenizer, max_length=limit).loglikelihood_rolling(asked)
    # A sum over up to a hundred windows and some hundred tokens, each rounded by lm-eval.
    assert ours == pytest.approx(theirs, abs=5e-4, rel=0)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma3", "mistral", "mamba"])
def test_other_architectures(architecture: str) -> None:
    tokenizer, other = tiny_tokenizer(), other_model(architecture)
    asked = instances("loglikelihood", [*PAIRS.values(), (" ".join(WORDS), " north"), (" ".join(WORDS), " by")])
    theirs = harness(other, tokenizer, max_length=128).loglikelihood(asked, disable_tqdm=True)
    agree(theirs, engine(other, tokenizer, max_length=128).loglikelihood(asked))


# Replies.


@pytest.mark.parametrize("kind", ["bytes", "BOS-adding", "without padding"])
def test_replies(kind: str, model: Any) -> None:
    tokenizer = TOKENIZERS[kind]()
    prompts = ["Which way?", "Why?", " ".join(WORDS), "Which way now?", " ".join(WORDS[:9]) + " " + "ab" * 9]
    first = engine(model, tokenizer).generate_until(
        instances("generate_until", [(p, {"until": [], "max_gen_toks": 16}) for p in prompts])
    )
    assert len(set(first)) > 2, "replies must differ for this test to say anything"
    # Stop at what is in a reply, in the middle and at its first place.
    stops: list[Any] = [[first[0][3:5]], first[1][1:3], [first[2][:1], first[2][7:9]], ["never in a reply"], []]
    options = [{"until": stop, "max_gen_toks": 8 * (1 + i % 2)} for i, stop in enumerate(stops)]
    asked = instances("generate_until", list(zip(prompts, options, strict=True)))
    again = instances("generate_until", [(p, json.loads(json.dumps(o))) for p, o in zip(prompts, options, strict=True)])
    theirs = harness(model, tokenizer).generate_until(asked, disable_tqdm=True)
    assert engine(model, tokenizer).generate_until(again) == theirs
    assert any(len(reply) < len(whole) for reply, whole in zip(theirs, first, strict=True))


def test_long_prompts_leave_room_for_the_reply(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    options = {"until": [], "max_gen_toks": 12}
    asked = [(" ".join(WORDS) * 3, dict(options)), ("Why?", dict(options))]
    # One at a time: in a batch lm-eval cuts what is left of the padding, too.
    theirs = harness(model, tokenizer, max_length=40, batch_size=1)
    ours = engine(model, tokenizer, max_length=40)
    assert ours.generate_until(instances("generate_until", asked)) == theirs.generate_until(
        instances("generate_until", [(p, dict(o)) for p, o in asked]), disable_tqdm=True
    )


@pytest.mark.parametrize(
    "option",
    [{"do_sample": True}, {"temperature": 0.7, "do_sample": True}, {"num_beams": 4}, {"repetition_penalty": 1.8}],
)
def test_what_is_not_greedy_is_refused(option: dict[str, Any], model: Any) -> None:
    with pytest.raises(ModelError, match="only greedy"):
        engine(model, tiny_tokenizer()).generate_until(instances("generate_until", [("Why?", option)]))


# Whole tasks, through lm-eval's own evaluator.


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_whole_tasks(name: str, chat: bool, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import evaluator, simple_evaluate

    # It asks the machine for its compilers and packages: seconds a call, and no part of the results.
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)

    if chat and name == "perplexity":
        pytest.skip("lm-eval applies no chat template to rolling perplexity")
    found = {}
    for side, make in (("theirs", harness), ("ours", engine)):
        folder = tmp_path / side
        folder.mkdir()
        found[side] = simple_evaluate(
            model=make(model, tiny_tokenizer()),
            tasks=["local"],
            task_manager=local_task(folder, TASKS[name]),
            bootstrap_iters=0,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat and "few-shot" in name,
            log_samples=True,
        )
    one, other = (found[side]["results"]["local"] for side in ("theirs", "ours"))
    assert set(one) == set(other)
    for metric, value in one.items():
        if isinstance(value, float):
            assert other[metric] == pytest.approx(value, rel=1e-5), metric
        else:
            assert other[metric] == value, metric
    for a, b in zip(found["theirs"]["samples"]["local"], found["ours"]["samples"]["local"], strict=True):
        assert (a["doc_hash"], a["prompt_hash"]) == (b["doc_hash"], b["prompt_hash"])
        assert a["arguments"] == b["arguments"]
        for x, y in zip(a["filtered_resps"], b["filtered_resps"], strict=True):
            if isinstance(x, (tuple, list)):
                agree([tuple(x)], [tuple(y)])
            elif isinstance(x, float):
                assert y == pytest.approx(x, abs=CLOSE)
            else:
                assert x == y


def test_the_model_is_left_as_it_was() -> None:
    model, tokenizer = tiny_model().train(), tiny_tokenizer(pad=False)
    state = torch.get_rng_state()
    engine(model, tokenizer).loglikelihood(instances("loglikelihood", list(PAIRS.values())))
    assert model.training and all(module.training for module in model.modules())
    assert tokenizer.pad_token is None
    assert torch.equal(state, torch.get_rng_state())
