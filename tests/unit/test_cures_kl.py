"""How far a run went from its base, as the cures' table measures it; on tiny models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backslide.scoring.requests import ask
from backslide.suite.item import Item, OpenItem, TextItem
from backslide.testing import tiny_model, tiny_tokenizer

plan = pytest.importorskip("cures_plan", reason="the benchmarks are not in this copy", exc_type=ImportError)
kl = pytest.importorskip("cures_kl", exc_type=ImportError)

TEXT = TextItem(id="t", capability="prose", text="A long way off the dog barked twice — é.")
REPLY = OpenItem(id="r", capability="answers", prompt="What is 2+2?", reference="It is 4, I think.")


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> Any:
    items: list[tuple[str, Item]] = [("prose", TEXT), ("answers", REPLY)]
    base, found = tiny_model(seed=0), []
    for kind, item in items:
        size = len(TEXT.text.encode()) if item is TEXT else 0
        for request in ask([item], tiny_tokenizer(), chat=True, max_length=256).requests:
            found.append((kind, size, request, kl.distributions(base, request)))
    monkeypatch.setattr(kl, "old", lambda data: found)
    return found


def test_the_kl_is_the_whole_one_in_nats_a_token_and_the_bits_are_those_of_a_record(old: Any) -> None:
    from torch.nn.functional import kl_div, log_softmax

    from backslide.scoring.engine import Scorer
    from backslide.suite.suite import Suite

    model = tiny_model(seed=1)
    found = kl.divergences(Path(), model)
    for kind, _, request, before in old:
        now = log_softmax(kl.distributions(model, request), -1)
        expected = kl_div(now, log_softmax(before, -1), reduction="sum", log_target=True) / len(request.targets)
        assert math.isclose(found["kl"][kind], float(expected), rel_tol=1e-4) and expected > 0.1
        assert found["tokens"][kind] == len(request.targets)
    (text,) = Scorer(Suite("s", (TEXT,)), model, tiny_tokenizer()).measure(model, part="all").outcomes
    assert text.bits_per_byte == pytest.approx(found["bits"], rel=1e-4)


def test_the_base_is_at_no_distance_from_itself_and_is_left_as_it_was(old: Any) -> None:
    import torch

    model = tiny_model(seed=0).to(torch.bfloat16)
    assert kl.divergences(Path(), tiny_model(seed=0))["kl"] == {"prose": 0.0, "answers": 0.0}
    assert 0 < kl.divergences(Path(), model)["kl"]["prose"] < 1e-3, "rounding to half precision"
    assert model.dtype is torch.bfloat16


def test_a_stored_run_is_made_again_once_and_steps_are_places_of_one_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = pytest.importorskip("cures_again", exc_type=ImportError)
    monkeypatch.setattr(again, "RESULTS", tmp_path)
    forgets = plan.Run(group="rate", **plan.FORGETS, seed=1)
    line = [plan.Run(group="repair", alpha=alpha, seed=1) for alpha in (0.0, 0.5, 1.0)]
    stored = [forgets, plan.Run(group="steps", steps=60, seed=1), *line, plan.Run(group="anchor", anchor=1.0)]
    for run in stored:
        (tmp_path / f"{run.name}.json").write_text(json.dumps({"seed": run.seed}))
    names = [[run.name for run in own] for own in again.missing(("",)).values()]
    # The ends of the line are the base and the run itself.
    assert names == [["rate-lora-0.002-1", "steps-60-1", "repair-0.5-1"], ["anchor-1-0"]]
    assert [own[0].name for own in again.missing(("anchor", "rate")).values()] == ["anchor-1-0", forgets.name]
    again.add(forgets, {"target": 1.0, "kl": {"prose": 0.5}})
    kept = json.loads((tmp_path / f"{forgets.name}.json").read_text())
    assert kept == {"seed": 1, "again": {"target": 1.0, "kl": {"prose": 0.5}}}, "beside what was stored"
    assert replace(forgets, group="steps", steps=60) in again.missing(("",))[replace(forgets, group="", steps=0)]
    assert forgets not in again.missing(("",))[replace(forgets, group="", steps=0)]


def test_a_training_is_measured_at_its_runs_steps_and_at_the_further_ones_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = pytest.importorskip("cures_again", exc_type=ImportError)
    point = next(iter(plan.ALSO_AT))
    asked: list[Any] = []

    class Trainer:
        processing_class = None

        def add_callback(self, callback: Any) -> None:
            self.callback = callback

        def train(self) -> None:
            model = tiny_model()
            for step in range(1, asked[0].steps + 1):
                model.train()
                self.callback.on_step_end(None, SimpleNamespace(global_step=step), None, model=model)
                assert model.training, "as it was found"

    def state(data: Path, model: Any, tokenizer: Any) -> dict[str, Any]:
        assert not model.training
        return {"target": 1.0, "kl": {"prose": 0.5}}

    monkeypatch.setattr(again, "RESULTS", tmp_path)
    monkeypatch.setattr(again, "cured", lambda data, folder, run: (asked.append(run) or Trainer(), None))
    monkeypatch.setattr(again, "state", state)
    (tmp_path / f"{point.name}.json").write_text(json.dumps({"seed": 0}))
    (training,) = again.missing(("",)).values()
    again.again(Path(), training, bf16="in fp32")
    assert asked[0].steps == max(plan.ALSO_AT[point])
    one = {"target": 1.0, "kl": {"prose": 0.5}, "bf16": "in fp32"}
    stored = json.loads((tmp_path / f"{point.name}.json").read_text())
    assert stored["again"] == {**one, "at": {str(step): one for step in plan.ALSO_AT[point]}}
    assert not again.missing(("",)), "nothing is lacking any more"
