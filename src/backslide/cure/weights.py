"""Weights in safetensors files: where they are, and one tensor at a time of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from backslide.errors import ModelError, shown
from backslide.files import read_json
from backslide.models import resolve

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
_INDEXED = ".safetensors.index.json"

SAMPLED = 4096
"""Values of a tensor that its fingerprint reads."""


class Weights:
    """The tensors of a folder's safetensors files, read one at a time; the files are mapped, not loaded.

    Raises `ModelError` where the folder has no such files, or one of them cannot be read.
    """

    def __init__(self, folder: Path, files: tuple[str, ...], *, index: str | None = None) -> None:
        self.folder = folder
        self.files = files
        self.index = index
        """The file beside them that says which tensor is where; None: there is but one."""
        self._open: dict[str, Any] = {}
        self.where: dict[str, str] = {}
        """The file of each tensor, in the files' order."""
        for name in files:
            try:
                handle = safe_open(folder / name, framework="pt")
            except (SafetensorError, OSError) as bad:
                raise ModelError(f"{folder / name}: cannot be read: {bad}; copy or download it again") from None
            self._open[name] = handle
            names: list[str] = handle.keys()  # type: ignore[no-untyped-call]
            self.where |= dict.fromkeys(names, name)

    @classmethod
    def of_model(cls, folder: Path) -> Weights:
        """Those that `from_pretrained` reads, in its order: what `config.json` names, a single file, shards.

        Source: transformers 5.23, `modeling_utils._get_resolved_checkpoint_files`. A model that was in shards and was
        saved again as one file keeps its index, and maybe its shards: neither is read. Variants are not, unless named.
        """
        named = _named(folder)
        file = named or next((name for name in (SINGLE, INDEX) if (folder / name).is_file()), None)
        if file is None:
            raise ModelError(f"{folder}: has neither {SINGLE} nor {INDEX}; save the model again as safetensors")
        if not file.endswith(_INDEXED):
            return cls(folder, (file,))
        index = folder / file
        content = read_json(index, ModelError)
        places = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(places, dict) or not places or not all(_is_file_name(v) for v in places.values()):
            raise ModelError(f"{index}: has no weight_map that names files beside it; save the model again")
        weights = cls(folder, tuple(dict.fromkeys(places.values())), index=file)
        if gone := sorted(places.keys() - weights.where.keys()):
            raise ModelError(f"{index}: names {gone[0]}, which is in none of its files; copy or download them again")
        return weights

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor; it is mapped from its file, and not to be written to."""
        tensor: torch.Tensor = self._open[self.where[name]].get_tensor(name)
        return tensor

    def names(self, file: str) -> list[str]:
        """The tensors of one file."""
        return [name for name, where in self.where.items() if where == file]

    def metadata(self, file: str) -> dict[str, str]:
        """What the file says of itself."""
        return self._open[file].metadata() or {"format": "pt"}

    def fingerprint(self) -> str:
        """Digest of names, shapes, dtypes and up to 4096 evenly spaced values of each tensor, whatever the files."""
        digest = hashlib.sha256()
        for name in sorted(self.where):
            tensor = self.tensor(name)
            flat = tensor.reshape(-1)
            values = flat[:: max(1, flat.numel() // SAMPLED)][: SAMPLED + 1]
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(np.ascontiguousarray(values.contiguous().view(torch.uint8).numpy()).tobytes())
        return digest.hexdigest()


def folder_of(source: str, say: Callable[[str], None] | None = None) -> Path:
    """The local folder of a model: one of the user's, or the hub's in its cache, fetched where it is not there yet.

    Raises `ModelError` where there is none.
    """
    place = resolve(source, say)
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "model*.safetensors", "adapter_model.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(place, allow_patterns=wanted))
    except (OSError, ValueError) as bad:
        raise ModelError(f"{source}: cannot be fetched from the hub: {' '.join(str(bad).split())[:300]}") from None


def _named(folder: Path) -> str | None:
    """The file that the configuration names in place of the usual ones; `ModelError` where it is none beside it."""
    config = folder / "config.json"
    content = read_json(config, ModelError) if config.is_file() else None
    name = content.get("transformers_weights") if isinstance(content, dict) else None
    if name is None:
        return None
    if not _is_file_name(name, ".safetensors", _INDEXED) or not (folder / name).is_file():
        raise ModelError(
            f"{config}: transformers_weights is {shown(name)}, which is no safetensors file beside it; copy that file "
            "there, or save the model again"
        )
    return str(name)


def _is_file_name(value: object, *endings: str) -> bool:
    # An index is from outside: it must not lead out of its folder.
    return isinstance(value, str) and Path(value).name == value and value.endswith(endings or ".safetensors")
