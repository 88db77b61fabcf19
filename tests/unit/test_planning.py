"""What a suite can see: levels, and drops that are expected from a baseline."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, norm

from backslide.errors import ConfigError, MismatchError
from backslide.planning import NOISE, reach, unplanned
from backslide.record import Outcome
from backslide.stats.expected import planned_drops
from backslide.stats.power import smallest_betting_drop, smallest_drop
from backslide.suite.item import AnswerItem, ChoiceItem, ContinuationItem, OpenItem, TextItem
from backslide.suite.suite import Suite
from builders import record

CHOICES = tuple(
    ChoiceItem(id=f"c{i}", capability="choice", prompt=f"{i}?", choices=("a", "b"), gold=0) for i in range(240)
)
ANSWERS = tuple(AnswerItem(id=f"a{i}", capability="answer", prompt=f"{i}?", answers=("x",)) for i in range(120))
SUITE = Suite("s", (*CHOICES, *ANSWERS, TextItem(id="t", capability="text", text="It was a bright cold day.")))


def outcomes(p: float) -> list[Outcome]:
    scores = (math.log(p), math.log(1 - p))
    return [
        Outcome(
            id=item.id, kind="choice", capability="choice", request="r", correct=p > 0.5, p=p, scores=scores,
            greedy=(True, False),
        )
        for item in CHOICES
    ]  # fmt: skip


def test_levels_and_counts_are_those_of_a_guarded_run() -> None:
    choice, answer = reach(SUITE, looks=10, alpha=0.05, flip_rate=0.4)
    gate = {item.id for item in SUITE.part("gate")}
    assert choice.gate_items == sum(item.id in gate for item in CHOICES)
    assert choice.gate_items + choice.monitor_items == 240 and answer.gate_items + answer.monitor_items == 120
    # Two measures of the choices, the answers, the text, and all items together: five tests of a look.
    expected = smallest_drop(answer.gate_items, flip_rate=0.4, alpha=0.025 / 5)
    assert answer.gate == expected and answer.gate_soft is None and answer.spread is None
    assert answer.monitor == smallest_drop(answer.monitor_items, flip_rate=0.4, alpha=0.025 / 50)


def test_a_drop_that_large_is_proven_so_often() -> None:
    """The oracle: trinomial flips and McNemar's test, drawn at random."""
    (answer,) = reach(Suite("s", ANSWERS * 1), looks=4, power=0.8, flip_rate=0.3)
    n, drop = answer.gate_items, answer.gate
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n, [(0.3 + drop) / 2, (0.3 - drop) / 2, 0.7], size=4000)
    p = binom.sf(counts[:, 0] - 1, counts[:, 0] + counts[:, 1], 0.5)
    assert np.mean(p <= 0.025) == pytest.approx(0.8, abs=0.03)


def test_a_baseline_that_is_sure_of_its_answers_is_expected_to_flip_little() -> None:
    rows = {}
    for p in (0.55, 0.95):
        rows[p] = reach(SUITE, record(outcomes(p), suite_hash=SUITE.hash))[0]
    # Two choices: an item flips where noise moves its log-odds over 0.
    for p, row in rows.items():
        assert row.flip_rate == pytest.approx(norm.cdf(-math.log(p / (1 - p)) / NOISE))
    drops = planned_drops([0.55] * 240, shift=0.0, noise=NOISE)
    assert rows[0.55].spread == pytest.approx(drops.std())
    assert rows[0.55].gate_soft == smallest_betting_drop(drops, rows[0.55].gate_items, alpha=0.025 / 5)
    assert rows[0.95].gate_soft is not None and rows[0.55].gate_soft is not None
    assert rows[0.95].gate_soft < rows[0.55].gate_soft


