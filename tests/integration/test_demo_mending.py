"""The demo's third act on a tiny model: the real one takes minutes, and `backslide demo` tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backslide.config import TuneConfig
from backslide.demo.mark import Mark
from backslide.demo.mending import mend
from backslide.files import write_lines
from backslide.report.summary import Summary
from backslide.tune import tune
from backslide.verdict import Zone
from guard_runs import SMALL
from guard_runs import suite as fragile
from told import Told


@pytest.fixture
def config(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> TuneConfig:
    monkeypatch.setenv("BACKSLIDE_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"Question {i:02}? Answer {i:02}."} for i in range(12)]
    write_lines(tmp_path / "train.jsonl", rows[:8])
    write_lines(tmp_path / "held.jsonl", rows[8:])
    return TuneConfig.from_dict({
        "model": {"base": str(tiny_folder), "dtype": "float32"},
        "data": {"train": str(tmp_path / "train.jsonl"), "held_out": str(tmp_path / "held.jsonl")},
        "train": {"method": "full", "steps": 8, "batch_size": 4, "max_length": 64, "learning_rate": 0.05,
                  "scheduler": "constant"},
        "guard": {"every": 4, "on_regression": "stop"},
        "output": {"dir": str(tmp_path / "forgot")},
    })  # fmt: skip


def test_what_forgot_is_repaired_and_trained_again_however_often_it_is_told(tmp_path: Path, config: TuneConfig) -> None:
    suite = fragile()
    tuned = tune(config, suite=suite, settings=SMALL, say=lambda _: None)
    assert tuned.verdict.zone is Zone.REGRESSED
    forgot, screen, mark = Summary.of(tuned.run), Told(), Mark(tmp_path, {})
    mended = mend(screen, tmp_path, config, suite, SMALL, forgot, mark)
    assert mended.again.verdict.zone is not Zone.REGRESSED and "auto run" not in mended.failed
    assert ("repair" in mended.failed) == (mended.repaired.at is None)
    shown = screen.console.export_text()
    for words in (
        "5. The model that forgot",
        "6. The same fine-tune",
        "7. What came of it",
        "as it was",
        "went back to",
    ):
        assert words in shown, words
    assert shown.count("Why?") == 1, "the open question, with the replies beside it"
    # Told again of the same weights it is read; of others it is made anew, and nothing of the old is left.
    told = Told()
    mend(told, tmp_path, config, suite, SMALL, forgot, mark)
    assert any("has ended already" in line for line in told.said)
    stranger = tmp_path / "repaired" / "of-the-first-telling"
    stranger.write_text("x", encoding="utf-8")
    other = TuneConfig.from_dict({**config.to_dict(), "train": {**config.to_dict()["train"], "seed": 7}})
    again = Summary.of(tune(other, suite=suite, settings=SMALL, say=lambda _: None).run)
    mend(Told(), tmp_path, other, suite, SMALL, again, mark)
    assert not stranger.exists() and not (tmp_path / ".repaired.old").exists()
