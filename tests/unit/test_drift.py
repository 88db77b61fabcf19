"""Drift: by how much the base's own replies became less probable, and what a verdict says of it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from backslide.diagnosis import Losses, diagnose
from backslide.drops import DRIFT_LIMIT, kl_between, paired_drops
from backslide.errors import ConfigError, RecordError
from backslide.guard.words import seen
from backslide.judge import judge
from backslide.noise import floor, noise_between
from backslide.planning import reach
from backslide.record import Likeliest, Outcome, Record
from backslide.report.html import render
from backslide.report.markdown import write_report
from backslide.report.summary import Summary
from backslide.report.terminal import verdict_table
from backslide.rundir import RunFolder
from backslide.stats.bounded import bounded_interval, bounded_p_value
from backslide.suite.item import OpenItem
from backslide.suite.suite import Suite
from backslide.verdict import CapabilityVerdict, Level, Tolerance, Verdict, Zone
from builders import choice, choices, opened, record, referred, texts


def only(before: Any, after: Any, **more: Any) -> CapabilityVerdict:
    (row,) = judge(record(referred(before)), record(referred(after)), **more).capabilities
    return row


def drawn(n: int, drift: float, spread: float = 0.1) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(n)
    before = 0.2 + 0.2 * rng.random(n)
    return before.tolist(), (before + drift + spread * rng.standard_normal(n)).clip(0).tolist()


def test_the_bounds_are_those_of_bounded_means_in_nats() -> None:
    before, after = drawn(200, 0.4)
    row = only(before, after)
    each = np.array(after) - np.array(before)
    interval = bounded_interval(each / DRIFT_LIMIT, alpha_lower=0.05, alpha_upper=0.05)
    assert row.unit == row.decided_by == row.main.name == "drift" and row.main.exact and row.soft is None
    assert row.main.drop == pytest.approx(each.mean())
    assert row.main.lower == pytest.approx(DRIFT_LIMIT * interval.lower)
    assert row.main.upper == pytest.approx(DRIFT_LIMIT * interval.upper)
    assert row.main.p_value == pytest.approx(bounded_p_value(each / DRIFT_LIMIT))
    assert row.zone is Zone.REGRESSED and row.tolerance == 0.1 and (row.lost, row.won) == (None, None)
    assert (row.baseline, row.candidate) == (pytest.approx(np.mean(before)), pytest.approx(np.mean(after)))
    assert row.reason == (
        f"the base's own replies became less probable by {each.mean():.3f} nats a token on 200 prompts; drift from the "
        f"base is proven (at least {row.main.lower:.3f} nats a token)"
    )


def test_drift_is_clipped_so_that_no_reply_makes_the_mean() -> None:
    before, after = [0.3] * 100, [0.3] * 99 + [400.3]
    drops = paired_drops(record(referred(before)), record(referred(after)))["chat"]
    assert drops.values.tolist() == pytest.approx([0.0] * 99 + [DRIFT_LIMIT])
    assert only(before, after).main.drop == pytest.approx(DRIFT_LIMIT / 100)
    assert paired_drops(record(referred(after)), record(referred(before)))["chat"].values.min() == -DRIFT_LIMIT


def test_no_drift_on_enough_replies_is_retained_on_few_undecided() -> None:
    many, few = only(*[[0.3] * 200] * 2), only(*[[0.3] * 40] * 2)
    assert many.zone is Zone.RETAINED and many.main.drop == 0.0
    assert many.reason.endswith(
        f"a drift of more than 0.100 nats a token is ruled out (at most {many.upper:.3f} nats a token)"
    )
    assert few.zone is Zone.UNDECIDED and few.items_to_decide is not None and 40 < few.items_to_decide <= 200
    assert only(*[[0.3] * few.items_to_decide] * 2).zone is Zone.RETAINED
    assert f"about {few.items_to_decide} items like these would decide" in few.reason
    # A tolerance of the user's own.
    assert only(*[[0.3] * 40] * 2, tolerance=Tolerance(drift=0.9)).zone is Zone.RETAINED


def test_false_drift_is_as_rare_as_promised_at_the_edge() -> None:
    """Replies that drift in both directions, with no drift in the mean; then drift of the tolerance exactly."""
    rng = np.random.default_rng(5)
    alarms = passes = 0
    for _ in range(300):
        moves = rng.choice([-0.5, 0.5], size=60)
        alarms += only([1.0] * 60, (1.0 + moves).tolist()).zone is Zone.REGRESSED
        lost = np.where(rng.random(60) < 0.05, DRIFT_LIMIT, 0.0)
        passes += only([1.0] * 60, (1.0 + lost).tolist()).zone is Zone.RETAINED
    for false in (alarms, passes):
        assert binomtest(false, 300, 0.05, alternative="greater").pvalue > 1e-3


def test_only_replies_with_a_reference_are_judged() -> None:
    before, after = drawn(50, 0.5)
    old = record(referred(before), opened({"o": "yes"}))
    new = record(referred(after), opened({"o": "no"}))
    (row,) = judge(old, new).capabilities
    assert row.items == 50 and new.replies == {"o": "no"}
    verdict = judge(record(opened({"o": "yes"})), record(opened({"o": "no"})))
    assert verdict.zone is Zone.UNDECIDED and "or open items with a reference" in verdict.reasons[0]


def test_a_capability_with_answers_texts_and_replies_is_judged_in_three_rows() -> None:
    new_replies = [dataclasses.replace(o, id=f"r{i}") for i, o in enumerate(referred([0.9] * 60, "x"))]
    old_replies = [dataclasses.replace(o, id=f"r{i}") for i, o in enumerate(referred([0.3] * 60, "x"))]
    prose = [dataclasses.replace(o, id=f"t{i}") for i, o in enumerate(texts([-50.0] * 60, "x"))]
    old = record(choices([True] * 60, "x"), prose, old_replies)
    new = record(choices([True] * 60, "x"), prose, new_replies)
    verdict = judge(old, new)
    assert [(row.capability, row.unit) for row in verdict.capabilities] == [
        ("x", "accuracy"), ("x (text)", "bits per byte"), ("x (drift)", "drift"),
    ]  # fmt: skip
    # Drift is tested as one of a family: Holm's first step is at α over three tests.
    assert verdict.capabilities[2].main.alpha_lower == pytest.approx(0.05 / 3)
    assert verdict.zone is Zone.REGRESSED and verdict.reasons[0].startswith("x (drift): the base's own replies")
    assert verdict.pooled is None
    # Of a half without replies nothing is said.
    part = judge(old, record(choices([True] * 60, "x"), prose))
    assert [(row.capability, row.unit, row.zone) for row in part.capabilities][2] == (
        "x (drift)",
        "drift",
        Zone.UNDECIDED,
    )
    assert part.capabilities[2].tolerance == 0.1
    plain = record(choices([True] * 60, "x"), old_replies)
    assert judge(plain, plain, tolerance=Tolerance(accuracy=0.9, drift=0.9)).reasons == (
        "no capability lost, or drifted by, more than its tolerance (2 capabilities proven)",
    )


def test_a_likelihood_that_is_not_finite_fails_the_candidate() -> None:
    row = only([0.3] * 50, [0.3] * 49 + [None])
    assert row.zone is Zone.REGRESSED and row.reason == (
        "1 item with a log-likelihood that is not finite, such as 'chat/49'"
    )
    assert only([0.3] * 199 + [None], [0.3] * 200).zone is Zone.UNDECIDED
    assert only([None], [None]).main.drop is None


def test_clusters_are_what_is_independent() -> None:
    rng = np.random.default_rng(1)
    moves = np.repeat(rng.choice([-0.3, 0.5], size=6), 20)
    old, new = referred([1.0] * 120, cluster=20), referred((1.0 + moves).tolist(), cluster=20)
    (row,) = judge(record(old), record(new)).capabilities
    assert row.clusters == 6 and row.main.method == "betting (clusters)" and row.zone is Zone.UNDECIDED


def test_what_rounding_makes_is_no_drift() -> None:
    one, other = referred([0.30] * 400), referred([0.30 + 0.02 * (-1) ** i for i in range(400)])
    noise = noise_between(record(one), record(other))
    assert noise == {"drift": pytest.approx(0.02)}
    assert floor(noise, "drift", 400) == pytest.approx(2 * 0.02 / 20)
    barely = referred([0.3015] * 400)
    loud = judge(record(one, noise={"drift": 0.02}), record(barely), tolerance=Tolerance(drift=0.0))
    quiet = judge(record(one), record(barely), tolerance=Tolerance(drift=0.0), level=Level(fail=0.5, passing=0.05))
    assert loud.zone is Zone.UNDECIDED and quiet.capabilities[0].main.floor == 0.0
    assert "no more than rounding makes it here, and a drift up to" in loud.capabilities[0].reason


@pytest.mark.parametrize("value", [-0.1, 2.0, math.nan, "much"])
def test_a_tolerance_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="tolerance of drift is .*, nats a token from 0 to below 2 are needed"):
        Tolerance(drift=value)


def test_records_with_and_without_tokens_are_read(tmp_path: Path) -> None:
    now = record(referred([0.3, 0.5]), opened({"o": "yes"}))
    now.save(tmp_path / "now.jsonl")
    assert Record.load(tmp_path / "now.jsonl") == now
    assert [o.nats_per_token for o in now.outcomes] == [pytest.approx(0.3), pytest.approx(0.5), None]
    lines = (tmp_path / "now.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1])["tokens"] == 10 and "tokens" not in json.loads(lines[3])
    lines[1] = json.dumps({**json.loads(lines[1]), "tokens": 0})
    (tmp_path / "bad.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(RecordError, match=r"bad\.jsonl:2: tokens is 0, a positive number is needed"):
        Record.load(tmp_path / "bad.jsonl")


def test_a_verdict_on_drift_survives_json_and_its_pages_speak_of_drift(tmp_path: Path) -> None:
    before, after = drawn(80, 0.6)
    old, new = record(referred(before)), record(referred(after), part="gate")
    verdict = judge(old, new)
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    story = diagnose(Losses(((0, 3.0), (5, 1.0))), [(3, dataclasses.replace(verdict, step=3))], verdict, {})
    assert story.state == "learning and forgetting" and story.story[1:4] == (
        "The model drifted from the base while it did: its own replies are no longer what it says.",
        "Whether it became worse no item says: items with right answers would.",
        "The drift was proven at step 3, during training.",
    )
    assert story.story[4].startswith("It began to drift between step 0 and step 3")
    mixed = judge(record(referred(before), choices([True] * 80)), record(referred(after), choices([False] * 80)))
    assert any(line.startswith("The original abilities fell;") for line in diagnose(Losses(), [], mixed, {}).story)
    run = RunFolder(tmp_path / "run")
    run.begin({"model": "m", "suite": "s", "suite_hash": "h", "alpha": 0.05, "tolerance": 0.03})
    old.save(run.baseline)
    new.save(run.final)
    run.save_verdict(verdict)
    page = write_report(run).read_text(encoding="utf-8")
    row = verdict.capabilities[0]
    assert f"| chat (drift) | 80 | {row.baseline:.3f} | {row.candidate:.3f} | {row.drop:+.3f} |" in page
    assert "tolerance 0.1 nats a token" in page and "Drift is in nats a token" in page
    cells = [str(cell) for column in verdict_table(verdict).columns for cell in column.cells]
    assert f"{row.drop:+.3f}" in cells and f"{row.lower:+.3f} to {row.upper:+.3f}" in cells


def keeping(outcomes: list[Outcome], *places: Likeliest) -> list[Outcome]:
    return [dataclasses.replace(o, likeliest=places) for o in outcomes]


HALVES: Likeliest = ((3, 4), (math.log(0.5), math.log(0.25), math.log(0.25)))
MOVED: Likeliest = ((3, 5), (math.log(0.25), math.log(0.25), math.log(0.5)))
"""On token 3 alone both tell: KL ≥ ½ ln 2 + ½ ln ⅔ = ½ ln 4/3."""


def test_the_kl_stands_beside_the_drift_and_decides_nothing(tmp_path: Path) -> None:
    before, after = drawn(80, 0.6)
    old, new = keeping(referred(before), HALVES, HALVES), keeping(referred(after), MOVED, HALVES)
    assert kl_between(old[0], new[0]) == pytest.approx(math.log(4 / 3) / 4)
    # Of the items that tell, the mean.
    new[1] = dataclasses.replace(new[1], likeliest=(HALVES, HALVES))
    new[2] = dataclasses.replace(new[2], likeliest=())
    verdict, without = judge(record(old), record(new)), judge(record(referred(before)), record(referred(after)))
    (row,) = verdict.capabilities
    assert row.kl == pytest.approx(78 / 79 * math.log(4 / 3) / 4)
    assert without == dataclasses.replace(verdict, capabilities=(dataclasses.replace(row, kl=None),))
    saved = json.loads(json.dumps(verdict.to_dict()))
    assert Verdict.from_dict(saved) == verdict and saved["capabilities"][0]["kl"] == row.kl
    # Verdicts of versions that did not tell.
    del saved["capabilities"][0]["kl"]
    assert Verdict.from_dict(saved) == without
    assert seen(verdict) == f"{seen(without)}, KL to the base at least {row.kl:.3f}"
    title, shown = "KL to the base, nats a token, at least", f"{row.kl:.3f}"
    columns = {str(column.header): list(column.cells) for column in verdict_table(verdict).columns}
    assert columns[title] == [shown] and title not in [c.header for c in verdict_table(without).columns]
    for made, name in ((verdict, "with"), (without, "without")):
        run = RunFolder(tmp_path / name)
        run.begin({"model": "m", "suite": "s", "suite_hash": "h", "alpha": 0.05, "tolerance": 0.03})
        record(old).save(run.baseline)
        run.save_verdict(made)
        page, html = write_report(run).read_text(encoding="utf-8"), render(Summary.of(run))
        table = [line for line in page.splitlines() if line.startswith(("| capability", "|---|--:|", "| chat"))][:3]
        assert len({line.count("|") for line in table}) == 1
        assert (title in table[0]) is (title in html) is (made is verdict)
        if made is verdict:
            assert f" | {shown} | – | – | – | regressed |" in table[2] and f"<td>{shown}</td>" in html
            assert "it decides nothing" in page and "it decides nothing" in html


def test_likeliest_tokens_that_do_not_fit_together_have_no_kl() -> None:
    (old,) = keeping(referred([0.3]), HALVES)
    all_of_three: Likeliest = ((3, 4), (math.log(0.5), math.log(0.5)))
    for others in ((), (HALVES, HALVES), (((3,), (-0.5, -1.0)),), (all_of_three,)):
        assert kl_between(old, dataclasses.replace(old, likeliest=others)) is None
    assert kl_between(old, old) == 0.0


@pytest.mark.parametrize(
    "places",
    [
        [3], [[[1], [-1.0], []]], [[[], []]], [[[], [-1.0]]], [[[1], [-1.0, -1.0, -1.0]]], [[[1, 2], [-1.0]]],
        [[[1, 1], [-1.0, -1.0]]], [[[True], [-1.0]]], [[[-1], [-1.0]]], [[[1 << 31], [-1.0]]], [[[1.0], [-1.0]]],
        [[[1], [0.1]]], [[[1], [-1e5]]], [[[1], [None]]], [[[1], [False]]], [[[1], [-1.0]], [[1, 2], [-1.0, -2.0]]],
        [[[1], [-1.0]], [[1], [-1.0, -1.0]]], [["1", [-1.0]]],
    ],
)  # fmt: skip
def test_likeliest_tokens_that_are_malformed_are_refused(places: Any, tmp_path: Path) -> None:
    good = record(keeping(referred([0.3]), HALVES))
    good.save(tmp_path / "r.jsonl")
    assert Record.load(tmp_path / "r.jsonl") == good
    head, line = (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()
    bad = json.dumps({**json.loads(line), "likeliest": places})
    (tmp_path / "r.jsonl").write_text(f"{head}\n{bad}\n", encoding="utf-8")
    with pytest.raises(
        RecordError, match=r"r\.jsonl:2: likeliest has .* ids and their log-probabilities from -10000 to 0"
    ):
        Record.load(tmp_path / "r.jsonl")


def test_planning_counts_the_tests_of_drift() -> None:
    asked = [choice(f"c{i}") for i in range(60)]
    alone = reach(Suite("s", tuple(asked)))
    replies = [OpenItem(id=f"o{i}", capability="chat", prompt="p", reference="r") for i in range(9)]
    shown = [OpenItem(id=f"o{i}", capability="chat", prompt="p") for i in range(9)]
    assert reach(Suite("s", (*asked, *shown))) == alone
    # One test more shares the level, so a larger drop is needed.
    assert reach(Suite("s", (*asked, *replies)))[0].monitor > alone[0].monitor
