"""What a user asks of a guard, checked; and what a trainer tells of its run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backslide.errors import ConfigError, SuiteError
from backslide.guard import monitor, policy, schedule
from backslide.record import Record
from backslide.scoring.engine import Settings
from backslide.scoring.work import Progress
from backslide.suite.leakage import Leak
from backslide.suite.suite import Suite
from backslide.verdict import Level, Tolerance

logger = logging.getLogger("backslide")

SNAPSHOTS = ("memory", "disk")
"""Where the state to go back to is kept."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `backslide.Guard`, which describes them. Raises `InputError` for those that are wrong."""

    suite: Suite
    every: int | None
    looks: int | None
    budget: float | None
    on_regression: policy.Policy
    tolerance: float
    alpha: float
    test: str
    leave_out: frozenset[str]
    """What was found in the training data included."""
    leaks: tuple[Leak, ...] = ()
    """What was found there."""
    leaked: str = ""
    """What the user is told of it; "" where there is nothing."""
    baseline: Record | None
    cache: bool
    snapshots: str | None
    lr_factor: float
    replay: Callable[[], object] | None
    anchor: Callable[[], object] | None
    settings: Settings | None
    name: str | None
    extra: dict[str, Any]
    say: Callable[[str], None] | None
    quiet: bool
    progress: Progress | None

    def __post_init__(self) -> None:
        for half in ("monitor", "gate"):
            # Better now than after the training: looks need the monitor half, the verdict needs the gate half.
            if not any(item.judged for item in self.suite.part(half)):
                raise SuiteError(f"suite {self.suite.name}: its {half} half has no item that can be judged; add items")
        schedule.plan_looks(1, every=self.every, looks=self.looks)
        schedule.check_budget(self.budget)
        policy.check(self.on_regression, replay=self.replay is not None)
        Tolerance(accuracy=self.tolerance)
        Level(fail=self.alpha, passing=self.alpha)
        if self.test not in monitor.TESTS:
            raise ConfigError(f"test is {self.test!r}, one of {', '.join(monitor.TESTS)} is needed")
        if self.snapshots is not None and self.snapshots not in SNAPSHOTS:
            raise ConfigError(f"snapshots is {self.snapshots!r}, one of {', '.join(SNAPSHOTS)} is needed")
        if (
            isinstance(self.lr_factor, bool)
            or not isinstance(self.lr_factor, (int, float))
            or not 0 < self.lr_factor < 1
        ):
            raise ConfigError(f"lr_factor is {self.lr_factor!r}, a share above 0 and below 1 is needed (0.3)")

    @property
    def share(self) -> float | None:
        """Share of the training's time that looks may take; None: they take the whole half, at the steps named."""
        if self.budget is None and self.every is None and self.looks is None:
            return schedule.BUDGET
        return schedule.check_budget(self.budget)

    @property
    def keeps(self) -> str | None:
        """Where states to go back to are kept; None: nowhere, since nothing would go back."""
        return self.snapshots or ("memory" if self.on_regression in ("rollback", "auto") else None)

    def tell(self, line: str) -> None:
        """Say what happens."""
        if not self.quiet:
            self.warn(line)

    def warn(self, line: str) -> None:
        """Say what the user has to know, also when quiet is asked for."""
        if self.say is not None:
            self.say(line)
        else:
            # At this level transformers shows it unless told otherwise.
            logger.warning("backslide: %s", line)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training run, as far as the guard has to know it."""

    folder: Path
    """Of the run's files."""
    steps: int | None
    """Optimizer steps; None: not known beforehand."""
    step: int = 0
    """Those made before: the run is resumed where there are any."""
    setup: Mapping[str, Any] = field(default_factory=dict)
    """How the model is trained, for the diagnosis."""
    evaluations: tuple[int, ...] = ()
    """Steps of the evaluations, where one of them picks the best checkpoint by the guarded loss."""
    best: bool = False
    """Whether other weights than the last step's may be loaded at the end."""
