"""What to do about a verdict. Pure: a decision in, an action out; `backslide.guard.actions` carries it out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from backslide.errors import ConfigError
from backslide.verdict import Verdict, Zone, main_row

ACTIONS = ("warn", "stop", "rollback", "lower_lr", "replay", "auto")
"""
- `warn`: say it, and go on;
- `stop`: end the training after this step;
- `rollback`: back to the last state that had kept its abilities, with a lower learning rate from there on;
- `lower_lr`: lower the learning rate, and go on from here;
- `replay`: call the function given as `replay`, such as one that raises the share of original data;
- `auto`: back along the line to the last state that had kept its abilities, as far as is needed, with a lower rate (see
  `cut`); from the second time on with more original data, from the third with a stronger anchor too, where there are
  such: see `rungs`.
"""

MOST = {"rollback": 3, "lower_lr": 3, "auto": 5}
"""Times that a run goes back, or has its rate lowered; then it is stopped, since that is no way out."""

SHARES = (0.75, 0.5, 0.25, 0.125)
"""Points on the line that `auto` tries, in turn: how much of what was learned since the last good state is left."""

CUTS = 3
"""Cuts by the guard's factor that `auto` makes at once, at most."""

Policy = str | Callable[[Verdict], str | None]
"""One of `ACTIONS`, or a function from a look's verdict to one of these or None."""


CURES = ("replay", "anchor")
"""What `auto` can bring in beside the learning rate, in this order."""


def rungs(times: int, there: Collection[str]) -> tuple[str, ...]:
    """The cures that `auto` brings in, or raises, when it acts for the `times`-th time (from 1).

    The order is that of what helps most at the least cost (`docs/cures.md`): the finished weights drawn back and the
    learning rate cut (both each time), then original data, then a pull towards the base. None is taken back: a run that
    lost its abilities under a cure needs more, not another.

    Args:
        times: how often it has acted, this time included.
        there: those of `CURES` that the run has.
    """
    return tuple(name for name in CURES if name in there)[: max(times - 1, 0)]


def cut(factor: float, share: float | None, made: int, left: int | None) -> float:
    """What `auto` multiplies the learning rate by, after it drew the weights back.

    The line tells how far the weights may go: of the way that `made` steps led, a share keeps the abilities. An
    optimizer like Adam goes a distance of about the rate in each step, and where its directions are like a random
    walk's, `n` steps lead √n times as far. So with the rate times share · √(made / left) the steps that are left go as
    far again as was seen to be kept, at a constant rate: of a schedule that decays they go less far, of one that still
    warms up farther. It is no more than a first guess; the looks that follow judge it.

    Args:
        factor: of the guard, in (0, 1]: the least that the rate is cut by.
        share: that was kept, in [0, 1); 0 where no point that was measured was, taken as half of the least of
            `SHARES`. None: nothing was measured, so the rate is cut by `factor`.
        made: steps between the two ends of the line.
        left: steps to come; None: not known, so the rate is cut by `factor`.

    Returns:
        In (0, `factor`], at least `factor` to the power `CUTS`.
    """
    if share is None or made < 1 or not left:
        return factor
    far = (share or SHARES[-1] / 2) * math.sqrt(made / left)
    return max(min(factor, far), factor**CUTS)


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


def is_kept(verdict: Verdict) -> bool:
    """Whether a state is good enough to go back to.

    `retained` is proof, and few looks have the items for it. So a look that is undecided counts too where no more was
    lost than is accepted: of all items together, by the mean drop.
    """
    if verdict.zone is not Zone.UNDECIDED:
        return verdict.zone is Zone.RETAINED
    row = main_row(verdict)
    return row is not None and row.drop is not None and row.drop <= row.tolerance


def decide(policy: Policy, verdict: Verdict, *, end: bool = False) -> Action | None:
    """What `policy` makes of `verdict`; None where there is nothing to do.

    A name acts on `regressed` alone; `auto` at the end also on a state that is not good enough to go back to, since no
    later look will see more. A function is asked at every look; what it raises becomes a warning, since a mistake in it
    must not end a training run.
    """
    if isinstance(policy, str):
        acts = verdict.zone is Zone.REGRESSED or (policy == "auto" and end and not is_kept(verdict))
        return Action(policy, verdict.reasons[0]) if acts else None
    try:
        kind = policy(verdict)
    except Exception as bad:
        return Action("warn", f"the on_regression function raised {type(bad).__name__}: {bad}")
    if kind is None:
        return None
    if not isinstance(kind, str) or kind not in ACTIONS:
        return Action("warn", f"the on_regression function gave {kind!r}, which is none of {', '.join(ACTIONS)}")
    return Action(kind, verdict.reasons[0])
