"""Catch a fine-tune that forgets, before it ships."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from backslide.version import __version__

if TYPE_CHECKING:
    from backslide.cure.anchor import Anchor
    from backslide.cure.repair import repair
    from backslide.cure.replay import Replay
    from backslide.errors import BackslideError, InputError
    from backslide.guard.callback import Guard
    from backslide.judge import judge
    from backslide.models import load_model
    from backslide.record import Outcome, Record
    from backslide.scoring.engine import Scorer, Settings
    from backslide.suite.suite import Suite
    from backslide.tune import TuneConfig, tune
    from backslide.verdict import Verdict, Zone

# Where each public name lives; looked up on first use, so that importing backslide imports neither torch nor SciPy.
_HOMES = {
    "Anchor": "backslide.cure.anchor",
    "BackslideError": "backslide.errors",
    "Guard": "backslide.guard.callback",
    "InputError": "backslide.errors",
    "Outcome": "backslide.record",
    "Record": "backslide.record",
    "Replay": "backslide.cure.replay",
    "Scorer": "backslide.scoring.engine",
    "Settings": "backslide.scoring.engine",
    "Suite": "backslide.suite.suite",
    "TuneConfig": "backslide.tune",
    "Verdict": "backslide.verdict",
    "Zone": "backslide.verdict",
    "judge": "backslide.judge",
    "load_model": "backslide.models",
    "repair": "backslide.cure.repair",
    "tune": "backslide.tune",
}

__all__ = [
    "Anchor", "BackslideError", "Guard", "InputError", "Outcome", "Record", "Replay", "Scorer", "Settings", "Suite",
    "TuneConfig", "Verdict", "Zone", "__version__", "judge", "load_model", "repair", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'backslide' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
