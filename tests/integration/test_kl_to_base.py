"""The KL to the base along its own replies, against the definition on whole logits of one sequence at a time."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.special import rel_entr

from backslide.drops import kl_between
from backslide.guard.journal import Journal
from backslide.judge import judge
from backslide.record import LEAST_LOG, Record
from backslide.scoring import execute, requests
from backslide.scoring.engine import Scorer, Settings
from backslide.scoring.ranks import Ranks
from backslide.scoring.requests import LIKELIEST, ask
from backslide.scoring.support import Layout
from backslide.suite.item import AnswerItem, ChoiceItem, Item, OpenItem, TextItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.verdict import Zone
from backslide_models import other_model

VOCABULARY = 261
LIMIT = 120
"""Tokens of a request, so that one of the prompts loses its beginning."""


def referring(id: str, prompt: str, reference: str) -> OpenItem:
    return OpenItem(id=id, capability="chat", prompt=prompt, reference=reference)


REFERRING: tuple[Item, ...] = (
    referring("a", "Tell me of rivers.", "They run to the sea, all of them, and the sea is not full."),
    # One prompt with two replies: at the place where they part each has its own token.
    referring("b", "Tell me of stones.", "They lie."),
    referring("c", "Tell me of stones.", "Then you sit down, and listen to what they have to say."),
    referring("d", "Far back. " * 20, "Yes, long ago, and nobody was there."),
    referring("e", "One?", "x"),
    *(referring(f"f{i}", f"What of {i}?", f"Of {i} there is {'much ' * (i % 4 + 1)}to say.") for i in range(12)),
)
OTHERS: tuple[Item, ...] = (
    *(
        ChoiceItem(id=f"m{i}", capability="m", prompt=f"Which, {i}?", choices=("north", "northern", "south"), gold=0)
        for i in range(12)
    ),
    AnswerItem(id="w1", capability="w", prompt="Who?", answers=("Ann",)),
    AnswerItem(id="w2", capability="w", prompt="Who else?", answers=("Bob",)),
    TextItem(id="t", capability="t", text="It was a bright cold day in April."),
    OpenItem(id="o", capability="chat", prompt="Hello?"),
)
SUITE = Suite("mixed", (*REFERRING, *OTHERS))
SETTINGS = Settings(max_length=LIMIT, row_tokens=128, batch_tokens=256, max_new_tokens=4)


def moved(model: Any, size: float = 0.1) -> Any:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter += size * parameter.std().nan_to_num() * torch.randn_like(parameter)
    return model


def adapted(size: float) -> Any:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=size)
    return model.eval()


@torch.no_grad()
def defined(base: Any, now: Any) -> dict[str, float]:
    """By item: Σ over the vocabulary of p log p/q at each token of the reference, and of these the mean."""
    asked = ask(REFERRING, tiny_tokenizer(), chat=True, max_length=LIMIT)
    assert any("lose their beginning" in note for note in asked.notes)
    found = {}
    for request in asked.requests:
        fed = torch.tensor([request.fed])
        p, q = (
            model(input_ids=fed, use_cache=False).logits[0, -len(request.targets) :].double().softmax(-1).numpy()
            for model in (base, now)
        )
        found[request.item] = float(rel_entr(p, q).sum(axis=1).mean())
    return found


def measured(model: Any, layout: Layout | None = None, **more: Any) -> Record:
    scorer = Scorer(SUITE, model, tiny_tokenizer(), SETTINGS)
    scorer.runner.layout = layout
    return scorer.measure(model, **more)


def between(old: Record, new: Record) -> dict[str, float]:
    found = {item.id: kl_between(old.by_id[item.id], new.by_id[item.id]) for item in REFERRING}
    return {id: kl for id, kl in found.items() if kl is not None}


@pytest.fixture(scope="module")
def both() -> tuple[Record, Record]:
    return measured(tiny_model()), measured(moved(tiny_model()))


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("moved", Layout(True, True)),
        ("moved", Layout(False, False)),
        ("adapted", Layout(True, False)),
        ("adapted", None),
    ],
)
def test_on_all_tokens_it_is_the_definition_and_on_few_below(
    kind: str, layout: Layout | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, now = tiny_model(), moved(tiny_model()) if kind == "moved" else adapted(0.1)
    whole = defined(base, now)
    assert min(whole.values()) > 0.01
    few = between(measured(base, layout), measured(now, layout))
    monkeypatch.setattr(requests, "LIKELIEST", VOCABULARY - 1)
    all_of_them = between(measured(base, layout), measured(now, layout))
    assert all_of_them == pytest.approx(whole, abs=1e-4)
    assert few.keys() == whole.keys() and all(0 < few[id] < whole[id] for id in whole)
    monkeypatch.setattr(requests, "LIKELIEST", 10 * VOCABULARY)
    assert between(measured(base, layout), measured(now, layout)) == all_of_them


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "mamba"])
def test_other_architectures(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "LIKELIEST", VOCABULARY - 1)
    base, now = other_model(kind), moved(other_model(kind))
    assert between(measured(base), measured(now)) == pytest.approx(defined(base, now), abs=1e-4)


def test_the_base_under_an_adapter_is_at_zero() -> None:
    model = adapted(0.1)
    base, under, over = measured(tiny_model()), measured(model, adapters=False), measured(model)
    assert set(between(base, under).values()) == {0.0}
    assert between(under, over) == pytest.approx(between(base, over))


def test_a_record_keeps_the_tokens_own_and_the_likeliest_others(both: tuple[Record, Record]) -> None:
    asked = {r.item: r for r in ask(REFERRING, tiny_tokenizer(), chat=True, max_length=LIMIT).requests}
    model = tiny_model()
    for id, request in asked.items():
        outcome = both[0].by_id[id]
        assert len(outcome.likeliest) == outcome.tokens == len(request.targets)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([request.fed]), use_cache=False).logits[0]
        rows = logits[-len(request.targets) :].double().log_softmax(-1)
        for (ids, logs), target, row in zip(outcome.likeliest, request.targets, rows, strict=True):
            assert ids[0] == target and len(set(ids)) == len(ids) == LIKELIEST + 1
            # By their values: two may be equal but for rounding.
            others = row[[i for i in range(VOCABULARY) if i != target]].topk(LIKELIEST).values.tolist()
            rest = math.log(1 - float(row[list(ids)].exp().sum()))
            assert logs == pytest.approx((*row[list(ids)].tolist(), rest), abs=1e-4)
            assert logs[1:-1] == pytest.approx(others, abs=1e-4)
            assert all(log == round(log, 4) for log in logs)
    assert all(not both[0].by_id[item.id].likeliest for item in OTHERS)


def test_nothing_else_of_a_record_depends_on_it(both: tuple[Record, Record], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, digests included."""
    monkeypatch.setattr(requests, "LIKELIEST", 0)
    bare = measured(tiny_model())
    assert not any(outcome.likeliest for outcome in bare.outcomes)
    assert bare.outcomes == tuple(dataclasses.replace(o, likeliest=()) for o in both[0].outcomes)
    assert bare.header.conditions == both[0].header.conditions
    monkeypatch.undo()
    # Whatever goes through the softmax together.
    monkeypatch.setattr(execute, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(execute, "RANKED_AT_ONCE", 2)
    assert measured(tiny_model()).outcomes == both[0].outcomes


def test_parts_shares_and_journals_hold_the_same(both: tuple[Record, Record], tmp_path: Path) -> None:
    model = tiny_model()
    scorer = Scorer(SUITE, model, tiny_tokenizer(), SETTINGS)
    whole = both[0].by_id
    pack = scorer.packs(model, "gate")[0].items
    part = scorer.measure(model, part="gate", only=[min(pack)], replies=False)
    assert {o.id for o in part.outcomes} == pack and all(whole[o.id] == o for o in part.outcomes)
    # What two processes find, each of which is told of its own share alone.
    shares = [scorer.measure(model, ranks=_Lonely(rank, 2)).by_id for rank in (0, 1)]
    assert shares[0].keys() ^ shares[1].keys() == whole.keys() and {**shares[0], **shares[1]} == whole
    journal = Journal(tmp_path / "look.jsonl", both[0].header, warn=pytest.fail)
    journal.keep(both[0].outcomes)
    journal.close(done=False)
    assert journal.known() == whole
    taken = scorer.measure(model, known=journal.known(), keep=lambda found: pytest.fail(str(found)), replies=False)
    assert all(whole[o.id] == o for o in taken.outcomes)


class _Lonely(Ranks):
    def gather(self, value: Any) -> list[Any]:
        return [value]


def test_records_of_older_versions_and_of_other_sizes_have_none(
    both: tuple[Record, Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = both
    verdict = judge(old, new)
    rows = {row.unit: row for row in verdict.capabilities}
    kl = rows["drift"].kl
    assert kl == pytest.approx(sum(between(old, new).values()) / len(REFERRING)) and kl is not None and kl > 0.01
    assert rows["accuracy"].kl is rows["bits per byte"].kl is None and verdict.pooled is not None
    assert verdict.pooled.kl is None
    for record, name in ((old, "old.jsonl"), (new, "new.jsonl")):
        record.save(tmp_path / name)
        assert Record.load(tmp_path / name).outcomes == record.outcomes
    lines = [json.loads(line) for line in (tmp_path / "old.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line.pop("likeliest", None)
    (tmp_path / "older.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    older = Record.load(tmp_path / "older.jsonl")
    monkeypatch.setattr(requests, "LIKELIEST", 4)
    for other in (older, measured(tiny_model())):
        without = judge(other, new)
        assert {row.kl for row in without.capabilities} == {None}
        known = [dataclasses.replace(row, kl=None) for row in verdict.capabilities]
        assert [*without.capabilities] == known and without.zone is verdict.zone


def test_numbers_that_are_none_give_none_and_tokens_ruled_out_count_as_barely_possible() -> None:
    base, sick, strict = tiny_model(), tiny_model(), tiny_model()
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        sick.model.norm.weight[3] = math.nan
    after = measured(sick)
    assert not any(outcome.likeliest for outcome in after.outcomes)
    verdict = judge(measured(base), after)
    assert verdict.zone is Zone.REGRESSED and {row.kl for row in verdict.capabilities} == {None}

    # A token that no reference holds and the base finds likely is ruled out.
    never = tokenizer("Q")["input_ids"][0]
    likely = torch.nn.Linear(32, VOCABULARY, bias=True)
    for model, bias in ((base, 5.0), (strict, -math.inf)):
        model.lm_head = torch.nn.Linear(32, VOCABULARY, bias=True)
        with torch.no_grad():
            model.lm_head.weight.copy_(likely.weight)
            model.lm_head.bias.zero_()
            model.lm_head.bias[never] = bias
    old, new = measured(base), measured(strict)
    assert new.by_id["a"].likeliest and not any(never in ids for ids, _ in new.by_id["a"].likeliest)
    assert all(0 < kl < math.inf for kl in between(old, new).values())
    assert all(LEAST_LOG <= log <= 0 for o in new.outcomes for _, logs in o.likeliest for log in logs)
    json.dumps([o.to_dict() for o in new.outcomes], allow_nan=False)
