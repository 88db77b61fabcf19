"""The orderings that the cures' table must show, on the stored results of `benchmarks/cures.py`.

*Drift* is what docs/suites.md calls so, how much less probable the base's own replies have become, in its mean over
what the base may reply: the KL to the base, on replies that it drew to questions of the repertoire (`cures_kl`), and
beside it on the repertoire's prose and on its replies to the new task. It is 0 for the base alone. *Old loss* is bits a
byte of the repertoire's prose, which the base did not write, so that it may fall below the base's. Points are compared
by their means over the seeds that all of them have. A test whose files are not there is skipped, and says which.

What did not come out so is marked, with what came out; should more runs turn it round, the mark fails (`strict`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest

plan = pytest.importorskip("cures_plan", reason="the benchmarks are not in this copy", exc_type=ImportError)
results = pytest.importorskip("cures_results", exc_type=ImportError)
table = pytest.importorskip("cures_table", exc_type=ImportError)

Found = Mapping[Any, Mapping[int, dict[str, Any]]]
FORGETS = plan.REFERENCE
KINDS = ("answers", "prose", "task")
"""Of text that drift is measured on."""


@pytest.fixture(scope="module")
def found() -> Found:
    return results.stored()


def or_skip(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except results.Missing as missing:
        pytest.skip(str(missing))


def means(found: Found, quantity: str, *points: Any) -> list[float]:
    return or_skip(results.means, found, quantity, *points)


def of_seed(found: Found, point: Any, seed: int) -> dict[str, Any]:
    if seed not in found.get(point, {}):
        pytest.skip(f"{replace(point, seed=seed).name}.json is not there; benchmarks/cures.py makes it")
    return found[point][seed]


def measured(result: dict[str, Any]) -> dict[str, Any]:
    """All that is stored of a model, in contrast to how it came about and how long that took."""
    return {name: result[name] for name in ("retention", "target", "kl_new", "moved")}


def rises(values: list[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))


def not_so(what_came_out: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=what_came_out)


# More training drifts further.


def drifts(found: Found, kind: str, *points: Any) -> list[float]:
    return or_skip(results.means, results.with_kl(found), f"kl_{kind}", *points)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_drift_rises_with_the_learning_rate(found: Found, method: str, kind: str) -> None:
    points = sorted(plan.planned(group="rate", method=method), key=lambda point: point.rate)
    assert len(points) >= 4
    values = drifts(found, kind, *points)
    assert rises([0.0, *values]), values


@pytest.mark.parametrize("kind", KINDS)
def test_drift_rises_with_the_steps(found: Found, kind: str) -> None:
    points = sorted([FORGETS, *plan.planned(group="steps")], key=lambda point: point.steps)
    assert len(points) >= 3
    values = drifts(found, kind, *points)
    assert rises([0.0, *values]), values


@pytest.mark.parametrize("measure", [
    "bits", "prose", "task", pytest.param("answers", marks=not_so("0.298, 0.597 and 0.588 after 10, 30 and 60 steps")),
])  # fmt: skip
@pytest.mark.parametrize("point", plan.ALSO_AT, ids=lambda point: f"{point.method}-{point.rate:g}")
def test_old_loss_and_drift_rise_with_the_steps_at_a_lower_rate(found: Found, point: Any, measure: str) -> None:
    by_step = results.at_steps(found, point, measure)
    if not by_step:
        pytest.skip(f"{point.name}.json has no other steps; benchmarks/cures.py again makes them")
    assert {point.steps, *plan.ALSO_AT[point]} == set(by_step)
    values = [fmean(of_seeds) for of_seeds in by_step.values()]
    assert rises(values), values


# Old loss, which may fall below the base's.


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=not_so(
    "2e-5 and 1e-4 both read prose a little better than base (1.3659): 1.3625 and 1.3615 bits; then 1.547 and 1.917"
))])  # fmt: skip
def test_old_loss_rises_with_the_learning_rate(found: Found, method: str) -> None:
    points = sorted(plan.planned(group="rate", method=method), key=lambda point: point.rate)
    assert len(points) >= 4
    values = means(found, "bits", *points)
    assert rises(values), values


@not_so("10, 30 and 60 steps: 1.455, 1.497 and 1.495 bits; of the three seeds one rises from 30 to 60 and two fall")
def test_old_loss_rises_with_the_steps(found: Found) -> None:
    points = sorted([FORGETS, *plan.planned(group="steps")], key=lambda point: point.steps)
    assert len(points) >= 3
    values = means(found, "bits", *points)
    assert rises(values), values


# Replay.


def by_share(found: Found, source: str) -> list[tuple[float, float]]:
    """Share of replay and old loss."""
    points = sorted([FORGETS, *plan.planned(group="replay", source=source)], key=lambda point: point.replay)
    assert [point.replay for point in points] == [0, 0.01, 0.05, 0.1, 0.25]
    return list(zip([point.replay for point in points], means(found, "bits", *points), strict=True))


@pytest.mark.parametrize("source", ["self", "own"])
def test_old_loss_falls_with_each_more_of_replay(found: Found, source: str) -> None:
    values = [bits for _, bits in by_share(found, source)]
    assert rises(values[::-1]), values


@pytest.mark.parametrize("source", ["self", "own"])
def test_the_first_point_of_replay_takes_back_most(found: Found, source: str) -> None:
    line = by_share(found, source)
    slopes = [(before - after) / (more - less) for (less, before), (more, after) in itertools.pairwise(line)]
    assert slopes[0] > max(slopes[1:]), slopes


# The line of repair.


@pytest.mark.parametrize("seed", [0, 1])
def test_its_start_is_the_base(found: Found, seed: int) -> None:
    start = of_seed(found, plan.Run(group="repair", alpha=0.0), seed)
    for one in start["retention"].values():
        assert one["after"] == one["before"] and one["lost"] == one["won"] == 0
        assert len(set(one.get("bits", [0]))) == 1
    assert start["target"]["after"] == start["target"]["before"]
    assert start["kl_new"] == start["moved"] == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_its_end_is_the_tuned_model(found: Found, seed: int) -> None:
    end = of_seed(found, plan.Run(group="repair", alpha=1.0), seed)
    assert measured(end) == measured(of_seed(found, FORGETS, seed))


# Others.


@pytest.mark.parametrize("rate", [1e-4, 5e-4])
def test_at_an_equal_rate_lora_drifts_less_and_learns_less_than_all_weights(found: Found, rate: float) -> None:
    pair = [plan.Run(group="rate", method=method, rate=rate) for method in ("lora", "full")]
    assert rises(means(found, "bits", *pair))
    assert all(rises(drifts(found, kind, *pair)) for kind in KINDS)
    assert rises(means(found, "gain", *pair))


@pytest.mark.parametrize("lost", ["drop", "rise"])
def test_kl_on_the_new_task_foretells_forgetting_better_than_the_distance_of_the_weights(
    found: Found, lost: str
) -> None:
    """On the base's own replies to it, by rank correlation over all runs that it was measured of.

    `drop` is of accuracy on the repertoire, `rise` of the old loss.
    """
    foretell(results.with_kl(found), "kl_task", lost)


@pytest.mark.parametrize("lost", [
    pytest.param("drop", marks=not_so("over 80 runs: 0.47 for KL, 0.58 for the distance")),
    # Nearly a tie: 0.75 and 0.74 over 80 runs.
    "rise",
])  # fmt: skip
def test_so_does_the_kl_on_the_task_s_own_dialogues(found: Found, lost: str) -> None:
    foretell(found, "kl", lost)


def foretell(found: Found, kind: str, lost: str) -> None:
    runs = [result for _, result in results.distinct(found)]
    if len(runs) < 20:
        pytest.skip(f"{len(runs)} runs are there; benchmarks/cures.py makes more")
    kl, moved = (results.rank_correlation(runs, name, lost) for name in (kind, "moved"))
    assert kl > moved, (kl, moved)


def test_items_are_lost_and_won_where_the_mean_hardly_moves(found: Found) -> None:
    """In every run whose accuracy is within a point of base's, but for the base itself."""
    near = [
        (replace(point, seed=result["seed"]).name, result["retention"]["repertoire"])
        for point, result in results.distinct(found)
        if abs(results.QUANTITIES["drop"](result)) <= 0.01
    ]
    if not near:
        pytest.skip("no run is there whose accuracy is within a point of base's")
    assert all(one["lost"] > 0 and one["won"] > 0 for _, one in near), near


@pytest.mark.parametrize("seed", [0, 1])
def test_a_guard_that_warns_leaves_the_run_as_it_is(found: Found, seed: int) -> None:
    rate = plan.planned(group="guard", policy="warn")[0].rate
    warned = of_seed(found, plan.planned(group="guard", policy="warn")[0], seed)
    assert measured(warned) == measured(of_seed(found, replace(FORGETS, rate=rate), seed))


# What is stored and what is told.


def test_each_file_has_the_name_of_its_run(found: Found) -> None:
    names = {replace(point, seed=seed).name for point, by_seed in found.items() for seed in by_seed}
    assert names == {path.stem for path in plan.RESULTS.glob("*.json")}


def test_the_page_and_the_plot_tell_what_is_stored(found: Found) -> None:
    if not found:
        pytest.skip(f"no results are in {plan.RESULTS}; benchmarks/cures.py makes them")
    page = table.PAGE.read_text(encoding="utf-8")
    between = page[page.index(table.BEGIN) + len(table.BEGIN) : page.index(table.END)]
    assert between.strip() == table.section(found), "run benchmarks/cures.py table"
    assert table.PLOT.read_text(encoding="utf-8") == table.plot(found), "run benchmarks/cures.py table"
