"""Record: what one model state did on one suite, item by item, with the fingerprints that make it comparable.

A record is a JSON Lines file: first a header with the schema version, then a line for each outcome.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from backslide.errors import MismatchError, RecordError, shown
from backslide.files import read_lines, write_lines

SCHEMA = "backslide.record/1"

LEAST_LOG = -1e4
"""The lowest log-probability that is kept of a token (nats); as a probability it is 0 in any precision."""

Likeliest = tuple[tuple[int, ...], tuple[float, ...]]
"""Of one token of a reference its own id and those of the likeliest others, and the log-probabilities of these (nats),
with that of all remaining tokens together at the end where there are some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one model state did on one item."""

    id: str
    kind: str
    capability: str
    request: str
    """Digest of the token ids that were asked; outcomes are paired only where these are equal."""
    correct: bool | None = None
    """Whether the item was answered right; None for kinds without a gold answer."""
    p: float | None = None
    """Probability on the gold choice: softmax over the choices' log-likelihoods, in [0, 1]."""
    scores: tuple[float | None, ...] = ()
    """Log-likelihood (nats) of each choice, of the text or of the reference; None where it was not finite. For kind
    `answer`, where it was probed, that of the first accepted answer and of other items' answers (see
    `backslide.scoring.probe`)."""
    greedy: tuple[bool, ...] = ()
    """For each choice whether every one of its tokens was the model's first."""
    bytes: int | None = None
    """UTF-8 bytes of the text, for kind `text`."""
    tokens: int | None = None
    """Tokens of the reference, for kind `open` where the item has one."""
    reply: str | None = None
    """What the model said, for kinds `answer` and `open`. Untrusted text."""
    likeliest: tuple[Likeliest, ...] = ()
    """For each token of the reference what the model held likeliest there, from which the KL between two records is
    bounded (see `backslide.drops.kl_between`). Empty for all other kinds, where a score is not finite, and in older
    records."""
    cluster: str | None = None
    """Items that share a passage or a template share this name; their outcomes are not independent."""

    @property
    def finite(self) -> bool:
        """Whether every log-likelihood is a number."""
        return all(score is not None for score in self.scores)

    @property
    def bits_per_byte(self) -> float | None:
        """-log2 likelihood per UTF-8 byte, for kind `text`; None elsewhere or where it is not finite."""
        if self.bytes is None or not self.scores or self.scores[0] is None:
            return None
        return -self.scores[0] / math.log(2) / self.bytes

    @property
    def nats_per_token(self) -> float | None:
        """Negative log-likelihood of the reference a token, for `open` items that have one; None where not finite."""
        if self.tokens is None or not self.scores or self.scores[0] is None:
            return None
        return -self.scores[0] / self.tokens

    @property
    def unit(self) -> str | None:
        """What a verdict on the item is about: `accuracy`, `bits per byte` or `drift`; None: nothing is judged."""
        if self.kind == "open":
            return None if self.tokens is None else "drift"
        return "bits per byte" if self.kind == "text" else "accuracy"

    def to_dict(self) -> dict[str, Any]:
        """The outcome as a line of a record file; empty fields are left out."""
        row = {name: getattr(self, name) for name in _FIELDS}
        return {key: value for key, value in row.items() if value is not None and value != ()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Outcome:
        """Make the outcome that a line describes; `RecordError` without file and line where it is malformed."""
        unknown = sorted(set(row) - set(_FIELDS))
        if unknown:
            raise RecordError(f"unknown key {unknown[0]!r} in an outcome")
        for name, types in _TYPES.items():
            value = row.get(name)
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                wanted = " or ".join("nothing" if t is type(None) else t.__name__ for t in types)
                raise RecordError(f"{name} is {value!r}, {wanted} is needed")
        p = row.get("p")
        if p is not None and not 0 <= p <= 1:
            raise RecordError(f"p is {p!r}, a probability from 0 to 1 is needed")
        for name in ("bytes", "tokens"):
            if (size := row.get(name)) is not None and size <= 0:
                raise RecordError(f"{name} is {size!r}, a positive number is needed")
        scores, greedy = row.get("scores") or (), row.get("greedy") or ()
        if not all(s is None or _finite(s) for s in scores):
            raise RecordError(f"scores is {scores!r}, finite numbers or null are needed")
        if not all(isinstance(g, bool) for g in greedy):
            raise RecordError(f"greedy is {greedy!r}, true or false for each choice is needed")
        likeliest = _likeliest(row.get("likeliest") or ())
        return cls(**{**row, "scores": tuple(scores), "greedy": tuple(greedy), "likeliest": likeliest})


def _likeliest(places: Sequence[Any]) -> tuple[Likeliest, ...]:
    """The field from JSON, of one shape at all places; `RecordError` where it is not."""
    found: list[Likeliest] = []
    for place in places:
        ids, logs = place if isinstance(place, (list, tuple)) and len(place) == 2 else ((), ())
        fits = (
            isinstance(ids, (list, tuple))
            and isinstance(logs, (list, tuple))
            and 1 <= len(ids) <= len(logs) <= len(ids) + 1
            and all(isinstance(id, int) and not isinstance(id, bool) and 0 <= id < 1 << 31 for id in ids)
            and len(set(ids)) == len(ids)
            and all(_finite(log) and LEAST_LOG <= log <= 0 for log in logs)
            and (not found or (len(ids), len(logs)) == tuple(map(len, found[0])))
        )
        if not fits:
            wanted = f"for each token ids and their log-probabilities from {LEAST_LOG:g} to 0 are needed"
            raise RecordError(f"likeliest has {shown(place)}, {wanted}")
        found.append((tuple(ids), tuple(logs)))
    return tuple(found)


def _finite(value: object) -> bool:
    # By comparison: math.isfinite() raises for whole numbers beyond the floats.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


_FIELDS = tuple(f.name for f in dataclasses.fields(Outcome))
_NONE = type(None)
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "kind": (str,),
    "capability": (str,),
    "request": (str,),
    "correct": (bool, _NONE),
    "p": (float, int, _NONE),
    "scores": (list, tuple, _NONE),
    "greedy": (list, tuple, _NONE),
    "bytes": (int, _NONE),
    "tokens": (int, _NONE),
    "reply": (str, _NONE),
    "likeliest": (list, tuple, _NONE),
    "cluster": (str, _NONE),
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """Under which conditions a record was measured."""

    suite: str
    """Name of the suite."""
    suite_hash: str
    part: str
    """`monitor`, `gate` or `all`."""
    model: str
    """Name or folder of the model, for people."""
    model_fingerprint: str
    tokenizer_fingerprint: str
    conditions: dict[str, Any]
    """What must be equal for two records to be comparable: dtype, chat template, packing, limits."""
    step: int | None = None
    """Optimizer steps since the baseline, for records taken during training."""
    cost: dict[str, float] = field(default_factory=dict)
    """Seconds and tokens that the measurement took."""
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the reader should know, such as a fallback that was taken."""
    noise: dict[str, float] = field(default_factory=dict)
    """Of a baseline: what scoring it again in other batches changed; see `backslide.noise`."""


_HEADER_TYPES: dict[str, type | tuple[type, ...]] = {
    "suite": str,
    "suite_hash": str,
    "part": str,
    "model": str,
    "model_fingerprint": str,
    "tokenizer_fingerprint": str,
    "conditions": dict,
    "step": (int, _NONE),
    "cost": dict,
    "versions": dict,
    "notes": list,
    "noise": dict,
}
_HEADER_LATER = {"noise": dict}
"""Fields that records of an earlier version lack, and what makes the value that stands for them."""


@dataclass(frozen=True)
class Record:
    """All outcomes of one model state on one suite, or on a half of it."""

    header: Header
    outcomes: tuple[Outcome, ...]

    @cached_property
    def by_id(self) -> dict[str, Outcome]:
        """The outcomes by item id."""
        return {outcome.id: outcome for outcome in self.outcomes}

    @property
    def replies(self) -> dict[str, str]:
        """What the model said to each `open` item, by item id. Untrusted text."""
        return {o.id: o.reply for o in self.outcomes if o.kind == "open" and o.reply is not None}

    @property
    def not_finite(self) -> tuple[str, ...]:
        """The ids of items with a log-likelihood that is not a number."""
        return tuple(o.id for o in self.outcomes if not o.finite)

    def save(self, path: str | Path) -> None:
        """Write the record, atomically."""
        head = {"schema": SCHEMA, "outcomes": len(self.outcomes), **dataclasses.asdict(self.header)}
        write_lines(Path(path), [head, *(outcome.to_dict() for outcome in self.outcomes)])

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record file.

        Raises `RecordError` naming file and line when it is missing, malformed, cut short or of another schema.
        """
        path = Path(path)
        rows = read_lines(path, RecordError)
        first = next(rows, None)
        if first is None:
            raise RecordError(f"{path}: is empty; make it with `backslide baseline`")
        header = _header(path, dict(first[1]))
        outcomes: dict[str, Outcome] = {}
        for number, row in rows:
            try:
                outcome = Outcome.from_dict(row)
            except RecordError as bad:
                raise RecordError(f"{path}:{number}: {bad}") from None
            if outcome.id in outcomes:
                raise RecordError(f"{path}:{number}: the item {outcome.id!r} has an outcome already")
            outcomes[outcome.id] = outcome
        if not outcomes:
            raise RecordError(f"{path}: holds no outcome; measure it again with `backslide baseline`")
        # A copy that was cut at the end of a line is whole JSON; only the count gives it away.
        planned = first[1].get("outcomes", len(outcomes))
        if planned != len(outcomes):
            raise RecordError(f"{path}: was cut short: {len(outcomes)} outcomes of {planned}; copy or measure it again")
        return cls(header=header, outcomes=tuple(outcomes.values()))


def _header(path: Path, row: dict[str, Any]) -> Header:
    schema = row.pop("schema", None)
    if schema != SCHEMA:
        raise RecordError(f"{path}:1: schema is {schema!r}, this version of backslide reads {SCHEMA!r}")
    for name, default in _HEADER_LATER.items():
        row.setdefault(name, default())
    for name, types in _HEADER_TYPES.items():
        if name not in row:
            raise RecordError(f"{path}:1: the header has no {name}")
        if not isinstance(row[name], types):
            raise RecordError(f"{path}:1: {name} is {row[name]!r}, which is of the wrong type")
    row["notes"] = tuple(row["notes"])
    for measure, value in row["noise"].items():
        if not _finite(value) or value < 0:
            raise RecordError(f"{path}:1: noise of {measure} is {value!r}, a number from 0 is needed")
    return Header(**{name: row[name] for name in _HEADER_TYPES})


def pair(baseline: Record, candidate: Record, *, ignore: Collection[str] = ()) -> list[tuple[Outcome, Outcome]]:
    """The outcomes of the candidate's items, each with the baseline's outcome on the same request.

    Args:
        baseline: may cover more items than the candidate.
        candidate: what is compared.
        ignore: conditions that may differ.

    Raises `MismatchError` when the two were not measured on the same suite, tokens and conditions, or when the
    baseline lacks items of the candidate.
    """
    old, new = baseline.header, candidate.header
    if old.suite_hash != new.suite_hash:
        raise MismatchError(
            f"the baseline was measured on another suite ({old.suite} {old.suite_hash[:12]}) than the candidate "
            f"({new.suite} {new.suite_hash[:12]}); measure it again with this suite"
        )
    missing = [id for id in candidate.by_id if id not in baseline.by_id]
    if missing:
        raise MismatchError(
            f"the baseline has no outcome for {len(missing)} of {len(candidate.outcomes)} items, the first is "
            f"{missing[0]!r}; it covers the part {old.part!r}, measure it with `--part all`"
        )
    pairs = [(baseline.by_id[outcome.id], outcome) for outcome in candidate.outcomes]
    other = [new.id for old, new in pairs if old.request != new.request]
    if other:
        raise MismatchError(
            f"the baseline was measured with another tokenizer or chat template: {len(other)} of {len(pairs)} "
            f"items become other tokens, the first is {other[0]!r}; measure it again with this tokenizer"
        )
    for key in sorted({*old.conditions, *new.conditions} - set(ignore)):
        if old.conditions.get(key) != new.conditions.get(key):
            raise MismatchError(
                f"the baseline was measured with {key} = {old.conditions.get(key)!r}, the candidate with "
                f"{new.conditions.get(key)!r}; measure both under the same conditions"
            )
    return pairs
