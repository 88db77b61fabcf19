"""What fits into memory and onto the disk."""

from __future__ import annotations

import shutil

import psutil
import torch

from backslide.config import TuneConfig
from backslide.doctor.findings import Notebook
from backslide.doctor.model import Base

TIGHT = 0.8
"""Share of the free memory above which little is left for the batches."""
ADAM = 2
"""States that the optimizer keeps of each trained weight."""


def look_at_room(config: TuneConfig, base: Base, notes: Notebook) -> None:
    """Say whether the weights, their gradients and the optimizer can fit, and what the run would write."""
    full = config.train.method == "full"
    # Adapters are kept in fp32 beside half-precision weights.
    each = base.bytes_each if full else 4
    saved = base.trained * each if not full else base.parameters * base.bytes_each
    kept = base.trained * each * (1 + ADAM) if config.on_regression in ("rollback", "auto") else 0
    if base.weights is None:
        notes.note("model.base", "it is quantised: whether it fits is not told from here")
    else:
        _memory(config, base.weights + base.trained * each * (1 + ADAM + (not full)), kept, notes)
    _disk(config, saved + kept, notes)


def _memory(config: TuneConfig, needed: int, kept: int, notes: Notebook) -> None:
    full, cuda = config.train.method == "full", torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
    where = "GPU" if cuda else "memory"
    notes.fact("memory", f"{_gib(needed)} for weights, gradients and optimizer; {_gib(free)} free ({where})")
    # A snapshot lies in the CPU's memory only where it is asked to.
    beside = kept if not cuda and config.guard.snapshots == "memory" else 0
    if needed > free:
        mend = 'train an adapter (method = "lora")' if full else "take a smaller model, or a machine with more"
        if not full and config.model.dtype == "float32":
            mend = 'dtype = "bfloat16", or a smaller model'
        notes.error(
            "train.method" if full else "model.base",
            f"weights, gradients and optimizer alone need {_gib(needed)}, and {_gib(free)} are free ({where})",
            mend,
        )
    elif needed + beside > TIGHT * free:
        notes.warning(
            "train.batch_size",
            f"weights, gradients and optimizer{' and the snapshot' if beside else ''} take {_gib(needed + beside)} of "
            f"{_gib(free)} ({where}): little is left for the batches",
            "gradient_checkpointing = true, or a smaller batch" + (', or snapshots = "disk"' if beside else ""),
        )


def _disk(config: TuneConfig, needed: int, notes: Notebook) -> None:
    folder = config.folder
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        notes.error("output.dir", f"{folder} is a file", "name a folder")
        return
    free = shutil.disk_usage(folder).free
    if needed > free:
        notes.error(
            "output.dir", f"the model takes {_gib(needed)}, and {_gib(free)} are free on its disk", "name another place"
        )
    if (config.folder / "run.json").is_file():
        notes.note(
            "output.dir",
            f"{config.folder} holds a run: one of this configuration that has not ended goes on, another is put aside",
            "name another folder to keep both side by side",
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
