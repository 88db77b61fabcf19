"""`finish` for capabilities in which case and white space make a difference, as in code.

`common.check` takes texts that differ in nothing else for the same, and indentation for a slip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from common import Draft, Row, finish


def finish_exact(capability: str, entries: Iterable[Draft | Row]) -> list[Row]:
    """Do what `common.finish` does, but tell texts apart that differ in case or white space."""
    return finish(capability, entries, spelled)


def spelled(row: Row) -> Row:
    """`row` with white space and capital letters spelled out, but for indentation and the gap before a comment."""

    def of(text: str) -> str:
        text = re.sub(r"\n +", "\n", text).replace("  # ", " # ")
        return re.sub(r"([A-Z])", r"^\1", re.sub(r"(?<=[^ ]) (?=[^ ])", "·", text)).replace("\n", "↵")

    spelled_out = dict(row)
    for key in ("prompt", "text"):
        if key in row:
            spelled_out[key] = of(row[key])
    if "choices" in row:
        spelled_out["choices"] = [of(choice) for choice in row["choices"]]
    return spelled_out
