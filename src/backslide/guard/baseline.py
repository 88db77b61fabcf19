"""Where the baseline of a run comes from: given, cached from an earlier run, or measured now."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from backslide.errors import MismatchError
from backslide.guard import cache
from backslide.guard.journal import Journal
from backslide.guard.options import Options
from backslide.record import Record, pair
from backslide.scoring.engine import Scorer
from backslide.scoring.forward import uncompiled
from backslide.scoring.ranks import Ranks


def take_baseline(
    options: Options, scorer: Scorer, model: Any, journal: Journal, ranks: Ranks, *, name: str
) -> tuple[Record, str]:
    """The record of the base model, adapters off, and how it was come by: `given`, `cached` or `measured`.

    Raises `MismatchError` where the given one was measured on other weights, items or conditions.
    """
    if options.baseline is not None:
        return _given(options.baseline, scorer, model), "given"
    bare = uncompiled(model)
    header = scorer.header(bare, adapters=False, name=name)
    place: Path | None = None
    if options.cache and ranks.split:
        with contextlib.suppress(Exception):
            # Weights that cannot be read bit by bit (quantized tensor classes) have no cache, and need none.
            place = cache.baseline_path(header, bare)
    if place is not None:
        found = ranks.agreed(cache.find(place, header) if ranks.first else None)
        if found is not None:
            with contextlib.suppress(MismatchError):
                # A chat template that writes today's date asks other tokens every day.
                pair(found, scorer.unanswered(model, adapters=False))
                return dataclasses.replace(found, header=dataclasses.replace(found.header, model=name)), "cached"
    record = scorer.baseline(
        model,
        adapters=False,
        probe=True,
        name=name,
        known=ranks.agreed(journal.known()),
        keep=journal.keep if ranks.split or ranks.first else None,
        ranks=ranks,
        progress=options.progress,
    )
    if place is not None and ranks.first:
        with contextlib.suppress(OSError):
            # Without the cache the next run measures again; nothing else is lost.
            record.save(place)
    return record, "measured"


def fits(baseline: Record, scorer: Scorer, model: Any) -> None:
    """Refuse a baseline that looks could not be compared with, before a step is made. Raises `MismatchError`."""
    pair(baseline, scorer.unanswered(model, adapters=False))


def _given(baseline: Record, scorer: Scorer, model: Any) -> Record:
    # Everything that must be equal, before a step is made.
    unanswered = scorer.unanswered(model, adapters=False)
    pair(baseline, unanswered)
    now, then = unanswered.header.model_fingerprint, baseline.header.model_fingerprint
    if now != then:
        raise MismatchError(
            f"the baseline was measured on other weights ({baseline.header.model}, {then[:12]}) than the "
            f"model that is about to be trained ({now[:12]}); measure it again, or leave it out"
        )
    return baseline
