"""What a snapshot holds and gives back, bit for bit, of models and optimizers of many kinds; no trainer."""

from __future__ import annotations

import copy
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.optim import LBFGS, SGD, Adafactor, AdamW
from transformers import Adafactor as TransformersAdafactor
from transformers import get_scheduler
from transformers.optimization import AdafactorSchedule

from backslide.errors import ConfigError, RunError
from backslide.guard.pack import read, write
from backslide.guard.snapshot import FILE, Snapshot
from backslide.testing import tiny_model

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adamw": lambda p: AdamW(p, lr=0.01),
    "adamw foreach amsgrad": lambda p: AdamW(p, lr=0.01, foreach=True, amsgrad=True),
    "adamw fused": lambda p: AdamW(p, lr=0.01, fused=True),
    "adamw with a tensor as rate": lambda p: AdamW(p, lr=torch.tensor(0.01)),
    "sgd": lambda p: SGD(p, lr=0.01),
    "sgd with momentum": lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adafactor of torch": lambda p: Adafactor(p, lr=0.01),
    "adafactor of transformers": lambda p: TransformersAdafactor(p, lr=0.01, relative_step=False, beta1=0.9),
    "adafactor that makes its own rate": lambda p: TransformersAdafactor(p, warmup_init=True),
    "lbfgs": lambda p: LBFGS(p, lr=0.01, max_iter=2, history_size=3),
}


class Net(torch.nn.Module):
    """A tied weight, a running mean, a cache that is no state, and a layer that comes in late."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Linear(6, 6, bias=False, dtype=dtype)
        self.norm = torch.nn.BatchNorm1d(6, dtype=dtype)
        self.last = torch.nn.Linear(6, 6, bias=False, dtype=dtype)
        self.last.weight = self.first.weight
        self.late = torch.nn.Linear(6, 6, dtype=dtype)
        self.use_late = False
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache = torch.zeros(len(self.cache) + 1)
        x = self.last(torch.tanh(self.norm(self.first(x))))
        return self.late(x) if self.use_late else x


def step(model: Any, optimizer: Any, scheduler: Any, number: int) -> None:
    data = torch.randn(8, 6, generator=torch.Generator().manual_seed(number)).to(model.first.weight.dtype)

    @torch.enable_grad()
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(data) - data.flip(1)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    scheduler.step()


def make(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
    model = Net(dtype)
    optimizer = OPTIMIZERS[kind](model.parameters())
    own_rate = optimizer.defaults["lr"] is None
    return model, optimizer, AdafactorSchedule(optimizer) if own_rate else get_scheduler("linear", optimizer, 2, 12)


def flat(value: Any) -> Any:
    """Nested values with tensors as bytes, so that == means bit for bit."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return value.dtype, tuple(value.shape), raw
    if isinstance(value, dict):
        return {key: flat(part) for key, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, (list, tuple)) else value


