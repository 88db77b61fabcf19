"""Mixing, for whatever lengths, ratios and interruptions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backslide.cure.mixing import LADDER, Mix, Stream, check_ratio, raised
from backslide.errors import ConfigError, DataError

ratios = st.floats(0, 0.9)
sizes = st.lists(st.integers(1, 900), min_size=1, max_size=20)
batches = st.lists(st.tuples(st.integers(0, 3000), st.none() | ratios), min_size=1, max_size=40)
"""New tokens of each batch, and the ratio that is set before it, if any."""


def run(mix: Mix, rows: list[int], given: list[tuple[int, float | None]]) -> list[Mix]:
    made = []
    for new, ratio in given:
        mix = (mix if ratio is None else mix.at(ratio)).after(new, lambda place: rows[place % len(rows)])
        made.append(mix)
    return made


@given(ratios, sizes, batches)
def test_old_tokens_are_within_half_a_row_of_what_is_due_after_every_batch(
    ratio: float, rows: list[int], given: list[tuple[int, float | None]]
) -> None:
    due, now, new = 0.0, ratio, 0
    for mix, (size, change) in zip(run(Mix.begin(ratio), rows, given), given, strict=True):
        now = now if change is None else change
        due, new = due + size * now / (1 - now), new + size
        assert mix.due == pytest.approx(due) and mix.new == new
        assert abs(mix.old - due) <= max(rows) / 2 + 1e-6 * (1 + due)
        assert mix.old == sum(rows[place % len(rows)] for place in range(mix.rows))


@given(ratios, sizes, batches, st.data())
def test_a_mix_that_was_saved_goes_on_as_if_it_had_not_been(
    ratio: float, rows: list[int], given: list[tuple[int, float | None]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(given)))
    whole = run(Mix.begin(ratio), rows, given)
    first = run(Mix.begin(ratio), rows, given[:cut])
    saved = (first[-1] if first else Mix.begin(ratio)).to_dict()
    again = Mix.from_dict(json.loads(json.dumps(saved)), "here")
    assert [*first, *run(again, rows, given[cut:])] == whole


@given(sizes, st.lists(st.integers(0, 3000), max_size=20))
def test_nothing_is_added_at_ratio_0(rows: list[int], given: list[int]) -> None:
    made = run(Mix.begin(0.0), rows, [(new, None) for new in given])
    assert all(mix.rows == mix.old == 0 and mix.share == 0 for mix in made)
    # Nor after a ratio was lowered to 0: what was due has been given.
    made = run(Mix.begin(0.3), rows, [(500, None), (0, 0.0), *[(new, None) for new in given]])
    assert made[-1].rows == made[0].rows


@given(ratios, batches)
def test_pieces_tell_the_ratio_of_every_batch(ratio: float, given: list[tuple[int, float | None]]) -> None:
    last = run(Mix.begin(ratio), [10], given)[-1]
    now, told = ratio, dict(last.pieces)
    for number, (_, change) in enumerate(given):
        now = now if change is None else change
        assert told[max(first for first in told if first <= number)] == now
    assert [first for first, _ in last.pieces] == sorted(told)


@given(st.integers(1, 60), st.integers(0, 5), st.integers(1, 4))
def test_each_pass_gives_each_row_once_over_all_processes(size: int, seed: int, world: int) -> None:
    streams = [Stream(size, seed, world=world, rank=rank) for rank in range(world)]
    # As many rounds as make whole passes.
    given = [streams[rank].index(place) for place in range(3 * size) for rank in range(world)]
    passes = [given[first : first + size] for first in range(0, len(given), size)]
    assert all(sorted(one) == list(range(size)) for one in passes)
    assert [Stream(size, seed).index(place) for place in range(size)] == passes[0]


def test_passes_and_seeds_differ_and_a_stream_can_be_asked_in_any_order() -> None:
    stream = Stream(50, 1)
    forth = [stream.index(place) for place in range(150)]
    assert [stream.index(place) for place in reversed(range(150))] == forth[::-1]
    assert len({tuple(forth[:50]), tuple(forth[50:100]), tuple(forth[100:])}) == 3
    assert [Stream(50, 2).index(place) for place in range(50)] != forth[:50]


def test_the_ladder() -> None:
    steps = [0.0]
    while (step := raised(steps[-1], 0.3)) != steps[-1]:
        steps.append(step)
    assert steps == [0.0, 0.01, 0.05, 0.1, 0.25, 0.3] and raised(0.07, 0.9) == 0.1
    assert raised(LADDER[-1], 0.9) == 0.9


@pytest.mark.parametrize(
    ("ratio", "most", "message"),
    [
        (-0.1, 0.5, r"replay: ratio is -0\.1, a share of at least 0 and at most 0\.5 \(most\) is needed"),
        (0.6, 0.5, "ratio is 0.6"), (float("nan"), 0.5, "ratio is nan"), (True, 0.5, "ratio is True"),
        ("5%", 0.5, "ratio is '5%'"), (0.5, 1.0, r"most is 1\.0, a share of at least 0 and below 1"), (5, 50, "most is 50"),
    ],
)  # fmt: skip
def test_what_is_no_ratio(ratio: float, most: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_ratio(ratio, most)


@pytest.mark.parametrize("change", [{"ratio": 1.0}, {"rows": -1}, {"due": None}, {"pieces": []}, {"due": float("inf")}])
def test_what_is_no_state(change: dict[str, object]) -> None:
    saved = {**Mix.begin(0.1).to_dict(), **change}
    with pytest.raises(DataError, match="there: not a state of replay"):
        Mix.from_dict(saved, "there")
