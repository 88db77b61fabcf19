"""The line between a base and what was tuned from it: θ(α) = θ_base + α (θ_tuned - θ_base), α in [0, 1].

Source: Wortsman et al. (2022), "Robust fine-tuning of zero-shot models" (WiSE-FT), arXiv 2109.01903, equation 1.

Everything is computed tensor by tensor from mapped safetensors files, in fp32, and rounded to the dtype of the tuned
model's file. At α = 0 and α = 1 nothing is computed: the tensors are those of the base and of the tuned model, bit
for bit (at 0 rounded where the tuned file has another dtype). A LoRA adapter's own line is its scale: B is multiplied
by α, so ΔW = scaling · B A is. Whole tensors in an adapter's file (`modules_to_save`, trained biases) lie on the line
to the base's own.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from backslide.cure.alike import aliases, check_shape, differences, is_vocabulary, same, variants
from backslide.cure.weights import ADAPTER, Weights, folder_of
from backslide.errors import ModelError
from backslide.files import read_json
from backslide.models import BUILTIN, lasting_name, name_base, quiet
from backslide.scoring.adapters import KEEPS_BASE

_BESIDE = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm", ".vocab", ".bpe", ".py")
"""Endings of what belongs to a model beside its weights: configuration, tokenizer, chat template."""
_MERGE = "merge it into its base (merge_and_unload, save_pretrained), and repair the merged folder"
_TRAINING = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")


class Line(ABC):
    """Every point between the base and the tuned model."""

    def __init__(self, base: str, tuned: str, base_folder: Path, folder: Path, ends: tuple[Weights, Weights]) -> None:
        self.base = base
        """What the user called the base."""
        self.tuned = tuned
        self.base_folder = base_folder
        self.folder = folder
        """Of the tuned model."""
        self._start, self._end = ends

    @abstractmethod
    def tensor(self, name: str, alpha: float) -> torch.Tensor:
        """The tensor `name` of the tuned model's files, at α."""

    @abstractmethod
    def fits(self, model: Any) -> bool:
        """Whether `put` can reach the weights of `model`, loaded from the point 1.

        False where its parameters are not the tensors of the files (experts that are fused when they are loaded,
        say): a point is then to be written and loaded.
        """

    @abstractmethod
    def put(self, model: Any, alpha: float) -> None:
        """Give `model`, which fits, the weights at α, in place."""

    def write(self, folder: Path, alpha: float) -> None:
        """Write the point α as a model folder like the tuned one; in memory is one shard at a time.

        Beside the weights, configuration, tokenizer and chat template are those of the tuned model.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and (path.suffix in _BESIDE or path.name.startswith(("LICENSE", "NOTICE"))):
                # An index that is not read is of weights that are no more, or of another format's.
                stale = path.name.endswith(".index.json") and path.name != self._end.index
                if path.name not in _TRAINING and not stale:
                    shutil.copyfile(path, folder / path.name)
            elif path.name == "additional_chat_templates" and path.is_dir():
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        for file in self._end.files:
            if alpha == 1:
                shutil.copyfile(self.folder / file, folder / file)
                continue
            shard: dict[str, torch.Tensor] = {}
            for name in self._end.names(file):
                tensor = self.tensor(name, alpha).contiguous()
                # At 0 a head that is free in the tuned model is the base's embeddings; a file holds it by itself.
                shared = any(tensor.data_ptr() == other.data_ptr() for other in shard.values())
                shard[name] = tensor.clone() if shared else tensor
            save_file(shard, folder / file, metadata=self._end.metadata(file))

    def fingerprints(self) -> tuple[str, str]:
        """Digests of the base's weights and of the tuned ones, as their files hold them."""
        return self._start.fingerprint(), self._end.fingerprint()

    @property
    def differences(self) -> tuple[str, ...]:
        """What makes the base's weights compute something else in the tuned model's configuration than in their own."""
        return ()

    @property
    def exact_start(self) -> bool:
        """Whether the point 0 is the base: no more rows, no dtype that rounds, nothing else that is computed."""
        return True

    @property
    def grown(self) -> bool:
        """Whether the tuned model has rows that the base has not."""
        return False


