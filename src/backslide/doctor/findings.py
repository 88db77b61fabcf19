"""What a look at a configuration found. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something that would break or mislead, and what to do about it."""

    level: Level
    """`error`: the run would end with it. `warning`: it would run, and its outcome would mislead or be worth little.
    `note`: good to know."""
    about: str
    """The key of the configuration, or the file."""
    says: str
    """What was found, with its numbers."""
    mend: str = ""
    """What to do; empty where there is nothing to be done."""

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON can hold it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Examination:
    """All that was found, and the facts it rests on."""

    findings: tuple[Finding, ...]
    """Errors first, then warnings, then notes, each in the order of the configuration."""
    facts: tuple[tuple[str, str], ...]
    """Name and value, for people."""

    @property
    def broken(self) -> bool:
        """Whether the run would end with an error."""
        return any(finding.level == "error" for finding in self.findings)

    def count(self, level: Level) -> int:
        """How many findings are of a level."""
        return sum(finding.level == level for finding in self.findings)


class Notebook:
    """Findings and facts as they come."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.facts: list[tuple[str, str]] = []

    def error(self, about: str, says: object, mend: str = "") -> None:
        """The run would end with it."""
        self.findings.append(Finding("error", about, _line(says), mend))

    def warning(self, about: str, says: object, mend: str = "") -> None:
        """It would mislead."""
        self.findings.append(Finding("warning", about, _line(says), mend))

    def note(self, about: str, says: object, mend: str = "") -> None:
        """Good to know."""
        self.findings.append(Finding("note", about, _line(says), mend))

    def fact(self, name: str, value: object) -> None:
        """What was seen."""
        self.facts.append((name, _line(value)))

    def close(self) -> Examination:
        """All of it, the worst first."""
        ordered = sorted(self.findings, key=lambda finding: LEVELS.index(finding.level))
        return Examination(tuple(ordered), tuple(self.facts))


def _line(value: object) -> str:
    return " ".join(str(value).split())
