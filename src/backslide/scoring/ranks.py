"""Several processes that score one suite: each item once, the same record on all of them.

Replicas (DDP) share the packs out. Where the weights themselves are shared out (FSDP), every pass needs all processes,
so each of them makes all passes, in the same order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import distributed

from backslide.errors import BackslideError, ModelError, RunError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a training run, seen from one of them."""

    rank: int = 0
    """This process, from 0."""
    size: int = 1
    """How many there are."""
    split: bool = True
    """Whether each scores a share of the packs; else all score all."""

    @classmethod
    def of(cls, model: Any) -> Ranks:
        """The processes that train `model`: one where torch.distributed was not begun.

        Raises `ModelError` for a model whose weights cannot be read.
        """
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise ModelError(
                "the model is sharded by DeepSpeed ZeRO-3, which hides its weights from everyone else; it cannot be "
                "watched, use FSDP2 or ZeRO-2"
            )
        return replace(cls.here(), split=not is_sharded(model))

    @classmethod
    def here(cls) -> Ranks:
        """The processes that there are, whatever they train."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def mine(self, weights: Sequence[float]) -> list[int]:
        """The places of the packs that this process scores: the heaviest first, each to who has least so far."""
        if self.size == 1 or not self.split:
            return list(range(len(weights)))
        loads = [0.0] * self.size
        owner = {}
        for place in sorted(range(len(weights)), key=lambda place: (-weights[place], place)):
            least = loads.index(min(loads))
            loads[least] += weights[place]
            owner[place] = least
        return [place for place in range(len(weights)) if owner[place] == self.rank]

    def gather(self, value: T) -> list[T]:
        """What every process has, in order of rank; all of them must call it."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def agreed(self, value: T) -> T:
        """What the first process has: clocks and files differ from one to the other, decisions must not."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def of_first(self, make: Callable[[Callable[[], None]], T]) -> T:
        """What the first process makes, while the others wait; what it raises, all raise. All of them must call it.

        Args:
            make: called in the first process, with a function that it calls now and then: who hears nothing for as long
                as a collective call may take (minutes) gives the others up.
        """
        if self.size == 1:
            return make(lambda: None)
        if not self.first:
            while (told := self.agreed(_Told())).waiting:
                pass
            if told.failed is not None:
                raise told.failed
            return told.made  # type: ignore[no-any-return]

        def alive() -> None:
            self.agreed(_Told())

        try:
            made = make(alive)
        except BaseException as bad:
            with contextlib.suppress(RuntimeError):  # the others may have gone already
                self.agreed(_Told(waiting=False, failed=_sendable(bad)))
            raise
        return self.agreed(_Told(made, waiting=False)).made  # type: ignore[no-any-return]

    def share_failure(self, failed: Exception | None) -> None:
        """Raise in all processes what one of them could not do; all of them must call it."""
        found = self.gather(_sendable(failed) if failed is not None else None)
        if failed is not None:
            raise failed
        for other in found:
            if other is not None:
                raise other


@dataclass(frozen=True)
class _Told:
    """What the first process tells the others of what it makes."""

    made: Any = None
    waiting: bool = True
    failed: BackslideError | None = None


def _sendable(bad: BaseException) -> BackslideError:
    """An exception that another process can be sent: one of ours as it is, of any other its words."""
    if isinstance(bad, BackslideError):
        return bad
    return RunError(" ".join(f"another process failed: {type(bad).__name__}: {bad}".split())[:400])


def is_sharded(model: Any) -> bool:
    """Whether the weights are shared out over processes, so that no process could run the model alone."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )
