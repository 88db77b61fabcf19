"""What the engine says a model scores, against a plain forward of one sequence at a time."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from backslide.errors import ModelError, SuiteError
from backslide.judge import judge
from backslide.record import Outcome, Record
from backslide.scoring.engine import Scorer, Settings
from backslide.scoring.execute import execute
from backslide.scoring.plan import plan
from backslide.scoring.requests import Request, ask, encode_pairs
from backslide.suite.item import AnswerItem, ChoiceItem, Item, OpenItem, TextItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.verdict import Zone
from backslide_models import other_model

CLOSE = 1e-4


def choice(id: str, prompt: str, *choices: str, gold: int = 0) -> ChoiceItem:
    return ChoiceItem(id=id, capability="choice", prompt=prompt, choices=choices, gold=gold)


ITEMS: tuple[Item, ...] = (
    choice("shared", "Which way?", "north by west", "north by east", "northern", "south"),
    choice("prefix", "How many?", "twenty", "twenty-one", "twenty-one and a half"),
    choice("letters", "Pick one.", "A", "B", "C", "D"),
    choice("letter-and-word", "Pick one.", "A", "Apple", "apples"),
    choice("accents", "Où est l’œuf ?", "là-bas", "ici — 我不知道", "nulle part 🥚"),
    choice("spaces", "Ends in a space ", " starts with one", "does not"),
    choice("lines", "Two\n\nlines\n", "one\ntwo", "one\n\ntwo"),
    choice("other/1", "Which way?", "left", "right"),
    choice("other/2", "Which way now?", "left", "right"),
    choice("other/3", "Which", "way", "way now"),
    TextItem(id="text/short", capability="text", text="x"),
    TextItem(id="text/line", capability="text", text="It was a bright cold day in April, and the clocks struck."),
    TextItem(id="text/spaces", capability="text", text="  indented\n\n  twice "),
)
LONG: tuple[Item, ...] = (
    choice("long/choice", "Far back. " * 30, "yes", "no, never"),
    choice("long/middle", "Just over. " * 5, "yes", "no, not at all, never and nowhere"),
    *(TextItem(id=f"long/text-{n}", capability="text", text=("abcdefghij" * 30)[:n]) for n in (63, 64, 65, 128, 200)),
)
SUITE = Suite("scoring", ITEMS)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


# The oracle: written from the definition, it shares no code with the engine.


@torch.no_grad()
def plain(model: Any, context: Sequence[int], continuation: Sequence[int], limit: int) -> tuple[float, bool]:
    """Log-likelihood of a continuation and whether it is greedy, from one unpadded sequence of its own."""
    sequence = [*context, *continuation][-(limit + 1) :]
    logits = model(input_ids=torch.tensor([sequence[:-1]])).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=-1)[-len(continuation) :]
    total = sum(float(row[token]) for row, token in zip(logprobs, continuation, strict=True))
    return total, logprobs.argmax(dim=-1).tolist() == list(continuation)


def split(tokenizer: Any, item: ChoiceItem, chat: bool) -> list[tuple[list[int], list[int]]]:
    """Context and continuation of each choice; byte tokens, so that no token spans the boundary."""
    if chat:
        context, delimiter = f"<|user|>{item.prompt}<|end|><|assistant|>", ""
    else:
        context, delimiter = f"Question: {item.prompt}\nAnswer:", " "
    return [(tokenizer(context)["input_ids"], tokenizer(delimiter + c)["input_ids"]) for c in item.choices]


def expected(model: Any, tokenizer: Any, item: Item, chat: bool, limit: int) -> tuple[list[float], list[bool]]:
    if isinstance(item, ChoiceItem):
        scores = [plain(model, a, b, limit) for a, b in split(tokenizer, item, chat)]
        return [value for value, _ in scores], [greedy for _, greedy in scores]
    assert isinstance(item, TextItem)
    # Each token once; windows of `limit`, the last one filled up with context on the left.
    tokens = [tokenizer.eos_token_id, *tokenizer(item.text)["input_ids"]]
    total, done = 0.0, 1
    while done < len(tokens):
        end = min(done + limit, len(tokens))
        begin = max(0, end - 1 - limit)
        total += plain(model, tokens[begin:done], tokens[done:end], limit)[0]
        done = end
    return [total], []


def agree(record: Record, items: Sequence[Item], model: Any, tokenizer: Any, chat: bool, limit: int) -> None:
    for item in items:
        scores, greedy = expected(model, tokenizer, item, chat, limit)
        found = record.by_id[item.id]
        assert found.scores == pytest.approx(scores, abs=CLOSE, rel=0), item.id
        if isinstance(item, ChoiceItem):
            assert list(found.greedy) == greedy, item.id
            assert found.correct == (scores.index(max(scores)) == item.gold), item.id
            share = math.exp(scores[item.gold]) / sum(map(math.exp, scores))
            assert found.p == pytest.approx(share, abs=1e-4), item.id
        else:
            bits = -scores[0] / math.log(2) / len(item.text.encode())
            assert found.bits_per_byte == pytest.approx(bits, abs=1e-4), item.id


@pytest.mark.parametrize("chat", [True, False])
def test_scores_are_those_of_a_plain_forward(model: Any, tokenizer: Any, chat: bool) -> None:
    record = Scorer(SUITE, model, tokenizer, Settings(chat=chat)).measure(model)
    assert not record.header.notes, "the tree layout is taken, and nothing falls back"
    agree(record, ITEMS, model, tokenizer, chat, 512)


def test_a_greedy_choice_is_seen(model: Any, tokenizer: Any) -> None:
    """Random choices are hardly ever greedy: here the model's own first tokens are among the choices."""
    context = tokenizer("<|user|>Say it.<|end|><|assistant|>")["input_ids"]
    said: list[int] = []
    while len(said) < 3:
        with torch.no_grad():
            said.append(int(model(input_ids=torch.tensor([context + said])).logits[0, -1].argmax()))
    # Bytes that are no text by themselves cannot be a choice; look for a request by its tokens instead.
    requests = [
        Request("i", 0, (*context, *said[:-1]), tuple(said)),
        Request("i", 1, (*context, said[0]), (said[0], 9)),
    ]
    for tree in (True, False):
        packed = plan(requests, row_tokens=256, batch_tokens=2048, tree=tree)
        with torch.no_grad():
            scores = execute(model, packed, requests, pad=1)
        assert [score.greedy for score in scores] == [True, said[1] == 9]


def test_long_items_lose_tokens_on_the_left(model: Any, tokenizer: Any) -> None:
    items = (*ITEMS, *LONG)
    record = Scorer(Suite("long", items), model, tokenizer, Settings(max_length=64)).measure(model)
    assert record.header.conditions["max_length"] == 64
    agree(record, items, model, tokenizer, True, 64)


def test_a_choice_longer_than_the_model_is_refused_by_name(model: Any, tokenizer: Any) -> None:
    suite = Suite("wide", (choice("wide", "Q", "no", "y" * 70),))
    with pytest.raises(SuiteError, match=r"item wide: choice 1 is longer than the model's 64 tokens"):
        Scorer(suite, model, tokenizer, Settings(max_length=64)).measure(model)


def test_the_models_own_length_bounds_the_settings(model: Any, tokenizer: Any) -> None:
    assert Scorer(SUITE, model, tokenizer, Settings(max_length=9999)).settings.max_length == 512


def scores(record: Record) -> dict[str, tuple[float | None, ...]]:
    return {outcome.id: outcome.scores for outcome in record.outcomes}


def same(one: Record, other: Record) -> None:
    assert list(scores(one)) == list(scores(other))
    for id, values in scores(one).items():
        assert values == pytest.approx(scores(other)[id], abs=CLOSE, rel=0), id
        assert one.by_id[id].greedy == other.by_id[id].greedy, id


@pytest.mark.parametrize(
    ("row_tokens", "batch_tokens"), [(1, 1), (1, 2048), (40, 100), (64, 4096), (4096, 1), (4096, 65536)]
)
def test_splitting_batches_never_changes_a_score(
    model: Any, tokenizer: Any, row_tokens: int, batch_tokens: int
) -> None:
    usual = Scorer(SUITE, model, tokenizer).measure(model)
    sizes = Settings(row_tokens=row_tokens, batch_tokens=batch_tokens)
    same(usual, Scorer(SUITE, model, tokenizer, sizes).measure(model))


