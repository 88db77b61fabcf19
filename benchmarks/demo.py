"""Time what issue and README promise of the demo and the command line; print a line for docs/LOG.md.

python benchmarks/demo.py [--out runs/bench]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch


def seconds(*command: str, best_of: int = 1) -> float:
    """Wall-clock seconds of a command, the best of several runs; the command must succeed."""
    times = []
    for _ in range(best_of):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    return min(times)


def measuring(run: Path) -> float:
    """Seconds that a run's looks and its gate took, without the baseline, which both runs share."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return sum(event.get("seconds", 0.0) for event in events if event["event"] in ("look", "gate"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    out = parser.parse_args().out
    cli = str(Path(sys.executable).parent / "backslide")
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "import": round(seconds(sys.executable, "-c", "import backslide", best_of=5), 3),
        "python alone": round(seconds(sys.executable, "-c", "pass", best_of=5), 3),
        "help": round(seconds(cli, "--help", best_of=5), 3),
        "demo": round(seconds(cli, "demo", "--out", str(out)), 1),
        **{f"measuring, {name}": round(measuring(out / name), 1) for name in ("conservative", "aggressive")},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
