"""An item's scores and replies to what stands of it in a record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from backslide.record import LEAST_LOG, Likeliest, Outcome
from backslide.scoring.execute import Score
from backslide.suite.item import AnswerItem, ChoiceItem, ContinuationItem, GenerationItem, Item, OpenItem, TextItem
from backslide.suite.lm_eval_match import right_reply
from backslide.suite.matching import matches
from backslide.suite.patterns import Unended


def outcome(
    item: Item,
    digest: str,
    scores: list[Score],
    said: Mapping[str, str],
    tokens: int = 0,
    slow: dict[str, str] | None = None,
) -> Outcome:
    """What the scores and replies of one item amount to; `tokens` is how many of them were scored.

    A reply that a pattern is not through with in its time is wrong; the pattern goes into `slow`, under the item's id.
    """
    values = tuple(score.logprob if math.isfinite(score.logprob) else None for score in scores)
    bare = blank(item, digest)
    if isinstance(item, (ChoiceItem, ContinuationItem)):
        gold = item.gold if isinstance(item, ContinuationItem) else (item.gold,)
        greedy = tuple(score.greedy for score in scores)
        finite = [value for value in values if value is not None]
        if len(finite) < len(values):
            return dataclasses.replace(bare, correct=False, scores=values, greedy=greedy)
        if isinstance(item, ContinuationItem) and item.greedy:
            right, p = any(greedy[place] for place in gold), sum(math.exp(finite[place]) for place in gold)
        else:
            best = max(finite)
            weights = [math.exp(value - best) for value in finite]
            # Ties go to the first, as numpy's argmax does in lm-eval.
            right, p = finite.index(best) in gold, sum(weights[place] for place in gold) / sum(weights)
        return dataclasses.replace(bare, correct=right, p=min(p, 1.0), scores=values, greedy=greedy)
    if isinstance(item, TextItem):
        total = sum(value for value in values if value is not None) if None not in values else None
        return dataclasses.replace(bare, scores=(total,), bytes=len(item.text.encode()))
    if isinstance(item, OpenItem) and item.judged:
        likeliest = _rounded(scores[0].likeliest) if None not in values else ()
        return dataclasses.replace(bare, scores=values, tokens=tokens, likeliest=likeliest)
    reply = said[item.id]
    correct = None
    if not isinstance(item, GenerationItem):
        reply = reply.strip()
    try:
        if isinstance(item, GenerationItem):
            correct = right_reply(reply, item)
        elif isinstance(item, AnswerItem):
            correct = matches(reply, item.answers, item.match)
    except Unended as bad:
        correct = False
        if slow is not None:
            slow[item.id] = bad.pattern
    return dataclasses.replace(bare, correct=correct, reply=reply)


def _rounded(places: Sequence[Likeliest]) -> tuple[Likeliest, ...]:
    """As a record keeps it; nothing where a number is none."""
    if any(math.isnan(log) for _, logs in places for log in logs):
        return ()
    # A model may rule a token out, which then counts as barely possible. Rounded logarithms may not pass 0 either.
    return tuple((ids, tuple(round(min(max(log, LEAST_LOG), 0.0), 4) + 0.0 for log in logs)) for ids, logs in places)


def blank(item: Item, digest: str) -> Outcome:
    """An outcome that says what was asked, and nothing yet of what came of it."""
    return Outcome(
        id=item.id, kind=item.kind, capability=item.capability, request=digest, cluster=item.cluster
    )  # fmt: skip
