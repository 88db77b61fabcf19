"""Write the suite files of the capabilities whose items were all written by hand.

`python tools/repertoire/written.py common_sense everyday` reads `written/<capability>.jsonl`, whose lines are::

    {"id": "everyday/dozen", "prompt": "How many eggs make a dozen?", "gold": "Twelve", "wrong": ["Six", "Ten", "Two"]}

with `cluster` where items belong together. A line without `wrong` is an item as in a suite file and stays as it is.
"""

from __future__ import annotations

import sys

from common import finish, written


def main(capabilities: list[str]) -> None:
    """Write the file of each capability named."""
    if not capabilities:
        raise SystemExit("no capability named; give one or more, such as common_sense")
    for capability in capabilities:
        entries = written(capability)
        if not entries:
            raise SystemExit(f"{capability}: written/{capability}.jsonl is not there or empty")
        finish(capability, entries)


if __name__ == "__main__":
    main(sys.argv[1:])
