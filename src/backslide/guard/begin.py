"""How a watched run begins: its plan, its baseline, and, where it is resumed, the place at which it stood."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from backslide.errors import BackslideError, MismatchError, ModelError, RecordError, RunError
from backslide.guard import joint, monitor, schedule, words
from backslide.guard.baseline import fits, take_baseline
from backslide.guard.journal import Journal
from backslide.guard.options import Options, Training
from backslide.guard.past import Past, past
from backslide.leaks import noted, united
from backslide.record import Record
from backslide.rundir import PAGES, RunFolder
from backslide.scoring.engine import Scorer, versions
from backslide.scoring.ranks import Ranks
from backslide.suite.item import OpenItem
from backslide.suite.lm_eval import options_of
from backslide.verdict import Verdict


@dataclass
class Begun:
    """A run before its first step, or before the first after being resumed."""

    options: Options
    """With what every process found in its training data."""
    ranks: Ranks
    run: RunFolder
    scorer: Scorer
    name: str
    """Of the model, for people."""
    state: monitor.State
    baseline: Record
    joint: joint.Joint | None
    past: Past = field(default_factory=Past)
    looks: Sequence[Verdict] = ()
    """Verdicts of looks that the present weights stand on."""
    waiting: dict[int, list[Record]] = field(default_factory=dict)
    """Looks at weights that may come by again, by step."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """To be written down."""


def begin(options: Options, training: Training, model: Any, tokenizer: Any) -> Begun:
    """Measure the baseline, or load it where the run is resumed.

    Raises:
        InputError: suite, baseline or model do not fit, or a resumed run was begun otherwise.
        RunError: the run's folder cannot be written, or a resumed run has lost its baseline.
    """
    ranks = Ranks.of(model)
    run = RunFolder(training.folder)
    if ranks.first:
        run.claim()
    try:
        return _begin(options, training, model, tokenizer, ranks, run)
    except BaseException:
        run.release()
        raise


def _begin(options: Options, training: Training, model: Any, tokenizer: Any, ranks: Ranks, run: RunFolder) -> Begun:
    leaks, leaked = united(options.suite, ranks.gather((options.leaks, options.leaked)))
    left_out = frozenset[str]().union(*ranks.gather(options.leave_out))
    options = dataclasses.replace(options, leave_out=left_out, leaks=leaks, leaked=leaked)
    scorer = Scorer(options.suite, model, tokenizer, options.settings)
    # All that will be asked is written down now: a chat template may write the date, and midnight may come.
    scorer.prepare()
    name = options.name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    state = _plan(options, training)
    found = Begun(options, ranks, run, scorer, name, state, None, None)  # type: ignore[arg-type]
    if training.step > 0:
        _resume(found, options, training, model)
    else:
        _start(found, options, training, model)
    if options.test == "joint" and found.joint is None:
        found.joint = joint.Joint(found.state.looks_alpha, found.state.shares)
    return found


def _plan(options: Options, training: Training) -> monitor.State:
    if training.steps is None:
        return monitor.State(looks=(), alpha=options.alpha, open=True)
    looks = training.evaluations or schedule.plan_looks(training.steps, every=options.every, looks=options.looks)
    return monitor.State(looks=looks, alpha=options.alpha, planned=len(looks) + training.best)


def _start(found: Begun, options: Options, training: Training, model: Any) -> None:
    began = time.perf_counter()
    run, ranks, scorer = found.run, found.ranks, found.scorer
    if ranks.first and options.leaked:
        options.warn(options.leaked)
    header = scorer.header(model, part="all", adapters=False, name=found.name)
    journal = Journal(run.baseline, header, rank=ranks.rank, warn=options.warn)
    # First what may be refused, then the folder: a baseline that does not fit leaves nothing behind.
    try:
        baseline, how = take_baseline(options, scorer, model, journal, ranks, name=found.name)
    except (BackslideError, torch.OutOfMemoryError):
        raise
    except Exception as bad:
        # Whatever a model's own code raises; the run has not begun, and without a baseline it would be unwatched.
        why = " ".join(str(bad).split())[:300]
        raise ModelError(
            f"{found.name}: could not be measured before training: {type(bad).__name__}: {why}; a causal language "
            "model is needed whose forward takes input_ids and attention_mask alone"
        ) from bad
    finally:
        journal.close(done=False)
    if ranks.first:
        with _writing(run):
            run.begin(_config(found, options, training))
            baseline.save(run.baseline)
        journal.close(done=True)
    seconds = round(time.perf_counter() - began, 3)
    cost = {**baseline.header.cost, "seconds": seconds} if how != "measured" else baseline.header.cost
    looks, says = found.state.looks, words.of_plan(found.state.looks, training.steps, options.share)
    found.baseline = baseline
    found.events = [
        {"event": "baseline", "step": 0, "how": how, **cost, "says": words.of_baseline(baseline, how)},
        {"event": "plan", "step": 0, "looks": list(looks), "budget": options.share, "says": says},
    ]
    if options.leaks:
        found.events.append(_of_leaks(options, 0))
    if ranks.first:
        options.tell(words.of_baseline(baseline, how))
        options.tell(says)


def _resume(found: Begun, options: Options, training: Training, model: Any) -> None:
    """Stand where the run stood: the looks of its line, and those that will come by again."""
    run, ranks, step = found.run, found.ranks, training.step
    config, events, records, baseline = ranks.agreed(_saved(run, ranks))
    found.baseline = _same_baseline(found, options, step, baseline)
    fits(found.baseline, found.scorer, model)
    asked = {"alpha": options.alpha, "test": options.test, "tolerance": options.tolerance}
    for name, value in asked.items():
        if config.get(name, value) != value:
            raise MismatchError(
                f"{run.path}: the run was begun with {name} = {config[name]!r} and is resumed with {value!r}; false "
                "alarms are counted over the whole run, so resume it with the same"
            )
    left_out = config.get("left_out", [])
    if config and set(left_out) != options.leave_out:
        raise MismatchError(
            f"{run.path}: the run was begun with {len(left_out)} items left out of its verdicts and is resumed with "
            f"{len(options.leave_out)}, or with others; resume it with the same train and leave_out"
        )
    found.past = past(events, step)
    plan = {"looks": list(found.state.looks), "planned": found.state.shares}
    anew = not config or found.past.ended or any(config.get(key, value) != value for key, value in plan.items())
    found.events = [{"event": "resumed", "step": step, "anew": anew, "says": f"resumed at step {step}"}]
    _resume_leaks(found, options, step, config)
    stretch = config.get("stretch")
    if isinstance(stretch, dict) and not found.state.open:
        # Of a run that went on beyond its first plan: the looks that share the α of this stretch.
        found.state = dataclasses.replace(found.state, looks=tuple(stretch["looks"]), planned=int(stretch["planned"]))
    if anew:
        _continue(found, options, training, config, plan)
        return
    found.state = dataclasses.replace(found.state, broke=found.past.broke)
    if options.test == "joint":
        found.joint = joint.Joint(found.state.looks_alpha, found.state.shares)
    by_weights = {(r.header.step, r.header.model_fingerprint): r for r in records}
    looks: list[Verdict] = []
    for event in found.past.of("look"):
        try:
            verdict = Verdict.from_dict(event["verdict"])
        except (KeyError, RecordError):
            continue
        found.state = monitor.kept(found.state, event["step"], verdict.zone, float(event.get("alpha") or 0.0))
        looks.append(verdict)
        record = by_weights.pop((event["step"], str(event.get("model"))), None)
        if found.joint is not None and record is not None:
            found.joint, _ = joint.on_record(found.joint, found.baseline, record, options.leave_out)
    found.looks = looks
    found.state = dataclasses.replace(found.state, waiting=found.past.gone)
    for (at, _), record in by_weights.items():
        if at is not None and at > step:
            found.waiting.setdefault(at, []).append(record)


def _saved(run: RunFolder, ranks: Ranks) -> tuple[dict[str, Any], list[dict[str, Any]], list[Record], Record | None]:
    if not ranks.first:
        return {}, [], [], None
    config = run.config if run.exists() else {}
    baseline = Record.load(run.baseline) if run.baseline.exists() else None
    return config, run.events(), [*run.steps(), *run.lost()], baseline


def _same_baseline(found: Begun, options: Options, step: int, saved: Record | None) -> Record:
    baseline = saved or options.baseline
    if baseline is None:
        raise RunError(
            f"{found.run.baseline}: the run is resumed at step {step}, but the baseline that was measured before "
            "training is not there; start the run anew, or give the base model's own record as baseline, since a "
            "trained model cannot be its own baseline"
        )
    if baseline.header.suite_hash != options.suite.hash:
        raise MismatchError(f"{found.run.baseline}: was measured on another suite than {options.suite.name}")
    return baseline


def _resume_leaks(found: Begun, options: Options, step: int, config: Mapping[str, Any]) -> None:
    """Say again what is left out, and note it where the run was begun without knowing why."""
    if not options.leaks:
        return
    if found.ranks.first:
        options.warn(options.leaked)
    rows = [noted(leak) for leak in options.leaks]
    if config.get("leaks") == rows:
        return
    found.events.append(_of_leaks(options, step))
    if config and found.ranks.first:
        with _writing(found.run):
            found.run.update(leaks=rows)


def _of_leaks(options: Options, step: int) -> dict[str, Any]:
    return {"event": "leaks", "step": step, "items": [leak.item for leak in options.leaks], "says": options.leaked}


def _continue(
    found: Begun, options: Options, training: Training, config: Mapping[str, Any], plan: Mapping[str, Any]
) -> None:
    """A run that goes on beyond its plan: another stretch, with looks and an α of its own, and said so."""
    step = training.step
    if not found.state.open:
        looks = tuple(look for look in plan["looks"] if look > step) or (step + 1,)
        planned = len(looks) + training.best
        found.state = dataclasses.replace(found.state, looks=looks, planned=planned)
    why = "had ended" if found.past.ended else "had another plan of looks" if config else "was not watched before"
    number = found.past.stretches + 1
    says = (
        f"resumed at step {step}: the run {why}, so it goes on as stretch {number} of it, with α = {options.alpha} of "
        f"its own: over all stretches together false alarms are at most {number} times that"
    )
    found.past = dataclasses.replace(found.past, tested=(), ended=False, stretches=number)
    found.events[0]["says"] = says
    if found.ranks.first:
        options.warn(says)
        with _writing(found.run):
            found.run.set_aside("final.jsonl", "final-monitor.jsonl", "verdict.json", *PAGES)
            if not found.run.exists():
                found.run.path.mkdir(parents=True, exist_ok=True)
                found.run.write_config(_config(found, options, training))
                found.baseline.save(found.run.baseline)
            stretch = {"number": number, "looks": list(found.state.looks), "planned": found.state.shares}
            found.run.update(**{**plan, "stretch": stretch})


@contextlib.contextmanager
def _writing(run: RunFolder) -> Iterator[None]:
    try:
        yield
    except OSError as bad:
        why = bad.strerror or bad
        raise RunError(f"{run.path}: cannot be written: {why}; make room, or give another run_dir") from bad


def _config(found: Begun, options: Options, training: Training) -> dict[str, Any]:
    suite, policy = options.suite, options.on_regression
    return {
        "model": found.name,
        "suite": suite.name,
        "suite_hash": suite.hash,
        "tasks": options_of(suite),
        "alpha": options.alpha,
        "tolerance": options.tolerance,
        "test": options.test,
        "left_out": sorted(options.leave_out),
        "leaks": [noted(leak) for leak in options.leaks],
        "looks": list(found.state.looks),
        "planned": found.state.shares,
        "budget": options.share,
        "on_regression": policy if isinstance(policy, str) else "function",
        "setup": dict(training.setup),
        "processes": found.ranks.size,
        "questions": {item.id: item.prompt for item in suite.items if isinstance(item, OpenItem)},
        "versions": versions(),
        **options.extra,
    }
