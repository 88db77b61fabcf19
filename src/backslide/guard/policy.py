"""What to do about a verdict. Pure: a decision in, an action out; the callback carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backslide.errors import ConfigError
from backslide.verdict import Verdict, Zone

ACTIONS = ("warn", "stop")

Policy = str | Callable[[Verdict], str | None]
"""`warn`, `stop`, or a function from a look's verdict to one of these or None."""


@dataclass(frozen=True)
class Action:
    """What the guard does, and why."""

    kind: str
    """One of `ACTIONS`."""
    reason: str


def check(policy: Policy) -> Policy:
    """The policy itself, or `ConfigError` where it is none."""
    if callable(policy) or policy in ACTIONS:
        return policy
    raise ConfigError(f"on_regression is {policy!r}, one of {', '.join(ACTIONS)} or a function is needed")


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
