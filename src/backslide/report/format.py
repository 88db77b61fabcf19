"""Numbers as a page shows them, in Markdown and in HTML alike."""

from __future__ import annotations

import math
from collections.abc import Callable


class Safe(str):
    """Text that the report itself made."""


def percent(share: float | None) -> Safe:
    """A share as a percentage, one decimal."""
    return Safe("–" if share is None else f"{share:.1%}")


def points(share: float | None) -> Safe:
    """A signed share in percentage points; infinite bounds as words."""
    if share is None:
        return Safe("any")
    if not math.isfinite(share):
        return Safe("any")
    # `stats.paired.OPEN_ZERO`: above 0, and no size.
    return Safe("&gt;0" if 0 < share < 1e-9 else f"{share * 100:+.1f}".replace("-", "−"))


def amount(value: float | None, unit: str) -> Safe:
    """A drop or bound: a share in percentage points, or drift in nats a token."""
    if unit != "drift" or value is None or not math.isfinite(value) or 0 < value < 1e-9:
        return points(value)
    return Safe(f"{value:+.3f}".replace("-", "−"))


def accepted(tolerance: float, unit: str) -> Safe:
    """A tolerance."""
    return Safe(f"{tolerance:g} nats a token") if unit == "drift" else percent(tolerance)


def fine(size: float, unit: str) -> Safe:
    """A small drop."""
    return Safe(f"{size:.2g} nats a token") if unit == "drift" else Safe(f"{size * 100:.2g} points")


def number(value: float | None, digits: int = 2) -> Safe:
    """A number, grouped where it is whole."""
    if value is None:
        return Safe("–")
    return Safe(f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}")


def level(value: float) -> Safe:
    """An error probability."""
    return Safe(f"{value:.2g}")


FILTERS: dict[str, Callable[..., Safe]] = {
    "percent": percent,
    "points": points,
    "amount": amount,
    "accepted": accepted,
    "fine": fine,
    "number": number,
    "level": level,
}
"""By the names that the templates use."""
