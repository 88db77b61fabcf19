"""Configurations: what is accepted, and the one line that names the mend for what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backslide.config import TuneConfig
from backslide.errors import ConfigError, InputError
from backslide.suite.lm_eval import TaskOptions

BASE = '[model]\nbase = "m"\n[data]\ntrain = "t.jsonl"\n'


def written(tmp_path: Path, text: str, name: str = "c.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[train]\nlearning_rat = 1e-4", r"unknown key 'learning_rat' in \[train\]; did you mean 'learning_rate'\?"),
        ("[train]\nlr = 1e-4", r"unknown key 'lr' in \[train\]; known are method, learning_rate, steps, .*, seed$"),
        ("[lora]\nrank = 8", r"unknown key 'rank' in \[lora\]; known are r, alpha, dropout, target_modules"),
        ("[gaurd]", r"unknown section 'gaurd'; did you mean 'guard'\?"),
        ("[zzz]", "unknown section 'zzz'; known are model, data, train, lora, guard, cure, output"),
        ('[train]\nlearning_rate = "5e-5"', r"train.learning_rate is '5e-5', a number is needed \(write 5e-5 without"),
        ("[train]\nsteps = 2.5", r"train.steps is 2\.5, a whole number is needed"),
        ("[train]\nsteps = true", "train.steps is True, a whole number is needed"),
        ("[train]\nlearning_rate = true", "train.learning_rate is True, a number is needed"),
        ("[train]\nmethod = 3", "train.method is 3, text in quotes is needed"),
        ("[train]\ngradient_checkpointing = 1", "train.gradient_checkpointing is 1, true or false is needed"),
        ("[train]\nseed = 2026-01-01", "train.seed is .*, a whole number is needed"),
        ("[lora]\ntarget_modules = [1]", r"lora.target_modules is \[1\], text in quotes or a list of texts is needed"),
        ("[train]\nsteps = 0", "train.steps is 0, a whole number from 1 is needed"),
        ("[train]\nepochs = 0", r"train.epochs is 0\.0, a number above 0 is needed"),
        ("[train]\nbatch_size = -1", "train.batch_size is -1, a whole number from 1 is needed"),
        ("[train]\nwarmup_steps = -1", "train.warmup_steps is -1, a whole number from 0 is needed"),
        ("[train]\nlearning_rate = nan", "train.learning_rate is nan, a number above 0 is needed"),
        ("[train]\nlearning_rate = inf", "train.learning_rate is inf, a number above 0 is needed"),
        ("[train]\nlearning_rate = -1e-4", "train.learning_rate is -0.0001, a number above 0 is needed"),
        ("[train]\nsteps = 3\nepochs = 1.5", r"train.steps = 3 and train.epochs = 1\.5 are both given; keep one"),
        ('[train]\nmethod = "lorra"', "train.method is 'lorra', one of lora, full is needed"),
        ("[lora]\nr = 0", "lora.r is 0, a whole number from 1 is needed"),
        ("[lora]\nalpha = 0", r"lora.alpha is 0\.0, a number above 0 is needed"),
        ("[lora]\ndropout = 1", r"lora.dropout is 1\.0, a share from 0 to below 1 is needed"),
        ("[lora]\ndropout = nan", "lora.dropout is nan, a share"),
        ('[guard]\non_regression = "revert"', "guard.on_regression is 'revert', one of warn, stop, rollback, lower_lr"),
        ("[guard]\nbudget = 5", r"guard.budget is 5\.0, a share of the training's time above 0 and up to 1 is needed"),
        ("[guard]\nlr_factor = 3", r"guard.lr_factor is 3\.0, a share above 0 and below 1 is needed"),
        ('[guard]\nsnapshots = "tape"', "guard.snapshots is 'tape', one of memory, disk is needed"),
        ("[guard]\nalpha = 0.9", r"guard.alpha is 0\.9, a probability above 0 and up to 0\.5 is needed"),
        ("[guard]\nalpha = 0", r"guard.alpha is 0\.0, a probability"),
        ("[guard]\ntolerance = 3", r"guard.tolerance is 3\.0, a share from 0 to below 1 is needed \(0\.03\)"),
        ("[guard]\nevery = 5\nlooks = 5", "guard.every = 5 and guard.looks = 5 are both given; keep one"),
        ("[guard]\nlooks = 0", "guard.looks is 0, a whole number from 1 is needed"),
        ("[guard]\nfewshot = 2", r"unknown key 'fewshot' in \[guard\]; did you mean 'num_fewshot'\?"),
        ("[guard]\nnum_fewshot = -1", "guard.num_fewshot is -1, a whole number from 0 is needed"),
        ("[guard]\nnum_fewshot = 2.5", "guard.num_fewshot is 2.5, a whole number is needed"),
        ("[guard]\nlimit = 0", "guard.limit is 0.0, a number of documents above 0 is needed"),
        ('[guard]\ninclude_path = "gone"', "guard.include_path is 'gone', which is no folder; give one of task files"),
        ("[guard]\nfewshot_as_multiturn = true", "guard.fewshot_as_multiturn is true, which needs apply_chat_template"),
        ('[guard]\napply_chat_template = "yes"', "guard.apply_chat_template is 'yes', true or false is needed"),
        ("[[train]]\nsteps = 3", r"train is \[.*\], a section is needed: \[train\] on a line of its own"),
    ],
)
def test_a_bad_configuration_is_one_line_that_names_the_mend(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, BASE + text + "\n")
    with pytest.raises(ConfigError, match=says) as raised:
        TuneConfig.load(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"\[model\] lacks the key 'base', which has no default"),
        ('[model]\nbase = "m"\n', r"\[data\] lacks the key 'train', which has no default"),
        ("model = 3\n", r"model is 3, a section is needed: \[model\] on a line of its own"),
        ("[model\n", "not TOML: "),
        ('{"model": {"base": "m"}}', "not TOML: "),
        (BASE + BASE, "not TOML: "),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as raised:
        TuneConfig.load(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_a_missing_file_and_one_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        TuneConfig.load(tmp_path / "none.toml")
    (tmp_path / "c.toml").write_bytes(b'[model]\nbase = "\xff"\n')
    with pytest.raises(ConfigError, match=r"c\.toml: byte 16 is 0xff, which is not UTF-8"):
        TuneConfig.load(tmp_path / "c.toml")
    assert issubclass(ConfigError, InputError) and ConfigError.exit_code == 2


def test_what_is_not_named_has_its_default(tmp_path: Path) -> None:
    config = TuneConfig.load(written(tmp_path, BASE, "support.toml"))
    assert config.folder == Path("runs/support")
    assert (config.train.method, config.train.rate, config.train.steps, config.train.epochs) == (
        "lora",
        2e-4,
        None,
        None,
    )
    assert (config.guard.alpha, config.guard.tolerance, config.guard.on_regression) == (0.05, 0.03, "warn")
    assert (config.lora.r, config.lora.target_modules, config.model.dtype) == (8, "all-linear", "auto")


def test_what_is_named_is_taken(tmp_path: Path) -> None:
    text = BASE + (
        '[train]\nmethod = "full"\nepochs = 2\nlearning_rate = 1\n'
        '[lora]\nalpha = 32\ntarget_modules = ["q_proj", "v_proj"]\n'
        '[guard]\nlooks = 3\ntolerance = 0\n[output]\ndir = "out"\n'
    )
    config = TuneConfig.load(written(tmp_path, text))
    assert (
        config.folder == Path("out") and config.guard.looks == 3 and config.lora.target_modules == ["q_proj", "v_proj"]
    )
    whole_numbers = (config.train.epochs, config.train.rate, config.lora.alpha, config.guard.tolerance)
    assert whole_numbers == (2.0, 1.0, 32.0, 0.0) and all(type(value) is float for value in whole_numbers)


def test_full_fine_tuning_has_a_lower_usual_rate(tmp_path: Path) -> None:
    assert TuneConfig.load(written(tmp_path, BASE + '[train]\nmethod = "full"\n')).train.rate == 2e-5


def test_a_configuration_survives_json(tmp_path: Path) -> None:
    config = TuneConfig.load(written(tmp_path, BASE + "[train]\nsteps = 3\n[guard]\nevery = 2\n"))
    assert TuneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_how_lm_evals_tasks_are_asked(tmp_path: Path) -> None:
    assert TuneConfig.load(written(tmp_path, BASE)).guard.tasks == TaskOptions()
    config = TuneConfig.load(
        written(
            tmp_path,
            BASE + f'[guard]\nsuite = "lm-eval:piqa"\ninclude_path = "{tmp_path}"\nnum_fewshot = 2\nlimit = 20\n'
            'apply_chat_template = true\nfewshot_as_multiturn = false\nsystem_instruction = "Be terse."\n',
        )
    )
    tasks = config.guard.tasks
    assert tasks == TaskOptions(
        include_path=str(tmp_path), num_fewshot=2, limit=20, apply_chat_template=True, fewshot_as_multiturn=False,
        system_instruction="Be terse.",
    )  # fmt: skip
    # What `run.json` holds of it, and what the command line is given.
    assert TaskOptions(**tasks.to_dict()) == tasks == TuneConfig.from_dict(config.to_dict()).guard.tasks
    assert tasks.words == [
        "--include-path", str(tmp_path), "--num-fewshot", "2", "--limit", "20", "--apply-chat-template",
        "--no-fewshot-as-multiturn", "--system-instruction", "Be terse.",
    ]  # fmt: skip
    assert TaskOptions(limit=1234567.0).words == ["--limit", "1234567"]
    assert TaskOptions(limit=0.5, num_fewshot=0).words == ["--num-fewshot", "0", "--limit", "0.5"]
