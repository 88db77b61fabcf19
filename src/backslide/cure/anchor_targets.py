"""The base's log-probabilities on disk, for full fine-tuning, where the base is gone after the first step.

One safetensors file: for each anchored token the base's likeliest tokens, their log-probabilities, and that of all
others together. It is written as it is computed and read through a memory map, so neither holds it in memory. Its name
is a digest of everything that it depends on; runs from the same base on the same rows share it. Until it is whole it
has another name, and a list of the rows that are in it beside it: what was interrupted goes on there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backslide.cure.anchor_kl import ROWS_AT_ONCE, BaseTop, Reader, top_of
from backslide.cure.anchor_rows import AnchorRows
from backslide.errors import BusyError, InputError, RunError
from backslide.files import dump
from backslide.guard.cache import weights_digest
from backslide.lock import Claim
from backslide.models import tokenizer_fingerprint
from backslide.scoring.forward import dtype_of
from backslide.scoring.session import as_base

VERSION = 1
"""Of the file's content."""
BATCH_TOKENS = 2048
"""Tokens with padding in a forward pass of the base."""

_ITEM = {"I32": ("<i4", 4), "F32": ("<f4", 4)}


def key_of(reader: Reader, tokenizer: Any, rows: AnchorRows, top: int) -> str:
    """A digest of all that the log-probabilities depend on: every weight, the tokenizer, the rows, and how many."""
    with reader.autocast():
        dtype = str(dtype_of(reader.model))
    content = {
        "version": VERSION,
        "weights": weights_digest(reader.model),
        "dtype": dtype,
        "device": next(reader.model.parameters()).device.type,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "rows": rows.digest,
        "top": top,
    }
    return hashlib.sha256(dump(content).encode()).hexdigest()[:32]


class Targets:
    """An open file of the base's log-probabilities.

    Raises `InputError` where the file is missing, damaged or of other rows.
    """

    def __init__(self, path: Path, rows: AnchorRows) -> None:
        from safetensors import SafetensorError, safe_open

        opened: Any = safe_open
        try:
            file = opened(path, "pt")
            said = file.metadata() or {}
            self.vocabulary = int(said["vocabulary"])
            self.top = int(said["top"])
            same = said["rows"] == rows.digest and said["version"] == str(VERSION)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (OSError, SafetensorError, KeyError, ValueError) as bad:
            raise InputError(f"{path}: cannot be read: {' '.join(str(bad).split())[:200]}") from None
        if not same:
            raise InputError(f"{path}: holds log-probabilities of other rows")
        self._slices = {name: file.get_slice(name) for name in ("ids", "logprobs", "rest")}
        self._starts = rows.starts

    def of(self, rows: Sequence[int], device: Any) -> BaseTop:
        """Those of the anchored tokens of some rows, one row behind the other."""

        def read(name: str) -> Any:
            parts = [self._slices[name][self._starts[row] : self._starts[row + 1]] for row in rows]
            return torch.cat(parts).to(device)

        return BaseTop(read("ids").long(), read("logprobs"), read("rest"))


def is_kept(path: Path, rows: AnchorRows) -> bool:
    """Whether there is a whole file of these rows."""
    try:
        Targets(path, rows)
    except InputError:
        return False
    return True


