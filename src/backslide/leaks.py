"""Items that no verdict counts, since they are in the training data: looked for, said, and noted in a run's folder.

What a copy is stands in `backslide.suite.leakage`. No torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backslide.errors import DataError, shown
from backslide.passages import passages, passages_of
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


def sentence(leaks: tuple[Leak, ...], suite: Suite, where: str | Path) -> str:
    """How many items were found, and the first; there must be one."""
    first = f"such as {shown(leaks[0].item)} at {leaks[0].place}"
    return f"{counted(leaks)} of the suite {suite.name} found in {where}, {first}"


def found_in(
    suite: Suite, train: Any, *, strict: bool, progress: Progress | None = None
) -> tuple[tuple[Leak, ...], str]:
    """What a run leaves out of its verdicts, and what the user is told of it ("" where there is nothing).

    Args:
        suite: what is asked.
        train: a file as `passages` reads it, several of them, or rows as `passages_of` has them.
        strict: whether a run on such data is refused.
        progress: called while the data are looked through.

    Raises:
        DataError: the data are wrong, or hold items and `strict` is set.
    """
    files = _files(train)
    texts = (
        itertools.chain.from_iterable(passages(file, progress) for file in files)
        if files
        else passages_of(train, progress=progress)
    )
    leaks = find_leaks(suite, texts, places=1)
    if not leaks:
        return (), ""
    found = sentence(leaks, suite, ", ".join(map(str, files)) if files else "the training data")
    if strict:
        raise DataError(f"{found}; train without them, or with strict = false leave them unjudged")
    how = LISTED if files else "run.json names them all"
    return leaks, f"{found}; left out of the verdicts, {how}"


def united(suite: Suite, found: Sequence[tuple[tuple[Leak, ...], str]]) -> tuple[tuple[Leak, ...], str]:
    """Of what each of several processes found by `found_in`, all: each may have been given a share of the data."""
    if all(leaks == found[0][0] for leaks, _ in found):
        return found[0]
    by_item = {leak.item: leak for leaks, _ in reversed(found) for leak in leaks}
    every = tuple(by_item[item.id] for item in suite.items if item.id in by_item)
    where = "the training data of all processes"
    return every, f"{sentence(every, suite, where)}; left out of the verdicts, run.json names them all"


def _files(train: Any) -> list[Path]:
    """The files that are meant; none where it is rows."""
    if isinstance(train, (str, Path)):
        return [Path(train)]
    several = isinstance(train, (list, tuple))
    named = several and all(isinstance(row, Path) or (isinstance(row, str) and _is_file(row)) for row in train)
    return [Path(row) for row in train] if named else []


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        # A text that is too long for a name, or holds a zero.
        return False


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
