"""Guarded runs end to end on a tiny model: the trainer, `tune`, the gate, the report and the command line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from backslide.cli.main import run as command
from backslide.config import TuneConfig
from backslide.errors import ConfigError, MismatchError, RunError
from backslide.gate import check_model, take_baseline
from backslide.guard.callback import Guard
from backslide.models import best_dtype, load_model
from backslide.record import Record
from backslide.report.markdown import write_report
from backslide.rundir import PAGES, RunFolder
from backslide.scoring.engine import Scorer
from backslide.suite.item import ChoiceItem, OpenItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.tune import tune
from backslide.verdict import Zone

FILES = ("run.json", "baseline.jsonl", "events.jsonl", "verdict.json", "final.jsonl", *PAGES)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Any, tokenizer: Any) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(scope="module")
def known(model: Any, tokenizer: Any) -> Suite:
    """Items that the tiny model gets right: the gold is its own answer. Something to lose."""
    letters = tuple("abcdefgh")

    def ask(number: int, gold: int) -> ChoiceItem:
        return ChoiceItem(id=f"k{number}", capability="known", prompt=f"What is {number}?", choices=letters, gold=gold)

    scores = Scorer(Suite("x", tuple(ask(i, 0) for i in range(80))), model, tokenizer).measure(model).by_id
    right = [ask(i, int(np.argmax(scores[f"k{i}"].scores))) for i in range(80)]  # type: ignore[arg-type]
    return Suite("known", (*right, OpenItem(id="o", capability="talk", prompt="Who?")))


def trainer(
    folder: Path, guard: Guard, *, peft: Any = None, rate: float = 1e-3, evaluated: bool = False, **more: Any
) -> SFTTrainer:
    data = Dataset.from_list([{"text": f"Customer: question {i}? Agent: answer {i}."} for i in range(16)])
    settings: dict[str, Any] = {"max_steps": 6, "save_strategy": "no", **more}
    args = SFTConfig(
        output_dir=str(folder), learning_rate=rate, per_device_train_batch_size=4, report_to="none", bf16=False,
        gradient_checkpointing=False, use_cpu=True, disable_tqdm=True, logging_steps=1, dataloader_pin_memory=False,
        max_length=64, **settings,
    )  # fmt: skip
    return SFTTrainer(
        tiny_model(), args=args, train_dataset=data, eval_dataset=data if evaluated else None,
        processing_class=tiny_tokenizer(), peft_config=peft, callbacks=[guard],
    )  # fmt: skip


@pytest.mark.parametrize("peft", [None, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")])
def test_five_lines_leave_a_whole_run_folder(tmp_path: Path, known: Suite, peft: Any) -> None:
    guard = Guard(known, every=3, say=lambda _: None)
    made = trainer(tmp_path, guard, peft=peft)
    made.train()
    assert guard.verdict is not None and guard.run is not None
    assert guard.run.path == tmp_path / "backslide"
    assert all((guard.run.path / name).is_file() for name in FILES)
    assert [p.name for p in sorted((guard.run.path / "steps").iterdir())] == ["step-000003.jsonl", "step-000006.jsonl"]
    config = guard.run.config
    assert config["setup"]["method"] == ("lora" if peft else "full")
    assert 0 < config["setup"]["trainable"] <= config["setup"]["parameters"]
    assert guard.run.verdict() == guard.verdict
    # The same base with and without an adapter on it has one fingerprint and the same outcomes.
    assert guard.baseline is not None
    assert all(outcome.correct for outcome in guard.baseline.outcomes if outcome.kind == "choice")


def test_a_rate_that_wrecks_the_model_is_proven_and_stopped(tmp_path: Path, known: Suite) -> None:
    lines: list[str] = []
    guard = Guard(known, every=2, on_regression="stop", say=lines.append)
    made = trainer(tmp_path, guard, rate=0.3)
    made.train()
    assert guard.verdict is not None and guard.verdict.zone is Zone.REGRESSED
    assert guard.regressed_at is not None and made.state.global_step == guard.regressed_at < 6
    assert any("→ stop" in line for line in lines)
    report = RunFolder(tmp_path / "backslide").report.read_text()
    assert f"The regression was proven at step {guard.regressed_at}" in report
    # Two measures share a third of half of α: Holm's first step is at .025 / 3 / 2.
    assert "exact (McNemar" in report and "betting (bounded drops)" in report
    assert "tested at level" in report and "**decided**" in report


def as_if_killed(folder: Path) -> None:
    """What a run leaves that was killed before its end was written down."""
    events = folder / "backslide" / "events.jsonl"
    rows = [line for line in events.read_text().splitlines() if json.loads(line)["event"] not in ("gate", "end")]
    events.write_text("".join(f"{row}\n" for row in rows))
    (folder / "backslide" / "verdict.json").unlink()


def test_power_mode_decides_over_the_looks_and_is_the_same_after_resuming(tmp_path: Path, known: Suite) -> None:
    more: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    guard = Guard(known, every=2, test="joint", say=lambda _: None)
    trainer(tmp_path / "whole", guard, rate=0.3, **more).train()
    assert guard.regressed_at is not None and guard.verdict is not None and guard.verdict.zone is Zone.REGRESSED
    alarmed = next(look for look in guard.looks if look.step == guard.regressed_at)
    (row,) = alarmed.capabilities
    assert row.decided_by == "probability" and row.soft is not None and not row.soft.exact
    assert row.soft.method.startswith("joint sign-flip over all looks and capabilities")
    # Half of α over three looks: by look k at most k/3 of it is spent.
    assert [look.capabilities[0].main.tested_at for look in guard.looks] == pytest.approx(
        [0.025 * k / 3 for k in range(1, len(guard.looks) + 1)]
    )
    assert RunFolder(tmp_path / "whole" / "backslide").config["test"] == "joint"
    # The last look again, after the checkpoint of step 4: it is fed the looks before it.
    as_if_killed(tmp_path / "whole")
    again = Guard(known, every=2, test="joint", say=lambda _: None)
    checkpoint = str(tmp_path / "whole" / "checkpoint-4")
    trainer(tmp_path / "whole", again, rate=0.3, **more).train(resume_from_checkpoint=checkpoint)
    assert [look.to_dict() for look in again.looks] == [look.to_dict() for look in guard.looks]


def test_a_resumed_run_keeps_the_alpha_that_it_was_begun_with(tmp_path: Path, known: Suite) -> None:
    more: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    lines: list[str] = []
    first = Guard(known, every=2, say=lambda _: None)
    trainer(tmp_path, first, **more).train()
    with pytest.raises(MismatchError, match=r"begun with alpha = 0.05 and is resumed with 0.5"):
        trainer(tmp_path, Guard(known, every=2, alpha=0.5), **more).train(resume_from_checkpoint=True)
    # Back to step 4: step 6 comes by again with the same weights, so it is the same look, with its share of α.
    as_if_killed(tmp_path)
    again = Guard(known, every=2, say=lines.append)
    trainer(tmp_path, again, **more).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [look.to_dict() for look in again.looks] == [look.to_dict() for look in first.looks]
    assert again.verdict == first.verdict and not any("proves nothing" in line for line in lines)
    assert not (tmp_path / "backslide" / "steps" / "lost").exists()
    # With other data from there on the weights are others: the looks before had the share of these, in every life.
    for _ in range(2):
        as_if_killed(tmp_path)
        other = Guard(known, every=2, say=lines.append)
        elsewhere = trainer(tmp_path, other, ignore_data_skip=True, **more)
        elsewhere.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert [look.step for look in other.looks] == [2, 4, 6]
        assert all(any(f"step {k} comes by again with other weights" in line for line in lines) for k in (4, 6))
        for look in other.looks[1:]:
            assert "no test left" in look.capabilities[0].main.method and look.zone is not Zone.REGRESSED
        assert other.looks[0].capabilities == first.looks[0].capabilities
    lost = sorted((tmp_path / "backslide" / "steps" / "lost").iterdir())
    assert {Record.load(path).header.step for path in lost} == {4, 6}, "what was measured is kept"


def test_a_run_that_goes_on_beyond_its_plan_is_watched_as_a_new_stretch(tmp_path: Path, known: Suite) -> None:
    more: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    lines: list[str] = []
    trainer(tmp_path, Guard(known, every=2, say=lambda _: None), **more).train()
    longer = Guard(known, every=2, on_regression="stop", say=lines.append)
    made = trainer(tmp_path, longer, **{**more, "max_steps": 20, "rate": 0.3})
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert any("it goes on as stretch 2 of it, with α = 0.05 of its own" in line for line in lines)
    config = RunFolder(tmp_path / "backslide").config
    assert config["stretch"] == {"number": 2, "looks": [8, 10, 12, 14, 16, 18, 20], "planned": 7}
    assert longer.baseline is not None and all(o.correct for o in longer.baseline.outcomes if o.kind == "choice")
    first = longer.looks[0]
    assert first.step == 8 and first.capabilities[0].main.tested_at == pytest.approx(0.025 / 7 / 3, rel=0.6)
    assert len(list((tmp_path / "backslide" / "earlier").glob("*/verdict.json"))) == 1
    assert longer.verdict is not None


def test_a_small_alpha_gets_more_draws(known: Suite, tmp_path: Path) -> None:
    guard = Guard(known, every=3, test="joint", alpha=0.001, say=lambda _: None)
    trainer(tmp_path, guard, rate=0.3).train()
    assert len(guard.looks) == 2


def test_a_best_checkpoint_loaded_at_the_end_is_a_look_that_was_planned(tmp_path: Path, known: Suite) -> None:
    for test in ("exact", "joint"):
        guard = Guard(known, every=3, test=test, say=lambda _: None)
        more = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
        trainer(tmp_path / test, guard, evaluated=True, load_best_model_at_end=True, **more).train()
        assert len(guard.looks) == 2 and guard.verdict is not None
        share = guard.looks[0].capabilities[0].main.tested_at
        assert share <= 0.025 / 3, "two looks and one more share half of α"


def test_half_precision_has_a_noise_floor(tmp_path: Path, known: Suite, tokenizer: Any) -> None:
    import torch

    exact = tiny_model()
    assert Scorer(known, exact, tokenizer).baseline(exact).header.noise == {}
    rough = tiny_model().to(torch.bfloat16)
    scorer = Scorer(known, rough, tokenizer)
    record = scorer.baseline(rough)
    assert record.outcomes == scorer.measure(rough).outcomes
    assert set(record.header.noise) == {"accuracy", "probability"}
    # A CPU that emulates bf16 adds in one order whatever the batch: on so small a model nothing changes there.
    assert record.header.noise["probability"] > 0 or best_dtype() == torch.float32
    record.save(tmp_path / "r.jsonl")
    assert Record.load(tmp_path / "r.jsonl") == record


def test_the_tests_are_named(known: Suite) -> None:
    with pytest.raises(ConfigError, match="test is 'magic', one of exact, joint is needed"):
        Guard(known, test="magic")


def test_a_loss_that_is_not_finite_never_passes(tmp_path: Path, known: Suite) -> None:
    guard = Guard(known, every=3, say=lambda _: None)
    made = trainer(tmp_path, guard, logging_nan_inf_filter=False)
    made.compute_loss = lambda *args, **kwargs: SFTTrainer.compute_loss(made, *args, **kwargs) * float("nan")
    made.train()
    assert guard.verdict is not None and guard.verdict.zone is Zone.REGRESSED
    assert "loss is nan" in guard.verdict.reasons[0]


def test_a_baseline_of_other_weights_is_refused_before_the_first_step(tmp_path: Path, known: Suite) -> None:
    other = tiny_model(seed=5)
    record = Scorer(known, other, tiny_tokenizer()).measure(other)
    made = trainer(tmp_path, Guard(known, baseline=record))
    with pytest.raises(MismatchError, match="other weights"):
        made.train()
    assert made.state.global_step == 0 and not (tmp_path / "backslide").exists()


def test_a_resumed_run_keeps_the_baseline_from_before_training(tmp_path: Path, known: Suite) -> None:
    first = trainer(tmp_path, Guard(known, every=2, say=lambda _: None), save_strategy="steps", save_steps=4)
    first.train()
    before = (tmp_path / "backslide" / "baseline.jsonl").read_bytes()
    as_if_killed(tmp_path)
    guard = Guard(known, every=2, say=lambda _: None)
    again = trainer(tmp_path, guard, save_strategy="steps", save_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert (tmp_path / "backslide" / "baseline.jsonl").read_bytes() == before
    assert [look.step for look in guard.looks] == [2, 4, 6]
    shutil.rmtree(tmp_path / "backslide")
    with pytest.raises(RunError, match="cannot be its own baseline"):
        trainer(tmp_path, Guard(known)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


FORMATS = {
    "text": '{"text": "Customer: a? Agent: b."}\n',
    "pairs": '{"prompt": "a?", "completion": " b."}\n',
    "chat": '{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]}\n',
}


def configured(tmp_path: Path, base: Path, suite: Suite, **train: Any) -> TuneConfig:
    suite.save(tmp_path / "suite.jsonl")
    return TuneConfig.from_dict(
        {
            "model": {"base": str(base), "dtype": "float32"},
            "data": {"train": str(tmp_path / "t.jsonl"), "held_out": str(tmp_path / "t.jsonl")},
            "train": {"steps": 2, "batch_size": 2, "max_length": 64, **train},
            "guard": {"suite": str(tmp_path / "suite.jsonl"), "every": 1},
            "output": {"dir": str(tmp_path / "run")},
        }
    )


@pytest.mark.parametrize(("form", "method"), [("text", "full"), ("pairs", "lora"), ("chat", "lora")])
def test_tune_saves_a_model_that_the_gate_can_judge(
    tmp_path: Path, folder: Path, known: Suite, form: str, method: str
) -> None:
    (tmp_path / "t.jsonl").write_text(FORMATS[form] * 4)
    tuned = tune(configured(tmp_path, folder, known, method=method), say=lambda _: None)
    assert (tuned.steps, tuned.planned) == (2, 2)
    held_out = [event["eval_loss"] for event in tuned.run.events() if "eval_loss" in event]
    assert len(held_out) == 3, "before the first step, and at both looks"
    baseline = tuned.run.baseline
    same = check_model(str(folder), baseline, suite=known)
    assert [(row.lost, row.won) for row in same.capabilities] == [(0, 0)] and same.exit_code in (0, 3)
    again = check_model(str(tuned.model), baseline, suite=known, out=tmp_path / "check")
    assert again.capabilities == judge_of(tuned, known)
    assert all((tmp_path / "check" / name).is_file() for name in PAGES)


def judge_of(tuned: Any, suite: Suite) -> Any:
    """What `check` must find: the run's own final record, at an undivided α."""
    from backslide.judge import judge

    return judge(Record.load(tuned.run.baseline), Record.load(tuned.run.final)).capabilities


