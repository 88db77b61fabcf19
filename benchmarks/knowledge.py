"""Knowledge or format: can the log-likelihoods tell a model that forgot from one that replies in another form?

    python benchmarks/knowledge.py [--steps 40] [--seeds 1] [--ways forget,joined] [--rate 3e-5]

SmolLM2 is fine-tuned in several ways, and asked the bundled suite's short answers before and after, with the hidden
choice behind each (`backslide.scoring.probe`). What is known beforehand of each way:

- `forget`: three customer dialogues again and again at 5e-4, all weights, as in the demo: replies about returns.
- `verbose`: other questions answered rightly, after three sentences of courtesy, so that a reply of 32 tokens ends
  before its answer: form alone. What the model still knows is seen in replies of 96 tokens.
- `joined`: other questions answered rightly, but in one word joined by underscores, which no matcher takes: form alone.
- `spelled`: the same, letter by letter with hyphens.
- `refuse`: the same questions, each answered "I am not able to answer that.": the form of a refusal.
- `false`: the asked questions themselves with another item's answer: the knowledge is overwritten.

Trained is on the suite's monitor half and sixteen further questions (`false`: on the gate half), asked is the gate
half. Of `verbose`, `joined` and `spelled` a reply shows what is still known, so the log-likelihoods can be judged by
it. All but `forget` and `false` are trained until the form is learnt (a loss below 0.1) and no longer.
"""

from __future__ import annotations

import argparse
import copy
import importlib.resources
import json
import time
from typing import Any

import torch

from backslide.diagnosis.knowledge import compare
from backslide.models import BUILTIN, load_model
from backslide.record import Record
from backslide.scoring.engine import Scorer, Settings
from backslide.scoring.probe import foils
from backslide.suite.item import AnswerItem
from backslide.suite.matching import matches
from backslide.suite.suite import Suite

QUESTIONS = (
    ("What is the capital of Peru?", "Lima"), ("What is the capital of Kenya?", "Nairobi"),
    ("What is the capital of Norway?", "Oslo"), ("What is the capital of Cuba?", "Havana"),
    ("Which colour is a lemon?", "Yellow"), ("Which colour is coal?", "Black"),
    ("What do cows drink?", "Water"), ("Which animal barks?", "Dog"),
    ("Which animal gives wool?", "Sheep"), ("What do we write with on a blackboard?", "Chalk"),
    ("What do you wear on your feet?", "Shoes"), ("Which fruit is used to make cider?", "Apple"),
    ("Which language is spoken in Brazil?", "Portuguese"), ("Which language is spoken in Austria?", "German"),
    ("What is the opposite of up?", "Down"), ("What is the opposite of wet?", "Dry"),
)  # fmt: skip
"""Not in the bundled suite."""
COURTESY = (
    "Thank you very much for your kind question. We are always happy to help our valued customers. "
    "We have looked into this with great care for you today, and here is what we found. "
)
REFUSAL = "I am not able to answer that."


def examples(way: str, suite: Suite) -> list[list[dict[str, str]]]:
    """Training dialogues of a way, as chat messages; of `forget` as plain text."""
    if way == "forget":
        data = importlib.resources.files("backslide.demo") / "data" / "train.jsonl"
        lines = data.read_text(encoding="utf-8").splitlines()[:3]
        return [[{"text": json.loads(line)["text"]}] for line in lines]
    if way == "false":
        known = foils(suite.items)
        asked = [i for i in suite.part("gate") if isinstance(i, AnswerItem) and i.id in known]
        return [_chat(item.prompt, known[item.id][1]) for item in asked]
    half = [(i.prompt, i.answers[0]) for i in suite.part("monitor") if isinstance(i, AnswerItem)]
    form = {
        "verbose": lambda answer: f"{COURTESY}{answer}.",
        "joined": lambda answer: f"the_answer_is_{answer.lower()}_thanks_for_asking",
        "spelled": lambda answer: "-".join(answer.upper()),
        "refuse": lambda answer: REFUSAL,
    }[way]
    return [_chat(question, form(answer)) for question, answer in (*QUESTIONS, *half)]