@torch.no_grad()
@pytest.mark.parametrize(("row_tokens", "batch_tokens"), [(1, 1), (64, 300), (4096, 65536)])
def test_tree_and_flat_plans_give_the_same(model: Any, tokenizer: Any, row_tokens: int, batch_tokens: int) -> None:
    asked = ask(ITEMS, tokenizer, chat=True, max_length=512)
    sizes = {"row_tokens": row_tokens, "batch_tokens": batch_tokens}
    tree = execute(model, plan(asked.requests, **sizes, tree=True), asked.requests, pad=1)
    flat = execute(model, plan(asked.requests, **sizes, tree=False), asked.requests, pad=1)
    assert [s.logprob for s in tree] == pytest.approx([s.logprob for s in flat], abs=CLOSE, rel=0)
    assert [s.greedy for s in tree] == [s.greedy for s in flat]


def test_the_order_of_items_changes_no_score(model: Any, tokenizer: Any) -> None:
    backwards = Suite("scoring", ITEMS[::-1])
    one, other = (Scorer(suite, model, tokenizer).measure(model) for suite in (SUITE, backwards))
    assert {o.id: o for o in one.outcomes} == {o.id: o for o in other.outcomes}


def test_a_half_is_scored_as_it_is_within_all(model: Any, tokenizer: Any) -> None:
    """Bit for bit: a baseline of all items is compared with looks at a half."""
    scorer = Scorer(SUITE, model, tokenizer)
    whole = scorer.measure(model, part="all").by_id
    halves = [scorer.measure(model, part=part) for part in ("monitor", "gate")]
    assert sorted(whole) == sorted(id for half in halves for id in half.by_id)
    assert all(half.by_id and all(whole[id] == o for id, o in half.by_id.items()) for half in halves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_is_looked_at_in_whole_packs(tokenizer: Any, dtype: torch.dtype) -> None:
    """Bit for bit, in half precision too: an item is always scored in the same company."""
    model = tiny_model().to(dtype)
    asked = tuple(choice(f"i{i}", "Which way? " * (1 + i % 5), "north by west", "south", "up") for i in range(40))
    replied = tuple(
        AnswerItem(id=f"a{i}", capability="a", prompt="Why? " * (1 + i % 4), answers=("x",)) for i in range(9)
    )
    suite = Suite("parts", (*asked, *replied, OpenItem(id="o", capability="open", prompt="Hi")))
    scorer = Scorer(suite, model, tokenizer, Settings(row_tokens=128, batch_tokens=256, max_new_tokens=6))
    scorer.runner.prompts = 2
    whole = scorer.measure(model, part="monitor").by_id
    packs = [pack.items for pack in scorer.packs(model, "monitor")]
    assert len(packs) > 4 and sorted(id for pack in packs for id in pack) == sorted(whole.keys() - {"o"})
    for pack in packs:
        part = scorer.measure(model, part="monitor", only=[min(pack)], replies=False)
        assert {outcome.id for outcome in part.outcomes} == pack
        assert all(whole[outcome.id] == outcome for outcome in part.outcomes)
        assert part.header.cost["tokens"] < sum(len(r.fed) for r in scorer._ask("monitor half", ()).requests)
    two = scorer.measure(model, part="monitor", only=[min(packs[0]), min(packs[-1])], replies=False)
    assert {outcome.id for outcome in two.outcomes} == packs[0] | packs[-1]
    assert judge(scorer.measure(model), two).zone is Zone.UNDECIDED


def test_packing_shares_the_prompt(model: Any, tokenizer: Any) -> None:
    asked = ask(ITEMS, tokenizer, chat=True, max_length=512)
    packed = plan(asked.requests, row_tokens=4096, batch_tokens=4096)
    assert packed.tokens == len({r.fed[:n] for r in asked.requests for n in range(1, len(r.fed) + 1)})
    assert packed.tokens < 0.5 * sum(len(request.fed) for request in asked.requests)


# Other architectures, wrappers and tokenizers.


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("qwen2", None),
        ("gpt2", None),
        ("mistral", "sliding window"),
        ("gemma3", "sliding_attention"),
        ("mamba", "linear_attention"),
    ],
)
def test_other_architectures(kind: str, why: str | None, tokenizer: Any) -> None:
    other = other_model(kind)
    record = Scorer(SUITE, other, tokenizer).measure(other)
    agree(record, ITEMS, other, tokenizer, True, 256)
    said = [note for note in record.header.notes if "plain rows" in note]
    assert (why in said[0]) if why else not said


