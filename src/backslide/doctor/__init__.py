"""What would break or mislead in a fine-tune, found before its first step. Loads no weights; the built-in model is
converted where it never was.

config ─► data ─► model: files, tokens ─► setting: rate, steps, adapter ─► suite: leaks, reach; guard ─► memory, disk
"""

from __future__ import annotations

from collections.abc import Callable

from backslide.asking import suite_for
from backslide.config import TuneConfig
from backslide.doctor.data import look_at_data, look_for_leaks
from backslide.doctor.findings import Examination, Finding, Notebook
from backslide.doctor.guarding import look_at_guard
from backslide.doctor.model import look_at_model
from backslide.doctor.room import look_at_room
from backslide.doctor.setting import look_at_setting, steps_of
from backslide.errors import InputError

__all__ = ["Examination", "Finding", "examine"]


def examine(config: TuneConfig, *, progress: Callable[[str, int, int], None] | None = None) -> Examination:
    """Look at everything that `backslide tune` would use, and go on behind each thing that is wrong.

    Args:
        config: of the run.
        progress: called while the training data is looked through.
    """
    notes = Notebook()
    seen = look_at_data(config, notes)
    base = look_at_model(config, seen.train, seen.old, notes)
    steps = steps_of(config, seen.train, base.mute if base is not None else 0.0)
    look_at_setting(config, seen.train, base.parameters if base is not None else None, steps, notes)
    try:
        suite = suite_for(config.guard.suite, config.guard.tasks, config.model.base)
    except InputError as bad:
        notes.error("guard.suite", bad)
    else:
        leaked = look_for_leaks(config, suite, notes, progress) if seen.train is not None else ()
        look_at_guard(config, suite, steps, leaked, notes)
    if base is not None:
        look_at_room(config, base, notes)
    return notes.close()
