"""The bundled repertoire as a small model answers it: counts, base accuracy, what it can prove, and how long it takes.

    python benchmarks/suites.py [--save] [--check]

SmolLM2-135M-Instruct in bf16; where the CPU has none its products are made in fp32 (`half.py`), and of the seconds
nothing is promised. Prints the table that stands in docs/suites.md, between its marks; `--save` writes it
there, and the numbers beside the suite, where `backslide suite show` finds them. `--check` ends with 1 where something
that is promised does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from half import quicken

from backslide.guard.monitor import GATE_SHARE
from backslide.guard.schedule import WORTHWHILE, in_order
from backslide.models import BUILTIN, load_model
from backslide.planning import reach
from backslide.record import Record
from backslide.scoring.engine import Scorer
from backslide.suite.measured import FILE, Measured
from backslide.suite.suite import Suite, half_of

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "src" / "backslide" / "suite" / "repertoire"
DOCS = HERE.parent / "docs" / "suites.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
LOOKS, ALPHA, POWER = 20, 0.05, 0.8
# What is promised: seconds of all and of a look, base accuracy, smallest drops in points, items of a capability.
WHOLE, LOOK, ACCURACY, GATE, MONITOR = 100.0, 20.0, (0.40, 0.95), 6.0, 9.0
COMPUTED = ("arithmetic", "code", "language", "science", "short_answers", "world_facts")
FEWEST = {True: 400, False: 150}
"""Items of a capability that a program makes from facts, and of one that was written."""


def measure(suite: Suite) -> tuple[Record, float, tuple[int, float]]:
    """The record of all items, the seconds that scoring took (the loading of the model apart), and a look's."""
    loaded = load_model(BUILTIN, dtype="bfloat16")
    scorer = Scorer(suite, loaded.model, loaded.tokenizer)
    begin = time.perf_counter()
    record = scorer.measure(loaded.model, part="all", name=BUILTIN)
    return record, time.perf_counter() - begin, look(scorer, loaded.model)


def look(scorer: Scorer, model: Any) -> tuple[int, float]:
    """Items and seconds of a guard's look at so many items of the monitor half as are worth one (`WORTHWHILE`)."""
    capability = {item.id: item.capability for item in scorer.suite.items}
    packs = scorer.packs(model, "monitor")
    chosen: set[str] = set()
    for place in in_order([[capability[id] for id in pack.items] for pack in packs], [pack.tokens for pack in packs]):
        if len(chosen) >= WORTHWHILE:
            break
        chosen |= packs[place].items
    begin = time.perf_counter()
    scorer.measure(model, part="monitor", only=chosen, replies=False)
    return len(chosen), time.perf_counter() - begin


def measured(suite: Suite, record: Record) -> dict[str, Measured]:
    """Base and smallest drops of each capability, in the suite's order."""
    at_gate = {row.capability: row for row in reach(suite, record, looks=1, alpha=ALPHA, power=POWER, gate_share=1.0)}
    looking = reach(suite, record, looks=LOOKS, alpha=ALPHA, power=POWER, gate_share=GATE_SHARE)
    by_look = {row.capability: row for row in looking}
    found = {}
    for name in suite.capabilities:
        outcomes = [o for o in record.outcomes if o.capability == name]
        if all(o.kind == "open" for o in outcomes):
            continue
        right = [o.correct for o in outcomes if o.correct is not None]
        if right:
            gate, look = at_gate[name], by_look[name]
            # Where all items have probabilities the soft drop is what sees most.
            drops = (gate.gate, look.monitor) if gate.gate_soft is None else (gate.gate_soft, look.monitor_soft)
            of_gate, of_look = (None if drop is None or math.isinf(drop) else round(drop, 4) for drop in drops)
            found[name] = Measured(sum(right) / len(right), of_gate, of_look)
        else:
            bits = [o.bits_per_byte for o in outcomes if o.bits_per_byte is not None]
            found[name] = Measured(statistics.mean(bits), None, None)
    return found


