"""What replay says, in one line, of data and trainers that it cannot mix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from trl import DPOConfig, DPOTrainer, SFTTrainer

from backslide.cure.replay import Replay
from backslide.errors import ConfigError, DataError, InputError
from backslide.testing import tiny_model, tiny_tokenizer
from replay_runs import CHAT, NEW, OLD, Raise, make, tokens


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], r"the old data: no usable text: there is no row; give rows"),
        ([{"text": ""}, {"text": "\n"}], "none of its 2 rows holds text"),
        ([{"text": "a"}, {"body": "b"}], r"row 2 of the old data has the keys body; text, or prompt and completion"),
        ([{"text": "a"}, *CHAT], r"row 2 of the old data is of the format messages, the rows before are text"),
        ([{"text": 3}], "row 1 of the old data has int in 'text', text is needed"),
        (["a text"], r"row 1 of the old data is 'a text', a row such as"),
        ([{"messages": "hello"}], "row 1 of the old data has 'hello' in 'messages', a list of messages"),
        ({"text": "a"}, "the old data are a dict; a list of rows"),
        (DatasetDict({"train": Dataset.from_list(OLD)}), "are a DatasetDict; .*of a DatasetDict one split"),
        (Dataset.from_list(OLD).to_iterable_dataset(), "are a IterableDataset.* of a stream"),
        ("nowhere.jsonl", "nowhere.jsonl: no such file"),
    ],
)  # fmt: skip
def test_old_data_that_cannot_be_used(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as bad:
        Replay(source)
    assert "\n" not in str(bad.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ratio": 0.7}, "ratio is 0.7"),
        ({"seed": -1}, "seed is -1"),
        ({"most": 2}, "most is 2"),
        ({"seed": 0.5}, "seed is"),
    ],
)
def test_arguments_that_are_none(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Replay(OLD, **more)


def test_a_ratio_that_is_set_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"ratio is 0\.6, a share of at least 0 and at most 0\.5"):
        Replay(OLD).set_ratio(0.6)


def dpo(folder: Path) -> Any:
    data = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    args = DPOConfig(output_dir=str(folder), report_to="none", use_cpu=True, bf16=False)
    return DPOTrainer(tiny_model(), tiny_model(), args=args, train_dataset=data, processing_class=tiny_tokenizer())


def with_unpadded(folder: Path) -> Any:
    return make(folder, collator=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])})


def with_more_columns(folder: Path) -> Any:
    rows = [{**row, "token_type_ids": [0] * len(row["input_ids"])} for row in tokens(NEW)]
    return make(folder, data=rows, remove_unused_columns=False)


def learning_turns_only(folder: Path) -> Any:
    tokenizer = tiny_tokenizer()
    marked = "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message['role'] }}|>"
        + marked + "{% else %}{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    )  # fmt: skip
    from trl import SFTConfig

    args = SFTConfig(
        output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, assistant_only_loss=True, max_steps=2
    )
    return SFTTrainer(
        tiny_model(), args, train_dataset=Dataset.from_list(CHAT), processing_class=tokenizer
    )  # fmt: skip


def without(attribute: str) -> Callable[[Path], Any]:
    def made(folder: Path) -> Any:
        trainer = make(folder)
        setattr(trainer, attribute, None)
        return trainer

    return made


FALSE_TURN = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}, *CHAT]


@pytest.mark.parametrize(
    ("trainer", "old", "message"),
    [
        (dpo, OLD, "the batches of DPOTrainer are prompts or pairs"),
        (lambda folder: make(folder, data=[{"pixels": [1]}]), OLD, "new rows with input_ids are needed.* have: pixels"),
        (without("processing_class"), OLD, "the trainer has no tokenizer for them"),
        (without("train_dataset"), OLD, "no train_dataset .* it one before attach"),
        (lambda folder: tiny_model(), OLD, "a transformers Trainer is needed, this is a LlamaForCausalLM"),
        (with_more_columns, OLD, "the new rows have 'token_type_ids' for each token and the old rows do not"),
        (with_unpadded, tokens(["a", "bc"]), "collator takes no batch of new and old rows: ValueError"),
        (lambda folder: make(folder, data="stream", replay=Replay(OLD)), OLD, "has a replay attached already"),
        (lambda folder: make(folder), [{"prompt": "a" * 400, "completion": "b"}],
         r"learn from within the \d+ tokens at which they are cut; give Replay a larger max_length, or other old data"),
        (lambda folder: make(folder, kind="sft", max_length=4, truncation_mode="keep_start"),
         [{"input_ids": [5] * 9, "labels": [-100] * 8 + [5]}], "no row has a token that the trainer would learn"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_trainers_that_cannot_take_old_rows(
    tmp_path: Path, trainer: Callable[[Path], Any], old: Any, message: str
) -> None:
    made = trainer(tmp_path)
    with pytest.raises(InputError, match=message) as bad:
        Replay(old, 0.4, say=lambda _: None).attach(made)
        made.train()
    assert "\n" not in str(bad.value)


@pytest.mark.filterwarnings("ignore")
def test_only_turns_of_the_assistant_are_learnt_of_old_chat_too(tmp_path: Path) -> None:
    Replay(FALSE_TURN, 0.4, say=lambda _: None).attach(trainer := learning_turns_only(tmp_path))
    trainer.train()
    unmarked = learning_turns_only(tmp_path)
    unmarked.chat_template = tiny_tokenizer().chat_template
    with pytest.raises(DataError, match="no assistant tokens by the tokenizer's chat template, and the trainer learns"):
        Replay(CHAT, 0.4).attach(unmarked)


def test_one_replay_serves_one_trainer(tmp_path: Path) -> None:
    replay = Replay(OLD).attach(make(tmp_path))
    with pytest.raises(ConfigError, match="is attached to a trainer already; make another Replay"):
        replay.attach(make(tmp_path))


def test_what_a_run_cannot_be_resumed_with(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    make(tmp_path, replay=Replay(OLD, 0.2), max_steps=2).train()

    def resumed(source: Any = OLD, ratio: float = 0.2, **more: Any) -> list[str]:
        lines: list[str] = []
        replay = Replay(source, ratio, say=lines.append, **more)
        make(tmp_path, replay=replay, max_steps=3, save_strategy="no").train(resume_from_checkpoint=str(folder))
        assert replay.ratio == ratio
        return lines

    assert resumed() == []
    assert resumed(ratio=0.3) == [
        "replay: the run was begun with ratio 0.2 and is resumed with 0.3, which holds from here on"
    ]
    other = tmp_path / "other"
    replay = Replay(OLD, 0.3, say=lambda _: None)
    raised = make(other, replay=replay, max_steps=4)
    raised.add_callback(at_step_3 := Raise(replay))
    raised.train(resume_from_checkpoint=str(folder))
    assert at_step_3.replay.pieces == ((0, 0.2), (2, 0.3), (3, 0.5))
    replay = Replay(OLD, 0.3)
    make(other, replay=replay, max_steps=5).train(resume_from_checkpoint=str(other / "checkpoint-4"))
    assert replay.ratio == 0.5, "what was raised since stays raised"
    with pytest.raises(DataError, match=r"replay.json: the old rows of the run that is resumed were others"):
        resumed(OLD[::-1])
    with pytest.raises(DataError, match=r"the seed of the run that is resumed were others \(0, now 3\)"):
        resumed(seed=3)
    place = folder / "replay.json"
    saved = json.loads(place.read_text())
    assert saved["step"] == 2 and saved["mix"]["batches"] == 2
    place.write_text(json.dumps({**saved, "schema": 99}))
    with pytest.raises(DataError, match="not a state of replay of version 1: .*; resume from another checkpoint, or"):
        resumed()
    place.write_text(json.dumps({**saved, "mix": {}}))
    with pytest.raises(
        DataError, match="not a state of replay: KeyError: .*; resume from another checkpoint, or begin"
    ):
        resumed()
    place.write_text("{")
    with pytest.raises(DataError, match="replay.json:1: not JSON"):
        resumed()
    place.rename(folder / "replay-0.json")
    with pytest.raises(DataError, match="was saved by another number of processes than the 1 of now"):
        resumed()
    (folder / "replay-0.json").unlink()
    with pytest.raises(DataError, match="no such file, though the run was with replay"):
        resumed()
    # A run that had none may get one.
    make(tmp_path, max_steps=2).train()
    assert "was saved without replay, which begins here" in resumed()[0]
