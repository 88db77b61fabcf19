"""The cures that a configuration asks for, on the trainer of `backslide tune`: replay, the anchor, and their data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backslide.config import SELF, TuneConfig
from backslide.cure.anchor import Anchor
from backslide.cure.prompts import prompts_of
from backslide.cure.replay import Replay
from backslide.cure.synthesis import Synthesis, synthesise
from backslide.data import TrainingData
from backslide.errors import ConfigError
from backslide.lock import first_process
from backslide.models import Loaded
from backslide.scoring.ranks import Ranks
from backslide.scoring.work import Progress
from backslide.suite.suite import Suite

REPLIES = "replies.jsonl"
"""The base's own replies, in the run's folder; with `cure.prompts` their number, or a digest, is in the name."""

LONGEST = 128
"""Tokens of a reply: most that end at all end within them, and twice as many take twice the time."""

ANCHORED = 512
"""Tokens of an anchor's row at most: the pull towards the base is learnt from short texts as well."""


class Cures:
    """Replay and anchor of one run, made before the guard and attached once there is a trainer.

    Data of a file are read at once, so that what is wrong with them is said before a model is loaded; the base's own
    replies are made when the base is there. Of several processes the first makes them, and speaks for all.

    Args:
        config: of the run.
        suite: rows that hold an item of it are left out.
        say: told what the user should know.
        progress: called while the base replies.

    Raises:
        InputError: the data of the cures cannot be read.
    """

    def __init__(
        self, config: TuneConfig, suite: Suite, say: Callable[[str], None], progress: Progress | None = None
    ) -> None:
        self._config, self._suite, self._progress = config, suite, progress
        self._say = say = say if first_process() else lambda _: None
        cure = config.cure
        self.replays = cure.replay > 0 or config.on_regression in ("replay", "auto")
        self.anchors = cure.anchor > 0 or config.on_regression == "auto"
        self._replay: Replay | None = None
        self._anchor: Anchor | None = None
        used = self.replays or self.anchors
        # What is wrong with a file is said before a model is loaded, and of one that no cure needs as well.
        if cure.data != SELF:
            if used:
                self._make(cure.data, cure.data)
            else:
                TrainingData.load(cure.data)
                say("cure.data is not used: no cure of this run needs data; set cure.replay or cure.anchor")
        elif cure.prompts is not None:
            prompts_of(cure.prompts)
            if not used:
                say("cure.prompts is not used: no cure of this run needs replies of the base")

    @property
    def more_replay(self) -> Callable[[], str] | None:
        """For `Guard(replay=…)`."""
        return self._more_replay if self.replays else None

    @property
    def more_anchor(self) -> Callable[[], str] | None:
        """For `Guard(anchor=…)`."""
        return self._more_anchor if self.anchors else None

    def attach(self, trainer: Any, loaded: Loaded, *, resumed: bool = False) -> None:
        """Add them to the trainer, whose model has not been trained yet.

        Args:
            trainer: of the run.
            loaded: the base.
            resumed: whether the training goes on from a checkpoint, whose weights are loaded later.

        Raises:
            InputError: the data leave nothing to practise, or trainer and cures do not fit.
        """
        if not (self.replays or self.anchors):
            return
        if self._config.cure.data == SELF:
            self._of_the_base(trainer.model, loaded.tokenizer)
        if self._replay is not None:
            self._replay.attach(trainer)
        if self._anchor is not None:
            self._anchor.attach(trainer)
            if resumed:
                # The cache that had it may have been cleared since, and after this the base is gone.
                self._anchor.keep_base()

    def _of_the_base(self, model: Any, tokenizer: Any) -> None:
        """Make them of the base's own replies."""
        cure = self._config.cure

        def make(alive: Callable[[], None]) -> Synthesis:
            def progress(what: str, done: int, total: int) -> None:
                alive()
                if self._progress is not None:
                    self._progress(what, done, total)

            return synthesise(
                model, tokenizer, prompts=cure.prompts, out=self._file(), suite=self._suite, max_new_tokens=LONGEST,
                progress=progress,
            )  # fmt: skip

        made = Ranks.here().of_first(make)
        for note in made.notes:
            self._say(f"the base's own replies: {note}")
        if not made.rows and (cure.replay > 0 or self._config.on_regression == "replay"):
            raise ConfigError(
                f"{made.path}: none of the base's replies ended within {LONGEST} tokens, so there is nothing to "
                "replay; ask more with cure.prompts, or name a file of original-domain data as cure.data"
            )
        # What was cut off is no example to learn from, and for the base's opinion of it as good as any.
        self._make(list(made.rows), [*made.rows, *made.unended])

    def _file(self) -> Path:
        """Where the replies are: other prompts have another file, so that a run can be begun anew with them."""
        folder, prompts = Path(self._config.folder), self._config.cure.prompts
        if prompts is None:
            return folder / REPLIES
        name = f"{prompts}" if isinstance(prompts, int) else hashlib.sha256(Path(prompts).read_bytes()).hexdigest()[:8]
        return folder / f"{Path(REPLIES).stem}-{name}.jsonl"

    def _make(self, old: Any, anchored: Any) -> None:
        cure, train = self._config.cure, self._config.train
        if self.replays and old:
            self._replay = Replay(old, cure.replay, seed=train.seed, suite=self._suite, say=self._say)
        if self.anchors:
            self._anchor = Anchor(
                anchored, cure.anchor, batch_size=min(4, train.batch_size), seed=train.seed,
                max_length=min(ANCHORED, max(train.max_length, 2)), suite=self._suite, say=self._say,
                progress=self._progress,
            )  # fmt: skip

    def _more_replay(self) -> str:
        if self._replay is None:
            raise ConfigError("there is nothing to replay: none of the base's replies came to an end")
        return self._replay.more()

    def _more_anchor(self) -> str:
        assert self._anchor is not None
        return self._anchor.more()
