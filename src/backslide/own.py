"""A suite of the user's own: from questions with answers, from texts, or from prompts that a base model replies to."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from backslide.errors import ConfigError, SuiteError, number_of
from backslide.models import load_model
from backslide.scoring.engine import Scorer, Settings
from backslide.scoring.work import Progress
from backslide.suite.item import Item, OpenItem, check_name
from backslide.suite.make import Made, from_prompts, from_qa, from_texts
from backslide.suite.sources import Row, read_prompts, read_rows, read_texts
from backslide.suite.suite import Suite

Say = Callable[[str], None]
Kind = Literal["answer", "choice", "text", "open"]

REPLY_TOKENS = 64
"""Tokens of a reference at most. The first words of a reply drift with the rest, and each costs time at every look."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a suite comes from. Raises `ConfigError` where the fields do not fit together."""

    kind: Kind | None = None
    """Of the items; None: `choice` where the rows have choices, else `answer`."""
    file: Path | None = None
    dataset: str | None = None
    """Name on the hub, or folder, of a Hugging Face data set."""
    subset: str | None = None
    split: str | None = None
    question: str | None = None
    """Column with the question or prompt; None: the first usual name that is there."""
    answer: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in get_args(Kind):
            raise ConfigError(f"kind is {self.kind!r}, one of {', '.join(get_args(Kind))} is needed")
        if (self.file is None) == (self.dataset is None):
            raise ConfigError("a suite is made of one source; give one of --qa, --texts, --prompts and --dataset")
        kind = self.kind or "answer"
        for option, value, fits, of in (
            ("--split", self.split, self.dataset is not None, "data sets"),
            ("--subset", self.subset, self.dataset is not None, "data sets"),
            ("--text-column", self.text, kind == "text", "texts"),
            ("--question-column", self.question, kind != "text", "questions and prompts"),
            ("--answer-column", self.answer, kind in ("answer", "choice"), "answers"),
        ):
            if value is not None and not fits:
                raise ConfigError(f"{option} is {value!r}, and it is for {of}, which are not read here; leave it out")

    @property
    def name(self) -> str:
        """What the capability is called unless it is given another name."""
        return self.file.stem if self.file is not None else Path(str(self.dataset)).name

    def rows(self) -> list[Row]:
        """Read the source. Raises `SuiteError` in one line where that cannot be done."""
        if self.file is None:
            return dataset_rows(str(self.dataset), subset=self.subset, split=self.split)
        reader = {"text": read_texts, "open": read_prompts}.get(self.kind or "", read_rows)
        return reader(self.file)


