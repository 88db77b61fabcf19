"""The search along a line: against trying every step, on curves of the assumed shapes and on others."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backslide.cure.search import FLIPS, GRID, Keeping, search
from backslide.errors import ConfigError
from backslide.judge import judge
from backslide.verdict import Level, Tolerance
from builders import flipped, opened, record, texts


class Asked:
    """Curves that note what was asked of them."""

    def __init__(self, kept: Callable[[int], bool], loss: Callable[[int], float]) -> None:
        self.looks: list[int] = []
        self.losses: list[int] = []
        self._kept, self._loss = kept, loss

    def look(self, step: int) -> bool:
        self.looks.append(step)
        return self._kept(step)

    def loss(self, step: int) -> float:
        self.losses.append(step)
        return self._loss(step)


@given(edge=st.integers(0, GRID), lowest=st.integers(0, GRID), rise=st.floats(0.1, 5))
def test_on_curves_of_the_assumed_shapes_it_finds_what_trying_all_finds(edge: int, lowest: int, rise: float) -> None:
    asked = Asked(lambda s: s <= edge, lambda s: (lowest - s) * 1.0 if s < lowest else (s - lowest) * rise)
    found = search(asked.look, asked.loss)
    better = [s for s in range(1, edge + 1) if asked._loss(s) < asked._loss(0)]
    assert found.chosen == min(better, key=lambda s: (asked._loss(s), s), default=None)
    assert len(asked.looks) == len(set(asked.looks)) <= 7, "the tuned model, the lowest, five halvings"
    assert len(set(asked.losses)) <= 16


@given(kept=st.lists(st.booleans(), min_size=GRID + 1, max_size=GRID + 1),
       loss=st.lists(st.floats(0, 9) | st.just(math.inf), min_size=GRID + 1, max_size=GRID + 1))  # fmt: skip
def test_on_any_curves_what_is_taken_kept_the_abilities_and_is_better_than_the_base(
    kept: list[bool], loss: list[float]
) -> None:
    asked = Asked(kept.__getitem__, loss.__getitem__)
    found = search(asked.look, asked.loss)
    if found.chosen is not None:
        assert kept[found.chosen] and found.chosen in asked.looks and loss[found.chosen] < loss[0]


@pytest.mark.parametrize("edge", [0, 1, 2, 15, 16, 17, 31, 32])
def test_without_a_loss_it_takes_the_farthest_that_keeps(edge: int) -> None:
    asked = Asked(lambda s: s <= edge, lambda s: 0.0)
    found = search(asked.look, None)
    assert found.chosen == (edge or None) and not asked.losses
    assert asked.looks[0] == GRID and len(asked.looks) <= 6


def test_where_nothing_is_better_than_the_base_it_says_so() -> None:
    asked = Asked(lambda s: True, lambda s: s * 1.0)
    assert "no point of the line is better" in search(asked.look, asked.loss).reason
    assert "keeps the abilities" in search(lambda s: False, None).reason
    # Better only beyond what keeps.
    late = search(lambda s: s <= 4, lambda s: 1.0 if s <= 4 else 0.9 - s / 100)
    assert late.chosen is None and "better on held-out data" in late.reason


def keeping(n: int, **accepted: float) -> Keeping:
    old = record(flipped(n, 0, 0)[0])
    return Keeping.of(judge(old, old), Tolerance(**accepted), Level())


def kept(n: int, lost: int, won: int) -> bool:
    old, new = flipped(n, lost, won)
    return keeping(n).kept(judge(record(old), record(new)))


def test_with_many_items_the_bound_is_held_to_the_tolerance() -> None:
    assert keeping(2400).note is None
    assert kept(2400, 100, 80), "0.8 points, at most 1.8"
    assert not kept(2400, 120, 60), "2.5 points, and that is proven"
    assert keeping(500).note is None
    assert not kept(500, 16, 8), "1.6 points and no proof, but it may be more than 3"


def test_with_few_items_the_mean_is_and_it_is_said() -> None:
    note = keeping(200).note
    assert note is not None and "math" in note and f"{FLIPS:.0%}" in note
    assert kept(200, 8, 2), "3 points"
    assert not kept(200, 9, 2), "3.5 points"
    assert not kept(200, 7, 0), "3.5 points, and proven"


def test_a_proven_loss_in_one_capability_is_not_kept_whatever_the_rest_won() -> None:
    (lost, gone), (worse, better) = flipped(100, 20, 0, "a"), flipped(100, 0, 20, "b")
    verdict = judge(record(lost, worse), record(gone, better))
    same = record(lost, worse)
    rule = Keeping.of(judge(same, same), Tolerance(), Level())
    assert verdict.pooled is not None and verdict.pooled.drop == 0 and not rule.kept(verdict)


def test_of_texts_alone_the_rise_is_what_counts() -> None:
    old = record(texts([-100.0] * 60))
    rule = Keeping.of(judge(old, old), Tolerance(), Level())
    assert rule.kept(judge(old, record(texts([-101.0] * 60))))
    assert not rule.kept(judge(old, record(texts([-103.0] * 60))))


def test_a_suite_that_judges_nothing_is_refused() -> None:
    talk = record(opened({"talk/1": "Yes."}))
    with pytest.raises(ConfigError, match="no item with a verdict"):
        Keeping.of(judge(talk, talk), Tolerance(), Level())
