"""Snapshots and interventions in real training runs, and snapshots on disks that fail."""

from __future__ import annotations

import copy
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from trl import SFTConfig, SFTTrainer

import backslide
from backslide.errors import RunError
from backslide.guard.intervene import cut_rate, go_back, rates
from backslide.guard.snapshot import FILE, Snapshot
from backslide.testing import tiny_model, tiny_tokenizer

RATE, STEPS = 1e-3, 10
ARGS: dict[str, Any] = {
    "max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": RATE, "logging_steps": 1, "warmup_steps": 2,
    "report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "bf16": False,
    "save_strategy": "no",
}  # fmt: skip
SCHEDULES = {
    "linear": lambda t: t / 2 if t < 2 else (STEPS - t) / (STEPS - 2),
    "cosine": lambda t: t / 2 if t < 2 else 0.5 * (1 + math.cos(math.pi * (t - 2) / (STEPS - 2))),
    "constant_with_warmup": lambda t: min(1.0, t / 2),
}
"""Share of the peak rate at optimizer step t, counted from 0, as transformers documents it; warm-up of two steps."""


def moments(optimizer: Any) -> list[Any]:
    """Every parameter's state, copied."""
    params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [{key: value.clone() for key, value in optimizer.state.get(p, {}).items()} for p in params]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b)


class Acts(TrainerCallback):
    """Takes, goes back and cuts at given steps, and notes the rate of every step."""

    def __init__(
        self, snapshot: Snapshot, *, take: tuple[int, ...] = (), back: tuple[int, ...] = (), cut: tuple[int, ...] = ()
    ) -> None:
        self.snapshot, self.take, self.back, self.cut = snapshot, take, back, cut
        self.rates: list[float] = []
        self.then: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        first, *others = rates(optimizer)
        assert all(other == first for other in others)
        self.rates.append(first)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, lr_scheduler: Any = None,
        **_: Any,
    ) -> None:  # fmt: skip
        step = state.global_step
        assert type(optimizer).__name__ == "AcceleratedOptimizer"
        if step in self.take:
            self.snapshot.take(model, optimizer, lr_scheduler, step=step)
            self.then = weights(model), moments(optimizer)
        if step in self.back:
            assert not same(weights(model), self.then[0]) and not same(moments(optimizer), self.then[1])
            before = rates(optimizer)
            after = go_back(self.snapshot, model, optimizer, lr_scheduler, 0.5)
            assert after == rates(optimizer) == pytest.approx([rate * 0.5 for rate in before])
            assert same(weights(model), self.then[0]) and same(moments(optimizer), self.then[1])
            assert self.snapshot.step == self.take[-1]
        if step in self.cut:
            cut_rate(optimizer, lr_scheduler, 0.5)


