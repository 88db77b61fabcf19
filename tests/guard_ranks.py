"""Guarded runs of two processes, for the tests: run by torchrun, each process writes what it saw to FOLDER/rank-R.json.

torchrun --nproc_per_node 2 guard_ranks.py FOLDER {trainer,shares,stop,rollback,function,breaks,loop,fsdp}
"""

from __future__ import annotations

import datetime
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from backslide.guard import journal
from backslide.guard.callback import Guard
from backslide.testing import tiny_model, tiny_tokenizer
from guard_runs import SMALL, make, suite

SHARES = (["was a bright cold day.", "A latte, please."], ["A tea.", "It was a bright cold day."])
scored: list[str] = []
lines: list[str] = []


def digest(model: Any) -> str:
    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.detach().float().numpy().tobytes())
    return found.hexdigest()


def with_trainer(folder: Path, kind: str) -> dict[str, Any]:
    policy: Any = {"trainer": "warn", "shares": "warn", "breaks": "warn"}.get(kind, kind)
    train = None
    if kind == "shares":
        # Each process has rows of its own, and finds other items in them.
        train = SHARES[distributed.get_rank()]
    if kind == "function":
        # The processes disagree, and each at random; what the first one says is done.
        coin = random.Random(distributed.get_rank())
        policy = lambda verdict: coin.choice(["stop", "warn"]) if distributed.get_rank() else "warn"  # noqa: E731
    guard = Guard(suite(), every=2, settings=SMALL, cache=False, say=lines.append, on_regression=policy, train=train)
    more = {"learning_rate": 0.3} if kind in ("stop", "rollback") else {}

    class Breaks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if kind == "breaks" and state.global_step == 3 and distributed.get_rank() == 1:

                def forward(*args: Any, **more: Any) -> Any:
                    if not model.training:
                        raise ValueError("a fault of this process alone")
                    return type(model).forward(model, *args, **more)

                model.forward = forward

    trainer = make(folder, guard, Breaks(), ddp_find_unused_parameters=False, save_strategy="no", **more)
    trainer.train()
    return seen(guard, trainer.model) | {"step": trainer.state.global_step}


def with_loop(folder: Path, sharded: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model: Any = tiny_model()
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    guard = Guard(suite(), every=2, settings=SMALL, cache=False, say=lines.append, run_dir=folder / "backslide")
    guard.before_training(model, tiny_tokenizer(), steps=4, optimizer=optimizer)
    for step in range(1, 5):
        tokens = torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(step))
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        guard.after_step(step, float(loss))
    guard.finish()
    return seen(guard, model if not sharded else None) | {"step": 4}


def seen(guard: Guard, model: Any) -> dict[str, Any]:
    assert guard.verdict is not None and guard.baseline is not None
    return {
        "verdict": guard.verdict.to_dict(),
        "looks": [look.to_dict() for look in guard.looks],
        "baseline": [outcome.to_dict() for outcome in guard.baseline.outcomes],
        "scored": scored,
        "lines": lines,
        "weights": digest(model) if model is not None else "",
    }


def main() -> None:
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    # A deadlock is to end the test, not the patience.
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    keep = journal.Journal.keep

    def counting(self: Any, outcomes: Any) -> None:
        scored.extend(outcome.id for outcome in outcomes)
        keep(self, outcomes)

    journal.Journal.keep = counting  # type: ignore[method-assign]
    found = with_loop(folder, kind == "fsdp") if kind in ("loop", "fsdp") else with_trainer(folder, kind)
    rank = distributed.get_rank()
    (folder / f"rank-{rank}.json").write_text(json.dumps(found, default=str))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
