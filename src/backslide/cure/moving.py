"""One model in memory that stands at one point of a line after another."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from backslide.cure.line import AdapterLine, Line
from backslide.cure.place import Place
from backslide.errors import ModelError
from backslide.models import Loaded, load_model


class Moving:
    """The model in memory, at one point of the line after another; never a second one."""

    def __init__(self, line: Line, place: Place, dtype: str, say: Callable[[str], None]) -> None:
        self._line, self._place, self._dtype, self._say = line, place, dtype, say
        self._loaded: Loaded | None = None
        self._in_place: bool | None = None
        self._at: float | None = None

    def at(self, at: float) -> Loaded:
        """The model at a point; whoever keeps it must let go of it before the next point."""
        if self._loaded is not None and self._at == at:
            return self._loaded
        if self._in_place is None:
            loaded = self._load(1.0)
            self._in_place = self._line.fits(loaded.model)
            if not self._in_place:
                self._say("its parameters are laid out otherwise than in its files: each point is written and loaded")
        elif self._loaded is None or not self._in_place:
            loaded = self._load(at)
        else:
            loaded = self._loaded
        if self._at != at:
            if self._in_place:
                self._line.put(loaded.model, at)
            else:
                del loaded
                loaded = self._load(at)
        self._at = at
        return loaded

    def base(self) -> Loaded:
        """The base by its own configuration, in place of the point that was in memory."""
        self.drop()
        return load_model(self._line.base, dtype=self._dtype, say=self._say)

    def _load(self, at: float) -> Loaded:
        self.drop()
        source = self._line.folder
        if at != 1 or isinstance(self._line, AdapterLine):
            # An adapter's own folder may name a base that is elsewhere.
            source = self._place.fresh("point")
            self._line.write(source, at)
        try:
            self._loaded, self._at = load_model(source, dtype=self._dtype, say=self._say), at
        except ModelError as bad:
            # Who looks for our own folder finds it gone.
            raise ModelError(str(bad).replace(str(source), self._line.tuned)) from bad
        return self._loaded

    def drop(self) -> None:
        """Let the model go."""
        if self._loaded is None:
            return
        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
