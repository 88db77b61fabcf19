"""Items that no verdict counts, since they are in the training data: looked for, said, and noted in a run's folder.

What a copy is stands in `backslide.suite.leakage`. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backslide.data import passages
from backslide.errors import shown
from backslide.rundir import RunFolder
from backslide.suite.leakage import Leak, counted, find_leaks
from backslide.suite.suite import Suite

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]

LISTED = "backslide suite check lists them"


@dataclass(frozen=True)
class LeftOut:
    """What is left out of a verdict, and what is known of it."""

    items: frozenset[str] = frozenset()
    """Ids; those that a run's folder names may be of other suites too."""
    leaks: tuple[dict[str, Any], ...] = ()
    """Items of the suite with their places in the training data, as `noted`."""


def look(suite: Suite, path: str | Path, progress: Progress | None = None) -> tuple[Leak, ...]:
    """Items of the suite that are in a file of training data, a place of each. Raises `DataError` as `passages`."""
    return find_leaks(suite, passages(path, progress), places=1)


def sentence(leaks: tuple[Leak, ...], suite: Suite, path: str | Path) -> str:
    """How many items were found, and the first; there must be one."""
    first = f"such as {shown(leaks[0].item)} at {leaks[0].place}"
    return f"{counted(leaks)} of the suite {suite.name} found in {path}, {first}"


def noted(leak: Leak) -> dict[str, Any]:
    """A leak as `run.json` holds it."""
    # Not the excerpts: a run's folder is shared more readily than its training data.
    return {"item": leak.item, "place": leak.place, "kind": leak.kind, "overlap": round(leak.overlap, 3)}


def left_out_of(config: Mapping[str, Any]) -> frozenset[str]:
    """Items that the run of a `run.json` left out of its verdicts: what it was told to, and what it had found."""
    told = config.get("left_out")
    items = [*(told if isinstance(told, list) else ()), *(leak["item"] for leak in _leaks_of(config))]
    return frozenset(item for item in items if isinstance(item, str))


def gather(
    suite: Suite,
    train: Iterable[str | Path],
    runs: Iterable[RunFolder],
    say: Say | None = None,
    progress: Progress | None = None,
) -> LeftOut:
    """What a verdict on a model that was trained elsewhere leaves out.

    Args:
        suite: what is asked.
        train: files of the training data, which are looked through.
        runs: folders of runs that may have found some, or were told of some; one that does not exist says nothing.
        say: told how many there are, and where that is known from.
        progress: called while files are looked through.

    Raises:
        DataError: a file is wrong.
        RecordError: a run's folder cannot be read.
    """
    of_suite = {item.id for item in suite.items}
    items, leaks = set[str](), dict[str, dict[str, Any]]()
    for path in train:
        found = look(suite, path, progress)
        if found and say is not None:
            say(f"{sentence(found, suite, path)}; left out of the verdict, {LISTED}")
        for leak in found:
            leaks.setdefault(leak.item, noted(leak))
    items |= leaks.keys()
    for run in {run.path.resolve(): run for run in runs if run.exists()}.values():
        config = run.config
        known = left_out_of(config)
        more = sorted((known & of_suite) - items)
        if more and say is not None:
            count = f"{len(more)} {'more ' if items & of_suite else ''}item{'' if len(more) == 1 else 's'}"
            say(
                f"{count} of the suite {suite.name}, such as {shown(more[0])}: left out of the verdict, as of the run "
                f"in {run.path}"
            )
        for row in _leaks_of(config):
            if row["item"] in of_suite:
                leaks.setdefault(row["item"], row)
        items |= known
    return LeftOut(frozenset(items), tuple(leaks.values()))


def _leaks_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = config.get("leaks")
    rows = rows if isinstance(rows, list) else []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("item"), str)]
