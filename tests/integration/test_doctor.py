"""`doctor`: what it says would break does break, what it counts is what is made, and a sound run has nothing to say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from backslide import doctor
from backslide.cli.main import run
from backslide.config import TuneConfig
from backslide.doctor import Examination, examine
from backslide.doctor.setting import steps_of
from backslide.errors import BackslideError, InputError
from backslide.files import write_lines
from backslide.suite.item import ChoiceItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_tokenizer
from backslide.tune import tune

TRAIN = [{"text": f"Customer: question {i:03}? Agent: answer {i:03}."} for i in range(120)]
HELD_OUT = [{"text": f"Customer: other {i:03}? Agent: words {i:03}."} for i in range(24)]
SOUND: dict[str, dict[str, Any]] = {
    "train": {"epochs": 2, "batch_size": 8, "max_length": 64, "learning_rate": 2e-4},
    "guard": {"looks": 4, "on_regression": "stop", "tolerance": 0.2},
    "cure": {"replay": 0.05},
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "suite.jsonl"
    Suite("s", tuple(
        ChoiceItem(id=f"c/{i}", capability="c", prompt=f"How many stones are in the box when {i} of them lie beside {i + 1} others?",
                   choices=(str(2 * i + 1), str(2 * i)), gold=i % 2)
        for i in range(700)
    )).save(path)  # fmt: skip
    return path


def config(tmp_path: Path, base: Path | str, suite: Path, **sections: Mapping[str, Any]) -> TuneConfig:
    for name, rows in (("train", TRAIN), ("held", HELD_OUT), ("old", TRAIN[:3])):
        write_lines(tmp_path / f"{name}.jsonl", rows)
    content: dict[str, dict[str, Any]] = {
        "model": {"base": str(base), "dtype": "float32"},
        "data": {"train": str(tmp_path / "train.jsonl"), "held_out": str(tmp_path / "held.jsonl")},
        "output": {"dir": str(tmp_path / "run")},
        **SOUND,
    }
    content["guard"] = {"suite": str(suite), **content["guard"]}
    content["cure"] = {"data": str(tmp_path / "old.jsonl"), **content["cure"]}
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    return TuneConfig.from_dict({name: {k: v for k, v in s.items() if v is not None} for name, s in content.items()})


def told(found: Examination, level: str) -> list[str]:
    return [f"{f.about}: {f.says} → {f.mend}" for f in found.findings if f.level == level]


def test_a_sound_run_has_nothing_to_say(tmp_path: Path, tiny_folder: Path, suite: Path) -> None:
    found = examine(config(tmp_path, tiny_folder, suite))
    assert told(found, "error") == told(found, "warning") == told(found, "note") == []
    assert not found.broken and not (tmp_path / "run").exists(), "nothing is written"
    facts = dict(found.facts)
    assert facts["training examples"] == "120, text" and facts["held-out examples"] == "24"
    assert facts["looks"].startswith("4: after step ") and "700 items that are judged, 1 capab" in facts["suite"]


BREAKS: list[tuple[dict[str, dict[str, Any]], str]] = [
    ({"data": {"train": "none.jsonl"}}, "data.train: none.jsonl: no such file"),
    ({"data": {"held_out": "none.jsonl"}}, "data.held_out: none.jsonl: no such file"),
    ({"guard": {"suite": "none.jsonl"}}, "guard.suite: none.jsonl"),
    ({"guard": {"baseline": "none.jsonl"}}, "guard.baseline: none.jsonl"),
    ({"model": {"base": "./nowhere"}}, "model.base: './nowhere': no such model folder"),
    ({"train": {"scheduler": "linaer"}}, "which is no schedule of transformers; did you mean 'linear'?"),
    ({"train": {"scheduler": "cosine_with_min_lr"}}, "is 'cosine_with_min_lr', which needs settings"),
    ({"train": {"scheduler": "warmup_stable_decay"}}, "is 'warmup_stable_decay', which needs settings"),
    ({"train": {"scheduler": "reduce_lr_on_plateau"}}, "is 'reduce_lr_on_plateau', which needs evaluations"),
    ({"model": {"dtype": "fp16"}}, "model.dtype: 'fp16' is none of auto, "),
    ({"lora": {"target_modules": ["q_prjo"]}}, "→ did you mean 'q_proj'?"),
    ({"lora": {"target_modules": ["qproj", "vproj"]}}, "→ did you mean 'q_proj'?"),
    ({"lora": {"target_modules": "nothing.*"}}, "lora.target_modules: Target modules nothing.* not found"),
    ({"lora": {"target_modules": ".*mlp.*"}}, "lora.target_modules: "),
    ({"lora": {"target_modules": []}}, "lora.target_modules: "),
    ({"lora": {"target_modules": ["lm_head", "q_proj"]}}, "names the output layer, on which TRL trains no adapter"),
    ({"cure": {"data": "none.jsonl"}}, "cure.data: none.jsonl: no such file"),
    ({"cure": {"data": None, "prompts": "none.txt"}}, "cure.prompts: none.txt: no such file"),
]


@pytest.mark.parametrize(("change", "says"), BREAKS, ids=[says[:30] for _, says in BREAKS])
def test_what_would_break_does_break(
    tmp_path: Path, tiny_folder: Path, suite: Path, change: dict[str, dict[str, Any]], says: str
) -> None:
    setup = config(tmp_path, tiny_folder, suite, **change)
    found = examine(setup)
    assert found.broken and [line for line in told(found, "error") if says in line], found.findings
    with pytest.raises(InputError):
        tune(setup)


def test_other_data_that_would_break(tmp_path: Path, tiny_folder: Path, suite: Path) -> None:
    setup = config(tmp_path, tiny_folder, suite)
    write_lines(tmp_path / "held.jsonl", [{"prompt": "a", "completion": "b"}] * 30)
    assert any(
        "is of the format prompt/completion, the training file is text" in e for e in told(examine(setup), "error")
    )
    with pytest.raises(BackslideError):
        tune(setup)
    # An item of the suite in the training data: an error where that is to be one.
    write_lines(tmp_path / "held.jsonl", HELD_OUT)
    write_lines(
        tmp_path / "train.jsonl",
        [{"text": "How many stones are in the box when 333 of them lie beside 334 others? 667"}, *TRAIN],
    )
    (warned,) = told(examine(setup), "warning")
    assert "1 items of the suite suite are in the training data (1 of c)" in warned and "train.jsonl:1" in warned
    strict = TuneConfig.from_dict({**setup.to_dict(), "guard": {**setup.to_dict()["guard"], "strict": True}})
    assert told(examine(strict), "error")
    with pytest.raises(BackslideError):
        tune(strict)


def test_a_baseline_of_another_suite_would_break(tmp_path: Path, tiny_folder: Path, suite: Path) -> None:
    from builders import choices, record

    record(choices([True] * 10), suite="other", suite_hash="f" * 64).save(tmp_path / "b.jsonl")
    setup = config(tmp_path, tiny_folder, suite, guard={"baseline": str(tmp_path / "b.jsonl")})
    (line,) = told(examine(setup), "error")
    assert "is of the suite other (ffffffffffff), the run asks suite (" in line
    with pytest.raises(BackslideError):
        tune(setup)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": {"held_out": None}}, "data.held_out: there is none: that the task is learnt"),
        ({"train": {"epochs": 12}}, "120 examples would be seen 12.0 times"),
        ({"train": {"epochs": None, "steps": 400}}, "train.steps: 120 examples would be seen 26.7 times"),
        ({"train": {"epochs": None, "steps": 5}}, "the run has 5 steps: too few to learn from"),
        ({"train": {"warmup_steps": 30}}, "30, and the run has 30 steps: it would never reach its learning rate"),
        ({"train": {"learning_rate": 1e-2}}, "times the 0.001 that is usual for an adapter on a model of"),
        ({"train": {"learning_rate": 1e-6}}, "it may learn nothing"),
        ({"train": {"max_length": 20}}, "100% of the examples are longer than 20 tokens and lose their end"),
        ({"lora": {"alpha": 64.0}}, "64 over r = 8 multiplies the adapter's update by 8"),
        ({"lora": {"target_modules": ["q_proj", "vproj"]}}, "the model has no layer 'vproj' → did you mean"),
        ({"model": {"dtype": "bfloat16"}, "train": {"method": "full"}}, "bfloat16 with all weights"),
        ({"guard": {"looks": 1}}, "has one look, at its end"),
        ({"guard": {"suite": "repertoire:20"}}, "can lose more than 10 points unseen"),
    ],
)
def test_what_would_mislead(
    tmp_path: Path, tiny_folder: Path, suite: Path, change: dict[str, dict[str, Any]], says: str
) -> None:
    found = examine(config(tmp_path, tiny_folder, suite, **change))
    assert [line for line in told(found, "warning") if says in line], found.findings
    assert not found.broken


def test_data_that_would_mislead(tmp_path: Path, tiny_folder: Path, suite: Path) -> None:
    setup = config(tmp_path, tiny_folder, suite)
    write_lines(tmp_path / "held.jsonl", [*TRAIN[:5], *HELD_OUT[:5]])
    write_lines(tmp_path / "train.jsonl", [*TRAIN, *TRAIN[:20], {"text": " "}])
    found = examine(setup)
    warned = " ".join(told(found, "warning"))
    assert "20 of 140 examples are copies of others" in warned
    assert "5 of 10 held-out examples are in the training data" in warned
    assert "10 examples: their mean loss is mostly noise" in warned
    assert any("1 lines of" in line and "have no text" in line for line in told(found, "note"))


def test_prompts_that_fill_the_row_teach_nothing(tmp_path: Path, tiny_folder: Path, suite: Path) -> None:
    setup = config(tmp_path, tiny_folder, suite, data={"held_out": None}, train={"max_length": 30})
    write_lines(tmp_path / "train.jsonl", [{"prompt": "word " * 20 + str(i), "completion": " yes"} for i in range(40)])
    assert any("in 100.0% of the examples the prompt alone fills 30 tokens" in w for w in told(examine(setup), "error"))
    with pytest.raises(BackslideError):
        tune(setup)
    # The trainer leaves such rows out: fewer steps, less to see.
    some = [{"prompt": "2+2 =", "completion": f" {i}"} for i in range(40)]
    long = [{"prompt": "word " * 20 + str(i), "completion": " yes"} for i in range(40)]
    write_lines(tmp_path / "train.jsonl", [*some, *long])
    found = examine(setup)
    assert any("in 50.0% of the examples" in w for w in told(found, "warning"))
    assert dict(found.facts)["optimizer steps"].startswith("10 of 8")


def test_chats_without_a_template(tmp_path: Path, tiny_folder: Path, suite: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "bare")
    for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"):
        (tmp_path / "bare" / name).unlink(missing_ok=True)
    tiny_tokenizer(chat=False).save_pretrained(tmp_path / "bare")
    setup = config(tmp_path, tmp_path / "bare", suite, data={"held_out": None})
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    write_lines(tmp_path / "train.jsonl", [{"messages": turns}] * 40)
    assert any(
        "no chat template: messages would be trained on as plain text" in w for w in told(examine(setup), "warning")
    )


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other layers than linear ones, with learned positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), tiny_tokenizer()
    GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0,
    )).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


def few(suite: Path) -> Suite:
    return Suite("s", Suite.load(str(suite)).items[:20])


@pytest.mark.parametrize("wanted", ["all-linear", ["c_attn"], r".*c_(attn|fc)"])
def test_layers_that_are_not_linear_are_counted_as_peft_does(
    tmp_path: Path, gpt2: Path, suite: Path, wanted: Any
) -> None:
    setup = config(
        tmp_path, gpt2, suite, lora={"target_modules": wanted}, train={"epochs": None, "steps": 1},
        guard={"suite": str(suite), "looks": 1}, cure={"replay": 0.0},
    )  # fmt: skip
    assert told(examine(setup), "error") == []
    base = doctor.look_at_model(setup, None, None, doctor.Notebook())
    tuned = tune(setup, suite=few(suite))
    assert base is not None and base.trained == tuned.run.config["setup"]["trainable"] > 0


def test_rows_beyond_learned_positions_would_break(tmp_path: Path, gpt2: Path, suite: Path) -> None:
    setup = config(tmp_path, gpt2, suite, train={"max_length": 200}, data={"held_out": None})
    write_lines(tmp_path / "train.jsonl", [{"text": "word " * 20 + str(i)} for i in range(40)])
    assert any("the model was made for 64" in line for line in told(examine(setup), "error"))
    with pytest.raises((BackslideError, IndexError)):
        tune(setup, suite=few(suite))


def test_a_quantised_base_is_no_error_for_its_size(
    tmp_path: Path, tiny_folder: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "q")
    path = tmp_path / "q" / "config.json"
    kind = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": kind}))
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Little", (), {"available": 1000}))
    found = examine(config(tmp_path, tmp_path / "q", suite))
    assert not any("optimizer alone need" in line for line in told(found, "error"))
    assert any("whether it fits is not told" in line for line in told(found, "note"))


def test_a_tokenizer_without_an_end_would_break(tmp_path: Path, tiny_folder: Path, suite: Path) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(tiny_folder, tmp_path / "endless")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "endless")
    tokenizer.pad_token, tokenizer.eos_token = tokenizer.eos_token, None
    tokenizer.save_pretrained(tmp_path / "endless")
    setup = config(tmp_path, tmp_path / "endless", suite)
    assert any("has no end token" in line for line in told(examine(setup), "error"))
    with pytest.raises(InputError):
        tune(setup, suite=few(suite))


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"epochs": 1.5, "batch_size": 7}},
        {"train": {"epochs": None, "batch_size": 50, "gradient_accumulation": 2}},
        {"train": {"epochs": None, "steps": 2, "method": "full"}, "lora": {"r": 4}},
        {"train": {"epochs": None, "steps": 2}, "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}},
        {"train": {"epochs": None, "steps": 2}, "lora": {"target_modules": r".*layers\.0\..*(up|down)_proj"}},
    ],
)
def test_what_it_counts_is_what_is_made(
    tmp_path: Path, tiny_folder: Path, suite: Path, change: dict[str, dict[str, Any]]
) -> None:
    small = {"guard": {"suite": str(suite), "looks": 1}, "cure": {"replay": 0.0}}
    setup = config(tmp_path, tiny_folder, suite, **small, **change)
    found = examine(setup)
    from backslide.data import TrainingData

    steps = steps_of(setup, TrainingData.load(setup.data.train))
    items = Suite.load(str(suite)).items[:20]
    tuned = tune(setup, suite=Suite("s", items))
    assert steps == tuned.planned
    made = tuned.run.config["setup"]
    base = doctor.look_at_model(setup, None, None, doctor.Notebook())
    assert base is not None and base.trained == made["trainable"] and not found.broken
    # The guard counts the adapter's own weights among the model's.
    assert base.parameters + (base.trained if setup.train.method == "lora" else 0) == made["parameters"]


def test_what_does_not_fit_is_said(
    tmp_path: Path, tiny_folder: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Little:
        available = 1000
        free = 1000

    monkeypatch.setattr("psutil.virtual_memory", Little)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Little)
    lines = told(examine(config(tmp_path, tiny_folder, suite)), "error")
    assert any("weights, gradients and optimizer alone need" in line for line in lines)
    assert any("output.dir: the model takes" in line for line in lines)


def test_on_the_command_line(
    tmp_path: Path, tiny_folder: Path, suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config(tmp_path, tiny_folder, suite)
    toml = tmp_path / "c.toml"
    for scheduler, code in (("linear", 0), ("cosin", 2)):
        toml.write_text(
            f'[model]\nbase = "{tiny_folder}"\n[data]\ntrain = "{tmp_path / "train.jsonl"}"\n'
            f'[train]\nscheduler = "{scheduler}"\n[guard]\nsuite = "{suite}"\n[output]\ndir = "{tmp_path / "run"}"\n'
        )
        for form in ("text", "json"):
            monkeypatch.setattr("sys.argv", ["backslide", "doctor", str(toml), "--format", form])
            with pytest.raises(SystemExit) as ended:
                run()
            assert ended.value.code == code
            out = " ".join(capsys.readouterr().out.split())
            if form == "json":
                row = json.loads(out)
                assert row["broken"] is (code == 2) and row["facts"]["training examples"] == "120, text"
                assert {f["level"] for f in row["findings"]} >= {"warning"}
            else:
                assert ("did you mean 'cosine'?" in out) is (code == 2) and "training examples" in out