def test_eager_attention_scores_the_same(model: Any, tokenizer: Any) -> None:
    eager = tiny_model()
    eager.set_attn_implementation("eager")
    same(Scorer(SUITE, model, tokenizer).measure(model), Scorer(SUITE, eager, tokenizer).measure(eager))


def test_a_model_that_reads_no_mask_falls_back_to_plain_rows(tokenizer: Any) -> None:
    """It claims to take a mask of our own and takes none: seen on its numbers, not on its word."""

    class Deaf(type(tiny_model())):  # type: ignore[misc]
        def forward(
            self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **more: Any
        ) -> Any:
            return super().forward(input_ids=input_ids, **more)

    deaf = tiny_model()
    deaf.__class__ = Deaf
    record = Scorer(SUITE, deaf, tokenizer).measure(deaf)
    assert any("differs by" in note for note in record.header.notes)
    agree(record, ITEMS, deaf, tokenizer, True, 512)


def lora_model(seed: int = 0, **more: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, task_type="CAUSAL_LM", **more)
        model = get_peft_model(tiny_model(), config)
        # An adapter starts as no change; give it one.
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_an_adapter_is_scored_on_and_its_base_off(model: Any, tokenizer: Any) -> None:
    adapted = lora_model()
    scorer = Scorer(SUITE, adapted, tokenizer)
    on, off = scorer.measure(adapted), scorer.measure(adapted, adapters=False)
    agree(on, ITEMS, adapted.eval(), tokenizer, True, 512)
    bare = Scorer(SUITE, model, tokenizer).measure(model)
    assert off.outcomes == bare.outcomes
    assert off.header.model_fingerprint == bare.header.model_fingerprint
    assert on.header.model_fingerprint != bare.header.model_fingerprint


def test_the_base_under_trained_copies_of_whole_modules(model: Any, tokenizer: Any) -> None:
    """`modules_to_save` keeps a second copy of a module, the vocabulary projection among them."""
    adapted = lora_model(modules_to_save=["lm_head", "embed_tokens"])
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    scorer = Scorer(SUITE, adapted, tokenizer)
    agree(scorer.measure(adapted), ITEMS, adapted.eval(), tokenizer, True, 512)
    bare, off = Scorer(SUITE, model, tokenizer).measure(model), scorer.measure(adapted, adapters=False)
    assert off.outcomes == bare.outcomes
    assert off.header.model_fingerprint == bare.header.model_fingerprint


def test_learnt_prompts_are_refused(tokenizer: Any) -> None:
    """Virtual tokens in front of every row shift all places: better no number than a wrong one."""
    from peft import PromptTuningConfig, get_peft_model

    tuned = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        Scorer(SUITE, tuned, tokenizer).measure(tuned)


def test_without_a_chat_template(model: Any) -> None:
    bare = tiny_tokenizer(chat=False)
    record = Scorer(SUITE, model, bare).measure(model)
    assert record.header.conditions["chat"] is False
    assert [note for note in record.header.notes if "no chat template" in note]
    agree(record, ITEMS, model, bare, False, 512)
    with pytest.raises(ModelError, match="no chat template"):
        Scorer(SUITE, model, bare, Settings(chat=True))


def test_without_a_padding_token(model: Any, tokenizer: Any) -> None:
    unpadded = tiny_tokenizer(pad=False)
    assert unpadded.pad_token is None
    items = (*ITEMS, *(OpenItem(id=f"o/{i}", capability="open", prompt="Say " * i) for i in (1, 5)))
    suite = Suite("scoring", items)
    with_pad, without = (Scorer(suite, model, t).measure(model) for t in (tokenizer, unpadded))
    assert with_pad.outcomes == without.outcomes
    assert unpadded.pad_token is None


