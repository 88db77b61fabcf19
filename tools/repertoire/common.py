"""What the makers of the repertoire share: reading facts, placing the gold choice, checking and writing a file.

A maker lists drafts; `finish` turns them into the rows of `src/backslide/suite/repertoire/<capability>.jsonl`:

    drafts = [Draft(id="science/au", prompt="Which element has the symbol Au?", gold="Gold", wrong=("Silver", …))]
    finish("science", [*written("science"), *drafts])

The same drafts always give the same bytes: what looks random is drawn by SHA-256 of the ids.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPERTOIRE = HERE.parents[1] / "src" / "backslide" / "suite" / "repertoire"
FULL = HERE.parents[1] / "build" / "repertoire" / "full"
"""Where everything goes that could be asked, when the environment has `REPERTOIRE_FULL`."""
DROPPED = HERE / "dropped.tsv"
"""Ids of items that are left out, and why; see `thin.py`."""
sys.path.insert(0, str(HERE.parents[1] / "src"))

Row = dict[str, Any]
"""A line of a suite file."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A choice item whose choices have no order yet."""

    id: str
    """`capability/slug`."""
    prompt: str
    gold: str
    """The right choice."""
    wrong: tuple[str, ...]
    """The other choices."""
    cluster: str | None = None
    """Items of one fact, passage or skeleton share it."""


# Reading


def facts(capability: str, name: str) -> list[dict[str, str]]:
    """The rows of `facts/<capability>/<name>.tsv`: tab-separated, the first line names the columns, `#` comments.

    Short lines are filled up with empty fields. Raises `ValueError` for a line with more fields than columns.
    """
    path = HERE / "facts" / capability / f"{name}.tsv"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and line[0] != "#"]
    rows = list(csv.DictReader(lines, delimiter="\t", restval="", quoting=csv.QUOTE_NONE))
    for row in rows:
        if None in row:
            raise ValueError(f"{path}: more fields than columns: {row}")
    return [{key: (value or "").strip() for key, value in row.items()} for row in rows]


def written(capability: str) -> list[Draft | Row]:
    """The hand-written items of `written/<capability>.jsonl`.

    A line with `wrong` (and `gold` as text) is a draft; any other is a finished line of the suite and stays as it is.
    """
    path = HERE / "written" / f"{capability}.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Draft(**{**row, "wrong": tuple(row["wrong"])}) if "wrong" in row else row for row in rows]


def slug(*words: str) -> str:
    """`words` as the end of an id: lower case, ASCII letters, digits and single hyphens."""
    text = unicodedata.normalize("NFKD", "-".join(words)).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", text.replace("'", "")).strip("-")


# Drawing


def drawn(*key: object) -> random.Random:
    """A generator of random numbers that depends on `key` alone."""
    return random.Random(hashlib.sha256("\n".join(map(str, key)).encode()).digest())


def pick(options: Sequence[Any], *key: object) -> Any:
    """One of `options`, drawn by `key`."""
    return options[drawn("pick", *key).randrange(len(options))]


def some(options: Iterable[Any], count: int, *key: object) -> list[Any]:
    """`count` of the different `options`, drawn by `key`. Raises `ValueError` when there are too few."""
    return drawn("some", *key).sample(list(dict.fromkeys(options)), count)


# Writing


def finish(
    capability: str, entries: Iterable[Draft | Row], spelled: Callable[[Row], Row] = lambda row: row
) -> list[Row]:
    """Leave out what `dropped.tsv` names, place the choices of drafts, check all, write the file, print what it holds.

    `spelled` makes rows for the check, where texts differ in what it does not see.
    With `REPERTOIRE_FULL` in the environment nothing is left out, and the file goes to `build/repertoire/full/`.
    """
    full = bool(os.environ.get("REPERTOIRE_FULL"))
    gone: set[str] = set() if full else set(dropped())
    rows = place(capability, [entry for entry in entries if id_of(entry) not in gone])
    check(capability, [spelled(row) for row in rows])
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    folder = FULL if full else REPERTOIRE
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{capability}.jsonl").write_text(text, encoding="utf-8", newline="\n")
    print(summary(capability, rows))
    return rows


def dropped() -> dict[str, str]:
    """The ids in `dropped.tsv`, and the reason of each."""
    lines = DROPPED.read_text(encoding="utf-8").splitlines() if DROPPED.exists() else []
    pairs = (line.partition("\t") for line in lines if line and not line.startswith("#"))
    return {id: reason for id, _, reason in pairs}