def make_suite(
    source: Source,
    *,
    capability: str | None = None,
    model: str | None = None,
    dtype: str | None = None,
    tokens: int | None = None,
    limit: int | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Suite:
    """Make a suite from a source.

    Args:
        source: what to read, and which kind of items to make.
        capability: of the items; None: the source's name.
        model: for kind `open`, the base model that replies; anything that `load_model` takes. None leaves the
            items without references, so that they are shown and not judged.
        dtype: of the model, see `load_model`; None: `auto`.
        tokens: of a reply at most; None: `REPLY_TOKENS`.
        limit: items at most, chosen by hash; None: all.
        say: told what became no item, and why.
        progress: called while the model replies.

    Raises:
        InputError: the source or the model is wrong, or nothing usable is in it.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, a whole number from 1 is needed")
    if tokens is not None and tokens < 1:
        raise ConfigError(f"reply-tokens is {tokens}, a whole number from 1 is needed")
    if model is not None and source.kind != "open":
        raise ConfigError(
            f"a model replies to prompts; items of kind {source.kind or 'answer'} need none: leave --model out"
        )
    for option, value in (("--reply-tokens", tokens), ("--dtype", dtype)):
        if model is None and value is not None:
            raise ConfigError(f"{option} is {value}, and it is for --model, which is not given; leave it out")
    name = capability or source.name
    try:
        check_name("capability", name)
    except SuiteError as bad:
        raise ConfigError(f"{bad} (it is given with --capability, and is else the name of the source)") from None
    rows = source.rows()
    if source.kind == "text":
        made = from_texts(rows, name, text=source.text)
    elif source.kind == "open":
        made = from_prompts(rows, name, prompt=source.question)
    else:
        # Others' data sets are what they are.
        strict = source.file is not None
        made = from_qa(rows, name, kind=source.kind, question=source.question, answer=source.answer, strict=strict)
    made = made.limited(limit)
    if model is not None:
        made = with_references(
            made, model, dtype=dtype or "auto", tokens=tokens or REPLY_TOKENS, say=say, progress=progress
        )
    # Where no item came of it, the error says the notes.
    if say is not None and made.items:
        for note in made.notes:
            say(note)
    return made.suite(name, str(source.file or source.dataset))


def with_references(
    made: Made,
    model: str,
    *,
    dtype: str = "auto",
    tokens: int = REPLY_TOKENS,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Made:
    """Give each `open` item the model's own greedy reply as its reference; one to which it says nothing is left out.

    Raises `ModelError` where the model cannot be loaded.
    """
    asking = tuple(item for item in made.items if isinstance(item, OpenItem))
    if not asking:
        return made
    loaded = load_model(model, dtype=dtype, say=say)
    bare = Suite("prompts", tuple(dataclasses.replace(item, reference=None) for item in asking))
    scorer = Scorer(bare, loaded.model, loaded.tokenizer, Settings(max_new_tokens=tokens))
    said = scorer.measure(loaded.model, progress=progress).replies
    items: list[Item] = []
    silent: list[str] = []
    for item in made.items:
        if not isinstance(item, OpenItem):
            items.append(item)
        elif said[item.id].strip():
            items.append(dataclasses.replace(item, reference=said[item.id]))
        else:
            silent.append(item.prompt)
    notes = (*made.notes, *scorer.notes)
    if silent:
        notes += (
            f"left out, {model} replies nothing: {number_of(len(silent), 'prompt')}, the first is {silent[0][:60]!r}",
        )
    return Made(tuple(items), notes)


def dataset_rows(name: str, *, subset: str | None = None, split: str | None = None) -> list[Row]:
    """The rows of a Hugging Face data set, on the hub or in a folder.

    Raises `SuiteError` in one line where `datasets` is missing, or cannot find, reach or read it.
    """
    try:
        import datasets
    except ImportError:
        raise SuiteError("the library datasets is missing, which reads data sets; pip install datasets") from None
    folder = Path(name)
    if (name.startswith((".", "/", "~")) or name.endswith("/")) and not folder.is_dir():
        raise SuiteError(f"{name}: no such folder of a data set; give one, or a name on the hub such as 'openai/gsm8k'")
    saved = any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))
    hub = logging.getLogger("huggingface_hub")
    before = hub.level
    hub.setLevel(logging.CRITICAL)  # what it would say of each attempt ends in one error
    try:
        if saved:
            found = datasets.load_from_disk(name)
        elif folder.is_dir() and subset is None:
            found = datasets.load_dataset(str(folder))
        else:
            found = datasets.load_dataset(name, subset)
    except Exception as bad:  # the library raises what its readers and the network raise
        line = " ".join(f"{type(bad).__name__}: {bad}".split())
        raise SuiteError(
            f"the data set {name!r} cannot be read: {line[:300]}; check the name, --subset and the network, or give a "
            "folder"
        ) from None
    finally:
        hub.setLevel(before)
    if isinstance(found, datasets.DatasetDict):
        if split is None and len(found) == 1:
            split = next(iter(found))
        if split is None or split not in found:
            given = "no split was chosen" if split is None else f"it has no split {split!r}"
            raise SuiteError(f"the data set {name!r}: {given}; choose one with --split: {', '.join(found)}")
        found = found[split]
    if not len(found):
        raise SuiteError(f"the data set {name!r}: the split {split!r} is empty")
    place = f"{name}[{split}]" if split else name
    return [Row(f"{place}:{number}", row) for number, row in enumerate(found)]
