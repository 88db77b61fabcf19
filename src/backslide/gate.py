"""The two ends of a fine-tune made elsewhere: take a baseline before it, and judge what came out of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backslide import leaks, openings
from backslide.asking import suite_for
from backslide.errors import MismatchError, RecordError
from backslide.files import check_writable, writing
from backslide.judge import judge
from backslide.lm_eval_results import Answers, Samples, check_out, read_samples, write_results
from backslide.lock import claimed
from backslide.models import Loaded, load_model
from backslide.record import Record, pair
from backslide.report.pages import write_pages
from backslide.rundir import RunFolder, run_of
from backslide.scoring.engine import Scorer, Settings, versions
from backslide.scoring.execute import Score
from backslide.scoring.outcomes import outcome
from backslide.scoring.work import Progress
from backslide.suite.item import OpenItem
from backslide.suite.lm_eval import TaskOptions, options_of
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
    tasks: TaskOptions | None = None,
    lm_eval_out: str | Path | None = None,
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
        tasks: how lm-eval's tasks are asked.
        lm_eval_out: folder for the results in lm-eval's own layout too, where the suite is made of its tasks.
        say: told what the user should know.
        progress: called while items are scored.

    Raises:
        InputError: model, suite or output file are wrong.
    """
    out = Path(out)
    if out.is_dir():
        raise RecordError(f"{out}: is a folder; give the record a file name, such as {out / 'baseline.jsonl'}")
    check_writable(out, RecordError)
    chosen = suite_for(suite, tasks, model, say)
    writes = check_out(chosen, part, lm_eval_out) if lm_eval_out is not None else None
    loaded = load_model(model, dtype=dtype, say=say)
    scorer = Scorer(chosen, loaded.model, loaded.tokenizer, Settings(chat=chat))
    record = scorer.baseline(loaded.model, part=part, probe=True, name=model, progress=progress)
    _tell(record, say)
    with writing(out, RecordError):
        record.save(out)
    if lm_eval_out is not None and writes is not None:
        folder = write_results(record, writes, lm_eval_out, loaded.tokenizer)
        if say is not None:
            say(f"lm-eval's layout → {folder}")
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
    train: str | Path | Sequence[str | Path] = (),
    tasks: TaskOptions | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Judge a model against its baseline, asked under the baseline's own conditions.

    Items that are in the training data are left out of the verdict: those found in `train`, and those that the run
    left out of which `model` or `baseline` is, or whose folder `out` is.

    Args:
        model: anything that `load_model` takes.
        baseline: the record of the base model, its file, or a folder that lm-eval wrote with `--log_samples`.
        suite: the suite of the baseline, or where to read it.
        part: which items decide.
        tolerance: accepted drop in accuracy of a capability, as a share.
        drift: accepted drift from the base, in nats a token of its own replies.
        alpha: probability of a false `regressed`, and of a false `retained` of each capability.
        out: folder for a run folder with a report; None writes nothing. Openings of the gate half are counted in it.
        train: what the model was trained on, a file or several: JSON Lines in a format of `backslide.data`, or text.
        tasks: how lm-eval's tasks are asked.
        say: told what the user should know.
        progress: called while items are scored.

    Raises:
        InputError: model, suite, baseline, training data or numbers are wrong, or they do not fit together.
    """
    level, accepted = Level(fail=alpha, passing=alpha), Tolerance(accuracy=tolerance, drift=drift)
    given: Record | Samples
    if isinstance(baseline, Record):
        given = baseline
    else:
        given = read_samples(baseline) if Path(baseline).is_dir() else Record.load(baseline)
    dtype = (given.dtype if isinstance(given, Samples) else given.header.conditions.get("dtype")) or "auto"
    chosen = suite_for(suite, tasks, model, say)
    # What does not fit is refused before the model is loaded, where that can be seen.
    if isinstance(given, Samples):
        answers = given.answers(chosen)
    elif chosen.hash != given.header.suite_hash:
        raise MismatchError(
            f"the baseline was measured on the suite {given.header.suite} ({given.header.suite_hash[:12]}), not on "
            f"{chosen.name} ({chosen.hash[:12]}); name the baseline's suite with --suite, or measure it again"
        )
    if out is not None and Path(out).is_file():
        raise RecordError(f"{out}: is a file; give a folder for the report")
    if out is not None:
        check_writable(Path(out), RecordError, folder=True)
    files = [train] if isinstance(train, (str, Path)) else train
    left_out = leaks.gather(chosen, files, _runs(model, baseline, out), say, progress)
    with claimed(Path(out)) if out is not None else contextlib.nullcontext():
        loaded = load_model(model, dtype=str(dtype), say=say)
        settings = Settings() if isinstance(given, Samples) else settings_of(given)
        if isinstance(given, Record) and settings.chat and not getattr(loaded.tokenizer, "chat_template", None):
            raise MismatchError(
                f"{model}: its tokenizer has no chat template, and the baseline was asked through that of "
                f"{given.header.model}; copy that one (chat_template.jinja, or chat_template in "
                "tokenizer_config.json), or measure the baseline with --no-chat"
            )
        scorer = Scorer(chosen, loaded.model, loaded.tokenizer, settings)
        old = _answered(given, answers, scorer, loaded) if isinstance(given, Samples) else given
        # What does not fit is refused before minutes are spent on scoring.
        pair(old, scorer.unanswered(loaded.model, part=part))
        probe = any(outcome.kind == "answer" and outcome.scores for outcome in old.outcomes)
        new = scorer.measure(loaded.model, part=part, probe=probe, name=model, progress=progress)
        _tell(new, say)
        verdict = judge(old, new, tolerance=accepted, level=level, leave_out=left_out.items)
        if out is not None:
            setup = {
                "model": model,
                "suite": chosen.name,
                "suite_hash": chosen.hash,
                "tasks": options_of(chosen),
                "alpha": alpha,
                "tolerance": tolerance,
                "tolerance_drift": drift,
                "train": [str(file) for file in files],
                "left_out": sorted(left_out.items),
                "leaks": list(left_out.leaks),
                "questions": {item.id: item.prompt for item in chosen.items if isinstance(item, OpenItem)},
                "versions": versions(),
            }
            with writing(Path(out), RecordError):
                verdict = _keep(RunFolder(out), verdict, old, new, part, setup)
    return verdict


def _keep(run: RunFolder, verdict: Verdict, old: Record, new: Record, part: Part, setup: dict[str, Any]) -> Verdict:
    """Write a run folder of a check; the verdict with the number of this opening of the gate half."""
    events: list[dict[str, Any]] = [{"event": part, "zone": verdict.zone, **new.header.cost}]
    if part != "monitor":
        fingerprint = new.header.model_fingerprint
        opening = openings.next_opening(run.events(), suite=setup["suite"], model=fingerprint)
        verdict = dataclasses.replace(verdict, opening=opening.number)
        events = [opening.opened, {**events[0], "event": "gate", **opening.fields}]
    if setup["leaks"]:
        events.insert(0, {"event": "leaks", "items": [leak["item"] for leak in setup["leaks"]]})
    run.begin(setup)
    # First that it was opened, then what was seen.
    run.append(events)
    old.save(run.baseline)
    new.save(run.final)
    run.save_verdict(verdict)
    write_pages(run)
    run.release()
    return verdict


def _runs(model: str, baseline: Record | str | Path, out: str | Path | None) -> list[RunFolder]:
    """Runs that may know of items in the training data."""
    found = [run_of(model)]
    if not isinstance(baseline, Record):
        run = RunFolder(Path(baseline).parent)
        found.append(run if run.baseline.name == Path(baseline).name else None)
    found.append(RunFolder(out) if out is not None else None)
    return [run for run in found if run is not None]


def _answered(samples: Samples, answers: Mapping[str, Answers], scorer: Scorer, loaded: Loaded) -> Record:
    """A record of what lm-eval found: its own numbers, under the digests of what we ask."""
    blank = scorer.unanswered(loaded.model, part="all")
    items = {item.id: item for item in scorer.suite.items}
    outcomes = []
    for asked in blank.outcomes:
        said = answers[asked.id]
        scores = [] if isinstance(said, str) else [Score(value, greedy) for value, greedy in said]
        replies = {asked.id: said} if isinstance(said, str) else {}
        outcomes.append(outcome(items[asked.id], asked.request, scores, replies))
    note = f"the baseline is lm-eval's own, read from {samples.folder}"
    if samples.dtype != "float32":
        note += f"; in {samples.dtype or 'an unknown dtype'} its backend rounds otherwise, which is not measured"
    header = dataclasses.replace(
        blank.header, model=samples.model, model_fingerprint=f"lm-eval:{samples.model}", notes=(note,)
    )
    return Record(header, tuple(outcomes))


def _tell(record: Record, say: Say | None) -> None:
    if say is not None:
        for note in record.header.notes:
            say(note)


def settings_of(baseline: Record) -> Settings:
    """The settings under which a baseline was measured."""
    names = [field.name for field in dataclasses.fields(Settings)]
    conditions: dict[str, Any] = baseline.header.conditions
    missing = [name for name in names if name not in conditions]
    if missing:
        raise RecordError(f"the baseline's header says nothing of {missing[0]}; measure it again")
    return Settings(**{name: conditions[name] for name in names})
