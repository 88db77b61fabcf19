"""`tune` of two processes with replies of the base; each writes what it saw to FOLDER/rank-R.json.

torchrun --nproc_per_node 2 cure_ranks.py FOLDER
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from backslide.config import TuneConfig
from backslide.cure import synthesis
from backslide.errors import BackslideError, DataError
from backslide.files import write_lines
from backslide.scoring.ranks import Ranks
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.tune import tune
from guard_runs import SMALL, suite


def config(folder: Path) -> TuneConfig:
    return TuneConfig.from_dict({
        "model": {"base": str(folder / "base"), "dtype": "float32"},
        "data": {"train": str(folder / "train.jsonl")},
        "train": {"steps": 2, "batch_size": 2, "max_length": 64},
        "guard": {"every": 2, "cache": False},
        "cure": {"anchor": 0.5, "prompts": 30},
        "output": {"dir": str(folder / "run"), "checkpoints": 0},
    })  # fmt: skip


def failure(make: Any) -> list[str]:
    try:
        make()
    except BackslideError as bad:
        return [type(bad).__name__, str(bad)]
    return []


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    ranks = Ranks.here()
    if ranks.first:
        tiny_model().save_pretrained(folder / "base")
        tiny_tokenizer().save_pretrained(folder / "base")
        write_lines(folder / "train.jsonl", [{"text": f"Question {i:02}? Answer {i:02}."} for i in range(8)])
    distributed.barrier()

    said: list[str] = []
    made: list[str] = []
    real: Any = synthesis._Kept.add

    def add(kept: Any, replies: Any) -> None:
        made.extend(reply.prompt for reply in replies)
        if not said:
            raise DataError("the first replies came to nothing; try again")
        time.sleep(0.5)  # in which the others could read half of a file
        real(kept, replies)

    synthesis._Kept.add = add  # type: ignore[method-assign]
    broke = failure(lambda: tune(config(folder), suite=suite(), settings=SMALL, say=lambda _: None))
    said.append("again")
    made.clear()
    tuned = tune(config(folder), suite=suite(), settings=SMALL, say=said.append)

    def ours(alive: Any) -> Any:
        alive()
        raise ValueError("a fault\nof its own")

    def share(failed: int) -> None:
        ranks.share_failure(DataError(f"process {failed} failed") if ranks.rank == failed else None)

    found = {
        "broke": broke, "said": said, "made": made, "zone": str(tuned.verdict.zone),
        "told": failure(lambda: ranks.of_first(ours)) if not ranks.first else [],
        "shared": [],
    }  # fmt: skip
    if ranks.first:
        try:
            ranks.of_first(ours)
        except ValueError as bad:
            found["told"] = [type(bad).__name__, str(bad)]
    found["shared"] = failure(lambda: share(1))
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
