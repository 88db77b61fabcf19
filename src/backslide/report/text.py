"""Make untrusted text safe to show. What a model says may hold escape codes, markup, or text that runs backwards."""

from __future__ import annotations

import re
import unicodedata

# Overrides and isolates of writing direction, which let a line read otherwise than it is.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MARKUP = re.compile(r"([\\`*_{}\[\]#|~$!^])")
_LIST_OR_HEAD = re.compile(r"^(\s*)([-+=]|\d+[.)](?=\s|$))")


def plain(text: str, limit: int = 400) -> str:
    """One line without control characters, for a terminal or a table; cut with an ellipsis after `limit`."""
    shown = "".join(_visible(c) for c in text)
    line = " ".join(shown.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def markdown(text: str, limit: int = 400) -> str:
    """One line of Markdown that shows `text` as it is: no markup, HTML, table cells, links or mentions come to life."""
    line = plain(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _MARKUP.sub(r"\\\1", line)
    line = _LIST_OR_HEAD.sub(lambda m: m[1] + (f"\\{m[2]}" if len(m[2]) == 1 else f"{m[2][:-1]}\\{m[2][-1]}"), line)
    # Bare addresses and mentions become links on the usual sites, escaped or not: a word joiner inside breaks them.
    line = re.sub(r"(?i)(https?|ftp)(:)", "\\1\u2060\\2", line)
    return re.sub(r"(?i)www\.", "www\u2060.", line).replace("@", "@\u2060")


def _visible(character: str) -> str:
    if character in _BIDI:
        return ""
    # Cc: escape codes among them; Cs: lone surrogates, which cannot be written as UTF-8.
    return {"Cc": " ", "Cs": "\ufffd"}.get(unicodedata.category(character), character)