class FullLine(Line):
    """Between two whole models."""

    def __init__(self, base: str, tuned: str, base_folder: Path, folder: Path) -> None:
        ends = Weights.of_model(base_folder), Weights.of_model(folder)
        super().__init__(base, tuned, base_folder, folder, ends)
        self._names = same(base, tuned, base_folder, folder, *ends)
        self._differences = differences(base, base_folder, folder)

    def tensor(self, name: str, alpha: float) -> torch.Tensor:
        """The tensor `name` of the tuned model's files, at α."""
        return between(self._start.tensor(self._names[name]), self._end.tensor(name), alpha)

    def fits(self, model: Any) -> bool:
        """Whether the files' tensors are the model's parameters."""
        places = self._places(model)
        return places is not None and all(
            torch.equal(place.cpu(), self._end.tensor(name).to(place.dtype)) or place.isnan().any()
            for name, place in places.items()
        )

    def put(self, model: Any, alpha: float) -> None:
        """Give `model` the weights at α, in place."""
        places = self._places(model)
        assert places is not None, "asked of a model that does not fit"
        with torch.no_grad():
            for name, place in places.items():
                place.copy_(self.tensor(name, alpha))

    def _places(self, model: Any) -> dict[str, torch.Tensor] | None:
        """Where in the model each tensor of the files is; None where that cannot be told for all."""
        held = model.state_dict()
        prefix = getattr(model, "base_model_prefix", "")
        found: dict[str, torch.Tensor] = {}
        for name in self._end.where:
            place = next((held[n] for n in variants(name, prefix) if n in held), None)
            if place is None or place.shape != self._end.tensor(name).shape:
                return None
            found[name] = place
        reached = {place.data_ptr() for place in found.values()}
        return found if all(p.data_ptr() in reached for p in model.parameters()) else None

    @property
    def differences(self) -> tuple[str, ...]:
        """What makes the base's weights compute something else in the tuned model's configuration than in their own."""
        return self._differences

    @property
    def exact_start(self) -> bool:
        """Whether the point 0 is the base: no more rows, no dtype that rounds, nothing else that is computed."""
        return (
            not self.grown
            and not self._differences
            and all(torch.promote_types(a.dtype, b.dtype) == b.dtype for a, b in self._pairs())
        )

    @property
    def grown(self) -> bool:
        """Whether the tuned model has rows that the base has not."""
        return any(a.shape != b.shape for a, b in self._pairs())

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return ((self._start.tensor(old), self._end.tensor(name)) for name, old in self._names.items())


class AdapterLine(Line):
    """Between a base and a LoRA adapter on it."""

    def __init__(self, base: str, tuned: str, base_folder: Path, folder: Path) -> None:
        ends = Weights.of_model(base_folder), Weights(folder, (ADAPTER,))
        super().__init__(base, tuned, base_folder, folder, ends)
        self.config: dict[str, Any] = read_json(folder / "adapter_config.json", ModelError)
        _is_plain_lora(tuned, self.config)
        other_names = aliases(base_folder)
        self._whole: dict[str, str] = {}
        for name in self._end.where:
            if _lora_part(name) is None:
                self._whole[name] = self._of_base(name, other_names)
            else:
                self._check_rows(name, other_names)

    def _of_base(self, name: str, other_names: dict[str, str]) -> str:
        """The base's own tensor for a whole one in the adapter's file."""
        found = self._find(name, other_names)
        if found is None:
            raise ModelError(f"{self.tuned}: has {name}, which is neither LoRA nor a tensor of {self.base}; {_MERGE}")
        old, new = self._start.tensor(found).shape, self._end.tensor(name).shape
        if is_vocabulary(name) and old and new and old[1:] == new[1:]:
            self._check_grown(name, old[0], new[0])
        check_shape(self.tuned, self.base, name, old, new)
        return found

    def _check_rows(self, name: str, other_names: dict[str, str]) -> None:
        """Refuse LoRA on a vocabulary larger than the base's, whose own rows may not be in the adapter's file."""
        module, _, part = name.rpartition(".lora_")
        axis = {"embedding_A": 1, "B.weight": 0}.get(part)
        if axis is not None and is_vocabulary(module) and (found := self._find(f"{module}.weight", other_names)):
            self._check_grown(name, self._start.tensor(found).shape[0], self._end.tensor(name).shape[axis])

    def _check_grown(self, name: str, old: int, new: int) -> None:
        # PEFT itself puts it only on a base that was resized before, which no file holds.
        if new > old:
            raise ModelError(
                f"{self.tuned}: its {name} is of {new} tokens, and {self.base} has {old}; resize that base "
                "(resize_token_embeddings), merge the adapter into it (merge_and_unload, save_pretrained), and repair "
                "the merged folder"
            )

    def _find(self, name: str, other_names: dict[str, str]) -> str | None:
        """The base's tensor that an adapter's file has under PEFT's name."""
        plain = name.removeprefix("base_model.model.")
        for wrapper in ("base_layer", "original_module", "modules_to_save"):
            plain = plain.replace(f".{wrapper}.", ".")
        prefixes = sorted({name.split(".")[0] for name in self._start.where})
        for wanted in dict.fromkeys((plain, other_names.get(plain, plain))):
            for variant in (v for prefix in prefixes for v in variants(wanted, prefix)):
                if variant in self._start.where:
                    return variant
        return None

    def tensor(self, name: str, alpha: float) -> torch.Tensor:
        """The tensor `name` of the adapter's file, at α."""
        end, part = self._end.tensor(name), _lora_part(name)
        if part == "A":
            return end
        return between(torch.zeros_like(end) if part == "B" else self._start.tensor(self._whole[name]), end, alpha)

    def fits(self, model: Any) -> bool:
        """Whether the adapter's tensors are found in the model."""
        from peft import get_peft_model_state_dict

        with quiet():
            return set(get_peft_model_state_dict(model, save_embedding_layers=False)) >= {
                name for name in self._end.where if _lora_part(name) is not None
            }

    def put(self, model: Any, alpha: float) -> None:
        """Give `model` the adapter's weights at α, in place."""
        from peft import set_peft_model_state_dict

        with quiet(), torch.no_grad():
            set_peft_model_state_dict(model, {name: self.tensor(name, alpha) for name in self._end.where})

    def write(self, folder: Path, alpha: float) -> None:
        """Write the point α as an adapter folder like the tuned one, on the base that the user named."""
        super().write(folder, alpha)
        named = str(self.config.get("base_model_name_or_path"))
        if self.base == BUILTIN or not _names(named, self.base_folder, lasting_name(self.base)):
            name_base(folder, self.base)


