"""Checkpoints in a run's folder, and whether a run that is started again can go on from one. No torch.

::

    checkpoints/checkpoint-120/
      adapter_model.safetensors or model.safetensors, optimizer.pt, scheduler.pt, rng_state.pth, trainer_state.json
      replay.json          the state of the mixing, where old data are replayed
      snapshot/            the state that a rollback goes back to, as it was then
      whole.json           names and sizes of all these; written last of all, so that half a checkpoint has none
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backslide.config import SELF, TuneConfig
from backslide.errors import InputError, shown
from backslide.files import read_json, write_json
from backslide.lock import first_process
from backslide.record import Record
from backslide.rundir import CHECKPOINTS, RunFolder

WHOLE = "whole.json"
SCHEMA = "backslide.checkpoint/1"
NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
"""Without these a run would begin its optimizer or schedule anew, and not say so."""

NOT_COMPARED = {"guard": ("cache", "snapshots", "strict")}
"""Keys that change nothing in what a run that goes on does, apart from `[output]`."""


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    checkpoint: Path | None = None
    """What it goes on from; None: it begins anew."""
    base: str = ""
    """Fingerprint of the base that the run began with."""
    says: tuple[str, ...] = ()
    """What the user should know of it, a line each."""

    @property
    def step(self) -> int:
        """Optimizer steps that were made before."""
        return 0 if self.checkpoint is None else step_of(self.checkpoint)


def find(config: TuneConfig, suite_hash: str, sources: Mapping[str, str], *, anew: bool = False) -> Start:
    """Look into the run's folder for an unfinished run of the same configuration.

    Args:
        config: of the run that is started.
        suite_hash: of the suite that it asks.
        sources: digests of the files that it reads, see `digests`.
        anew: whether the user asked to begin anew in any case.
    """
    run, folder = RunFolder(config.folder), config.folder
    if not run.exists():
        return Start()
    try:
        kept = run.config
        unlike = "" if anew else _unlike(kept, config, suite_hash, sources)
        ended = run.verdict() is not None
    except InputError as bad:
        kept, unlike, ended = {}, f"it cannot be read: {bad}", False
    if ended or unlike or anew:
        why = "has ended" if ended else f"is unfinished, and another one: {unlike}" if unlike else "is unfinished"
        return _anew(run, f"the run there {why}")
    said: list[str] = []
    try:
        base, lost = Record.load(run.baseline).header.model_fingerprint, ""
    except InputError as bad:
        base, lost = "", f"the baseline of its run cannot be read: {bad}"
    for checkpoint in reversed(checkpoints(run.path / CHECKPOINTS)):
        if not (checkpoint / WHOLE).exists():
            # Half of one, which a killed process left; it may be as large as the others.
            if first_process():
                shutil.rmtree(checkpoint, ignore_errors=True)
            continue
        wrong = lost or broken(checkpoint)
        if not wrong:
            says = f"{folder}: goes on at step {step_of(checkpoint)} of the unfinished run there"
            return Start(checkpoint, base, (*said, says))
        said.append(f"{checkpoint}: passed over: {wrong}")
    started = _anew(run, "the run there was interrupted, and there is no checkpoint to go on from")
    return Start(says=(*said, *started.says))


def digests(config: TuneConfig) -> dict[str, str]:
    """SHA-256 of each file that decides what is trained on: the same name may hold other rows later.

    Raises nothing: a file that cannot be read is refused where it is used.
    """
    cure = config.cure
    files = {"data.train": config.data.train, "data.held_out": config.data.held_out}
    files["cure.data"] = cure.data if cure.data != SELF else None
    files["cure.prompts"] = cure.prompts if isinstance(cure.prompts, str) else None
    found = {}
    for name, path in files.items():
        if path is not None:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                digest = hashlib.sha256()
                for block in iter(lambda f=file: f.read(1 << 20), b""):  # type: ignore[misc]
                    digest.update(block)
                found[name] = digest.hexdigest()
    return found


def anew_of(config: TuneConfig, why: str) -> Start:
    """The start of a run that cannot go on after all, as is only known with its base loaded."""
    return _anew(RunFolder(config.folder), why)


# The checkpoints themselves.


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, the oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdecimal()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that had been made."""
    return int(checkpoint.name.rpartition("-")[2])


