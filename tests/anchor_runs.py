"""Anchored runs of a tiny model beside a plain loop over the same batches; also run by torchrun, for two processes.

torchrun --nproc_per_node 2 anchor_runs.py FOLDER
"""

from __future__ import annotations

import copy
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn import functional
from transformers import TrainerCallback

from backslide.cure.anchor import Anchor
from backslide.cure.anchor_rows import AnchorRows
from backslide.testing import tiny_model
from guard_runs import collate, make

ROWS = [{"text": f"old text {'and more of it ' * (i % 3)}{i}"} for i in range(7)]
SIZE = 2
"""Rows of a micro-batch of the anchor."""
WEIGHT = 0.7


def quiet(_: str) -> None:
    """Say nothing."""


def new_model(method: str, **lora: Any) -> Any:
    model = tiny_model()
    if method == "full":
        return model
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], **lora)
        return get_peft_model(model, config)


class Recorder(TrainerCallback):
    """Weights and gradients of the second optimizer step, and the batches that it was given."""

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}
        self.gradients: dict[str, Any] = {}
        self.batches: list[Any] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 1:
            self.weights = copy.deepcopy(model.state_dict())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 1:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    def collate(self, batch: list[Any]) -> Any:
        self.batches.append([row["input_ids"] for row in batch])
        return collate(batch)


def recorded(
    folder: Path, method: str, accumulation: int, weight: float = WEIGHT, **more: Any
) -> tuple[Recorder, Anchor]:
    """Two optimizer steps, anchored."""
    recorder = Recorder()
    settings: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", "optim": "sgd", "max_grad_norm": 0.0, **more}
    trainer = make(
        folder, None, recorder, model=new_model(method), gradient_accumulation_steps=accumulation,
        **{"learning_rate": 0.05 if method == "full" else 2.0, **settings},
    )  # fmt: skip
    trainer.data_collator = recorder.collate
    anchor = Anchor(ROWS, weight, batch_size=SIZE, top=261, folder=folder / "anchor", say=quiet).attach(trainer)
    trainer.train()
    return recorder, anchor


def taken(count: int, number: int, size: int = SIZE, seed: int = 0) -> list[int]:
    """The rows of a batch, written out: passes over all rows, each in a seeded order."""
    import numpy as np

    stream: list[int] = []
    while len(stream) < (number + 1) * size:
        stream += np.random.default_rng([seed, len(stream) // count]).permutation(count).tolist()
    return stream[number * size : (number + 1) * size]


def plain_kl(student: Any, base: Any, rows: AnchorRows, numbers: list[int]) -> Any:
    """Mean KL over all places of some rows, each run by itself."""
    found = []
    for number in numbers:
        tokens = torch.tensor([rows.rows[number].tokens])
        places = list(rows.rows[number].places)
        with torch.no_grad():
            p = base(tokens).log_softmax(-1)[0, places]
        q = student(tokens).log_softmax(-1)[0, places]
        found.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(found).mean()


def plain_gradients(
    method: str,
    recorder: Recorder,
    rows: AnchorRows,
    batches: list[list[Any]],
    anchored: list[int],
    weight: float = WEIGHT,
) -> dict[str, Any]:
    """The gradient of mean task loss + weight · mean KL over micro-batches, by autograd on whole logits.

    Args:
        method: `full` or `lora`.
        recorder: what the weights were.
        rows: the anchor's.
        batches: token ids of each micro-batch of the task.
        anchored: numbers of the anchor's batches.
        weight: of the anchor.
    """
    model = new_model(method)
    base = copy.deepcopy(model)
    model.load_state_dict(recorder.weights)

    def student(tokens: Any) -> Any:
        return model(input_ids=tokens).logits

    def original(tokens: Any) -> Any:
        if method == "full":
            return base(input_ids=tokens).logits
        with base.disable_adapter():
            return base(input_ids=tokens).logits

    loss = torch.zeros(())
    for batch in batches:
        tokens = torch.tensor(batch)
        logits = student(tokens)[:, :-1]
        loss = loss + functional.cross_entropy(logits.reshape(-1, 261), tokens[:, 1:].reshape(-1)) / len(batches)
    for number in anchored:
        loss = loss + weight * plain_kl(student, original, rows, taken(len(rows.rows), number)) / len(anchored)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference between two gradients, as a share of the largest value."""
    assert one.keys() == other.keys() and one
    largest = max(float(g.abs().max()) for g in other.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank, size = distributed.get_rank(), distributed.get_world_size()
    gaps = {}
    for method, accumulation in (("lora", 1), ("full", 2)):
        recorder, anchor = recorded(folder, method, accumulation, ddp_find_unused_parameters=False)
        gathered: list[Any] = [None] * size
        distributed.all_gather_object(gathered, recorder.batches[accumulation : 2 * accumulation])
        assert anchor.rows is not None
        every = [batch for batches in gathered for batch in batches]
        numbers = list(range(accumulation * size, 2 * accumulation * size))
        plain = plain_gradients(method, recorder, anchor.rows, every, numbers)
        gaps[f"{method} {accumulation}"] = difference(recorder.gradients, plain)
    if rank == 0:
        (folder / "gaps.json").write_text(json.dumps(gaps))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
