"""Cutting the learning rate: every later rate of every scheduler, against the same scheduler left alone."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adafactor, AdamW
from torch.optim import lr_scheduler as of_torch
from torch.optim.swa_utils import SWALR
from transformers import Adafactor as TransformersAdafactor
from transformers import get_scheduler
from transformers.optimization import AdafactorSchedule, GreedyLR
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from backslide.errors import ConfigError
from backslide.guard.intervene import check_cut, cut_rate, go_back, rates
from backslide.guard.snapshot import Snapshot

STEPS, CUT_AT = 24, 7


def of_transformers(name: str, **more: Any) -> Callable[[Any], Any]:
    return lambda optimizer: get_scheduler(name, optimizer, 4, 20, more or None)


def sequential(optimizer: Any) -> Any:
    parts = [of_torch.LinearLR(optimizer, 0.1, total_iters=10), of_torch.CosineAnnealingLR(optimizer, 10, eta_min=1e-3)]
    return of_torch.SequentialLR(optimizer, parts, milestones=[10])


def one_cycle_at_the_end(optimizer: Any) -> Any:
    parts = [of_torch.ConstantLR(optimizer, 0.5, total_iters=30), of_torch.OneCycleLR(optimizer, 0.2, total_steps=30)]
    return of_torch.SequentialLR(optimizer, parts, milestones=[10])


class FromBase(of_torch.LRScheduler):
    """A user's own, of the usual make."""

    def get_lr(self) -> list[float]:
        return [rate / (1 + self.last_epoch) for rate in self.base_lrs]


class OwnFloor(FromBase):
    """A user's own, with a floor under a name of its own."""

    floor = 0.01

    def get_lr(self) -> list[float]:
        return [max(rate, self.floor) for rate in super().get_lr()]


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda optimizer: None,
    "linear": of_transformers("linear"),
    "cosine": of_transformers("cosine"),
    "cosine_with_restarts": of_transformers("cosine_with_restarts", num_cycles=3),
    "polynomial": of_transformers("polynomial", lr_end=1e-3),
    "constant": of_transformers("constant"),
    "constant_with_warmup": of_transformers("constant_with_warmup"),
    "inverse_sqrt": of_transformers("inverse_sqrt"),
    "cosine_with_min_lr": of_transformers("cosine_with_min_lr", min_lr=0.02),
    "cosine_warmup_with_min_lr": of_transformers("cosine_warmup_with_min_lr", min_lr_rate=0.1, warmup_lr_rate=0.2),
    "warmup_stable_decay": of_transformers("warmup_stable_decay", num_decay_steps=6, min_lr_ratio=0.1),
    "reduce_lr_on_plateau": of_transformers("reduce_lr_on_plateau", patience=1, factor=0.5, min_lr=0.02, eps=1e-3),
    "greedy": of_transformers("greedy", patience=0, factor=0.5, min_lr=0.03, max_lr=0.12, reset_start=2),
    "step": lambda optimizer: of_torch.StepLR(optimizer, 3, 0.5),
    "multi_step": lambda optimizer: of_torch.MultiStepLR(optimizer, [3, 9, 15], 0.3),
    "exponential": lambda optimizer: of_torch.ExponentialLR(optimizer, 0.9),
    "multiplicative": lambda optimizer: of_torch.MultiplicativeLR(optimizer, lambda step: 0.95),
    "linear of torch": lambda optimizer: of_torch.LinearLR(optimizer, total_iters=12),
    "constant of torch": lambda optimizer: of_torch.ConstantLR(optimizer, 0.25, total_iters=10),
    "polynomial of torch": lambda optimizer: of_torch.PolynomialLR(optimizer, 20, 2.0),
    "cosine of torch": lambda optimizer: of_torch.CosineAnnealingLR(optimizer, 9, eta_min=0.01),
    "warm restarts": lambda optimizer: of_torch.CosineAnnealingWarmRestarts(optimizer, 5, 2, eta_min=0.01),
    "one cycle": lambda optimizer: of_torch.OneCycleLR(optimizer, 0.3, total_steps=30, three_phase=True),
    "cyclic": lambda optimizer: of_torch.CyclicLR(optimizer, 0.01, 0.2, 5, mode="exp_range", gamma=0.97),
    "swa": lambda optimizer: SWALR(optimizer, 0.03, anneal_epochs=12),
    "sequential": sequential,
    "sequential with one cycle": one_cycle_at_the_end,
    "chained": lambda optimizer: of_torch.ChainedScheduler(
        [of_torch.ConstantLR(optimizer, 0.1, 9), of_torch.ExponentialLR(optimizer, 0.9)], optimizer
    ),
    "a user's own": FromBase,
}


