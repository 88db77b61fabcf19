"""Old data mixed into real runs of a tiny model: how much, which, and the same again after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling

import guard_runs
import replay_ranks
from backslide.cure.replay import LOGGED, Replay
from backslide.guard.callback import Guard
from backslide.rundir import RunFolder
from backslide.suite.item import ChoiceItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_tokenizer
from processes import two
from replay_runs import CHAT, NEW, OLD, PAIRS, Raise, counted, make, texts, tokens, weights


def quiet(source: Any = OLD, ratio: float = 0.2, **more: Any) -> Replay:
    lines: list[str] = []
    replay = Replay(source, ratio, say=lines.append, **more)
    replay.said = lines  # type: ignore[attr-defined]
    return replay


LONGEST = max(len(row["text"]) for row in OLD)
CASES: dict[str, dict[str, Any]] = {
    # Two passes of 8 batches, the last of one row.
    "accumulated, over two epochs": {"gradient_accumulation_steps": 2},
    "accumulated unevenly, last dropped": {"gradient_accumulation_steps": 2, "dataloader_drop_last": True},
    "stream": {"data": "stream"},
    "sft": {"kind": "sft"},
    "sft, stream": {"kind": "sft", "data": Dataset.from_dict({"text": NEW}).to_iterable_dataset()},
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_makes_the_batches_of_an_undisturbed_one(tmp_path: Path, case: str) -> None:
    def run(resumed: int | None) -> tuple[Any, Replay]:
        replay = quiet()
        trainer = make(tmp_path, replay=replay, callbacks=[Raise(replay)], **CASES[case])
        trainer.train(resume_from_checkpoint=resumed and str(tmp_path / f"checkpoint-{resumed}"))
        return trainer, replay

    whole, replay = run(None)
    each = CASES[case].get("gradient_accumulation_steps", 1)
    # What was added is what is due, to half a row; and the ratio was raised from the batch behind the third step on.
    old, new = counted(whole.seen)
    begun = sum(sum(counted(whole.seen[at : at + 1])[1:]) for at in range(replay.pieces[1][0]))
    assert [ratio for _, ratio in replay.pieces] == [0.2, 0.25] and 2 * each < replay.pieces[1][0] <= 3 * each
    assert abs(old - (begun * 0.25 + (new - begun) / 3)) <= LONGEST / 2 + 1
    assert replay.share == pytest.approx(old / (old + new)) and len({row for b in whole.seen for row in texts(b)}) > 14
    # From before the change, which is made again then, or from after it.
    for step in (2, 4) if case == "sft" else (4,) if "epochs" in case else (2,):
        again, second = run(step)
        ahead = len(whole.seen) - len(again.seen)
        assert again.seen == whole.seen[ahead:] and 0 < ahead < len(whole.seen)
        assert weights(again) == weights(whole) and second.pieces == replay.pieces and second.share == replay.share


def test_the_new_data_and_the_steps_stay_as_they_are(tmp_path: Path) -> None:
    alone = make(tmp_path / "alone")
    alone.train()
    mixed = make(tmp_path / "mixed", replay=quiet())
    mixed.train()
    new = [[row for row in texts(batch) if "OLD" not in row] for batch in mixed.seen]
    assert new == [texts(batch) for batch in alone.seen] and mixed.state.max_steps == alone.state.max_steps
    # The loss is divided by all tokens that are learnt, old ones too; and evaluation is of the plain data.
    assert all(a["items"] < b["items"] for a, b in zip(alone.seen, mixed.seen, strict=True) if len(b["labels"]) > 3)
    first = [entry["learning_rate"] for entry in mixed.state.log_history if "loss" in entry]
    assert first == [entry["learning_rate"] for entry in alone.state.log_history if "loss" in entry]
    alone.model.load_state_dict(mixed.model.state_dict())
    assert mixed.evaluate()["eval_loss"] == alone.evaluate()["eval_loss"]
    for loader in (mixed.get_train_dataloader(), mixed.callback_handler.train_dataloader):
        assert len(next(iter(loader))["input_ids"]) == 3, "whoever else asks for batches gets the plain ones"


@pytest.mark.parametrize("case", ["accumulated, over two epochs", "stream", "sft"])
def test_a_ratio_of_0_changes_nothing(tmp_path: Path, case: str) -> None:
    more = {"eval_strategy": "steps", "eval_steps": 2, **CASES[case]}

    def left(replay: Replay | None, folder: str) -> Any:
        trainer = make(tmp_path / folder, replay=replay, **more)
        trainer.train()
        log = [
            {key: value for key, value in entry.items() if not any(word in key for word in ("runtime", "_per_second"))}
            for entry in trainer.state.log_history
        ]
        if replay is not None:
            assert [entry.pop(LOGGED) for entry in log if "loss" in entry] == [0.0] * 6
        return trainer.seen, log, weights(trainer), torch.get_rng_state().tolist()

    alone, idle = left(None, "alone"), left(quiet(ratio=0.0), "idle")
    assert all(a == b for a, b in zip(alone, idle, strict=True)) and any("eval_loss" in entry for entry in alone[1])


def test_the_loaders_workers_change_nothing(tmp_path: Path) -> None:
    def run(workers: int, resumed: str | None = None) -> Any:
        replay = quiet()
        trainer = make(tmp_path, replay=replay, callbacks=[Raise(replay)], dataloader_num_workers=workers)
        trainer.train(resume_from_checkpoint=resumed)
        return trainer.seen

    alone = run(0)
    assert run(2) == alone and run(2, str(tmp_path / "checkpoint-4")) == alone[4:]


def test_a_second_training_begins_anew(tmp_path: Path) -> None:
    replay = quiet()
    trainer = make(tmp_path, replay=replay, callbacks=[Raise(replay)], save_strategy="no")
    trainer.train()
    first, trainer.seen = trainer.seen, []
    trainer.train()
    assert replay.pieces == ((0, 0.2), (3, 0.25)) and trainer.seen[0]["input_ids"] != first[-1]["input_ids"]
    old = [[[row for row in texts(batch) if "OLD" in row] for batch in seen] for seen in (first, trainer.seen)]
    assert old[0][0] == old[1][0] != []
    replay.set_ratio(0.5)
    trainer.train()
    assert replay.pieces[0] == (0, 0.5)


def test_a_guard_raises_the_ratio_in_the_run(tmp_path: Path) -> None:
    replay = quiet(ratio=0.0, most=0.1)
    guard = Guard(
        guard_runs.suite(), every=1, on_regression="replay", replay=replay.more, settings=guard_runs.SMALL, cache=False,
        run_dir=tmp_path / "run", say=lambda _: None,
    )  # fmt: skip
    trainer = make(tmp_path, replay=replay, callbacks=[guard], learning_rate=0.3, lr_scheduler_type="constant")
    trainer.train()
    assert guard.regressed_at is not None
    assert [ratio for _, ratio in replay.pieces] == [0.0, 0.01, 0.05, 0.1][: len(replay.pieces)] and replay.ratio > 0
    assert replay.pieces[1][0] == guard.regressed_at
    told = [e["says"] for e in RunFolder(tmp_path / "run").events() if e["event"] == "action"]
    assert "old data from 0 to 0.01 of the tokens" in told[0]
    if replay.ratio == 0.1:
        assert "stay at 0.1 of the tokens, which is the most" in replay.more()


# As the trainer has its own data, packed or streamed.


def test_old_pairs_are_learnt_where_the_trainer_learns_pairs(tmp_path: Path) -> None:
    data = Dataset.from_list([{"prompt": f"ask {i}", "completion": f"say {i} and {i}"} for i in range(12)])
    trainer = make(tmp_path, replay=quiet(PAIRS, 0.4), kind="sft", data=data, max_steps=3)
    trainer.train()
    tokenizer, found = tiny_tokenizer(), 0
    for batch in trainer.seen:
        for row, labels in zip(texts(batch), batch["labels"], strict=True):
            learnt = tokenizer.decode([label for label in labels if label != -100])
            assert learnt == row[row.index("OLD A" if "OLD" in row else "say") :] and learnt.endswith("<|end|>")
            found += "OLD" in row
    assert found >= 4
    # The same rows beside texts, of which all is learnt.
    trainer = make(tmp_path, replay=quiet(PAIRS, 0.4), kind="sft", max_steps=2)
    trainer.train()
    rows = [(row, labels) for batch in trainer.seen for row, labels in zip(texts(batch), batch["labels"], strict=True)]
    assert any("OLD" in row and tokenizer.decode([i for i in labels if i != -100]) == row for row, labels in rows)


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_old_rows_are_packed_as_the_new_ones(tmp_path: Path, strategy: str) -> None:
    replay = quiet(ratio=0.3)
    trainer = make(
        tmp_path, replay=replay, kind="sft", packing=True, packing_strategy=strategy, max_length=64, max_steps=4,
        per_device_train_batch_size=2,
    )  # fmt: skip
    trainer.train()
    whole = [row for batch in trainer.seen for row in texts(batch)]
    assert any("OLD" in row for row in whole) and 0.1 < replay.share < 0.5
    if strategy == "bfd":
        assert all(len(batch["input_ids"]) == 1 and "position_ids" in batch for batch in trainer.seen)
    else:
        assert all(len(row) == 64 for batch in trainer.seen for row in batch["input_ids"][:2])


@pytest.mark.parametrize("stream", [False, True])
def test_a_resumed_run_of_packed_rows_is_the_undisturbed_one(tmp_path: Path, stream: bool) -> None:
    def run(resumed: str | None) -> tuple[Any, Replay]:
        data: Any = Dataset.from_dict({"text": NEW * 3})
        replay = quiet(ratio=0.3)
        trainer = make(
            tmp_path, replay=replay, kind="sft", data=data.to_iterable_dataset() if stream else data, packing=True,
            max_length=64, max_steps=4,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resumed)
        return trainer, replay

    whole, replay = run(None)
    old = [row for batch in whole.seen for row in texts(batch) if "OLD" in row]
    assert old and 0.2 < replay.share < 0.4 and all("position_ids" in batch for batch in whole.seen)
    again, second = run(str(tmp_path / "checkpoint-2"))
    assert again.seen == whole.seen[2:] and second.share == replay.share and weights(again) == weights(whole)


def test_old_pairs_go_with_a_stream_of_pairs(tmp_path: Path) -> None:
    data = Dataset.from_list([{"prompt": f"ask {i}", "completion": f"say {i} and {i}"} for i in range(12)])
    trainer = make(
        tmp_path, replay=quiet(PAIRS, 0.4), kind="sft", data=data.to_iterable_dataset(), max_steps=3, save_strategy="no"
    )
    trainer.train()
    learnt = [learnt_of(labels) for batch in trainer.seen for labels in batch["labels"]]
    assert sum(row.startswith("OLD A") for row in learnt) >= 4
    assert all(row.startswith(("OLD A", "say")) for row in learnt)


def learnt_of(labels: list[int]) -> str:
    return str(tiny_tokenizer().decode([label for label in labels if label != -100]))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_bare_trainer_learns_no_prompts_where_the_new_rows_have_no_labels(tmp_path: Path, side: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    replay = quiet(PAIRS, 0.4)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = make(tmp_path, replay=replay, collator=collator, max_steps=3, save_strategy="no")
    trainer.train()
    rows = [pair for batch in trainer.seen for pair in zip(texts(batch), map(learnt_of, batch["labels"]), strict=True)]
    assert sum("OLD" in row for row, _ in rows) >= 4 and replay.said == []  # type: ignore[attr-defined]
    assert all(learnt == row[row.index("OLD") :] if "OLD" in row else learnt == row for row, learnt in rows)
    # What is divided by is what is learnt.
    assert [batch["items"] for batch in trainer.seen] == [
        sum(label != -100 for row in batch["labels"] for label in row[1:]) for batch in trainer.seen
    ]


def test_where_prompts_cannot_be_left_out_it_is_said_once(tmp_path: Path) -> None:
    def shared(rows: list[dict[str, Any]]) -> Any:
        batch = pad([{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows])
        # The labels are the tokens themselves, which must stay as they are.
        return {**batch, "labels": batch["input_ids"]}

    replays = [quiet(PAIRS, 0.4), quiet(PAIRS, 0.4), quiet(ratio=0.4)]
    collators = [shared, lambda rows: shared(rows[::-1]), lambda rows: shared(rows[::-1])]
    for replay, collator in zip(replays, collators, strict=True):
        trainer = make(tmp_path, replay=replay, collator=collator, max_steps=3, save_strategy="no")
        trainer.train()
        assert any("OLD" in row for batch in trainer.seen for row in texts(batch))
    seen, turned, whole = (replay.said for replay in replays)  # type: ignore[attr-defined]
    assert seen == whole == [] and len(turned) == 1
    assert "prompts of old pairs may be learnt too; give the new rows labels" in turned[0]


@pytest.mark.parametrize("kind", ["trainer", "sft"])
def test_old_chat_goes_with_new_text(tmp_path: Path, kind: str) -> None:
    trainer = make(tmp_path, replay=quiet(CHAT, 0.4), kind=kind, max_steps=3)
    trainer.train()
    old = [row for batch in trainer.seen for row in texts(batch) if "<|user|>" in row]
    assert "<|user|>Why 0?<|end|><|assistant|>Since 0.<|end|>" in old and len(old) >= 3


def test_texts_and_pairs_of_a_bare_trainer_are_cut_at_its_longest_row(tmp_path: Path) -> None:
    long = [{"prompt": "OLD ask: ", "completion": "so " * 300} for _ in range(3)]
    labelled = [{**row, "labels": row["input_ids"]} for row in tokens(NEW)]
    trainer = make(tmp_path, replay=quiet(long, 0.3), data=labelled, collator=pad, max_steps=3)
    trainer.train()
    old = [
        labels
        for batch in trainer.seen
        for row, labels in zip(texts(batch), batch["labels"], strict=True)
        if "OLD" in row
    ]
    limit = max(len(text) for text in NEW)
    assert old and all(labels[:9] == [-100] * 9 and -100 not in labels[9:] and len(labels) == limit for labels in old)


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    fill = {"input_ids": 1, "attention_mask": 0, "labels": -100}
    longest = max(len(row["input_ids"]) for row in rows)
    return {key: torch.tensor([row[key] + [fill[key]] * (longest - len(row[key])) for row in rows]) for key in rows[0]}


def test_rows_of_tensors_and_rows_of_lists_go_together(tmp_path: Path) -> None:
    lists = [{key: value[:20] for key, value in row.items()} for row in tokens(NEW)]
    tensors = [{key: torch.tensor(value) for key, value in row.items()} for row in lists]
    old = {"input_ids": tiny_tokenizer()("OLD and of one length").input_ids[:20]}
    for new, given in ((tensors, old), (lists, {"input_ids": torch.tensor(old["input_ids"])})):
        trainer = make(tmp_path, replay=quiet([given] * 3, 0.3), data=new, max_steps=2, save_strategy="no")
        trainer.train()
        assert any("OLD" in row for batch in trainer.seen for row in texts(batch))


def test_padding_counts_for_nothing(tmp_path: Path) -> None:
    padded = [pad([row, {key: [0] * 60 for key in row}]) for row in tokens(NEW)]
    rows = [{key: value[0].tolist() for key, value in row.items()} for row in padded]
    runs = [quiet(ratio=0.3), quiet(ratio=0.3)]
    for replay, data in zip(runs, (None, rows), strict=True):
        make(tmp_path, replay=replay, data=data, max_steps=3, save_strategy="no").train()
    assert runs[0].share == runs[1].share > 0.2


# What is in the old data.


def items(*prompts: str) -> Suite:
    made = [ChoiceItem(id=p[:9], capability="c", prompt=p, choices=("it is so", "not at all"), gold=0) for p in prompts]
    return Suite("exam", tuple(made))


EXAM = "Which of the seven rivers of the northern country freezes over first in a cold and windy winter"


def test_rows_that_hold_an_item_of_the_suite_are_left_out(tmp_path: Path) -> None:
    held = [{"text": f"Page {i}. {EXAM}? it is so. And so on."} for i in range(5)]
    replay = quiet([*OLD, *held], suite=items(EXAM))
    assert replay.said == [  # type: ignore[attr-defined]
        "replay: 5 of 12 rows of the old data hold 1 of the items of the suite exam, and are left out"
    ]
    trainer = make(tmp_path, replay=replay, max_steps=4)
    trainer.train()
    rows = [row for batch in trainer.seen for row in texts(batch)]
    assert any("OLD" in row for row in rows) and not any("Page" in row for row in rows)
    with pytest.raises(Exception, match="5 of 5 rows .* so none is left; give other old data"):
        quiet(held, suite=items(EXAM))
    # Rows of tokens can be read once there is a tokenizer.
    tokened = quiet([*tokens([row["text"] for row in OLD]), *tokens([row["text"] for row in held])], suite=items(EXAM))
    assert tokened.said == []  # type: ignore[attr-defined]
    make(tmp_path, replay=tokened)
    assert "5 of 12 rows" in tokened.said[0]  # type: ignore[attr-defined]


def test_what_has_nothing_to_learn_is_left_out(tmp_path: Path, jsonl: Any) -> None:
    file = jsonl("old.jsonl", [*OLD, {"text": " "}])
    assert Replay(file, say=lambda _: None).attach(make(tmp_path)) is not None
    data = quiet(Dataset.from_list([*OLD, {"text": ""}]))
    assert data.said == ["replay: 1 empty rows of the old data are left out"]  # type: ignore[attr-defined]
    labelled = [{"input_ids": [5, 6], "labels": [-100, -100]}, {"input_ids": [5, 6], "labels": [5, 6]}]
    masked = quiet(labelled)
    make(tmp_path, replay=masked)
    assert "1 rows of the old data have no token that is learnt" in masked.said[0]  # type: ignore[attr-defined]


def test_two_processes_draw_other_rows_and_resume_each_where_it_was(tmp_path: Path) -> None:
    two(replay_ranks.__file__, tmp_path)
    old = []
    for rank in (0, 1):
        whole, resumed = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert len(whole) == 4 and whole[2:] == resumed
        assert counted(whole)[0] == pytest.approx(counted(whole)[1] / 4, abs=LONGEST / 2)
        old.append([row for batch in whole for row in texts(batch) if "OLD" in row])
    # The two first passes over all old rows, shared out.
    order = [row for pair in zip(*old, strict=False) for row in pair]
    assert len(order) >= 2 * len(OLD) and {*order[: len(OLD)]} == {*order[len(OLD) : 2 * len(OLD)]}
    assert {*order[: len(OLD)]} == {row["text"] for row in OLD}
