"""Does a reply hold the accepted answer? Strict: an empty reply is wrong under every matcher.

Replies are model output, so untrusted text of any form and length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backslide.suite.patterns import is_found

if TYPE_CHECKING:
    from backslide.suite.item import Match

# Thousands separators only where they group three digits, so "1,2" stays two numbers.
_NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def matches(reply: str, answers: Sequence[str], match: Match) -> bool:
    """Whether `reply` is right.

    - ``exact``: equal after folding case, white space and a closing full stop;
    - ``number``: the *last* number in the reply equals the answer as a number;
    - ``contains``: an answer occurs as whole words, case folded;
    - ``regex``: a pattern is found (`re.search`) in the reply.

    Raises `Unended` where a pattern is not through with the reply in the time that it has.
    """
    if not reply.strip():
        return False
    if match == "number":
        said = numbers(reply)
        return bool(said) and any(numbers(answer)[-1:] == said[-1:] for answer in answers)
    if match == "regex":
        return any(is_found(pattern, reply) for pattern in answers)
    folded = fold(reply)
    if match == "exact":
        return any(fold(answer) == folded for answer in answers)
    return any(re.search(rf"(?<!\w){re.escape(fold(answer))}(?!\w)", folded) for answer in answers)


def numbers(text: str) -> list[float]:
    """The numbers in `text`, in order; `1,234.5` is one number."""
    return [float(found.replace(",", "").replace("−", "-")) for found in _NUMBER.findall(text)]


def fold(text: str) -> str:
    """Case, width and white space folded, a closing full stop dropped."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".").rstrip()
