"""A state of training as JSON and named tensors, and both in one safetensors file.

`Packing.add` takes a nested value (a `state_dict`, say) apart: its tensors go into a dictionary by name, without being
copied; what is left is a tree that JSON can hold. `unpack` puts it together again, of the same types and bit for bit.
What is neither (an object of a quantizing optimizer, say) is copied and kept aside, and cannot go to disk.

The file is written tensor by tensor, so a model on a GPU never stands in the host's memory as a whole, and is read
back by the safetensors library. No pickle anywhere.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from backslide.errors import ConfigError, RunError
from backslide.files import replacing

Tree = Any
"""JSON. Numbers, texts and lists stand for themselves; all else is a JSON object whose key `!` names its type."""

Get = Callable[[str], torch.Tensor]
"""From the name of a packed tensor to its numbers, on the CPU."""

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
"""What both torch and safetensors>=0.4.3 know, under safetensors' names."""

_DICTS: dict[str, type] = {"dict": dict, "OrderedDict": collections.OrderedDict, "Counter": collections.Counter}
_META = "backslide"

VERSION = 1
"""Of the tree in a file; one of another version is refused."""


@dataclass(frozen=True)
class Packing:
    """What values were taken apart into, besides their trees."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """Plain tensors by name: the very ones, not copies; of sharded ones this process's shard."""
    objects: dict[str, Any] = field(default_factory=dict)
    """Copies of what is neither JSON nor a plain tensor, by name."""

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers in the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def add(self, value: Any, name: str) -> Tree:
        """The tree of `value`: any nesting of dictionaries, lists and tuples. `name` begins its tensors' names."""
        if isinstance(value, torch.Tensor) and _is_plain(value):
            name = self._free(name)
            self.tensors[name] = part = local(value)
            return {"!": "tensor", "name": name, "kind": kind(part)}
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return {"!": "float", "is": repr(float(value))}
        if value is None or type(value) in (bool, int, str) or isinstance(value, float):
            return value
        if type(value) in (list, tuple):
            parts = [self.add(part, f"{name}/{i}") for i, part in enumerate(value)]
            return parts if type(value) is list else {"!": "tuple", "parts": parts}
        if type(value) in _DICTS.values():
            return {"!": type(value).__name__, "items": self.items(value, name)}
        name = self._free(name)
        try:
            self.objects[name] = _copied(value)
        except Exception as bad:  # whatever a stranger's class may raise
            raise ConfigError(
                f"{name} is a {type(value).__name__}, of which no copy can be made ({type(bad).__name__}), so training "
                "cannot go back; use another optimizer or scheduler"
            ) from None
        return {"!": "object", "name": name}

    def items(self, value: Mapping[Any, Any], name: str) -> list[list[Tree]]:
        """The trees of the keys and values of `value`."""
        return [[self.add(key, f"{name}#"), self.add(part, f"{name}/{key}")] for key, part in value.items()]

    def _free(self, name: str) -> str:
        while name in self.tensors or name in self.objects:
            name += "'"
        return name


def unpack(tree: Tree, get: Get, objects: Mapping[str, Any]) -> Any:
    """Put together what `Packing.add` took apart; shares nothing with `get` and `objects`."""
    if isinstance(tree, list):
        return [unpack(part, get, objects) for part in tree]
    if not isinstance(tree, dict):
        return tree
    what = tree["!"]
    if what == "tensor":
        return get(tree["name"]).clone()
    if what == "float":
        return float(tree["is"])
    if what == "tuple":
        return tuple(unpack(part, get, objects) for part in tree["parts"])
    if what == "object":
        return _copied(objects[tree["name"]])
    made = _DICTS[what]()
    made.update({unpack(key, get, objects): unpack(part, get, objects) for key, part in tree["items"]})
    return made


def is_tensor(tree: Tree) -> bool:
    """Whether a tree is that of a plain tensor."""
    return isinstance(tree, dict) and tree["!"] == "tensor"


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a sharded tensor (DTensor) that this process holds; shares memory with it, as with a plain one."""
    return _part(tensor).detach()


def kind(tensor: torch.Tensor) -> str:
    """Type and shape of what this process holds, such as `F32[8, 16]`."""
    part = _part(tensor)
    return f"{_DTYPES.get(part.dtype, part.dtype)}{list(part.shape)}"


def _part(tensor: Any) -> torch.Tensor:
    with torch.no_grad():
        part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _is_plain(tensor: torch.Tensor) -> bool:
    # Its numbers and nothing more, so that copying these copies it.
    part = _part(tensor)
    known = type(part) in (torch.Tensor, torch.nn.Parameter) and part.layout == torch.strided
    return known and part.dtype in _DTYPES


def _copied(value: Any) -> Any:
    # Functions and the training's own parts are referred to: a bound method would copy its owner, the whole model.
    if callable(value) or isinstance(value, torch.optim.Optimizer):
        return value
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    with torch.no_grad():
        if not hasattr(value, "__tensor_flatten__"):
            return value.detach().clone()
        # A tensor made of tensors, such as a quantized one; many of these cannot clone() themselves.
        names, context = value.__tensor_flatten__()
        parts = {name: _copied(getattr(value, name)) for name in names}
        return type(value).__tensor_unflatten__(parts, context, value.shape, value.stride())


def write(path: Path, tree: Tree, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file with `tree` in its metadata, atomically.

    The format: 8 bytes with the header's length, the header in JSON, the tensors' bytes end to end
    (https://huggingface.co/docs/safetensors).

    Raises:
        OSError: it cannot be written; an older file of the name is left as it was.
    """
    # What a killed process left behind: it may be as large as the model.
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink(missing_ok=True)
    # Wide numbers first keeps every tensor aligned to its own width.
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header: dict[str, Any] = {"__metadata__": {_META: json.dumps([VERSION, tree], allow_nan=False)}}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, allow_nan=False).encode()
    head += b" " * (-len(head) % 8)
    with replacing(path) as file:
        file.write(len(head).to_bytes(8, "little"))
        file.write(head)
        for name in order:
            flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy())


@contextlib.contextmanager
def read(path: Path) -> Iterator[tuple[Tree, Get]]:
    """The tree of a file that `write` made, and a function that reads a tensor of it.

    Raises:
        RunError: the file is missing or broken.
    """
    try:
        file: Any = safe_open(path, framework="pt")
        version, tree = json.loads((file.metadata() or {})[_META])
    except FileNotFoundError:
        raise RunError(f"{path}: no such file, so there is no snapshot to go back to") from None
    except (OSError, SafetensorError, ValueError, KeyError) as bad:
        raise RunError(f"{path}: not a snapshot, or not a whole one ({bad}); remove it") from None
    if version != VERSION:
        raise RunError(f"{path}: a snapshot of version {version}, and {VERSION} is needed; remove it")
    with file:
        yield tree, file.get_tensor