def made(scheduler: str, *, tensor: bool = False, optimizer: Any = AdamW) -> tuple[Any, Any]:
    """An optimizer of two groups with different rates, and a scheduler on it."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(2)]
    rate: Any = torch.tensor(0.1, dtype=torch.float64) if tensor else 0.1
    if not tensor:
        groups[1]["lr"] = 0.04
    opt = optimizer(groups, lr=rate, weight_decay=0.1)
    return opt, SCHEDULERS[scheduler](opt)


def walk(optimizer: Any, scheduler: Any, first: int, last: int) -> list[list[Any]]:
    """The rates, and what else a schedule moves, of steps `first` up to `last`."""
    seen = []
    for step in range(first, last):
        optimizer.step()
        if isinstance(scheduler, (of_torch.ReduceLROnPlateau, GreedyLR)):
            # Better for a while, then worse.
            scheduler.step(abs(step - 9.0) + 1.0)
        elif scheduler is not None:
            scheduler.step()
        momenta = [group.get("betas", group.get("momentum")) for group in optimizer.param_groups]
        seen.append([rates(optimizer), momenta])
    return seen


@pytest.mark.parametrize("tensor", [False, True], ids=["numbers", "one tensor for both groups"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_later_rate_is_the_schedule_times_the_factor(name: str, tensor: bool) -> None:
    if tensor and name in ("greedy", "polynomial"):
        pytest.skip("transformers: GreedyLR makes a number of it, and polynomial reads its peak from the moving tensor")
    (alone, schedule), (cut, same_schedule) = made(name, tensor=tensor), made(name, tensor=tensor)
    assert walk(alone, schedule, 0, CUT_AT) == walk(cut, same_schedule, 0, CUT_AT)
    held = [group["lr"] for group in cut.param_groups]
    now = cut_rate(cut, same_schedule, 0.25)
    assert now == rates(cut) == pytest.approx([rate * 0.25 for rate in rates(alone)])
    assert not tensor or all(a is group["lr"] for a, group in zip(held, cut.param_groups, strict=True))
    if same_schedule is not None:
        assert [float(rate) for rate in same_schedule.get_last_lr()] == pytest.approx(now), "what trainers log"
    want, seen = walk(alone, schedule, CUT_AT, 15), walk(cut, same_schedule, CUT_AT, 15)
    for (rate, momenta), (cut_to, cut_momenta) in zip(want, seen, strict=True):
        assert cut_to == pytest.approx([value * 0.25 for value in rate], rel=1e-6) and cut_momenta == momenta
    cut_rate(cut, same_schedule, 0.5)
    want, seen = walk(alone, schedule, 15, STEPS), walk(cut, same_schedule, 15, STEPS)
    for (rate, _), (cut_to, _) in zip(want, seen, strict=True):
        assert cut_to == pytest.approx([value * 0.125 for value in rate], rel=1e-6), "two cuts multiply"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_checkpoint_keeps_the_cut(name: str) -> None:
    optimizer, scheduler = made(name)
    walk(optimizer, scheduler, 0, CUT_AT)
    cut_rate(optimizer, scheduler, 0.5)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler and scheduler.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=name != "multi_step")  # which saves a Counter
    again, resumed = made(name)
    if resumed is not None:
        resumed.load_state_dict(states[1])
    again.load_state_dict(states[0])
    assert walk(again, resumed, CUT_AT, STEPS) == walk(optimizer, scheduler, CUT_AT, STEPS)


def test_a_schedule_that_would_keep_its_floor_is_refused_and_left_alone() -> None:
    optimizer, _ = made("none")
    scheduler = OwnFloor(optimizer)
    walk(optimizer, scheduler, 0, 3)
    before = copy.deepcopy((optimizer.param_groups, scheduler.state_dict()))
    with pytest.raises(ConfigError, match="OwnFloor holds learning rates where they cannot be cut; make it of"):
        check_cut(optimizer, scheduler)
    with pytest.raises(ConfigError, match="OwnFloor"):
        cut_rate(optimizer, scheduler, 0.5)
    model = torch.nn.Linear(2, 2)
    own = SGD(model.parameters(), lr=0.1)
    snapshot = Snapshot()
    snapshot.take(model, own, step=0)
    weight = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    with pytest.raises(ConfigError, match="OwnFloor"):
        go_back(snapshot, model, own, OwnFloor(own), 0.5)
    assert torch.equal(model.weight, weight + 1), "refused before anything is changed"
    go_back(snapshot, model, own, OwnFloor(own))
    assert torch.equal(model.weight, weight), "without a cut any scheduler will do"
    assert str((optimizer.param_groups, scheduler.state_dict())) == str(before)


def test_trying_a_stranger_out_does_not_move_it() -> None:
    optimizer, _ = made("none")
    scheduler = FromBase(optimizer)
    walk(optimizer, scheduler, 0, 3)
    before = rates(optimizer), scheduler.last_epoch, scheduler.base_lrs
    check_cut(optimizer, scheduler)
    assert (rates(optimizer), scheduler.last_epoch, scheduler.base_lrs) == before

    class Reaches:
        """A closure holds the optimizer, which a copy cannot know of."""

        def __init__(self) -> None:
            self.step = lambda: optimizer.param_groups[0].update(lr=7.0)

    with pytest.raises(ConfigError, match="Reaches"):
        check_cut(optimizer, Reaches())
    assert rates(optimizer) == before[0]


def test_an_optimizer_that_makes_its_own_rate_is_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    own = TransformersAdafactor([weight])
    assert math.isnan(rates(own)[0])
    for scheduler in (None, AdafactorSchedule(own)):
        with pytest.raises(ConfigError, match="Adafactor makes its own learning rate"):
            cut_rate(own, scheduler, 0.5)
    given = TransformersAdafactor([weight], lr=0.1, relative_step=False)
    assert cut_rate(given, None, 0.5) == [0.05]
    assert cut_rate(Adafactor([weight], lr=0.1), None, 0.5) == [0.05]


def test_optimizers_whose_parts_are_elsewhere_are_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    layers = LayerWiseDummyOptimizer(optimizer_dict={weight: SGD([weight], lr=0.1)})
    for optimizer in (layers, object()):
        with pytest.raises(ConfigError, match=f"{type(optimizer).__name__} does not keep state and rates"):
            cut_rate(optimizer, None, 0.5)


def test_the_floor_of_a_group_that_comes_later_is_cut_too() -> None:
    optimizer, _ = made("none")
    scheduler = of_torch.ReduceLROnPlateau(optimizer, patience=0, min_lr=0.02)
    cut_rate(optimizer, scheduler, 0.5)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.05})
    for _ in range(3):
        scheduler.step(1.0)
    assert rates(optimizer) == [0.01, 0.01, 0.01]


@pytest.mark.parametrize("factor", [0, -1.0, 1.5, float("nan")])
def test_the_factor_is_checked(factor: float) -> None:
    optimizer, scheduler = made("linear")
    with pytest.raises(ConfigError, match="a number above 0 and at most 1 is needed"):
        cut_rate(optimizer, scheduler, factor)
    with pytest.raises(ConfigError, match="factor is"):
        go_back(Snapshot(), torch.nn.Linear(1, 1), optimizer, scheduler, factor)


def test_a_rate_of_zero_in_warmup_is_cut_for_the_steps_after_it() -> None:
    optimizer, scheduler = made("constant_with_warmup", optimizer=SGD)
    assert cut_rate(optimizer, scheduler, 0.5) == [0.0, 0.0]
    assert walk(optimizer, scheduler, 0, 4)[-1][0] == [0.05, 0.02]