def write_targets(
    path: Path, reader: Reader, rows: AnchorRows, top: int, progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Compute the base's log-probabilities with the model as it is now, adapters off, and keep them at `path`.

    A call that was interrupted, even killed, goes on where it was.

    Args:
        path: the file; there is the whole of it or none. Its name is `key_of` of the rest: what an interrupted call
            left under another name is not taken.
        reader: the model.
        rows: what it is asked.
        top: how many tokens of each distribution are kept one by one.
        progress: called with how many rows are done, and of how many.

    Raises:
        RunError: the disk does not take it, or the base's output is not finite.
    """
    total = rows.starts[-1]
    top = min(top, reader.vocabulary)
    shapes = {"ids": ("I32", (total, top)), "logprobs": ("F32", (total, top)), "rest": ("F32", (total,))}
    said = {"version": str(VERSION), "rows": rows.digest, "top": str(top), "vocabulary": str(reader.vocabulary)}
    head, offsets = _header(shapes, said)
    try:
        with _Partial(path, head, len(rows.rows)) as partial:
            done = len(partial.done)
            for numbers, found in _computed(reader, rows, top, partial.done):
                first, file = 0, partial.file
                for number in numbers:
                    start, stop = rows.starts[number], rows.starts[number + 1]
                    part = found.at(first, first + stop - start)
                    first += stop - start
                    for name, values in (("ids", part.ids), ("logprobs", part.logprobs), ("rest", part.rest)):
                        kind, size = _ITEM[shapes[name][0]]
                        width = top if name != "rest" else 1
                        file.seek(offsets[name] + start * width * size)
                        file.write(np.ascontiguousarray(values.cpu().numpy(), dtype=kind).tobytes())
                partial.add(numbers)
                done = len(partial.done)
                if progress is not None:
                    progress("base log-probabilities", done, len(rows.rows))
            partial.finish()
    except OSError as bad:
        raise RunError(
            f"{path}: the base's log-probabilities cannot be kept: {bad.strerror or bad}; make room, or keep them "
            "elsewhere: by folder= of the anchor, or BACKSLIDE_CACHE"
        ) from None


class _Partial:
    """The file until it is whole, under a name of its own, and the rows in it, in a list beside it.

    Where another process is at the same file it is begun anew, under a name that nobody else has.
    """

    def __init__(self, path: Path, head: bytes, rows: int) -> None:
        self._path, self._head, self._rows = path, head, rows
        self.done: set[int] = set()
        """Numbers of the rows that are in the file, and on the disk."""

    def __enter__(self) -> _Partial:
        folder, name = self._path.parent, self._path.stem
        folder.mkdir(parents=True, exist_ok=True)
        self._place, self._list = folder / f".{name}.partial", folder / f".{name}.rows"
        try:
            self._claim: Claim | None = Claim(folder, folder / f".{name}.lock")
        except BusyError:
            self._claim = None
            own = uuid.uuid4().hex
            self._place, self._list = folder / f".{name}.{own}.partial", folder / f".{name}.{own}.rows"
        self.done = self._read()
        # Neither truncated, nor for appending alone: what is there is written between.
        self.file = open(self._place, "r+b" if self.done else "w+b")
        self._said = open(self._list, "a" if self.done else "w", encoding="utf-8", newline="\n")
        if self.done:
            self._said.write("\n")  # after a line that a killed process left half written
        else:
            self.file.write(self._head)
            self._said.write(f"{self._about}\n")
        return self

    def add(self, numbers: Sequence[int]) -> None:
        """See onto the disk the rows that were written, and then that they are there."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self._said.write(" ".join(map(str, numbers)) + "\n")
        self._said.flush()
        self.done.update(numbers)

    def finish(self) -> None:
        """Give the whole file its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self._place, self._path)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            self._said.close()
        # A list without its file is of no use, and neither is a file of this process alone.
        own = self._claim is None
        if own:
            self._place.unlink(missing_ok=True)
        if own or not self._place.exists():
            self._list.unlink(missing_ok=True)
        if self._claim is not None:
            self._claim.release()

    @property
    def _about(self) -> str:
        return f"{self._path.stem} {hashlib.sha256(self._head).hexdigest()}"

    def _read(self) -> set[int]:
        """The rows that are in the file; none where it is of something else, or damaged."""
        try:
            with open(self._place, "rb") as file:
                same = file.read(len(self._head)) == self._head
            about, *lines = self._list.read_text(encoding="utf-8").split("\n")
            # The last line is whole only if a line break follows it.
            found = {int(number) for line in lines[:-1] for number in line.split()}
        except (OSError, ValueError):
            return set()
        return found if same and about == self._about and found <= set(range(self._rows)) else set()


def batch_of(rows: AnchorRows, numbers: Sequence[int], device: Any) -> tuple[dict[str, Any], Any]:
    """Some rows as the model's inputs (B, L), padded on the right, and the flat places that are anchored."""
    chosen = [rows.rows[number] for number in numbers]
    length = max(len(row.tokens) for row in chosen)
    # Padding is masked, and stands behind all that is read: any token will do.
    tokens = torch.zeros((len(chosen), length), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    where: list[int] = []
    for b, row in enumerate(chosen):
        tokens[b, : len(row.tokens)] = torch.tensor(row.tokens)
        mask[b, : len(row.tokens)] = 1
        where += [b * length + place for place in row.places]
    inputs = {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}
    return inputs, torch.tensor(where, device=device)


def _computed(
    reader: Reader, rows: AnchorRows, top: int, known: Collection[int]
) -> Iterator[tuple[list[int], BaseTop]]:
    """Batch by batch, in an order that depends on the rows alone, those left out of which all are known."""
    device = next(reader.model.parameters()).device
    order = sorted(range(len(rows.rows)), key=lambda number: len(rows.rows[number].tokens))
    while order:
        longest = len(rows.rows[order[-1]].tokens)
        count = max(1, BATCH_TOKENS // longest)
        numbers, order = order[-count:], order[:-count]
        # As a whole or not at all: in half precision what a row gets depends on its company.
        if all(number in known for number in numbers):
            continue
        inputs, where = batch_of(rows, numbers, device)
        with as_base(reader.model):
            states = reader.states(inputs, where)
            chunks = states.split(ROWS_AT_ONCE)
            parts = [top_of(reader.logits(chunk), top) for chunk in chunks]
        found = BaseTop(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "logprobs", "rest")))
        if not bool(found.logprobs.isfinite().all()):
            kept = [number for number in numbers for _ in rows.rows[number].places]
            first, place = next((n, i) for n, i in enumerate(kept) if not bool(found.logprobs[n].isfinite().all()))
            value = float(found.logprobs[first][~found.logprobs[first].isfinite()][0])
            raise RunError(
                f"the base's own log-probabilities are no finite numbers: {value} on row {place + 1} of the anchor's; "
                "load the base in float32 or bfloat16, or leave the anchor out"
            )
        yield numbers, found


def _header(shapes: Mapping[str, tuple[str, tuple[int, ...]]], said: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The beginning of a safetensors file, and where in the file each tensor begins."""
    entries: dict[str, Any] = {"__metadata__": dict(said)}
    start = 0
    for name, (kind, shape) in shapes.items():
        size = int(np.prod(shape)) * _ITEM[kind][1]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(entries).encode()
    # The values begin at a multiple of 8, as the format asks of writers.
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: begin + entries[name]["data_offsets"][0] for name in shapes}
