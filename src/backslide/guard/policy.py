"""What to do about a verdict. Pure: a decision in, an action out; `backslide.guard.actions` carries it out."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from backslide.errors import ConfigError
from backslide.verdict import Verdict, Zone

ACTIONS = ("warn", "stop", "rollback", "lower_lr", "replay")
"""
- `warn`: say it, and go on;
- `stop`: end the training after this step;
- `rollback`: back to the last state that had kept its abilities, with a lower learning rate from there on;
- `lower_lr`: lower the learning rate, and go on from here;
- `replay`: call the function given as `replay`, such as one that raises the share of original data.
"""

Policy = str | Callable[[Verdict], str | None]
"""One of `ACTIONS`, or a function from a look's verdict to one of these or None."""


@dataclass(frozen=True)
class Action:
    """What the guard does, and why."""

    kind: str
    """One of `ACTIONS`."""
    reason: str


def check(policy: Policy, *, replay: bool = False) -> Policy:
    """The policy itself, or `ConfigError` where it is none, or needs a function for replay that was not given."""
    if callable(policy):
        return policy
    if not isinstance(policy, str) or policy not in ACTIONS:
        near = difflib.get_close_matches(policy, ACTIONS, n=1) if isinstance(policy, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"on_regression is {policy!r}, one of {', '.join(ACTIONS)} or a function is needed{hint}")
    if policy == "replay" and not replay:
        raise ConfigError(
            "on_regression is 'replay', which needs replay=, a function that raises the share of old data"
        )
    return policy


def decide(policy: Policy, verdict: Verdict) -> Action | None:
    """What `policy` makes of `verdict`; None where there is nothing to do.

    A name acts on `regressed` alone. A function is asked at every look; what it raises becomes a warning, since a
    mistake in it must not end a training run.
    """
    if isinstance(policy, str):
        return Action(policy, verdict.reasons[0]) if verdict.zone is Zone.REGRESSED else None
    try:
        kind = policy(verdict)
    except Exception as bad:
        return Action("warn", f"the on_regression function raised {type(bad).__name__}: {bad}")
    if kind is None:
        return None
    if not isinstance(kind, str) or kind not in ACTIONS:
        return Action("warn", f"the on_regression function gave {kind!r}, which is none of {', '.join(ACTIONS)}")
    return Action(kind, verdict.reasons[0])