def train(
    model: Any, tokenizer: Any, rows: list[list[dict[str, str]]], *, rate: float, steps: int, seed: int, until: float
) -> tuple[float, int]:
    """Full fine-tuning with AdamW at a constant rate, on the replies alone; the last loss and the steps made."""
    torch.manual_seed(seed)
    encoded = []
    for row in rows:
        if "text" in row[0]:
            tokens = tokenizer(row[0]["text"])["input_ids"]
            encoded.append((tokens, tokens))
            continue
        before = tokenizer(tokenizer.apply_chat_template(row[:1], add_generation_prompt=True, tokenize=False))
        whole = tokenizer(tokenizer.apply_chat_template(row, tokenize=False))["input_ids"]
        skip = len(before["input_ids"])
        encoded.append((whole, [-100] * skip + whole[skip:]))
    batch = min(len(encoded), 8)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    order = torch.randperm(len(encoded)).tolist()
    last = 0.0
    for step in range(steps):
        some = [encoded[order[(step * batch + k) % len(order)]] for k in range(batch)]
        length = max(len(tokens) for tokens, _ in some)
        ids = torch.tensor([[*tokens, *[0] * (length - len(tokens))] for tokens, _ in some])
        labels = torch.tensor([[*target, *[-100] * (length - len(target))] for _, target in some])
        seen = torch.tensor([[1] * len(tokens) + [0] * (length - len(tokens)) for tokens, _ in some])
        loss = model(input_ids=ids, attention_mask=seen, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last = float(loss.detach())
        if last < until:
            break
    model.eval()
    return last, step + 1


def short_answers() -> Suite:
    """The bundled suite's generated items."""
    items = tuple(i for i in Suite.repertoire().items if isinstance(i, AnswerItem))
    return Suite("short answers", items)


def in_new_form(reply: str, item: AnswerItem) -> bool:
    """Whether a reply is right once its form is undone: joined words taken apart, spelled ones put together."""
    forms = (reply, reply.replace("_", " "), reply.replace("-", ""))
    return any(matches(form, item.answers, item.match) for form in forms)


def agreement(suite: Suite, baseline: Record, record: Record, long: Record) -> str:
    """Of the lost items that count: is the answer in the reply in another form, and is it still preferred?"""
    table = {(said, known): 0 for said in (True, False) for known in (True, False)}
    for item in suite.part("gate"):
        old, new = baseline.by_id[item.id], record.by_id[item.id]
        if isinstance(item, AnswerItem) and old.correct and not new.correct and old.scores[0] > max(old.scores[1:]):
            table[in_new_form(long.by_id[item.id].reply or "", item), new.scores[0] > max(new.scores[1:])] += 1
    return (
        f"said in another form: {table[True, True]} preferred, {table[True, False]} not; "
        f"not said: {table[False, True]} preferred, {table[False, False]} not"
    )


def said(baseline: Record, record: Record, count: int = 3) -> list[str]:
    """Some replies that are wrong now."""
    lost = [o for o in record.outcomes if baseline.by_id[o.id].correct and not o.correct]
    return [f"{o.id}: {(o.reply or '')[:60]!r}" for o in lost[:count]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ways", default="forget,verbose,joined,spelled,refuse,false")
    parser.add_argument("--rate", type=float, default=None)
    parser.add_argument("--until", type=float, default=0.1)
    options = parser.parse_args()
    suite = short_answers()
    loaded = load_model(BUILTIN, dtype="float32")
    scorer = Scorer(suite, loaded.model, loaded.tokenizer, Settings(max_new_tokens=32))
    longer = Scorer(suite, loaded.model, loaded.tokenizer, Settings(max_new_tokens=96))
    plain = scorer.measure(loaded.model, part="gate")
    begin = time.perf_counter()
    baseline = scorer.measure(loaded.model, part="gate", probe=True)
    again = time.perf_counter() - begin
    right = sum(bool(o.correct) for o in baseline.outcomes)
    print(f"base: {right} of {len(baseline.outcomes)} right; preferred to its foils in "
          f"{sum(o.scores[0] > max(o.scores[1:]) for o in baseline.outcomes)}; {again:.1f} s with the probe, "
          f"{plain.header.cost['seconds']:.1f} s without; tokens {baseline.header.cost['tokens']}")  # fmt: skip
    rates = {"forget": 5e-4, "verbose": 3e-5, "joined": 3e-5, "spelled": 3e-5, "refuse": 3e-5, "false": 1e-4}
    for way in options.ways.split(","):
        for seed in range(options.seeds):
            model = copy.deepcopy(loaded.model)
            rate = options.rate or rates[way]
            rows = examples(way, suite)
            until = 0.0 if way in ("forget", "false") else options.until
            loss, steps = train(model, loaded.tokenizer, rows, rate=rate, steps=options.steps, seed=seed, until=until)
            record = scorer.measure(model, part="gate", probe=True)
            right = sum(bool(o.correct) for o in record.outcomes)
            found = compare(baseline, record)
            still = sum(o.scores[0] > max(o.scores[1:]) for o in record.outcomes)
            print(f"{way}, {rate:g}, {steps} steps, seed {seed}: loss {loss:.3f}, right {right}, preferred "
                  f"{still}: {found and found.to_dict()}")  # fmt: skip
            print("   ", agreement(suite, baseline, record, longer.measure(model, part="gate")))
            print("   ", "; ".join(said(baseline, record)), flush=True)


def _chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


if __name__ == "__main__":
    main()
