"""The points of a line that were tried, as a repair's folder keeps them, and what came of it. No torch.

The line is that between a base (0) and what was tuned from it (1); see `backslide.cure.line`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from backslide.record import Record
from backslide.verdict import Verdict, main_row


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of the line that was measured."""

    at: float
    """Where on the line: 0 is the base, 1 the tuned model."""
    loss: float | None
    """The target's loss on held-out data, nats a token; None: there is none, or it is not finite."""
    kept: bool | None = None
    """Whether it kept the abilities on the monitor half; None: only the loss was measured."""
    drop: float | None = None
    """Mean drop of all items together, in `unit`."""
    upper: float | None = None
    """Its upper bound."""
    unit: str = "accuracy"
    lost: int | None = None
    won: int | None = None
    items: int = 0
    regressed: tuple[str, ...] = ()
    """Capabilities in which a loss is proven."""

    def to_dict(self) -> dict[str, Any]:
        """The point as JSON can hold it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What a repair gave back and what it kept, on the gate half and on held-out data."""

    base: float | None
    """Accuracy of the base on the gate half, all items with a right answer together; None: there are none."""
    tuned: float | None
    """The same of the tuned model; None: it was not measured."""
    repaired: float | None
    base_loss: float | None
    """The target's loss on held-out data; None: there is none."""
    tuned_loss: float | None
    repaired_loss: float | None
    best_loss: float | None = None
    """The lowest that was found on the line."""
    shipped: bool = True
    """Whether the repaired model was put in place; else what stands as repaired was refused, or nothing was chosen."""
    opened: bool = True
    """Whether the gate half was asked."""

    @property
    def back(self) -> float | None:
        """Share of the lost accuracy that is back; None where nothing was lost, or it is not known."""
        if self.base is None or self.tuned is None or self.repaired is None or self.base <= self.tuned:
            return None
        return (self.repaired - self.tuned) / (self.base - self.tuned)

    @property
    def kept(self) -> float | None:
        """Share of the tuned model's gain in target loss that is kept; None where it gained nothing, or unknown."""
        return self._share(self.tuned_loss)

    @property
    def of_best(self) -> float | None:
        """Gain in target loss, as a share of the largest that was found on the line."""
        return self._share(self.best_loss)

    def _share(self, most: float | None) -> float | None:
        if self.base_loss is None or self.repaired_loss is None or most is None or most >= self.base_loss:
            return None
        return (self.base_loss - self.repaired_loss) / (self.base_loss - most)

    @property
    def lines(self) -> tuple[str, str]:
        """Both in words."""
        return self._accuracy, self._target

    @property
    def _accuracy(self) -> str:
        if not self.opened:
            return "accuracy: nothing was shipped, and the gate half was not opened"
        if self.base is None or self.repaired is None:
            return "accuracy: no item of the gate half has a right answer"
        if not self.shipped:
            return f"accuracy on the gate half: base {self.base:.1%}, chosen {self.repaired:.1%}, which was not shipped"
        if self.tuned is None:
            return f"accuracy on the gate half: base {self.base:.1%}, repaired {self.repaired:.1%}"
        seen = f"base {self.base:.1%}, tuned {self.tuned:.1%}, repaired {self.repaired:.1%}"
        if self.back is None:
            return f"accuracy on the gate half: {seen}; the tuned model had lost none"
        return f"{self.back:.0%} of the lost accuracy is back: {seen}, on the gate half"

    @property
    def _target(self) -> str:
        if self.base_loss is None and self.best_loss is None:
            most = "; of what kept the abilities the most was taken" if self.shipped else ""
            return f"target: without held-out data its loss is not known{most}"
        base, tuned = (_loss(loss) for loss in (self.base_loss, self.tuned_loss))
        if not self.shipped:
            chosen = "" if self.repaired_loss is None else f", chosen {self.repaired_loss:.3f}, which was not shipped"
            return f"target loss on held-out data: base {base}, tuned {tuned}, lowest {_loss(self.best_loss)}{chosen}"
        seen = f"base {base}, tuned {tuned}, repaired {_loss(self.repaired_loss)}"
        if self.base_loss is None:
            return f"target loss on held-out data: {seen}"
        if self.kept is not None:
            line = f"{self.kept:.0%} of the gain in target loss is kept: {seen}, on held-out data"
        else:
            line = f"the tuned model had gained nothing on held-out data: {seen}"
        if self.of_best is not None and self.best_loss != self.tuned_loss:
            line += f"; {self.of_best:.0%} of the most that the line has ({self.best_loss:.3f})"
        return line


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def points_of(events: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    """The points that a folder's events tell of, from the tuned end; of several at one place the last with a look."""
    names = {field.name for field in dataclasses.fields(Point)}
    found: dict[float, Point] = {}
    for event in events:
        if event.get("event") != "point" or not isinstance(event.get("at"), (int, float)):
            continue
        fields = {name: value for name, value in event.items() if name in names}
        point = Point(**{"loss": None, **fields, "regressed": tuple(fields.get("regressed") or ())})
        before = found.get(point.at)
        if before is None or before.kept is None or point.kept is not None:
            found[point.at] = point
    return tuple(found[at] for at in sorted(found, reverse=True))


def balance_of(
    baseline: Record,
    tuned: Record | None,
    repaired: Record | None,
    points: Iterable[Point],
    chosen: float | None,
    *,
    shipped: bool = True,
) -> Balance:
    """What was lost, given back, gained and kept.

    Args:
        baseline: covers the gate half.
        tuned: gate half of the tuned model, where it was measured.
        repaired: gate half of the repaired model, or of what was refused; its items count. None: it was not opened.
        points: of the line.
        chosen: the repaired model's place there.
        shipped: whether it was put in place.
    """
    ids = [o.id for o in repaired.outcomes if o.correct is not None] if repaired is not None else []
    losses = {point.at: point.loss for point in points}
    known = [loss for loss in losses.values() if loss is not None]
    return Balance(
        base=_accuracy(baseline, ids),
        tuned=_accuracy(tuned, ids),
        repaired=_accuracy(repaired, ids),
        base_loss=losses.get(0.0),
        tuned_loss=losses.get(1.0),
        repaired_loss=losses.get(chosen) if chosen is not None else None,
        best_loss=min(known, default=None),
        shipped=shipped,
        opened=repaired is not None,
    )


def line_table(points: Iterable[Point], chosen: float | None) -> Table:
    """A row for each point that was tried."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("α on the line", "held-out loss", "drop", "at most", "lost", "won", "items"):
        table.add_column(name, justify="right")
    table.add_column("abilities")
    for row in rows(points, chosen):
        *numbers, kept = row
        table.add_row(*numbers, Text(kept, style="bold" if "chosen" in kept else ""))
    return table


def rows(points: Iterable[Point], chosen: float | None) -> list[tuple[str, ...]]:
    """The cells of the table: our own words and numbers, but for the names of capabilities."""
    return [
        (
            f"{point.at:.5g}",
            "–" if point.loss is None else f"{point.loss:.3f}",
            _amount(point.drop, point.unit),
            _amount(point.upper, point.unit) if point.kept is not None else "–",
            "–" if point.lost is None else str(point.lost),
            "–" if point.won is None else str(point.won),
            "–" if point.kept is None else str(point.items),
            _kept(point) + (", chosen" if point.at == chosen else ""),
        )
        for point in points
    ]


def describe(point: Point) -> str:
    """A point in a sentence, for events."""
    loss = "" if point.loss is None else f"held-out loss {point.loss:.3f}"
    if point.kept is None:
        return f"at {point.at:.5g} of the line: {loss or 'the held-out loss is not finite'}"
    flips = "" if point.lost is None else f", lost {point.lost} and won {point.won} of {point.items} items"
    drop = f"drop {_amount(point.drop, point.unit)}{flips}"
    return f"at {point.at:.5g} of the line: {loss + ', ' if loss else ''}{drop}: {_kept(point)}"


def point_of(at: float, loss: float | None, verdict: Verdict, kept: bool) -> Point:
    """The point that a look at the monitor half makes."""
    row = main_row(verdict)
    judged = (*verdict.capabilities, *([verdict.pooled] if verdict.pooled else []))
    return Point(
        at=at,
        loss=loss,
        kept=kept,
        drop=row.drop if row else None,
        upper=row.upper if row else None,
        unit=row.unit if row else "accuracy",
        lost=row.lost if row else None,
        won=row.won if row else None,
        items=row.items if row else sum(r.items for r in verdict.capabilities),
        regressed=tuple(r.capability for r in judged if r.zone.value == "regressed"),
    )


def _kept(point: Point) -> str:
    if point.kept is None:
        return "the base" if point.at == 0 else "not asked"
    if point.kept:
        return "kept"
    return "a loss is proven" if point.regressed else "a loss within tolerance is not proven"


def _amount(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.3f}".replace("-", "−") if unit == "drift" else f"{value * 100:+.1f}".replace("-", "−")


def _accuracy(record: Record | None, ids: list[str]) -> float | None:
    if record is None or not ids or not all(id in record.by_id for id in ids):
        return None
    return sum(bool(record.by_id[id].correct) for id in ids) / len(ids)
