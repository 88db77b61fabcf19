"""Carrying out what was decided: weights, optimizer and learning rate are changed here and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backslide.errors import BackslideError, ConfigError
from backslide.guard.intervene import check_cut, cut_rate, go_back, rates
from backslide.guard.options import Options
from backslide.guard.past import Past
from backslide.guard.policy import CURES, MOST, SHARES, Action, cut, is_kept, rungs
from backslide.guard.snapshot import Snapshot
from backslide.scoring.ranks import Ranks
from backslide.verdict import Verdict

Trial = Callable[[float], Verdict | None]
"""Measures the present weights, of which such a share of what was learned is left; None where that failed."""


@dataclass(frozen=True)
class Tools:
    """What a training run is made of, as far as the guard may change it."""

    model: Any
    optimizer: Any = None
    scheduler: Any = None


@dataclass(frozen=True)
class Done:
    """What was done in the end."""

    kind: str
    """One of `backslide.guard.policy.ACTIONS`; another than was decided where that could not be done."""
    says: str
    values: dict[str, Any] = field(default_factory=dict)
    """For the event."""
    mends: bool = False
    """Whether the weights are those of before, or between them and the present ones, and so sound again."""
    verdict: Verdict | None = None
    """What was measured of these weights; None: nothing since the state that was gone back to was kept."""

    @property
    def told(self) -> str:
        """What must be the same on all processes: the kind, and how far the weights were drawn back."""
        share = self.values.get("share")
        return self.kind if share is None else f"{self.kind} to {share:g}"


class Actor:
    """Does what a policy decided, and keeps the state to go back to.

    Args:
        options: of the guard.
        folder: of the run; a snapshot on disk is kept in it.
    """

    def __init__(self, options: Options, folder: Path) -> None:
        self._options = options
        ranks = self._ranks = Ranks.here()
        # With several processes each has a folder of its own: shards differ, and replicas need no one to wait for.
        place = folder / "snapshot" if ranks.size == 1 else folder / "snapshot" / f"process-{ranks.rank}"
        self._place = place if options.keeps == "disk" else None
        self._snapshot = Snapshot(self._place) if options.keeps else None
        self._times = 0
        self._since = 0
        """Step at which the weights last were those of the snapshot."""

    def resume(self, past: Past, step: int) -> bool:
        """Stand where a resumed run stood: what it did counts; whether what it kept on disk is there to go back to."""
        self._times = sum(event.get("action") in ("rollback", "lower_lr") for event in past.of("action"))
        if step > 0 and self._place is not None:
            with contextlib.suppress(BackslideError):
                found = Snapshot.load(self._place)
                if found.step is not None and found.step <= step:
                    self._snapshot = found
                    back = [int(event["step"]) for event in past.of("action") if event.get("mends")]
                    self._since = max([found.step, *back])
                    return True
        return False

    def bare(self, step: int) -> None:
        """Say that a resumed run has nothing to go back to."""
        if self._snapshot is not None:
            self._options.warn(
                f"step {step}: there is no state to go back to until a look finds the abilities kept: that of before "
                "was in the memory of a process that is gone, and the last look says that more than the tolerance was "
                'lost since. snapshots="disk" keeps it over a restart'
            )

    def forget(self) -> None:
        """Let go of what was kept: another process could not keep it."""
        self._options.warn("the state to go back to was not kept by all processes, so there is none now")
        self._snapshot = Snapshot(self._place)

    def check(self, tools: Tools) -> None:
        """Refuse before training what could not be done in the middle of it. Raises `ConfigError`."""
        if self._options.on_regression not in MOST:
            return
        if tools.optimizer is None:
            raise ConfigError(
                f"on_regression is {self._options.on_regression!r}, for which the optimizer is needed; give it to "
                "before_training(model, tokenizer, optimizer=…)"
            )
        check_cut(tools.optimizer, tools.scheduler)

    def keep(self, tools: Tools, step: int, verdict: Verdict | None = None) -> bool | None:
        """Keep the present state to go back to, if its abilities are as good as known to be kept (`policy.is_kept`).

        Whether it could be kept; None where it was not to be.
        """
        if self._snapshot is None or (verdict is not None and not is_kept(verdict)):
            return None
        try:
            self._snapshot.take(tools.model, tools.optimizer, tools.scheduler, step=step)
            self._since = step
        except Exception as bad:
            # Memory that runs out, too: a state that is not kept must not end the training.
            self._options.warn(f"step {step}: the state was not kept: {type(bad).__name__}: {bad}")
            return False
        return True

    def do(
        self, action: Action, tools: Tools, step: int, trial: Trial | None = None, *, left: int | None = None
    ) -> Done:
        """Carry an action out. What cannot be done becomes a warning, or a stop where going on would be no use.

        Args:
            action: what was decided.
            tools: what it is done to.
            step: optimizer steps made.
            trial: for `auto`, to measure points on the line with; None: there is nothing on it worth a look.
            left: steps to come; 0: none, so that only the weights can be mended. None: not known.
        """
        try:
            return {
                "warn": lambda: Done("warn", f"went on as before: {action.reason}"),
                "stop": lambda: Done("stop", f"told the training to stop after step {step}: {action.reason}"),
                "rollback": lambda: self._rollback(action, tools, step),
                "lower_lr": lambda: self._lower(action, tools, step),
                "replay": lambda: self._replay(action),
                "auto": lambda: self._auto(action, tools, step, trial, left),
            }[action.kind]()
        except Exception as bad:
            why = str(bad) if isinstance(bad, BackslideError) else f"{type(bad).__name__}: {bad}"
            return Done("warn", f"{action.kind} could not be done, so the training went on as it is: {why}")

    def apart(self, action: Action, step: int, kinds: list[str]) -> Done:
        """What is left where the processes did not all do the same: their weights differ from now on."""
        told = ", ".join(f"process {rank}: {kind}" for rank, kind in enumerate(kinds))
        return Done(
            "stop", f"stopped after step {step}, since {action.kind} was not done by all ({told}): {action.reason}"
        )

    def _rollback(self, action: Action, tools: Tools, step: int) -> Done:
        if self._snapshot is None or self._snapshot.step is None:
            return Done("stop", f"stopped after step {step}, since there is no state to go back to: {action.reason}")
        most = MOST["rollback"]
        if self._times >= most:
            return Done(
                "stop", f"stopped after step {step}, since going back {most} times was of no use: {action.reason}"
            )
        self._times += 1
        if tools.optimizer is None:
            raise ConfigError("rollback needs the optimizer; give it to before_training(model, tokenizer, optimizer=…)")
        before = rates(tools.optimizer)
        go_back(self._snapshot, tools.model, tools.optimizer, tools.scheduler, factor=self._options.lr_factor)
        self._since = step
        after, back = rates(tools.optimizer), self._snapshot.step
        says = (
            f"went back to the weights of step {back} and lowered the learning rate from {_rate(before)} to "
            f"{_rate(after)}: {action.reason}"
        )
        values = {"back_to": back, "rate_before": max(before, default=None), "rate_after": max(after, default=None)}
        return Done("rollback", says, values, mends=True)

    def _lower(self, action: Action, tools: Tools, step: int) -> Done:
        most = MOST["lower_lr"]
        if self._times >= most:
            return Done(
                "stop",
                f"stopped after step {step}, since lowering the rate {most} times was of no use: {action.reason}",
            )
        self._times += 1
        if tools.optimizer is None:
            raise ConfigError("lower_lr needs the optimizer; give it to before_training(model, tokenizer, optimizer=…)")
        before = rates(tools.optimizer)
        cut_rate(tools.optimizer, tools.scheduler, self._options.lr_factor)
        after = rates(tools.optimizer)
        says = f"lowered the learning rate from {_rate(before)} to {_rate(after)}: {action.reason}"
        return Done(
            "lower_lr", says, {"rate_before": max(before, default=None), "rate_after": max(after, default=None)}
        )

    def _auto(self, action: Action, tools: Tools, step: int, trial: Trial | None, left: int | None) -> Done:
        if self._snapshot is None or self._snapshot.step is None:
            return Done("stop", f"stopped after step {step}, since there is no state to go back to: {action.reason}")
        if tools.optimizer is None:
            raise ConfigError("auto needs the optimizer; give it to before_training(model, tokenizer, optimizer=…)")
        self._times += 1
        back, before, made = self._snapshot.step, rates(tools.optimizer), step - self._since
        try:
            kept, verdict = self._draw_back(tools, step, trial)
        except Exception as bad:
            why = str(bad) if isinstance(bad, BackslideError) else f"{type(bad).__name__}: {bad}"
            return Done("stop", f"stopped after step {step}, since the weights could not be drawn back whole: {why}")
        self._since, share = step, kept or 0.0
        at = f"the weights of step {back}"
        if share:
            at = f"{100 * share:g}% of the way from {at} to those of step {step}"
        values: dict[str, Any] = {"back_to": back, "share": share, "times": self._times}
        if self._times > MOST["auto"]:
            says = f"went back to {at} and stopped, since {MOST['auto']} cures were of no use: {action.reason}"
            return Done("stop", says, values, mends=True, verdict=verdict)
        cures = ["rescale" if share else "rollback"]
        if left == 0:
            values["cures"] = cures
            return Done("rollback", f"went back to {at}, at the end: {action.reason}", values, True, verdict)
        factor = cut(self._options.lr_factor, kept, made, left)
        after = cut_rate(tools.optimizer, tools.scheduler, factor)
        told = [f"lowered the learning rate from {_rate(before)} to {_rate(after)}"]
        functions = {name: getattr(self._options, name) for name in CURES}
        cures.append("lower_lr")
        for name in rungs(self._times, [name for name, function in functions.items() if function is not None]):
            try:
                said = functions[name]()
            except Exception as bad:
                told.append(f"the {name} function raised {type(bad).__name__}: {bad}")
            else:
                cures.append(name)
                told.append(f"raised the {name}{f' ({said})' if said is not None else ''}")
        values |= {
            "rate_before": max(before, default=None), "rate_after": max(after, default=None), "cures": cures,
        }  # fmt: skip
        says = f"went back to {at}; {'; '.join(told)}: {action.reason}"
        return Done("rollback", says, values, mends=True, verdict=verdict)

    def _draw_back(self, tools: Tools, step: int, trial: Trial | None) -> tuple[float | None, Verdict | None]:
        """Leave as much of what was learned since the last good state as keeps the abilities, or nothing of it.

        The optimizer's state is the one of then. Each point is made from the present weights, of which a copy is held
        meanwhile: from the point before, bf16 weights would be rounded each time, which is as much as they may differ.

        Returns:
            The share that is left, 0 where of the points that were measured none keeps them, None where none could be
            measured; and what was measured of these weights.
        """
        assert self._snapshot is not None
        measured = False
        present = Snapshot(self._place / "present" if self._place is not None else None)
        try:
            if trial is not None and self._copied(present, tools, step):
                for share in SHARES:
                    present.restore(tools.model)
                    go_back(self._snapshot, tools.model, tools.optimizer, tools.scheduler, share=share)
                    verdict = trial(share)
                    measured |= verdict is not None
                    if verdict is not None and is_kept(verdict):
                        return share, verdict
        finally:
            present.remove()
        go_back(self._snapshot, tools.model, tools.optimizer, tools.scheduler)
        return (0.0 if measured else None), None

    def _copied(self, present: Snapshot, tools: Tools, step: int) -> bool:
        """Copy the present weights; whether all processes could, since they measure the points together."""
        try:
            present.take(tools.model, step=step)
        except Exception as bad:
            # Memory or a disk that is full: the good state itself can still be gone back to.
            self._options.warn(f"step {step}: no point on the line was tried: {type(bad).__name__}: {bad}")
            return all(self._ranks.gather(False))
        return all(self._ranks.gather(True))

    def _replay(self, action: Action) -> Done:
        if self._options.replay is None:
            return Done("warn", f"replay was asked for, but the guard was given no function for it: {action.reason}")
        try:
            said = self._options.replay()
        except Exception as bad:
            return Done("warn", f"the replay function raised {type(bad).__name__}: {bad}")
        return Done(
            "replay", f"called for more original data{f' ({said})' if said is not None else ''}: {action.reason}"
        )


def _rate(rates: list[float]) -> str:
    return f"{max(rates):.3g}" if rates else "unknown"
