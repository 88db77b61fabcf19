"""`backslide`: every verb reads its arguments, calls the library and shows what came of it.

Imports of torch and of what needs it stand inside the verbs, so that `backslide --help` is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import backslide
from backslide.cli.doctor import show_examination
from backslide.cli.options import (
    OF_RUN,
    SUITES,
    TASKS,
    DtypeOption,
    FewshotOption,
    Format,
    FormatOption,
    IncludePathOption,
    LimitOption,
    ModelArgument,
    MultiturnOption,
    Part,
    SuiteOption,
    SystemOption,
    TemplateOption,
    TokenizerOption,
)
from backslide.cli.repair import show_repaired
from backslide.cli.run import show_run
from backslide.cli.screen import Screen
from backslide.cli.suite import suite_app
from backslide.errors import BackslideError

app = typer.Typer(
    name="backslide",
    help="Catch a fine-tune that forgets, before it ships.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 retained · 1 regressed · 2 wrong usage or bad input · 3 undecided · 4 the run broke",
)
app.add_typer(suite_app, name="suite")


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Catch a fine-tune that forgets, before it ships."""
    if version:
        print(backslide.__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what is made; default: runs/demo or the next; an interrupted demo goes on.",
            show_default=False,
        ),
    ] = None,
    dialogues: Annotated[int, typer.Option(help="How many of the 64 dialogues are trained on.")] = 3,
) -> None:
    """Train a small model twice, once too hard, see what it forgets, and cure it: within 8 minutes on two cores."""
    from backslide.demo.mark import place
    from backslide.demo.story import tell

    screen = Screen()
    with screen.working(), place(out) as folder:
        good = tell(screen, folder, dialogues=dialogues)
    raise typer.Exit(0 if good else 4)


@app.command()
def baseline(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="The record's file.")] = Path("baseline.jsonl"),
    suite: SuiteOption = "repertoire",
    part: Annotated[Part, typer.Option(help="Which half of the suite.")] = Part.all,
    dtype: DtypeOption = "auto",
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Ask through the chat template; default: where there is one."),
    ] = None,
    include_path: IncludePathOption = None,
    num_fewshot: FewshotOption = None,
    limit: LimitOption = None,
    apply_chat_template: TemplateOption = False,
    fewshot_as_multiturn: MultiturnOption = None,
    system_instruction: SystemOption = None,
    lm_eval_out: Annotated[
        Path | None, typer.Option(help="Write results in lm-eval's own layout here too.", rich_help_panel=TASKS)
    ] = None,
    form: FormatOption = Format.text,
) -> None:
    """Measure what a model can do, before it is trained."""
    from backslide.gate import take_baseline
    from backslide.report.summary import accuracies
    from backslide.report.terminal import accuracy_table
    from backslide.suite.lm_eval import TaskOptions

    screen = Screen(as_json=form is Format.json)
    tasks = TaskOptions(
        include_path=include_path, num_fewshot=num_fewshot, limit=limit, apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn, system_instruction=system_instruction,
    )  # fmt: skip
    with screen.working():
        record = take_baseline(
            model, out, suite=suite, part=part.value, dtype=dtype, chat=chat, tasks=tasks, lm_eval_out=lm_eval_out,
            say=screen.say, progress=screen.progress,
        )  # fmt: skip
    rows = accuracies(record)
    if rows:
        screen.show(accuracy_table(rows))
    screen.show(f"{len(record.outcomes)} outcomes in {record.header.cost['seconds']:.1f} s → {out}")
    screen.result(
        {
            "record": str(out),
            "suite": record.header.suite,
            "suite_hash": record.header.suite_hash,
            "accuracy": {name: {"right": right, "items": count} for name, (right, count) in rows.items()},
            "not_finite": list(record.not_finite),
            "notes": list(record.header.notes),
        }
    )


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="A TOML file; docs/guide.md has one.", show_default=False)],
    anew: Annotated[bool, typer.Option("--anew", help="Begin anew where an unfinished run could go on.")] = False,
    form: FormatOption = Format.text,
) -> None:
    """Fine-tune as CONFIG says, guarded; the exit code is the verdict. Interrupted, the same command goes on."""
    from backslide.config import TuneConfig

    screen = Screen(as_json=form is Format.json)
    chosen = TuneConfig.load(config)
    from backslide.tune import tune as run_tune

    with screen.working():
        tuned = run_tune(chosen, say=screen.say, progress=screen.progress, anew=anew)
    show_run(screen, tuned.run.path)
    raise typer.Exit(tuned.verdict.exit_code)


