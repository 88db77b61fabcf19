"""A state of training that can be gone back to: what is trained, and what the optimizer remembers of it.

::

    snapshot = Snapshot()                                    # in the host's memory, or Snapshot(folder) on disk
    snapshot.take(model, optimizer, scheduler, step=100)     # changes nothing in the training
    snapshot.restore(model, optimizer)                       # the weights of step 100; the schedule goes on
    snapshot.restore(model, optimizer, scheduler)            # the schedule goes back as well

Held are the parameters that require a gradient (with an adapter: the adapter alone), the persistent buffers, the
optimizer's state, and the states of the scheduler and of the gradient scaler where there are any. Not held: random
number generators and the place in the data, since a run that goes back does not see the same examples again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from backslide.errors import RunError
from backslide.guard import pack
from backslide.guard.pack import Get, Packing, Tree, unpack
from backslide.guard.plain import plain_model, plain_optimizer, plain_scheduler

FILE = "snapshot.safetensors"

LARGEST_BUFFER = 2**20
"""Elements. Running statistics are smaller; what is larger is a quantized weight that some keep as a buffer."""

SCHEDULED = frozenset({
    "lr", "initial_lr", "max_lr", "min_lr", "swa_lr", "weight_decay",
    "momentum", "betas", "max_momentum", "base_momentum",
})  # fmt: skip
"""Values of a param group that belong to the schedule, not to what was learned."""


class Snapshot:
    """One state of training, in the host's memory or in a folder; each `take` replaces the one before.

    In memory its tensors are written over by the next one, so a second snapshot costs no more than the first. On disk
    the file is written beside the old one and renamed: a killed process leaves the old snapshot or the new one.

    Replicas (DDP) hold equal states: each process may take its own in memory, or one of them writes a folder and all
    `load` it. Of sharded parameters (FSDP2) a process holds its own shard, so each needs a folder of its own.

    State of an optimizer that is neither plain tensor nor number (quantized tensor classes, Python objects) is copied
    and kept in memory, also by a snapshot on disk; in another process such a snapshot gives back the weights alone.

    Args:
        folder: where to write it. Default: nowhere, it stays in memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.path = Path(folder) / FILE if folder is not None else None
        self._tree: Tree = None
        self._tensors: dict[str, torch.Tensor] = {}
        self._objects: Mapping[str, Any] = {}

    @classmethod
    def load(cls, folder: str | Path) -> Snapshot:
        """The snapshot that was written to `folder`. Raises `RunError` where it is missing or broken."""
        snapshot = cls(folder)
        assert snapshot.path is not None
        with pack.read(snapshot.path) as (tree, _):
            snapshot._tree = tree
        return snapshot

    @property
    def step(self) -> int | None:
        """The step it was taken at; None while there is none."""
        return None if self._tree is None else int(self._tree["step"])

    @property
    def nbytes(self) -> int:
        """Bytes of the plain tensors it holds, in memory or on disk."""
        return 0 if self._tree is None else int(self._tree["nbytes"])

    @property
    def names(self) -> list[str]:
        """Names of the parameters and buffers it holds."""
        return [] if self._tree is None else list(self._tree["model"])

    def take(self, model: Any, optimizer: Any = None, scheduler: Any = None, *, scaler: Any = None, step: int) -> None:
        """Copy the present state. To be called between two optimizer steps, as in `on_step_end`.

        Args:
            model: the model; wrappers of DDP and of `torch.compile` are looked through.
            optimizer: its optimizer, or accelerate's wrapper of it.
            scheduler: the learning-rate scheduler, or accelerate's wrapper of it.
            scaler: the gradient scaler. Default: the one in accelerate's wrapper of the optimizer, if any.
            step: the number of optimizer steps made so far.

        Raises:
            ConfigError: the model or the optimizer keeps its state where it cannot be copied.
            RunError: the folder cannot be written; the snapshot before it is kept.
        """
        scaler = scaler if scaler is not None else getattr(optimizer, "scaler", None)
        model, optimizer = plain_model(model), plain_optimizer(optimizer)
        packing = Packing()
        held = _held(model, optimizer)
        tree: dict[str, Any] = {
            "step": step,
            "model": {name: packing.add(value, f"model/{name}") for name, value in held.items()},
            "optimizer": None if optimizer is None else _pack_optimizer(optimizer, packing),
        }
        for part, owner in (("scheduler", plain_scheduler(scheduler)), ("scaler", scaler)):
            tree[part] = None if owner is None else packing.add(owner.state_dict(), part)
        tree["nbytes"] = packing.nbytes
        tree["objects"] = {name: type(value).__name__ for name, value in packing.objects.items()}
        if self.path is None:
            self._copy(packing.tensors)
        else:
            try:
                pack.write(self.path, tree, packing.tensors)
            except OSError as bad:
                kept = f"that of step {self.step} is kept" if self._tree is not None else "there is none before it"
                raise RunError(
                    f"{self.path}: the snapshot of step {step} ({tree['nbytes'] / 2**20:.1f} MiB) cannot be written: "
                    f"{bad.strerror or bad}; {kept}; make room, or keep snapshots in memory"
                ) from None
        self._tree, self._objects = tree, packing.objects

    def restore(
        self, model: Any, optimizer: Any = None, scheduler: Any = None, *, scaler: Any = None, share: float = 0.0
    ) -> None:
        """Write the state back in place; gradients become None. What does not fit is refused before anything changes.

        Without `scheduler`, learning rates and whatever else a schedule may move (`SCHEDULED`) stay as they are now.

        Args:
            model: the model, as for `take`.
            optimizer: its optimizer. None leaves the optimizer as it is.
            scheduler: the scheduler, if it too shall go back to where it was, with the rates that it gave then.
            scaler: the gradient scaler, as for `take`.
            share: how much of what was learned since is left, in [0, 1): each weight becomes saved + share · (present −
                saved). What is no floating-point tensor, and the optimizer's state, are the saved ones.

        Raises:
            RunError: there is no snapshot, or it is not of this model and optimizer.
        """
        scaler = scaler if scaler is not None else getattr(optimizer, "scaler", None)
        model, optimizer, scheduler = plain_model(model), plain_optimizer(optimizer), plain_scheduler(scheduler)
        with self._opened() as (tree, get), torch.no_grad():
            for part, owner in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler)):
                if owner is not None:
                    self._check(tree, part)
            for node, target in _targets(tree, model, optimizer):
                saved = get(node["name"]) if pack.is_tensor(node) else unpack(node, get, self._objects)
                target.copy_(_between(saved, target, share) if share else saved)
            if scheduler is not None:
                scheduler.load_state_dict(unpack(tree["scheduler"], get, self._objects))
            if optimizer is not None:
                # After the scheduler: some write rates into the optimizer when they are loaded.
                kept = SCHEDULED if scheduler is None else frozenset()
                _unpack_optimizer(tree["optimizer"], optimizer, get, self._objects, kept)
            if scaler is not None and (state := unpack(tree["scaler"], get, self._objects)):
                scaler.load_state_dict(state)
        for parameter in [*model.parameters(), *_parameters(optimizer)]:
            parameter.grad = None

    def remove(self) -> None:
        """Let go of the state; its file is removed. Afterwards there is none."""
        self._tree, self._tensors, self._objects = None, {}, {}
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _check(self, tree: Tree, part: str) -> None:
        if tree[part] is None:
            raise RunError(f"the snapshot of step {tree['step']} was taken without the {part}; give it to take()")
        for name, what in tree["objects"].items():
            if name.startswith(part) and name not in self._objects:
                raise RunError(
                    f"{self.path}: {name} was a {what}, which cannot be written to a file, and the process that kept "
                    f"it in memory is gone; restore without the {part}"
                )

    def _copy(self, tensors: Mapping[str, torch.Tensor]) -> None:
        # From here on the old snapshot is being written over: until all is copied there is none.
        self._tree, old, self._tensors = None, self._tensors, {}
        for name, tensor in tensors.items():
            buffer = old.pop(name, None)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            self._tensors[name] = buffer.copy_(tensor)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Tree, Get]]:
        if self.path is not None:
            # The file's own tree, not the one in memory: another replica may have written it anew.
            with pack.read(self.path) as opened:
                yield opened
        elif self._tree is None:
            raise RunError("there is no snapshot to go back to: none was taken, or the last one broke off")
        else:
            yield self._tree, self._tensors.__getitem__


