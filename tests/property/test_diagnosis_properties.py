"""What holds of every curve and every series of looks."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from backslide.diagnosis import Losses, diagnose
from backslide.diagnosis.curves import Way, converged, diverged, learned, turned_at, way
from backslide.diagnosis.knowledge import exact_interval
from backslide.diagnosis.onset import Point, change_point
from backslide.diagnosis.states import STATES
from backslide.scoring.probe import FOILS, foils
from backslide.suite.item import AnswerItem
from backslide.suite.matching import matches
from backslide.verdict import Zone, broken

values = st.floats(-50, 50) | st.sampled_from([0.0, -1.0, 2.5])
wild = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def curves(draw: st.DrawFn, elements: st.SearchStrategy[float] = values) -> tuple[tuple[int, float], ...]:
    steps = draw(st.lists(st.integers(0, 500), max_size=40, unique=True))
    return tuple((step, draw(elements)) for step in sorted(steps))


@given(curves(wild), curves(wild), curves(wild))
def test_every_curve_has_one_state(train: tuple, held: tuple, rewards: tuple) -> None:  # type: ignore[type-arg]
    for zone in Zone:
        got = diagnose(Losses(train, held, rewards), [], broken("x", zone=zone), {})
        assert got.state in STATES
        json.dumps(got.to_dict(), allow_nan=False)


@given(curves(), curves(), st.floats(0.01, 100))
def test_units_do_not_matter(train: tuple, held: tuple, scale: float) -> None:  # type: ignore[type-arg]
    # Powers of two, so that nothing is rounded.
    factor = 2.0 ** round(scale % 20)
    losses = Losses(train, held)
    other = Losses(*(tuple((s, factor * v) for s, v in points) for points in (train, held)))
    for rule in (learned, turned_at, converged, diverged):
        assert rule(losses) == rule(other)  # type: ignore[operator]


@given(curves())
def test_a_curve_upside_down_went_the_other_way(points: tuple) -> None:  # type: ignore[type-arg]
    other = way((s, -v) for s, v in points)
    assert other is {Way.FELL: Way.ROSE, Way.ROSE: Way.FELL}.get(way(points), way(points))


@given(st.permutations(list(enumerate([3.0, 2.0, 2.5, 1.0, 0.5, 0.7, 0.2]))))
def test_the_order_of_points_does_not_matter(points: list[tuple[int, float]]) -> None:
    assert way(points) is way(sorted(points))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=12, unique=True),
    st.lists(st.tuples(st.floats(-1, 1), st.floats(1e-4, 1)), min_size=12, max_size=12),
)
def test_an_onset_lies_within_its_bounds_and_the_run(steps: list[int], looks: list[tuple[float, float]]) -> None:
    got = change_point([Point(s, d, e) for s, (d, e) in zip(steps, looks, strict=False)])
    assert 0 <= got.low < got.high <= max(steps)
    assert got.after <= got.step <= got.before and got.after in {0, *steps} and got.before in steps
    assert 0 < got.probability <= 1
    # The bounds meet the two looks, unless others are nearly as likely.
    assert got.low < got.before and got.high > got.after


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_exact_interval_holds_its_share(a: int, b: int) -> None:
    hits, trials = min(a, b), max(a, b)
    low, high = exact_interval(hits, trials)
    assert 0 <= low <= (hits / trials if trials else 0.5) <= high <= 1


words = st.sampled_from(
    ["Rome", "rome.", "ROME", "Paris", "New York", "York", "12", "12.0", "1", "123", "x y", "Roman"]
)


figures = st.sampled_from(["12", "12.0", "1", "123", "1,234 km", "−5"])


@st.composite
def suites(draw: st.DrawFn) -> list[AnswerItem]:
    made = []
    for number in range(draw(st.integers(1, 10))):
        match = draw(st.sampled_from(["exact", "number", "contains", "regex"]))
        answers = draw(st.lists(figures if match == "number" else words, min_size=1, max_size=2, unique=True))
        capability = draw(st.sampled_from("ab"))
        made.append(AnswerItem(id=str(number), capability=capability, prompt="?", answers=tuple(answers), match=match))
    return made


@given(suites(), st.randoms())
def test_foils_are_other_answers_and_depend_on_nothing_but_the_suite(items: list[AnswerItem], random) -> None:  # type: ignore[no-untyped-def]
    found = foils(items)
    by_id = {item.id: item for item in items}
    for id, (own, *others) in found.items():
        item = by_id[id]
        assert own == item.answers[0] and 1 <= len(others) <= FOILS and len(set(others)) == len(others)
        same = {i.answers[0] for i in items if (i.capability, i.match) == (item.capability, item.match)}
        assert item.match != "regex" and set(others) <= same
        for other in others:
            assert not matches(other, item.answers, item.match)
            assert not any(
                a.lower().startswith(other.lower()) or other.lower().startswith(a.lower()) for a in item.answers
            )
    shuffled = list(items)
    random.shuffle(shuffled)
    assert foils(shuffled) == found
