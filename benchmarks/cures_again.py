"""The stored runs once more, for what was not measured of them the first time: the KL to the base (`cures_kl`).

Nothing of the first time is replaced. A file gains `again`: what this second training left, with its loss, KL and
distance, so that one sees how alike the two are. Steps that differ in number alone are places of one training, since
the rate is constant; the line of repair is that of the second training too. Where `cures_plan.ALSO_AT` says so, more
places are measured than there are runs: `at` holds them by their step, in the file of the run.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cures import cured, held_out, moved, scratch
from cures_kl import divergences
from cures_plan import ALSO_AT, RESULTS, Run, runs
from transformers import TrainerCallback

from backslide.cure.line import open_line
from backslide.files import read_json, write_json
from backslide.models import BUILTIN, load_model

FIRST = ("rate", "steps", "repair", "rank", "replay", "anchor", "guard")
"""The order in which they are made, the seeds of a group one after the other."""


def known_by_another_name(run: Run) -> bool:
    """Whether it is the base, another run's end, or a run beside which a guard only warned."""
    return run.alpha in (0.0, 1.0) or run.policy == "warn"


def missing(prefixes: tuple[str, ...]) -> dict[Run, list[Run]]:
    """By training: the stored runs that are places of it and lack something; in the prefixes' order."""
    found: dict[Run, list[Run]] = {}
    wanted = [run for run in runs() if run.name.startswith(prefixes) and not known_by_another_name(run)]
    first = {run: next(n for n, prefix in enumerate(prefixes) if run.name.startswith(prefix)) for run in wanted}
    for run in sorted(wanted, key=lambda run: (first[run], FIRST.index(run.group))):
        path = RESULTS / f"{run.name}.json"
        if path.exists() and _lacks(read_json(path), run):
            found.setdefault(replace(run, group="", steps=0, alpha=None), []).append(run)
    return found


def _lacks(stored: dict[str, Any], run: Run) -> bool:
    if replace(run, seed=0) in ALSO_AT:
        return "at" not in stored.get("again", {})
    return "kl" not in stored and "again" not in stored


def state(data: Path, model: Any, tokenizer: Any) -> dict[str, Any]:
    """What is measured of a model; it is left as it is."""
    before = load_model(BUILTIN, dtype="bfloat16").model
    target = held_out(data, model, before, tokenizer)
    # Merging an adapter cannot be undone to the last bit.
    far = moved(copy.deepcopy(model), before)
    return {"target": target["loss"], "kl_new": target["kl"], "moved": far, **divergences(data, model)}


def add(run: Run, found: dict[str, Any]) -> None:
    """Write down what was found beside what is stored of the run."""
    path = RESULTS / f"{run.name}.json"
    write_json(path, read_json(path) | {"again": found})
    print(f"{run.name}: target {found['target']:.3f}, KL {found['kl']}", flush=True)


class Places(TrainerCallback):
    """Calls back at the end of some steps, the model as it is then and ready to be measured."""

    def __init__(self, steps: set[int], reached: Callable[[int, Any], None]) -> None:
        self.steps, self.reached = steps, reached

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Call back where it is one of the steps."""
        if state.global_step in self.steps:
            was = model.training
            self.reached(state.global_step, model.eval())
            model.train(was)


def again(data: Path, wanted: list[Run], **said: Any) -> None:
    """Train once and measure the runs that are places of it; `said` goes into each of their files."""
    begin = time.perf_counter()
    ends = [run for run in wanted if run.alpha is None]
    line = [run for run in wanted if run.alpha is not None]
    also = {run: ALSO_AT.get(replace(run, seed=0), ()) for run in ends}
    measured = {run.steps for run in ends}.union(*also.values())
    steps = measured | {run.steps for run in line}
    places: dict[int, dict[str, Any]] = {}
    with scratch() as folder:
        made, _ = cured(data, folder / "run", replace(wanted[0], steps=max(steps), alpha=None))

        def reached(step: int, model: Any) -> None:
            if line and step == line[0].steps:
                made.save_model(str(folder / "tuned"))
            if step in measured:
                places[step] = state(data, model, made.processing_class) | said

        made.add_callback(Places(steps, reached))
        made.train()
        for run in ends:
            at = {step: places[step] for step in also[run]}
            add(run, places[run.steps] | ({"at": at} if at else {}))
        for run in line:
            assert run.alpha is not None
            open_line(BUILTIN, str(folder / "tuned")).write(folder / run.name, run.alpha)
            point = load_model(folder / run.name, dtype="bfloat16")
            add(run, state(data, point.model, point.tokenizer) | said)
    print(f"{len(wanted)} runs of one training, {time.perf_counter() - begin:.0f} s", flush=True)
