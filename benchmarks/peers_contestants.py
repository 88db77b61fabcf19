"""The contestants of `peers.py`: each is a function (case, folder, seed), run in a process and, where it needs other
people's packages, in an environment of its own.

A contestant leaves `model/` in its folder, a model or adapter that loads with `from_pretrained`; `before/`, the same
before its cure, where it has such a state; and gives back what it says of itself. One that fails leaves the error and
the stage that it had come to. Other people's code is called, never changed; where a call had to differ from their
README's, the contestant says how and why.

    python benchmarks/peers_contestants.py NAME --case FOLDER --out FOLDER --seed N --limit SECONDS
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers_own as own
from peers_case import ALPHA, BATCH, BUILTIN, LENGTH, PLAIN, RANK, RATE, Case, OutOfTimeError, stage, trainer_of

# avr-cl: "Anchor, Verify, Repair".


def avr_run(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """Its README's option 1, the full loop.

    An example of it is one question and one answer, so a dialogue is cut down to its first two turns. It has neither a
    number of steps nor an argument for where to put the model.
    """
    import avr

    pairs = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in case.rows()]
    examples = [(question, answer, answer) for question, answer in pairs]
    try:
        stage.name = "avr.run(model=…, tasks=[…], lora_rank=128), as the README has it"
        avr.run(model=str(case.base), tasks=[("dialogues", examples, examples[:4])], lora_rank=128)
        said = "runs"
    except (AssertionError, RuntimeError) as bad:
        said = f"{type(bad).__name__}: {bad}"
    stage.name = "avr.run(…, device='cpu'), on the first 8 rows"
    task = ("dialogues", examples[:8], examples[:2])
    result = avr.run(
        model=str(case.base), tasks=[task], lora_rank=RANK, lora_alpha=ALPHA, epochs=1, lr=RATE, grad_accum=1,
        ctx_len=LENGTH, device="cpu", seed=seed,
    )  # fmt: skip
    raise RuntimeError(
        f"without a device: {said}; with device='cpu' avr.run ends, having made {result['repairs']} repairs (the first "
        f"task is never verified, so a base's abilities count for nothing), deletes the model and gives back "
        f"{', '.join(result)} alone: there is no model to score"
    )


def avr_layer(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """Its README's option 2, the layer: the plain run, then its check and its repair, as `avr.run` repeats them.

    The prior task that it wants the user to have is the rehearsal file. The README's calls lack `device`, whose default
    is "cuda": here it is given.
    """
    return _avr_layer(case, folder, seed, replies=False)


def avr_replies(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """The same with a check of its user's own, for which the README has a place: the perplexity of the replies alone.

    `avr.eval_ppls` counts all tokens of the chat template. SmolLM2's puts one system message before each dialogue, and
    whoever trains on dialogues learns that by heart, which hides what is lost in the replies.
    """
    return _avr_layer(case, folder, seed, replies=True)


def _avr_layer(case: Case, folder: Path, seed: int, *, replies: bool) -> dict[str, Any]:
    import avr

    trainer = trainer_of(case, folder, seed)
    model, tokenizer = trainer.model, trainer.processing_class
    examples = [(row["messages"][0]["content"], row["messages"][1]["content"], "") for row in case.rehearsal()]
    prior = {"before": {"train": examples}}

    def perplexity() -> dict[str, float]:
        if replies:
            return {"before": _perplexity_of_replies(model, tokenizer, case.rehearsal())}
        return dict(avr.eval_ppls(model, tokenizer, prior, ["before"], 1, "cpu"))

    stage.name = "avr.get_lora_state and the perplexity before training"
    snapshot, best = avr.get_lora_state(model), perplexity()
    stage.name = "training"
    trainer.train()
    model.save_pretrained(folder / "before")
    now, repairs = perplexity(), 0
    seen = [best["before"], now["before"]]
    while repairs < 10 and avr.check_drift(now, best, ["before"], 1.15):
        stage.name = f"avr.repair, time {repairs + 1}"
        avr.repair(model, snapshot, alpha=0.1, device="cpu")
        repairs += 1
        now = perplexity()
        seen.append(now["before"])
    model.save_pretrained(folder / "model")
    return {
        "settings": {**PLAIN, "threshold": 1.15, "alpha": 0.1, "most repairs": 10},
        "repairs": repairs,
        "resolved": not avr.check_drift(now, best, ["before"], 1.15),
        f"perplexity of the {'replies' if replies else 'rehearsal'}": [round(value, 4) for value in seen],
    }


def _perplexity_of_replies(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Over the tokens of the assistant's messages and what ends them."""
    import torch

    model.eval()
    total, count = 0.0, 0
    for row in rows:
        ids = tokenizer.apply_chat_template(row["messages"], return_tensors="pt", return_dict=True)["input_ids"]
        asked = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, return_dict=True)
        first = len(asked["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, first - 1 : -1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, first:], reduction="sum"))
        count += ids.shape[1] - first
    model.train()
    return math.exp(total / count)


# pyrecall: snapshot, learn, check, rollback; replay.


def pyrecall(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """Its README's quickstart, at this case's rate, rank, batch, length and epoch."""
    return _pyrecall(case, folder, seed, replies=True)


def pyrecall_scores(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """The same, without the reply of up to 200 tokens to each prompt of its check.

    They are kept for reading and enter no score, so its decisions are those of the quickstart.
    """
    return _pyrecall(case, folder, seed, replies=False)


def pyrecall_replay(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """Its replay, which in a first fine-tune has nothing to replay: the buffer holds what `learn` was given before.

    So the rehearsal file is put into it by hand (`ReplayBuffer.add`), at its own ratio of 0.3; the new rows are fewer,
    so that the steps are as many. What it would decide is noted, and nothing is rolled back.
    """
    return _pyrecall(case, folder, seed, replies=False, replay=True)


def _pyrecall(case: Case, folder: Path, seed: int, *, replies: bool, replay: bool = False) -> dict[str, Any]:
    import torch
    from pyrecall import Model

    class Watched(Model):  # type: ignore[misc]
        """Notes how far its check is; without `replies` an empty one is given at once."""

        doing, count = "", 0

        def generate(self, prompt: str, max_new_tokens: int = 200) -> str:
            self.count += 1
            stage.name = f"{self.doing}, reply {self.count} of 90"
            return str(super().generate(prompt, max_new_tokens)) if replies else ""

        def now(self, doing: str) -> None:
            stage.name, self.doing, self.count = doing, doing, 0

    # The name decides which layers its LoRA adapts, and it is searched as a whole: a folder such as /home/sophie would
    # be taken for a Phi. A link beside the run gives it the model's name and nothing else.
    os.chdir(folder)
    Path(BUILTIN).symlink_to(case.base, target_is_directory=True)
    torch.manual_seed(seed)
    random.seed(seed)
    model = Watched(BUILTIN, lora_r=RANK, lora_alpha=ALPHA, learning_rate=RATE, batch_size=BATCH, device="cpu")
    rows, replayed = case.rows(), 0
    if replay:
        assert model.replay_buffer is not None
        texts = [model.tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in case.rehearsal()]
        model.replay_buffer.add(texts)
        # As `learn` counts them; the sum is nearest to the budget from below.
        new = max(n for n in range(1, len(rows) + 1) if n + min(len(texts), int(0.3 * n)) <= len(rows))
        rows, replayed = rows[:new], min(len(texts), int(0.3 * new))
    data = Path("data.jsonl")
    data.write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows), "utf-8")
    model.now("model.snapshot('before')")
    model.snapshot("before")
    model.now("model.learn('data.jsonl', epochs=1)")
    model.learn(str(data), epochs=1, max_length=LENGTH)
    model.model.save_pretrained("before")
    model.now("model.check()")
    report = model.check()
    if not report.is_healthy and not replay:
        model.now("model.rollback(to='before')")
        model.rollback(to="before")
    model.model.save_pretrained("model")
    config = model.model.peft_config["default"]
    return {
        "settings": {"trainer": "its own", "targets": sorted(config.target_modules), "schedule": "linear",
                     "dtype": "float32", "dropout": config.lora_dropout, "threshold": 0.1},
        "rows": {"new": len(rows), "replayed": replayed},
        "healthy": bool(report.is_healthy),
        "rolled back": not report.is_healthy and not replay,
        "its scores": {c.category: [round(c.score_before, 4), round(c.score_after, 4)] for c in report.comparisons},
        "pad token": model.tokenizer.pad_token,
    }  # fmt: skip


CONTESTANTS: dict[str, tuple[Callable[[Case, Path, int], dict[str, Any]], str | None]] = {
    "plain": (own.plain, None),
    "repair": (own.repair, None),
    "replay": (own.replay, None),
    "anchor": (own.anchor, None),
    "auto": (own.auto, None),
    "avr-run": (avr_run, "avr-cl"),
    "avr-layer": (avr_layer, "avr-cl"),
    "avr-replies": (avr_replies, "avr-cl"),
    "pyrecall": (pyrecall, "pyrecall"),
    "pyrecall-scores": (pyrecall_scores, "pyrecall"),
    "pyrecall-replay": (pyrecall_replay, "pyrecall"),
}
"""Name: (function, the package that it is about; None: it runs in this project's own environment)."""
FIRST_SEED_ALONE = {
    "pyrecall": "its snapshot and its check write 90 replies each, which is more than the limit pays for"
}
"""Contestants that run for seed 0 alone, and why."""


def _out_of_time(*_: object) -> None:
    raise OutOfTimeError("the limit of CPU time")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--case", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True, help="seconds of CPU time")
    options = parser.parse_args()
    # CPU time, not the clock's: a machine that has other things to do gives the same result.
    signal.signal(signal.SIGXCPU, _out_of_time)
    resource.setrlimit(resource.RLIMIT_CPU, (options.limit, options.limit + 30))
    begin = time.perf_counter()
    try:
        said = CONTESTANTS[options.name][0](Case(options.case), options.out, options.seed)
    except (Exception, OutOfTimeError) as bad:
        traceback.print_exc()
        where = traceback.extract_tb(bad.__traceback__)[-1]
        error = f"{type(bad).__name__}: {' '.join(str(bad).split())}"
        said = {
            "failed": {"stage": stage.name, "error": error[:600], "at": f"{Path(where.filename).name}:{where.name}"}
        }
    used = resource.getrusage(resource.RUSAGE_SELF)
    said |= {
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu seconds": round(used.ru_utime + used.ru_stime, 1),
    }
    (options.out / "said.json").write_text(json.dumps(said), "utf-8")
    return 1 if "failed" in said else 0


if __name__ == "__main__":
    sys.exit(main())