def test_a_tokenizer_without_template_or_padding_is_handled_and_said(tmp_path: Path, known: Suite) -> None:
    base = tmp_path / "bare"
    tiny_model().save_pretrained(base)
    tiny_tokenizer(chat=False, pad=False).save_pretrained(base)
    (tmp_path / "t.jsonl").write_text(FORMATS["chat"] * 4)
    lines: list[str] = []
    tune(configured(tmp_path, base, known), say=lines.append)
    assert any("no padding token" in line for line in lines) and any("no chat template" in line for line in lines)


HOSTILE = "\x1b[31mred\x1b[0m | <script>alert(1)</script> `x` [a](http://evil.example)\n# Head\n\u202egnp @all"


def test_what_a_model_says_stays_text_in_the_report(tmp_path: Path, folder: Path, known: Suite) -> None:
    (tmp_path / "t.jsonl").write_text(FORMATS["text"] * 4)
    run = tune(configured(tmp_path, folder, known), say=lambda _: None).run
    first = run.report.read_bytes()
    write_report(run)
    assert run.report.read_bytes() == first
    text = run.baseline.read_text().splitlines()
    rows = [json.loads(line) for line in text]
    for row in rows[1:]:
        if row["kind"] == "open":
            row["reply"] = HOSTILE
    run.baseline.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    write_report(run)
    report = run.report.read_text()
    (line,) = [line for line in report.splitlines() if "alert" in line]
    assert "<" not in line.replace("&lt;", "") and "\x1b" not in report and "\u202e" not in report
    assert "\\|" in line and "\\`" in line and "\\[a\\]" in line and "http:" not in line and "@all" not in line
    assert "\n# Head" not in report


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    sys.argv = ["backslide", *map(str, arguments)]
    with pytest.raises(SystemExit) as ended:
        command()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_command_line_from_baseline_to_gate(
    tmp_path: Path, folder: Path, known: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    known.save(tmp_path / "s.jsonl")
    base = tmp_path / "baseline.jsonl"
    code, out, err = call(
        capsys, "baseline", folder, "--suite", tmp_path / "s.jsonl", "--out", base, "--format", "json"
    )
    assert code == 0 and json.loads(out)["accuracy"]["known"]["right"] == 80 and "\r" not in err
    code, out, _ = call(capsys, "check", folder, "--baseline", base, "--suite", tmp_path / "s.jsonl")
    assert code == 3 and "undecided" in out
    code, out, _ = call(capsys, "power", "--suite", tmp_path / "s.jsonl", "--baseline", base, "--looks", "4")
    assert code == 0 and "known" in out and "4 looks" in out
    code, out, _ = call(capsys, "power", "--suite", tmp_path / "s.jsonl", "--format", "json")
    (row,) = json.loads(out)["capabilities"]
    assert code == 0 and row["gate_items"] + row["monitor_items"] == 80 and 0 < row["gate"] < 1
    other = tmp_path / "other"
    tiny_model(seed=3).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    command_line = ("check", other, "--baseline", base, "--suite", tmp_path / "s.jsonl", "--format", "json")
    code, out, _ = call(capsys, *command_line)
    assert code == 1 and json.loads(out)["zone"] == "regressed"


def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, folder: Path, known: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    known.save(tmp_path / "s.jsonl")
    base = tmp_path / "baseline.jsonl"
    take_baseline(str(folder), base, suite=known)
    hollow = tmp_path / "hollow"
    shutil.copytree(folder, hollow, ignore=shutil.ignore_patterns("*.safetensors"))
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    renamed = tmp_path / "renamed"
    shutil.copytree(folder, renamed)
    swapped = tiny_tokenizer()
    swapped.chat_template = swapped.chat_template.replace("<|end|>", "<|end|> ")
    swapped.save_pretrained(renamed)
    silent = tmp_path / "silent"
    shutil.copytree(folder, silent, ignore=shutil.ignore_patterns("*.jinja"))
    tiny_tokenizer(chat=False).save_pretrained(silent)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "typo.toml").write_text('[model]\nbase = "x"\n[data]\ntrain = "t"\n[train]\nlr = 1\nlearning_rte = 1\n')
    (tmp_path / "none.toml").write_text(f'[model]\nbase = "{folder}"\n[data]\ntrain = "{tmp_path}/empty.jsonl"\n')
    suite = ("--suite", tmp_path / "s.jsonl")
    before = sorted(p.name for p in tmp_path.iterdir())
    cases: list[tuple[tuple[object, ...], str]] = [
        (("baseline", folder, "--suite", "gone.jsonl"), "no such suite"),
        (("baseline", folder, "--suite", tmp_path / "empty.jsonl"), "the suite is empty"),
        (("baseline", hollow, *suite), "no weights"),
        (("baseline", cut, *suite), "weights cannot be read"),
        (("baseline", "./nowhere", *suite), "no such model folder"),
        (("baseline", folder, *suite, "--out", tmp_path), "is a folder"),
        (("baseline", "./nowhere", *suite, "--out", "/proc/b.jsonl"), "/proc/b.jsonl: cannot be written: No such file"),
        (("check", "./nowhere", "--baseline", base, *suite, "--out", base), "is a file; give a folder"),
        (("check", "./nowhere", "--baseline", base, *suite, "--out", base / "run"), f"since {base} is no folder"),
        (("baseline", folder, *suite, "--dtype", "int3"), "dtype is 'int3'"),
        (("check", folder, "--baseline", base), "not on repertoire"),
        (("check", renamed, "--baseline", base, *suite), "another tokenizer or chat template"),
        (
            ("check", silent, "--baseline", base, *suite),
            f"{silent}: its tokenizer has no chat template, and the baseline was asked through that of {folder}; copy "
            "that one (chat_template.jinja, or chat_template in tokenizer_config.json), or measure the baseline with "
            "--no-chat",
        ),
        (("baseline", silent, *suite, "--chat"), "the tokenizer has no chat template; leave --chat (chat=True) out"),
        (("check", folder, "--baseline", "gone.jsonl", *suite), "gone.jsonl: no such file"),
        (("check", folder, "--baseline", base, *suite, "--alpha", "2"), "alpha is 2"),
        (("power", *suite, "--looks", "0"), "looks is 0"),
        (("power", "--baseline", base), "not on repertoire"),
        (("power", *suite, "--flip-rate", "0"), "flip-rate is 0"),
        (("tune", tmp_path / "typo.toml"), "unknown key 'lr'"),
        (("tune", tmp_path / "none.toml"), "no usable text"),
        (("tune", "gone.toml"), "gone.toml: no such file"),
        (("report", tmp_path / "empty"), "no verdict.json"),
    ]
    for arguments, says in cases:
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (2, ""), (arguments, err)
        assert says in err and err.startswith("error: ") and err.count("\n") == 1, err
    assert sorted(p.name for p in tmp_path.iterdir()) == before and not list(Path().iterdir())


def test_the_adapter_remembers_its_base(tmp_path: Path, folder: Path, known: Suite) -> None:
    (tmp_path / "t.jsonl").write_text(FORMATS["text"] * 4)
    tuned = tune(configured(tmp_path, folder, known), say=lambda _: None)
    loaded = load_model(tuned.model)
    assert hasattr(loaded.model, "peft_config") and loaded.tokenizer.chat_template
