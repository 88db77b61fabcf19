"""Old rows for replay: read and checked, without the suite's items, and as a trainer would have them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np

from backslide.data import FORMATS, TrainingData
from backslide.errors import DataError, shown
from backslide.models import quiet
from backslide.suite.leakage import find_leaks
from backslide.suite.suite import Suite

TOKENS = "tokens"
"""The format of rows that have their `input_ids` already; the others are `backslide.data.FORMATS`."""
WITH = ("tools", "chat_template_kwargs")
"""Further columns of a chat row that a trainer looks at."""
IGNORED = -100
"""The label of a token that is not learnt."""

Row = Mapping[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class OldRows:
    """Rows of original-domain data, of one format, each with something to learn."""

    name: str
    """Where they are from, for messages."""
    format: str
    """One of `FORMATS`, or `TOKENS`."""
    rows: Sequence[Row]
    """A list, or a `datasets.Dataset`."""

    @classmethod
    def read(cls, source: Any, say: Say) -> OldRows:
        """Read and check what the user gave as old data: rows, a JSON Lines file, or a `datasets.Dataset`.

        Raises `DataError` where there is nothing to learn from, or a row is malformed or of another format.
        """
        if isinstance(source, (str, Path)):
            data = TrainingData.load(source)
            name, rows = str(source), cast(Sequence[Row], list(data.rows))
        elif isinstance(source, datasets.Dataset):
            name, rows = "the old data", source
        elif isinstance(source, (list, tuple)):
            name, rows = "the old data", list(source)
        else:
            raise DataError(
                f"replay: the old data are a {type(source).__name__}; a list of rows, a JSON Lines file or a "
                "datasets.Dataset is needed (of a DatasetDict one split, of a stream datasets.Dataset.from_list("
                "list(stream.take(5000))))"
            )
        kind, kept = "", []
        for place, row in enumerate(rows, start=1):
            try:
                found = _format(row)
                if kind and found != kind:
                    raise DataError(f"is of the format {found}, the rows before are {kind}; keep to one format")
                kind = found
                if _usable(row, kind):
                    kept.append(place - 1)
            except DataError as bad:
                raise DataError(f"replay: row {place} of {name} {bad}") from None
        if not kept:
            why = f"none of its {len(rows)} rows holds text" if len(rows) else "there is no row"
            raise DataError(f"replay: {name}: no usable text: {why}; give rows of the data whose abilities are to stay")
        if len(kept) < len(rows):
            say(f"replay: {len(rows) - len(kept)} empty rows of {name} are left out")
        return cls(name, kind, _select(rows, kept))

    def without(self, suite: Suite, say: Say, tokenizer: Any = None) -> OldRows:
        """These rows without those that hold a copy of an item of the suite.

        Args:
            suite: a copy is what `backslide suite check --train` would list, exact or near.
            say: told how many are left out.
            tokenizer: by which rows of tokens are read.

        Raises:
            DataError: no row is left.
        """
        texts = ((str(place), _text(row, self.format, tokenizer)) for place, row in enumerate(self.rows))
        # Of each item every place, not the first few: no row that holds one may stay.
        leaks = find_leaks(suite, texts, places=len(self.rows) + 1)
        if not leaks:
            return self
        bad = {int(leak.place) for leak in leaks}
        items = len({leak.item for leak in leaks})
        what = f"{len(bad)} of {len(self.rows)} rows of {self.name} hold {items} of the items of the suite {suite.name}"
        if len(bad) == len(self.rows):
            raise DataError(f"replay: {what}, so none is left; give other old data, which the suite does not ask about")
        say(f"replay: {what}, and are left out")
        return OldRows(self.name, self.format, _select(self.rows, [i for i in range(len(self.rows)) if i not in bad]))


class Prepared:
    """Old rows as a trainer's own collator takes them.

    Args:
        rows: each with `input_ids` and, where not all of them are learnt, `labels`.
        name: of the data, for messages.
        say: told what is left out.
        cut: tokens at which the rows were cut; None: they were not, or the trainer says so itself.

    Raises:
        DataError: in no row there is a token to learn.
    """

    def __init__(self, rows: Sequence[Row], name: str, say: Say, cut: int | None = None) -> None:
        digest, lengths, kept = hashlib.sha256(), [], []
        for place, row in enumerate(rows):
            ids, labels = np.asarray(row["input_ids"], np.int64), row.get("labels")
            learnt = ids.size and (labels is None or bool((np.asarray(labels) != IGNORED).any()))
            if not learnt:
                continue
            kept.append(place)
            lengths.append(tokens_of(row))
            for part in (ids, np.asarray([] if labels is None else labels, np.int64)):
                digest.update(part.tobytes() + b"|")
        within = f" within the {cut} tokens at which they are cut" if cut is not None else ""
        if not kept:
            mend = "give Replay a larger max_length, or" if cut is not None else "give"
            raise DataError(
                f"replay: {name}: no row has a token that the trainer would learn from{within}; {mend} other old data"
            )
        if len(kept) < len(rows):
            say(
                f"replay: {len(rows) - len(kept)} rows of {name} have no token that is learnt{within}, and are left out"
            )
        self.rows = _select(rows, kept)
        self.lengths = np.asarray(lengths)
        """Tokens of each row, padding apart."""
        self.fingerprint = digest.hexdigest()
        """Of all tokens and labels, in order."""


def prepare(old: OldRows, trainer: Any, *, max_length: int | None, say: Say) -> Prepared:
    """Tokenise old rows just as the trainer does its own.

    `SFTTrainer` does it itself: chat template, cut, masks and packing are those of its own data. For a bare `Trainer`,
    which gets its data tokenised, texts are tokenised by its `processing_class`, cut at `max_length`, without an end
    token, and all tokens but those of a prompt are learnt (`unlearn` where the new rows have no labels).
    """
    if hasattr(trainer, "_prepare_dataset"):
        return Prepared(_by_sft(old, trainer), old.name, say)
    if old.format == TOKENS:
        return Prepared(old.rows, old.name, say)
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    if tokenizer is None:
        raise DataError(
            "replay: the old rows are text and the trainer has no tokenizer for them; give it one as "
            "processing_class, or give rows with input_ids"
        )
    turns = old.format == "messages" or (
        old.format == "prompt/completion" and not all(isinstance(row["prompt"], str) for row in old.rows)
    )
    if turns and not tokenizer.chat_template:
        raise DataError("replay: the old rows are chat and the tokenizer has no chat template; set one, or give texts")
    limit = max_length or min(tokenizer.model_max_length, _context(trainer.model))
    rows = [_tokenised(row, old.format, tokenizer) for row in old.rows]
    return Prepared([{key: value[:limit] for key, value in row.items()} for row in rows], old.name, say, limit)


def tokens_of(row: Row) -> int:
    """Tokens of a tokenised row, padding apart."""
    mask = row.get("attention_mask")
    return len(row["input_ids"]) if mask is None else int(np.asarray(mask).sum())


def like(old: Row, new: Row, wanted: set[str] | None) -> dict[str, Any]:
    """An old row with the columns and types of a new one, so that one collator takes both.

    Args:
        old: tokenised.
        new: a row of the batch that it is added to.
        wanted: the columns that the collator looks at; None: all.

    Raises:
        DataError: a column that goes along with the tokens is missing in the old row and follows from nothing.
    """
    ids, made = old["input_ids"], {}
    for key, value in new.items():
        if wanted is not None and key not in wanted:
            continue
        if key in old:
            made[key] = _typed(old[key], value)
        elif key == "labels":
            made[key] = _typed(ids, value)
        elif key == "attention_mask":
            made[key] = _typed([1] * len(ids), value)
        elif key == "position_ids":
            made[key] = _typed(list(range(len(ids))), value)
        elif hasattr(value, "__len__") and not isinstance(value, str) and len(value) == len(new["input_ids"]):
            raise DataError(f"replay: the new rows have {key!r} for each token and the old rows do not; add it to them")
    return made


def unlearn(batch: Any, rows: Sequence[Row]) -> bool:
    """Take what is not to be learnt of old rows out of the labels that a collator made of all tokens.

    Args:
        batch: what the collator made, the old rows last in it.
        rows: the old rows.

    Returns:
        False where one of them is not found in the batch as it was given, or there are no labels.
    """
    masked = {
        place: unlearnt
        for place, row in enumerate(rows, start=-len(rows))
        if row.get("labels") is not None and (unlearnt := np.asarray(row["labels"]) == IGNORED).any()
    }
    if not masked:
        return True
    if not isinstance(batch, MutableMapping):
        return False
    ids: Any = batch.get("input_ids")
    labels: Any = batch.get("labels")
    if getattr(ids, "ndim", 0) != 2 or getattr(labels, "shape", None) != ids.shape or len(ids) < len(rows):
        return False
    # They may be the very tokens themselves.
    labels = labels.clone() if hasattr(labels, "clone") else labels.copy()
    for place, unlearnt in masked.items():
        own, size = list(map(int, rows[place]["input_ids"])), len(unlearnt)
        # Padded on the right, or on the left.
        for start in (0, ids.shape[1] - size):
            found, learnt = (part[place, max(start, 0) : start + size].tolist() for part in (ids, labels))
            if found == own and all(one in (IGNORED, token) for one, token in zip(learnt, own, strict=True)):
                labels[place, (start + np.flatnonzero(unlearnt)).tolist()] = IGNORED
                break
        else:
            return False
    batch["labels"] = labels
    return True


def _typed(values: Any, as_in: Any) -> Any:
    if isinstance(as_in, np.ndarray):
        return np.asarray(values, as_in.dtype)
    if hasattr(as_in, "new_tensor"):
        return as_in.new_tensor(_listed(values))
    return _listed(values)


def _listed(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


def _by_sft(old: OldRows, trainer: Any) -> Sequence[Row]:
    args = trainer.args
    columns = (*FORMATS.get(old.format, ()), *WITH)
    if isinstance(old.rows, datasets.Dataset):
        rows = old.rows.with_format(None)
    else:
        rows = datasets.Dataset.from_list([dict(row) for row in old.rows])
    if old.format != TOKENS:
        rows = rows.select_columns([column for column in rows.column_names if column in columns])
    if old.format == "text" and args.dataset_text_field != "text":
        rows = rows.rename_column("text", args.dataset_text_field)
    try:
        # Warnings here repeat what the trainer said of its own data.
        with quiet():
            made = trainer._prepare_dataset(rows, trainer.processing_class, args, args.packing, None, "replay")
    except (RuntimeError, ValueError, TypeError, KeyError) as bad:
        if args.assistant_only_loss and "assistant tokens" in str(bad):
            raise DataError(
                f"replay: a row of {old.name} has no assistant tokens by the tokenizer's chat template, and the "
                "trainer learns nothing else (assistant_only_loss); leave such rows out, or give old data as text"
            ) from bad
        why = " ".join(str(bad).split())[:300]
        raise DataError(
            f"replay: the trainer cannot prepare {old.name} ({old.format}) as its own data: {why}; mend "
            "such rows, or give old data in the format of the new"
        ) from bad
    keep = [key for key in ("input_ids", "labels", "attention_mask", "seq_lengths") if key in made.column_names]
    return cast(Sequence[Row], made.select_columns(keep))


def _tokenised(row: Row, kind: str, tokenizer: Any) -> dict[str, Any]:
    if kind == "messages":
        text, asked = tokenizer.apply_chat_template(row["messages"], tokenize=False), 0
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    elif kind == "text":
        ids, asked = tokenizer(row["text"])["input_ids"], 0
    elif isinstance(row["prompt"], str):
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        asked = _common(ids, tokenizer(row["prompt"])["input_ids"])
    else:
        both = [
            tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=add)
            for part, add in ((row["prompt"] + row["completion"], False), (row["prompt"], True))
        ]
        ids, prompt = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in both)
        asked = _common(ids, prompt)
    return {"input_ids": ids, "labels": [IGNORED] * asked + ids[asked:]}


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _context(model: Any) -> int:
    config = getattr(model, "config", None)
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def _format(row: Any) -> str:
    if not isinstance(row, Mapping):
        raise DataError(f"is {shown(row)}, a row such as {{'text': '…'}} is needed")
    if row.get("input_ids") is not None:
        return TOKENS
    for name, keys in FORMATS.items():
        if all(row.get(key) is not None for key in keys):
            return name
    found = ", ".join(sorted(str(key)[:40] for key in row)) or "none"
    raise DataError(f"has the keys {found}; text, or prompt and completion, or messages, or input_ids is needed")


def _usable(row: Row, kind: str) -> bool:
    if kind == TOKENS:
        return len(row["input_ids"]) > 0
    if kind == "messages":
        return any(m["role"] == "assistant" and str(m.get("content") or "").strip() for m in _turns(row, "messages"))
    if kind == "text" or isinstance(row["completion"], str):
        for key in FORMATS[kind]:
            if not isinstance(row[key], str):
                raise DataError(f"has {type(row[key]).__name__} in {key!r}, text is needed")
        return bool(row[FORMATS[kind][-1]].strip())
    return bool(_turns(row, "prompt")) and any(str(m.get("content") or "").strip() for m in _turns(row, "completion"))


def _turns(row: Row, key: str) -> Sequence[Row]:
    turns = row[key]
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) and "role" in turn for turn in turns):
        raise DataError(f"has {shown(turns)} in {key!r}, a list of messages with role and content is needed")
    return turns


def _text(row: Row, kind: str, tokenizer: Any) -> str:
    if kind == TOKENS:
        return str(tokenizer.decode(row["input_ids"], skip_special_tokens=True))
    return "\n".join(
        row[key] if isinstance(row[key], str) else "\n".join(str(turn.get("content") or "") for turn in row[key])
        for key in FORMATS[kind]
    )


def _select(rows: Sequence[Row], kept: list[int]) -> Sequence[Row]:
    if len(kept) == len(rows):
        return rows
    if isinstance(rows, datasets.Dataset):
        return cast(Sequence[Row], rows.select(kept))
    return [rows[place] for place in kept]
