"""What a repair asks of its models: the base, points on the monitor half, what is shipped on the gate half.

Each measurement keeps its outcomes pack by pack in a journal beside its record, as a guard's do: one that was killed
goes on inside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from backslide.cure.inputs import Inputs, readable
from backslide.cure.known import known
from backslide.cure.line import Line
from backslide.cure.moving import Moving
from backslide.cure.place import Place
from backslide.gate import settings_of
from backslide.guard.journal import Journal
from backslide.models import Loaded, load_model
from backslide.record import Header, Outcome, Record, pair
from backslide.scoring.engine import Scorer, Settings
from backslide.scoring.work import Progress
from backslide.suite.suite import Part


class Measuring:
    """The measurements of one repair, each taken once."""

    def __init__(
        self,
        line: Line,
        inputs: Inputs,
        place: Place,
        settings: Settings | None,
        say: Callable[[str], None],
        progress: Progress | None,
    ) -> None:
        self.line, self.inputs, self.place, self.say, self.progress = line, inputs, place, say, progress
        self._settings = settings

    def base(self) -> Record:
        """The record of the base where none was given, kept in the repair's folder."""
        path = self.place.run.baseline
        if path.is_file():
            return Record.load(path)
        loaded = load_model(self.line.base, dtype=self.inputs.dtype, say=self.say)
        scorer = Scorer(self.inputs.suite, loaded.model, loaded.tokenizer, self._settings)
        header = scorer.header(loaded.model, name=self.line.base)
        record = self._kept(scorer, loaded.model, path, header, measure=scorer.baseline, probe=True)
        says = f"measured the base on {len(record.outcomes)} items"
        self.place.run.append([{"event": "baseline", **record.header.cost, "says": says}])
        return record

    def ready(self, loaded: Loaded, baseline: Record) -> Scorer:
        """The suite made ready for the tuned model's tokenizer, under the baseline's conditions."""
        scorer = Scorer(self.inputs.suite, loaded.model, loaded.tokenizer, settings_of(baseline))
        # What does not fit is refused before minutes are spent on scoring.
        pair(baseline, scorer.unanswered(loaded.model, part="all"))
        return scorer

    def look(self, scorer: Scorer, model: Any, at: float, baseline: Record) -> Record:
        """The monitor half of a point."""
        header = scorer.header(model, part="monitor", name=f"{at:.5g} of the line")
        path, own = self.place.look(at), self.place.looks()
        seen = known([*own, *self.inputs.looks()], header, baseline, self.inputs.suite)
        if seen.record is None:
            return self._kept(scorer, model, path, header, known=seen.outcomes, replies=False)
        if all(record is not seen.record for record in own):
            seen.record.save(path)
        return seen.record

    def gate(self, scorer: Scorer, model: Any, header: Header, baseline: Record) -> Record:
        """The gate half of what is to be shipped."""
        path = self.place.run.final
        own = readable(path)
        seen = known([own] if own is not None else [], header, baseline, self.inputs.suite)
        if seen.record is not None:
            return seen.record
        probe = any(outcome.kind == "answer" and outcome.scores for outcome in baseline.outcomes)
        return self._kept(scorer, model, path, header, probe=probe)

    def tuned_gate(self, baseline: Record) -> Record:
        """What the tuned model does on the gate half, for the balance; the verdict is given, and nothing steered."""
        header = dataclasses.replace(Record.load(self.place.look(1.0)).header, part="gate", model=self.line.tuned)
        path = self.place.tuned
        seen = known(self.inputs.finals(path), header, baseline, self.inputs.suite)
        if seen.record is not None:
            seen.record.save(path)
            return seen.record
        loaded = Moving(self.line, self.place, self.inputs.dtype, self.say).at(1.0)
        scorer = self.ready(loaded, baseline)
        header = scorer.header(loaded.model, part="gate", name=self.line.tuned)
        found = self._kept(scorer, loaded.model, path, header, known=seen.outcomes, replies=False)
        says = "the tuned model on the gate half, for comparison: the verdict was given before"
        self.place.run.append([{"event": "tuned", **found.header.cost, "says": says}])
        return found

    def _kept(
        self,
        scorer: Scorer,
        model: Any,
        path: Path,
        header: Header,
        *,
        known: Mapping[str, Outcome] | None = None,
        measure: Callable[..., Record] | None = None,
        **how: Any,
    ) -> Record:
        """Measure, from where it was interrupted, and save the record at `path`."""
        journal, part = Journal(path, header, warn=self.say), cast("Part", header.part)
        try:
            # The very weights and conditions, which the journal sees to; but a chat template may tell the day.
            asked = {o.id: o.request for o in scorer.unanswered(model, part=part).outcomes}
            found = {o.id: o for o in journal.known().values() if asked.get(o.id, o.request) == o.request}
            record = (measure or scorer.measure)(
                model, part=part, known={**found, **(known or {})}, keep=journal.keep, header=header,
                progress=self.progress, **how,
            )  # fmt: skip
        finally:
            journal.close(done=False)
        record.save(path)
        journal.close(done=True)
        return record
