"""`tune`: one configuration, a guarded fine-tune, and a folder that is a model again."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from backslide.config import TuneConfig
from backslide.errors import ConfigError, DataError, InputError, MismatchError, ModelError
from backslide.files import write_lines
from backslide.gate import check_model, take_baseline
from backslide.judge import judge
from backslide.models import load_model, model_fingerprint, tokenizer_fingerprint
from backslide.record import Record
from backslide.report.summary import Summary
from backslide.rundir import PAGES
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.tune import Tuned, tune
from backslide.verdict import Zone

ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"Customer: question {i:02}? Agent: answer {i:02}."} for i in range(12)],
    "prompt/completion": [{"prompt": f"Question {i:02}?", "completion": f" Answer {i:02}."} for i in range(12)],
    "messages": [
        {"messages": [{"role": "user", "content": f"Question {i:02}?"}, {"role": "assistant", "content": "Answer."}]}
        for i in range(12)
    ],
}


@pytest.fixture(scope="module")
def choices(known_suite: Suite) -> Suite:
    """Only the choices: enough of one kind to prove that all is kept."""
    return Suite("choices", tuple(i for i in known_suite.items if i.kind == "choice"))


def config(tmp_path: Path, base: Path | str, rows: str = "text", **sections: dict[str, Any]) -> TuneConfig:
    write_lines(tmp_path / "train.jsonl", ROWS[rows])
    content: dict[str, dict[str, Any]] = {
        "model": {"base": str(base), "dtype": "float32"},
        "data": {"train": str(tmp_path / "train.jsonl")},
        "train": {"steps": 2, "batch_size": 4, "max_length": 64},
        "guard": {"looks": 1},
        "output": {"dir": str(tmp_path / "run")},
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    return TuneConfig.from_dict({name: {k: v for k, v in s.items() if v is not None} for name, s in content.items()})


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("rows", list(ROWS))
def test_what_was_trained_loads_again_and_is_what_was_judged(
    tmp_path: Path, tiny_folder: Path, choices: Suite, rows: str, method: str
) -> None:
    said: list[str] = []
    setup = config(tmp_path, tiny_folder, rows, train={"method": method, "learning_rate": 1e-3})
    tuned = tune(setup, suite=choices, say=said.append)
    assert (tuned.steps, tuned.planned) == (2, 2)
    assert tuned.model == tuned.run.path / "model" == tmp_path / "run" / "model"
    assert (tuned.model / "adapter_config.json").exists() is (method == "lora")
    assert not list(tuned.model.glob("*.bin")) and not list(tuned.model.glob("*.pt"))

    base, loaded = load_model(tiny_folder, dtype="float32"), load_model(tuned.model, dtype="float32")
    assert tokenizer_fingerprint(loaded.tokenizer) == tokenizer_fingerprint(base.tokenizer)
    adapters = [n for n, _ in loaded.model.named_parameters() if "lora_" in n]
    assert bool(adapters) is (method == "lora")
    assert model_fingerprint(loaded.model) != model_fingerprint(base.model)
    same_base = model_fingerprint(loaded.model, adapters=False) == model_fingerprint(base.model)
    assert same_base is (method == "lora")

    verdict = check_model(str(tuned.model), tuned.run.baseline, suite=choices)
    # The same numbers from the saved model as from the one that was trained.
    ended = judge(Record.load(tuned.run.baseline), Record.load(tuned.run.final))
    assert verdict == dataclasses.replace(ended, step=None)
    losses = Summary.of(tuned.run).losses.train
    assert len(losses) == 2 and all(math.isfinite(loss) for _, loss in losses)
    assert not [line for line in said if "template" in line or "padding" in line or "cut" in line]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_learns(tmp_path: Path, tiny_folder: Path, choices: Suite, method: str) -> None:
    write_lines(tmp_path / "held.jsonl", ROWS["text"][:4])
    setup = config(
        tmp_path, tiny_folder, data={"held_out": str(tmp_path / "held.jsonl")},
        train={"method": method, "learning_rate": 1e-2, "steps": 12, "scheduler": "constant"}, guard={"looks": 2},
    )  # fmt: skip
    tuned = tune(setup, suite=choices)
    summary = Summary.of(tuned.run)
    assert summary.losses.train[-1][1] < 0.9 * summary.losses.train[0][1]
    steps, held = zip(*summary.losses.held_out, strict=True)
    assert steps == (0, *(look.step for look in summary.looks)), "the target's loss is known where the guard looked"
    assert held[-1] < 0.9 * held[0]
    model = load_model(tiny_folder, dtype="float32").model
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        losses = []
        for row in ROWS["text"][:4]:
            tokens = torch.tensor([[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]])
            losses.append(float(model(input_ids=tokens, labels=tokens).loss))
    assert held[0] == pytest.approx(sum(losses) / len(losses), abs=1e-3), "step 0 is the base model"


def test_the_base_itself_loses_and_wins_nothing(tmp_path: Path, tiny_folder: Path, choices: Suite) -> None:
    tuned = tune(config(tmp_path, tiny_folder), suite=choices)
    for part in ("gate", "monitor", "all"):
        verdict = check_model(str(tiny_folder), tuned.run.baseline, suite=choices, part=part, tolerance=0.15)
        assert [(row.lost, row.won, row.drop, row.soft and row.soft.drop) for row in verdict.capabilities] == [
            (0, 0, 0, 0)
        ] * 2
        assert verdict.zone is Zone.RETAINED and verdict.exit_code == 0


def test_a_model_that_forgot_is_stopped_and_fails_the_gate(tmp_path: Path, tiny_folder: Path, choices: Suite) -> None:
    setup = config(
        tmp_path, tiny_folder, train={"method": "full", "learning_rate": 0.3, "steps": 8, "scheduler": "constant"},
        guard={"looks": None, "every": 2, "on_regression": "stop"},
    )  # fmt: skip
    tuned = tune(setup, suite=choices)
    assert tuned.verdict.zone is Zone.REGRESSED and (tuned.steps, tuned.planned) == (2, 8)
    assert Summary.of(tuned.run).stopped_at == 2
    out = tmp_path / "check"
    verdict = check_model(str(tuned.model), tuned.run.baseline, suite=choices, out=out)
    assert verdict.exit_code == 1
    assert {path.name for path in out.iterdir()} == {
        "run.json", "baseline.jsonl", "final.jsonl", "events.jsonl", "verdict.json", *PAGES,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({"steps": 5, "batch_size": 4}, 5),
        ({"steps": None, "epochs": 2, "batch_size": 4}, 6),
        ({"steps": None, "epochs": 0.5, "batch_size": 4}, 2),
        ({"steps": None, "batch_size": 5}, 3),
        ({"steps": None, "epochs": 1, "batch_size": 2, "gradient_accumulation": 3}, 2),
    ],
)
def test_steps_and_epochs(tmp_path: Path, tiny_folder: Path, choices: Suite, train: dict[str, Any], steps: int) -> None:
    tuned = tune(config(tmp_path, tiny_folder, train=train), suite=choices)
    assert (tuned.steps, tuned.planned) == (steps, steps)
    assert tuned.run.config["setup"]["steps"] == steps


def test_the_same_configuration_gives_the_same_model(tmp_path: Path, tiny_folder: Path, choices: Suite) -> None:
    found = []
    for seed in (1, 1, 2):
        setup = config(tmp_path, tiny_folder, train={"seed": seed, "method": "lora"}, lora={"dropout": 0.2})
        found.append(model_fingerprint(load_model(tune(setup, suite=choices).model, dtype="float32").model))
    assert found[0] == found[1] != found[2]


def test_a_baseline_of_its_own_is_taken_and_not_measured_again(
    tmp_path: Path, tiny_folder: Path, choices: Suite
) -> None:
    given = take_baseline(str(tiny_folder), tmp_path / "baseline.jsonl", suite=choices, dtype="float32")
    choices.save(tmp_path / "choices.jsonl")
    guard = {"baseline": str(tmp_path / "baseline.jsonl"), "suite": str(tmp_path / "choices.jsonl")}
    for method in ("lora", "full"):
        tuned = tune(config(tmp_path, tiny_folder, guard=guard, train={"method": method}))
        assert Record.load(tuned.run.baseline) == given
        assert [e["how"] for e in tuned.run.events() if e["event"] == "baseline"] == ["given"]


# What is missing in a tokenizer.


@pytest.fixture
def bare_folder(tmp_path: Path) -> Path:
    """A model whose tokenizer has neither a chat template nor a padding token."""
    tiny_model().save_pretrained(tmp_path / "bare")
    tiny_tokenizer(chat=False, pad=False).save_pretrained(tmp_path / "bare")
    return tmp_path / "bare"


@pytest.mark.parametrize("rows", list(ROWS))
def test_a_bare_tokenizer_is_made_do_and_said(tmp_path: Path, bare_folder: Path, choices: Suite, rows: str) -> None:
    said: list[str] = []
    held = tmp_path / "held.jsonl"
    write_lines(held, ROWS[rows][:2])
    tuned = tune(config(tmp_path, bare_folder, rows, data={"held_out": str(held)}), suite=choices, say=said.append)
    assert [line for line in said if "no padding token" in line]
    assert bool([line for line in said if "messages are trained on as plain text" in line]) is (rows == "messages")
    notes = Record.load(tuned.run.baseline).header.notes
    assert [note for note in notes if "no chat template" in note]
    assert "no chat template" in tuned.run.report.read_text()
    losses = Summary.of(tuned.run).losses
    assert all(math.isfinite(loss) for _, loss in (*losses.train, *losses.held_out))
    verdict = check_model(str(bare_folder), tuned.run.baseline, suite=choices)
    assert all((row.lost, row.won) == (0, 0) for row in verdict.capabilities), "the base is still itself"
    assert check_model(str(tuned.model), tuned.run.baseline, suite=choices).zone in Zone


def test_short_rows_count_for_no_more_without_a_padding_token(tmp_path: Path, choices: Suite) -> None:
    """What fills a row is masked from the loss, whatever token it is."""
    losses = []
    for pad in (True, False):
        base = tmp_path / f"base-{pad}"
        tiny_model().save_pretrained(base)
        tiny_tokenizer(pad=pad).save_pretrained(base)
        setup = config(tmp_path, base, train={"batch_size": 12, "steps": 1})
        rows = [{"text": "word " * n} for n in range(1, 13)]
        write_lines(tmp_path / "train.jsonl", rows)
        losses.append(Summary.of(tune(setup, suite=choices).run).losses.train[0][1])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_what_is_left_out_or_cut_is_said(tmp_path: Path, tiny_folder: Path, choices: Suite) -> None:
    setup = config(tmp_path, tiny_folder, train={"max_length": 20, "steps": 1})
    write_lines(tmp_path / "train.jsonl", [{"text": "a" * 10}, {"text": "a" * 30}, {"text": " "}, {"text": "b"}])
    said: list[str] = []
    tune(setup, suite=choices, say=said.append)
    assert [line for line in said if "1 empty line left out" in line]
    assert [line for line in said if "1 of 3 training examples are cut at train.max_length = 20" in line]


def leaked(item: Any) -> dict[str, str]:
    """A training example that is an item of the suite, with its answer."""
    return {"text": f"Question: {item.prompt.upper()} Answer: {item.choices[item.gold]}"}


def test_items_in_the_training_data_are_said_in_events_run_and_report(
    tmp_path: Path, tiny_folder: Path, choices: Suite
) -> None:
    setup = config(tmp_path, tiny_folder)
    rows = [*ROWS["text"], leaked(choices.items[3]), leaked(choices.items[8])]
    write_lines(tmp_path / "train.jsonl", rows)
    said: list[str] = []
    tuned = tune(setup, suite=choices, say=said.append)
    ids, train = [choices.items[3].id, choices.items[8].id], tmp_path / "train.jsonl"
    (line,) = [line for line in said if "found in" in line]
    assert line == (
        f"2 items of the suite choices found in {train}, such as '{ids[0]}' at {train}:13; "
        "left out of the verdicts, backslide suite check lists them"
    )
    places = [f"{train}:13", f"{train}:14"]
    assert [(leak["item"], leak["place"], leak["kind"]) for leak in tuned.run.config["leaks"]] == [
        (id, place, "exact") for id, place in zip(ids, places, strict=True)
    ]
    (event,) = [event for event in tuned.run.events() if event["event"] == "leaks"]
    assert (event["step"], event["items"]) == (0, ids)
    # They are measured, and left out of what each half is judged by.
    assert tuned.run.config["left_out"] == sorted(ids)
    judged = {half: len([item for item in choices.part(half) if item.id not in ids]) for half in ("monitor", "gate")}
    assert sum(judged.values()) == len(choices.items) - 2
    assert tuned.verdict.claim.startswith(f"{judged['gate']} items of the suite choices")
    assert {e["items"] for e in tuned.run.events() if e["event"] == "look"} == {judged["monitor"]}
    assert len(Record.load(tuned.run.baseline).outcomes) == len(choices.items)
    report = tuned.run.report.read_text()
    assert "Items of the suite that were found in the training data: 2." in report
    assert f"exact, {train}:14" in report.replace("\\", "")

    write_lines(tmp_path / "train.jsonl", ROWS["text"])
    said.clear()
    clean = tune(setup, suite=choices, say=said.append).run
    assert clean.config["leaks"] == [] and "found in the training data" not in clean.report.read_text()
    assert not [line for line in said if "found in" in line]
    assert not [event for event in clean.events() if event["event"] == "leaks"]


def test_of_several_processes_one_says_what_all_know(
    tmp_path: Path, tiny_folder: Path, choices: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = config(tmp_path, tiny_folder)
    write_lines(tmp_path / "train.jsonl", [*ROWS["text"], {"text": " "}, {"text": "cut " * 200}])
    said = {first: list[str]() for first in (True, False)}
    for first, lines in said.items():
        monkeypatch.setattr("backslide.tune.first_process", lambda first=first: first)
        monkeypatch.setattr("backslide.cure.attached.first_process", lambda first=first: first)
        tune(setup, suite=choices, say=lines.append)
    for words in ("1 empty line left out", "training examples are cut at"):
        assert [sum(words in line for line in lines) for lines in said.values()] == [1, 0], words


# What is refused leaves nothing behind.


def refused(tmp_path: Path, setup: TuneConfig, suite: Suite | None, error: type[InputError], says: str) -> None:
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(error, match=says) as raised:
        tune(setup, suite=suite)
    assert len(str(raised.value).splitlines()) == 1
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_bad_input_leaves_nothing(tmp_path: Path, tiny_folder: Path, choices: Suite) -> None:
    other = tmp_path / "other"
    tiny_model(seed=3).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    take_baseline(str(other), tmp_path / "other.jsonl", suite=choices, dtype="float32")
    hollow = tmp_path / "hollow"
    shutil.copytree(tiny_folder, hollow, ignore=shutil.ignore_patterns("*.safetensors"))
    write_lines(tmp_path / "pairs.jsonl", ROWS["prompt/completion"])
    (tmp_path / "a-file").write_text("")
    adapter = tune(config(tmp_path, tiny_folder), suite=choices).model

    def bad(error: type[InputError], says: str, base: Path = tiny_folder, **sections: dict[str, Any]) -> None:
        sections = {"output": {"dir": str(tmp_path / "new" / "run")}, **sections}
        refused(tmp_path, config(tmp_path, base, **sections), choices, error, says)

    bad(MismatchError, "other weights", guard={"baseline": str(tmp_path / "other.jsonl")})
    bad(ConfigError, "nonsense", lora={"target_modules": ["nonsense"]})
    bad(ConfigError, "sideways", train={"scheduler": "sideways"})
    bad(ConfigError, "int3", model={"dtype": "int3"})
    bad(ModelError, "no weights", base=hollow)
    bad(ModelError, "is an adapter", base=adapter)
    bad(DataError, "the format prompt/completion", data={"held_out": str(tmp_path / "pairs.jsonl")})
    write_lines(tmp_path / "leaky.jsonl", [*ROWS["text"], leaked(choices.items[5])])
    leaky = {"data": {"train": str(tmp_path / "leaky.jsonl")}, "guard": {"strict": True}}
    bad(
        DataError,
        r"1 item of the suite choices found in .*:13; train without them, or with strict = false leave",
        **leaky,
    )
    bad(DataError, "no such file", data={"train": str(tmp_path / "nowhere.jsonl")})
    bad(ConfigError, "a-file', which cannot be made", output={"dir": str(tmp_path / "a-file")})
    bad(ConfigError, "run', which cannot be made", output={"dir": str(tmp_path / "a-file" / "run")})


def test_a_refused_run_leaves_an_earlier_one_alone(tmp_path: Path, tiny_folder: Path, choices: Suite) -> None:
    tuned = tune(config(tmp_path, tiny_folder), suite=choices)
    setup = config(tmp_path, tiny_folder, lora={"target_modules": ["nonsense"]})
    refused(tmp_path, setup, choices, ConfigError, "nonsense")
    assert tuned.run.verdict() == tuned.verdict


# Model folders that only look whole.


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_folder_that_lacks_some_weights_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    """transformers would make them up at random and say so in a log line."""
    from safetensors.torch import save_file

    shutil.copytree(tiny_folder, tmp_path / "partial")
    tensors = weights_of(tiny_folder)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "partial" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"partial.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(tmp_path / "partial")


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.tie_word_embeddings = True
    tied = type(model)(model.config)
    tied.save_pretrained(tmp_path / "tied")
    tiny_tokenizer().save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in weights_of(tmp_path / "tied")
    loaded = load_model(tmp_path / "tied", dtype="float32")
    assert model_fingerprint(loaded.model) == model_fingerprint(tied)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, tiny_folder: Path, choices: Suite) -> None:
    adapter = tune(config(tmp_path, tiny_folder), suite=choices).model
    wide = tmp_path / "wide"
    tiny_model(width=64).save_pretrained(wide)
    tiny_tokenizer().save_pretrained(wide)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for base, says in ((str(wide), "do not fit: .*size mismatch"), (str(tmp_path / "gone"), "no such model folder")):
        (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
        with pytest.raises(ModelError, match=says) as raised:
            load_model(adapter)
        assert len(str(raised.value).splitlines()) == 1


def test_an_adapter_that_lacks_some_weights_is_refused(tmp_path: Path, tiny_folder: Path, choices: Suite) -> None:
    from safetensors.torch import load_file, save_file

    adapter = tune(config(tmp_path, tiny_folder), suite=choices).model
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors[next(name for name in tensors if "layers.1" in name and "lora_B" in name)]
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1.*lora_B"):
        load_model(adapter)


def test_the_run_says_how_it_was_made(tmp_path: Path, tiny_folder: Path, choices: Suite) -> None:
    setup = config(tmp_path, tiny_folder, lora={"r": 3}, train={"learning_rate": 3e-4, "seed": 7})
    tuned: Tuned = tune(setup, suite=choices)
    run = tuned.run.config
    assert run["config"] == json.loads(json.dumps(dataclasses.asdict(setup)))
    assert run["suite_hash"] == choices.hash
    made = run["setup"]
    assert (made["method"], made["rank"], made["learning_rate"], made["seed"]) == ("lora", 3, 3e-4, 7)
