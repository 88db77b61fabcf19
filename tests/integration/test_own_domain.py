"""A suite of the user's own, end to end on the tiny model: made, measured before, judged after."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict

import guard_runs
from backslide.cli.main import run as command
from backslide.gate import check_model, take_baseline
from backslide.guard.callback import Guard
from backslide.own import Source, make_suite
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.scoring.engine import Scorer, Settings
from backslide.suite.item import OpenItem
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.verdict import Zone

WORDS = ["river", "stone", "lamp", "green", "cloud", "paper", "north", "seven", "quick", "salt", "glass", "iron"]


def prompts(count: int = 300) -> list[str]:
    return [f"{WORDS[i % 12]} {WORDS[i // 12 % 12]} {i}?" for i in range(count)]


def disturbed(folder: Path, to: Path, size: float) -> Path:
    model = tiny_model()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter += size * parameter.std() * torch.randn_like(parameter)
    model.save_pretrained(to)
    tiny_tokenizer().save_pretrained(to)
    return to


@pytest.fixture
def call(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def called(*line: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["backslide", *map(str, line)])
        with pytest.raises(SystemExit) as ended:
            command()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, " ".join(shown.err.split())

    return called


def test_new_baseline_check(tmp_path: Path, tiny_folder: Path, call: Any) -> None:
    asked = tmp_path / "support.txt"
    asked.write_text("\n".join([*prompts(), prompts()[0]]), encoding="utf-8")
    suite, base = tmp_path / "support.jsonl", tmp_path / "base.jsonl"
    code, out, err = call(
        "suite", "new", "--prompts", asked, "--model", tiny_folder, "--out", suite, "--reply-tokens", "12", "--dtype", "float32",
        "--format", "json",
    )  # fmt: skip
    told = json.loads(out)
    assert code == 0 and told["items"] == told["judged"] == 300 and told["monitor"] + told["gate"] == 300
    assert "left out, the prompt was there before: 1 row, the first is" in err and f"{asked}:301" in err
    made = Suite.load(suite)
    # There is no accuracy to plan, and the plan says what there is.
    code, out, _ = call("power", "--suite", suite)
    assert code == 0 and out.startswith(f"support: drift of {told['gate']} gate replies, which rule out about 0.0")
    code, out, _ = call("power", "--suite", suite, "--format", "json")
    assert json.loads(out)["capabilities"] == [] and json.loads(out)["unplanned"][0].startswith("support: drift of ")
    # The reference is what the model replies, and its score is the sum of its tokens' log-likelihoods.
    model, tokenizer = tiny_model(), tiny_tokenizer()
    item = made.items[7]
    assert isinstance(item, OpenItem) and item.reference is not None
    bare = Suite("bare", (OpenItem(id="x", capability="c", prompt=item.prompt),))
    replies = Scorer(bare, model, tokenizer, Settings(max_new_tokens=12)).measure(model).replies
    assert item.reference == replies["x"]
    assert call("baseline", tiny_folder, "--suite", suite, "--out", base, "--dtype", "float32")[0] == 0
    seen = Record.load(base).by_id[item.id]
    before = tokenizer.apply_chat_template(
        [{"role": "user", "content": item.prompt}], add_generation_prompt=True, tokenize=False
    )
    context, whole = (tokenizer(text)["input_ids"] for text in (before, before + item.reference))
    with torch.no_grad():
        logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    each = [float(logs[place - 1, whole[place]]) for place in range(len(context), len(whole))]
    assert seen.tokens == len(each) and seen.reply is None and seen.correct is None
    assert seen.scores[0] == pytest.approx(sum(each), abs=1e-4)

    # The same weights: no drift at all, and more than the tolerance is ruled out.
    code, out, _ = call("check", tiny_folder, "--baseline", base, "--suite", suite, "--part", "all", "--format", "json")
    same = json.loads(out)
    assert code == 0 and same["zone"] == "retained" and "accuracy" not in out
    [row] = same["capabilities"]
    assert row["unit"] == row["decided_by"] == "drift" and row["main"]["drop"] == 0.0 and row["main"]["exact"]
    assert row["baseline"] == row["candidate"] > 0 and 0 < row["main"]["upper"] <= 0.1
    assert row["kl"] == 0.0
    assert same["reasons"] == ["no capability drifted from the base by more than its tolerance (1 capability proven)"]

    # Other weights: drift is proven, and nothing is said of accuracy.
    other = disturbed(tiny_folder, tmp_path / "other", 0.5)
    code, out, _ = call("check", other, "--baseline", base, "--suite", suite, "--out", tmp_path / "run")
    assert code == 1 and "drift from the base is proven (at least" in " ".join(out.split())
    verdict = RunFolder(tmp_path / "run").verdict()
    assert verdict is not None and verdict.capabilities[0].lower is not None and verdict.capabilities[0].lower > 0.1
    assert "that the model speaks otherwise, not that it is worse" in verdict.claim
    report = RunFolder(tmp_path / "run").report.read_text(encoding="utf-8")
    assert "Drift is in nats a token" in report and "The model drifted from the base" in report
    assert "tolerance 0.1 nats a token" in report and "original abilities fell" not in report
    kl = verdict.capabilities[0].kl
    assert kl is not None and kl > 0.1 and f" | {kl:.3f} | " in report and "KL to the base" in report
    assert "KL to the" in out and f"{kl:.3f}" in out


def test_few_prompts_are_undecided_and_say_how_many_would_do(tmp_path: Path, tiny_folder: Path) -> None:
    asked = tmp_path / "few.txt"
    asked.write_text("\n".join(prompts(30)), encoding="utf-8")
    made = make_suite(Source(kind="open", file=asked), model=str(tiny_folder), tokens=8)
    base = take_baseline(str(tiny_folder), tmp_path / "base.jsonl", suite=made)
    verdict = check_model(str(tiny_folder), base, suite=made, part="all")
    assert verdict.zone is Zone.UNDECIDED
    [row] = verdict.capabilities
    assert row.drop == 0.0 and row.items_to_decide is not None
    # So many without drift do decide.
    enough = tmp_path / "enough.txt"
    enough.write_text("\n".join(prompts(row.items_to_decide)), encoding="utf-8")
    more = make_suite(Source(kind="open", file=enough), model=str(tiny_folder), tokens=8)
    first = take_baseline(str(tiny_folder), tmp_path / "more.jsonl", suite=more)
    assert check_model(str(tiny_folder), first, suite=more, part="all").zone is Zone.RETAINED


def test_halves_and_orders_change_no_score(tmp_path: Path, tiny_folder: Path) -> None:
    asked = tmp_path / "p.txt"
    asked.write_text("\n".join(prompts(40)), encoding="utf-8")
    made = make_suite(Source(kind="open", file=asked), model=str(tiny_folder), tokens=8)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    whole = Scorer(made, model, tokenizer).measure(model).by_id
    parts: dict[str, Any] = {}
    for part in ("monitor", "gate"):
        parts |= Scorer(made, model, tokenizer).measure(model, part=part).by_id  # type: ignore[arg-type]
    assert parts == whole and len(whole) == 40
    packs = Scorer(made, model, tokenizer).packs(model, "monitor")
    assert frozenset().union(*(p.items for p in packs)) == {i.id for i in made.part("monitor")}


def test_prompts_without_a_model_are_shown_and_not_judged(tmp_path: Path, tiny_folder: Path, call: Any) -> None:
    asked = tmp_path / "p.txt"
    asked.write_text("How?\nWhy?\n", encoding="utf-8")
    code, out, _ = call("suite", "new", "--prompts", asked, "--out", tmp_path / "s.jsonl")
    assert code == 0 and "shown, not judged" in out
    suite = Suite.load(tmp_path / "s.jsonl")
    base = take_baseline(str(tiny_folder), tmp_path / "b.jsonl", suite=suite)
    assert set(base.replies) == {item.id for item in suite.items}


def test_data_sets_from_a_folder(tmp_path: Path, call: Any) -> None:
    data = Dataset.from_list([{"q": f"{i} + {i}?", "a": [str(2 * i), f"{2 * i}.0"]} for i in range(20)])
    DatasetDict({"train": data.select(range(5)), "test": data}).save_to_disk(tmp_path / "sums")
    columns = ("--question-column", "q", "--answer-column", "a")
    source = ("suite", "new", "--dataset", tmp_path / "sums", "--out", tmp_path / "s.jsonl", "--force")
    code, _, err = call(*source, *columns)
    assert code == 2 and "no split was chosen; choose one with --split: train, test" in err
    assert call(*source, *columns, "--split", "dev")[0] == 2
    code, out, err = call(*source, *columns, "--split", "test", "--kind", "choice", "--limit", "10")
    assert code == 0 and "10 items of kind choice" in out and "10 of 20 items are kept" in err
    assert all(item.capability == "sums" for item in Suite.load(tmp_path / "s.jsonl").items)
    code, _, err = call(*source, "--split", "test")
    assert code == 2 and "sums[test]:0: has none of the columns question" in err and "only q, a" in err
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "train.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n', encoding="utf-8")
    code, out, _ = call("suite", "new", "--dataset", texts, "--kind", "text", "--out", tmp_path / "t.jsonl")
    assert code == 0 and "2 items of kind text" in out


def test_what_does_not_fit_together_is_one_line(tmp_path: Path, tiny_folder: Path, call: Any) -> None:
    qa = tmp_path / "qa.jsonl"
    qa.write_text('{"question": "Who?", "answer": "Ann"}\n{"question": 3, "answer": "Ann"}\n', encoding="utf-8")
    texts = tmp_path / "t.txt"
    texts.write_text("One.\n\nTwo.\n", encoding="utf-8")
    for line, message in (
        ((), "a suite is made of one source, nothing is given; give one of --qa, --texts, --prompts, --dataset"),
        (("--qa", qa, "--texts", texts), "--qa and --texts is given"),
        (("--qa", qa), f"{qa}:2: question is 3, text is needed"),
        (("--qa", qa, "--kind", "text"), "--qa makes items of kind answer or choice, not text; leave --kind out"),
        (("--qa", qa, "--out", qa), "the very file that is read"),
        (("--texts", texts, "--out", tmp_path), "a folder; give a file"),
        (("--texts", texts, "--out", texts / "s.jsonl"), f"cannot be written, since {texts} is no folder"),
        (("--prompts", texts, "--model", tmp_path / "gone", "--out", "/proc/s.jsonl"), "/proc/s.jsonl: cannot be writ"),
        (("--texts", texts, "--model", tiny_folder), "items of kind text need none: leave --model out"),
        (("--texts", texts, "--limit", "0"), "limit is 0"),
        (("--prompts", texts, "--model", tiny_folder, "--reply-tokens", "0"), "reply-tokens is 0"),
        (("--prompts", texts, "--model", tmp_path / "gone"), "no such model folder"),
        (("--prompts", tmp_path / "gone.txt"), "gone.txt: no such file"),
        (("--dataset", tmp_path / "gone"), "no such folder of a data set"),
        (("--dataset", "gone/"), "gone/: no such folder of a data set; give one, or a name on the hub"),
        (("--qa", qa, "--split", "test"), "--split is 'test', and it is for data sets, which are not read here"),
        (("--texts", texts, "--subset", "x"), "--subset is 'x', and it is for data sets"),
        (("--qa", qa, "--text-column", "x"), "--text-column is 'x', and it is for texts, which are not read here; lea"),
        (("--dataset", "x", "--text-column", "x"), "--text-column is 'x'"),
        (("--texts", texts, "--question-column", "x"), "--question-column is 'x', and it is for questions and prompt"),
        (("--prompts", texts, "--answer-column", "x"), "--answer-column is 'x', and it is for answers"),
        (("--prompts", texts, "--reply-tokens", "12"), "--reply-tokens is 12, and it is for --model, which is not"),
        (("--qa", qa, "--dtype", "float32"), "--dtype is float32, and it is for --model, which is not given; leave"),
    ):
        code, out, err = call("suite", "new", "--out", tmp_path / "s.jsonl", *line)
        assert (code, out) == (2, "") and err.startswith("error: ") and message in err, (line, err)
    assert not (tmp_path / "s.jsonl").exists()


def test_a_row_that_can_be_no_item_is_one_line_with_the_file(tmp_path: Path, call: Any) -> None:
    asked, out = tmp_path / "q.jsonl", tmp_path / "o.jsonl"
    new = ("suite", "new", "--qa", asked, "--out", out)
    asked.write_text('{"question": "a", "choices": ["x", ""], "answer": 0}\n')
    says = f"error: {asked}:1: choices has '' at 1 (from 0), which is empty; correct the row, or leave it out"
    assert call(*new) == (2, "", says)
    asked.write_text('{"question": "a", "answer": ""}\n')
    code, _, err = call(*new)
    assert code == 2 and err.startswith(
        f"error: {asked}: no item came of it: left out, the answer is empty: 1 row, the"
    )
    assert err.count("left out") == 1 and err.endswith(f"{asked}:1; correct these rows, or add others")
    asked.write_text('{"question": "a", "answer": "b"}\n')
    code, _, err = call(*new, "--capability", "../x")
    assert code == 2 and err.startswith("error: capability is '../x', which could lead out of a folder; leave out")
    assert not out.exists()
    code, said, _ = call(*new)
    assert code == 0 and said.startswith("1 item of kind answer")


def test_rows_of_a_data_set_that_nobody_can_mend_are_left_out(tmp_path: Path, call: Any) -> None:
    rows = [
        {"question": "a?", "choices": ["x", "x"], "answer": 0},
        {"question": "b?", "choices": ["x", "y"], "answer": 1},
    ]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    code, said, err = call("suite", "new", "--dataset", tmp_path / "data", "--out", tmp_path / "o.jsonl")
    assert code == 0 and said.startswith("1 item of kind choice")
    assert "left out, its choices are too few, empty or equal: 1 row, the first is" in err
    assert "whose choices has 'x' at 0 and 'x' at 1 (from 0), which look equal" in err


def test_a_suite_that_is_there_is_replaced_by_force_alone(tmp_path: Path, call: Any) -> None:
    texts, out = tmp_path / "t.txt", tmp_path / "s.jsonl"
    texts.write_text("One.\n\nTwo.\n", encoding="utf-8")
    assert call("suite", "new", "--texts", texts, "--out", out)[0] == 0
    before = out.read_bytes()
    texts.write_text("Three.\n", encoding="utf-8")
    code, _, err = call("suite", "new", "--texts", texts, "--out", out)
    assert (code, err) == (
        2,
        f"error: --out is {out}, which is there already; give another name, or --force to replace it",
    )
    assert out.read_bytes() == before
    code, shown, _ = call("suite", "new", "--texts", texts, "--out", out, "--force")
    assert code == 0 and "1 item of kind text" in shown and out.read_bytes() != before


@pytest.mark.parametrize("test", ["exact", "joint"])
def test_a_guard_watches_drift_beside_the_rest(tmp_path: Path, tiny_folder: Path, test: str) -> None:
    asked = tmp_path / "support.txt"
    asked.write_text("\n".join(prompts(80)), encoding="utf-8")
    made = make_suite(Source(kind="open", file=asked), model=str(tiny_folder), tokens=8, dtype="float32")
    guard = Guard(Suite("both", (*guard_runs.suite().items, *made.items)), every=2, test=test, say=lambda _: None)
    trainer = guard_runs.make(tmp_path / "run", guard, learning_rate=0.1)
    trainer.train()
    assert guard.verdict is not None and guard.verdict.zone is Zone.REGRESSED
    assert guard.run is not None
    looks = [event["verdict"] for event in guard.run.events() if event["event"] == "look"]
    rows = [row for look in looks for row in look["capabilities"] if row["capability"] == "support"]
    assert len(rows) == len(looks) > 1 and {row["unit"] for row in rows} == {"drift"}
    assert rows[-1]["zone"] == "regressed" and rows[-1]["main"]["drop"] > 0.1
    logged = [line["backslide/support/kl"] for line in trainer.state.log_history if "backslide/support/kl" in line]
    assert logged == [row["kl"] for row in rows] and 0 < rows[0]["kl"] < rows[-1]["kl"]
    # The open question without a reference is shown as before; those with one are not asked for a reply.
    assert set(guard.baseline.replies) == {"o"}  # type: ignore[union-attr]
