"""The base: its files, tokenizer and size, without loading its weights; and what fits into memory and onto the disk."""

from __future__ import annotations

import difflib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from backslide.config import TuneConfig
from backslide.data import TrainingData
from backslide.doctor.findings import Notebook
from backslide.errors import InputError
from backslide.models import best_dtype, quiet, resolve

LOOKED_AT = 2000
"""Training examples whose tokens are counted."""
CUT = 0.05
"""Share of examples that are cut from which on it is said."""
TIGHT = 0.8
"""Share of the free memory above which little is left for the batches."""
ADAM = 2
"""States that the optimizer keeps of each trained weight."""


@dataclass(frozen=True)
class Size:
    """What is known of a model from its configuration."""

    parameters: int
    trained: int
    bytes_each: int


def look_at_model(config: TuneConfig, train: TrainingData | None, notes: Notebook) -> Size | None:
    """Say what is wrong with the base and its tokenizer; its size, None where it could not be read."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_utils import SchedulerType

    known = [str(kind.value) for kind in SchedulerType]
    if config.train.scheduler not in known:
        near = difflib.get_close_matches(config.train.scheduler, known, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known[:6])}, …"
        notes.error("train.scheduler", f"{config.train.scheduler!r} is no schedule of transformers", mend)
    base = config.model.base
    try:
        place = resolve(base)
    except InputError as bad:
        notes.error("model.base", bad)
        return None
    if (Path(place) / "adapter_config.json").is_file():
        notes.error("model.base", f"{base} is an adapter", "merge it into its base, or give the base itself")
        return None
    try:
        with quiet():
            found = AutoConfig.from_pretrained(place)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(found)
            tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as bad:  # whatever transformers says of a folder, or of a hub that it does not reach
        why = " ".join(str(bad).split())[:300]
        notes.error("model.base", f"{base} cannot be read: {type(bad).__name__}: {why}", "a folder always works")
        return None
    trained = _trained(config, model, notes)
    kind = _dtype(config)
    size = Size(sum(p.numel() for p in model.parameters()), trained, torch.finfo(kind).bits // 8)
    share = f"{size.trained / size.parameters:.1%}" if size.trained < size.parameters else "all"
    notes.fact(
        "model", f"{base}: {size.parameters:,} parameters, {share} of them trained, {str(kind).removeprefix('torch.')}"
    )
    if kind == torch.bfloat16 and not torch.cuda.is_available() and best_dtype() != torch.bfloat16:
        notes.warning(
            "model.dtype", "this CPU has no bf16 instructions: it is many times slower than in fp32", 'dtype = "auto"'
        )
    _tokens(config, train, tokenizer, found, notes)
    return size


def _dtype(config: TuneConfig) -> Any:
    if config.model.dtype != "auto":
        return getattr(torch, config.model.dtype, torch.float32)
    return torch.float32 if config.train.method == "full" else best_dtype()


def _trained(config: TuneConfig, model: Any, notes: Notebook) -> int:
    """How many weights would be trained."""
    if config.train.method == "full":
        return sum(p.numel() for p in model.parameters())
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    head = model.get_output_embeddings()
    wanted = config.lora.target_modules
    if wanted == "all-linear":
        chosen = [module for module in linear.values() if module is not head]
    elif isinstance(wanted, str):
        try:
            chosen = [module for name, module in linear.items() if re.fullmatch(wanted, name)]
        except re.error as bad:
            notes.error("lora.target_modules", f"{wanted!r} is no regular expression: {bad}", "or give a list of names")
            return 0
        if not chosen:
            notes.error("lora.target_modules", f"{wanted!r} matches no linear layer of the model", _known(linear))
    else:
        chosen = []
        for one in wanted:
            matching = [module for name, module in linear.items() if name == one or name.endswith(f".{one}")]
            chosen += matching
            if not matching:
                ends = sorted({name.rpartition(".")[2] for name in linear})
                near = difflib.get_close_matches(one, ends, n=1)
                mend = f"did you mean {near[0]!r}?" if near else _known(linear)
                tell = notes.warning if len(wanted) > 1 else notes.error
                tell("lora.target_modules", f"{one!r} is no linear layer of the model", mend)
    return sum(
        config.lora.r * (module.in_features + module.out_features) for module in {id(m): m for m in chosen}.values()
    )


def _known(linear: dict[str, Any]) -> str:
    return f'it has {", ".join(sorted({name.rpartition(".")[2] for name in linear}))}; "all-linear" takes them all'


def _tokens(config: TuneConfig, train: TrainingData | None, tokenizer: Any, found: Any, notes: Notebook) -> None:
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        notes.error("model.base", "its tokenizer has neither a padding nor an end token", "set pad_token")
    limit = config.train.max_length
    context = getattr(found.get_text_config(), "max_position_embeddings", None)
    if isinstance(context, int) and 0 < context < limit:
        notes.warning(
            "train.max_length", f"{limit}, and the model was made for {context} tokens", f"set it to {context} or less"
        )
    if train is None:
        return
    if train.chats and not tokenizer.chat_template:
        notes.warning(
            "data.train",
            "the tokenizer has no chat template: messages would be trained on as plain text, a line a turn",
            "set a template, or take the model's chat version",
        )
        train = train.as_text()
    lengths, starts = [], []
    try:
        for row in train.rows[:: max(1, len(train.rows) // LOOKED_AT)]:
            whole, start = _row(row, tokenizer)
            lengths.append(whole)
            starts.append(start)
    except Exception as bad:  # a template raises what it likes
        notes.error("data.train", f"the chat template takes not all messages: {' '.join(str(bad).split())[:200]}")
        return
    cut = sum(length > limit for length in lengths) / len(lengths)
    middle = sorted(lengths)[len(lengths) // 2]
    notes.fact("tokens of an example", f"{middle:,} in the middle, at most {max(lengths):,}; cut at {limit:,}")
    if cut > CUT:
        notes.warning(
            "train.max_length", f"{cut:.0%} of the examples are longer than {limit} tokens and lose their end",
            f"set it to {sorted(lengths)[int(0.99 * (len(lengths) - 1))]}, or split them",
        )  # fmt: skip
    mute = sum(start >= limit for start in starts) / len(starts)
    if mute > 0:
        notes.warning(
            "train.max_length",
            f"in {mute:.1%} of the examples the prompt alone fills {limit} tokens: nothing of the completion is learnt",
            "raise it, or shorten the prompts",
        )


def _row(row: dict[str, Any], tokenizer: Any) -> tuple[int, int]:
    """Tokens of an example, and those before the first that is learnt."""

    def chat(turns: Any, prompt: bool = False) -> int:
        made = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, add_generation_prompt=prompt)
        return len(made["input_ids"])

    if "messages" in row:
        return chat(row["messages"]), 0
    if "text" in row:
        return len(tokenizer(row["text"], verbose=False)["input_ids"]) + 1, 0
    if isinstance(row["prompt"], str):
        both, asked = (
            len(tokenizer(t, verbose=False)["input_ids"]) for t in (row["prompt"] + row["completion"], row["prompt"])
        )
        return both + 1, asked
    return chat([*row["prompt"], *row["completion"]]), chat(row["prompt"], prompt=True)


def look_at_room(config: TuneConfig, size: Size, notes: Notebook) -> None:
    """Say whether the weights, their gradients and the optimizer can fit, and what the run would write."""
    each = size.bytes_each
    # Adapters are kept in fp32 beside half-precision weights.
    trained = 4 if config.train.method == "lora" else each
    needed = size.parameters * each + size.trained * trained * (1 + ADAM)
    if config.train.method == "lora":
        needed += size.trained * trained
    goes_back = config.on_regression in ("rollback", "auto")
    kept = size.trained * trained * (1 + ADAM) if goes_back else 0
    cuda = torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
    where = "GPU" if cuda else "memory"
    notes.fact("memory", f"{_gib(needed)} for weights, gradients and optimizer; {_gib(free)} free ({where})")
    # A snapshot lies in the CPU's memory, or on disk.
    beside = 0 if cuda or config.guard.snapshots == "disk" else kept
    full = config.train.method == "full"
    if needed > free:
        notes.error(
            "train.method" if full else "model.base",
            f"weights, gradients and optimizer alone need {_gib(needed)}, and {_gib(free)} are free ({where})",
            'train an adapter (method = "lora")' if full else 'dtype = "bfloat16", or a smaller model',
        )
    elif needed + beside > TIGHT * free:
        notes.warning(
            "train.batch_size",
            f"weights, gradients and optimizer{' and the snapshot' if beside else ''} take {_gib(needed + beside)} of "
            f"{_gib(free)} ({where}): little is left for the batches",
            "gradient_checkpointing = true, or a smaller batch" + (', or snapshots = "disk"' if beside else ""),
        )
    _disk(config, size.trained * trained if config.train.method == "lora" else size.parameters * each, kept, notes)


def _disk(config: TuneConfig, model: int, kept: int, notes: Notebook) -> None:
    folder = config.folder
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        notes.error("output.dir", f"{folder} is a file", "name a folder")
        return
    free = shutil.disk_usage(folder).free
    needed = model + (kept if config.guard.snapshots == "disk" else 0)
    if needed > free:
        notes.error(
            "output.dir", f"the model takes {_gib(needed)}, and {_gib(free)} are free on its disk", "name another place"
        )
    if (config.folder / "run.json").is_file():
        notes.note(
            "output.dir", f"{config.folder} holds a run already", "name another folder to keep both side by side"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
