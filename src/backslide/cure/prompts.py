"""What the base model is asked for its rehearsal data: the bundled prompts, or the user's. No torch."""

from __future__ import annotations

import importlib.resources
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from backslide.errors import DataError
from backslide.suite.make import Made, from_prompts
from backslide.suite.sources import Row, read_prompts


def bundled_prompts(count: int | None = None) -> tuple[dict[str, str], ...]:
    """The bundled prompts, each with its `kind` and `prompt`; written for this project.

    Args:
        count: so many of them, as many of each kind as of the others where there are enough; None: all.
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

    Raises `SuiteError` where the file cannot be read, `DataError` where there is no prompt.
    """
    if isinstance(prompts, (str, Path)):
        rows = read_prompts(prompts)
    else:
        if prompts is None or isinstance(prompts, int):
            prompts = [row["prompt"] for row in bundled_prompts(prompts)]
        rows = [Row(f"prompt {number}", {"prompt": text}) for number, text in enumerate(prompts, start=1)]
    if not rows:
        raise DataError("no prompt was given that the model could reply to; give some, or leave prompts out")
    made = from_prompts(rows, "prompts")
    if not made.items:
        raise DataError(f"{rows[0].place}: no usable prompt: {'; '.join(made.notes)}")
    return made
