"""Whether two models are of a kind: their architectures, and which tensor of the one is which of the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from backslide.cure.weights import Weights
from backslide.errors import ModelError, shown
from backslide.files import read_json
from backslide.models import quiet

_ASIDE = frozenset((
    "architectures", "auto_map", "chunk_size_feed_forward", "dtype", "gradient_checkpointing", "id2label", "label2id",
    "model_type", "num_labels", "pretraining_tp", "problem_type", "quantization_config", "return_dict",
    "task_specific_params", "tie_word_embeddings", "torch_dtype", "transformers_version", "transformers_weights",
    "use_cache", "vocab_size",
))  # fmt: skip
"""Entries of a configuration that do not change what the same weights compute."""
_NO_LINE = "they have no line: name the model that it was trained from"


def same(base: str, tuned: str, base_folder: Path, folder: Path, start: Weights, end: Weights) -> dict[str, str]:
    """For each tensor of the tuned model the name of the base's; `ModelError` where they are no two of a kind."""
    configs = [read_json(place / "config.json", ModelError) for place in (base_folder, folder)]
    kinds = [str(config.get("model_type")) for config in configs]
    if kinds[0] != kinds[1]:
        raise ModelError(f"{tuned}: is of the architecture {kinds[1]}, and {base} of {kinds[0]}; {_NO_LINE}")
    free, found = aliases(base_folder), {}
    tied = aliases(folder)
    prefixes = sorted({name.split(".")[0] for name in (*start.where, *end.where)})

    def partner(name: str, weights: Weights, other: dict[str, str]) -> str | None:
        wanted = [name, other[name]] if name in other else [name]
        return next((v for w in wanted for prefix in prefixes for v in variants(w, prefix) if v in weights.where), None)

    for name in end.where:
        old = partner(name, start, free)
        if old is None:
            raise ModelError(f"{tuned}: has {name}, which {base} has not; {_NO_LINE}")
        check_shape(tuned, base, name, start.tensor(old).shape, end.tensor(name).shape)
        found[name] = old
    lost = [
        name
        for name in start.where.keys() - set(found.values())
        if name not in free and partner(name, end, tied) is None
    ]
    if lost:
        raise ModelError(f"{tuned}: has no {min(lost)}, which {base} has; {_NO_LINE}")
    if untied := [name for name in tied if name in start.where and name not in free and name not in end.where]:
        raise ModelError(
            f"{tuned}: its {untied[0]} is tied to {tied[untied[0]]}, and that of {base} is a tensor of its own; "
            f"{_NO_LINE}, or save it with one of its own (tie_word_embeddings=False)"
        )
    return found


def check_shape(tuned: str, base: str, name: str, old: torch.Size, new: torch.Size) -> None:
    """Raise `ModelError` where two tensors of one name have no line: their shapes differ."""
    # A larger vocabulary adds rows; so does nothing else that keeps its name.
    more = len(old) == len(new) > 0 and old[1:] == new[1:] and new[0] > old[0] and is_vocabulary(name)
    if old != new and not more:
        raise ModelError(f"{tuned}: its {name} is {list(new)}, and that of {base} {list(old)}; {_NO_LINE}")


def differences(base: str, base_folder: Path, folder: Path) -> tuple[str, ...]:
    """What in the configuration of the tuned model makes the same weights compute something else than in the base.

    Of what `transformers` reads, defaults filled in; entries that are about training, saving or writing text, and those
    that the tensors show, do not count.
    """
    start, end = _computing(base_folder), _computing(folder)
    names = [name for name in sorted(start.keys() | end.keys()) if start.get(name) != end.get(name)]
    return tuple(f"{name} is {shown(end.get(name))}, and {shown(start.get(name))} in {base}" for name in names)


def _computing(folder: Path) -> dict[str, Any]:
    """The entries of a configuration that change what is computed, with the places of those within others."""
    from transformers import AutoConfig

    with quiet():
        config = AutoConfig.from_pretrained(folder)
    # What a class has no default for, such as the version of the tool that wrote the file, no model reads.
    known = type(config)().to_dict()
    found = dict(_entries({name: value for name, value in config.to_dict().items() if name in known}))
    ropes = {value for name, value in found.items() if name.endswith("rope_type")}
    if ropes and ropes <= {"default", "linear", "llama3"}:
        # Positions are then turned by themselves alone, whatever the most of them.
        found = {name: value for name, value in found.items() if not name.endswith("max_position_embeddings")}
    return found


def _entries(config: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if name.startswith("_") or name in _ASIDE or name.endswith(("_token_id", "_token_ids")):
            continue
        if any(word in name for word in ("drop", "initializer")) or name.startswith(("output_", "router_aux")):
            continue
        if isinstance(value, dict):
            yield from _entries(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def is_vocabulary(name: str) -> bool:
    """Whether a tensor of this name has a row for each token."""
    return any(part in ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "tok_embeddings", "output",
                        "word_embeddings", "embeddings") for part in name.split("."))  # fmt: skip


def aliases(folder: Path) -> dict[str, str]:
    """Tensors that are another one's under a second name, as in tied embeddings, by the model's own account."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    except (OSError, ValueError, KeyError, ImportError) as bad:
        reason = " ".join(str(bad).split()) or type(bad).__name__
        raise ModelError(f"{folder}: is no causal language model that transformers knows: {reason[:200]}") from None
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def variants(name: str, prefix: str) -> Iterator[str]:
    """A tensor's name, and that which it has where a model was saved with, or without, its head."""
    yield name
    if prefix:
        yield f"{prefix}.{name}"
        if name.startswith(f"{prefix}."):
            yield name.removeprefix(f"{prefix}.")
