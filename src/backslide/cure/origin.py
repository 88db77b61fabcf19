"""Whether what a repair is given belongs together: a baseline to its base, and an adapter to the base that it names."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from backslide.cure.line import AdapterLine, Line
from backslide.errors import MismatchError, ModelError
from backslide.models import base_of, load_model, model_fingerprint, resolve
from backslide.record import Record


def check_base(line: Line, baseline: Record, model: Any) -> None:
    """Raise `MismatchError` where the baseline is of other weights than `model`, which is the base."""
    header = baseline.header
    if model_fingerprint(model, adapters=False) != header.model_fingerprint:
        raise MismatchError(
            f"the baseline is of {header.model}, whose weights are not those of {line.base}; name the model that the "
            "tuned one was trained from, or a baseline of it with --baseline"
        )


def check_base_itself(line: Line, baseline: Record, dtype: str, say: Callable[[str], None]) -> None:
    """The same where no point of the line has the base's weights: it is loaded from its own files, and let go of.

    Of a tuned model with a larger vocabulary the run may have measured the base with that vocabulary as well, which
    nobody has any more; there it is said that the two cannot be compared.

    Raises `MismatchError` as `check_base` does.
    """
    model = load_model(line.base, dtype=dtype, say=say).model
    try:
        kind = str(next(p for p in model.parameters() if p.dtype.is_floating_point).dtype).removeprefix("torch.")
        # In another dtype it is refused by the conditions, which say so.
        if kind == baseline.header.conditions.get("dtype"):
            check_base(line, baseline, model)
    except MismatchError:
        if not line.grown:
            raise
        say(
            f"{line.tuned} has more rows in its vocabulary than {line.base}: whether the baseline is of {line.base} "
            "cannot be told"
        )
    finally:
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def tell_other_base(line: Line, say: Callable[[str], None]) -> None:
    """Say where an adapter names another base than the one that was given; folders move, so it is no error."""
    if not isinstance(line, AdapterLine) or not line.config.get("base_model_name_or_path"):
        return
    if not _is(named := base_of(line.folder), line):
        say(
            f"{line.tuned}: its adapter_config.json names {named} as its base, and {line.base} was given; are they one?"
        )


def tell_differences(line: Line, say: Callable[[str], None]) -> None:
    """Say where the base's weights would compute something else in the tuned model's configuration."""
    if not line.differences:
        return
    more = f", and {len(line.differences) - 1} more" if len(line.differences) > 1 else ""
    say(
        f"{line.tuned}: its configuration computes otherwise ({line.differences[0]}{more}): all points of the line "
        "go by it, and at 0 the base's weights need not answer as the base does, which is measured by its own"
    )


def _is(named: str, line: Line) -> bool:
    try:
        place = resolve(named)
    except ModelError:
        return False
    folder = Path(place)
    return place in (line.base, resolve(line.base)) or (folder.is_dir() and folder.samefile(line.base_folder))