def test_clusters_are_planned_with_their_sizes() -> None:
    triples = tuple(dataclasses.replace(item, cluster=f"passage {i // 3}") for i, item in enumerate(CHOICES))
    together, alone = Suite("s", triples), Suite("s", CHOICES)
    (row,) = reach(together, record(outcomes(0.55), suite_hash=together.hash))
    (single,) = reach(alone, record(outcomes(0.55), suite_hash=alone.hash))
    assert row.gate_soft is not None and single.gate_soft is not None
    # Betting on clusters of three sees less than on as many items alone, and no more than on one of each cluster.
    drops = planned_drops([0.55] * 240, shift=0.0, noise=NOISE)
    tests = 2  # one capability: accuracy and probability
    clusters = smallest_betting_drop(drops, row.gate_items // 3, alpha=0.025 / tests)
    assert 1.1 * single.gate_soft < row.gate_soft <= 1.05 * clusters
    assert row.items_for_tolerance is None and single.items_for_tolerance is not None


def test_alpha_may_go_to_one_half_alone() -> None:
    baseline = record(outcomes(0.55), suite_hash=SUITE.hash)
    halved, gated, watched = (reach(SUITE, baseline, gate_share=share)[0] for share in (0.5, 1.0, 0.0))
    assert gated.gate < halved.gate and gated.gate_soft is not None and halved.gate_soft is not None
    assert gated.gate_soft < halved.gate_soft
    assert math.isinf(gated.monitor) and gated.monitor_soft == math.inf
    assert math.isinf(watched.gate) and watched.monitor < halved.monitor and watched.items_for_tolerance is None
    with pytest.raises(ConfigError, match=r"gate_share is 1.5, a share from 0 to 1 is needed"):
        reach(SUITE, baseline, gate_share=1.5)


def test_where_expected_flips_cannot_prove_it_more_must_flip_and_all_be_lost() -> None:
    (row,) = reach(Suite("s", ANSWERS), looks=20, flip_rate=0.02)
    assert smallest_drop(row.monitor_items, flip_rate=0.02, alpha=0.025 / 20) == math.inf
    # All of the flips are losses: F ~ Bin(n, drop) must reach the fewest losses that the test rejects at.
    fewest = next(k for k in range(1, 99) if 0.5**k <= 0.025 / 20)
    assert binom.sf(fewest - 1, row.monitor_items, row.monitor) == pytest.approx(0.8, abs=0.01)


def test_what_has_no_right_answers_is_named() -> None:
    def replies(reference: str | None, count: int = 160) -> tuple[OpenItem, ...]:
        return tuple(
            OpenItem(id=f"o{i}", capability="support", prompt=f"{i}?", reference=reference) for i in range(count)
        )

    watched = Suite("s", (*SUITE.items, *replies("So.")))
    items = sum(item.kind == "open" for item in watched.part("gate"))
    texts = sum(item.kind == "text" for item in watched.part("gate"))
    assert unplanned(watched) == [
        f"text: bits per byte of {texts} gate texts; what they prove depends on how they vary",
        f"support: drift of {items} gate replies, which rule out about {7.5 / items:.2g} nats a token where there is "
        "none (7.5 / items, at α = 0.05)",
    ]
    assert [row.capability for row in reach(watched)] == ["choice", "answer"]
    # Not judged, so not planned; and nothing can be divided by no item.
    assert unplanned(Suite("s", (*ANSWERS, *replies(None)))) == []
    alone = next(item for item in replies("So.") if item not in watched.part("gate"))
    assert "drift of 0 gate replies, which rule out about nothing" in unplanned(Suite("s", (alone,)))[0]


def test_more_looks_see_less_at_each() -> None:
    few, many = (reach(SUITE, looks=looks)[0] for looks in (2, 200))
    assert few.gate == many.gate and few.monitor < many.monitor


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": 0}, "alpha is 0"), ({"alpha": 0.6}, "alpha is 0.6"), ({"power": 1.0}, "power is 1.0"),
        ({"looks": 0}, "looks is 0"), ({"tolerance": 0}, "tolerance is 0"), ({"flip_rate": 1.5}, "flip-rate is 1.5"),
        ({"alpha": math.nan}, "alpha is nan"),
    ],
)  # fmt: skip
def test_numbers_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        reach(SUITE, **options)


def test_a_baseline_of_another_suite_is_refused() -> None:
    with pytest.raises(MismatchError, match="another|measured on the suite"):
        reach(SUITE, record(outcomes(0.7)))


def test_continuations_are_planned_as_choices_are() -> None:
    """The same pairs, asked word for word: nothing else in what a suite can prove."""
    words = tuple(
        ContinuationItem(
            id=item.id, capability="choice", contexts=(item.prompt,), continuations=item.choices, gold=(0,)
        )
        for item in CHOICES
    )
    plain, other = Suite("s", CHOICES), Suite("s", words)
    assert reach(plain) == reach(other)
    assert reach(plain, record(outcomes(0.7), suite_hash=plain.hash)) == reach(
        other, record(outcomes(0.7), suite_hash=other.hash)
    )
    # One continuation, right if it is what the model would say: there is no other to compare with.
    alone = Suite("s", tuple(ContinuationItem(id=i.id, capability="choice", contexts=("p",), continuations=(" a",), gold=(0,), greedy=True) for i in CHOICES))  # fmt: skip
    single = [dataclasses.replace(o, scores=o.scores[:1], greedy=o.greedy[:1]) for o in outcomes(0.7)]
    assert reach(alone, record(single, suite_hash=alone.hash))[0].gate < 1
