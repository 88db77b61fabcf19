"""Rehearsal data that the base model writes itself: its own replies to a list of prompts, made once and kept.

No original data is needed, and what is rehearsed is what the model says before it is tuned. The idea is from Huang et
al. 2024 (arXiv 2403.01244, self-synthesized rehearsal); there the model also makes up the prompts, from examples of the
old data, and a later state of it writes the replies anew. Here the prompts are a list, the bundled one of
`prompts.jsonl` or the user's, and the replies are the base's, greedy ones unless a temperature is given.

A reply that did not end within its tokens is no row to be learnt: a trainer closes each reply with the end of a turn,
so it would teach to stop in the middle of a sentence. To leave it out biases no greedy reply, since that is one and the
same for its prompt: fewer prompts are rehearsed, none with another reply. (Drawn ones it makes a little shorter.) For a
divergence from the base it does no harm, as the base itself gives no weight to an end at that place; such rows are in
`Synthesis.unended`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backslide.cure.loops import loops
from backslide.cure.prompts import prompts_of
from backslide.errors import ConfigError, DataError, RunError, shown
from backslide.files import dump, write_lines
from backslide.models import cache_folder, model_fingerprint, tokenizer_fingerprint
from backslide.scoring.draw import Sampling
from backslide.scoring.engine import Scorer, Settings
from backslide.scoring.forward import uncompiled
from backslide.scoring.generate import BATCH, Reply, in_batches
from backslide.scoring.requests import Prompt, encode, rendered
from backslide.scoring.session import session
from backslide.scoring.work import Progress
from backslide.suite.item import OpenItem
from backslide.suite.leakage import Leak, Passage, counted, find_leaks
from backslide.suite.make import Made
from backslide.suite.suite import Suite

SCHEMA = "backslide.synthesis/1"
TOKENS = 256
"""Tokens of a reply at most."""
STOP = "\nQuestion:"
"""Where the reply of a model without a chat template ends: it goes on with a question of its own."""

_KEYS = {
    "weights": "other weights",
    "tokenizer": "another tokenizer or chat template",
    "prompts": "other prompts",
    "max_new_tokens": "another max_new_tokens",
    "temperature": "another temperature",
    "seed": "another seed",
}


@dataclass(frozen=True)
class Synthesis:
    """What the base model replied, ready to be rehearsed."""

    rows: tuple[dict[str, Any], ...]
    """In the prompts' order, `{"messages": [user, assistant]}`; without a chat template `{"prompt", "completion"}`.
    There are none where no reply ended within its tokens."""
    path: Path
    """The file with all replies, those that are no rows among them."""
    notes: tuple[str, ...]
    """How many replies there are, and which were left out and why, for people."""
    unended: tuple[dict[str, Any], ...] = ()
    """Rows whose reply was cut off at its longest: for a divergence from the base, not to be learnt word for word."""


@dataclass(frozen=True)
class _Said:
    """A reply as the file holds it."""

    prompt: str
    """The user's message; without a chat template as it was put to the model."""
    reply: Reply
    chat: bool

    @property
    def row(self) -> dict[str, Any]:
        if not self.chat:
            return {"prompt": self.prompt, "completion": self.reply.text}
        return {
            "messages": [
                {"role": "user", "content": self.prompt},
                {"role": "assistant", "content": self.reply.text},
            ]
        }

    def to_dict(self) -> dict[str, Any]:
        return {**self.row, "tokens": self.reply.tokens, "ended": self.reply.ended}

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> _Said:
        chat = "messages" in line
        prompt, text = (m["content"] for m in line["messages"]) if chat else (line["prompt"], line["completion"])
        return cls(str(prompt), Reply(str(text), int(line["tokens"]), bool(line["ended"])), chat)