@app.command()
def doctor(
    config: Annotated[Path, typer.Argument(help="A TOML file, as for tune.", show_default=False)],
    form: FormatOption = Format.text,
) -> None:
    """What would break or mislead in a fine-tune, before its first step; exit code 2 where something would break."""
    from backslide.config import TuneConfig

    screen = Screen(as_json=form is Format.json)
    chosen = TuneConfig.load(config)
    from backslide.doctor import examine

    with screen.working():
        found = examine(chosen, progress=screen.progress)
    show_examination(screen, found)
    raise typer.Exit(2 if found.broken else 0)


@app.command()
def check(
    model: ModelArgument,
    baseline: Annotated[
        Path,
        typer.Option(
            help="The record taken before training, or a folder that lm-eval wrote with --log_samples.",
            show_default=False,
        ),
    ],
    suite: SuiteOption = "repertoire",
    part: Annotated[Part, typer.Option(help="Which items decide; the gate half is what steered nothing.")] = Part.gate,
    tolerance: Annotated[float, typer.Option(help="Accepted drop in accuracy of a capability, as a share.")] = 0.03,
    drift: Annotated[
        float, typer.Option(help="Accepted drift from the base, in nats a token of its own replies.")
    ] = 0.1,
    alpha: Annotated[float, typer.Option(help="Probability of a false alarm.")] = 0.05,
    out: Annotated[
        Path | None, typer.Option(help="Write a run folder with report.html, report.md and junit.xml here.")
    ] = None,
    train: Annotated[
        list[Path] | None, typer.Option(help="The training data; items in it are not judged. Several: give it again.")
    ] = None,
    include_path: IncludePathOption = None,
    num_fewshot: FewshotOption = None,
    limit: LimitOption = None,
    apply_chat_template: TemplateOption = False,
    fewshot_as_multiturn: MultiturnOption = None,
    system_instruction: SystemOption = None,
    form: FormatOption = Format.text,
) -> None:
    """Compare a model with its baseline, item by item; the exit code is the verdict."""
    from backslide.gate import check_model
    from backslide.openings import warning
    from backslide.report.terminal import headline, verdict_table
    from backslide.suite.lm_eval import TaskOptions

    screen = Screen(as_json=form is Format.json)
    tasks = TaskOptions(
        include_path=include_path, num_fewshot=num_fewshot, limit=limit, apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn, system_instruction=system_instruction,
    )  # fmt: skip
    with screen.working():
        verdict = check_model(
            model, baseline, suite=suite, part=part.value, tolerance=tolerance, drift=drift, alpha=alpha, out=out,
            train=train or (), tasks=tasks, say=screen.say, progress=screen.progress,
        )  # fmt: skip
    screen.show(verdict_table(verdict))
    screen.show(headline(verdict))
    screen.show(verdict.claim)
    if spent := warning(verdict.opening):
        screen.show(spent)
    if out is not None:
        screen.show(f"→ {out / 'report.html'}, report.md and junit.xml")
    screen.result(verdict.to_dict())
    raise typer.Exit(verdict.exit_code)


@app.command()
def repair(
    base: Annotated[
        str, typer.Argument(help="The base: a model folder, hub id, or smollm2-135m-instruct.", show_default=False)
    ],
    tuned: Annotated[
        str, typer.Argument(help="What was tuned from it: a model or a LoRA adapter.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the repaired model.", show_default=False)],
    held_out: Annotated[
        Path | None, typer.Option(help="Data of the task that was trained for.", show_default=f"that {OF_RUN}")
    ] = None,
    suite: Annotated[str | None, typer.Option(help=SUITES, show_default=f"that {OF_RUN}, else repertoire")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="The record of the base.", show_default=f"that {OF_RUN}, else it is measured")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Accepted drop in accuracy, as a share.", show_default=f"that {OF_RUN}, else 0.03"),
    ] = None,
    drift: Annotated[
        float | None,
        typer.Option(help="Accepted drift, in nats a token.", show_default=f"that {OF_RUN}, else 0.1"),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Probability of a false alarm.", show_default=f"that {OF_RUN}, else 0.05"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="In which models are measured: auto, float32, bfloat16 or float16.", show_default="baseline's"
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a held-out example.", show_default=f"that {OF_RUN}, else 1024")
    ] = None,
    include_path: IncludePathOption = None,
    num_fewshot: FewshotOption = None,
    limit: LimitOption = None,
    apply_chat_template: TemplateOption = False,
    fewshot_as_multiturn: MultiturnOption = None,
    system_instruction: SystemOption = None,
    form: FormatOption = Format.text,
) -> None:
    """Find the model between BASE and TUNED that keeps the abilities and most of what was learned, without training.

    The exit code is the verdict on the gate half; 1 where there is no such model: OUT then holds measurements alone.
    """
    from backslide.cure.repair import repair as run_repair
    from backslide.suite.lm_eval import TaskOptions

    screen = Screen(as_json=form is Format.json)
    tasks = TaskOptions(
        include_path=include_path, num_fewshot=num_fewshot, limit=limit, apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn, system_instruction=system_instruction,
    )  # fmt: skip
    with screen.working():
        repaired = run_repair(
            base, tuned, out, held_out=held_out, suite=suite, tasks=tasks, baseline=baseline, tolerance=tolerance,
            drift=drift, alpha=alpha, dtype=dtype, max_length=max_length, say=screen.say, progress=screen.progress,
        )  # fmt: skip
    show_repaired(screen, repaired)
    raise typer.Exit(repaired.exit_code)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.", show_default=False)],
    form: FormatOption = Format.text,
) -> None:
    """Write a run's report.html, report.md and junit.xml anew and show its verdict."""
    from backslide.report.pages import write_pages
    from backslide.rundir import RunFolder

    screen = Screen(as_json=form is Format.json)
    write_pages(RunFolder(run))
    show_run(screen, run)


