"""`repair`: a tiny model that was trained too hard, taken back along its line and certified."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from backslide.cli.main import app
from backslide.config import TuneConfig
from backslide.cure.line import FullLine
from backslide.cure.place import RECORDS
from backslide.cure.repair import Repaired, repair
from backslide.cure.target import TargetLoss
from backslide.data import TrainingData
from backslide.errors import ConfigError, DataError, MismatchError, ModelError
from backslide.files import write_lines
from backslide.gate import check_model
from backslide.models import load_model
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.scoring.engine import Scorer
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.tune import Tuned, tune
from backslide.verdict import Zone
from processes import forked

TEXTS = [{"text": f"Customer: question {i:02}? Agent: answer {i:02}."} for i in range(16)]
WIDE = {"tolerance": 0.2, "drift": 0.5}
"""What so small a suite can be held to."""


@pytest.fixture(scope="module")
def choices(known_suite: Suite) -> Suite:
    return Suite("choices", tuple(i for i in known_suite.items if i.kind == "choice"))


def forgetful(folder: Path, base: Path, suite: Suite, method: str) -> Tuned:
    write_lines(folder / "train.jsonl", TEXTS[:12])
    write_lines(folder / "held.jsonl", TEXTS[12:])
    suite.save(folder / "choices.jsonl")
    content: dict[str, Any] = {
        "model": {"base": str(base), "dtype": "float32"},
        "data": {"train": str(folder / "train.jsonl"), "held_out": str(folder / "held.jsonl")},
        "train": {"steps": 12, "batch_size": 4, "max_length": 64, "method": method, "scheduler": "constant",
                  "learning_rate": 1e-2},
        "guard": {"looks": 1, "suite": str(folder / "choices.jsonl"), "tolerance": 0.2},
        "output": {"dir": str(folder / "run")},
    }  # fmt: skip
    return tune(TuneConfig.from_dict(content))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, choices: Suite) -> dict[str, Tuned]:
    torch.set_num_threads(1)
    return {
        method: forgetful(tmp_path_factory.mktemp(method), tiny_folder, choices, method) for method in ("full", "lora")
    }


@dataclasses.dataclass(frozen=True)
class Mended:
    """A run that was repaired, and what was said and measured meanwhile."""

    done: Repaired
    said: list[str]
    measured: list[str]


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, runs: dict[str, Tuned]) -> dict[str, Mended]:
    found = {}
    for method, tuned in runs.items():
        said: list[str] = []
        measured: list[str] = []
        done = repair(str(tiny_folder), str(tuned.model), tmp_path_factory.mktemp("mended") / "out", say=said.append,
                      progress=lambda what, at, of, m=measured: m.append(what) if at == of else None)  # fmt: skip
        found[method] = Mended(done, said, measured)
    return found


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_is_repaired_and_what_was_certified_is_what_loads(
    tiny_folder: Path, choices: Suite, runs: dict[str, Tuned], mended: dict[str, Mended], method: str
) -> None:
    done, said, out = mended[method].done, mended[method].said, mended[method].done.out
    assert runs[method].verdict.zone is Zone.REGRESSED, "there is something to repair"
    assert done.at is not None and 0 < done.at < 1 and done.verdict.zone is not Zone.REGRESSED
    assert done.exit_code == done.verdict.exit_code and done.verdict.part == "gate" and done.verdict.opening == 1
    by_place = {point.at: point for point in done.points}
    assert by_place[1.0].kept is False and by_place[0.0].kept is None and by_place[done.at].kept is True
    assert done.balance.back is not None and done.balance.back > 0.5
    assert done.balance.kept is not None and done.balance.kept > 0
    assert any("was made by the run" in line for line in said)
    losses = [e["eval_loss"] for e in runs[method].run.events() if "eval_loss" in e]
    assert by_place[0.0].loss == pytest.approx(losses[0], rel=1e-2), "the trainer's own, but for the weights of batches"
    assert by_place[1.0].loss == pytest.approx(losses[-1], rel=1e-2)

    assert {p.name for p in runs[method].model.iterdir()} - {"training_args.bin"} <= {p.name for p in out.iterdir()}
    assert (out / "README.md").is_file() and [path.name for path in out.parent.iterdir()] == ["out"]
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kind = AutoPeftModelForCausalLM if method == "lora" else AutoModelForCausalLM
    model, tokenizer = kind.from_pretrained(out, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(out)
    run = RunFolder(out / RECORDS)
    plain = Scorer(choices, model, tokenizer).measure(model, part="gate")
    assert plain.outcomes == Record.load(run.final).outcomes, "to the last digit"
    again = check_model(str(out), run.baseline, suite=choices, tolerance=0.2)
    assert again == dataclasses.replace(done.verdict, opening=None)
    held = TargetLoss(TrainingData.load(runs[method].run.path.parent / "held.jsonl"), tokenizer, 64)
    assert held.measure(model) == pytest.approx(done.balance.repaired_loss, abs=1e-5)
    report = run.report.read_text(encoding="utf-8")
    assert "## The line" in report and "chosen" in report
    kinds = [event["event"] for event in run.events()]
    assert kinds.index("chosen") < kinds.index("opened") < kinds.index("gate") < kinds.index("end")
    assert all(event["says"] for event in run.events())

    # It has ended: it is read, nothing is measured, and other inputs are refused.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert repair(str(tiny_folder), str(runs[method].model), out, say=said.append) == done
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(ConfigError, match="repair of other inputs .another tolerance.; give another folder"):
        repair(str(tiny_folder), str(runs[method].model), out, tolerance=0.1)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_the_run_measured_is_not_measured_again(mended: dict[str, Mended], method: str) -> None:
    done, measured = mended[method].done, mended[method].measured
    looked = [point for point in done.points if point.kept is not None]
    assert measured.count("monitor half") == len(looked) - 1, "the last look was at the tuned model"
    assert measured.count("gate half") == 1, "that of the tuned model is the run's"
    assert measured.count("held-out loss") == len(done.points)


def test_by_itself_base_and_tuned_model_are_enough(tmp_path: Path, tiny_folder: Path, runs: dict[str, Tuned],
                                                   choices: Suite) -> None:  # fmt: skip
    moved = Path(shutil.copytree(runs["full"].model, tmp_path / "moved"))
    said: list[str] = []
    done = repair(str(tiny_folder), str(moved), tmp_path / "out", suite=choices, dtype="float32", tolerance=0.2,
                  say=said.append)  # fmt: skip
    assert any("no held-out data" in line for line in said)
    kept = [point.at for point in done.points if point.kept]
    assert done.at == max(kept) and all(point.loss is None for point in done.points)
    assert "not known" in done.balance.lines[1] and done.balance.back is not None


def test_where_no_point_keeps_the_abilities_nothing_is_shipped(
    tmp_path: Path, tiny_folder: Path, choices: Suite
) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight.mul_(-60)
    broken.save_pretrained(tmp_path / "tuned")
    tiny_tokenizer().save_pretrained(tmp_path / "tuned")
    write_lines(tmp_path / "held.jsonl", TEXTS)
    choices.save(tmp_path / "choices.jsonl")
    out = tmp_path / "out"
    ran = CliRunner().invoke(
        app,
        ["repair", str(tiny_folder), str(tmp_path / "tuned"), "--out", str(out), "--suite", str(tmp_path / "choices.jsonl"),
         "--dtype", "float32", "--format", "json"],
    )  # fmt: skip
    assert ran.exit_code == 1, ran.output
    result = json.loads(ran.stdout)
    assert result["shipped"] is False and result["verdict"]["zone"] == "regressed"
    assert "no point of the line keeps the abilities; nothing was shipped" in result["verdict"]["reasons"][0]
    assert [path.name for path in out.iterdir()] == [RECORDS] and not (tmp_path / ".out.repair").exists()
    run = RunFolder(out / RECORDS)
    assert "opened" not in {event["event"] for event in run.events()}, "the gate half stays sealed"
    assert result["balance"]["shipped"] is False and result["advice"]
    ran = CliRunner().invoke(app, ["repair", str(tiny_folder), str(tmp_path / "tuned"), "--out", str(out), "--suite",
                                   str(tmp_path / "choices.jsonl"), "--dtype", "float32"])  # fmt: skip
    shown = " ".join(ran.stdout.split())
    assert (
        "the gate half was not opened" in shown and "train again" in shown and "learning rate, by a factor" not in shown
    )
    assert "**no point keeps the abilities**" in run.report.read_text(encoding="utf-8")


def test_a_tuned_model_that_is_not_finite_is_taken_for_what_it_is(
    tmp_path: Path, tiny_folder: Path, choices: Suite
) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "tuned")
    tiny_tokenizer().save_pretrained(tmp_path / "tuned")
    write_lines(tmp_path / "held.jsonl", TEXTS)
    done = repair(str(tiny_folder), str(tmp_path / "tuned"), tmp_path / "out", suite=choices, dtype="float32",
                  held_out=tmp_path / "held.jsonl", **WIDE)  # fmt: skip
    assert done.at is None and done.exit_code == 1 and "better than the base" in done.verdict.reasons[0]


def test_where_weights_cannot_be_put_in_place_each_point_is_written_and_loaded(
    tmp_path: Path, tiny_folder: Path, runs: dict[str, Tuned], choices: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    shutil.copytree(runs["full"].model, tmp_path / "tuned")
    monkeypatch.setattr(FullLine, "fits", lambda line, model: False)
    done = repair(str(tiny_folder), str(tmp_path / "tuned"), tmp_path / "out", suite=choices, tolerance=0.2,
                  baseline=runs["full"].run.baseline, say=said.append)  # fmt: skip
    assert any("written and loaded" in line for line in said)
    # What was measured is compared with what was written.
    assert done.at is not None and done.at == max(point.at for point in done.points if point.kept)


def until(place: str, end: Callable[[], None]) -> Callable[[str, int, int], None]:
    """A progress that calls `end` in the middle of the gate half, or at the end of the so-manieth look."""
    seen: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        if done == total or what == "gate half":
            seen.append(what)
        if place == f"{what} {seen.count(what)}":
            end()

    return progress


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["monitor half 2", "gate half 1"])
def test_killed_and_started_again_it_goes_on(
    tmp_path: Path, tiny_folder: Path, runs: dict[str, Tuned], mended: dict[str, Mended], place: str
) -> None:
    out, arguments = tmp_path / "out", [str(tiny_folder), str(runs["full"].model)]
    if place == "monitor half 2":
        ran = forked(__file__, *arguments, out, place)
        assert ran.returncode == -signal.SIGKILL, ran.stderr
    else:
        with pytest.raises(KeyboardInterrupt):
            repair(*arguments, out, progress=until(place, interrupt))
    run = RunFolder(out / RECORDS)
    assert [path.name for path in out.iterdir()] == [RECORDS] and run.verdict() is None
    measured = {(e["at"], e["kept"] is None) for e in run.events() if e["event"] == "point"}
    looks = {path.name for path in (run.path / "line").glob("*")}
    done: list[str] = []
    first = repair(*arguments, out, progress=lambda what, at, of: done.append(what) if at == of else None)
    whole = mended["full"].done
    assert (first.at, first.verdict, first.points) == (whole.at, whole.verdict, whole.points)
    all_looks = {path.name for path in (run.path / "line").glob("*")}
    # The tuned model's look is the run's own.
    assert done.count("monitor half") == len(all_looks - looks - {"at-1.00000.jsonl"})
    assert done.count("held-out loss") == len(first.points) - sum(only for _, only in measured)
    opened = [e for e in run.events() if e["event"] == "opened"]
    assert [e["opening"] for e in opened] == [1] * (2 if place == "gate half 1" else 1), "one opening, which goes on"
    assert not (tmp_path / ".out.repair").exists()


def test_a_model_that_was_half_moved_into_place_is_moved_again(
    tmp_path: Path, tiny_folder: Path, runs: dict[str, Tuned], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []

    def replace(source: Any, target: Any) -> None:
        if Path(target).parent == tmp_path / "out" and Path(target).suffix == ".safetensors":
            raise KeyboardInterrupt
        moves.append(str(target))
        real(source, target)

    real = os.replace
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            repair(str(tiny_folder), str(runs["full"].model), tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists(), "what is half there does not load"
    with pytest.raises(ModelError):
        load_model(tmp_path / "out")
    done = repair(str(tiny_folder), str(runs["full"].model), tmp_path / "out")
    assert done.verdict.opening == 1 and done.at is not None
    assert load_model(tmp_path / "out", dtype="float32").model is not None


def test_bad_inputs_are_one_line_and_leave_nothing(
    tmp_path: Path, tiny_folder: Path, runs: dict[str, Tuned], choices: Suite
) -> None:
    base, tuned, out = str(tiny_folder), str(runs["full"].model), tmp_path / "out"
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty, and no repair"):
        repair(base, tuned, full)
    with pytest.raises(ConfigError, match="is a file"):
        repair(base, tuned, full / "notes.txt")
    with pytest.raises(DataError, match="no such file"):
        repair(base, tuned, out, held_out=tmp_path / "gone.jsonl")
    with pytest.raises(MismatchError, match="was measured on the suite choices"):
        repair(base, tuned, out, suite=Suite("other", choices.items[:50]))
    with pytest.raises(ConfigError, match="tolerance of accuracy is 3"):
        repair(base, tuned, out, tolerance=3)
    with pytest.raises(ConfigError, match="alpha is 0.9"):
        repair(base, tuned, out, alpha=0.9)
    assert not out.exists() and (full / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    tiny_model(seed=7).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    with pytest.raises(MismatchError, match="whose weights are not those of"):
        repair(str(other), tuned, out)


def test_the_command_line_shows_the_line_the_verdict_and_what_came_of_it(
    tiny_folder: Path, runs: dict[str, Tuned], mended: dict[str, Mended]
) -> None:
    out = str(mended["full"].done.out)
    arguments = ["repair", str(tiny_folder), str(runs["full"].model), "--out", out]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code in (0, 3), ran.output
    for words in (
        "held-out loss",
        "chosen",
        "of the lost accuracy is back",
        "of the gain in target loss is kept",
        f"→ {out}",
    ):
        assert words in ran.stdout, words
    result = json.loads(CliRunner().invoke(app, [*arguments, "--format", "json"]).stdout)
    assert (
        result["shipped"]
        and result["balance"]["accuracy_back"] > 0
        and result["at"] in [p["at"] for p in result["line"]]
    )
    assert result["verdict"]["opening"] == 1


def test_the_card_is_what_the_hub_reads_and_keeps_what_was_there(
    tmp_path: Path, tiny_folder: Path, runs: dict[str, Tuned]
) -> None:
    from huggingface_hub import ModelCard

    tuned = tmp_path / "<script>|x"
    shutil.copytree(runs["full"].model, tuned)
    (tuned / "README.md").write_text("---\nlicense: mit\ntags: [chat]\nbase_model: org/base\n---\n\n# Mine\n\nWords.\n")
    run = runs["full"].run
    for out in ("one", "two"):
        # The second time what is repaired has been repaired before.
        repair(str(tiny_folder), str(tuned if out == "one" else tmp_path / "one"), tmp_path / out,
               suite=str(run.path.parent / "choices.jsonl"), baseline=run.baseline, **WIDE)  # fmt: skip
    card = ModelCard.load(tmp_path / "one" / "README.md")
    assert card.data.license == "mit" and card.data.tags == ["chat", "backslide"] and card.data.base_model == "org/base"
    assert "# Mine" in card.text and "Words." in card.text and "α =" in card.text
    assert "<script>" not in card.text and "&lt;script&gt;" in card.text
    assert str(tmp_path) not in card.content, "no path of this machine"
    again = ModelCard.load(tmp_path / "two" / "README.md")
    assert again.text.count("## Repaired with backslide") == 1 and "# Mine" in again.text


ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"A text of {i} words{' more' * i}."} for i in range(6)],
    "prompt/completion": [{"prompt": f"Question {i}{'?' * i}", "completion": f" Answer{'!' * i}"} for i in range(6)],
    "conversational": [
        {
            "prompt": [{"role": "user", "content": f"Question {i}{'?' * i}"}],
            "completion": [{"role": "assistant", "content": f"Answer{'!' * i}"}],
        }
        for i in range(6)
    ],
    "messages": [
        {"messages": [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": "So" * i + "."}]}
        for i in range(6)
    ],
}


@pytest.mark.parametrize("kind", list(ROWS))
def test_the_targets_loss_is_the_trainers(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    write_lines(tmp_path / "held.jsonl", ROWS[kind])
    loaded = load_model(tiny_folder, dtype="float32")
    target = TargetLoss(TrainingData.load(tmp_path / "held.jsonl"), loaded.tokenizer, 40)
    args = SFTConfig(output_dir=str(tmp_path), per_device_eval_batch_size=6, max_length=40, report_to="none", bf16=False,
                     use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True)  # fmt: skip
    rows = Dataset.from_list(ROWS[kind])
    trainer = SFTTrainer(loaded.model, args, train_dataset=rows, eval_dataset=rows, processing_class=loaded.tokenizer)
    # One batch: the trainer's mean is over its tokens too.
    assert target.measure(loaded.model) == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-4)
    assert len(target.requests) == len(rows)


def test_data_without_a_token_to_learn_from_are_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "held.jsonl", [{"prompt": "A long prompt", "completion": "Yes."}])
    with pytest.raises(DataError, match="no example has a token to learn from within 5 tokens"):
        TargetLoss(TrainingData.load(tmp_path / "held.jsonl"), tiny_tokenizer(), 5)


if __name__ == "__main__":  # to be killed, for good
    torch.set_num_threads(1)
    *given, where = sys.argv[1:]
    repair(*given, progress=until(where, lambda: os.kill(os.getpid(), signal.SIGKILL)))
