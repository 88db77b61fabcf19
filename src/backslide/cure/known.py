"""What was measured of the very weights before, by the run that made them or by an interrupted repair. No torch.

A look within a budget asks a part of its half. It is no look at the half, but its packs are whole: asked again they
would say the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from backslide.record import Header, Outcome, Record
from backslide.suite.suite import Part, Suite


@dataclass(frozen=True)
class Known:
    """What need not be asked again."""

    record: Record | None
    """One that answers every item of the half."""
    outcomes: Mapping[str, Outcome]
    """Where there is none, by id what the others say."""


def known(records: Iterable[Record], header: Header, baseline: Record, suite: Suite) -> Known:
    """What `records` say of a half.

    Args:
        records: of whatever weights; of two that say something of an item the first counts.
        header: of the record that is wanted, with its weights, part and conditions.
        baseline: covers the half, and was asked as the wanted record is to be.
        suite: of both.
    """
    part: Part = "gate" if header.part == "gate" else "monitor"
    wanted = _judged(suite, part)
    found: dict[str, Outcome] = {}
    for record in records:
        if not _same(record.header, header):
            continue
        said = {o.id: o for o in record.outcomes if o.id in wanted and _asked(o) == _asked(baseline.by_id.get(o.id))}
        if len(said) == len(wanted):
            return Known(record, {})
        found = {**said, **found}
    return Known(None, found)


def half(baseline: Record, suite: Suite) -> Record:
    """The baseline's own outcomes on the monitor half, as if another model had given them."""
    ids = _judged(suite, "monitor")
    outcomes = tuple(outcome for outcome in baseline.outcomes if outcome.id in ids)
    return Record(dataclasses.replace(baseline.header, part="monitor"), outcomes)


def _judged(suite: Suite, part: Part) -> set[str]:
    return {item.id for item in suite.part(part) if item.judged}


def _asked(outcome: Outcome | None) -> str | None:
    return outcome.request if outcome is not None else None


def _same(one: Header, other: Header) -> bool:
    """Whether two records are of the very weights, suite, half and conditions."""
    names = ("model_fingerprint", "part", "suite_hash", "conditions")
    return all(getattr(one, name) == getattr(other, name) for name in names)
