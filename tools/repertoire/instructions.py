"""Write `instructions.jsonl`: `python tools/repertoire/instructions.py`.

Most items are made from `facts/instructions/sets.txt`: a set of four replies and instructions of which each is
followed by one of them. As each reply of a set is the right one for another instruction, no reply is better by
itself. A check beside each instruction is run on the four replies, and exactly one has to pass.
The items of kind `answer` are lines of `written/instructions.jsonl`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from common import HERE, Draft, written
from exact import finish_exact


def words(text: str) -> list[str]:
    """The words of `text`."""
    return re.findall(r"\w[\w'-]*", text)


def items(text: str) -> list[str]:
    """What commas separate, where each part is one word."""
    parts = text.split(", ")
    return parts if all(re.fullmatch(r"[\w-]+", part) for part in parts) else []


def parsed(text: str) -> object:
    """The JSON value that `text` is, None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def lines_match(text: str, pattern: str, count: int) -> bool:
    """Whether `text` has `count` lines and each begins with `pattern`."""
    lines = text.split("\n")
    return len(lines) == count and all(re.match(pattern, line) for line in lines)


def initials(text: str, letter: str) -> bool:
    """Whether each of several words begins with `letter`."""
    parts = text.lower().split()
    return len(parts) > 1 and all(part.startswith(letter.lower()) for part in parts)


def keyed(text: str, key: str) -> bool:
    """Whether `text` is a JSON object with `key`."""
    value = parsed(text)
    return isinstance(value, dict) and key in value


def listed(text: str, count: int) -> bool:
    """Whether `text` is a JSON list of `count` values."""
    value = parsed(text)
    return isinstance(value, list) and len(value) == count


def qualities(text: str) -> list[str]:
    """What a sentence with "is" says of its subject."""
    return re.split(r", | and ", text.rstrip(".").split(" is ")[1])


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "caps": lambda text, _: text.isupper(),
    "lower": lambda text, _: text.islower(),
    "titlecase": lambda text, _: all(word[0].isupper() for word in words(text)) and len(words(text)) > 1,
    "nodigits": lambda text, _: not re.search(r"\d", text),
    "noletter": lambda text, of: of not in text.lower(),
    "starts": lambda text, of: text.startswith(of),
    "ends": lambda text, of: text.endswith(of),
    "has": lambda text, of: of in text,
    "hasnt": lambda text, of: of not in text,
    "regex": lambda text, of: re.search(of, text) is not None,
    "quoted": lambda text, _: len(text) > 2 and text[0] == text[-1] == '"',
    "length": lambda text, of: len(text) == int(of),
    "words": lambda text, of: len(words(text)) == int(of),
    "minwords": lambda text, of: len(words(text)) >= int(of),
    "sentences": lambda text, of: len(re.findall(r"[.!?]+(?=\s|$)", text)) == int(of),
    "lines": lambda text, of: len(text.split("\n")) == int(of),
    "items": lambda text, of: len(items(text)) == int(of),
    "sorted": lambda text, of: len(items(text)) == int(of) and items(text) == sorted(items(text)),
    "initial": initials,
    "numbered": lambda text, of: lines_match(text, r"\d\. ", int(of)),
    "bullets": lambda text, of: lines_match(text, "- ", int(of)),
    "json": keyed,
    "jsonlist": lambda text, of: listed(text, int(of)),
    "qualities": lambda text, of: len(qualities(text)) == int(of),
}


def follows(text: str, checks: str) -> bool:
    """Whether the reply `text` passes all `checks`, such as "words 3; starts Left"."""
    named = [check.partition(" ") for check in checks.split("; ")]
    return all(CHECKS[name](text, of) for name, _, of in named)


def choices() -> Iterator[Draft]:
    """The items of `sets.txt`."""
    text = (HERE / "facts" / "instructions" / "sets.txt").read_text(encoding="utf-8")
    for block in re.split(r"\n\n(?=\[)", text)[1:]:
        lines = block.rstrip("\n").split("\n")
        name = lines[0].strip("[]")
        replies = [line[2:].replace("\\n", "\n") for line in lines if line.startswith("> ")]
        asked = [line[2:].split(" | ") for line in lines if line.startswith("? ")]
        if len(replies) != 4 or len(asked) > 3 or len(replies) + len(asked) + 1 != len(lines):
            raise ValueError(f"sets.txt: {name} does not have four replies and up to three instructions")
        for number, (checks, prompt) in enumerate(asked, 1):
            right = [reply for reply in replies if follows(reply, checks)]
            if len(right) != 1:
                raise ValueError(f"sets.txt: {name}: {checks!r} is followed by {right}")
            yield Draft(
                id=f"instructions/{name}-{number}",
                prompt=prompt,
                gold=right[0],
                wrong=tuple(reply for reply in replies if reply != right[0]),
                cluster=f"instructions/{name}",
            )


if __name__ == "__main__":
    finish_exact("instructions", [*choices(), *written("instructions")])