def table(suite: Suite, rows: dict[str, Measured]) -> str:
    """Markdown: a line a capability."""
    lines = [
        "| capability | items | monitor | gate | base | gate proves | monitor proves |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    counts = {name: Counter(half_of(i) for i in suite.items if i.capability == name) for name in rows}
    for name, row in rows.items():
        text = row.gate is None or row.monitor is None
        base = f"{row.base:.2f} bits a byte" if text else f"{row.base:.1%}"
        drops = (
            "– | –" if row.gate is None or row.monitor is None else f"{100 * row.gate:.1f} | {100 * row.monitor:.1f}"
        )
        of = counts[name]
        lines.append(f"| `{name}` | {of.total()} | {of['monitor']} | {of['gate']} | {base} | {drops} |")
    whole = sum((of for of in counts.values()), Counter[str]())
    lines.append(f"| all | {whole.total()} | {whole['monitor']} | {whole['gate']} | | | |")
    return "\n".join(lines)


def broken(suite: Suite, rows: dict[str, Measured], seconds: Mapping[str, tuple[float, float]]) -> list[str]:
    """What is promised and does not hold, one line each. Of what `seconds` were taken, and how many are promised."""
    found = [
        f"{what} took {taken:.0f} s, under {most:.0f} s is promised"
        for what, (taken, most) in seconds.items()
        if taken >= most
    ]
    for name, row in rows.items():
        count = suite.capabilities[name]
        if count < FEWEST[name in COMPUTED]:
            found.append(f"{name}: {count} items, at least {FEWEST[name in COMPUTED]} are promised")
        if row.gate is None or row.monitor is None:
            continue
        if not ACCURACY[0] <= row.base <= ACCURACY[1]:
            found.append(
                f"{name}: base accuracy {row.base:.1%}, from {ACCURACY[0]:.0%} to {ACCURACY[1]:.0%} is promised"
            )
        for half, drop, most in (("gate", row.gate, GATE), ("monitor", row.monitor, MONITOR)):
            if 100 * drop > most:
                found.append(f"{name}: the {half} half proves {100 * drop:.1f} points, at most {most:g} are promised")
    return found


def main() -> None:
    """Measure, print, and save where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", type=Path, help="take this record instead of measuring; its seconds count")
    asked = parser.parse_args()
    suite, wide = Suite.repertoire(), asked.record is None and quicken()
    looked = None
    if asked.record is not None:
        record = Record.load(asked.record)
        seconds = record.header.cost["seconds"]
    else:
        record, seconds, looked = measure(suite)
    rows = measured(suite, record)
    print(table(suite, rows))
    print(f"\n{seconds:.1f} s for all {len(suite.items)} items, {torch.get_num_threads()} threads, loading apart")
    times = {"the whole repertoire": (seconds, WHOLE)}
    if looked is not None:
        print(f"{looked[1]:.1f} s for a look at {looked[0]} items of the monitor half")
        times["a look"] = (looked[1], LOOK)
    wrong = broken(suite, rows, {} if wide else times)
    print("\n".join(wrong) or f"all that is promised holds{', the times apart: this CPU has no bf16' if wide else ''}")
    if asked.save:
        save(suite, rows)
    if asked.check and wrong:
        sys.exit(1)


def save(suite: Suite, rows: dict[str, Measured]) -> None:
    """Write the numbers where `suite show` finds them, and the table into the documentation."""
    conditions = {
        "model": "SmolLM2-135M-Instruct", "dtype": "bfloat16", "alpha": ALPHA, "power": POWER, "looks": LOOKS,
        "hash": suite.hash,
    }  # fmt: skip
    content = {"conditions": conditions, "capabilities": {name: dataclasses.asdict(row) for name, row in rows.items()}}
    (FOLDER / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = DOCS.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOCS.write_text(f"{before}{BEGIN}\n{table(suite, rows)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
