"""Model × suite → Record. Reads top to bottom: how one model state is measured.

items ─ requests.ask ─► token requests ─ plan.plan ─► packed rows ─ execute.execute ─► log-likelihoods ─┐
                   └──► prompts ─ generate.generate ─► replies ─ suite.matching ──────────────────────────┴► outcomes
      └ probe.foils ──► hidden choices behind the answers, where asked for ───────────────────────────────┘
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers

from backslide.errors import ModelError, SuiteError
from backslide.models import model_fingerprint, tokenizer_fingerprint
from backslide.noise import noise_between
from backslide.record import Header, Outcome, Record
from backslide.scoring.execute import Score
from backslide.scoring.forward import is_exact, uncompiled
from backslide.scoring.outcomes import blank, outcome
from backslide.scoring.probe import foils, probe, probed
from backslide.scoring.ranks import Ranks
from backslide.scoring.requests import Asked, ask
from backslide.scoring.runner import Pack, Runner, default_batch
from backslide.scoring.session import session
from backslide.scoring.work import Keep, Progress, Work, together
from backslide.suite.item import Item
from backslide.suite.patterns import slow_note
from backslide.suite.suite import Part, Suite
from backslide.version import __version__


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a suite is asked; equal for all records that are compared."""

    chat: bool | None = None
    """Ask through the chat template; None: where the tokenizer has one."""
    max_length: int | None = None
    """The most tokens of a request; None: what the model takes."""
    row_tokens: int = 256
    """Tokens in a packed row."""
    batch_tokens: int | None = None
    """Tokens in a forward pass, padding included; None: 1024 on a CPU, whose caches like it small, else 16384."""
    max_new_tokens: int = 48
    """Length of a reply."""

    def __post_init__(self) -> None:
        for name in ("max_length", "row_tokens", "batch_tokens", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ModelError(f"{name} is {value!r}, a whole number from 1 is needed")


class Scorer:
    """A suite made ready for one model and tokenizer, to be measured as often as wanted.

    The requests are written down and packed once for each half of the suite and replayed at every look, so an item
    is always scored in the same company: base against base gives a difference of exactly zero.

    Raises `ModelError` when the tokenizer cannot do what the settings ask, or the model has learnt prompts (PEFT).
    """

    def __init__(self, suite: Suite, model: Any, tokenizer: Any, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        self.suite = suite
        self.tokenizer = tokenizer
        self._notes: tuple[str, ...] = ()
        for adapter in (getattr(model, "peft_config", None) or {}).values():
            if adapter.is_prompt_learning:
                # Virtual tokens stand in front of every row, so log-likelihoods would be read at other places.
                kind = getattr(adapter.peft_type, "value", adapter.peft_type)
                raise ModelError(f"the model has an adapter of type {kind}, which cannot be scored; use LoRA")
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if settings.chat and not has_template:
            raise ModelError("the tokenizer has no chat template; leave --chat (chat=True) out, or set one")
        chat = has_template if settings.chat is None else settings.chat
        framed = any(item.kind in ("choice", "answer", "open") for item in suite.items)
        if not has_template and framed:
            self._notes += ("the tokenizer has no chat template: items are asked as 'Question: … Answer:'",)
        limit = _max_length(model, tokenizer)
        self.settings = dataclasses.replace(
            settings,
            chat=chat,
            max_length=min(settings.max_length or limit, limit),
            batch_tokens=(batch := settings.batch_tokens or default_batch(model)),
        )
        self.runner = Runner(tokenizer, row_tokens=settings.row_tokens, batch_tokens=batch)
        self._slow: dict[str, str] = {}
        """Patterns that were ended, by item."""
        self.seconds: dict[frozenset[str], float] = {}
        """What each pack took when it was last measured here."""
        self._asked: dict[str, Asked] = {}
        self._foils: dict[str, tuple[str, ...]] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing of how the suite is asked: fallbacks, sizes that did not fit."""
        return self._notes + slow_note(self._slow) + self.runner.notes

    def measure(
        self,
        model: Any,
        *,
        part: Part = "all",
        adapters: bool = True,
        replies: bool = True,
        only: Collection[str] | None = None,
        probe: bool = False,
        known: Mapping[str, Outcome] | None = None,
        keep: Keep | None = None,
        ranks: Ranks | None = None,
        header: Header | None = None,
        name: str = "",
        step: int | None = None,
        progress: Progress | None = None,
    ) -> Record:
        """Measure what `model` does on the suite, or on one half of it.

        Args:
            model: a Hugging Face causal language model; it is left exactly as found.
            part: which half; `all` measures the halves one after the other, each in its own packing.
            adapters: False measures the base under a PEFT model.
            replies: also take the replies to `open` items without a reference, all of them whatever the part.
            only: ids of items; of the part only the packs that hold one of them are measured, each as a whole, so
                that every item has the very scores that it has when all are measured (see `packs`).
            probe: also score the accepted answer of each `answer` item beside others (see `backslide.scoring.probe`);
                nothing that is judged depends on it, unless a score is not finite. Not together with `only`.
            known: outcomes that an interrupted measurement of the same weights has found already; they are taken over.
            keep: told the outcomes of each pack as soon as they are found, so that an interruption loses none.
            ranks: the processes that measure the same model at this moment; each scores its share, all get the record.
                None: this process alone measures everything, whatever others do.
            header: of these weights, part and step, where it was made already: reading all weights takes time.
            name: the model's name, for people.
            step: optimizer steps so far, for the header.
            progress: see `Progress`.
        """
        begin = time.perf_counter()
        model = uncompiled(model)
        ranks = ranks or Ranks()
        groups: list[tuple[str, tuple[Item, ...], Collection[str] | None]] = []
        for half in ("monitor", "gate") if part == "all" else (part,):
            # An open item without a reference has nothing to be judged by: it neither steers nor judges, in no half.
            groups.append((f"{half} half", tuple(item for item in self.suite.part(half) if item.judged), only))
        if replies:
            groups.append(("open questions", tuple(item for item in self.suite.items if not item.judged), None))
        work = Work(dict(known or {}), keep or (lambda _: None), progress)
        with session(model, self.tokenizer, adapters=adapters):
            header = header or self.header(model, part=part, adapters=adapters, name=name, step=step)
            with together(ranks, work):
                for group, items, chosen in groups:
                    if items:
                        self._group(model, group, items, chosen, ranks, work)
                if probe and only is None:
                    self._probe(model, work)
        outcomes, tokens = list(work.outcomes.values()), work.tokens
        self.seconds |= work.seconds
        if not outcomes:
            raise SuiteError(f"suite {self.suite.name}: its {part} half has no item; add items, or use --part all")
        order = {item.id: place for place, item in enumerate(self.suite.items)}
        cost = {"seconds": round(time.perf_counter() - begin, 3), "tokens": tokens}
        header = dataclasses.replace(header, cost=cost, notes=self.notes)
        return Record(header, tuple(sorted(outcomes, key=lambda outcome: order[outcome.id])))

    def baseline(self, model: Any, *, part: Part = "all", adapters: bool = True, **more: Any) -> Record:
        """Measure `model` as `measure` does, and in half precision the noise floor too (see `backslide.noise`).

        For that the half of the record (of all, the monitor half) is scored again in batches half as large, without
        the replies to `open` items, which decide nothing. In fp32 batches differ by less than anything that counts.
        """
        record = self.measure(model, part=part, adapters=adapters, **more)
        half: Part = "gate" if part == "gate" else "monitor"
        if is_exact(model) or not any(item.judged for item in self.suite.part(half)):
            return record
        sizes = {name: -(-record.header.conditions[name] // 2) for name in ("row_tokens", "batch_tokens")}
        other = Scorer(self.suite, model, self.tokenizer, dataclasses.replace(self.settings, **sizes))
        other.runner.layout = self.runner.layout
        other.runner.prompts = -(-self.runner.prompts // 2)
        shared = {name: more[name] for name in ("ranks", "progress") if name in more}
        again = other.measure(model, part=half, adapters=adapters, replies=False, **shared)
        cost = {name: value + again.header.cost[name] for name, value in record.header.cost.items()}
        header = dataclasses.replace(record.header, noise=noise_between(record, again), cost=cost)
        return dataclasses.replace(record, header=header)

    def header(
        self, model: Any, *, part: Part = "all", adapters: bool = True, name: str = "", step: int | None = None
    ) -> Header:
        """The header that a record of `model` would have: what must be equal for two records to be compared."""
        return Header(
            suite=self.suite.name,
            suite_hash=self.suite.hash,
            part=part,
            model=name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
            model_fingerprint=model_fingerprint(model, adapters=adapters),
            tokenizer_fingerprint=self._tokenizer_fingerprint,
            conditions=self._conditions(model),
            step=step,
            versions=versions(),
            notes=self.notes,
        )

    def unanswered(self, model: Any, *, part: Part = "all", adapters: bool = True) -> Record:
        """A record that says what would be asked, without outcomes: pairing it tells early whether a baseline fits."""
        blanks = []
        for half in ("monitor", "gate") if part == "all" else (part,):
            items = tuple(item for item in self.suite.part(half) if item.judged)
            asked = self._ask(f"{half} half", items)
            blanks += [blank(item, asked.digests[item.id]) for item in items]
        return Record(self.header(model, part=part, adapters=adapters), tuple(blanks))

    @cached_property
    def _tokenizer_fingerprint(self) -> str:
        return tokenizer_fingerprint(self.tokenizer)

    def prepare(self) -> None:
        """Write down now all that will be asked: a chat template may depend on the day."""
        for half in ("monitor", "gate"):
            self._ask(f"{half} half", tuple(item for item in self.suite.part(half) if item.judged))
        self._ask("open questions", tuple(item for item in self.suite.items if not item.judged))

    def packs(self, model: Any, part: Part) -> list[Pack]:
        """The packs of a half: what can be looked at by itself. An item is in one pack."""
        asked = self._ask(f"{part} half", tuple(item for item in self.suite.part(part) if item.judged))
        model = uncompiled(model)
        with session(model, self.tokenizer):
            return self.runner.packs(model, asked.requests, asked.prompts, name=f"{part} half")

    def _group(
        self, model: Any, name: str, items: tuple[Item, ...], only: Collection[str] | None, ranks: Ranks, work: Work
    ) -> None:
        asked = self._ask(name, items)
        packs = self.runner.packs(model, asked.requests, asked.prompts, name=name)
        if only is not None:
            packs = [pack for pack in packs if not pack.items.isdisjoint(only)]
        # What is known is dealt out as well, so that all processes deal alike.
        mine = [packs[place] for place in ranks.mine([pack.tokens for pack in packs])]
        for pack in mine:
            if pack.items <= work.known.keys():
                work.take(pack.items)
        todo = {item for pack in mine for item in pack.items if not pack.items <= work.known.keys()}
        by_id = {item.id: item for item in items}
        advance = work.begin(
            name, sum(r.item in todo for r in asked.requests) + sum(p.item in todo for p in asked.prompts)
        )

        def scored(pack: frozenset[str], scores: Mapping[int, Score]) -> None:
            of: dict[str, list[Score]] = {id: [] for id in pack}
            lengths = dict.fromkeys(pack, 0)
            for place in sorted(scores):
                of[asked.requests[place].item].append(scores[place])
                lengths[asked.requests[place].item] += len(asked.requests[place].targets)
            work.done([outcome(by_id[id], asked.digests[id], of[id], {}, lengths[id]) for id in sorted(pack)])

        work.tokens += self.runner.score(
            model, asked.requests, name=name, only=todo, progress=advance, finished=scored
        )[1]
        prompts = {prompt.item: prompt for prompt in asked.prompts}
        limit = self.settings.max_new_tokens
        for pack in mine:
            if pack.items <= todo and pack.items <= prompts.keys():
                ids = sorted(pack.items)
                replies = self.runner.reply(
                    model,
                    [prompts[id] for id in ids],
                    # A pack has one.
                    max_new_tokens=prompts[ids[0]].limit or limit,
                    progress=advance,
                )
                said = dict(zip(ids, (reply.text for reply in replies), strict=True))
                work.done([outcome(by_id[id], asked.digests[id], [], said, slow=self._slow) for id in ids])

    def _probe(self, model: Any, work: Work) -> None:
        """Probe the answers that this process has found."""
        if self._foils is None:
            self._foils = foils(self.suite.items)
        found = [o for o in work.outcomes.values() if o.kind == "answer" and not o.scores]
        items = [item for item in self.suite.items if item.id in {o.id for o in found}]
        chat, limit = self.settings.chat, self.settings.max_length
        assert chat is not None and limit is not None
        scores, tokens = probe(
            self.runner, model, items, self._foils, chat=chat, max_length=limit, name="answers", progress=work.progress
        )
        work.tokens += tokens
        work.outcomes |= {o.id: o for o in probed(found, scores)}

    def _ask(self, name: str, items: tuple[Item, ...]) -> Asked:
        if name not in self._asked:
            settings = self.settings
            assert settings.chat is not None and settings.max_length is not None
            self._asked[name] = ask(
                items,
                self.tokenizer,
                chat=settings.chat,
                max_length=settings.max_length,
                max_new_tokens=settings.max_new_tokens,
            )
            self._notes += tuple(note for note in self._asked[name].notes if note not in self._notes)
        return self._asked[name]

    def _conditions(self, model: Any) -> dict[str, Any]:
        parameter = next(p for p in model.parameters() if p.dtype.is_floating_point)
        device = parameter.device.type
        autocast = torch.is_autocast_enabled(device)
        return {
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "autocast": str(torch.get_autocast_dtype(device)).removeprefix("torch.") if autocast else None,
            "device": device,
            **dataclasses.asdict(self.settings),
        }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "backslide": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _max_length(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    limit = int(tokenizer.model_max_length)
    # Tokenizers without a limit say 10^30.
    return limit if limit < 10**9 else 2048