def open_line(base: str, tuned: str, say: Callable[[str], None] | None = None) -> Line:
    """The line between two models.

    Args:
        base: a model folder, hub id or `smollm2-135m-instruct`.
        tuned: what was trained from it: a whole model, or a LoRA adapter on it.
        say: told what takes long.

    Raises:
        ModelError: one of them is missing, cannot be read, or they have no line: other architecture, names or shapes,
            quantised weights, an adapter that is not plain LoRA.
    """
    base_folder, folder = folder_of(base, say), folder_of(tuned, say)
    if (base_folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{base}: is an adapter, and the base is to be a whole model; merge it into its own base "
            "(merge_and_unload, save_pretrained), and name the merged folder"
        )
    for name, place in ((base, base_folder), (tuned, folder)):
        if (place / "config.json").is_file() and "quantization_config" in read_json(place / "config.json", ModelError):
            raise ModelError(f"{name}: its weights are quantised, and have no line; give it in bf16, fp16 or fp32")
    kind = AdapterLine if (folder / "adapter_config.json").is_file() else FullLine
    return kind(base, tuned, base_folder, folder)


def between(start: torch.Tensor, end: torch.Tensor, alpha: float) -> torch.Tensor:
    """Linear: start + α (end - start), in fp32 (fp64 where one of them is), in the dtype of `end`.

    Where `end` has more rows, as after tokens were added, the further ones are its own at every α. What is no floating
    point number is that of `end`. At 0 and 1 nothing is computed.
    """
    if alpha == 1 or not end.is_floating_point():
        return end
    rows = len(start) if start.ndim and start.shape != end.shape else None
    if rows is not None:
        return torch.cat([between(start, end[:rows], alpha), end[rows:]])
    if alpha == 0:
        return start.to(end.dtype)
    wide = torch.float64 if torch.float64 in (start.dtype, end.dtype) else torch.float32
    first = start.to(wide)
    # In place: of a large tensor each further one counts.
    return (end.to(wide) - first).mul_(alpha).add_(first).to(end.dtype)


def _lora_part(name: str) -> str | None:
    parts = name.split(".")
    if "lora_A" in parts or "lora_embedding_A" in parts:
        return "A"
    return "B" if "lora_B" in parts or "lora_embedding_B" in parts else None


def _is_plain_lora(tuned: str, config: dict[str, Any]) -> None:
    kind = str(config.get("peft_type"))
    why = None
    if kind != "LORA":
        why = f"is an adapter of type {kind}, which has no scale"
    elif config.get("use_dora"):
        why = "is a DoRA adapter, which changes the weights' length too"
    elif config.get("init_lora_weights", True) not in KEEPS_BASE:
        why = (
            f"was made with init_lora_weights={config['init_lora_weights']!r}, which takes a part of the base's weights"
        )
    else:
        odd = ("layer_replication", "trainable_token_indices", "kasa_config", "monteclora_config", "use_qalora",
               "alora_invocation_tokens", "arrow_config", "megatron_config")  # fmt: skip
        if used := [name for name in odd if config.get(name)]:
            why = f"uses {used[0]}"
    if why:
        raise ModelError(f"{tuned}: {why}; {_MERGE}")


def _names(named: str, folder: Path, lasting: str) -> bool:
    """Whether a base goes by this name wherever the adapter is read."""
    path = Path(named).expanduser()
    return named == lasting or (path.is_dir() and path.is_absolute() and path.resolve() == folder.resolve())
