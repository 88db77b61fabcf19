"""The configuration of `backslide tune`: frozen dataclasses, read from TOML and checked before anything is loaded.

No torch. Paths are relative to the current folder, as in the tools around it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backslide.errors import ConfigError, SuiteError
from backslide.files import read_text
from backslide.suite.lm_eval import TaskOptions

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

METHODS = ("lora", "full")
POLICIES = ("warn", "stop", "rollback", "lower_lr", "replay", "auto")
SELF = "self"
"""As the data of the cures: the base model's own replies to the bundled prompts."""
USUAL_RATE = {"lora": 2e-4, "full": 2e-5}
"""Learning rates where the user names none: what TRL's and PEFT's guides use."""


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """`[model]`: what is fine-tuned."""

    base: str
    """A model folder, hub id, or `smollm2-135m-instruct`."""
    dtype: str = "auto"
    """`auto`: fp32 for full fine-tuning, whose small updates bf16 weights would round away; else the fastest."""


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """`[data]`: JSON Lines with `text`, with `prompt` and `completion`, or with chat `messages`."""

    train: str
    held_out: str | None = None
    """For the target's own loss, of the same format."""


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """`[train]`: how it is trained."""

    method: str = "lora"
    learning_rate: float | None = None
    """None: 2e-4 for an adapter, 2e-5 for full fine-tuning."""
    steps: int | None = None
    """Optimizer steps; instead of `epochs`."""
    epochs: float | None = None
    """Passes over the data; 1 where neither is given."""
    batch_size: int = 8
    gradient_accumulation: int = 1
    max_length: int = 1024
    """Tokens of a training example; longer ones are cut at the end."""
    scheduler: str = "linear"
    """A learning-rate schedule of transformers, such as `linear`, `cosine` or `constant`."""
    warmup_steps: int = 0
    gradient_checkpointing: bool = False
    """Trades time for memory."""
    seed: int = 42

    def __post_init__(self) -> None:
        _one_of("train.method", self.method, METHODS)
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(f"train.steps = {self.steps} and train.epochs = {self.epochs:g} are both given; keep one")
        for name in ("learning_rate", "epochs"):
            _positive(f"train.{name}", getattr(self, name))
        for name in ("steps", "batch_size", "gradient_accumulation", "max_length"):
            _at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("warmup_steps", "seed"):
            _at_least(f"train.{name}", getattr(self, name), 0)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return USUAL_RATE[self.method] if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True, kw_only=True)
class LoraSection:
    """`[lora]`: the adapter, for `method = "lora"`."""

    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        _at_least("lora.r", self.r, 1)
        _positive("lora.alpha", self.alpha)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}, a share from 0 to below 1 is needed")


@dataclass(frozen=True, kw_only=True)
class GuardSection:
    """`[guard]`: how the run is watched; see `backslide.Guard`."""

    suite: str = "repertoire"
    every: int | None = None
    looks: int | None = None
    budget: float | None = None
    on_regression: str = "warn"
    lr_factor: float = 1 / 3
    snapshots: str | None = None
    cache: bool = True
    alpha: float = 0.05
    test: str = "exact"
    tolerance: float = 0.03
    baseline: str | None = None
    strict: bool = False
    """Refuse to train where items of the suite are in the training data, instead of leaving them out of verdicts."""
    include_path: str | None = None
    """This and what follows: how lm-eval's tasks are asked, see `TaskOptions`."""
    num_fewshot: int | None = None
    limit: float | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.looks is not None:
            raise ConfigError(f"guard.every = {self.every} and guard.looks = {self.looks} are both given; keep one")
        for name in ("every", "looks"):
            _at_least(f"guard.{name}", getattr(self, name), 1)
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ConfigError(
                f"guard.budget is {self.budget}, a share of the training's time above 0 and up to 1 is needed (0.05)"
            )
        _one_of("guard.on_regression", self.on_regression, POLICIES)
        if not 0 < self.lr_factor < 1:
            raise ConfigError(f"guard.lr_factor is {self.lr_factor}, a share above 0 and below 1 is needed (0.3)")
        if self.snapshots is not None:
            _one_of("guard.snapshots", self.snapshots, ("memory", "disk"))
        _one_of("guard.test", self.test, ("exact", "joint"))
        if not 0 < self.alpha <= 0.5:
            raise ConfigError(f"guard.alpha is {self.alpha}, a probability above 0 and up to 0.5 is needed (0.05)")
        if not 0 <= self.tolerance < 1:
            raise ConfigError(f"guard.tolerance is {self.tolerance}, a share from 0 to below 1 is needed (0.03)")
        try:
            _ = self.tasks
        except SuiteError as bad:
            raise ConfigError(f"guard.{bad}") from None

    @property
    def tasks(self) -> TaskOptions:
        """How lm-eval's tasks are asked."""
        return TaskOptions(**{key.name: getattr(self, key.name) for key in dataclasses.fields(TaskOptions)})