@app.command()
def power(
    suite: SuiteOption = "repertoire",
    baseline: Annotated[
        Path | None, typer.Option(help="A record of the base model: its own probabilities tell what to expect.")
    ] = None,
    looks: Annotated[int, typer.Option(help="Looks at the monitor half during the run; a guard makes 4 to 16.")] = 6,
    alpha: Annotated[float, typer.Option(help="Probability of a false alarm over the whole run.")] = 0.05,
    power: Annotated[float, typer.Option(help="Wanted probability of proving the drop.")] = 0.8,
    tolerance: Annotated[float, typer.Option(help="Accepted drop in accuracy of a capability, as a share.")] = 0.03,
    flip_rate: Annotated[
        float, typer.Option(help="Share of items that flip, where there is no baseline to tell.")
    ] = 0.1,
    include_path: IncludePathOption = None,
    num_fewshot: FewshotOption = None,
    limit: LimitOption = None,
    apply_chat_template: TemplateOption = False,
    fewshot_as_multiturn: MultiturnOption = None,
    system_instruction: SystemOption = None,
    model: TokenizerOption = None,
    form: FormatOption = Format.text,
) -> None:
    """The smallest drop, in points, that a suite can prove: at the gate, and at one of the looks of a run."""
    import dataclasses
    import math

    from backslide.asking import suite_for
    from backslide.planning import reach, unplanned
    from backslide.record import Record
    from backslide.report.terminal import reach_table
    from backslide.report.text import plain
    from backslide.suite.lm_eval import TaskOptions

    screen = Screen(as_json=form is Format.json)
    tasks = TaskOptions(
        include_path=include_path, num_fewshot=num_fewshot, limit=limit, apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn, system_instruction=system_instruction,
    )  # fmt: skip
    chosen = suite_for(suite, tasks, model)
    record = Record.load(baseline) if baseline is not None else None
    rows = reach(chosen, record, looks=looks, alpha=alpha, power=power, tolerance=tolerance, flip_rate=flip_rate)
    others = unplanned(chosen)
    if rows:
        screen.show(reach_table(rows, looks))
    for line in others:
        screen.show(f"not in the table, {plain(line)}" if rows else plain(line))
    source = f"expected from {baseline}" if baseline is not None else f"assuming that {flip_rate:.0%} of the items flip"
    level = f"α = {alpha:g} over the whole run of {looks} looks"
    screen.show(f"points that are proven with probability {power:g}, {level}; {source}")
    finite = [
        {key: value if not isinstance(value, float) or math.isfinite(value) else None for key, value in row.items()}
        for row in map(dataclasses.asdict, rows)
    ]
    screen.result(
        {
            "suite": chosen.name,
            "looks": looks,
            "alpha": alpha,
            "power": power,
            "capabilities": finite,
            "unplanned": others,
        }
    )


def run() -> NoReturn:
    """Entry point of the console script: turns exceptions into one line and an exit code."""
    try:
        app()
    except BackslideError as bad:
        Screen().error(" ".join(str(bad).split()))
        sys.exit(bad.exit_code)
    except KeyboardInterrupt:
        Screen().error("interrupted")
        sys.exit(130)
    except Exception as bad:
        if os.environ.get("BACKSLIDE_TRACEBACK"):
            raise
        line = " ".join(f"{type(bad).__name__}: {bad}".split())
        Screen().error(f"{line} (BACKSLIDE_TRACEBACK=1 shows where)")
        sys.exit(4)
    sys.exit(0)
