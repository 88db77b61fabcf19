"""lm-eval's options wherever a suite is named: `tune`, `doctor`, `repair`, `check`, `suite`, `power` ask the same."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from backslide.asking import suite_for
from backslide.cli.main import run as command
from backslide.config import TuneConfig
from backslide.cure.repair import repair
from backslide.doctor import examine
from backslide.errors import InputError, MismatchError, SuiteError
from backslide.files import write_json, write_lines
from backslide.gate import check_model, take_baseline
from backslide.models import load_tokenizer, tokenizer_fingerprint
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.suite.item import ContinuationItem
from backslide.suite.lm_eval import TaskOptions, load_lm_eval
from backslide.testing import tiny_tokenizer
from backslide.tune import Tuned, tune
from local_tasks import CHOICE, local_task
from repair_models import adapter

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

GIVEN: dict[str, Any] = {
    "num_fewshot": 2, "limit": 20, "apply_chat_template": True, "system_instruction": "Be terse.",
}  # fmt: skip
SUITE = "lm-eval:local"
NAME = "lm-eval:local num_fewshot=2 limit=20 apply_chat_template=True system_instruction=Be terse."


@pytest.fixture
def options(tmp_path: Path) -> TaskOptions:
    (tmp_path / "tasks").mkdir()
    local_task(tmp_path / "tasks", CHOICE)
    return TaskOptions(include_path=str(tmp_path / "tasks"), **GIVEN)


def digest(options: TaskOptions) -> str:
    """The hash of the suite, as the library makes it."""
    return load_lm_eval("local", options, tokenizer=tiny_tokenizer()).hash


def config(tmp_path: Path, base: Path, options: TaskOptions, **sections: dict[str, Any]) -> TuneConfig:
    if not (tmp_path / "train.jsonl").exists():
        write_lines(tmp_path / "train.jsonl", [{"text": f"Question {i:02}? Answer {i:02}."} for i in range(12)])
    content: dict[str, dict[str, Any]] = {
        "model": {"base": str(base), "dtype": "float32"},
        "data": {"train": str(tmp_path / "train.jsonl")},
        "train": {"steps": 4, "batch_size": 2, "max_length": 64},
        "guard": {"suite": SUITE, "looks": 1, "tolerance": 0.5, **options.to_dict()},
        "output": {"dir": str(tmp_path / "run"), "checkpoints": 4},
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    return TuneConfig.from_dict({name: {k: v for k, v in s.items() if v is not None} for name, s in content.items()})


def tuned_with(setup: TuneConfig, **more: Any) -> tuple[Tuned, list[str]]:
    said: list[str] = []
    return tune(setup, say=said.append, **more), said


class Stop(TrainerCallback):
    """Ctrl-C at a step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def interrupted(setup: TuneConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        tuned_with(setup, callbacks=[Stop()])


def test_tune_asks_as_its_configuration_says_and_repair_as_the_run_did(
    tmp_path: Path, tiny_folder: Path, options: TaskOptions
) -> None:
    asked = digest(options)
    tuned, _ = tuned_with(config(tmp_path, tiny_folder, options))
    kept = tuned.run.config
    assert (kept["suite"], kept["suite_hash"], kept["tasks"]) == (NAME, asked, options.to_dict())
    assert Record.load(tuned.run.baseline).header.suite_hash == asked

    repair(str(tiny_folder), str(tuned.model), tmp_path / "as-it-did")
    run = RunFolder(tmp_path / "as-it-did" / "backslide")
    assert (run.config["suite_hash"], run.config["tasks"]) == (asked, options.to_dict())
    # Task files that were moved are named anew, and nothing else.
    (tmp_path / "tasks").rename(tmp_path / "moved")
    with pytest.raises(SuiteError, match=r"is not found under its name \(include_path is .*tasks', which is no folder"):
        repair(str(tiny_folder), str(tuned.model), tmp_path / "out")
    local_task(tmp_path / "moved", CHOICE)
    moved = TaskOptions(include_path=str(tmp_path / "moved"))
    repair(str(tiny_folder), str(tuned.model), tmp_path / "out", tasks=moved)
    assert RunFolder(tmp_path / "out" / "backslide").config["suite_hash"] == asked


def test_a_run_goes_on_with_the_same_options_alone(tmp_path: Path, tiny_folder: Path, options: TaskOptions) -> None:
    setup = config(tmp_path, tiny_folder, options)
    interrupted(setup)
    _, said = tuned_with(setup)
    assert any("goes on at step 2 of the unfinished run there" in line for line in said)
    interrupted(setup)
    _, said = tuned_with(config(tmp_path, tiny_folder, options, guard={"num_fewshot": 1}))
    assert any("guard.num_fewshot was 2, now 1; it is moved to" in line for line in said), said


def test_bad_options_leave_nothing_and_the_doctor_says_them(
    tmp_path: Path, tiny_folder: Path, options: TaskOptions
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_folder.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    tiny_tokenizer(chat=False).save_pretrained(bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    cases: list[tuple[TuneConfig, str]] = [
        (
            config(tmp_path, tiny_folder, options, guard={"suite": "repertoire"}),
            "is for lm-eval's tasks, and the suite",
        ),
        (config(tmp_path, bare, options), "needs a tokenizer with a chat template"),
    ]
    before = {path.name for path in tmp_path.iterdir()}
    for setup, says in cases:
        with pytest.raises(InputError, match=says):
            tune(setup, say=lambda _: None)
        assert {path.name for path in tmp_path.iterdir()} == before
        found = examine(setup)
        assert [f for f in found.findings if f.about == "guard.suite" and f.level == "error" and says in f.says], says


def test_the_doctor_looks_at_the_suite_that_is_asked_and_names_it_whole(
    tmp_path: Path, tiny_folder: Path, options: TaskOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = load_lm_eval("local", options, tokenizer=tiny_tokenizer())
    item = suite.items[4]
    assert isinstance(item, ContinuationItem)
    setup = config(tmp_path, tiny_folder, options)
    write_lines(tmp_path / "train.jsonl", [{"text": item.contexts[0] + item.continuations[item.gold[0]]}])
    found = examine(setup)
    assert dict(found.facts)["suite"].startswith(f"{NAME}: 20 items")
    (leak,) = [finding for finding in found.findings if finding.about == "data.train" and "are in the" in finding.says]
    # The line that lists them is one that does.
    line = leak.mend.removeprefix("see them with `backslide ").removesuffix("`")
    code, out, _ = call(capsys, *shlex.split(line), "--format", "json")
    shown = json.loads(out)
    assert code == 0 and shown["hash"] == suite.hash and item.id in shown["items"]


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    sys.argv = ["backslide", *map(str, words)]
    with pytest.raises(SystemExit) as ended:
        command()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_every_verb_that_names_a_suite_takes_them(
    tmp_path: Path, tiny_folder: Path, options: TaskOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    base, asked = tmp_path / "base.jsonl", options.words
    assert call(capsys, "baseline", tiny_folder, "--suite", SUITE, *asked, "--out", base)[0] == 0
    assert Record.load(base).header.suite_hash == digest(options)
    template = ["--model", tiny_folder]
    for words in (["ls", "--suite", SUITE], ["show", SUITE], ["check", SUITE]):
        code, out, err = call(capsys, "suite", *words, *asked, *template, "--format", "json")
        assert code == 0 and json.loads(out)["hash"] == digest(options), (words, err)
        code, out, err = call(capsys, "suite", *words, *asked)
        assert (code, out) == (2, "") and "needs a tokenizer; name the model with --model" in err
    code, out, _ = call(capsys, "power", "--suite", SUITE, *asked, *template, "--baseline", base, "--format", "json")
    assert code == 0 and json.loads(out)["suite"] == NAME
    code, _, err = call(capsys, "power", "--suite", SUITE, *asked)
    assert code == 2 and "name the model with --model" in err
    code, _, err = call(capsys, "suite", "ls", "--system-instruction", "Be terse.")
    assert code == 2 and "system_instruction=Be terse. is for lm-eval's tasks, and the suite is 'repertoire'" in err

    # A repair without a run is told the suite and its options.
    tuned = adapter(tmp_path / "tuned", str(tiny_folder), rate=1e-3)
    line = ["repair", tiny_folder, tuned, "--baseline", base, "--tolerance", "0.5", "--format", "json"]
    code, out, _ = call(capsys, *line, "--suite", SUITE, *asked, "--out", tmp_path / "out")
    assert code in (0, 1, 3) and json.loads(out)["line"]
    # Or the options alone: the baseline names the tasks.
    code, out, _ = call(capsys, *line, *asked, "--out", tmp_path / "other")
    assert code in (0, 1, 3) and json.loads(out)["line"]
    for words, says in (
        (["--suite", SUITE, "--include-path", options.include_path], "not on lm-eval:local ("),
        (["--suite", SUITE, *asked[:4]], "tasks of lm-eval with the options that they were asked with"),
        (["--include-path", options.include_path], "is not found under its name"),
        (["--suite", "repertoire", "--num-fewshot", "2"], "num_fewshot=2 is for lm-eval's tasks"),
    ):
        code, out, err = call(capsys, *line, *words, "--out", tmp_path / "refused")
        assert (code, out) == (2, "") and says in err and err.count("error: ") == 1, err
        assert not (tmp_path / "refused").exists()


def test_a_check_notes_how_it_asked(tmp_path: Path, tiny_folder: Path, options: TaskOptions) -> None:
    base = take_baseline(str(tiny_folder), tmp_path / "base.jsonl", suite=SUITE, tasks=options, dtype="float32")
    check_model(str(tiny_folder), base, suite=SUITE, tasks=options, out=tmp_path / "run")
    kept = RunFolder(tmp_path / "run").config
    assert (kept["suite"], kept["tasks"]) == (NAME, options.to_dict())
    # What does not fit is seen before the weights are read: here are none.
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    for file in tiny_folder.iterdir():
        (hollow / file.name).write_bytes(b"" if file.suffix == ".safetensors" else file.read_bytes())
    with pytest.raises(MismatchError, match="the baseline was measured on the suite lm-eval:local num_fewshot=2"):
        check_model(
            str(hollow),
            base,
            suite=SUITE,
            tasks=TaskOptions(include_path=options.include_path, apply_chat_template=True),
        )


def test_the_tokenizer_of_an_adapter_is_its_own_or_that_of_its_base(tmp_path: Path, tiny_folder: Path) -> None:
    of_base = tokenizer_fingerprint(load_tokenizer(tiny_folder))
    bare = tmp_path / "bare"
    bare.mkdir()
    write_json(bare / "adapter_config.json", {"base_model_name_or_path": str(tiny_folder)})
    (bare / "adapter_model.safetensors").write_bytes(b"")
    assert tokenizer_fingerprint(load_tokenizer(bare)) == of_base
    tiny_tokenizer(chat=False).save_pretrained(bare)
    assert tokenizer_fingerprint(load_tokenizer(bare)) != of_base
    # Nothing is loaded for a suite that needs none.
    assert suite_for("repertoire:5", TaskOptions(), "./nowhere").name == "repertoire:5"
