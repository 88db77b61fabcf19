"""How often the sealed gate half was opened in a run's folder: counted in the folder's events, and said. No torch.

A verdict's α is for one opening of the gate half. So each is written down, by two events::

    {"event": "opened", "opening": 2, "suite": "repertoire", "model": "5c1f…", "step": 120, …}   before it is scored
    {"event": "gate", "opening": 2, "suite": "repertoire", "model": "5c1f…", "zone": "retained", …}        the verdict

The count belongs to the folder and the suite's name: a run that is resumed, a new one, and a check in the same folder
go on counting. An opening that was interrupted before its verdict, and goes on with the same weights, is still one: its
outcomes are those that it would have had. With other weights it is the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_KEPT = ("time", "event", "step", "opening", "suite", "model", "zone", "says")
"""What a new run in the folder keeps of an opening's events: not what it cost, which is added up for each run."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """One opening of the gate half."""

    number: int
    """Which one it is in the folder, from 1."""
    suite: str
    """Name of the suite whose gate half it is."""
    model: str
    """Fingerprint of the weights that are judged."""
    again: bool
    """Whether it was begun before, and was interrupted."""

    @property
    def opened(self) -> dict[str, Any]:
        """The event that says so."""
        says = "opened the sealed gate half"
        if self.again:
            says = f"opening {self.number} of the gate half, which was interrupted, goes on with the same weights"
        elif self.number > 1:
            says = f"opened the gate half again: opening {self.number} of it in this folder"
        return {"event": "opened", **self.fields, "says": says}

    @property
    def fields(self) -> dict[str, Any]:
        """What its events say of it."""
        return {"opening": self.number, "suite": self.suite, "model": self.model}


def count(events: Iterable[Mapping[str, Any]], suite: str) -> int:
    """How often the gate half of `suite` was opened, by a folder's events."""
    return max((_number(event) for event in events if _is(event, "opened", suite)), default=0)


def next_opening(events: Sequence[Mapping[str, Any]], *, suite: str, model: str) -> Opening:
    """The opening that begins now, or goes on.

    Args:
        events: of the folder, so far.
        suite: name of the suite.
        model: fingerprint of the weights that are to be judged.
    """
    last = count(events, suite)
    of_last = [event for event in events if _number(event) == last]
    begun = any(_is(event, "opened", suite) and event.get("model") == model for event in of_last)
    again = last > 0 and begun and not any(_is(event, "gate", suite) for event in of_last)
    return Opening(number=last if again else last + 1, suite=suite, model=model, again=again)


def carried(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The events that the next run in the folder begins with, so that the count goes on."""
    return [
        {**{key: event[key] for key in _KEPT if key in event}, "earlier": True}
        for event in events
        if event.get("event") in ("opened", "gate") and _number(event)
    ]


def warning(number: int | None) -> str | None:
    """What more than one opening means; None where there was no more than one."""
    if number is None or number < 2:
        return None
    return (
        f"The gate half was opened {number} times in this folder. The α of a verdict is for one opening, and each "
        f"after the first spends that guarantee: over all of them a false verdict is up to {number} times as likely, "
        "and likelier still where what one showed had a part in what the next one judged."
    )


def _is(event: Mapping[str, Any], kind: str, suite: str) -> bool:
    return event.get("event") == kind and event.get("suite") == suite


def _number(event: Mapping[str, Any]) -> int:
    number = event.get("opening")
    return number if isinstance(number, int) and number > 0 else 0