class Recorded(Trainer):
    """Notes what every step saw and what it lost."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[dict[str, Any], Any]] = []
        self.losses: list[float] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if return_outputs:  # an evaluation
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.seen.append((copy.deepcopy(inputs), num_items_in_batch))
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.losses.append(loss.item())
        return loss


def trainer(folder: Path, *callbacks: Any, dropout: float = 0.0, **more: Any) -> Recorded:
    set_seed(1)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    rows = [tokenizer(f"example {i} of some text").input_ids[:18] for i in range(12)]

    def collate(batch: list[Any]) -> dict[str, torch.Tensor]:
        tokens = torch.tensor([row["input_ids"] for row in batch])
        return {"input_ids": tokens, "labels": tokens}

    args = TrainingArguments(str(folder), **{**ARGS, "weight_decay": 0.1, "optim": "adamw_torch", **more})
    data = [{"input_ids": row} for row in rows]
    return Recorded(
        model, args, train_dataset=data, eval_dataset=data, data_collator=collate, callbacks=[*callbacks]
    )  # fmt: skip


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_going_back_is_what_a_loop_by_hand_would_do(tmp_path: Path, schedule: str, on_disk: bool) -> None:
    acts = Acts(Snapshot(tmp_path / "s" if on_disk else None), take=(3,), back=(6,))
    run = trainer(tmp_path / "run", acts, lr_scheduler_type=schedule)
    run.train()

    model = tiny_model().train()
    decayed = [value for name, value in model.named_parameters() if "norm" not in name]
    others = [value for name, value in model.named_parameters() if "norm" in name]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])
    wanted, losses, then = [], [], None
    for step, (inputs, items) in enumerate(run.seen):
        wanted.append(RATE * SCHEDULES[schedule](step) * (0.5 if step >= 6 else 1.0))
        for group in optimizer.param_groups:
            # The very number of the run, so that weights can be compared bit for bit.
            group["lr"] = acts.rates[step]
        loss = model(**inputs, num_items_in_batch=items).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step + 1 == 3:
            then = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        if step + 1 == 6:
            model.load_state_dict(then[0])
            optimizer.load_state_dict(then[1])
    assert acts.rates == pytest.approx(wanted, rel=1e-12, abs=1e-18)
    assert run.losses == losses and len(losses) == STEPS
    assert same(weights(run.model), weights(model)) and same(moments(run.optimizer), moments(optimizer))
    logged = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx(acts.rates), "the trainer logs the rate that it used"


def test_going_back_twice_cuts_twice_and_memory_and_disk_agree(tmp_path: Path) -> None:
    ends = []
    for folder in (None, tmp_path / "s"):
        acts = Acts(Snapshot(folder), take=(2, 3), back=(5, 7), cut=(8,))
        run = trainer(tmp_path / "run", acts, lr_scheduler_type="cosine", dropout=0.2)
        run.train()
        cuts = [1.0] * 5 + [0.5] * 2 + [0.25] + [0.125] * 2
        wanted = [RATE * SCHEDULES["cosine"](t) * cut for t, cut in enumerate(cuts)]
        assert acts.rates == pytest.approx(wanted, rel=1e-12, abs=1e-18)
        ends.append((run.losses, weights(run.model), moments(run.optimizer)))
    assert ends[0][0] == ends[1][0] and same(ends[0][1], ends[1][1]) and same(ends[0][2], ends[1][2])


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_in_which_snapshots_are_taken_is_the_same_bit_for_bit(tmp_path: Path, bf16: bool) -> None:
    ends = []
    every = tuple(range(1, STEPS + 1))
    for callbacks in ([], [Acts(Snapshot(), take=every)], [Acts(Snapshot(tmp_path / "s"), take=every)]):
        run = trainer(tmp_path / "run", *callbacks, dropout=0.3, bf16=bf16)
        run.train()
        ends.append((run.losses, weights(run.model), moments(run.optimizer), torch.get_rng_state()))
    for end in ends[1:]:
        assert end[0] == ends[0][0] and all(same(a, b) for a, b in zip(end[1:], ends[0][1:], strict=True))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "reduce_lr_on_plateau"])
def test_a_run_that_is_resumed_keeps_the_cut(tmp_path: Path, schedule: str) -> None:
    more: dict[str, Any] = {"lr_scheduler_type": schedule, "save_strategy": "steps", "save_steps": 6}
    if schedule == "reduce_lr_on_plateau":
        more |= {"warmup_steps": 0, "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
        # Nothing is good enough, so that the rate falls at every second look.
        more["lr_scheduler_kwargs"] = {"patience": 0, "threshold": 0.9, "min_lr": 1e-4}
    whole = Acts(Snapshot(), take=(2,), back=(4,), cut=(5,))
    run = trainer(tmp_path, whole, dropout=0.2, **more)
    run.train()
    rest = Acts(Snapshot())
    again = trainer(tmp_path, rest, dropout=0.2, **more)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert rest.rates == whole.rates[6:] and same(weights(again.model), weights(run.model))
    if schedule in SCHEDULES:
        wanted = [RATE * SCHEDULES[schedule](t) * 0.25 for t in range(6, STEPS)]
        assert rest.rates == pytest.approx(wanted, rel=1e-12, abs=1e-18)
    else:
        assert rest.rates[0] < RATE / 8 and min(rest.rates) == pytest.approx(1e-4 / 4), "the floor is cut as well"


@pytest.mark.parametrize("peft", [None, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.2)])
def test_sft_goes_back_with_and_without_an_adapter(tmp_path: Path, peft: Any) -> None:
    data = Dataset.from_list([{"text": f"Customer: question {i}? Agent: answer {i}."} for i in range(16)])
    ends = []
    for folder in (None, tmp_path / "s"):
        acts = Acts(Snapshot(folder), take=(3,), back=(6, 8))
        args = SFTConfig(str(tmp_path), **{**ARGS, "max_length": 64, "gradient_accumulation_steps": 2, "max_steps": 10})
        run = SFTTrainer(
            tiny_model(), args=args, train_dataset=data, processing_class=tiny_tokenizer(), peft_config=peft,
            callbacks=[acts],
        )  # fmt: skip
        run.train()
        cuts = [1.0] * 6 + [0.5] * 2 + [0.25] * 2
        wanted = [RATE * SCHEDULES["linear"](t) * cut for t, cut in enumerate(cuts)]
        assert acts.rates == pytest.approx(wanted, rel=1e-12, abs=1e-18)
        trained = [name for name, value in run.model.named_parameters() if value.requires_grad]
        assert acts.snapshot.names == trained and all(("lora" in name) == bool(peft) for name in trained)
        of_optimizer = sum(value.nbytes for state in moments(run.optimizer) for value in state.values())
        of_model = sum(run.model.get_parameter(name).nbytes for name in trained)
        assert acts.snapshot.nbytes == of_model + of_optimizer
        ends.append(weights(run.model))
    assert same(*ends)


WRITER = """
import sys
import torch
from backslide.guard.snapshot import Snapshot
snapshot = Snapshot(sys.argv[1])
model = torch.nn.Linear(2000, 2000)
for step in range(1, 10_000):
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(step)
    snapshot.take(model, step=step)
    print(step, flush=True)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_snapshot(tmp_path: Path) -> None:
    # This checkout, whatever else is installed; the tests run in a folder of their own.
    env = {**os.environ, "PYTHONPATH": str(Path(backslide.__file__).parents[1])}
    interrupted = 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as writer:
            assert writer.stdout is not None
            first = int(writer.stdout.readline())
            deadline = time.monotonic() + 60
            # Until the next one is half written.
            while time.monotonic() < deadline:
                if any(path.stat().st_size > 1_000_000 for path in _there(tmp_path.glob(f".{FILE}.*"))):
                    break
            writer.kill()
            said = max([first, *(int(line) for line in writer.stdout.read().split())])
        interrupted += len(list(tmp_path.glob(f".{FILE}.*")))
        left = Snapshot.load(tmp_path)
        assert left.step in (said, said + 1), "what was said to be written is written"
        model = torch.nn.Linear(2000, 2000)
        left.restore(model)
        assert all(bool((value == left.step).all()) for value in model.parameters())
    assert interrupted, "no write was interrupted, so nothing was shown"
    Snapshot(tmp_path).take(model, step=0)
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "what the killed process left is cleared away"


def _there(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.exists()]


def test_a_disk_that_takes_no_more_is_one_line_and_keeps_the_snapshot_before(tmp_path: Path) -> None:
    model = torch.nn.Linear(400, 400)
    snapshot = Snapshot(tmp_path / "s")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # The system refuses to let a file grow beyond this, as it does on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(
            RunError, match=r"snapshot of step 1 \(0.6 MiB\) cannot be written: .*; there is none before"
        ):
            snapshot.take(model, step=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert snapshot.step is None and not list((tmp_path / "s").iterdir())
        snapshot.take(model, step=2)
        held = weights(model)
        with torch.no_grad():
            model.weight.add_(1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(RunError, match=r"cannot be written: .*; that of step 2 is kept; make room, or") as full:
            snapshot.take(model, step=3)
        assert "\n" not in str(full.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for kept in (snapshot, Snapshot.load(tmp_path / "s")):
        assert kept.step == 2
        with torch.no_grad():
            model.weight.add_(1.0)
        kept.restore(model)
        assert same(weights(model), held)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot be written: "):
        Snapshot(tmp_path / "file").take(model, step=4)