def seal(checkpoint: Path) -> int:
    """See a checkpoint onto the disk, and say that it is whole. Gives its size in bytes. Raises `OSError`."""
    sizes = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        sizes[path.relative_to(checkpoint).as_posix()] = path.stat().st_size
    write_json(checkpoint / WHOLE, {"schema": SCHEMA, "step": step_of(checkpoint), "files": sizes})
    return sum(sizes.values())


def broken(checkpoint: Path) -> str:
    """Why a run cannot go on from a checkpoint; empty where it can."""
    try:
        whole = read_json(checkpoint / WHOLE)
        files = dict(whole["files"]) if whole["schema"] == SCHEMA else {}
    except (InputError, KeyError, TypeError, ValueError) as bad:
        return f"{WHOLE} cannot be read ({bad})"
    for name in NEEDED:
        if name not in files:
            return f"{name} is missing"
    for name, size in files.items():
        path = checkpoint / name
        try:
            now = path.stat().st_size
            if now != size:
                return f"{name} has {now} bytes of {size}"
            if path.suffix in (".pt", ".pth"):
                # Torch's files are zip files, each part with its checksum.
                with zipfile.ZipFile(path) as parts:
                    if (part := parts.testzip()) is not None:
                        return f"{name} is damaged at {part}"
            elif path.suffix == ".json":
                read_json(path)
        except (OSError, zipfile.BadZipFile, InputError) as bad:
            return f"{name} cannot be read ({getattr(bad, 'strerror', None) or bad})"
    return ""


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` whole ones; what is not whole goes."""
    whole = [path for path in checkpoints(folder) if (path / WHOLE).exists()]
    kept = whole[max(0, len(whole) - keep) :]
    for path in checkpoints(folder):
        if path not in kept:
            # First what says that it is whole: half a removal must not look like a checkpoint.
            with contextlib.suppress(OSError):
                (path / WHOLE).unlink()
            shutil.rmtree(path, ignore_errors=True)


def keep_snapshot(run: Path, checkpoint: Path) -> None:
    """Put the state that a rollback goes back to into a checkpoint. It costs no room: both names have one file."""
    _linked(run / "snapshot", checkpoint / "snapshot")


def restore_snapshot(checkpoint: Path, run: Path) -> None:
    """Put back the state that a rollback went back to when the checkpoint was made."""
    _linked(checkpoint / "snapshot", run / "snapshot")


def _linked(source: Path, target: Path) -> None:
    for path in source.rglob("*.safetensors"):
        name = path.relative_to(source)
        if "present" in name.parts:
            continue  # of an `auto` that was interrupted
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f".{place.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            beside.unlink()
        try:
            # A snapshot is never written over in place, so the link stays what it is now.
            os.link(path, beside)
        except OSError:
            shutil.copyfile(path, beside)
        os.replace(beside, place)
        # Two names of one file already: `replace` then does nothing.
        beside.unlink(missing_ok=True)


def _unlike(kept: Mapping[str, Any], config: TuneConfig, suite_hash: str, sources: Mapping[str, str]) -> str:
    """The first thing in which a run differs from the one that is started; empty where there is none."""
    then, now = kept.get("config"), json.loads(json.dumps(config.to_dict()))
    if not isinstance(then, dict):
        return "it was not begun by backslide tune"
    for section, table in now.items():
        before = then.get(section)
        before = before if isinstance(before, dict) else {}
        for key in [] if section == "output" else sorted({*table, *before} - {*NOT_COMPARED.get(section, ())}):
            if before.get(key) != table.get(key):
                return f"{section}.{key} was {shown(before.get(key))}, now {shown(table.get(key))}"
    # What torchrun and accelerate tell their processes; WORLD_SIZE alone is found outside of them too.
    processes = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if kept.get("processes", 1) != processes:
        return f"{kept.get('processes')} processes made it, now there are {processes}"
    if kept.get("suite_hash") != suite_hash:
        return "its suite holds other items"
    for name, digest in sources.items():
        if (kept.get("sources") or {}).get(name) != digest:
            return f"the file of {name} was another, or held other rows"
    return ""


def _anew(run: RunFolder, why: str) -> Start:
    size = sum(path.stat().st_size for path in (run.path / CHECKPOINTS).rglob("*") if path.is_file())
    where = f"{run.path / 'earlier'}{f' ({size / 2**20:.0f} MiB of checkpoints)' if size else ''}"
    return Start(says=(f"{run.path}: {why}; it is moved to {where}, and this one begins anew",))
