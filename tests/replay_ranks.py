"""A run with replay of two processes, and the same resumed; each writes what it saw to FOLDER/rank-R.json.

torchrun --nproc_per_node 2 replay_ranks.py FOLDER
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import torch
from torch import distributed

from backslide.cure.replay import Replay
from replay_runs import OLD, make


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    seen = []
    for resumed in (None, str(folder / "checkpoint-2")):
        trainer = make(folder, replay=Replay(OLD, 0.2, say=print), ddp_backend="gloo", max_steps=4)
        trainer.train(resume_from_checkpoint=resumed)
        seen.append(trainer.seen)
    (folder / f"rank-{distributed.get_rank()}.json").write_text(json.dumps(seen))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