@dataclass(frozen=True, kw_only=True)
class CureSection:
    """`[cure]`: what keeps the model from forgetting while it is trained; see `docs/cures.md`."""

    replay: float = 0.0
    """Original-domain tokens as a share of all."""
    anchor: float = 0.0
    """Weight of the KL to the base."""
    data: str = SELF
    """What is replayed and anchored on: a file in a format of `[data]`, or `self`: the base's own replies."""
    prompts: int | str | None = None
    """What it replies to: so many of the bundled prompts, or a file of prompts. None: all of the bundled ones."""
    on_regression: str | None = None
    """As `guard.on_regression`; both may be given where they agree."""

    def __post_init__(self) -> None:
        if not 0 <= self.replay <= 0.5:
            raise ConfigError(f"cure.replay is {self.replay}, a share of the tokens from 0 to 0.5 is needed (0.05)")
        if not (self.anchor >= 0 and math.isfinite(self.anchor)):
            raise ConfigError(f"cure.anchor is {self.anchor}, a number from 0 up is needed (0.1)")
        if not self.data.strip():
            raise ConfigError(f"cure.data is {self.data!r}, a file or {SELF!r} is needed")
        if isinstance(self.prompts, bool) or not isinstance(self.prompts, (int, str, type(None))):
            raise ConfigError(f"cure.prompts is {self.prompts!r}, a whole number or a file is needed")
        if isinstance(self.prompts, int):
            _at_least("cure.prompts", self.prompts, 1)
        elif self.prompts is not None and (not self.prompts.strip() or self.prompts.strip().isdecimal()):
            raise ConfigError(f"cure.prompts is {self.prompts!r}, a number without quotes or a file is needed")
        if self.prompts is not None and self.data != SELF:
            raise ConfigError(f"cure.prompts is for replies of the base, and cure.data is {self.data!r}; leave one out")
        if self.on_regression is not None:
            _one_of("cure.on_regression", self.on_regression, POLICIES)


@dataclass(frozen=True, kw_only=True)
class OutputSection:
    """`[output]`: where the run's folder is, and what is kept in it to go on from."""

    dir: str | None = None
    """None: `runs/` and the name of the configuration file."""
    checkpoints: int | None = None
    """How many over the run, evenly; 0: none. None: as often as costs 3% of the training's time."""
    keep_checkpoints: bool = False
    """Whether the last ones stay when the run has ended."""

    def __post_init__(self) -> None:
        _at_least("output.checkpoints", self.checkpoints, 0)


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """A guarded fine-tune. Raises `ConfigError` where a value is out of range."""

    model: ModelSection
    data: DataSection
    train: TrainSection = field(default_factory=TrainSection)
    lora: LoraSection = field(default_factory=LoraSection)
    guard: GuardSection = field(default_factory=GuardSection)
    cure: CureSection = field(default_factory=CureSection)
    output: OutputSection = field(default_factory=OutputSection)

    def __post_init__(self) -> None:
        told, other = self.cure.on_regression, self.guard.on_regression
        if told is not None and other not in ("warn", told):
            raise ConfigError(f"cure.on_regression is {told!r} and guard.on_regression is {other!r}; keep one of them")

    @property
    def on_regression(self) -> str:
        """What is done about a regression."""
        return self.cure.on_regression or self.guard.on_regression

    @property
    def snapshots(self) -> str | None:
        """Where states to go back to are kept: with checkpoints by default on disk, to outlive the process."""
        back = self.output.checkpoints != 0 and self.on_regression in ("rollback", "auto")
        return self.guard.snapshots or ("disk" if back else None)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output.dir or "runs/tune")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TuneConfig:
        """Make the configuration that nested tables describe.

        Raises `ConfigError` for unknown sections and keys (naming the nearest known one), missing keys, wrong types
        and values out of range.
        """
        sections = typing.get_type_hints(cls)
        _no_unknown("section", content, sections)
        made = {}
        for name, kind in sections.items():
            table = content.get(name, {})
            if not isinstance(table, Mapping):
                raise ConfigError(f"{name} is {table!r}, a section is needed: [{name}] on a line of its own")
            made[name] = _section(name, kind, table)
        return cls(**made)

    @classmethod
    def load(cls, path: str | Path) -> TuneConfig:
        """Read a TOML file; every error is a `ConfigError` that begins with the file's name."""
        path = Path(path)
        text = read_text(path, ConfigError)
        try:
            config = cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as bad:
            raise ConfigError(f"{path}: not TOML: {bad}") from None
        except ConfigError as bad:
            raise ConfigError(f"{path}: {bad}") from None
        if config.output.dir is None:
            config = dataclasses.replace(config, output=dataclasses.replace(config.output, dir=f"runs/{path.stem}"))
        return config


def _section(name: str, kind: Any, table: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    _no_unknown("key", table, hints, section=name)
    for key in dataclasses.fields(kind):
        needed = key.default is dataclasses.MISSING and key.default_factory is dataclasses.MISSING
        if needed and key.name not in table:
            raise ConfigError(f"[{name}] lacks the key {key.name!r}, which has no default")
    return kind(**{key: _typed(f"{name}.{key}", value, hints[key]) for key, value in table.items()})


def _typed(name: str, value: Any, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if typing.get_origin(kind) is list:
            if isinstance(value, list) and all(isinstance(v, str) for v in value):
                return value
        elif isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
    words = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
    wanted = " or ".join(words.get(kind, "a list of texts") for kind in kinds if kind is not type(None))
    hint_text = " (write 5e-5 without quotes)" if isinstance(value, str) and float in kinds else ""
    raise ConfigError(f"{name} is {value!r}, {wanted} is needed{hint_text}")


def _no_unknown(noun: str, given: Mapping[str, Any], known: Mapping[str, Any], section: str = "") -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            mend = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            where = f" in [{section}]" if section else ""
            raise ConfigError(f"unknown {noun} {key!r}{where}; {mend}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}, one of {', '.join(known)} is needed")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} is {value}, a number above 0 is needed")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{name} is {value}, a whole number from {least} is needed")
