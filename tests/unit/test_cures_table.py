"""How the cures' results become points, a table and a plot; on made-up results."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

plan = pytest.importorskip("cures_plan", reason="the benchmarks are not in this copy", exc_type=ImportError)
results = pytest.importorskip("cures_results", exc_type=ImportError)
findings = pytest.importorskip("cures_findings", exc_type=ImportError)
table = pytest.importorskip("cures_table", exc_type=ImportError)

FORGETS = plan.REFERENCE


def made_up(run: Any, *, target: float = 1.0, lost: int = 30, bits: float = 1.5, kl: float = 2.0) -> dict[str, Any]:
    one = {"items": 100, "before": 0.6, "after": 0.6 - (lost - 10) / 100, "lost": lost, "won": 10}
    return {
        **asdict(run), "retention": {"repertoire": {**one, "bits": [1.3, bits]}, "arc_easy": one, "piqa": one},
        "target": {"before": 4.0, "after": target}, "kl_new": kl, "moved": kl / 100, "seconds": 100.0,
    }  # fmt: skip


def test_results_are_read_by_point_and_seed(tmp_path: Path) -> None:
    runs = [plan.Run(group="replay", replay=0.01, seed=1), replace(FORGETS, seed=1), FORGETS]
    for run in runs:
        (tmp_path / f"{run.name}.json").write_text(json.dumps(made_up(run)))
    found = results.stored(tmp_path)
    assert list(found) == [FORGETS, plan.Run(group="replay", replay=0.01)], "in the plan's order"
    assert list(found[FORGETS]) == [0, 1]


def test_points_are_compared_over_the_seeds_that_they_share() -> None:
    other = plan.Run(group="replay", replay=0.01)
    found = {
        FORGETS: {0: made_up(FORGETS, target=1.0), 1: made_up(FORGETS, target=2.0), 2: made_up(FORGETS, target=9.0)},
        other: {0: made_up(other, target=3.0), 1: made_up(other, target=4.0)},
    }
    assert results.means(found, "target", FORGETS, other) == [1.5, 3.5]
    with pytest.raises(results.Missing, match=r"replay-self-0\.25-0\.json"):
        results.means(found, "target", FORGETS, plan.Run(group="replay", replay=0.25))
    del found[other][0], found[FORGETS][1]
    with pytest.raises(results.Missing, match="no seed in common"):
        results.means(found, "target", FORGETS, other)


def test_the_interval_over_seeds_is_students() -> None:
    values = [1.0, 1.4, 1.1]
    got = results.over_seeds(values)
    low, high = scipy.stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=scipy.stats.sem(values))
    assert math.isclose(got.low, low) and math.isclose(got.high, high)
    assert results.over_seeds([1.0]) == results.Estimate(1.0, None, None), "one seed has no interval"


def test_the_interval_of_an_accuracy_is_base_s_less_the_mean_bounds_of_the_drop() -> None:
    from backslide.stats.paired import hard_interval

    both = [made_up(FORGETS, lost=30), made_up(FORGETS, lost=20)]
    bounds = [hard_interval(100, lost, 10, alpha_lower=0.025, alpha_upper=0.025) for lost in (30, 20)]
    got = results.kept(both, "repertoire")
    assert math.isclose(got.mean, 0.45)
    assert math.isclose(got.low, 0.6 - (bounds[0].upper + bounds[1].upper) / 2)
    assert math.isclose(got.high, 0.6 - (bounds[0].lower + bounds[1].lower) / 2)
    same = results.kept([both[0]] * 3, "repertoire"), results.kept([both[0]], "repertoire")
    assert math.isclose(same[0].low, same[1].low), "seeds that do the same tell nothing more"


def test_every_run_counts_once() -> None:
    points = [FORGETS, *plan.planned(group="repair"), *plan.planned(group="guard")]
    found = {point: {0: made_up(point), 1: made_up(point)} for point in points}
    counted = [point for point, _ in results.distinct(found)]
    assert len(counted) == 2 * (1 + 9 + 2)


def test_a_rank_correlation_by_hand() -> None:
    rows = [made_up(FORGETS, kl=kl, bits=bits) for kl, bits in ((1.0, 1.5), (2.0, 1.4), (3.0, 1.6))]
    assert math.isclose(results.rank_correlation(rows, "kl", "bits"), 0.5)
    with pytest.raises(results.Missing, match="too few"):
        results.rank_correlation(rows[:2], "kl", "bits")


def rates(**losses: list[float]) -> dict[Any, dict[int, dict[str, Any]]]:
    found = {}
    for method, targets in losses.items():
        points = sorted(plan.planned(group="rate", method=method), key=lambda point: point.rate)
        for place, (point, target) in enumerate(zip(points, targets, strict=True), 1):
            found[point] = {0: made_up(point, target=target, kl=float(place), lost=10 + place, bits=1.3 + place / 10)}
    return found


def test_a_method_is_read_off_between_its_rates() -> None:
    curve = results.curves(rates(lora=[3.0, 2.0, 1.0, 1.5], full=[3.5, 2.5, 0.5, 0.4]))["lora"]
    assert curve.rows[0] == {"target": 4.0, "rise": 0.0, "drop": 0.0, "kl": 0.0}, "it starts at the base"
    assert curve.at(2.5, "kl") == 1.5 and curve.at(3.5, "kl") == 0.5 and curve.at(1.0, "kl") == 3.0
    assert curve.at(0.9, "kl") is None and curve.at(4.1, "kl") is None, "nothing is said beyond what was measured"
    assert len(curve.down) == 4, "the highest rate learnt less"


def test_lora_and_all_weights_at_equal_loss() -> None:
    lines = findings.at_equal_loss(rates(lora=[3.0, 2.0, 1.0, 1.5], full=[3.5, 2.5, 0.5, 0.4]))
    assert "| all weights at 0.0001 | 2.500 | +0.150 | +0.200 | +1.5 | +2.0 | 1.500 | 2.000 |" in lines
    assert len([line for line in lines if line.startswith("| LoRA at")]) == 3, "not the rate that learnt less"
    assert not [line for line in lines if "at 0.001 " in line], "LoRA has no rate that learnt as much"


def test_what_a_cure_gives_back() -> None:
    cured = plan.Run(group="replay", replay=0.01)
    found = {FORGETS: {0: made_up(FORGETS)}, cured: {0: made_up(cured, target=1.6, lost=15, bits=1.35)}}
    assert "| Replay of own replies 1% | 1 | 75% | 75% | 80% |" in findings.given_back(found)


def test_the_drift_is_told_of_what_it_was_measured_of_in_a_first_training_or_a_second() -> None:
    def kl(by: float) -> dict[str, Any]:
        return {"kl": {"prose": by, "answers": 2 * by, "task": 3 * by}}

    other, neither = plan.Run(group="steps", steps=60), plan.Run(group="steps", steps=10)
    runs = [made_up(FORGETS, lost=20 + n, bits=1.4 + n / 10, kl=1.0 + n) for n in range(5)]
    found = {
        FORGETS: {0: runs[0] | kl(0.1), 1: runs[1] | {"again": kl(0.3)}, 2: runs[2]},
        other: {1: runs[3] | {"again": kl(0.4)}},
        neither: {0: runs[4]},
    }
    half = scipy.stats.t.ppf(0.975, 1) * 0.1
    lines = findings.drift(found)
    where = "Steps, LoRA r = 16 at 0.002"
    assert f"| {where}: 30 | 2 | 0.200 ± {half:.3f} | 0.400 ± {2 * half:.3f} | 0.600 ± {3 * half:.3f} |" in lines
    assert f"| {where}: 60 | 1 | 0.400 | 0.800 | 1.200 |" in lines
    assert not [line for line in lines if f"{where}: 10" in line], "nothing was measured of it"
    measured = results.with_kl(found)
    assert results.means(measured, "kl_answers", FORGETS, other) == [0.6, 0.8], "over the seed that both have"
    # Told of all five runs, and again of the three that the KL was measured of.
    numbers = [line.split(" | ")[1] for line in findings.foretold(found) if line.startswith("| all |")]
    assert numbers == ["5", "3"] and findings.drift({neither: found[neither]}) == []


def test_auto_is_held_against_the_best_state_that_was_not_lost() -> None:
    warn, auto = (plan.planned(group="guard", policy=policy)[0] for policy in ("warn", "auto"))
    looks = [("retained", 3.0), ("undecided", 2.0), ("regressed", 1.0)]
    states = [{"step": step, "zone": zone, "loss": loss} for step, (zone, loss) in enumerate(looks, 1)]
    found = {
        warn: {seed: made_up(warn) | {"verdict": "regressed", "checkpoints": states[seed:]} for seed in (0, 1, 2)},
        auto: {seed: made_up(auto, target=2.5) | {"verdict": "undecided", "checkpoints": None} for seed in (0, 1)},
    }
    lines = findings.auto_against_checkpoints(found)
    assert "| 0 | undecided | 1.500 | 1.000 (step 1), 150% | 2.000 (step 2), 75% |" in lines
    assert lines[-1] == "| 1 | undecided | 1.500 | none | 2.000 (step 2), 75% |", "and no seed that only one has"


def test_every_planned_point_is_in_the_table_and_the_reference_wherever_it_belongs() -> None:
    found = {
        point: {0: made_up(point, lost=20 + place, bits=1.4 + place / 100, kl=1.0 + place)}
        for place, point in enumerate(plan.planned())
    }
    for point in plan.planned(group="guard"):
        found[point][0] |= {"verdict": "retained", "checkpoints": []}
    text = table.section(found)
    for heading in plan.headings():
        assert f"**{heading.title}**" in text
    # 36 points; the reference again under rank, steps, both kinds of replay, anchor and repair, another with the guard.
    assert text.count("| 1 | 1.000 | ") == len(found) + 7
    assert "| `auto` | 1 | " in text and text.count("| retained 1 |") == 3
    plot = table.plot(found)
    assert plot.count("<polyline") == 8 and "guard, rollback" in plot


def test_only_what_stands_between_the_marks_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, plot = tmp_path / "cures.md", tmp_path / "cures.svg"
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(table, "PLOT", plot)
    monkeypatch.setattr(table, "stored", lambda: {FORGETS: {0: made_up(FORGETS)}})
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    said = table.publish()
    assert page.read_text() == f"before\n{table.BEGIN}\n\n{said}\n\n{table.END}\nafter\n"
    assert plot.read_text().startswith("<svg")
    once = page.read_text()
    assert table.publish() == said and page.read_text() == once
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match="once each"):
        table.publish()
    monkeypatch.setattr(table, "stored", lambda: {})
    with pytest.raises(SystemExit, match="no results yet"):
        table.publish()
