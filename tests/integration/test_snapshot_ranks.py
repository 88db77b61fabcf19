"""Snapshots with several processes: replicas (DDP) and sharded parameters (FSDP2), on two CPUs with gloo."""

from __future__ import annotations

from pathlib import Path

import pytest

from processes import two

COMMON = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from backslide.guard.intervene import go_back
from backslide.guard.pack import local
from backslide.guard.snapshot import Snapshot

dist.init_process_group("gloo")
rank = dist.get_rank()

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))

def step(model, optimizer, number):
    data = torch.randn(4, 7, generator=torch.Generator().manual_seed(10 * number + rank))
    model(data).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()

def state(model, optimizer):
    params = list(model.parameters())
    kept = [value for p in params for value in (optimizer.state[p].values() if p in optimizer.state else ())]
    return [local(value).clone() for value in [*params, *kept]]

def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))

def walk(model, optimizer, first, last):
    seen = []
    for number in range(first, last):
        step(model, optimizer, number)
        seen.append(state(model, optimizer))
    return seen
"""

REPLICAS = """
model = DistributedDataParallel(network())
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
folder = Path(sys.argv[1])
walk(model, optimizer, 0, 3)
# The first process writes, the other one loads; both keep one in memory.
memory, disk = Snapshot(), Snapshot(folder)
memory.take(model, optimizer, step=3)
if rank == 0:
    disk.take(model, optimizer, step=3)
dist.barrier()
assert all(not name.startswith("module.") for name in memory.names)
then, trail = state(model, optimizer), walk(model, optimizer, 3, 5)
for snapshot in (memory, Snapshot.load(folder)):
    assert not same(state(model, optimizer), then)
    snapshot.restore(model, optimizer)
    assert same(state(model, optimizer), then)
    assert all(same(a, b) for a, b in zip(walk(model, optimizer, 3, 5), trail))
assert go_back(memory, model, optimizer, None, 0.5) == [0.05]
step(model, optimizer, 9)
everywhere = [None, None]
dist.all_gather_object(everywhere, state(model, optimizer))
assert same(*everywhere), "replicas are replicas still"
"""

SHARDS = """
def sharded():
    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer, reshard_after_forward=False)
    fully_shard(model, reshard_after_forward=False)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)

model, optimizer = sharded()
folder = Path(sys.argv[1]) / str(rank)
walk(model, optimizer, 0, 3)
memory, disk = Snapshot(), Snapshot(folder)
whole = sum(p.numel() for p in model.parameters())
for snapshot in (memory, disk):
    snapshot.take(model, optimizer, step=3)
shard = sum(local(p).numel() for p in model.parameters())
assert shard < whole and memory.nbytes == disk.nbytes == 3 * 4 * shard + 4 * 4, "weights and two moments; four steps"
then, trail = state(model, optimizer), walk(model, optimizer, 3, 5)
for snapshot in (memory, disk):
    with torch.no_grad():
        model(torch.ones(1, 7))
    whole_ones = [type(p).__name__ for p in model.parameters()]
    assert "DTensor" not in whole_ones, "a look leaves whole parameters where the shards were"
    snapshot.restore(model, optimizer)
    assert same(state(model, optimizer), then)
    assert all(same(a, b) for a, b in zip(walk(model, optimizer, 3, 5), trail))
model, optimizer = sharded()
Snapshot.load(folder).restore(model, optimizer)
assert same(state(model, optimizer), then)
assert {type(value).__name__ for p in optimizer.state for value in optimizer.state[p].values()} == {"DTensor", "Tensor"}
assert all(same(a, b) for a, b in zip(walk(model, optimizer, 3, 5), trail))
"""


@pytest.mark.parametrize("script", [REPLICAS, SHARDS], ids=["DDP", "FSDP2"])
def test_two_processes_go_back_together(tmp_path: Path, script: str) -> None:
    path = tmp_path / "script.py"
    path.write_text(COMMON + script + "\ndist.destroy_process_group()\nprint('done', flush=True)\n")
    assert two(path, tmp_path / "s").count("done") == 2
