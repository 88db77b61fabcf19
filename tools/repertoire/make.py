"""Make all files of the repertoire, or with `--full` everything that could be asked: see README.md."""

from __future__ import annotations

import os
import subprocess
import sys

from common import HERE

PROGRAMS = ("arithmetic", "code_items", "instructions", "language", "science", "short_answers", "world_facts")
WRITTEN = ("common_sense", "everyday", "instructed_replies", "prose", "reading", "safety")


def main() -> None:
    """Run each maker; ends with the first that fails."""
    more = {"REPERTOIRE_FULL": "1"} if "--full" in sys.argv[1:] else {}
    makers = [(f"{name}.py",) for name in PROGRAMS] + [("written.py", *WRITTEN)]
    for maker, *arguments in makers:
        subprocess.run([sys.executable, str(HERE / maker), *arguments], check=True, env={**os.environ, **more})


if __name__ == "__main__":
    main()
