"""What a guard may do to a run that goes wrong: cut its learning rate, and go back to an earlier state.

::

    cut_rate(optimizer, scheduler, 0.5)               # half the rate, now and at every later step
    go_back(snapshot, model, optimizer, scheduler, 0.5)

Both are for a user's own training loop as well: they take torch's optimizers and schedulers, bare or in accelerate's
wrappers. Nothing is wrapped or replaced: the cut is in the numbers that a checkpoint saves, so a run that is resumed
from one goes on with the rate cut.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from backslide.errors import ConfigError
from backslide.guard.plain import plain_optimizer, plain_scheduler
from backslide.guard.snapshot import Snapshot

# Every learning rate that a scheduler of torch or transformers holds. Each is homogeneous in all of these together:
# with all of them multiplied by f, every rate that it gives from then on is multiplied by f.
_LISTS = ("base_lrs", "max_lrs", "min_lrs", "_init_lrs", "_last_lr")
# `eps` is the smallest change of the rate that ReduceLROnPlateau and GreedyLR make.
_NUMBERS = ("eta_min", "default_min_lr", "eps")
_IN_GROUPS = ("initial_lr", "max_lr", "min_lr", "swa_lr")

_KNOWN = ("torch.optim.lr_scheduler", "torch.optim.swa_utils", "transformers.optimization")
_PROBED = 100
"""Steps for which a scheduler of other origin is tried out."""


def rates(optimizer: Any) -> list[float]:
    """The learning rate of each param group at the next step; NaN where the optimizer makes its own; [] of None."""
    groups = plain_optimizer(optimizer).param_groups if optimizer is not None else []
    return [math.nan if group["lr"] is None else float(group["lr"]) for group in groups]


def check_cut(optimizer: Any, scheduler: Any = None) -> None:
    """Refuse now what `cut_rate` would refuse in the middle of a run. Changes nothing.

    Raises:
        ConfigError: the learning rate is not in the hands of the optimizer and its scheduler, or the scheduler is of
            unknown make and not every rate that it gives would be cut.
    """
    optimizer, scheduler = plain_optimizer(optimizer), plain_scheduler(scheduler)
    for group in optimizer.param_groups:
        if group["lr"] is None or group.get("relative_step"):
            raise ConfigError(
                f"{type(optimizer).__name__} makes its own learning rate (relative_step=True), which cannot be cut; "
                "give it a learning rate and relative_step=False"
            )
    for part in _parts(scheduler):
        if type(part).__module__ not in _KNOWN and not _is_cut_whole(part, optimizer):
            raise ConfigError(
                f"scheduler {type(part).__name__} holds learning rates where they cannot be cut; make it of torch's "
                "LambdaLR, or of another one whose rates are multiples of base_lrs"
            )


def cut_rate(optimizer: Any, scheduler: Any = None, factor: float = 0.5) -> list[float]:
    """Multiply the learning rate by `factor`, now and for all later steps of the schedule.

    All rates are multiplied: of every param group, and the schedule's floors and peaks too, so that each later rate is
    `factor` times what it would have been. Cutting twice multiplies twice. Rates that are tensors are changed in place.

    Args:
        optimizer: the optimizer, or accelerate's wrapper of it.
        scheduler: its scheduler, or accelerate's wrapper of it; None where the rate is constant.
        factor: in (0, 1].

    Returns:
        The learning rate of each param group at the next step.

    Raises:
        ConfigError: `factor` is out of range, or see `check_cut`; nothing was changed.
    """
    if not 0 < factor <= 1:
        raise ConfigError(f"factor is {factor!r}, a number above 0 and at most 1 is needed")
    check_cut(optimizer, scheduler)
    optimizer, scheduler = plain_optimizer(optimizer), plain_scheduler(scheduler)
    _cut_schedule(scheduler, factor)
    _cut_groups(optimizer.param_groups, factor)
    return rates(optimizer)


def go_back(
    snapshot: Snapshot,
    model: Any,
    optimizer: Any,
    scheduler: Any = None,
    factor: float = 1.0,
    *,
    scaler: Any = None,
    share: float = 0.0,
) -> list[float]:
    """Give a run back the weights and the optimizer's state of `snapshot`, with its learning rate cut by `factor`.

    The run goes on from there: the step count and the schedule stay where they are, since they say how much training
    is left. The rate is `factor` times what the schedule gives now, cuts before this one included; the rates in the
    snapshot are of another time and are not used. To rewind the schedule as well, use `snapshot.restore` with it.

    Args:
        snapshot: a state of this model and optimizer.
        model: the model, bare or wrapped.
        optimizer: its optimizer.
        scheduler: its scheduler.
        factor: in (0, 1]; 1 leaves the rate.
        scaler: the gradient scaler. Default: the one in accelerate's wrapper of the optimizer, if any.
        share: how much of what was learned since is left, in [0, 1); see `Snapshot.restore`.

    Returns:
        The learning rate of each param group at the next step.

    Raises:
        ConfigError: `factor` is out of range, or see `check_cut`; nothing was changed.
        RunError: the snapshot does not fit; nothing was changed.
    """
    if not 0 < factor <= 1:
        raise ConfigError(f"factor is {factor!r}, a number above 0 and at most 1 is needed")
    if factor < 1:
        check_cut(optimizer, scheduler)
    snapshot.restore(model, optimizer, scaler=scaler, share=share)
    return cut_rate(optimizer, scheduler, factor) if factor < 1 else rates(optimizer)


def _parts(scheduler: Any) -> list[Any]:
    # SequentialLR and ChainedScheduler hold others.
    if scheduler is None:
        return []
    return [scheduler, *(part for inner in getattr(scheduler, "_schedulers", ()) for part in _parts(inner))]


def _cut_schedule(scheduler: Any, factor: float) -> None:
    for part in _parts(scheduler):
        # New lists: an old one may be shared, with a state_dict or with another scheduler.
        for name in _LISTS:
            if isinstance(getattr(part, name, None), list):
                setattr(part, name, [rate * factor for rate in getattr(part, name)])
        for name in _NUMBERS:
            if getattr(part, name, None) is not None:
                setattr(part, name, getattr(part, name) * factor)


def _cut_groups(groups: list[dict[str, Any]], factor: float) -> None:
    # All are read before any is written: groups that were made with one tensor as their rate share it.
    new = [{key: group[key] * factor for key in ("lr", *_IN_GROUPS) if group.get(key) is not None} for group in groups]
    for group, values in zip(groups, new, strict=True):
        for key, value in values.items():
            if isinstance(group[key], torch.Tensor):
                group[key].copy_(value)
            else:
                group[key] = value


class _Rates:
    """The rates of an optimizer without its parameters, for a scheduler to be tried out on."""

    def __init__(self, optimizer: Any) -> None:
        self.param_groups = [
            copy.deepcopy({key: value for key, value in group.items() if key not in ("params", "param_names")})
            for group in optimizer.param_groups
        ]
        self.defaults = dict(optimizer.defaults)
        self.state: dict[Any, Any] = {}

    def step(self) -> None:
        """Nothing; schedulers look whether it is there."""


def _is_cut_whole(scheduler: Any, optimizer: Any) -> bool:
    """Whether a cut scheduler gives the rates of an uncut one times the factor: both tried on copies."""
    factor = 0.5
    before = [dict(group) for group in optimizer.param_groups]
    try:
        plain, cut = _ahead(scheduler, optimizer, 1.0), _ahead(scheduler, optimizer, factor)
    except Exception:  # whatever a stranger's code may raise on a copy of itself
        return False
    finally:
        # A closure may have reached the optimizer itself.
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.update(values)
    return all(math.isclose(b, a * factor, rel_tol=1e-6) for a, b in zip(plain, cut, strict=True))


def _ahead(scheduler: Any, optimizer: Any, factor: float) -> list[float]:
    stub = _Rates(optimizer)
    # Wherever it holds the optimizer it gets the stub, or the copy would take the weights along.
    memo = {id(owner): stub for owner in (optimizer, getattr(scheduler, "optimizer", optimizer))}
    twin = copy.deepcopy(scheduler, memo)
    _cut_schedule(twin, factor)
    _cut_groups(stub.param_groups, factor)
    seen = []
    for _ in range(_PROBED):
        try:
            twin.step()
        except TypeError:
            twin.step(1.0)  # one that waits for a metric, which here never improves
        seen += [float(group["lr"]) for group in stub.param_groups]
    return seen
