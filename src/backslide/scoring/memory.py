"""What fits into memory: found by running out of it, and remembered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# What torch says on the CPU (DefaultCPUAllocator, on Linux and on Windows), and of CUDA libraries' own memory.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass
class Attempt:
    """A forward pass that may run out of memory."""

    failed: bool = False


class Memory:
    """The largest batch that is tried, in tokens with padding: halved when memory runs out, to the size that worked."""

    def __init__(self) -> None:
        self.limit: int | None = None
        """None until memory has run out once."""
        self.worked = 0
        """The largest batch that did not run out of it."""

    def fits(self, tokens: int) -> bool:
        """Whether a batch of this size is worth a try."""
        return self.limit is None or tokens <= self.limit

    @contextmanager
    def watched(self, tokens: int, *, last: bool) -> Iterator[Attempt]:
        """Run a batch of `tokens` inside; running out of memory halves the limit and is no error.

        Any other error is raised, and so is this one when the batch is the `last` size, which cannot be halved.
        """
        attempt = Attempt()
        try:
            yield attempt
        except (RuntimeError, MemoryError) as error:
            if last or not out_of_memory(error):
                raise
            attempt.failed = True
        else:
            self.worked = max(self.worked, tokens)
        if attempt.failed:
            # Outside of the except clause: the error's traceback holds on to the tensors of the pass.
            # What worked before is not given up for one batch that is of another shape.
            self.limit = max(1, tokens // 2, min(self.worked, tokens - 1))
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a record should say."""
        if self.limit is None:
            return ()
        return (f"memory ran out: went on with batches of at most {self.limit} tokens",)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
