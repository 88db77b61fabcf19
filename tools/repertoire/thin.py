"""Choose which items are left out of the repertoire, and write `dropped.tsv`.

    python tools/repertoire/make.py --full    # what could be asked
    python tools/repertoire/measure.py        # scored on the model and on copies that were shaken
    python tools/repertoire/thin.py           # what is left out
    python tools/repertoire/make.py           # the suite without it

Left out are, in this order:

repeat
    items that another one asks too; listed by hand in `repeats.tsv`.
family
    of the items that share a template or a passage all but the one of which the model is least sure: they move
    together, so a test must count them as one.
sure
    choice items with a probability of the gold choice above .98 or below .02 that no shaken copy answers otherwise,
    those first of which the model is surest for their length (|log-odds| times characters): they say little of small
    losses. Both ends go, what is always right and what is always wrong, so that a model that only wavers is as
    likely to win as to lose. A capability keeps `LEAST` items at least.
size
    where a capability has more than `MOST` even so, others that no copy answers otherwise, in the same order.
    Generated answers all stay: how near they are to another reply is not known.
long
    texts beyond `TEXTS`, the longest first.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from pathlib import Path

from common import DROPPED, FULL, HERE
from measure import Found, choices, digest, read

from backslide.suite.item import ChoiceItem, Item, TextItem
from backslide.suite.suite import Suite

SURE = 0.98
LEAST = {"computed": 400, "written": 330}
MOST = 450
TEXTS = 150
COMPUTED = ("arithmetic", "code", "language", "science", "world_facts")


def repeats() -> dict[str, str]:
    """Ids that `repeats.tsv` lists, each with the item that asks the same."""
    lines = (HERE / "repeats.tsv").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("\t") for line in lines if line and not line.startswith("#"))
    return {id: other for id, _, other in pairs}


def doubt(item: Item, found: Found) -> float:
    """How far the model is from the edge between right and wrong, in nats of log-odds; 0 at p = 1/2."""
    if not isinstance(item, ChoiceItem):
        return 0.0
    p = min(max(found[digest(item)][0], 1e-12), 1 - 1e-12)
    return abs(math.log(p / (1 - p)))


def thin(suite: Suite, copies: list[Found]) -> dict[str, str]:
    """Ids to leave out, each with its reason; `copies` begin with the model itself."""
    gone = {id: f"repeat\t{other}" for id, other in repeats().items()}
    unknown = sorted(set(gone) - {item.id for item in suite.items})
    if unknown:
        raise SystemExit(f"repeats.tsv: there is no {unknown[0]}")
    families: dict[str, list[Item]] = defaultdict(list)
    for item in suite.items:
        if item.cluster is not None and item.id not in gone:
            families[item.cluster].append(item)
    for name, members in families.items():
        members.sort(key=lambda item: (doubt(item, copies[0]), item.id))
        gone |= {item.id: f"family\t{name}" for item in members[1:]}
    for capability in suite.capabilities:
        gone |= surest([i for i in suite.items if i.capability == capability and i.id not in gone], copies)
    return gone | longest([item for item in suite.items if isinstance(item, TextItem)])


def surest(items: list[Item], copies: list[Found]) -> dict[str, str]:
    """What a capability loses of `items`, which are all that is left of it."""

    def weight(item: ChoiceItem) -> float:
        return doubt(item, copies[0]) * (len(item.prompt) + sum(map(len, item.choices)))

    known = sorted((i for i in items if isinstance(i, ChoiceItem)), key=lambda i: (-weight(i), i.id))
    least = LEAST["computed" if known and known[0].capability in COMPUTED else "written"]
    gone: dict[str, str] = {}
    # What is surest beyond doubt first; then, where a capability is still too large, the others.
    for sure, most in ((True, least), (False, MOST)):
        for item in known:
            key = digest(item)
            p, right = copies[0][key][0], sum(copy[key][1] for copy in copies)
            if len(items) - len(gone) <= most:
                break
            if item.id not in gone and right in (0, len(copies)) and (not sure or not SURE > p > 1 - SURE):
                gone[item.id] = f"{'sure' if sure else 'size'}\tp = {p:.3f}, right in {right} of {len(copies)}"
    return gone


def longest(items: list[TextItem]) -> dict[str, str]:
    """The texts beyond `TEXTS`."""
    by_length = sorted(items, key=lambda item: (len(item.text), item.id))
    return {item.id: f"long\t{len(item.text)} characters" for item in by_length[TEXTS:]}


def main() -> None:
    """Write `dropped.tsv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=FULL.parent)
    asked = parser.parse_args()
    suite = Suite.load(FULL)
    copies = [read(path) for path in sorted(asked.measured.glob("copy-*.jsonl"))]
    asks = {digest(item) for item in choices(suite)}
    if not copies or any(not asks <= set(copy) for copy in copies):
        raise SystemExit(f"{asked.measured}: not all {len(suite.items)} items were measured; run measure.py first")
    gone = thin(suite, copies)
    lines = ["# id\treason\tdetail; written by thin.py", *(f"{id}\t{gone[id]}" for id in sorted(gone))]
    DROPPED.write_text("\n".join(lines) + "\n", encoding="utf-8")
    reasons = Counter(reason.split("\t")[0] for reason in gone.values())
    print(f"{len(suite.items) - len(gone)} of {len(suite.items)} items stay; left out: {dict(reasons)}")


if __name__ == "__main__":
    main()
