"""`backslide suite`: what a suite holds, and whether the training data holds it too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backslide.cli.options import Format, FormatOption, SuiteArgument, SuiteOption
from backslide.cli.screen import Screen

SHOWN = 100
"""Places that the table lists."""

app = typer.Typer(help="What a suite holds, and whether the training data holds it too.", no_args_is_help=True)


@app.command("ls")
def ls(suite: SuiteOption = "repertoire", form: FormatOption = Format.text) -> None:
    """Count the items of each capability, and of its halves."""
    from backslide.report.suites import counts, counts_table
    from backslide.suite.suite import Suite

    screen = Screen(as_json=form is Format.json)
    chosen = Suite.load(suite)
    rows = counts(chosen)
    screen.show(counts_table(rows))
    screen.show(f"suite {chosen.name}, hash {chosen.hash[:12]}")
    brief = {row.capability: {"items": row.items, "monitor": row.monitor, "gate": row.gate} for row in rows}
    screen.result({"suite": chosen.name, "hash": chosen.hash, "capabilities": brief})


@app.command("show")
def show(suite: SuiteArgument = "repertoire", form: FormatOption = Format.text) -> None:
    """Show what a suite asks: capabilities, kinds, halves, clusters, and an item of each capability."""
    import dataclasses

    from backslide.report.suites import counts, counts_table, examples_table
    from backslide.suite.suite import Suite

    screen = Screen(as_json=form is Format.json)
    chosen = Suite.load(suite)
    rows = counts(chosen)
    screen.show(counts_table(rows, kinds=True))
    screen.show(examples_table(chosen))
    screen.show(f"suite {chosen.name}, {len(chosen.items)} items, hash {chosen.hash}")
    screen.result(
        {
            "suite": chosen.name,
            "hash": chosen.hash,
            "items": len(chosen.items),
            "capabilities": [dataclasses.asdict(row) for row in rows],
        }
    )


@app.command("check")
def check(
    suite: SuiteArgument,
    train: Annotated[
        Path | None, typer.Option(help="The training data: JSON Lines as `tune` takes it, or plain .txt or .md.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 where an item is in the training data.")] = False,
    form: FormatOption = Format.text,
) -> None:
    """Read a suite, and list its items that are in the training data; with --strict these end it with exit code 1."""
    from backslide.data import passages
    from backslide.report.suites import leaks_table
    from backslide.suite.leakage import counted, find_leaks
    from backslide.suite.suite import Suite

    screen = Screen(as_json=form is Format.json)
    chosen = Suite.load(suite)
    with screen.working():
        leaks = find_leaks(chosen, passages(train, screen.progress)) if train is not None else ()
    if leaks:
        screen.show(leaks_table(leaks[:SHOWN]))
        if len(leaks) > SHOWN:
            screen.show(f"and {len(leaks) - SHOWN} more places; --format json lists all")
        screen.say(f"warning: {counted(leaks)} of {len(chosen.items)} in {chosen.name}: found in {train}")
    elif train is not None:
        screen.show(f"none of the {len(chosen.items)} items of {chosen.name} was found in {train}")
    else:
        screen.show(f"{chosen.name}: {len(chosen.items)} items, no error; --train FILE looks for them in training data")
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