def _held(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    # named_parameters() gives a tied weight once.
    held = {name: value for name, value in model.named_parameters() if value.requires_grad}
    known = {id(value) for value in model.parameters()}
    for path, module in model.named_modules():
        for name, value in module._buffers.items():
            if value is None or name in module._non_persistent_buffers_set or id(value) in known:
                continue
            known.add(id(value))
            if value.numel() <= LARGEST_BUFFER:
                held[f"{path}.{name}" if path else name] = value
    # A loss with parameters of its own, say.
    for index, value in enumerate(_parameters(optimizer)):
        if value.requires_grad and id(value) not in known:
            held[f"parameter {index} of the optimizer"] = value
    return held


def _targets(tree: Tree, model: Any, optimizer: Any) -> list[tuple[Tree, torch.Tensor]]:
    """What is saved, and where to it goes. Raises `RunError` where the two do not fit."""
    held = _held(model, optimizer)
    places = {**dict(model.named_parameters()), **dict(model.named_buffers()), **held}
    at = f"the snapshot of step {tree['step']}"
    targets, ids = [], set()
    for name, node in tree["model"].items():
        place = places.get(name)
        if place is None:
            raise RunError(f"{at} holds {name}, which the model does not have; it is of another model")
        if pack.is_tensor(node) and node["kind"] != pack.kind(place):
            raise RunError(f"{at} holds {name} as {node['kind']}, and the model has {pack.kind(place)}")
        ids.add(id(place))
        targets.append((node, pack.local(place)))
    names = {id(value): name for name, value in places.items()}
    moved = [value for value in _parameters(optimizer) if optimizer.state.get(value)]
    for value in [*held.values(), *moved]:
        if id(value) not in ids:
            name = names.get(id(value), "a parameter of the optimizer")
            raise RunError(f"{at} does not hold {name}, which has been trained since; take one after unfreezing it")
    if optimizer is not None:
        now, then = [len(group["params"]) for group in optimizer.param_groups], tree["optimizer"]["sizes"]
        if now != then:
            raise RunError(f"{at} is of an optimizer with groups of {then} parameters, and this one has {now}")
    return targets


def _pack_optimizer(optimizer: Any, packing: Packing) -> Tree:
    # Not optimizer.state_dict(): its load_state_dict() casts to the type of the parameter, so that the fp32 moments of
    # a bf16 parameter would come back rounded.
    rest = {key: value for key, value in optimizer.state.items() if not isinstance(key, torch.Tensor)}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return {
        "states": {
            str(index): packing.items(state, f"optimizer/{index}")
            for index, parameter in enumerate(_parameters(optimizer))
            if (state := optimizer.state.get(parameter))
        },
        "rest": packing.add(rest, "optimizer/rest"),
        "groups": packing.add(groups, "optimizer/groups"),
        "sizes": [len(group["params"]) for group in optimizer.param_groups],
    }


def _unpack_optimizer(tree: Tree, optimizer: Any, get: Get, objects: Mapping[str, Any], kept: frozenset[str]) -> None:
    for index, (parameter, group) in enumerate(_with_groups(optimizer)):
        items = tree["states"].get(str(index))
        if items is None:
            # Not yet seen at the snapshot: an optimizer makes its state at the first step.
            optimizer.state.pop(parameter, None)
            continue
        now, new = optimizer.state[parameter], {}
        near = _near(get, parameter.device)
        for key, node in items:
            key = unpack(key, get, objects)
            if pack.is_tensor(node):
                new[key] = _state_tensor(key, node, get, now.get(key), parameter, group)
            else:
                new[key] = unpack(node, near, objects)
        now.clear()
        now.update(new)
    rest = unpack(tree["rest"], get, objects)
    for key in [key for key in optimizer.state if not isinstance(key, torch.Tensor) and key not in rest]:
        del optimizer.state[key]
    for key, value in rest.items():
        _set(optimizer.state, key, value)
    for group, saved in zip(optimizer.param_groups, unpack(tree["groups"], get, objects), strict=True):
        for key, value in saved.items():
            if key not in kept:
                _set(group, key, value)


def _between(saved: Any, now: torch.Tensor, share: float) -> Any:
    if not (isinstance(saved, torch.Tensor) and saved.is_floating_point() and saved.shape == now.shape):
        return saved
    wide = torch.promote_types(now.dtype, torch.float32)
    return torch.lerp(saved.to(now.device, wide), now.to(wide), share)


def _near(get: Get, device: torch.device) -> Get:
    return lambda name: get(name).to(device)


def _state_tensor(key: Any, node: Tree, get: Get, now: Any, parameter: Any, group: Mapping[str, Any]) -> torch.Tensor:
    saved = get(node["name"])
    if isinstance(now, torch.Tensor) and pack.kind(now) == node["kind"]:
        pack.local(now).copy_(saved)
        return now
    # Where torch's own load_state_dict() puts it.
    on_host = key == "step" and not (group.get("capturable") or group.get("fused"))
    fresh = saved.to("cpu" if on_host else parameter.device, copy=True)
    if hasattr(parameter, "to_local") and fresh.shape == pack.local(parameter).shape:
        fresh = type(parameter.data).from_local(
            fresh, parameter.device_mesh, parameter.placements,
            run_check=False, shape=parameter.shape, stride=parameter.stride(),
        )  # fmt: skip
    return fresh


def _set(owner: Any, key: Any, value: Any) -> None:
    now = owner.get(key)
    if isinstance(now, torch.Tensor):
        # In place: a captured graph reads the rate from this very tensor.
        now.copy_(torch.as_tensor(value))
    else:
        owner[key] = value


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [parameter for parameter, _ in _with_groups(optimizer)]


def _with_groups(optimizer: Any) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    groups = optimizer.param_groups if optimizer is not None else []
    return [(parameter, group) for group in groups for parameter in group["params"]]
