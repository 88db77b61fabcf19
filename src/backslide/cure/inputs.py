"""What a repair goes by: held-out data, baseline, suite, numbers, from the user or from the run that made the model.

A run of `backslide tune` leaves its model in `RUN/model`; where that is what is repaired, `RUN/run.json` and
`RUN/baseline.jsonl` say what the run went by, and the repair goes by the same unless the user says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from backslide.asking import suite_for
from backslide.data import TrainingData
from backslide.errors import DataError, MismatchError, RecordError, SuiteError, number_of
from backslide.leaks import left_out_of
from backslide.record import Record
from backslide.rundir import RunFolder, run_of
from backslide.suite.lm_eval import TaskOptions
from backslide.suite.suite import LM_EVAL, REPERTOIRE, Suite
from backslide.verdict import Level, Tolerance

NAME_IT = "name it with --suite, and tasks of lm-eval with the options that they were asked with, such as --num-fewshot"
MAX_LENGTH = 1024
"""Tokens of a held-out example where no run says otherwise, as in `[train]`."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a repair goes by."""

    suite: Suite
    baseline: Record | None
    """None: the base is measured first."""
    held_out: TrainingData | None
    max_length: int
    dtype: str
    tolerance: Tolerance
    level: Level
    left_out: frozenset[str]
    """Items that were found in the training data; they are not judged."""
    run: RunFolder | None
    """The run that tuned the model, where it is known."""

    def looks(self) -> list[Record]:
        """Looks at the monitor half that the run made last: one at the tuned model need not be made again."""
        if self.run is None:
            return []
        paths = [self.run.final_monitor, *sorted((self.run.path / "steps").glob("step-*.jsonl"), reverse=True)[:1]]
        return [found for path in paths if (found := readable(path)) is not None]

    def finals(self, *more: Path) -> list[Record]:
        """Records of the gate half of the tuned model that are there: of the files `more`, then the run's own."""
        paths = [*more, *([] if self.run is None else [self.run.final])]
        return [found for path in paths if (found := readable(path)) is not None]


def gather(
    tuned: str,
    *,
    suite: Suite | str | None,
    tasks: TaskOptions | None,
    baseline: Record | str | Path | None,
    held_out: str | Path | None,
    dtype: str | None,
    max_length: int | None,
    tolerance: float | None,
    drift: float | None,
    alpha: float | None,
    say: Callable[[str], None],
) -> Inputs:
    """Read what the user gave, and what is left open from the run that tuned the model.

    Raises `InputError` where something is missing, malformed, or does not fit together.
    """
    run = run_of(tuned)
    config = run.config if run is not None else {}
    tune = config.get("config") if isinstance(config.get("config"), dict) else {}
    assert isinstance(tune, dict)
    if run is not None:
        say(f"{tuned} was made by the run in {run.path}: what is not given here is taken from there")
    if baseline is None and run is not None and run.baseline.is_file():
        baseline = run.baseline
    record = baseline if isinstance(baseline, Record) or baseline is None else Record.load(baseline)
    own = _held_out(_of(tune, "data", "held_out"), say) if held_out is None else Path(held_out)
    data = TrainingData.load(own) if own is not None else None
    if data is None:
        say("no held-out data (--held-out): the target's loss is not known, and the farthest point that keeps is taken")
    elif data.skipped:
        say(f"{data.path}: {number_of(data.skipped, 'empty line')} left out")
    length = max_length if max_length is not None else _of(tune, "train", "max_length")
    length = MAX_LENGTH if length is None else length
    if not isinstance(length, int) or length < 2:
        raise DataError(f"max_length is {length!r}, a whole number from 2 is needed")
    conditions: dict[str, Any] = record.header.conditions if record is not None else {}
    return Inputs(
        suite=_suite(suite, tasks, tuned, config, _of(tune, "guard", "suite"), record, say),
        baseline=record,
        held_out=data,
        max_length=length,
        dtype=dtype or str(conditions.get("dtype") or _of(tune, "model", "dtype") or "auto"),
        tolerance=Tolerance(
            accuracy=_first(tolerance, config.get("tolerance"), 0.03),
            drift=_first(drift, config.get("tolerance_drift"), 0.1),
        ),
        level=Level(fail=_first(alpha, config.get("alpha"), 0.05), passing=_first(alpha, config.get("alpha"), 0.05)),
        left_out=left_out_of(config),
        run=run,
    )


def _of(config: dict[str, Any], section: str, key: str) -> Any:
    table = config.get(section)
    return table.get(key) if isinstance(table, dict) else None


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _held_out(named: object, say: Callable[[str], None]) -> Path | None:
    if not isinstance(named, str):
        return None
    if Path(named).is_file():
        return Path(named)
    # It is relative to the folder that the run was started in, and data are moved.
    say(f"the run's held-out file {named} is not here; name it with --held-out")
    return None


def _suite(
    suite: Suite | str | None,
    tasks: TaskOptions | None,
    tuned: str,
    config: dict[str, Any],
    of_run: object,
    baseline: Record | None,
    say: Callable[[str], None],
) -> Suite:
    if suite is not None:
        chosen = suite_for(suite, tasks, tuned, say)
    else:
        chosen = _suite_of(tasks, tuned, config, of_run, baseline, say)
    if baseline is not None and chosen.hash != baseline.header.suite_hash:
        header = baseline.header
        raise MismatchError(
            f"the baseline was measured on the suite {header.suite} ({header.suite_hash[:12]}), not on {chosen.name} "
            f"({chosen.hash[:12]}); {NAME_IT}"
        )
    return chosen


def _suite_of(
    tasks: TaskOptions | None,
    tuned: str,
    config: dict[str, Any],
    of_run: object,
    baseline: Record | None,
    say: Callable[[str], None],
) -> Suite:
    """The suite that the run, or the baseline, was measured on."""
    wanted = config.get("suite_hash") or (baseline.header.suite_hash if baseline is not None else None)
    if wanted is None:
        return suite_for(REPERTOIRE, tasks, tuned, say)
    names = [config.get("suite"), of_run, baseline.header.suite if baseline is not None else None]
    why = ""
    for name in dict.fromkeys(_source(name) for name in names if isinstance(name, str)):
        try:
            asked = _merged(tasks, config.get("tasks")) if name.startswith(LM_EVAL) else tasks
            suite = suite_for(name, asked, tuned, say)
        except SuiteError as bad:
            why = why or f" ({bad})"
            continue
        if suite.hash == wanted:
            return suite
    raise SuiteError(f"the suite of the baseline ({wanted[:12]}) is not found under its name{why}; {NAME_IT}")


def _source(name: str) -> str:
    """What a suite was read from: behind the names of tasks stands how they are asked."""
    return re.split(r" \w+=", name)[0] if name.startswith(LM_EVAL) else name


def _merged(tasks: TaskOptions | None, of_run: object) -> TaskOptions:
    """How tasks are asked: as the user says, else as the run did. Raises `SuiteError` where that does not fit."""
    before = of_run if isinstance(of_run, dict) else {}
    told = {} if tasks is None else {key: value for key, value in tasks.to_dict().items() if value is not None}
    if not told.get("apply_chat_template"):
        # Not given: it can only be asked for.
        told.pop("apply_chat_template", None)
    return TaskOptions(**{key.name: {**before, **told}.get(key.name, key.default) for key in fields(TaskOptions)})


def readable(path: Path) -> Record | None:
    """The record at `path`; None where there is none that can be read."""
    try:
        return Record.load(path) if path.is_file() else None
    except RecordError:
        return None
