"""A tuned model whose configuration computes otherwise than its base's: the point 0 is then not the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backslide.cure.line import open_line
from backslide.cure.place import RECORDS
from backslide.cure.repair import repair
from backslide.cure.target import TargetLoss
from backslide.data import TrainingData
from backslide.files import write_lines
from backslide.gate import take_baseline
from backslide.models import load_model
from backslide.rundir import RunFolder
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from backslide_models import other_model
from repair_models import TEXTS, WIDE, saved, trained

THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}


def with_entries(model: Any, entries: dict[str, Any]) -> Any:
    """`model`, made anew by a configuration with other entries."""
    config = type(model.config)(**{**model.config.to_dict(), **entries})
    other = type(model)(config)
    other.load_state_dict(model.state_dict())
    return other.eval()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (THETA, "rope_parameters.rope_theta is 100.0, and 10000.0 in BASE"),
        ({"rms_norm_eps": 0.5}, "rms_norm_eps is 0.5, and 1e-06 in BASE"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and 'silu' in BASE"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
         "rope_parameters.factor is 2.0, and None in BASE"),
    ],
)  # fmt: skip
def test_another_computation_is_found_and_the_start_is_not_the_base(
    tmp_path: Path, entries: dict[str, Any], said: str
) -> None:
    base = saved(tiny_model(), tmp_path / "base")
    tuned = saved(with_entries(tiny_model(), entries), tmp_path / "tuned")
    line = open_line(base, tuned)
    assert said.replace("BASE", base) in line.differences and not line.exact_start
    # It is what is written: the base's weights compute something else there.
    line.write(tmp_path / "0", 0)
    tokens = torch.arange(5, 200)[None]
    with torch.no_grad():
        start, own = (load_model(f, dtype="float32").model(input_ids=tokens).logits for f in (tmp_path / "0", base))
    assert not torch.allclose(start, own, atol=1e-3) or "dynamic" in str(entries)


def test_entries_that_change_nothing_that_is_computed_do_not_count(tmp_path: Path) -> None:
    base = saved(tiny_model(), tmp_path / "base")
    entries = {"use_cache": False, "attention_dropout": 0.1, "max_position_embeddings": 1024, "initializer_range": 0.02,
               "pad_token_id": 2, "bos_token_id": 3, "eos_token_id": [0, 4], "some_tools_version": "2026.1"}  # fmt: skip
    tuned = with_entries(tiny_model(), entries)
    line = open_line(base, saved(tuned.bfloat16().float(), tmp_path / "tuned"))
    assert line.differences == () and line.exact_start
    # Learnt positions have a row each, and a model without rotations may go by their number.
    mamba = saved(other_model("mamba"), tmp_path / "mamba")
    assert open_line(mamba, mamba).exact_start


def test_what_is_called_the_base_is_the_base(tmp_path: Path, known_suite: Suite) -> None:
    choices = Suite("choices", tuple(i for i in known_suite.items if i.kind == "choice"))
    base = saved(tiny_model(), tmp_path / "base")
    other = saved(tiny_model(seed=7), tmp_path / "other")
    tuned = saved(trained(with_entries(tiny_model(), THETA), steps=3), tmp_path / "tuned")
    held = tmp_path / "held.jsonl"
    write_lines(held, TEXTS[12:])
    take_baseline(base, tmp_path / "baseline.jsonl", suite=choices, dtype="float32")
    said: list[str] = []
    given: dict[str, Any] = {"suite": choices, "baseline": tmp_path / "baseline.jsonl", "held_out": held, **WIDE}
    done = repair(base, tuned, tmp_path / "out", say=said.append, **given)
    assert sum("its configuration computes otherwise (rope_parameters.rope_theta is 100.0" in s for s in said) == 1

    def loss(folder: str | Path) -> float:
        return TargetLoss(TrainingData.load(held), tiny_tokenizer(), 1024).measure(
            load_model(folder, dtype="float32").model
        )

    open_line(base, tuned).write(tmp_path / "0", 0)
    assert (
        done.balance.base_loss == pytest.approx(loss(base), abs=1e-6) != pytest.approx(loss(tmp_path / "0"), abs=1e-3)
    )
    points = [e for e in RunFolder(tmp_path / "out" / RECORDS).events() if e["event"] == "point"]
    assert {e["at"] for e in points} >= {0.0, 0.5, 1.0}
    tuned_loss = next(e["loss"] for e in points if e["at"] == 1)
    assert tuned_loss == pytest.approx(loss(tuned), abs=1e-6), "the points after it are the line's again"
    with pytest.raises(Exception, match="whose weights are not those of"):
        repair(other, tuned, tmp_path / "two", **given)
