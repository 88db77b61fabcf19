"""What the base model is asked for its rehearsal data: the bundled prompts, or the user's. No torch."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from backslide.errors import ConfigError, DataError, SuiteError
from backslide.suite.make import Made, from_prompts
from backslide.suite.sources import Row, read_prompts


def bundled_prompts(count: int | None = None) -> tuple[dict[str, str], ...]:
    """The bundled prompts, each with its `kind` and `prompt`; written for this project.

    Args:
        count: so many of them, from 1, as many of each kind as of the others where there are enough; fewer than there
            are kinds: one of each of the first. None: all.
    """
    text = (importlib.resources.files("backslide.cure") / "prompts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    if count is None:
        return tuple(rows)
    seen: Counter[str] = Counter()
    turns = []
    for place, row in enumerate(rows):
        turns.append((seen[row["kind"]], place))
        seen[row["kind"]] += 1
    return tuple(rows[place] for place in sorted(place for _, place in sorted(turns)[:count]))


def prompts_of(prompts: str | Path | Sequence[str] | int | None) -> Made:
    """An item for each prompt of a file or a list, each prompt once; a number: of the bundled ones; None: all of those.

    Raises `SuiteError` where the file cannot be read, `DataError` where there is no prompt, `ConfigError` where the
    number is none.
    """
    notes: tuple[str, ...] = ()
    if isinstance(prompts, (str, Path)):
        rows = read_prompts(prompts)
        if "prompt" not in rows[0].values:
            there = ", ".join(map(str, rows[0].values)) or "nothing"
            raise SuiteError(f"{rows[0].place}: has no column 'prompt', only {there}; rename the one with the prompts")
    else:
        if isinstance(prompts, (bool, float)) or (isinstance(prompts, int) and prompts < 1):
            raise ConfigError(f"prompts is {prompts!r}, a whole number from 1 is needed, or a file or list of prompts")
        if prompts is None or isinstance(prompts, int):
            some = bundled_prompts(prompts)
            if prompts is not None and prompts > len(some):
                notes = (f"{prompts} prompts were asked for, there are {len(some)} bundled ones",)
            prompts = [row["prompt"] for row in some]
        rows = [Row(f"prompt {number}", {"prompt": text}) for number, text in enumerate(prompts, start=1)]
    if not rows:
        raise DataError("no prompt was given that the model could reply to; give some, or leave prompts out")
    made = from_prompts(rows, "prompts")
    if not made.items:
        raise DataError(f"{rows[0].place}: no usable prompt: {'; '.join(made.notes)}")
    return dataclasses.replace(made, notes=(*notes, *made.notes))
