"""The base: its files, tokenizer and size, without loading its weights."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backslide.config import TuneConfig
from backslide.data import TrainingData
from backslide.doctor.findings import Notebook
from backslide.errors import ConfigError, InputError
from backslide.models import DTYPES, best_dtype, quiet, resolve
from backslide.schedules import check_schedule

LOOKED_AT = 2000
"""Training examples whose tokens are counted."""
CUT = 0.05
"""Share of examples that are cut from which on it is said."""


@dataclass(frozen=True)
class Base:
    """What is known of a base from its configuration and its tokenizer."""

    parameters: int
    trained: int
    """0: it could not be told."""
    bytes_each: int
    weights: int | None
    """Bytes of its weights as they are loaded; None: quantised, of which only the files could tell."""
    mute: float
    """Share of the examples in which nothing is learnt: the trainer leaves them out."""


def look_at_model(
    config: TuneConfig, train: TrainingData | None, old: TrainingData | None, notes: Notebook
) -> Base | None:
    """Say what is wrong with the base and its tokenizer; None where it could not be read.

    Args:
        config: of the run.
        train: the training data, where it could be read.
        old: the data that are replayed, where there are any.
        notes: gets the findings.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if config.model.dtype not in DTYPES:
        notes.error("model.dtype", f"{config.model.dtype!r} is none of {', '.join(DTYPES)}")
        return None
    try:
        with quiet():
            check_schedule(config.train.scheduler, config.train.warmup_steps)
    except ConfigError as bad:
        notes.error("train.scheduler", bad)
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
            tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as bad:  # whatever transformers says of a folder, or of a hub that it does not reach
        why = " ".join(str(bad).split())[:300]
        notes.error("model.base", f"{base} cannot be read: {type(bad).__name__}: {why}", "a folder always works")
        return None
    try:
        with quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(found)
    except Exception as bad:  # some models compute with their weights as they are made
        notes.note("model.base", f"its size and layers cannot be told without loading it: {type(bad).__name__}")
        model = None
    kind = dtype_of(config)
    if kind == torch.bfloat16 and not torch.cuda.is_available() and best_dtype() != torch.bfloat16:
        notes.warning(
            "model.dtype", "this CPU has no bf16 instructions: it is many times slower than in fp32", 'dtype = "auto"'
        )
    mute = _tokens(config, train, old, tokenizer, found, model, notes)
    if model is None:
        return None
    parameters = sum(p.numel() for p in model.parameters())
    trained = parameters if config.train.method == "full" else _adapted(config, model, notes)
    quantised = _quantised(found, notes)
    each = torch.finfo(kind).bits // 8
    share = "all" if config.train.method == "full" else f"{trained / parameters:.1%}" if trained else "some"
    how = "quantised" if quantised else str(kind).removeprefix("torch.")
    notes.fact("model", f"{base}: {parameters:,} parameters, {share} of them trained, {how}")
    return Base(parameters, trained, each, None if quantised else parameters * each, mute)


def dtype_of(config: TuneConfig) -> Any:
    """The dtype that the base would be loaded in."""
    if config.model.dtype != "auto":
        return getattr(torch, config.model.dtype)
    return torch.float32 if config.train.method == "full" else best_dtype()


def _quantised(found: Any, notes: Notebook) -> bool:
    """Whether the base's weights are quantised; what they need is checked by transformers itself."""
    quantization = getattr(found, "quantization_config", None)
    if quantization is None:
        return False
    from transformers.quantizers import AutoHfQuantizer

    try:
        with quiet():
            AutoHfQuantizer.from_config(quantization, pre_quantized=True).validate_environment()
    except ImportError as bad:
        notes.error("model.base", f"it is quantised: {' '.join(str(bad).split())[:200]}", "install what it names")
    except Exception as bad:  # what else it asks for depends on where it is loaded
        notes.note("model.base", f"it is quantised, and says: {' '.join(str(bad).split())[:200]}")
    return True


