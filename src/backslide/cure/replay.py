"""Replay: original-domain data mixed into the training data, by a ratio of tokens that can change during the run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from backslide.cure.fit import check_replayed, check_row, longest, suites_of
from backslide.cure.mixing import MEND, Mix, Stream, check_ratio, raised
from backslide.cure.old_rows import TOKENS, OldRows, Prepared, like, prepare, tokens_of, unlearn
from backslide.errors import ConfigError, DataError, shown
from backslide.files import read_json, write_json
from backslide.suite.suite import Suite

SCHEMA = 1
"""Version of the state in a checkpoint."""
LOGGED = "backslide/replay_share"
"""The share of old tokens so far, in the trainer's log."""
logger = logging.getLogger("backslide")


class Replay:
    """Original-domain data that is mixed into a trainer's own, so that what the model could do is practised along.

    Old rows are added to the batches: steps, schedule and the order of the new data stay as they are, and a run takes
    1/(1 − ratio) times its tokens. `attach(trainer)`, after the trainer is made, is all. A run that is resumed from a
    checkpoint makes the same batches as one that was never interrupted.

    Args:
        source: the old data: rows (`text`, `prompt` and `completion`, `messages`, or `input_ids` with or without
            `labels`), a JSON Lines file of such, or a `datasets.Dataset`; of any of these formats, whatever that of
            the new data is.
        ratio: old tokens as a share of all, in [0, most]. All tokens of a row count, learnt or not, padding does not.
        seed: of the order of the old rows.
        most: what the ratio can be raised to, below 1.
        suite: rows that hold a copy of an item of it are left out. Those of the suite of a `Guard` of the same trainer
            are left out in any case.
        max_length: tokens at which old texts are cut for a bare `Trainer`, default: at the longest of its new rows.
            `SFTTrainer` cuts them as its own.
        say: told what is left out. Default: the logger `backslide`, as warnings.

    Raises:
        InputError: the old data or an argument is wrong.
    """

    def __init__(
        self,
        source: Any,
        ratio: float = 0.05,
        *,
        seed: int = 0,
        most: float = 0.5,
        suite: Suite | None = None,
        max_length: int | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._begun_with = check_ratio(ratio, most)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigError(f"replay: seed is {shown(seed)}, a whole number of at least 0 is needed")
        self._seed, self._most, self._suite, self._max_length = seed, float(most), suite, max_length
        self._say = say or functools.partial(logger.warning, "backslide: %s")
        self._old = OldRows.read(source, self._say)
        self._searched: set[str] = set()
        if suite is not None and self._old.format != TOKENS:
            self._leave_out(suite)
        self._mix = Mix.begin(self._begun_with)
        self._mixer: _Mixer | None = None

    @property
    def ratio(self) -> float:
        """Share of old tokens that is aimed at now."""
        return self._mix.ratio

    @property
    def share(self) -> float:
        """Share of old tokens so far, of this process."""
        return self._mix.share

    @property
    def pieces(self) -> tuple[tuple[int, float], ...]:
        """Each ratio of this run, with the first batch (from 0) that it held for."""
        return self._mix.pieces

    def more(self) -> str:
        """Raise the ratio by a step (1, 5, 10, 25, 50%, up to `most`) from the next batch on; what was done, in words.

        To be given to `Guard(replay=…)`.
        """
        before, after = self.ratio, raised(self.ratio, self._most)
        self.set_ratio(after)
        if after == before:
            return f"old data stay at {before:.3g} of the tokens, which is the most"
        return f"old data from {before:.3g} to {after:.3g} of the tokens"

    def set_ratio(self, ratio: float) -> None:
        """Mix by another ratio from the next batch on. Raises `ConfigError` for one that is out of [0, most]."""
        ratio = check_ratio(ratio, self._most)
        if self._mixer is None or not self._mixer.training:
            self._begun_with = ratio
        self._mix = self._mix.at(ratio)

    def attach(self, trainer: Trainer) -> Replay:
        """Mix into what `trainer` trains on, from its next `train()` on. Its evaluation stays as it is.

        Raises:
            InputError: the trainer's batches are not rows of tokens that old rows can be added to.
        """
        check_replayed(trainer)
        if self._mixer is not None:
            raise ConfigError("replay: is attached to a trainer already; make another Replay for this one")
        self.without_items(trainer)
        self._mixer = _Mixer(self, trainer, self.prepared(trainer, self._say))
        return self

    # For the mixer, which calls these in order: without_items, begin, then advance for each batch.

    def without_items(self, trainer: Any) -> bool:
        """Leave out rows that hold an item of the given suite or of a guard's of the trainer; whether there were any.

        Raises `InputError` where none is left.
        """
        before = self._old
        for suite in (*([self._suite] if self._suite is not None else []), *suites_of(trainer)):
            tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
            if tokenizer is None and self._old.format == TOKENS:
                raise ConfigError("replay: old rows of tokens are compared with the suite as text, for which the "
                                  "trainer needs a processing_class")  # fmt: skip
            self._leave_out(suite, tokenizer)
        return self._old is not before

    def _leave_out(self, suite: Suite, tokenizer: Any = None) -> None:
        if suite.hash not in self._searched:
            self._old = self._old.without(suite, self._say, tokenizer)
            self._searched.add(suite.hash)

    def prepared(self, trainer: Any, say: Callable[[str], None]) -> Prepared:
        """The old rows as the trainer's collator takes them."""
        return prepare(self._old, trainer, max_length=self._max_length or longest(trainer), say=say)

    def begin(self, saved: Mapping[str, Any] | None, place: str) -> None:
        """Stand before the first batch, or where the run that is resumed stood."""
        if saved is None:
            self._mix = Mix.begin(self._begun_with)
            return
        self._mix = Mix.from_dict(saved.get("mix", {}), place)
        # Not the first piece: what was asked for when the checkpoint was made may have been another ratio already.
        if (asked := saved.get("asked")) != self._begun_with:
            self._say(
                f"replay: the run was begun with ratio {asked} and is resumed with {self._begun_with:g}, which holds "
                "from here on"
            )
            self._mix = self._mix.at(self._begun_with)

    def advance(self, new: int, length: Callable[[int], int]) -> range:
        """Count a batch of `new` tokens; which places of the stream are added to it."""
        before, self._mix = self._mix, self._mix.after(new, length)
        return range(before.rows, self._mix.rows)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, apart from the old rows."""
        return {"schema": SCHEMA, "seed": self._seed, "asked": self._begun_with, "mix": self._mix.to_dict()}


class _Rows:
    """The rows of a batch on their way from the loader, to be collated together with old ones.

    Neither a sequence nor a mapping, so that nothing on the way pins, moves, slices or measures what is in it.
    """

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows


class _Mixer:
    """What is changed on one trainer: the loader hands out rows, which are mixed and collated where they are used.

    The collation moves from the loader's workers to the training loop, since only there is it known, whatever the
    workers, the prefetching and the skipping are, which batch of the run this is, how many tokens were given before,
    and which ratio holds now.
    """

    def __init__(self, replay: Replay, trainer: Any, prepared: Prepared) -> None:
        self._replay, self._trainer, self._prepared = replay, trainer, prepared
        self.training = False
        self._checkpoint: Path | None = None
        self._trial: Any = None
        self._collate: Callable[[list[Any]], Any] = list
        self._loader: Any = None
        self._wanted: set[str] | None = None
        self._world, self._rank = trainer.args.world_size, trainer.args.process_index
        self._stream = self._streamed()
        self._told = False
        trainer._backslide_replay = replay
        # On this very trainer, not on its class: others of the process stay as they are.
        for name in ("train", "get_train_dataloader", "get_batch_samples", "log"):
            setattr(trainer, name, functools.partial(getattr(self, f"_{name}"), getattr(trainer, name)))
        trainer.add_callback(_Events(self))

    # In place of methods of the trainer, whose own is the first argument.

    def _train(self, train: Callable[..., Any], resume_from_checkpoint: Any = None, *more: Any, **options: Any) -> Any:
        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(self._trainer.args.output_dir)
        self._checkpoint = Path(found) if found else None
        self._trial = more[0] if more else options.get("trial")
        try:
            return train(resume_from_checkpoint, *more, **options)
        finally:
            self.end()

    def _get_train_dataloader(self, make: Callable[[], Any]) -> Any:
        trainer = self._trainer
        config = getattr(trainer.accelerator, "dataloader_config", None)
        stream = isinstance(trainer.train_dataset, torch.utils.data.IterableDataset)
        if config is None or not stream or config.dispatch_batches is False:
            return make()
        # Accelerate lets the main process read a stream for all and cut up its tensors. With one process that is of no
        # use, and rows are no tensors; `_check` has seen to it that there is one.
        before, config.dispatch_batches = config.dispatch_batches, False
        try:
            return make()
        finally:
            config.dispatch_batches = before

    def _get_batch_samples(self, draw: Callable[..., Any], batches: Iterator[Any], *more: Any, **options: Any) -> Any:
        return draw(map(self._mixed, batches), *more, **options)

    def _log(self, log: Callable[..., None], logs: dict[str, float], *more: Any, **options: Any) -> None:
        if "loss" in logs:
            logs[LOGGED] = self._replay.share
        log(logs, *more, **options)

    # Events of the training.

    def begin(self, state: Any, loader: Any) -> None:
        """Take the rows from the loader that the training is about to use, and the state from where it is resumed."""
        self.end()
        # A guard may have been added since.
        if self._replay.without_items(self._trainer):
            self._prepared = self._replay.prepared(self._trainer, lambda _: None)
            self._stream = self._streamed()
        self._replay.begin(self._saved(state), str(self._place(self._checkpoint)))
        self._loader = getattr(loader, "base_dataloader", loader)
        self._collate = self._loader.collate_fn
        self._wanted = set(columns) if (columns := getattr(self._collate, "signature_columns", None)) else None
        # What accelerate copies when it skips the batches that a resumed run has seen.
        self._loader.collate_fn = _Rows
        self.training = True

    @property
    def ratio(self) -> float:
        """Share of old tokens that is aimed at now."""
        return self._replay.ratio

    def end(self) -> None:
        """Give the loader its collator back."""
        if self._loader is not None:
            self._loader.collate_fn = self._collate
        self._loader, self.training = None, False

    def save(self, step: int) -> None:
        """Write the state beside the trainer's own."""
        args = self._trainer.args
        folder = args.output_dir if self._trial is None else self._trainer._get_output_dir(trial=self._trial)
        checkpoint = Path(folder) / f"checkpoint-{step}"
        if checkpoint.is_dir():
            more = {"rows": self._prepared.fingerprint, "world": self._world, "step": step}
            try:
                write_json(self._place(checkpoint), {**self._replay.state(), **more})
            except OSError as bad:
                why = bad.strerror or bad
                self._replay._say(
                    f"replay: {checkpoint}: its state cannot be written ({why}); do not resume from there"
                )

    def _place(self, checkpoint: Path | None) -> Path:
        name = "replay.json" if self._world == 1 else f"replay-{self._rank}.json"
        return (checkpoint or Path()) / name

    def _saved(self, state: Any) -> Mapping[str, Any] | None:
        if self._checkpoint is None or state.global_step == 0:
            return None
        place = self._place(self._checkpoint)
        other = sorted(self._checkpoint.glob("replay*.json"))
        if not place.is_file():
            if other:
                raise DataError(
                    f"{other[0]}: was saved by another number of processes than the {self._world} of now; "
                    "resume with as many"
                )
            if any(LOGGED in entry for entry in state.log_history):
                raise DataError(f"{place}: no such file, though the run was with replay; resume from an earlier one")
            self._replay._say(f"replay: {self._checkpoint} was saved without replay, which begins here")
            return None
        saved = read_json(place, DataError)
        if not isinstance(saved, dict) or saved.get("schema") != SCHEMA:
            raise DataError(f"{place}: not a state of replay of version {SCHEMA}: {shown(saved)}; {MEND}")
        now = {"rows": self._prepared.fingerprint, "seed": self._replay.state()["seed"], "world": self._world}
        means = {"rows": "old rows", "seed": "seed", "world": "number of processes"}
        for key, value in now.items():
            if saved.get(key) != value:
                was, is_now = str(saved.get(key))[:12], str(value)[:12]
                raise DataError(
                    f"{place}: the {means[key]} of the run that is resumed were others ({was}, now {is_now}); give the "
                    "same, in the same order and tokenised alike, or begin anew"
                )
        return saved

    # The mixing itself.

    def _streamed(self) -> Stream:
        seed = self._replay.state()["seed"]
        return Stream(len(self._prepared.rows), seed, world=self._world, rank=self._rank)

    def _mixed(self, batch: Any) -> Any:
        if not isinstance(batch, _Rows):
            return batch
        new, prepared, stream = batch.rows, self._prepared, self._stream
        for row in new:
            check_row(row)
        places = self._replay.advance(
            sum(map(tokens_of, new)), lambda place: int(prepared.lengths[stream.index(place)])
        )  # fmt: skip
        chosen = [prepared.rows[stream.index(place)] for place in places]
        old = [like(row, new[0], self._wanted) for row in chosen]
        try:
            made = self._collate([*new, *old])
        except (KeyError, ValueError, TypeError, RuntimeError) as bad:
            if not old:
                raise
            why = " ".join(str(bad).split())[:300]
            raise DataError(
                f"replay: the trainer's collator takes no batch of new and old rows: {type(bad).__name__}: {why}; "
                "use one that pads, or give old rows of the same length and columns"
            ) from bad
        # New rows without labels: the collator makes them, of every token of a row.
        if old and "labels" not in old[0] and not unlearn(made, chosen) and not self._told:
            self._told = True
            self._replay._say(
                "replay: the collator makes labels of its own in which old rows are not found again, so that the "
                "prompts of old pairs may be learnt too; give the new rows labels (of all tokens: a copy of input_ids)"
            )
        return send_to_device(made, self._trainer.accelerator.device)


class _Events(TrainerCallback):  # type: ignore[misc]
    """Tells the mixer what the training does."""

    def __init__(self, mixer: _Mixer) -> None:
        self._mixer = mixer

    @property
    def backslide_setup(self) -> dict[str, float]:
        """For `guard.setup.setup_of_callbacks`."""
        return {"replay": self._mixer.ratio}

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        self._mixer.begin(state, train_dataloader)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._mixer.save(state.global_step)
