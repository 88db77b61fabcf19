"""Side by side with the packages on PyPI that claim a cure: what is retained, against the loss on what was learnt.

    python benchmarks/peers.py [--seeds 0,1,2] [--only pyrecall-scores] [--data ../shared/data]
    python benchmarks/peers.py table

SmolLM2-135M with LoRA on 120 real dialogues, 30 steps of 4, at a rate that clearly forgets: the same rows, steps, rate
and seed for all contestants (`peers_contestants.py`), each in a process of its own with at most 4 minutes of 2 cores as
CPU time. The peers are installed into build/peers/venv, beside nothing that they do not need. What a contestant leaves
is a model's folder, and that is loaded and scored here: by the loss on held-out dialogues and the accuracy on
`Suite.repertoire().sample(44)`. A peer's own figures are noted and not trusted. One that cannot run the case leaves its
error as its result.

A run leaves a small file in benchmarks/results/peers/; one that is there already is not made again. The plot goes to
docs/peers.svg. It and the verdicts rest on the gate half, by which nobody chose anything: the monitor half steers the
contestants `repair` and `auto`. What certifies a repair, or judges a guarded run at its end, does open the gate half,
and can refuse the point that was chosen, not choose another.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peers_case import BATCH, BUILTIN, EACH, LENGTH, RATE, STEPS
from peers_contestants import CONTESTANTS, FIRST_SEED_ALONE
from scatter import Group, scatter

from backslide.files import read_json, read_lines, write_json, write_lines, write_text
from backslide.judge import judge
from backslide.models import cache_folder, load_model, resolve
from backslide.record import Record
from backslide.scoring.engine import Scorer
from backslide.suite.suite import Suite, half_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS, BUILD, PLOT = HERE / "results" / "peers", ROOT / "build" / "peers", ROOT / "docs" / "peers.svg"
PEERS = ("pyrecall==0.12.1", "avr-cl==0.1.0")
BESIDE = ("trl", "scipy")
"""What the plain run needs in the peers' environment: TRL trains it, scipy is imported on the way."""
HELD_OUT, VALIDATION = 60, 20
"""Dialogues that nobody trains on: those that score all, and those that a cure may choose by."""
PROMPTS, REPLY = 120, 128
"""Prompts that the base replies to for the rehearsal file, and tokens of a reply: longer ones are left out."""
LIMIT = 480
"""Seconds of CPU time: 4 minutes of 2 cores."""
HALVES = ("all", "monitor", "gate")


# What all are given.


