"""Replies that repeat themselves: what a small model falls into, and what nobody wants it to rehearse."""

from __future__ import annotations

import re

from backslide.suite.copies.words import words

PERIODS = 3
"""How often a passage stands at the end of a text that is in a loop."""
SHORT = 12
"""Words that such an end has at least."""
GRAM = 4
LONG = 24
"""Words from which on a text is judged by how many of its runs of `GRAM` words are new."""
NEW = 0.6
"""Share of them that is new in a text that says something."""

# Signs without a letter in them, and letters without a space.
_SIGNS = re.compile(r"(\S{1,8}?)(?:\s*\1){11,}\S{0,8}\s*\Z")


def loops(text: str, *, ended: bool) -> bool:
    """Whether a text says the same again and again.

    Args:
        text: a reply.
        ended: it came to an end by itself, so that its end is no loop that would go on.
    """
    said = words(text)
    if not ended and (_SIGNS.search(text[-400:]) or _periodic(said)):
        return True
    grams = [tuple(said[place : place + GRAM]) for place in range(len(said) - GRAM + 1)]
    return len(said) >= LONG and len(set(grams)) < NEW * len(grams)


def _periodic(said: list[str]) -> bool:
    for period in range(1, len(said) // PERIODS + 1):
        # Words at the end that stand a period before as well.
        again = 0
        while again + period < len(said) and said[-1 - again] == said[-1 - again - period]:
            again += 1
        if again + period >= max(SHORT, PERIODS * period):
            return True
    return False
