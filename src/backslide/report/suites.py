"""What a suite holds, and what of it leaked, as Rich tables. Text of items is never read as Rich markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from backslide.report.terminal import named
from backslide.report.text import plain
from backslide.suite.item import Item, asked_of, right_of
from backslide.suite.leakage import Leak
from backslide.suite.measured import Measurement
from backslide.suite.suite import Suite, half_of


@dataclass(frozen=True)
class Counts:
    """What a suite holds of a capability."""

    capability: str
    items: int
    monitor: int
    gate: int
    kinds: dict[str, int]
    """Items of each kind."""
    clusters: int
    """Independent groups of items: clusters, and items without one."""


def counts(suite: Suite) -> list[Counts]:
    """Count the items of each capability, in the suite's order."""
    found: dict[str, list[Item]] = {}
    for item in suite.items:
        found.setdefault(item.capability, []).append(item)
    return [
        Counts(
            capability=name,
            items=len(items),
            monitor=sum(half_of(item) == "monitor" for item in items),
            gate=sum(half_of(item) == "gate" for item in items),
            kinds=dict(Counter(item.kind for item in items)),
            clusters=len({(item.cluster is not None, item.cluster or item.id) for item in items}),
        )
        for name, items in found.items()
    ]


def counts_table(rows: Sequence[Counts], *, kinds: bool = False, measured: Measurement | None = None) -> Table:
    """A row for each capability, and one for all items; with `measured`, what a model made of them."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("capability", no_wrap=True, overflow="fold")
    names = ["items", "monitor", "gate"]
    if measured is not None:
        names += ["base", "gate proves", "monitor proves"]
    for name in (*names, *(("clusters", "kinds") if kinds else ())):
        table.add_column(name, justify="left" if name == "kinds" else "right")
    for row in rows:
        more: tuple[str, ...] = ()
        if measured is not None:
            more = _measured_cells(row, measured)
        if kinds:
            more += (str(row.clusters), ", ".join(f"{count} {kind}" for kind, count in row.kinds.items()))
        table.add_row(named(row.capability), str(row.items), str(row.monitor), str(row.gate), *more)
    if len(rows) > 1:
        totals = [sum(getattr(row, name) for row in rows) for name in ("items", "monitor", "gate")]
        table.add_row("all items", *map(str, totals))
    return table


def _measured_cells(row: Counts, measured: Measurement) -> tuple[str, ...]:
    found = measured.capabilities.get(row.capability)
    if found is None:
        return ("–", "–", "–")
    base = f"{found.base:.2f} bits a byte" if set(row.kinds) == {"text"} else f"{found.base:.1%}"
    drops = (found.gate, found.monitor)
    return (base, *("–" if drop is None else f"{100 * drop:.1f}" for drop in drops))


def measured_line(measured: Measurement) -> str:
    """Under which conditions the numbers of `counts_table` hold."""
    of = measured.conditions
    return (
        f"base: {of['model']} in {of['dtype']}, right answers or bits per byte. Proves: the smallest drop, in points, "
        f"that is proven with a probability of {of['power']:.0%} (α = {of['alpha']:g} for all capabilities together), "
        f"by `check` on the gate half, and by each of {of['looks']} looks of a guarded run on the monitor half"
    )


def examples_table(suite: Suite) -> Table:
    """The first item of each capability: what is asked, and what is right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("capability", no_wrap=True, overflow="fold")
    for name in ("asked", "right"):
        table.add_column(name, overflow="fold")
    seen: set[str] = set()
    for item in suite.items:
        if item.capability not in seen:
            seen.add(item.capability)
            cells = ((asked_of(item), 120), (", ".join(right_of(item)) or "–", 60))
            table.add_row(named(item.capability), *(Text(plain(text, size)) for text, size in cells))
    return table


def leaks_table(leaks: Sequence[Leak]) -> Table:
    """Each leaked item with both places, and what stands there."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("item", "in the training data", "copy", "asked", "found"):
        table.add_column(name, overflow="fold")
    for leak in leaks:
        table.add_row(
            Text(f"{plain(leak.item, 80)}\n{plain(leak.item_place, 120)}"),
            Text(plain(leak.place, 120)),
            f"{leak.kind} {leak.overlap:.0%}",
            Text(plain(leak.asked, 160)),
            Text(plain(leak.found, 160)),
        )
    return table