def test_tokens_that_span_the_boundary_are_split_as_lm_eval_splits_them(model: Any) -> None:
    """Context and continuation are encoded together; trailing white space of the context goes over."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<e>"],
        show_progress=False,
    )
    raw.train_from_iterator(["Answer: the answer is north. Question: where is the answer? north south"] * 4, trainer)
    merging = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<e>")
    pairs = [("Answer:", " north"), ("Answer: ", "north"), ("is nor", "th"), ("", "north")]
    got = encode_pairs(merging, pairs)
    assert got[0] == got[1]
    whole = tuple(merging("is north")["input_ids"])
    before = tuple(merging("is nor")["input_ids"])
    assert whole[: len(before)] != before, "the boundary must fall inside a token for this test to say anything"
    assert got[2] == (before, whole[len(before) :])
    assert got[3] == ((0,), tuple(merging("north")["input_ids"]))
    big = tiny_model()
    big.resize_token_embeddings(len(merging), mean_resizing=False)
    items = (choice("a", "where is the answer?", "north", "the south"), TextItem(id="t", capability="t", text="north"))
    record = Scorer(Suite("m", items), big, merging).measure(big)
    for k, text in enumerate(("north", "the south")):
        context = merging("Question: where is the answer?\nAnswer:")["input_ids"]
        value, _ = plain(big, context, merging(f" {text}")["input_ids"], 512)
        assert record.by_id["a"].scores[k] == pytest.approx(value, abs=CLOSE)


# Replies.


@torch.no_grad()
def reply(model: Any, tokenizer: Any, prompt: Sequence[int], count: int) -> str:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True)).strip()


def test_replies_are_greedy_and_matched(model: Any, tokenizer: Any) -> None:
    prompts = ["Hi", "How do you make tea?", "Count to ten, slowly.", "Why?"]
    said = [reply(model, tokenizer, tokenizer(f"<|user|>{p}<|end|><|assistant|>")["input_ids"], 12) for p in prompts]
    assert len(set(said)) > 1 and all(said)
    items: list[Item] = [OpenItem(id=f"o/{i}", capability="open", prompt=p) for i, p in enumerate(prompts)]
    items += [
        AnswerItem(id="right", capability="a", prompt=prompts[1], answers=(said[1],)),
        AnswerItem(id="wrong", capability="a", prompt=prompts[1], answers=("certainly not this",)),
    ]
    record = Scorer(Suite("replies", tuple(items)), model, tokenizer, Settings(max_new_tokens=12)).measure(model)
    assert [record.by_id[f"o/{i}"].reply for i in range(4)] == said
    assert record.by_id["right"].correct is True and record.by_id["right"].reply == said[1]
    assert record.by_id["wrong"].correct is False


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_long_prompt_of_a_reply_is_cut_on_the_left_and_leaves_room(kind: str, tokenizer: Any) -> None:
    """GPT-2 has no position beyond its last: an uncut prompt ends the run."""
    model = tiny_model() if kind == "llama" else other_model("gpt2")
    item = AnswerItem(id="long", capability="a", prompt="Far back. " * 60, answers=("x",))
    settings = Settings(max_length=200, max_new_tokens=10)
    record = Scorer(Suite("long", (item,)), model, tokenizer, settings).measure(model)
    kept = tokenizer(f"<|user|>{item.prompt}<|end|><|assistant|>")["input_ids"][-190:]
    assert record.by_id["long"].reply == reply(model, tokenizer, kept, 10)


# Broken weights.


def test_weights_that_are_not_numbers_are_regressed(tokenizer: Any) -> None:
    healthy, sick = tiny_model(), tiny_model()
    with torch.no_grad():
        sick.model.norm.weight[3] = math.nan
    scorer = Scorer(SUITE, healthy, tokenizer)
    before, after = scorer.measure(healthy), scorer.measure(sick)
    assert not before.not_finite
    assert set(after.not_finite) == {item.id for item in ITEMS}
    assert all(value is None for outcome in after.outcomes for value in outcome.scores)
    assert not any(outcome.correct for outcome in after.outcomes)
    verdict = judge(before, after)
    assert verdict.zone is Zone.REGRESSED
    assert {row.zone for row in verdict.capabilities} == {Zone.REGRESSED}
    assert "not finite" in verdict.reasons[0]
    fresh = Scorer(SUITE, sick, tokenizer).measure(sick)
    assert judge(before, fresh).zone is Zone.REGRESSED


def test_one_item_that_is_not_finite_is_enough(tokenizer: Any) -> None:
    healthy, sick = tiny_model(), tiny_model()
    rare = tokenizer("🥚")["input_ids"][-1]
    with torch.no_grad():
        sick.lm_head.weight[rare] = math.inf
    before, after = (Scorer(SUITE, healthy, tokenizer, Settings(row_tokens=1)).measure(m) for m in (healthy, sick))
    assert after.not_finite
    assert judge(before, after).zone is Zone.REGRESSED


# Memory.


@torch.no_grad()
def test_only_the_needed_rows_go_through_the_vocabulary(model: Any, tokenizer: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    widest: list[tuple[int, ...]] = []

    def fed(module: Any, args: Any, output: Any) -> None:
        shapes.append(tuple(args[0].shape))

    def out(module: Any, args: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (getattr(output, "logits", output),)
        widest.extend(tuple(t.shape) for t in tensors if torch.is_tensor(t) and t.shape[-1] == 261)

    asked = ask(ITEMS, tokenizer, chat=True, max_length=512)
    handles = [model.lm_head.register_forward_hook(fed)]
    handles += [module.register_forward_hook(out) for module in model.modules()]
    try:
        for tree in (True, False):
            shapes.clear()
            packed = plan(asked.requests, row_tokens=4096, batch_tokens=65536, tree=tree)
            execute(model, packed, asked.requests, pad=1)
            read = {(n, r.fed[: len(r.fed) - j]) for n, r in enumerate(asked.requests) for j in range(len(r.targets))}
            distinct = {prefix for _, prefix in read}
            assert all(len(shape) == 2 for shape in shapes)
            rows = sum(shape[0] for shape in shapes)
            if tree:
                assert rows == len(distinct), "each place once, however many choices share it"
            assert len(distinct) <= rows <= len(read)
            assert rows < packed.tokens
    finally:
        for handle in handles:
            handle.remove()
    assert widest and all(len(shape) == 2 for shape in widest)


def test_the_hook_is_gone_afterwards(model: Any, tokenizer: Any) -> None:
    Scorer(SUITE, model, tokenizer).measure(model)
    assert not model.lm_head._forward_pre_hooks
    assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 261)


# Records.


def test_what_is_measured_can_be_measured_again(model: Any, tokenizer: Any) -> None:
    scorer = Scorer(SUITE, model, tokenizer)
    one, two = scorer.measure(model), scorer.measure(model)
    assert one.outcomes == two.outcomes
    assert judge(one, two).pooled is None and all(row.drop == 0 for row in judge(one, two).capabilities)
    fields = dataclasses.asdict(one.header), dataclasses.asdict(two.header)
    assert {k for k in fields[0] if fields[0][k] != fields[1][k]} <= {"cost"}


def test_what_would_be_asked_is_what_is_asked(model: Any, tokenizer: Any) -> None:
    scorer = Scorer(SUITE, model, tokenizer)
    blank, full = scorer.unanswered(model), scorer.measure(model)
    assert {o.id: o.request for o in blank.outcomes} == {o.id: o.request for o in full.outcomes}
    assert dataclasses.replace(blank.header, cost={}) == dataclasses.replace(full.header, cost={})


def test_progress_counts_every_request_once(model: Any, tokenizer: Any) -> None:
    calls: list[tuple[str, int, int]] = []
    suite = Suite("scoring", (*ITEMS, OpenItem(id="o", capability="open", prompt="Hi")))
    Scorer(suite, model, tokenizer).measure(model, progress=lambda *call: calls.append(call))
    for name, group in itertools.groupby(calls, key=lambda call: call[0]):
        done = [(d, t) for _, d, t in group]
        assert done == sorted(done) and done[-1][0] == done[-1][1], name
    assert {name for name, _, _ in calls} == {"monitor half", "gate half", "open questions"}


def test_ties_go_to_the_first(tokenizer: Any) -> None:
    """All logits equal, so that the two one-token choices tie exactly."""
    level = tiny_model()
    with torch.no_grad():
        level.lm_head.weight.zero_()
    items = tuple(choice(f"tie/{gold}", "Pick one.", "A", "B", gold=gold) for gold in (0, 1))
    found: dict[str, Outcome] = Scorer(Suite("ties", items), level, tokenizer).measure(level).by_id
    assert (found["tie/0"].correct, found["tie/1"].correct) == (True, False)
    assert found["tie/1"].p == 0.5