def synthesise(
    model: Any,
    tokenizer: Any,
    *,
    prompts: str | Path | Sequence[str] | int | None = None,
    out: str | Path,
    max_new_tokens: int = TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    suite: Suite | None = None,
    batch: int = BATCH,
    cache: bool = True,
    progress: Progress | None = None,
) -> Synthesis:
    """Have the base model reply to prompts, or take the replies that it gave before.

    Replies are appended to `out` as they come; a call that was interrupted goes on there. Where `out` is not there yet
    they are looked for in the cache folder, by weights, tokenizer, prompts and length of a reply.

    Args:
        model: a Hugging Face causal language model before it is trained; adapters (PEFT) are off while it replies. It
            is left exactly as found. Of several processes one is to call this.
        tokenizer: its tokenizer. With a chat template the prompts are asked through it.
        prompts: a file (`.txt` with a prompt a line, or `.jsonl`, `.csv` with a column `prompt`), or the prompts
            themselves, or how many of the bundled ones, as many of each kind; None: all of those.
        out: the file of the replies: JSON Lines, the first line a header.
        max_new_tokens: length of a reply at most, in tokens.
        temperature: 0 takes the likeliest token each time; above it tokens are drawn, 1 from what the model says.
        seed: of the drawn tokens; a prompt's are the same whatever other prompts there are.
        suite: rows that hold an item of it are left out.
        batch: prompts that are replied to at once. Replies of a half-precision model may depend on it by rounding.
        cache: look for the replies in the cache folder, and keep them there.
        progress: called while the model replies.

    Raises:
        SuiteError: the prompts cannot be read.
        DataError: `out` holds something else, or no reply is left, ended or not.
        ConfigError: a number is out of its range.
        ModelError: the model or tokenizer cannot be asked so, or its adapter cannot be switched off.
        RunError: `out` cannot be written.
    """
    if batch < 1:
        raise ConfigError(f"batch is {batch}, a whole number from 1 is needed")
    sampling = Sampling(temperature, seed) if temperature != 0 else None
    out = Path(out)
    made = prompts_of(prompts)
    notes = made.notes
    # It finds out what the model takes, and how.
    scorer = Scorer(made.suite("prompts"), model, tokenizer, Settings(max_new_tokens=max_new_tokens))
    scorer.runner.prompts = batch
    asked, long = _asked(made, tokenizer, scorer.settings)
    header = {
        "schema": SCHEMA,
        "weights": model_fingerprint(model, adapters=False),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "prompts": hashlib.sha256(dump(list(asked)).encode()).hexdigest(),
        "max_new_tokens": max_new_tokens,
        "temperature": float(temperature),
        "seed": seed if temperature else 0,
    }
    cached = cache_folder() / "synthesis" / f"{hashlib.sha256(dump(header).encode()).hexdigest()[:32]}.jsonl"
    stored: dict[str, _Said] = {}
    if cache:
        # A damaged file there is as none.
        with contextlib.suppress(DataError):
            stored = _read(cached, header) or {}
    known = _read(out, header) or stored
    if not asked.keys() <= known.keys():
        known = _replies(model, tokenizer, scorer, asked, known, _Kept(out, header), sampling, progress)
    replies = [known[text] for text in asked]
    lines = [header, *(said.to_dict() for said in replies)]
    # In the prompts' order, however often it was interrupted.
    _written(out, lines)
    if cache and not asked.keys() <= stored.keys():
        with contextlib.suppress(OSError):
            write_lines(cached, lines)
    if long:
        notes += (_left("the prompt and a reply are longer than the model takes", long),)
    return _sorted(replies, out, (*notes, *scorer.runner.notes), suite)


def _asked(made: Made, tokenizer: Any, settings: Settings) -> tuple[dict[str, Prompt], list[str]]:
    """What is put to the model, by the prompt that a row shows; and the prompts that leave no room for a reply."""
    chat, texts = bool(settings.chat), [item.prompt for item in made.items if isinstance(item, OpenItem)]
    contexts = [rendered(text, tokenizer, chat) for text in texts]
    room = (settings.max_length or 0) - settings.max_new_tokens
    asked: dict[str, Prompt] = {}
    long = []
    for text, context, tokens in zip(texts, contexts, encode(tokenizer, contexts), strict=True):
        shown_as = text if chat else context
        if len(tokens) > room:
            long.append(text)
        else:
            asked[shown_as] = Prompt(shown_as, tokens, () if chat else (STOP,))
    if not asked:
        raise DataError(
            f"the model takes {settings.max_length} tokens, too few for any of the {len(texts)} prompts with a reply "
            f"of {settings.max_new_tokens}; lower max_new_tokens"
        )
    return asked, long


