"""Text as the words that two copies of it share, whatever their case, punctuation, spacing and Unicode form.

`words("It's 3 + 4, isn't it?") == ["its", "3_a4", "isnt", "it"]`: a number, and a sum of numbers, is one word, since
`4 - 2` is another question than `4 + 2`. Where a script puts no spaces between words (Chinese, Japanese, Thai, Lao,
Khmer, Burmese, Tibetan), and for emoji, a character is a word.
"""

from __future__ import annotations

import re
import unicodedata

_OPERATORS = {"+": "_a", "-": "_s", "−": "_s", "*": "_m", "×": "_m", "x": "_m", "/": "_d", "÷": "_d", "^": "_p"}
# No line break inside: the words of a text are those of its lines, one after the other.
_NUMBER = re.compile(r"(\d)(?:,(?=\d{3}(?!\d))|\.(?=\d)|[ \t]*([-+*/^x×÷−])[ \t]*(?=\d))")
_WORD = re.compile(r"\w+")

_ALONE = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2190-\u2bff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_ALONE += "\U0001f000-\U0001faff\U00020000-\U0003ffff"
# Vowel signs and accents that Unicode does not count as letters, and which belong to the word they stand in.
_MARKS = "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0951-\u0957"
_MARKS += "\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a03\u0a3c-\u0a4d\u0a81-\u0a83\u0abc-\u0acd\u0b01-\u0b03\u0b3c-\u0b57"
_MARKS += "\u0b82\u0bbe-\u0bcd\u0c00-\u0c04\u0c3c-\u0c56\u0c81-\u0c83\u0cbc-\u0cd6\u0d00-\u0d03\u0d3b-\u0d4d"
_MARKS += "\u0d81-\u0d83\u0dca-\u0ddf"
_WIDE = re.compile(rf"[{_ALONE}]|(?:[^\W{_ALONE}]|[{_MARKS}])+")
_SINGLE = re.compile(rf"[{_ALONE}]")
# Apostrophes go, since "don't" is written with several of them and with none; so does what is not seen.
_GONE = {ord(c): None for c in "'’‘ʼ`´\u00ad\u200b\u200c\u200d\u2060\ufeff\ufe0e\ufe0f"} | {ord("_"): " "}


def words(text: str) -> list[str]:
    """The words of `text`, in order."""
    if text.isascii():
        plain = text.lower()
        if "'" in plain or "_" in plain or "`" in plain:
            plain = plain.replace("'", "").replace("`", "").replace("_", " ")
        return _WORD.findall(_NUMBER.sub(_joined, plain))
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_GONE)
    return _WIDE.findall(_NUMBER.sub(_joined, plain))


def is_character(word: str) -> bool:
    """Whether the word is one character of a script without spaces, or an emoji."""
    return len(word) == 1 and not word.isascii() and _SINGLE.match(word) is not None


def is_number(word: str) -> bool:
    """Whether the word is a number, or a sum of numbers."""
    return word[0].isdigit()


def _joined(found: re.Match[str]) -> str:
    # A word may not hold an underscore of its own, so these stand for what joined the numbers and for nothing else.
    operator = found[2]
    if operator is not None:
        return found[1] + _OPERATORS[operator]
    return found[1] if "," in found[0] else found[1] + "_"
