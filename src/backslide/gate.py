"""The two ends of a fine-tune made elsewhere: take a baseline before it, and judge what came out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backslide.errors import MismatchError, RecordError
from backslide.judge import judge
from backslide.models import load_model
from backslide.record import Record, pair
from backslide.report.markdown import write_report
from backslide.rundir import RunFolder
from backslide.scoring.engine import Scorer, Settings, versions
from backslide.scoring.work import Progress
from backslide.suite.item import OpenItem
from backslide.suite.suite import Part, Suite
from backslide.verdict import Level, Tolerance, Verdict

Say = Callable[[str], None]


def take_baseline(
    model: str,
    out: str | Path,
    *,
    suite: Suite | str = "repertoire",
    part: Part = "all",
    dtype: str = "auto",
    chat: bool | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Record:
    """Measure a model on a suite and write the record to `out`.

    Args:
        model: anything that `load_model` takes.
        out: the record's file; an existing one is replaced when the measurement is complete, not before.
        suite: the suite, or where to read it.
        part: which half of it.
        dtype: see `load_model`.
        chat: ask through the chat template; None: where there is one.
        say: told what the user should know.
        progress: called while items are scored.

    Raises:
        InputError: model, suite or output file are wrong.
    """
    out = Path(out)
    if out.is_dir():
        raise RecordError(f"{out}: is a folder; give the record a file name, such as {out / 'baseline.jsonl'}")
    above = next((folder for folder in out.parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise RecordError(f"{out}: cannot be written, since {above} is a file; give another path")
    chosen = suite if isinstance(suite, Suite) else Suite.load(suite)
    loaded = load_model(model, dtype=dtype, say=say)
    scorer = Scorer(chosen, loaded.model, loaded.tokenizer, Settings(chat=chat))
    record = scorer.baseline(loaded.model, part=part, probe=True, name=model, progress=progress)
    _tell(record, say)
    record.save(out)
    return record


def check_model(
    model: str,
    baseline: Record | str | Path,
    *,
    suite: Suite | str = "repertoire",
    part: Part = "gate",
    tolerance: float = 0.03,
    drift: float = 0.1,
    alpha: float = 0.05,
    out: str | Path | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Judge a model against its baseline, asked under the baseline's own conditions.

    Args:
        model: anything that `load_model` takes.
        baseline: the record of the base model, or its file.
        suite: the suite of the baseline, or where to read it.
        part: which items decide.
        tolerance: accepted drop in accuracy of a capability, as a share.
        drift: accepted drift from the base, in nats a token of its own replies.
        alpha: probability of a false `regressed`, and of a false `retained` of each capability.
        out: folder for a run folder with a report; None writes nothing.
        say: told what the user should know.
        progress: called while items are scored.

    Raises:
        InputError: model, suite, baseline or numbers are wrong, or they do not fit together.
    """
    level, accepted = Level(fail=alpha, passing=alpha), Tolerance(accuracy=tolerance, drift=drift)
    old = baseline if isinstance(baseline, Record) else Record.load(baseline)
    chosen = suite if isinstance(suite, Suite) else Suite.load(suite)
    if chosen.hash != old.header.suite_hash:
        raise MismatchError(
            f"the baseline was measured on the suite {old.header.suite} ({old.header.suite_hash[:12]}), not on "
            f"{chosen.name} ({chosen.hash[:12]}); name the baseline's suite with --suite, or measure it again"
        )
    if out is not None and Path(out).is_file():
        raise RecordError(f"{out}: is a file; give a folder for the report")
    loaded = load_model(model, dtype=str(old.header.conditions.get("dtype", "auto")), say=say)
    scorer = Scorer(chosen, loaded.model, loaded.tokenizer, _settings(old))
    # What does not fit is refused before minutes are spent on scoring.
    pair(old, scorer.unanswered(loaded.model, part=part))
    probe = any(outcome.kind == "answer" and outcome.scores for outcome in old.outcomes)
    new = scorer.measure(loaded.model, part=part, probe=probe, name=model, progress=progress)
    _tell(new, say)
    verdict = judge(old, new, tolerance=accepted, level=level)
    if out is not None:
        run = RunFolder(out)
        run.begin(
            {
                "model": model,
                "suite": chosen.name,
                "suite_hash": chosen.hash,
                "alpha": alpha,
                "tolerance": tolerance,
                "tolerance_drift": drift,
                "questions": {item.id: item.prompt for item in chosen.items if isinstance(item, OpenItem)},
                "versions": versions(),
            }
        )
        old.save(run.baseline)
        new.save(run.final)
        run.append([{"event": "gate", "zone": verdict.zone, **new.header.cost}])
        run.save_verdict(verdict)
        write_report(run)
    return verdict


def _tell(record: Record, say: Say | None) -> None:
    if say is not None:
        for note in record.header.notes:
            say(note)


def _settings(baseline: Record) -> Settings:
    """The settings under which a baseline was measured."""
    names = [field.name for field in dataclasses.fields(Settings)]
    conditions: dict[str, Any] = baseline.header.conditions
    missing = [name for name in names if name not in conditions]
    if missing:
        raise RecordError(f"the baseline's header says nothing of {missing[0]}; measure it again")
    return Settings(**{name: conditions[name] for name in names})
