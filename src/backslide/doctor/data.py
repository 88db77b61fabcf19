"""The training data, the held-out data, and what of the suite is in them. No torch."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from backslide.config import SELF, TuneConfig
from backslide.cure.prompts import prompts_of
from backslide.data import TrainingData, text_of
from backslide.doctor.findings import Notebook
from backslide.errors import InputError
from backslide.leaks import look
from backslide.suite.suite import Suite

REPEATS = 0.05
"""Share of examples that are copies of others from which on it is said."""
FEW_HELD_OUT = 20
"""Held-out examples below which their mean loss is mostly noise."""


@dataclass(frozen=True)
class Seen:
    """The data that could be read; None: it could not, or there is none."""

    train: TrainingData | None
    held_out: TrainingData | None
    old: TrainingData | None
    """What is replayed and anchored on."""


def look_at_data(config: TuneConfig, notes: Notebook) -> Seen:
    """Read both files, and say what is wrong with them."""
    seen: dict[str, TrainingData | None] = {}
    for key in ("train", "held_out"):
        path, seen[key] = getattr(config.data, key), None
        if path is not None:
            try:
                seen[key] = TrainingData.load(path)
            except InputError as bad:
                notes.error(f"data.{key}", bad)
    train, held_out = seen["train"], seen["held_out"]
    if train is not None:
        notes.fact("training examples", f"{len(train.rows):,}, {train.format}")
        _repeats(train, notes)
    if held_out is not None:
        notes.fact("held-out examples", f"{len(held_out.rows):,}")
    for key, data in seen.items():
        if data is not None and data.skipped:
            notes.note(f"data.{key}", f"{data.skipped} lines of {data.path} have no text and are left out")
    if config.data.held_out is None:
        notes.warning(
            "data.held_out",
            "there is none: that the task is learnt and not its examples by heart could not be told, and no cure could "
            "weigh what it costs",
            f"keep {FEW_HELD_OUT} examples or more back in a file of their own",
        )
    if train is not None and held_out is not None:
        _held_out(train, held_out, notes)
    return Seen(train, held_out, _old(config, notes))


def _old(config: TuneConfig, notes: Notebook) -> TrainingData | None:
    """The data of the cures; as `tune` does, what no cure of the run needs is read too."""
    cure = config.cure
    try:
        if cure.data != SELF:
            return TrainingData.load(cure.data)
        if cure.prompts is not None:
            prompts_of(cure.prompts)
    except InputError as bad:
        notes.error("cure.data" if cure.data != SELF else "cure.prompts", bad)
    return None


def _repeats(train: TrainingData, notes: Notebook) -> None:
    counts = Counter(text_of(row) for row in train.rows)
    again = sum(counts.values()) - len(counts)
    if again > REPEATS * len(train.rows):
        notes.warning(
            "data.train",
            f"{again:,} of {len(train.rows):,} examples are copies of others: they are learnt by heart first",
            "leave the copies out",
        )


def _held_out(train: TrainingData, held_out: TrainingData, notes: Notebook) -> None:
    if held_out.format != train.format or held_out.chats != train.chats:
        # TRL prepares each by itself, so that texts beside messages run, and their losses are of two kinds.
        tell = notes.error if held_out.format != train.format else notes.warning
        tell(
            "data.held_out",
            f"{held_out.path} is of the format {_shape(held_out)}, the training file is {_shape(train)}",
            "give both in one format",
        )
        return
    trained = {text_of(row) for row in train.rows}
    both = sum(text_of(row) in trained for row in held_out.rows)
    if both:
        notes.warning(
            "data.held_out",
            f"{both:,} of {len(held_out.rows):,} held-out examples are in the training data, so their loss falls "
            "whether the task is learnt or not",
            "leave them out of one of the files",
        )
    if len(held_out.rows) < FEW_HELD_OUT:
        notes.warning(
            "data.held_out",
            f"{len(held_out.rows)} examples: their mean loss is mostly noise",
            f"give {FEW_HELD_OUT} or more",
        )


def _shape(data: TrainingData) -> str:
    return f"{data.format} in messages" if data.chats and data.format != "messages" else data.format


def look_for_leaks(
    config: TuneConfig, suite: Suite, notes: Notebook, progress: Callable[[str, int, int], None] | None
) -> tuple[str, ...]:
    """The ids of the suite's items that the training data holds, which no verdict would count."""
    try:
        leaks = look(suite, config.data.train, progress)
    except InputError:
        return ()  # said already, of the same file
    items = tuple(dict.fromkeys(leak.item for leak in leaks))
    if not items:
        return ()
    of = {item.id: item.capability for item in suite.items}
    where = ", ".join(f"{count} of {name}" for name, count in Counter(of[id] for id in items).most_common(3))
    says = (
        f"{len(items)} items of the suite {suite.name} are in the training data ({where}); the first: {leaks[0].place}"
    )
    tasks = config.guard.tasks
    asked = [config.guard.suite, *tasks.words, *(["--model", config.model.base] if tasks.apply_chat_template else [])]
    mend = f"see them with `backslide suite check {shlex.join([*asked, '--train', config.data.train])}`"
    if config.guard.strict:
        notes.error("guard.strict", says, mend)
    else:
        notes.warning("data.train", f"{says}; they are left out of the verdicts", mend)
    return items
