"""The noise floor: what rounding alone does to a model's numbers on one machine, in one dtype.

The same weights, scored in other batches, give other last digits: in bf16 up to 0.5 nats an item. A look repeats the
baseline's batches, so base against base is exactly zero; but the smallest change of the weights draws the rounding
anew. Its size is seen by scoring the base twice: `noise_between` measures it per item, `floor` turns it into the
smallest mean drop of n items that is more than rounding. A drop below that is never called a regression.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from backslide.record import Record, pair

MEASURES = ("accuracy", "probability", "bits per byte", "drift")
"""The ways in which a drop is measured."""
STANDARD_ERRORS = 2.0
"""How many standard errors of rounding a mean drop must pass: about 1 in 40 where nothing but rounding happened."""


def noise_between(one: Record, other: Record) -> dict[str, float]:
    """Root mean square, over items, of what differs between two records of the same model and items.

    Units: 1 for an item that flips (`accuracy`), probability on the gold choice (`probability`), the share of the mean
    bits per byte (`bits per byte`), nats a token of the reference (`drift`). A measure that no item has is left out.

    Raises `MismatchError` where the records do not ask the same; other batch sizes are no such reason.
    """
    gaps: dict[str, list[float]] = {name: [] for name in MEASURES}
    bits: list[float] = []
    for a, b in pair(one, other, ignore=("row_tokens", "batch_tokens")):
        if a.correct is not None and b.correct is not None:
            gaps["accuracy"].append(float(a.correct) - float(b.correct))
        if a.p is not None and b.p is not None:
            gaps["probability"].append(a.p - b.p)
        if a.bits_per_byte is not None and b.bits_per_byte is not None:
            gaps["bits per byte"].append(a.bits_per_byte - b.bits_per_byte)
            bits.append(a.bits_per_byte)
        if a.nats_per_token is not None and b.nats_per_token is not None:
            gaps["drift"].append(b.nats_per_token - a.nats_per_token)
    scale = math.fsum(bits) / len(bits) if bits else 0.0
    if scale > 0:
        gaps["bits per byte"] = [gap / scale for gap in gaps["bits per byte"]]
    return {name: math.sqrt(math.fsum(g * g for g in of) / len(of)) for name, of in gaps.items() if of}


def floor(noise: Mapping[str, float], measure: str, items: int) -> float:
    """The mean drop of `items` items that rounding alone may make: `STANDARD_ERRORS` · rms / √items.

    Rounding differs from item to item and has no direction, so the error of its mean shrinks with √items. 0 where
    the noise was not measured.
    """
    return STANDARD_ERRORS * noise.get(measure, 0.0) / math.sqrt(items) if items else 0.0