def _replies(
    model: Any,
    tokenizer: Any,
    scorer: Scorer,
    asked: Mapping[str, Prompt],
    known: Mapping[str, _Said],
    kept: _Kept,
    sampling: Sampling | None,
    progress: Progress | None,
) -> dict[str, _Said]:
    """All replies, those known among them; batch by batch, each kept as soon as it is there."""
    found, order = dict(known), list(asked.values())
    model = uncompiled(model)
    done = 0
    with session(model, tokenizer, adapters=False), kept:
        for group in in_batches(order, scorer.runner.prompts):
            some = [order[place] for place in group]
            # A batch of which a part was lost is asked as a whole: in half precision a reply depends on its company.
            if not all(prompt.item in known for prompt in some):
                replies = scorer.runner.reply(
                    model, some, max_new_tokens=scorer.settings.max_new_tokens, sampling=sampling
                )
                fresh = [
                    _Said(prompt.item, reply, bool(scorer.settings.chat))
                    for prompt, reply in zip(some, replies, strict=True)
                ]
                kept.add(fresh)
                found |= {said.prompt: said for said in fresh}
            done += len(group)
            if progress is not None:
                progress("replies of the base model", done, len(order))
    return found


class _Kept:
    """The file of the replies while they come."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path, self._header = path, dump(header)
        self._file: Any = None

    def __enter__(self) -> _Kept:
        with _writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            there = self._path.exists() and self._path.stat().st_size > 0
            self._file = open(self._path, "a", encoding="utf-8", newline="\n")
            # After a line that a killed process left half written.
            self._file.write("\n" if there else self._header + "\n")
            self._file.flush()
        return self

    def add(self, replies: Iterable[_Said]) -> None:
        """Write replies down, and see them onto the disk."""
        with _writing(self._path):
            self._file.write("".join(dump(said.to_dict()) + "\n" for said in replies))
            self._file.flush()
            os.fsync(self._file.fileno())

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _read(path: Path, header: Mapping[str, Any]) -> dict[str, _Said] | None:
    """The replies in a file, by prompt; None where there is no file.

    Raises `DataError` where it holds something else than replies to the same prompts by the same model.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return None
    except OSError as bad:
        raise DataError(f"{path}: cannot be read: {bad.strerror or bad}; give another file") from None
    if lines == [""]:
        return None
    try:
        before = json.loads(lines[0])
    except ValueError:
        before = None
    if not isinstance(before, dict) or before.get("schema") != SCHEMA:
        raise DataError(f"{path}: is no file of replies, its first line is {shown(lines[0])}; give another name")
    for key, what in _KEYS.items():
        if before.get(key) != header[key]:
            raise DataError(f"{path}: holds replies made with {what}; delete it, or give another file")
    found: dict[str, _Said] = {}
    # The last line is whole only if a line break follows it.
    for line in lines[1:-1]:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            said = _Said.from_dict(json.loads(line))
            found[said.prompt] = said
    return found


def _written(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with _writing(path):
        write_lines(path, lines)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as bad:
        raise RunError(f"{path}: cannot be written: {bad.strerror or bad}; make room, or give another place") from bad


def _sorted(replies: Sequence[_Said], path: Path, notes: tuple[str, ...], suite: Suite | None) -> Synthesis:
    """Replies that can be rehearsed, those that were cut off, and why the others can not."""
    silent = [said for said in replies if not said.reply.text.strip()]
    looping = [said for said in replies if said not in silent and loops(said.reply.text, ended=said.reply.ended)]
    usable = [said for said in replies if said not in silent and said not in looping]
    leaks: tuple[Leak, ...] = ()
    if suite is not None:
        texts = [Passage(str(place), f"{said.prompt}\n{said.reply.text}") for place, said in enumerate(usable)]
        # Every place of an item: none may stay.
        leaks = find_leaks(suite, texts, places=max(1, len(texts)))
    with_item = {int(leak.place) for leak in leaks}
    leaking = [said for place, said in enumerate(usable) if place in with_item]
    rest = [said for place, said in enumerate(usable) if place not in with_item]
    rows = [said for said in rest if said.reply.ended]
    unended = [said for said in rest if not said.reply.ended]
    tokens = sum(said.reply.tokens for said in rows)
    notes = (f"{len(rows)} replies of {len(replies)} can be rehearsed, {tokens:,} tokens", *notes)
    for what, some in (
        ("the model replies nothing", silent),
        ("the reply repeats itself", looping),
        ("the reply did not end within its tokens", unended),
        (f"with {counted(leaks)} of the suite", leaking),
    ):
        if some:
            notes += (_left(what, [said.prompt for said in some]),)
    if not rest:
        raise DataError(f"{path}: no reply is left to rehearse; give other prompts: {'; '.join(notes)}")
    return Synthesis(tuple(said.row for said in rows), path, notes, tuple(said.row for said in unended))


def _left(why: str, prompts: Sequence[str]) -> str:
    return f"left out, {why}: {len(prompts)} prompts, the first is {shown(prompts[0][:60])}"