def _adapted(config: TuneConfig, model: Any, notes: Notebook) -> int:
    """How many weights the adapter has, by PEFT itself; 0 where it refuses."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        notes.error("train.method", "PEFT is not installed", 'pip install "backslide[train]"')
        return 0
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    layers = [(name, module) for name, module in model.named_modules() if module is not head]
    ends = sorted({name.rpartition(".")[2] for name, module in layers if isinstance(module, (torch.nn.Linear, Conv1D))})
    try:
        with quiet(), torch.device("meta"):
            lora = LoraConfig(
                r=config.lora.r, lora_alpha=config.lora.alpha, target_modules=config.lora.target_modules,
                task_type="CAUSAL_LM",
            )  # fmt: skip
            adapted = get_peft_model(model, lora)
    except ValueError as bad:
        notes.error("lora.target_modules", " ".join(str(bad).split())[:300], _layers(config, ends))
        return 0
    except Exception as bad:  # a layer that cannot be adapted without its weights
        notes.note("lora.target_modules", f"the adapter's size cannot be told: {type(bad).__name__}")
        return 0
    if hasattr(adapted.get_base_model().get_output_embeddings(), "lora_A"):
        # TRL computes the loss from the head's own weights, and refuses.
        notes.error("lora.target_modules", "names the output layer, on which TRL trains no adapter", "leave it out")
    if isinstance(config.lora.target_modules, list):
        for one in config.lora.target_modules:
            if not any(name == one or name.endswith(f".{one}") for name, _ in layers):
                notes.warning("lora.target_modules", f"the model has no layer {one!r}", _layers(config, ends))
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def _layers(config: TuneConfig, ends: list[str]) -> str:
    """The names that could have been meant."""
    wanted = config.lora.target_modules
    missing = [one for one in wanted if one not in ends] if isinstance(wanted, list) else [wanted]
    near = difflib.get_close_matches(missing[0], ends, n=1) if missing else []
    return f"did you mean {near[0]!r}?" if near else f'it has {", ".join(ends)}; or "all-linear"'


def _tokens(
    config: TuneConfig,
    train: TrainingData | None,
    old: TrainingData | None,
    tokenizer: Any,
    found: Any,
    model: Any,
    notes: Notebook,
) -> float:
    """Look at the examples as tokens; the share of those in which nothing is learnt."""
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        notes.error("model.base", "its tokenizer has neither a padding nor an end token", "set pad_token and eos_token")
    elif tokenizer.eos_token is None and train is not None and not (train.chats and tokenizer.chat_template):
        notes.error("model.base", "its tokenizer has no end token, which is put behind each example", "set eos_token")
    if old is not None and old.chats and not tokenizer.chat_template and config.cure.replay > 0:
        notes.error("cure.data", "is chat, and the tokenizer has no chat template", "set a template, or give texts")
    if train is None:
        return 0.0
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
            length, start = _row(row, tokenizer)
            lengths.append(length)
            starts.append(start)
    except Exception as bad:  # a template raises what it likes
        notes.error("data.train", f"the chat template takes not all messages: {' '.join(str(bad).split())[:200]}")
        return 0.0
    limit = config.train.max_length
    _context(limit, max(lengths), found, model, notes)
    cut = sum(length > limit for length in lengths) / len(lengths)
    middle = sorted(lengths)[len(lengths) // 2]
    notes.fact("tokens of an example", f"{middle:,} in the middle, at most {max(lengths):,}; cut at {limit:,}")
    if cut > CUT:
        notes.warning(
            "train.max_length",
            f"{cut:.0%} of the examples are longer than {limit} tokens and lose their end",
            f"set it to {sorted(lengths)[int(0.99 * (len(lengths) - 1))]}, or split them",
        )
    mute = sum(start >= limit for start in starts) / len(starts)
    if mute > 0:
        tell = notes.error if mute == 1 else notes.warning
        tell(
            "train.max_length",
            f"in {mute:.1%} of the examples the prompt alone fills {limit} tokens: nothing of the completion is learnt",
            "raise it, or shorten the prompts",
        )
    return mute


def _context(limit: int, longest: int, found: Any, model: Any, notes: Notebook) -> None:
    """Whether rows would be longer than what the model was made for."""
    context = getattr(found.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int) or not 0 < context < min(limit, longest):
        return
    # Learned positions end there; computed ones go on, into what was never trained.
    learned = model is not None and any(
        isinstance(module, torch.nn.Embedding) and context <= module.num_embeddings <= context + 8
        for name, module in model.named_modules()
        if "pos" in name.lower() or "wpe" in name
    )
    tell = notes.error if learned else notes.warning
    tell(
        "train.max_length",
        f"rows would have up to {min(limit, longest)} tokens, and the model was made for {context}",
        f"set it to {context} or less",
    )


def _row(row: dict[str, Any], tokenizer: Any) -> tuple[int, int]:
    """Tokens of an example, and those before the first that is learnt."""

    def chat(turns: Any, prompt: bool = False) -> int:
        made = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, add_generation_prompt=prompt)
        return len(made["input_ids"])

    def text(words: str) -> int:
        return len(tokenizer(words, verbose=False)["input_ids"])

    if "messages" in row:
        return chat(row["messages"]), 0
    if "text" in row:
        return text(row["text"]) + 1, 0
    if isinstance(row["prompt"], str):
        return text(row["prompt"] + row["completion"]) + 1, text(row["prompt"])
    return chat([*row["prompt"], *row["completion"]]), chat(row["prompt"], prompt=True)
