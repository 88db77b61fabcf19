"""Score the repertoire on a model and on copies of it whose weights were shaken, for `thin.py`.

    python tools/repertoire/measure.py [--copies 2] [--noise 0.05] [--out build/repertoire]

Copy k has Gaussian noise on every weight matrix: `noise` times the standard deviation of the matrix, drawn with seed k.
What a copy loses or wins against the model is what a small disturbance can change; an item that no copy changes, and of
which the model is sure, says nothing of small losses. Only choice items are scored: no others are thinned out. One
file a copy, a line an item by what it asks; what is there already is not scored again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch
from common import FULL

from backslide.models import BUILTIN, load_model
from backslide.scoring.engine import Scorer
from backslide.suite.item import ChoiceItem
from backslide.suite.suite import Suite

Found = dict[str, tuple[float, bool]]
"""Probability of the gold choice and whether it was the likeliest, by `digest`."""


def digest(item: ChoiceItem) -> str:
    """Of what an item asks; the order of its choices and its id do not matter."""
    asked = [item.prompt, item.choices[item.gold], *sorted(item.choices)]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def choices(suite: Suite) -> list[ChoiceItem]:
    """The choice items of `suite`."""
    return [item for item in suite.items if isinstance(item, ChoiceItem)]


def read(path: Path) -> Found:
    """What a file holds."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {key: (p, right) for key, p, right in map(json.loads, lines)}


def shake(model: torch.nn.Module, noise: float, seed: int) -> None:
    """Add the noise, in place. Vectors (norms, biases) stay, and weights that are shared are shaken once."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                drawn = torch.randn(weight.shape, generator=random) * (noise * weight.float().std())
                weight.copy_((weight.float() + drawn).to(weight.dtype))


def main() -> None:
    """Write `copy-0.jsonl`, the model itself, and `copy-1.jsonl` and so on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--out", type=Path, default=FULL.parent)
    asked = parser.parse_args()
    items = choices(Suite.load(FULL))
    for copy in range(asked.copies + 1):
        path = asked.out / f"copy-{copy}.jsonl"
        found = read(path)
        missing = tuple(item for item in items if digest(item) not in found)
        if not missing:
            continue
        loaded = load_model(asked.model, dtype="bfloat16")
        if copy:
            shake(loaded.model, asked.noise, seed=copy)
        record = Scorer(Suite("missing", missing), loaded.model, loaded.tokenizer).measure(loaded.model)
        outcomes = record.by_id
        found |= {digest(item): (outcomes[item.id].p or 0.0, bool(outcomes[item.id].correct)) for item in missing}
        text = "".join(json.dumps([key, p, right]) + "\n" for key, (p, right) in found.items())
        path.write_text(text, encoding="utf-8")
        right = sum(outcome.correct is True for outcome in record.outcomes)
        print(f"{path.name}: {right / len(missing):.1%} of {len(missing)} right, {record.header.cost}", flush=True)


if __name__ == "__main__":
    main()