def id_of(entry: Draft | Row) -> str:
    """The id of a draft or of a finished line."""
    return entry.id if isinstance(entry, Draft) else str(entry["id"])


def place(capability: str, entries: Sequence[Draft | Row]) -> list[Row]:
    """Give each draft an order of its choices; finished rows stay.

    The wrong ones are shuffled by the id. The gold goes where it has been least often so far among the items with
    as many choices, and by the id between equals, so that over a file each place is the gold one equally often.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for entry in entries:
        if isinstance(entry, dict) and "choices" in entry:
            counts[len(entry["choices"]), entry["gold"]] += 1
    rows: list[Row] = []
    for entry in entries:
        if isinstance(entry, dict):
            rows.append(entry)
            continue
        size = len(entry.wrong) + 1
        random_of_item = drawn("place", entry.id)
        choices = random_of_item.sample(entry.wrong, size - 1)
        least = min(counts[size, position] for position in range(size))
        gold = random_of_item.choice([position for position in range(size) if counts[size, position] == least])
        counts[size, gold] += 1
        choices.insert(gold, entry.gold)
        row: Row = {"id": entry.id, "kind": "choice", "capability": capability}
        if entry.cluster is not None:
            row["cluster"] = entry.cluster
        rows.append({**row, "prompt": entry.prompt, "choices": choices, "gold": gold})
    return rows


def plain(text: str) -> str:
    """`text` without case and white space: equal for what reads alike."""
    return re.sub(r"\s+", "", text).casefold()


def check(capability: str, rows: Sequence[Row]) -> None:
    """Raise `ValueError` naming every row that is malformed, alike to another one, or in too large a cluster."""
    from backslide.errors import SuiteError
    from backslide.suite.item import item_from_dict

    bad: list[str] = []
    for row in rows:
        try:
            item_from_dict(row)
        except SuiteError as wrong:
            bad.append(f"{row.get('id')}: {wrong}")
        if row["capability"] != capability or not re.fullmatch(rf"{capability}/[a-z0-9]+(-[a-z0-9]+)*", row["id"]):
            bad.append(f"{row['id']}: not an id of {capability}")
        if "cluster" in row and not row["cluster"].startswith(f"{capability}/"):
            bad.append(f"{row['id']}: the cluster {row['cluster']!r} is not one of {capability}")
        if "choices" in row and len(set(map(plain, row["choices"]))) < len(row["choices"]):
            bad.append(f"{row['id']}: two choices are alike: {row['choices']}")
        for text in (row.get("prompt", ""), row.get("text", ""), *row.get("choices", ())):
            if text != text.strip() or "  " in text:
                bad.append(f"{row['id']}: white space to spare in {text!r}")
    for id, count in Counter(row["id"] for row in rows).items():
        if count > 1:
            bad.append(f"{id}: the id is there {count} times")
    seen: dict[tuple[str, ...], str] = {}
    for row in rows:
        # The same question may come with other choices ("Which sentence is correct?"), so both make an item.
        if "choices" in row:
            key = (plain(row["prompt"]), *sorted(map(plain, row["choices"])))
        else:
            key = (plain(row.get("prompt", row.get("text", ""))),)
        if key in seen:
            bad.append(f"{row['id']}: asks the same as {seen[key]}")
        seen[key] = row["id"]
    if bad:
        raise ValueError("\n".join([f"{capability}: {len(bad)} faults", *bad]))


def summary(capability: str, rows: Sequence[Row]) -> str:
    """How many items and clusters, and what position and length of the gold give away."""
    clusters = len({row.get("cluster", row["id"]) for row in rows})
    text = f"{capability}: {len(rows)} items, {clusters} clusters"
    largest = Counter(row["cluster"] for row in rows if "cluster" in row).most_common(1)
    if largest:
        text += f", the largest of {largest[0][1]} ({largest[0][0]})"
    chosen = [row for row in rows if "choices" in row]
    if not chosen:
        return text
    positions = Counter((len(row["choices"]), row["gold"]) for row in chosen)
    longest = shortest = 0
    for row in chosen:
        lengths = [len(choice) for choice in row["choices"]]
        gold = lengths.pop(row["gold"])
        longest += gold > max(lengths)
        shortest += gold < min(lengths)
    places = ", ".join(f"{position} of {size}: {count}" for (size, position), count in sorted(positions.items()))
    total = len(chosen)
    return f"{text}; gold at {places}; strictly longest {longest / total:.0%}, shortest {shortest / total:.0%}"