def environment() -> Path:
    """The Python of the peers' environment, made where it is not there yet or holds other versions."""
    folder, stamp = BUILD / "venv", BUILD / "installed"
    python = folder / "bin" / "python"
    wanted = "\n".join((*PEERS, *BESIDE, (ROOT / "constraints.txt").read_text("utf-8")))
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return python
    print(f"installing {' and '.join(PEERS)} into {folder}", flush=True)
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, *PEERS, *BESIDE], check=True)
    write_text(stamp, wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """Of what decides a figure, in that environment."""
    names = [*(peer.partition("==")[0] for peer in PEERS), "torch", "transformers", "peft", "trl"]
    code = f"import json; from importlib import metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    return dict(json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout))


def case(data: Path, seed: int) -> Path:
    """A folder with the base's place and the seed's rows; the held-out dialogues are beside it, the same for all."""
    rows = [row for _, row in read_lines(data / "dialogues" / "taskmaster4.jsonl")]
    random.Random(0).shuffle(rows)
    write_lines(BUILD / "held_out.jsonl", rows[:HELD_OUT])
    folder = BUILD / f"case-{seed}"
    write_lines(folder / "validation.jsonl", rows[HELD_OUT : HELD_OUT + VALIDATION])
    rows = rows[HELD_OUT + VALIDATION :]
    random.Random(seed).shuffle(rows)
    write_lines(folder / "dialogues" / "taskmaster4.jsonl", rows[: STEPS * BATCH])
    write_text(folder / "base.txt", resolve(BUILTIN, print))
    return folder


def rehearse(prompts: Path) -> None:
    """The base's own replies to some of the prompts, once: greedy, and only those that came to an end."""
    path = BUILD / "rehearsal.jsonl"
    if path.exists():
        return
    asked = [row["prompt"] for _, row in read_lines(prompts)]
    asked = random.Random(0).sample(asked, PROMPTS)
    loaded = load_model(BUILTIN, dtype="bfloat16")
    tokenizer, rows = loaded.tokenizer, []
    tokenizer.padding_side = "left"
    for start in range(0, PROMPTS, 20):
        chats = [[{"role": "user", "content": prompt}] for prompt in asked[start : start + 20]]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = loaded.model.generate(**batch, max_new_tokens=REPLY, do_sample=False)
        for chat, tokens in zip(chats, out[:, batch["input_ids"].shape[1] :], strict=True):
            if tokenizer.eos_token_id in tokens:
                reply = tokenizer.decode(tokens, skip_special_tokens=True).strip()
                rows.append({"messages": [*chat, {"role": "assistant", "content": reply}]})
    write_lines(path, rows)


# How a model is measured.


class Ruler:
    """Scores model folders, all in bf16, against the base."""

    def __init__(self) -> None:
        self.suite = Suite.repertoire().sample(EACH)
        self.half = {item.id: half_of(item) for item in self.suite.items}
        self.base: Record | None = None

    def kept(self, folder: Path) -> dict[str, Any]:
        """What `measure` gives of an adapter's folder; equal adapters are measured once, since some change nothing."""
        config = read_json(folder / "adapter_config.json")
        config["target_modules"] = sorted(config["target_modules"])  # a set, written in any order
        digest = hashlib.sha256(json.dumps([config, self.suite.hash], sort_keys=True).encode())
        for path in (folder / "adapter_model.safetensors", BUILD / "held_out.jsonl"):
            digest.update(path.read_bytes())
        path = BUILD / "measured" / f"{digest.hexdigest()[:16]}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_json(path, self.measure(folder))
        return dict(read_json(path))

    def measure(self, source: str | Path) -> dict[str, Any]:
        """Accuracy by half and capability, items lost and won, the verdict of the gate half, and the target's loss."""
        loaded = load_model(source, dtype="bfloat16")
        scorer = Scorer(self.suite, loaded.model, loaded.tokenizer)
        path = BUILD / f"base-{self.suite.hash[:12]}.jsonl"
        if source == BUILTIN:
            record = scorer.baseline(loaded.model, replies=False)
            record.save(path)
        else:
            record = scorer.measure(loaded.model, replies=False)
        base = self.base = self.base or Record.load(path)
        judged = [o for o in record.outcomes if o.correct is not None]
        before = [bool(base.by_id[o.id].correct) for o in judged]
        pairs = list(zip(judged, before, strict=True))
        verdict = judge(self._gate(base), self._gate(record))
        return {
            "target loss": round(held_out_loss(loaded.model, loaded.tokenizer), 4),
            "items": {half: len(self._of(judged, half)) for half in HALVES},
            "accuracy": {half: _mean(o.correct for o in self._of(judged, half)) for half in HALVES},
            "lost": {half: sum(w and not o.correct for o, w in pairs if self._in(o.id, half)) for half in HALVES},
            "won": {half: sum(not w and bool(o.correct) for o, w in pairs if self._in(o.id, half)) for half in HALVES},
            "capabilities": {
                name: _mean(own) for name in self.suite.capabilities
                if (own := [o.correct for o in judged if o.capability == name])
            },
            "verdict": {"zone": verdict.zone.value, "reason": verdict.reasons[0]},
        }  # fmt: skip

    def _in(self, id: str, half: str) -> bool:
        return half in ("all", self.half[id])

    def _of(self, outcomes: Iterable[Any], half: str) -> list[Any]:
        return [o for o in outcomes if self._in(o.id, half)]

    def _gate(self, record: Record) -> Record:
        header = dataclasses.replace(record.header, part="gate")
        return Record(header, tuple(self._of(record.outcomes, "gate")))


def held_out_loss(model: Any, tokenizer: Any) -> float:
    """Mean nats a token over the held-out dialogues, each in the chat template and cut at LENGTH, one at a time."""
    total, count = 0.0, 0
    for _, row in read_lines(BUILD / "held_out.jsonl"):
        ids = tokenizer.apply_chat_template(row["messages"], return_tensors="pt", return_dict=True)["input_ids"]
        ids = ids[:, :LENGTH].to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total / count


# One run after the other.


def run(name: str, seed: int, folder: Path, python: Path, ruler: Ruler) -> dict[str, Any]:
    """Let a contestant run, then score what it left."""
    package = CONTESTANTS[name][1]
    out = BUILD / f"{name}-{seed}"
    said_file = out / "said.json"
    if not said_file.exists():
        shutil.rmtree(out, ignore_errors=True)
        (out / "home").mkdir(parents=True)
        command = [
            str(python) if package else sys.executable, str(HERE / "peers_contestants.py"), name,
            "--case", str(folder), "--out", str(out), "--seed", str(seed), "--limit", str(LIMIT),
        ]  # fmt: skip
        # Peers write into the home folder; and the case is one for a CPU, wherever it is run.
        more = {"PYTHONPATH": str(ROOT / "src"), "BACKSLIDE_CACHE": str(cache_folder().resolve()),
                "HOME": str(out / "home"), "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
        with open(out / "log.txt", "w", encoding="utf-8") as log:
            done = subprocess.run(command, env={**os.environ, **more}, stdout=log, stderr=log, check=False)
        if not said_file.exists():
            raise SystemExit(f"{name}: ended with {done.returncode} and said nothing; see {out / 'log.txt'}")
    said = read_json(said_file)
    used = versions(python) if package else {n: metadata.version(n) for n in ("torch", "transformers", "peft", "trl")}
    result = {"contestant": name, "package": package, "seed": seed, "rate": RATE, "steps": STEPS, "versions": used}
    result["rehearsal"] = hashlib.sha256((BUILD / "rehearsal.jsonl").read_bytes()).hexdigest()[:12]
    result |= {**said, "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))}
    for state in ("before", "model"):
        if (out / state).is_dir():
            result[state] = ruler.kept(out / state)
    return result


def runs(data: Path, seeds: list[int], only: str | None, prompts: Path) -> None:
    python, ruler = environment(), Ruler()
    RESULTS.mkdir(parents=True, exist_ok=True)
    case(data, seeds[0])
    base = RESULTS / "base.json"
    if not base.exists() or not (BUILD / f"base-{ruler.suite.hash[:12]}.jsonl").exists():
        write_json(base, {"contestant": "base", "model": ruler.measure(BUILTIN)})
    rehearse(prompts)
    for seed in seeds:
        folder = case(data, seed)
        for name in CONTESTANTS:
            path = RESULTS / f"{name}-{seed}.json"
            late = name in FIRST_SEED_ALONE and seed > 0
            if path.exists() or late or (only is not None and only != name):
                continue
            found = run(name, seed, folder, python, ruler)
            write_json(path, found)
            print(f"{name}-{seed}: {_line(found)}", flush=True)


# What came of it.


def table() -> str:
    """All results as Markdown, a contestant a row, means over seeds; those that failed below."""
    base, found = read_json(RESULTS / "base.json")["model"], _stored()
    heads = ("contestant", "seeds", "target loss", "of plain's gain", "accuracy, all", "gate half", "lost/won, gate",
             "verdicts", "CPU s")  # fmt: skip
    plain = {r["seed"]: base["target loss"] - r["model"]["target loss"] for r in found.get("plain", []) if "model" in r}
    rows = []
    for name, results in {"base": [{"model": base}], **found}.items():
        for state in ("before", "model"):
            good = [r for r in results if state in r]
            if not good:
                continue
            part = {h: fmean(r[state]["accuracy"][h] for r in good) for h in HALVES}
            lost, won = (fmean(r[state][kind]["gate"] for r in good) for kind in ("lost", "won"))
            zones = [r[state]["verdict"]["zone"] for r in good]
            gains = [(base["target loss"] - r[state]["target loss"]) / plain[r["seed"]] for r in good
                     if r.get("seed") in plain]  # fmt: skip
            spent = fmean(r["cpu seconds"] for r in good) if name != "base" and state == "model" else None
            rows.append((
                name if state == "model" else f"{name}, before its cure", "" if name == "base" else str(len(good)),
                f"{fmean(r[state]['target loss'] for r in good):.3f}", f"{fmean(gains):.0%}" if gains else "",
                f"{part['all']:.1%}", f"{part['gate']:.1%}", f"{lost:.3g}/{won:.3g}",
                ", ".join(f"{zones.count(zone)} {zone}" for zone in sorted(set(zones))),
                "" if spent is None else f"{spent:.0f}",
            ))  # fmt: skip
    lines = [f"| {' | '.join(row)} |" for row in (heads, ("---", *["--:"] * 6, "---", "--:"), *rows)]
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for r in (r for results in found.values() for r in results if "failed" in r):
        alike.setdefault((r["contestant"], r["failed"]["stage"], r["failed"]["error"]), []).append(r)
    for (name, stage, error), group in alike.items():
        package = group[0]["package"]
        version = f" ({package} {group[0]['versions'][package]})" if package else ""
        seeds = ", ".join(str(r["seed"]) for r in group)
        spent = fmean(r["cpu seconds"] for r in group)
        lines.append(
            f"\n`{name}`{version}, seed {seeds}, failed at {stage}: {error} (after {spent:.0f} s of CPU time)."
        )
    for r in (r for results in found.values() for r in results if "note" in r):
        lines.append(f"\n`{r['contestant']}`, seed {r['seed']}: {r['note']}.")
    for name, why in FIRST_SEED_ALONE.items():
        if name in found and any(r["seed"] > 0 for results in found.values() for r in results):
            lines.append(f"\n`{name}` ran for seed 0 alone: {why}.")
    return "\n".join(lines)


def plot() -> str:
    """Accuracy on the gate half against target loss, an arrow from before a cure to after it."""
    base = read_json(RESULTS / "base.json")["model"]

    def spots(results: list[dict[str, Any]], state: str) -> list[tuple[float, float]]:
        return [(r[state]["target loss"], 100 * r[state]["accuracy"]["gate"]) for r in results if state in r]

    groups = [Group("base", spots([{"model": base}], "model"))]
    groups += [Group(n, spots(rs, "model"), spots(rs, "before")) for n, rs in _stored().items() if spots(rs, "model")]
    return scatter(
        groups,
        title="What is retained, against what was learnt (up and to the left is better)",
        x="loss on held-out dialogues, nats a token",
        y="right answers of the gate half, %",
        line=(100 * base["accuracy"]["gate"], "base"),
    )


def _stored() -> dict[str, list[dict[str, Any]]]:
    """Results by contestant, in the order of CONTESTANTS, other names after them."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for path in sorted(RESULTS.glob("*-*.json")):
        result = read_json(path)
        found.setdefault(result["contestant"], []).append(result)
    return {name: results for name, results in found.items() if results}


def _line(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"failed at {found['failed']['stage']}: {found['failed']['error']}"
    now = found["model"]
    accuracy = now["accuracy"]
    return f"target loss {now['target loss']:.3f}, right {accuracy['all']:.1%} (gate half {accuracy['gate']:.1%})"


def _mean(values: Iterable[Any]) -> float:
    return round(fmean(map(float, values)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="run", choices=("run", "table"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", choices=CONTESTANTS)
    parser.add_argument("--prompts", type=Path, default=ROOT / "src" / "backslide" / "cure" / "prompts.jsonl",
                        help="JSON lines with a `prompt`: the base's replies are the rehearsal file")  # fmt: skip
    options = parser.parse_args()
    if options.what == "run":
        if not (options.data / "dialogues").is_dir():
            raise SystemExit(f"{options.data}: has no dialogues; give the folder with --data")
        seeds = [int(seed) for seed in options.seeds.split(",")]
        runs(options.data, seeds, options.only, options.prompts)
    print(table())
    write_text(PLOT, plot())


if __name__ == "__main__":
    main()
