"""junit.xml from a run's folder: the verdict in the form that build servers read and show.

A test case for the whole verdict and one for each capability. `regressed` is a failure; `undecided` is an error,
since the test came to no decision: no server takes it for a pass. What can fail a model but never delay it (all items
together, the monitor half beside the gate half) is no error where it is undecided, so that a file has no failure and no
error exactly where the exit code is 0. A run without items to compare (it broke) has the one case.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import datetime, timezone

from backslide.report.summary import Summary, rows_of
from backslide.report.text import plain
from backslide.verdict import CapabilityVerdict, Zone

TAGS = {Zone.REGRESSED: "failure", Zone.UNDECIDED: "error"}
LIMIT = 4000
"""Characters of a text."""


@dataclass(frozen=True)
class _Case:
    name: str
    group: str
    zone: Zone | None
    """None: it neither passes nor fails by itself."""
    says: str


def _beside(row: CapabilityVerdict, group: str) -> _Case:
    """A row that can fail a model, and no more."""
    if row.zone is Zone.REGRESSED:
        return _Case(row.capability, group, row.zone, row.reason)
    return _Case(row.capability, group, None, f"{row.zone}: {row.reason}")


def render(summary: Summary) -> str:
    """The verdict of a run as JUnit XML."""
    verdict, suite = summary.verdict, _text(summary.config["suite"])
    cases = [_Case("verdict", "", verdict.zone, "; ".join(verdict.reasons))]
    cases += [_Case(row.capability, suite, row.zone, row.reason) for row in verdict.capabilities]
    if verdict.pooled is not None:
        cases.append(_beside(verdict.pooled, suite))
    if verdict.beside is not None:
        cases += [_beside(row, f"{suite}, monitor half") for row in rows_of(verdict.beside)]
    counts = {
        "tests": len(cases),
        "failures": sum(case.zone is Zone.REGRESSED for case in cases),
        "errors": sum(case.zone is Zone.UNDECIDED for case in cases),
        "skipped": 0,
    }
    seconds = f"{summary.seconds:.3f}"
    totals = {key: str(value) for key, value in counts.items()}
    root = ET.Element("testsuites", {"name": "backslide", **totals, "time": seconds})
    top = ET.SubElement(root, "testsuite", {"name": f"backslide: {suite}", **totals, "time": seconds})
    if (ended := summary.ended_at) is not None:
        top.set("timestamp", datetime.fromtimestamp(ended, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"))
    properties = ET.SubElement(top, "properties")
    for name, value in _properties(summary):
        ET.SubElement(properties, "property", {"name": name, "value": _text(value)})
    for case in cases:
        # The whole verdict by itself, should a capability be called so.
        group = f"backslide.{_text(case.group)}" if case.group else "backslide"
        known = {"name": _text(case.name), "classname": group, "time": "0"}
        element = ET.SubElement(top, "testcase", known)
        if case.zone in TAGS:
            said = ET.SubElement(element, TAGS[case.zone], {"type": str(case.zone), "message": _text(case.says)})
            said.text = _text(verdict.claim)
        else:
            ET.SubElement(element, "system-out").text = _text(case.says)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _properties(summary: Summary) -> list[tuple[str, object]]:
    config, verdict = summary.config, summary.verdict
    return [
        ("model", config["model"]),
        ("suite_hash", config["suite_hash"]),
        ("alpha", config["alpha"]),
        ("tolerance", config["tolerance"]),
        ("zone", verdict.zone),
        ("exit_code", verdict.exit_code),
        ("part", verdict.part),
        ("openings", summary.openings),
        ("backslide", summary.baseline.header.versions.get("backslide", "")),
    ]


def _text(value: object) -> str:
    """One line without control characters, which no XML may hold, escaped or not."""
    return "".join(c for c in plain(str(value), LIMIT) if c not in "\ufffe\uffff")
