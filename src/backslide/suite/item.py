"""Item and its kinds: one thing that the model is asked.

An item is frozen and validated when made. `item_from_dict` and `Item.to_dict` are inverse to each other;
their dictionaries are the lines of a suite file::

    {"id": "world_facts/japan", "kind": "choice", "capability": "world_facts",
     "prompt": "What is the capital of Japan?", "choices": ["Seoul", "Tokyo"], "gold": 1}
    {"id": "sums/7", "kind": "answer", "capability": "sums", "prompt": "7+5?", "answers": ["12"], "match": "number"}
    {"id": "prose/1", "kind": "text", "capability": "prose", "text": "It was a bright cold day …"}
    {"id": "chat/1", "kind": "open", "capability": "chat", "prompt": "How do you boil water?",
     "reference": "Fill a kettle, switch it on and wait."}

Two more kinds are asked word for word, with nothing put around them: what a task of lm-eval becomes
(`backslide.suite.lm_eval`)::

    {"id": "t/0", "kind": "continuation", "capability": "t", "contexts": ["2+2 is"], "continuations": [" 4", " 5"],
     "gold": [0]}
    {"id": "t/0", "kind": "generation", "capability": "t", "prompt": "2+2 =", "answers": ["4"], "stop": ["."],
     "max_new_tokens": 8}
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from backslide.errors import SuiteError, number_of, shown
from backslide.suite.matching import fold, numbers

Match = Literal["exact", "number", "contains", "regex"]

LONGEST_NAME = 300
"""Characters of an id, and of the name of a capability."""

# Control characters, line breaks of Unicode, and what makes a line run backwards.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# What leaves no mark wherever it stands: soft hyphen, zero-width space, word joiner, byte order mark, marks of writing
# direction. Not the joiners, which change the letters or emoji beside them.
_NO_MARK = re.compile("[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
# What shows nothing by itself beside white space, format and control characters: fillers and selectors.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe00-\ufe0f\uffa0]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What all kinds share.

    Raises `SuiteError` when a field is of the wrong type, empty or out of range.
    """

    kind: ClassVar[str] = ""

    id: str
    """Unique within the suite."""
    capability: str
    """The group on which a verdict is given."""
    cluster: str | None = None
    """Items that share a passage or a template share this name; they stay in one half of the suite."""

    def __post_init__(self) -> None:
        check_name("id", self.id)
        check_name("capability", self.capability)
        if self.cluster is not None:
            self._text("cluster")

    @property
    def judged(self) -> bool:
        """Whether a verdict is given on the item, so that it belongs to a half of the suite."""
        return True

    def _text(self, field: str) -> None:
        _check_text(field, getattr(self, field))

    def _texts(self, field: str, at_least: int, *, blank: bool = False) -> None:
        value = getattr(self, field)
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise SuiteError(f"{field} is {shown(value)}, a list of texts is needed")
        if len(value) < at_least:
            entries = f"{len(value)} entr{'y' if len(value) == 1 else 'ies'}"
            raise SuiteError(f"{field} is {shown(value)}, of {entries}; give at least {at_least}")
        for place, entry in enumerate(value):
            if not entry or (not blank and is_blank(entry)):
                raise SuiteError(
                    f"{field} has {shown(entry)} at {place} (from 0), which is empty; fill it in, or leave it out"
                )
            _encodable(field, entry)
        if len(set(value)) < len(value):
            _different(field, value)
        object.__setattr__(self, field, tuple(value))

    def to_dict(self) -> dict[str, Any]:
        """The item as a line of a suite file; fields at their default are left out."""
        row: dict[str, Any] = {"id": self.id, "kind": self.kind, "capability": self.capability}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in row and value != field.default:
                row[field.name] = list(value) if isinstance(value, tuple) else value
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceItem(Item):
    """Pick one of several continuations by log-likelihood."""

    kind: ClassVar[str] = "choice"

    prompt: str
    choices: tuple[str, ...]
    gold: int
    """Index of the right choice, from 0."""

    def __post_init__(self) -> None:
        Item.__post_init__(self)
        self._text("prompt")
        self._texts("choices", at_least=2)
        # Such choices look alike, and at most one of them is right. Case may be the point of a question.
        _different("choices", [seen(choice) for choice in self.choices], ", to the eye")
        if not isinstance(self.gold, int) or isinstance(self.gold, bool):
            raise SuiteError(f"gold is {shown(self.gold)}, the index of a choice is needed")
        if not 0 <= self.gold < len(self.choices):
            last = len(self.choices) - 1
            raise SuiteError(f"gold is {shown(self.gold)}, but the item has {last + 1} choices (0-{last})")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerItem(Item):
    """Generate a reply, then match it with the accepted answers."""

    kind: ClassVar[str] = "answer"

    prompt: str
    answers: tuple[str, ...]
    match: Match = "exact"
    """How a reply is compared: see `backslide.suite.matching`."""
    stop: tuple[str, ...] = ()
    """Strings before which the reply ends, such as a line break."""

    def __post_init__(self) -> None:
        Item.__post_init__(self)
        self._text("prompt")
        self._texts("answers", at_least=1)
        self._texts("stop", at_least=0, blank=True)
        if self.match not in get_args(Match):
            raise SuiteError(f"match is {shown(self.match)}, one of {', '.join(get_args(Match))} is needed")
        for place, answer in enumerate(self.answers):
            which = f"answers has {shown(answer)} at {place} (from 0)"
            if self.match == "number" and not numbers(answer):
                raise SuiteError(f"{which}, which holds no number; write it in digits, or match by contains")
            if self.match == "contains" and not fold(answer):
                raise SuiteError(f"{which}, which every reply would contain; leave it out")
        if self.match == "regex":
            for pattern in self.answers:
                try:
                    with warnings.catch_warnings():
                        # That a pattern may mean something else in a later Python is no error in this one.
                        warnings.simplefilter("ignore")
                        re.compile(pattern)
                except (re.error, OverflowError, RecursionError) as bad:
                    raise SuiteError(f"answers has {shown(pattern)}, which is no regular expression: {bad}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextItem(Item):
    """Held-out text, measured in bits per byte."""

    kind: ClassVar[str] = "text"

    text: str

    def __post_init__(self) -> None:
        Item.__post_init__(self)
        self._text("text")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenItem(Item):
    """No gold answer: the base model's own reply is the reference."""

    kind: ClassVar[str] = "open"

    prompt: str
    reference: str | None = None
    """What the base model replied: how probable it stays is measured. None: the replies are shown, not judged."""

    def __post_init__(self) -> None:
        Item.__post_init__(self)
        self._text("prompt")
        if self.reference is not None:
            self._text("reference")

    @property
    def judged(self) -> bool:
        """Only with a reference: without one there is nothing to measure."""
        return self.reference is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuationItem(Item):
    """Continuations after contexts, word for word: no chat template and no `Question: …` is put around them."""

    kind: ClassVar[str] = "continuation"

    contexts: tuple[str, ...]
    """One in front of all continuations, or one for each; an empty one is the tokenizer's prefix token."""
    continuations: tuple[str, ...]
    """With the white space in front."""
    gold: tuple[int, ...]
    """Indices of the right continuations, from 0; where there is none, every answer is wrong."""
    greedy: bool = False
    """True: right if the model would say a gold continuation by itself, token by token. False: right if the gold one
    has the highest log-likelihood."""

    def __post_init__(self) -> None:
        Item.__post_init__(self)
        for field in ("contexts", "continuations"):
            self._words(field)
        if not self.continuations or not all(self.continuations):
            raise SuiteError(f"continuations is {shown(self.continuations)}, texts that are not empty are needed")
        if len(self.contexts) not in (1, len(self.continuations)):
            raise SuiteError(
                f"contexts is {shown(list(self.contexts))}, of {len(self.contexts)}; give 1, or one for each of the "
                f"{number_of(len(self.continuations), 'continuation')}"
            )
        if not isinstance(self.gold, (list, tuple)) or any(type(place) is not int for place in self.gold):
            raise SuiteError(f"gold is {shown(self.gold)}, a list of indices is needed")
        wrong = [place for place in self.gold if not 0 <= place < len(self.continuations)]
        if wrong:
            count = number_of(len(self.continuations), "continuation")
            raise SuiteError(f"gold has {shown(wrong[0])}, but the item has {count}, from 0")
        object.__setattr__(self, "gold", tuple(self.gold))

    def _words(self, field: str) -> None:
        value = getattr(self, field)
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise SuiteError(f"{field} is {shown(value)}, a list of texts is needed")
        for entry in value:
            _encodable(field, entry)
        object.__setattr__(self, field, tuple(value))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Context and continuation of each."""
        contexts = self.contexts if len(self.contexts) > 1 else self.contexts * len(self.continuations)
        return list(zip(contexts, self.continuations, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationItem(Item):
    """Generate a reply to a prompt, word for word, and judge it as lm-eval's filters and `exact_match` do."""

    kind: ClassVar[str] = "generation"

    prompt: str
    answers: tuple[str, ...]
    stop: tuple[str, ...] = ()
    """Strings before which the reply ends, beside the tokenizer's end-of-sequence token."""
    max_new_tokens: int = 256
    filters: str = "[]"
    """JSON: lm-eval's filters that the reply goes through, each a name and its arguments."""
    metric: str = "{}"
    """JSON: arguments of lm-eval's `exact_match`, such as `ignore_case`."""

    def __post_init__(self) -> None:
        Item.__post_init__(self)
        if not isinstance(self.prompt, str):
            raise SuiteError(f"prompt is {shown(self.prompt)}, text is needed")
        _encodable("prompt", self.prompt)
        self._texts("answers", at_least=1, blank=True)
        self._texts("stop", at_least=0, blank=True)
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise SuiteError(f"max_new_tokens is {shown(self.max_new_tokens)}, a whole number from 1 is needed")
        for field, kind in (("filters", list), ("metric", dict)):
            try:
                good = isinstance(json.loads(getattr(self, field)), kind)
            except (TypeError, ValueError, RecursionError):
                good = False
            if not good:
                raise SuiteError(f"{field} is {shown(getattr(self, field))}, JSON of a {kind.__name__} is needed")


KINDS: dict[str, type[Item]] = {
    cls.kind: cls for cls in (ChoiceItem, AnswerItem, TextItem, OpenItem, ContinuationItem, GenerationItem)
}


def asked_of(item: Item) -> str:
    """What an item asks, for people: its prompt, the context in front of a right continuation, or its text."""
    if isinstance(item, ContinuationItem):
        return item.pairs[item.gold[0] if item.gold else 0][0]
    return str(getattr(item, "text" if isinstance(item, TextItem) else "prompt"))


def right_of(item: Item) -> tuple[str, ...]:
    """What is right, of a matcher `regex` as patterns; nothing where an item has no right answer."""
    if isinstance(item, ChoiceItem):
        return (item.choices[item.gold],)
    if isinstance(item, ContinuationItem):
        return tuple(item.continuations[place] for place in item.gold)
    return item.answers if isinstance(item, (AnswerItem, GenerationItem)) else ()


def item_from_dict(row: Mapping[str, Any]) -> Item:
    """Make the item that a line of a suite file describes.

    Raises `SuiteError`, without file and line, which the reader of the file adds.
    """
    kind = row.get("kind")
    if kind is None:
        raise SuiteError(f"has no kind; one of {', '.join(KINDS)} is needed")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise SuiteError(f"kind is {shown(kind)}, one of {', '.join(KINDS)} is needed")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in row:
        if key != "kind" and key not in fields:
            near = difflib.get_close_matches(key[:80], fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(fields)}"
            raise SuiteError(f"unknown key {shown(key)} in an item of kind {kind}{hint}")
    for name, field in fields.items():
        if name not in row and field.default is dataclasses.MISSING:
            raise SuiteError(f"has no {name}, which an item of kind {kind} needs")
    return cls(**{key: value for key, value in row.items() if key != "kind"})


def _different(field: str, values: Sequence[str], aside: str = "") -> None:
    places: dict[str, int] = {}
    for place, value in enumerate(values):
        if value in places:
            both = f"{places[value]} and {place} (from 0)"
            raise SuiteError(f"{field} has {shown(value)} twice{aside}, at {both}; change one, or leave it out")
        places[value] = place


def _encodable(field: str, value: str) -> None:
    # A lone surrogate comes out of "\ud800" in JSON; no tokenizer and no UTF-8 file can take it.
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise SuiteError(f"{field} is {shown(value)}, which holds half a surrogate pair and is not text") from None


def is_blank(text: str) -> bool:
    """Whether nothing of a text would be seen."""
    return not text.strip() or all(
        c.isspace() or unicodedata.category(c) in ("Cc", "Cf") or _BLANK.match(c) for c in text
    )


def seen(text: str) -> str:
    """What is seen of a text: without white space around it and characters that leave no mark, accents composed."""
    return unicodedata.normalize("NFC", _NO_MARK.sub("", text)).strip()


def _check_text(field: str, value: Any) -> None:
    if not isinstance(value, str):
        raise SuiteError(f"{field} is {shown(value)}, text is needed")
    if is_blank(value):
        raise SuiteError(f"{field} is empty, {shown(value)}; fill it in")
    _encodable(field, value)


def check_name(field: str, value: Any) -> None:
    """Raise `SuiteError` unless `value` can be an id or the name of a capability; `field` says of what it is."""
    _check_text(field, value)
    # It stands in tables, file names and logs.
    if len(value) > LONGEST_NAME:
        raise SuiteError(f"{field} is {shown(value)}, of {len(value)} characters; give it {LONGEST_NAME} at most")
    if _UNSEEN.search(value):
        raise SuiteError(f"{field} is {shown(value)}, with a line break or a control character; leave it out")
    # It may become a file's name; slashes group ids, and must not lead out of a folder.
    if "\\" in value or any(part.strip(". ") == "" for part in value.split("/")):
        raise SuiteError(
            f"{field} is {shown(value)}, which could lead out of a folder; leave out backslashes, and parts between "
            "slashes that are empty or dots"
        )
