"""`backslide suite`: what a suite holds, suites of your own, and whether the training data holds one too."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from backslide.cli.options import (
    FewshotOption,
    Format,
    FormatOption,
    IncludePathOption,
    LimitOption,
    MultiturnOption,
    SuiteArgument,
    SuiteOption,
    SystemOption,
    TemplateOption,
    TokenizerOption,
)
from backslide.cli.screen import Screen
from backslide.errors import ConfigError, number_of
from backslide.files import check_writable

SHOWN = 100
"""Places that the table lists."""

suite_app = typer.Typer(
    help="What a suite holds, suites of your own, and whether the training data holds one too.", no_args_is_help=True
)


class Kind(str, enum.Enum):
    """What is made of questions with answers, or of a data set."""

    answer = "answer"
    choice = "choice"
    text = "text"
    open = "open"


@suite_app.command("new")
def suite_new(
    qa: Annotated[Path | None, typer.Option(help="Questions with answers: .jsonl, .csv or .tsv.")] = None,
    texts: Annotated[Path | None, typer.Option(help="Texts: .txt or .md (paragraphs), .jsonl, .csv or .tsv.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts: .txt or .md (a line each), .jsonl, .csv or .tsv.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="A Hugging Face data set: hub name or folder.")] = None,
    model: Annotated[str | None, typer.Option(help="With --prompts: the base model, whose replies are kept.")] = None,
    kind: Annotated[
        Kind | None,
        typer.Option(
            help="Items to make of --qa (answer or choice) or --dataset; default: choice where it has choices, else "
            "answer."
        ),
    ] = None,
    capability: Annotated[str | None, typer.Option(help="Name of the capability; default: that of the source.")] = None,
    out: Annotated[Path, typer.Option(help="The suite's file.")] = Path("suite.jsonl"),
    question_column: Annotated[str | None, typer.Option(help="Column with the question or prompt.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column with the answer or the accepted answers.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column with the text.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    subset: Annotated[str | None, typer.Option(help="Subset (configuration) of the data set.")] = None,
    limit: Annotated[int | None, typer.Option(help="Keep so many items at most, chosen by hash.")] = None,
    reply_tokens: Annotated[
        int | None, typer.Option(help="With --model: tokens of a reply at most.", show_default="64")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="With --model: auto, float32, bfloat16 or float16.", show_default="auto"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the suite that --out names.")] = False,
    form: FormatOption = Format.text,
) -> None:
    """Make a suite of your own material: no answers needed with --prompts and --model."""
    files = {"--qa": qa, "--texts": texts, "--prompts": prompts}
    given = [*(name for name, file in files.items() if file is not None), *(["--dataset"] if dataset else [])]
    if len(given) != 1:
        said = " and ".join(given) or "nothing"
        raise ConfigError(f"a suite is made of one source, {said} is given; give one of {', '.join(files)}, --dataset")
    allowed = {"--qa": ("answer", "choice"), "--texts": ("text",), "--prompts": ("open",)}.get(given[0])
    chosen = kind.value if kind is not None else {"--texts": "text", "--prompts": "open"}.get(given[0])
    if allowed is not None and chosen is not None and chosen not in allowed:
        raise ConfigError(f"{given[0]} makes items of kind {' or '.join(allowed)}, not {chosen}; leave --kind out")
    file = files.get(given[0])
    if file is not None and out.exists() and out.resolve() == file.resolve():
        raise ConfigError(f"--out is {out}, the very file that is read; give the suite another name")
    if out.is_dir():
        raise ConfigError(f"--out is {out}, a folder; give a file, such as {out / 'suite.jsonl'}")
    if out.exists() and not force:
        raise ConfigError(f"--out is {out}, which is there already; give another name, or --force to replace it")
    check_writable(out, ConfigError)
    from backslide.own import Source, make_suite

    source = Source(
        kind=cast("Any", chosen), file=file, dataset=dataset, subset=subset, split=split, question=question_column,
        answer=answer_column, text=text_column,
    )  # fmt: skip
    screen = Screen(as_json=form is Format.json)
    with screen.working():
        suite = make_suite(
            source, capability=capability, model=model, dtype=dtype, tokens=reply_tokens, limit=limit,
            say=screen.say, progress=screen.progress,
        )  # fmt: skip
    suite.save(out)
    halves = {half: len(suite.part(half)) for half in ("monitor", "gate")}
    judged = sum(item.judged for item in suite.items)
    screen.show(
        f"{number_of(len(suite.items), 'item')} of kind {suite.items[0].kind} ({halves['monitor']} monitor, "
        f"{halves['gate']} gate), hash {suite.hash[:12]} → {out}"
    )
    if not judged:
        screen.show("without references they are shown, not judged; give --model BASE to measure drift from it")
    screen.result(
        {
            "suite": str(out),
            "hash": suite.hash,
            "kind": suite.items[0].kind,
            "capability": suite.items[0].capability,
            "items": len(suite.items),
            "judged": judged,
            **halves,
        }
    )


@suite_app.command("ls")
def suite_ls(
    suite: SuiteOption = "repertoire",
    include_path: IncludePathOption = None,
    num_fewshot: FewshotOption = None,
    limit: LimitOption = None,
    apply_chat_template: TemplateOption = False,
    fewshot_as_multiturn: MultiturnOption = None,
    system_instruction: SystemOption = None,
    model: TokenizerOption = None,
    form: FormatOption = Format.text,
) -> None:
    """Count the items of each capability, and of its halves."""
    from backslide.asking import suite_for
    from backslide.report.suites import counts, counts_table
    from backslide.suite.lm_eval import TaskOptions

    screen = Screen(as_json=form is Format.json)
    tasks = TaskOptions(
        include_path=include_path, num_fewshot=num_fewshot, limit=limit, apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn, system_instruction=system_instruction,
    )  # fmt: skip
    chosen = suite_for(suite, tasks, model)
    rows = counts(chosen)
    screen.show(counts_table(rows))
    screen.show(f"suite {chosen.name}, hash {chosen.hash[:12]}")
    brief = {row.capability: {"items": row.items, "monitor": row.monitor, "gate": row.gate} for row in rows}
    screen.result({"suite": chosen.name, "hash": chosen.hash, "capabilities": brief})


@suite_app.command("show")
def suite_show(
    suite: SuiteArgument = "repertoire",
    include_path: IncludePathOption = None,
    num_fewshot: FewshotOption = None,
    limit: LimitOption = None,
    apply_chat_template: TemplateOption = False,
    fewshot_as_multiturn: MultiturnOption = None,
    system_instruction: SystemOption = None,
    model: TokenizerOption = None,
    form: FormatOption = Format.text,
) -> None:
    """Show what a suite asks, an item of each capability, and of the bundled one what it can prove."""
    import dataclasses

    from backslide.asking import suite_for
    from backslide.report.suites import counts, counts_table, examples_table, measured_line
    from backslide.suite.lm_eval import TaskOptions
    from backslide.suite.measured import bundled_measurement

    screen = Screen(as_json=form is Format.json)
    tasks = TaskOptions(
        include_path=include_path, num_fewshot=num_fewshot, limit=limit, apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn, system_instruction=system_instruction,
    )  # fmt: skip
    chosen = suite_for(suite, tasks, model)
    rows, measured = counts(chosen), bundled_measurement(chosen)
    screen.show(counts_table(rows, kinds=measured is None, measured=measured))
    if measured is not None:
        screen.show(measured_line(measured))
    screen.show(examples_table(chosen))
    screen.show(f"suite {chosen.name}, {number_of(len(chosen.items), 'item')}, hash {chosen.hash}")
    screen.result(
        {
            "suite": chosen.name,
            "hash": chosen.hash,
            "items": len(chosen.items),
            "capabilities": [dataclasses.asdict(row) for row in rows],
            "measured": dataclasses.asdict(measured) if measured is not None else None,
        }
    )


@suite_app.command("check")
def suite_check(
    suite: SuiteArgument,
    train: Annotated[
        Path | None, typer.Option(help="The training data: JSON Lines with any columns, or plain .txt or .md.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 where an item is in the training data.")] = False,
    include_path: IncludePathOption = None,
    num_fewshot: FewshotOption = None,
    limit: LimitOption = None,
    apply_chat_template: TemplateOption = False,
    fewshot_as_multiturn: MultiturnOption = None,
    system_instruction: SystemOption = None,
    model: TokenizerOption = None,
    form: FormatOption = Format.text,
) -> None:
    """Read a suite, and list its items that are in the training data; with --strict these end it with exit code 1."""
    if strict and train is None:
        raise ConfigError(
            "--strict is for items that are in the training data, and none is given; name it with --train"
        )
    from backslide.asking import suite_for
    from backslide.passages import passages
    from backslide.report.suites import leaks_table
    from backslide.suite.leakage import counted, find_leaks
    from backslide.suite.lm_eval import TaskOptions

    screen = Screen(as_json=form is Format.json)
    tasks = TaskOptions(
        include_path=include_path, num_fewshot=num_fewshot, limit=limit, apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn, system_instruction=system_instruction,
    )  # fmt: skip
    chosen = suite_for(suite, tasks, model)
    with screen.working():
        leaks = find_leaks(chosen, passages(train, screen.progress)) if train is not None else ()
    if leaks:
        screen.show(leaks_table(leaks[:SHOWN]))
        if len(leaks) > SHOWN:
            screen.show(f"and {len(leaks) - SHOWN} more places; --format json lists all")
        screen.say(f"warning: {counted(leaks)} of {len(chosen.items)} in {chosen.name}: found in {train}")
    elif train is not None:
        none = f"none of the {len(chosen.items)} items" if len(chosen.items) > 1 else "the only item"
        screen.show(f"{none} of {chosen.name} was {'' if len(chosen.items) > 1 else 'not '}found in {train}")
    else:
        items = number_of(len(chosen.items), "item")
        screen.show(f"{chosen.name}: {items}, no error; --train FILE looks for copies in training data")
    screen.result(
        {
            "suite": chosen.name,
            "hash": chosen.hash,
            "train": str(train) if train is not None else None,
            "items": list(dict.fromkeys(leak.item for leak in leaks)),
            "leaks": [leak.to_dict() for leak in leaks],
        }
    )
    raise typer.Exit(1 if leaks and strict else 0)
