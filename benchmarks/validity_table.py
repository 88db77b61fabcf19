"""The table of docs/statistics.md from what `make validity` measured.

    BACKSLIDE_VALIDITY_OUT=validity.json make validity && python benchmarks/validity_table.py validity.json

Settings of one promise become one line with the worst of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LEAST = ("power",)
"""Claims in which a small number is the bad one."""


def lines(rows: list[dict[str, Any]]) -> list[str]:
    groups: dict[tuple[str, float | None, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["claim"], row["bound"], row["verdict"]), []).append(row)
    found = []
    for (claim, bound, verdict), members in groups.items():
        worst = (min if claim.startswith(LEAST) else max)(members, key=lambda row: row["measured"])
        where = worst["setting"] + (f" (the worst of {len(members)} settings)" if len(members) > 1 else "")
        promised = "–" if bound is None else f"{bound:g}"
        found.append(
            f"| {claim} | {where} | {promised} | {worst['measured']:.3g} | {worst['replicates']} | {verdict} |"
        )
    return found


def main() -> None:
    rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    head = ["| claim | setting | promised | measured | replicates | |", "|---|---|--:|--:|--:|---|"]
    print("\n".join(["**Promised.**", "", *head, *lines([row for row in rows if row["bound"] is not None]), ""]))
    print("\n".join(["**For information.**", "", *head, *lines([row for row in rows if row["bound"] is None])]))


if __name__ == "__main__":
    main()
