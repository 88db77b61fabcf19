"""The hidden choice behind an answer: its scores against a plain forward, and that nothing else depends on it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from backslide.diagnosis import compare
from backslide.guard.callback import Guard
from backslide.judge import judge
from backslide.record import pair
from backslide.scoring.engine import Scorer, Settings
from backslide.scoring.probe import foils
from backslide.suite.item import AnswerItem, ChoiceItem, Item, OpenItem, TextItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.verdict import Zone

CITIES = ("Rome", "Berlin", "Cairo", "Lima", "Oslo", "Tokyo", "Quito", "Paris", "Bern", "Riga", "Kyiv", "Hanoi")


def answer(id: str, *answers: str, match: str = "contains", capability: str = "short", prompt: str = "") -> AnswerItem:
    return AnswerItem(
        id=id, capability=capability, prompt=prompt or f"{id}?", answers=answers, match=match, stop=("\n",)  # type: ignore[arg-type]
    )  # fmt: skip


ITEMS: tuple[Item, ...] = (
    *(answer(f"capital/{k}", city, prompt=f"What is the capital of country {k}?") for k, city in enumerate(CITIES)),
    *(answer(f"sum/{k}", str(11 * k + 10), match="number", prompt=f"What is {10 * k} + {k} + 10?") for k in range(6)),
    answer("pattern/1", r"\d+", match="regex"),
    answer("pattern/2", r"[a-z]", match="regex"),
    answer("lonely", "yes", match="exact", capability="alone"),
    ChoiceItem(id="choice", capability="choice", prompt="Which?", choices=("a", "b"), gold=0),
    ChoiceItem(id="choice/2", capability="choice", prompt="Which one?", choices=("a", "b"), gold=1),
    TextItem(id="text", capability="text", text="It was a bright cold day."),
    OpenItem(id="open", capability="open", prompt="Why?"),
)
SUITE = Suite("answers", ITEMS)
SETTINGS = Settings(max_new_tokens=6)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@torch.no_grad()
def plain(model: Any, tokenizer: Any, prompt: str, reply: str, chat: bool) -> float:
    """From the definition: one sequence, no batch, no tree."""
    before = f"<|user|>{prompt}<|end|><|assistant|>" if chat else f"Question: {prompt}\nAnswer:"
    context, more = tokenizer(before)["input_ids"], tokenizer(reply if chat else f" {reply}")["input_ids"]
    logits = model(input_ids=torch.tensor([context + more[:-1]])).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=-1)[-len(more) :]
    return sum(float(row[token]) for row, token in zip(logprobs, more, strict=True))


@pytest.mark.parametrize("chat", [True, False])
def test_scores_are_those_of_a_plain_forward(model: Any, tokenizer: Any, chat: bool) -> None:
    record = Scorer(SUITE, model, tokenizer, dataclasses.replace(SETTINGS, chat=chat)).measure(model, probe=True)
    answers = foils(SUITE.items)
    assert set(answers) == {item.id for item in ITEMS if item.id.startswith(("capital", "sum"))}
    for item in ITEMS:
        scores = record.by_id[item.id].scores
        if item.id in answers:
            assert isinstance(item, AnswerItem) and len(scores) == 4
            wanted = [plain(model, tokenizer, item.prompt, reply, chat) for reply in answers[item.id]]
            assert scores == pytest.approx(wanted, abs=1e-4), item.id
        elif item.kind in ("answer", "open"):
            assert scores == (), item.id


def test_nothing_else_depends_on_the_probe(model: Any, tokenizer: Any) -> None:
    scorer = Scorer(SUITE, model, tokenizer, SETTINGS)
    without, with_it, again = (scorer.measure(model, probe=probe) for probe in (False, True, True))
    bare = [dataclasses.replace(o, scores=()) if o.kind == "answer" else o for o in with_it.outcomes]
    assert tuple(bare) == without.outcomes, "right or wrong, reply, digest and the scores of other kinds"
    assert with_it.outcomes == again.outcomes and not with_it.not_finite
    assert all(o.p is None for o in with_it.outcomes if o.kind == "answer")
    assert with_it.header.cost["tokens"] > without.header.cost["tokens"]
    # An earlier record without scores pairs in both directions.
    assert len(pair(without, with_it)) == len(pair(with_it, without)) == len(ITEMS)
    assert judge(without, with_it).zone is judge(with_it, without).zone is Zone.UNDECIDED


def test_a_half_has_the_scores_that_it_has_within_all(model: Any, tokenizer: Any) -> None:
    whole = Scorer(SUITE, model, tokenizer, SETTINGS).measure(model, probe=True).by_id
    for half in ("monitor", "gate"):
        record = Scorer(SUITE, model, tokenizer, SETTINGS).measure(model, part=half, probe=True)  # type: ignore[arg-type]
        assert any(o.scores for o in record.outcomes if o.kind == "answer")
        for now in record.outcomes:
            then = whole[now.id]
            assert dataclasses.replace(now, scores=()) == dataclasses.replace(then, scores=())
            # Answers are probed in the company of all that were found, so the last digits may differ.
            assert now.scores == (pytest.approx(then.scores, abs=1e-4) if now.kind == "answer" else then.scores)


def test_the_two_halves_share_their_foils() -> None:
    answers = foils(SUITE.items)
    monitor = {item.id for item in SUITE.part("monitor")}
    texts = {item.answers[0]: item.id in monitor for item in ITEMS if isinstance(item, AnswerItem)}
    mixed = [id for id, (own, *others) in answers.items() if any(texts[other] != texts[own] for other in others)]
    assert mixed, "foils come from the whole suite"


def test_parts_of_a_look_are_not_probed(model: Any, tokenizer: Any) -> None:
    scorer = Scorer(SUITE, model, tokenizer, SETTINGS)
    packs = [pack.items for pack in scorer.packs(model, "gate")]
    assert sum(map(len, packs)) == len(frozenset().union(*packs)), "an item is in one pack, as without a probe"
    chosen = next(pack for pack in packs if any(id.startswith("capital") for id in pack))
    part = scorer.measure(model, part="gate", only=chosen, probe=True, replies=False)
    assert {o.id for o in part.outcomes} == chosen and not any(o.scores for o in part.outcomes if o.kind == "answer")


def test_an_answer_that_is_no_token_or_too_long_is_not_probed(model: Any, tokenizer: Any) -> None:
    long = "word " * 40
    items = (*ITEMS[:4], answer("capital/long", long.strip()), answer("capital/other", "Bonn"))
    record = Scorer(Suite("long", items), model, tokenizer, Settings(max_new_tokens=6, max_length=64)).measure(
        model, probe=True
    )
    assert record.by_id["capital/long"].scores == ()
    assert any(o.scores for o in record.outcomes)


def test_weights_that_are_not_numbers_fail_answers_too(tokenizer: Any) -> None:
    items = tuple(answer(f"capital/{k}", city) for k, city in enumerate(CITIES))
    good, bad = tiny_model(), tiny_model()
    with torch.no_grad():
        bad.lm_head.weight[:] = float("nan")
    scorer = Scorer(Suite("only answers", items), good, tokenizer, SETTINGS)
    old = scorer.measure(good, probe=True)
    new = scorer.measure(bad, probe=True)
    assert not old.not_finite and set(new.not_finite) == {item.id for item in items}
    verdict = judge(old, new)
    assert verdict.zone is Zone.REGRESSED and "not finite" in verdict.reasons[0]
    assert compare(old, new) is None, "what is not a number tells nothing of knowledge"


def test_progress_counts_every_answer_once(model: Any, tokenizer: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    Scorer(SUITE, model, tokenizer, SETTINGS).measure(
        model, probe=True, progress=lambda name, done, total: seen.append((name, done, total))
    )
    last = [row for row in seen if row[0] == "answers"][-1]
    assert last[1] == last[2] == 4 * sum(item.id in foils(ITEMS) for item in ITEMS)


def test_a_guarded_run_tells_knowledge_from_format(tmp_path: Any, tokenizer: Any) -> None:
    """The tiny model knows nothing; so that it has something to lose, what it says counts as the answer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    blind = tuple(answer(f"capital/{k}", city) for k, city in enumerate(CITIES * 4))
    said = Scorer(Suite("blind", blind), tiny_model(), tokenizer, SETTINGS).measure(tiny_model()).by_id
    items = tuple(
        AnswerItem(id=i.id, capability="short", prompt=i.prompt, answers=(said[i.id].reply or "",), match="exact")
        for i in blind
        if (said[i.id].reply or "").strip() and (said[i.id].reply or "").isprintable()
    )
    suite = Suite("told", items)
    guard = Guard(suite, looks=2, run_dir=tmp_path / "run", settings=SETTINGS)
    data = Dataset.from_list([{"text": f"nothing but {k}"} for k in range(8)])
    config = SFTConfig(
        output_dir=str(tmp_path), max_steps=6, learning_rate=3e-2, per_device_train_batch_size=4, bf16=False,
        use_cpu=True, report_to="none", logging_steps=1, save_strategy="no", lr_scheduler_type="constant",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SFTTrainer(tiny_model(), args=config, train_dataset=data, processing_class=tokenizer, callbacks=[guard])
    trainer.train()
    from backslide.report.summary import Summary

    assert guard.run is not None and guard.baseline is not None and guard.final is not None
    probed = [o.id for o in guard.baseline.outcomes if o.scores]
    assert probed and all(o.scores for o in guard.final.outcomes if o.id in probed)
    summary = Summary.of(guard.run)
    diagnosis = summary.diagnosis
    lost = [o for o in guard.final.outcomes if guard.baseline.by_id[o.id].correct and not o.correct]
    assert lost and diagnosis.knowledge is not None and diagnosis.kind == diagnosis.knowledge.kind
    setup = json.loads((tmp_path / "run" / "run.json").read_text())["setup"]
    assert (setup["examples"], setup["warmup_steps"], setup["scheduler"]) == (8, 0, "constant")
    assert setup["lora_alpha"] is None and setup["rslora"] is False
    page = (tmp_path / "run" / "report.md").read_text()
    assert "right before and wrong now" in page and "Likely causes" in page and f"**{diagnosis.state}**" in page
    assert "passes over the data" not in page, "8 examples were seen 3 times"
