"""Whether a learning-rate schedule is one that a configuration can ask for."""

from __future__ import annotations

import difflib

import torch
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

from backslide.errors import ConfigError

UNSERVED = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow an evaluation, which a guarded fine-tune does not steer by."""


def check_schedule(name: str, warmup_steps: int) -> None:
    """Raise `ConfigError` for a schedule that transformers does not know, or that needs settings of its own."""
    known = [str(kind.value) for kind in SchedulerType if str(kind.value) not in UNSERVED]
    if name in UNSERVED:
        raise ConfigError(f"train.scheduler is {name!r}, which needs evaluations to follow; take 'linear' or 'cosine'")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"train.scheduler is {name!r}, which is no schedule of transformers; {mend}")
    nothing = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(name, nothing, num_warmup_steps=warmup_steps, num_training_steps=100)
    except (TypeError, ValueError) as bad:
        why = " ".join(str(bad).split())[:200]
        raise ConfigError(
            f"train.scheduler is {name!r}, which needs settings that a configuration has none for ({why}); take "
            "'linear' or 'cosine'"
        ) from None
