"""Leakage: seconds, memory, recall on planted copies, and false hits; prints lines for docs/LOG.md.

    python benchmarks/leakage.py [--items 5000] [--examples 100000] [--data ../shared/data]

A suite of made-up prose (words of a Zipf distribution, so that pairs of frequent words are as frequent as in English)
and the bundled suite, each against training examples of 200 words, into some of which copies of items are planted:

- exact copies;
- near copies: case and punctuation changed, and one word in ten of prompt and answer replaced by another one.

Then, without anything planted: the demo's dialogues and, where the folder is there, other dialogues and benchmarks
against the bundled suite, and one half of the bundled suite, as question and answer, against the other half.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from backslide.passages import passages
from backslide.suite.copies.words import words
from backslide.suite.item import AnswerItem, ChoiceItem, Item, OpenItem, TextItem
from backslide.suite.leakage import Leak, find_leaks
from backslide.suite.suite import Suite

WORDS = 30_000
LENGTH = 200
PLANTED = 2000
"""Items of which a copy is planted, of each kind."""
PUNCTUATION = ".,;:!?"


def prose(seed: int) -> Callable[[random.Random, int], str]:
    """A source of made-up sentences: word k is as frequent as 1 / (k + 2.7)."""
    rng = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgk"
    made: dict[str, None] = {}
    while len(made) < WORDS:
        made["".join(rng.choices(letters, k=2 + min(len(made) // 50, 8) // 2 + rng.randrange(4)))] = None
    vocabulary = list(made)
    cumulative = list(accumulate(1 / (k + 2.7) for k in range(WORDS)))

    def text(rng: random.Random, length: int) -> str:
        found = [vocabulary[bisect(cumulative, rng.random() * cumulative[-1])] for _ in range(length)]
        ends = {i for i in range(length) if rng.random() < 0.08} | {length - 1}
        starts = {0} | {i + 1 for i in ends}
        return " ".join(
            (w.capitalize() if i in starts else w) + ("." if i in ends else "," if rng.random() < 0.05 else "")
            for i, w in enumerate(found)
        )

    return text


def made_up(items: int, text: Callable[[random.Random, int], str]) -> Suite:
    """Choice, answer and text items of many lengths."""
    rng = random.Random(1)
    made: list[Item] = []
    for number in range(items):
        fields: dict[str, Any] = {"id": f"made/{number}", "capability": ("choice", "answer", "text")[number % 3]}
        prompt = text(rng, rng.randint(8, 40))[:-1] + "?"
        if number % 3 == 0:
            choices = tuple(dict.fromkeys(text(rng, rng.randint(1, 6)) for _ in range(4)))
            made.append(ChoiceItem(**fields, prompt=prompt, choices=choices, gold=rng.randrange(len(choices))))
        elif number % 3 == 1:
            made.append(AnswerItem(**fields, prompt=prompt, answers=(text(rng, rng.randint(1, 3)),)))
        else:
            made.append(TextItem(**fields, text=text(rng, rng.randint(40, 300))))
    return Suite("made-up", tuple(made))


def parts(item: Item) -> tuple[str, str]:
    """Question and right answer, as a training example has them."""
    if isinstance(item, TextItem):
        return item.text, ""
    assert isinstance(item, (ChoiceItem, AnswerItem, OpenItem))
    if isinstance(item, ChoiceItem):
        return item.prompt, item.choices[item.gold]
    return item.prompt, item.answers[0] if isinstance(item, AnswerItem) and item.match != "regex" else ""


def changed(rng: random.Random, text: str, other: list[str], spare: Callable[[str], bool]) -> str:
    """Case and punctuation changed, and one word in ten replaced."""
    found = text.split(" ")
    free = [i for i, word in enumerate(found) if word and not spare(word)]
    for i in rng.sample(free, min(len(found) // 10, len(free))):
        found[i] = rng.choice(other)
    cased = [rng.choice((str.upper, str.lower, str.title, str))(word) for word in found]
    return "".join(rng.choice(["", "", *PUNCTUATION]) if c in PUNCTUATION else c for c in " ".join(cased))


def spare_nothing(word: str) -> bool:
    """Any word may be replaced."""
    return False


def spare_what_decides(word: str) -> bool:
    """Numbers, names and signs stay: with another one it is another item."""
    return not word.strip(PUNCTUATION + "\"'()").isalpha() or word[0].isupper()


def plant(
    path: Path, suite: Suite, text: Callable[[random.Random, int], str], examples: int, spare: Callable[[str], bool]
) -> dict[str, dict[str, str]]:
    """Write training examples; returns of each kind of copy the item planted at each place."""
    rng = random.Random(2)
    chosen = rng.sample(suite.items, min(2 * PLANTED, len(suite.items) // 2 * 2, examples // 2))
    copies = {"exact": chosen[: len(chosen) // 2], "near": chosen[len(chosen) // 2 :]}
    where = iter(rng.sample(range(examples), len(chosen)))
    at = {next(where): (kind, item) for kind, members in copies.items() for item in members}
    other = [word for item in suite.items for word in parts(item)[0].split(" ") if word]
    planted: dict[str, dict[str, str]] = {"exact": {}, "near": {}}
    with open(path, "w", encoding="utf-8") as file:
        for number in range(examples):
            row = text(rng, LENGTH)
            if number in at:
                kind, item = at[number]
                copy = "\n".join(part for part in parts(item) if part)
                if kind == "near":
                    copy = changed(rng, copy.replace("\n", " \n "), other, spare)
                cut = row.find(" ", rng.randrange(len(row) // 2))
                row = f"{row[:cut]}\n{copy}\n{row[cut + 1 :]}"
                planted[kind][f"{path}:{number + 1}"] = item.id
            file.write(json.dumps({"text": row}) + "\n")
    return planted


def measure(suite: Path, train: Path, out: Path) -> None:
    """In a process of its own: find the leaks, and write them with seconds and memory."""
    begin = time.perf_counter()
    leaks = find_leaks(Suite.load(suite), passages(train), places=100)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    out.write_text(json.dumps({"seconds": seconds, "peak": peak, "leaks": [leak.to_dict() for leak in leaks]}))


def planted_run(
    name: str, suite: Suite, examples: int, folder: Path, spare: Callable[[str], bool] = spare_nothing
) -> None:
    """Plant, measure in a subprocess, print."""
    suite_file, train, out = folder / "suite.jsonl", folder / "train.jsonl", folder / "out.json"
    suite.save(suite_file)
    planted = plant(train, suite, prose(0), examples, spare)
    subprocess.run([sys.executable, __file__, "--measure", suite_file, train, out], check=True)
    found = json.loads(out.read_text())
    hits = {(leak["place"], leak["item"]): leak["kind"] for leak in found["leaks"]}
    report: dict[str, Any] = {
        "suite": f"{name}, {len(suite.items)} items, {examples} examples",
        "seconds": round(found["seconds"], 1),
        "peak MB": round(found["peak"] / 1e6),
    }
    by_id = {item.id: item for item in suite.items}
    for kind, places in planted.items():
        right = [place for place in places.items() if place in hits]
        report[f"recall, {kind}"] = round(len(right) / len(places), 4)
        report[f"called exact, {kind}"] = round(sum(hits[place] == "exact" for place in right) / len(places), 4)
        sizes = Counter(size(by_id[id]) for id in places.values())
        there = Counter(size(by_id[id]) for _, id in right)
        report[f"recall by words of the prompt, {kind}"] = {s: round(there[s] / n, 3) for s, n in sorted(sizes.items())}
    everywhere = {**planted["exact"], **planted["near"]}
    report["false, where nothing was planted"] = sum(place not in everywhere for place, _ in hits)
    report["false, where another item was planted"] = sum(
        place in everywhere and everywhere[place] != item for place, item in hits
    )
    print(json.dumps(report, indent=2), flush=True)


def size(item: Item) -> str:
    """How many words a prompt has, in classes."""
    count = len(words(parts(item)[0]))
    return next((f"{low:02}-{high - 1}" for low, high in ((1, 6), (6, 10), (10, 20), (20, 50)) if count < high), "50-")


def unrelated(repertoire: Suite, data: Path) -> Iterator[tuple[str, int, tuple[Leak, ...]]]:
    """Texts in which nothing of the bundled suite was planted: name, how many, and what was found."""
    demo = importlib.resources.files("backslide.demo") / "data"
    for name in ("train", "heldout"):
        with importlib.resources.as_file(demo / f"{name}.jsonl") as file:
            rows = list(passages(file))
        yield f"demo, {name}", len(rows), find_leaks(repertoire, rows)
    dialogues = data / "dialogues" / "taskmaster4.jsonl"
    if dialogues.exists():
        rows = list(passages(dialogues))
        yield "dialogues", len(rows), find_leaks(repertoire, rows)
    for file in sorted((data / "benchmarks").glob("*.jsonl")):
        read = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        asked = [
            (f"{file.stem}/{i}", f"{row.get('query') or row.get('context')} {gold_of(row)}")
            for i, row in enumerate(read)
        ]
        yield file.stem, len(asked), find_leaks(repertoire, asked)
    judged = [item for item in repertoire.items if not isinstance(item, OpenItem)]
    random.Random(0).shuffle(judged)
    half = len(judged) // 2
    asked = [(item.id, "\n".join(parts(item))) for item in judged[half:]]
    yield "the suite's other half", half, find_leaks(Suite("half", tuple(judged[:half])), asked)


def gold_of(row: dict[str, Any]) -> str:
    """The right answer of a row of a benchmark."""
    return str(row["choices"][row["gold"]]) if "choices" in row else str(row.get("continuation", ""))


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--measure", type=Path, nargs=3)
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    repertoire = Suite.repertoire()
    with tempfile.TemporaryDirectory() as folder:
        planted_run("made-up prose", made_up(args.items, prose(0)), args.examples, Path(folder))
        planted_run("repertoire", repertoire, args.examples, Path(folder))
        planted_run("repertoire, numbers and names kept", repertoire, args.examples, Path(folder), spare_what_decides)
    for name, count, leaks in unrelated(repertoire, args.data):
        print(f"{name}: {len(leaks)} hits in {count} texts")
        for leak in leaks[:12]:
            print(f"    {leak.kind} {leak.overlap:.0%} {leak.item}: {leak.asked!r} ## {leak.found!r}")


if __name__ == "__main__":
    main()