def all_of(model: Any, optimizer: Any, scheduler: Any) -> Any:
    state = {name: value for name, value in model.state_dict().items()}
    return flat([state, optimizer.state_dict(), scheduler.state_dict()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_from_a_snapshot_is_the_same_bit_for_bit(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    model, optimizer, scheduler = make(kind, dtype)
    memory, disk = Snapshot(), Snapshot(tmp_path)
    for number in range(3):
        step(model, optimizer, scheduler, number)
    then = all_of(model, optimizer, scheduler)
    for snapshot in (memory, disk):
        snapshot.take(model, optimizer, scheduler, step=3)
    model.use_late = True
    trail = []
    for number in range(3, 6):
        step(model, optimizer, scheduler, number)
        trail.append(all_of(model, optimizer, scheduler))
    assert trail[0] != then
    weight = model.first.weight
    for snapshot in (memory, disk):
        snapshot.restore(model, optimizer, scheduler)
        assert all_of(model, optimizer, scheduler) == then
        assert all(parameter.grad is None for parameter in model.parameters())
        for number in range(3, 6):
            step(model, optimizer, scheduler, number)
            assert all_of(model, optimizer, scheduler) == trail[number - 3]
    assert model.first.weight is weight is model.last.weight is optimizer.param_groups[0]["params"][0]
    # In a process that has only the folder.
    again = make(kind, dtype)
    again[0].use_late = True
    Snapshot.load(tmp_path).restore(*again)
    for number in range(3, 6):
        step(*again, number)
        assert all_of(*again) == trail[number - 3]


def test_an_optimizer_that_had_made_no_step_has_no_state_again(tmp_path: Path) -> None:
    model, optimizer, scheduler = make("adamw")
    for snapshot in (Snapshot(), Snapshot(tmp_path)):
        snapshot.take(model, optimizer, step=0)
        step(model, optimizer, scheduler, 0)
        assert len(optimizer.state) > 0
        snapshot.restore(model, optimizer)
        assert len(optimizer.state) == 0 and optimizer.state_dict()["state"] == {}


def test_the_schedule_stays_where_it_is_unless_it_is_given(tmp_path: Path) -> None:
    model, optimizer, scheduler = make("adamw")
    snapshot = Snapshot()
    snapshot.take(model, optimizer, scheduler, step=0)
    for number in range(4):
        step(model, optimizer, scheduler, number)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    now = copy.deepcopy(scheduler.state_dict()), optimizer.param_groups[0]["lr"]
    snapshot.restore(model, optimizer)
    assert (scheduler.state_dict(), optimizer.param_groups[0]["lr"]) == now
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    snapshot.restore(model, optimizer, scheduler)
    assert (scheduler.last_epoch, optimizer.param_groups[0]["lr"]) == (0, 0.0)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def test_a_second_snapshot_uses_the_memory_of_the_first_and_every_byte_is_counted(tmp_path: Path) -> None:
    model, optimizer, scheduler = make("adamw")
    step(model, optimizer, scheduler, 0)
    memory, disk = Snapshot(), Snapshot(tmp_path)
    assert (memory.step, memory.nbytes, memory.names) == (None, 0, [])
    memory.take(model, optimizer, scheduler, step=1)
    places = {name: tensor.data_ptr() for name, tensor in memory._tensors.items()}
    step(model, optimizer, scheduler, 1)
    memory.take(model, optimizer, scheduler, step=2)
    assert {name: tensor.data_ptr() for name, tensor in memory._tensors.items()} == places
    # 36 of `first`, 36 + 6 of `late`, 6 + 6 of `norm`; two running statistics of 6 and a count of 8 bytes;
    # two moments and a step for each of the three that had a gradient.
    weights, buffers, moments = (36 + 36 + 6 + 12) * 4, 12 * 4 + 8, (36 + 12) * 2 * 4 + 3 * 4
    assert memory.nbytes == weights + buffers + moments == sum(t.nbytes for t in memory._tensors.values())
    assert memory.names == [
        "first.weight", "norm.weight", "norm.bias", "late.weight", "late.bias",
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    ]  # fmt: skip
    disk.take(model, optimizer, scheduler, step=2)
    held = load_file(tmp_path / FILE)
    assert disk.nbytes == memory.nbytes == sum(tensor.nbytes for tensor in held.values())
    assert not disk._tensors and flat(held) == flat(memory._tensors)
    assert all(not tensor.requires_grad and tensor.grad_fn is None for tensor in memory._tensors.values())


def test_the_file_is_laid_out_as_safetensors_lays_them_out(tmp_path: Path) -> None:
    tensors = {
        "a": torch.tensor([True, False, True]), "b": torch.tensor([1, -(2**60)]), "c": torch.tensor(0.1),
        "d": torch.ones(3, 5, dtype=torch.bfloat16).t(), "e": torch.zeros(0, 4), "f": torch.ones(2, dtype=torch.int8),
    }  # fmt: skip
    write(tmp_path / "x", {"ü": "\u2028"}, tensors)
    raw = (tmp_path / "x").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0, "every number is aligned to its width"
    assert flat(load_file(tmp_path / "x")) == flat(tensors)
    with read(tmp_path / "x") as (tree, get):
        assert tree == {"ü": "\u2028"} and flat(get("d")) == flat(tensors["d"])


def test_of_an_adapter_only_what_is_trained_is_held() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_model(), config)
    snapshot = Snapshot()
    snapshot.take(model, step=0)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert snapshot.names == list(trained) and any("modules_to_save" in name for name in trained)
    assert snapshot.nbytes == sum(value.nbytes for value in trained.values())
    before = flat(model.state_dict())
    with torch.no_grad():
        for value in trained.values():
            value.add_(1.0)
    snapshot.restore(model)
    assert flat(model.state_dict()) == before


def test_taking_draws_no_random_number_and_leaves_no_trace(tmp_path: Path) -> None:
    model, optimizer, scheduler = make("adamw")
    step(model, optimizer, scheduler, 0)
    (model(torch.ones(2, 6)).sum()).backward()
    gradient = model.first.weight.grad.clone()
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    before = all_of(model, optimizer, scheduler)
    held = {id(value) for parameter in optimizer.state.values() for value in parameter.values()}
    for snapshot in (Snapshot(), Snapshot(tmp_path)):
        snapshot.take(model, optimizer, scheduler, step=1)
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert np.random.get_state()[1].tolist() == state[2]
    assert all_of(model, optimizer, scheduler) == before and torch.equal(model.first.weight.grad, gradient)
    assert held == {id(value) for parameter in optimizer.state.values() for value in parameter.values()}
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


class Codes:
    """State as 8-bit optimizers of some makers keep it: an object with codes and a scale."""

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.codes, self.scale = codes, scale


class CodesTensor(torch.Tensor):
    """As others keep it: a tensor made of tensors, which knows no operation, not even clone()."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> CodesTensor:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, torch.Tensor], *_: Any) -> CodesTensor:
        return CodesTensor(parts["codes"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, operation: Any, *_: Any) -> Any:
        raise NotImplementedError(operation)


class EightBit(SGD):
    """Momentum of 8 bits."""

    kind: Any = Codes

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        closure and closure()
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                old = self.state[parameter].get("codes")
                moment = parameter.grad + (0.9 * old.codes * old.scale / 127 if old is not None else 0)
                scale = moment.abs().max()
                codes = torch.round(moment / (scale + 1e-12) * 127).to(torch.int8)
                self.state[parameter]["codes"] = self.kind(codes, scale)
                parameter.sub_(self.param_groups[0]["lr"] * moment)


@pytest.mark.parametrize("kind", [Codes, CodesTensor])
def test_state_that_no_file_can_hold_stays_in_memory(tmp_path: Path, kind: Any) -> None:
    model = Net()
    optimizer = EightBit(model.parameters(), lr=0.01)
    optimizer.kind = kind
    scheduler = get_scheduler("constant", optimizer)
    step(model, optimizer, scheduler, 0)
    for snapshot in (Snapshot(), Snapshot(tmp_path)):
        snapshot.take(model, optimizer, step=1)
        weights, codes = flat(model.state_dict()), optimizer.state[model.first.weight]["codes"]
        held = codes.codes.clone(), float(codes.scale)
        step(model, optimizer, scheduler, 1)
        for _ in range(2):
            snapshot.restore(model, optimizer)
            back = optimizer.state[model.first.weight]["codes"]
            assert type(back) is kind and back is not codes
            assert torch.equal(back.codes, held[0]) and float(back.scale) == held[1]
            assert flat(model.state_dict()) == weights
            back.codes.zero_()  # the snapshot must not feel it
        snapshot.restore(model, optimizer)
    later = Snapshot.load(tmp_path)
    step(model, optimizer, scheduler, 2)
    before = flat(model.state_dict())
    with pytest.raises(RunError, match=rf"optimizer/0/codes was a {kind.__name__}, which cannot be written to a file"):
        later.restore(model, optimizer)
    assert flat(model.state_dict()) == before
    later.restore(model)
    assert flat(model.state_dict()) == weights


def test_state_that_cannot_be_copied_is_named() -> None:
    model, optimizer, _ = make("sgd")
    optimizer.state[model.first.weight]["lock"] = threading.Lock()
    with pytest.raises(ConfigError, match="optimizer/0/lock is a lock, of which no copy can be made"):
        Snapshot().take(model, optimizer, step=0)


@pytest.mark.parametrize("wrapped", [False, True], ids=["given", "of accelerate's wrapper"])
def test_a_gradient_scaler_goes_back_too(tmp_path: Path, wrapped: bool) -> None:
    model, optimizer, _ = make("sgd")
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    given: dict[str, Any] = {"optimizer": optimizer, "scaler": scaler}
    if wrapped:
        Accelerator(cpu=True)  # without one there are no wrappers
        given = {"optimizer": AcceleratedOptimizer(optimizer, scaler=scaler)}
    for snapshot in (Snapshot(), Snapshot(tmp_path)):
        snapshot.take(model, **given, step=0)
        then = scaler.state_dict()
        scaler.scale(model(torch.ones(2, 6)).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 2 * then["scale"]
        snapshot.restore(model, **given)
        assert scaler.state_dict() == then


def test_a_compiled_model_is_the_model_inside() -> None:
    model = Net()
    snapshot = Snapshot()
    snapshot.take(torch.compile(model), step=0)
    assert snapshot.names[0] == "first.weight"
    with torch.no_grad():
        model.first.weight.zero_()
    snapshot.restore(model)
    assert flat(model.state_dict()) == flat(Net().state_dict())


def test_a_loss_with_parameters_of_its_own_is_held() -> None:
    model, weight = Net(), torch.nn.Parameter(torch.ones(3))
    optimizer = SGD([*model.parameters(), weight], lr=0.1)
    snapshot = Snapshot()
    snapshot.take(model, optimizer, step=0)
    with torch.no_grad():
        weight.zero_()
    snapshot.restore(model, optimizer)
    assert torch.equal(weight, torch.ones(3))


def test_what_does_not_fit_is_refused_before_anything_changes(tmp_path: Path) -> None:
    model, optimizer, scheduler = make("adamw")
    model.late.requires_grad_(False)
    step(model, optimizer, scheduler, 0)
    snapshot = Snapshot(tmp_path)
    with pytest.raises(RunError, match=r"snapshot.safetensors: no such file"):
        snapshot.restore(model)
    with pytest.raises(RunError, match="no snapshot to go back to"):
        Snapshot().restore(model)
    snapshot.take(model, optimizer, step=1)
    with pytest.raises(RunError, match="taken without the scheduler"):
        snapshot.restore(model, optimizer, scheduler)
    step(model, optimizer, scheduler, 1)
    before = all_of(model, optimizer, scheduler)
    narrow, other = Net(), torch.nn.Linear(2, 2)
    narrow.norm = torch.nn.BatchNorm1d(5)
    for wrong, says in (
        (narrow, r"holds norm.weight as F32\[6\], and the model has F32\[5\]"),
        (Net(torch.bfloat16), r"as F32\[6, 6\], and the model has BF16\[6, 6\]"),
        (other, "holds first.weight, which the model does not have"),
    ):
        kept = flat(wrong.state_dict())
        with pytest.raises(RunError, match=says):
            snapshot.restore(wrong)
        assert flat(wrong.state_dict()) == kept
    with pytest.raises(RunError, match=r"groups of \[5\] parameters, and this one has \[1\]"):
        snapshot.restore(model, SGD([model.first.weight], lr=1.0))
    model.late.requires_grad_(True)
    with pytest.raises(RunError, match="does not hold late.weight, which has been trained since"):
        snapshot.restore(model, optimizer)
    model.use_late = True
    step(model, optimizer, scheduler, 2)
    model.late.requires_grad_(False)
    with pytest.raises(RunError, match="does not hold late.weight"):
        snapshot.restore(model, optimizer)
    assert all_of(model, optimizer, scheduler) != before


def test_broken_files_are_named(tmp_path: Path) -> None:
    model, optimizer, scheduler = make("adamw")
    Snapshot(tmp_path).take(model, optimizer, scheduler, step=4)
    path = tmp_path / FILE
    whole = path.read_bytes()
    assert Snapshot.load(tmp_path).step == 4
    for content in (b"", b"{}", whole[:-1], whole[:40], whole[:8] + b"x" + whole[9:]):
        path.write_bytes(content)
        with pytest.raises(RunError, match="not a snapshot, or not a whole one") as bad:
            Snapshot.load(tmp_path)
        assert "\n" not in str(bad.value)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"]["backslide"] = json.dumps([99, None])
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + whole[8 + length :])
    with pytest.raises(RunError, match="a snapshot of version 99, and 1 is needed"):
        Snapshot.load(tmp_path)


def test_a_model_that_only_fsdp1_knows_is_refused() -> None:
    class FullyShardedDataParallel(torch.nn.Linear):
        """Of this name."""

    with pytest.raises(ConfigError, match="FSDP1"):
        Snapshot().take(FullyShardedDataParallel(1, 1), step=0)
