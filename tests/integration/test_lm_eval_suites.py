"""lm-eval's tasks as suites: the same requests and results as through lm-eval itself, its layout written and read."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backslide.cli.main import run as command
from backslide.errors import MismatchError, RecordError, SuiteError
from backslide.gate import check_model, take_baseline
from backslide.lm_eval_results import read_samples, replay
from backslide.record import Record
from backslide.scoring.engine import Scorer
from backslide.suite.item import ContinuationItem, GenerationItem
from backslide.suite.lm_eval import TaskOptions, TaskSuite, load_lm_eval
from backslide.suite.lm_eval_match import right_reply
from backslide.suite.patterns import Unended
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from local_tasks import CHOICE, MORE, TASKS, local_task

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

ALL = TASKS | MORE


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import evaluator

    # It asks the machine for its compilers and packages: seconds a call, and no part of the results.
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)


def theirs(folder: Path, config: dict[str, Any], model: Any, out: Path | None = None, **more: Any) -> dict[str, Any]:
    """Through lm-eval itself; written under `out` as its command line does."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM

    tracker = EvaluationTracker(output_path=None if out is None else str(out))
    found: Any = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=4),
        tasks=["local"],
        task_manager=local_task(folder, config),
        evaluation_tracker=tracker,
        bootstrap_iters=0,
        log_samples=True,
        **more,
    )
    if out is not None:
        samples = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=samples)
        tracker.save_results_samples(task_name="local", samples=samples["local"])
    return dict(found)


def ours(folder: Path, config: dict[str, Any], **options: Any) -> TaskSuite:
    local_task(folder, config)
    return load_lm_eval("local", TaskOptions(include_path=folder, **options), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_results_are_those_of_lm_eval(name: str, chat: bool, model: Any, tmp_path: Path) -> None:
    if chat and name == "perplexity":
        pytest.skip("lm-eval applies no chat template to rolling perplexity")
    there = theirs(tmp_path, ALL[name], model, limit=20, apply_chat_template=chat, fewshot_as_multiturn=chat)
    suite = ours(tmp_path, ALL[name], limit=20, apply_chat_template=chat)
    record = Scorer(suite, model, tiny_tokenizer()).measure(model)
    here = replay(record, suite, tiny_tokenizer())

    one, other = there["results"]["local"], here["results"]["local"]
    assert set(one) == set(other)
    for metric, value in one.items():
        if isinstance(value, float):
            # Sums of some hundred tokens in another order; accuracies are equal.
            assert other[metric] == (pytest.approx(value, rel=1e-5) if "perp" in metric or "bits" in metric else value)
        elif "stderr" not in metric:
            assert other[metric] == value, metric
    assert here["n-shot"] == there["n-shot"] and here["n-samples"] == there["n-samples"]

    decided = set()
    for a, b in zip(there["samples"]["local"], here["samples"]["local"], strict=True):
        item = f"local/{a['doc_id']}"
        hashes = (a["doc_hash"], a["prompt_hash"], a["target_hash"])
        assert hashes == (b["doc_hash"], b["prompt_hash"], b["target_hash"]) == suite.hashes[item]
        assert a["arguments"] == b["arguments"]
        first_filter = a["filter"] in ("none", "letter")
        for metric in {"acc", "exact_match"} & set(a):
            assert a[metric] == b[metric]
            if first_filter:
                assert record.by_id[item].correct is bool(a[metric])
                decided.add(bool(a[metric]))
    if name not in ("perplexity", "replies", "last word"):
        assert decided == {True, False}, "right and wrong answers are needed for this test to say anything"


@pytest.mark.parametrize("shots", [0, 2])
def test_shots_and_a_system_message(shots: int, model: Any, tmp_path: Path) -> None:
    there = theirs(tmp_path, CHOICE, model, num_fewshot=shots, system_instruction="Be terse.", limit=0.5)
    suite = ours(tmp_path, CHOICE, num_fewshot=shots, system_instruction="Be terse.", limit=0.5)
    assert len(suite.items) == 12
    asked = [[tuple(pair) for pair in sample["arguments"]] for sample in there["samples"]["local"]]
    assert [item.pairs for item in suite.items if isinstance(item, ContinuationItem)] == asked
    assert suite.name.startswith("lm-eval:local num_fewshot=")
    # Loaded again, the same shots are drawn; with another number, it is another suite.
    again = load_lm_eval("local", suite.options)
    assert again.hash == suite.hash
    assert load_lm_eval("local", dataclasses.replace(suite.options, num_fewshot=1)).hash != suite.hash


@pytest.mark.parametrize("names", ["both", "parts", "part_*", "part_a,local"])
def test_groups_tags_patterns_and_lists(names: str, model: Any, tmp_path: Path) -> None:
    """Each task is a capability; a group has its results beside them, standard errors too."""
    import yaml
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    local_task(tmp_path, CHOICE)
    config = yaml.safe_load((tmp_path / "local.yaml").read_text())
    for name, shots in (("part_a", 2), ("part_b", 0)):
        own = {**config, "task": name, "tag": "parts", "num_fewshot": shots}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(own))
    group = {"group": "both", "task": ["part_a", "part_b"], "aggregate_metric_list": [{"metric": "acc"}]}
    (tmp_path / "group.yaml").write_text(yaml.safe_dump(group))

    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    there: Any = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=4),
        tasks=sorted(manager.match_tasks(names.split(","))),
        task_manager=manager,
        limit=10,
    )
    suite = load_lm_eval(names, TaskOptions(include_path=tmp_path, limit=10))
    here = replay(Scorer(suite, model, tiny_tokenizer()).measure(model), suite)
    assert here["results"] == there["results"] and here.get("groups") == there.get("groups")
    assert set(suite.capabilities) == set(here["results"]) - {"both"}
    assert set(suite.capabilities.values()) == {10}


def test_a_task_set_to_no_shots_stays_there(tmp_path: Path) -> None:
    fixed = {**CHOICE, "num_fewshot": 0}
    assert ours(tmp_path, fixed, num_fewshot=3).hash == ours(tmp_path, fixed).hash


def test_a_suite_of_tasks_is_a_suite(model: Any, tmp_path: Path) -> None:
    """Saved and read as JSON Lines it is the same, and asks the same, without lm-eval's tasks."""
    suite = ours(tmp_path, MORE["filtered replies"], limit=6)
    suite.save(tmp_path / "saved.jsonl")
    again = Suite.load(tmp_path / "saved.jsonl")
    assert again.hash == suite.hash and again.items == suite.items
    assert (
        Scorer(again, model, tiny_tokenizer()).measure(model).outcomes
        == Scorer(suite, model, tiny_tokenizer()).measure(model).outcomes
    )


def test_no_frame_is_put_around_a_task(model: Any, tmp_path: Path) -> None:
    """With and without a chat template a task becomes the same tokens, and nothing is said of a missing one."""
    suite = ours(tmp_path, CHOICE, limit=6)
    with_chat = Scorer(suite, model, tiny_tokenizer()).unanswered(model)
    without = Scorer(suite, model, tiny_tokenizer(chat=False)).unanswered(model)
    assert [o.request for o in with_chat.outcomes] == [o.request for o in without.outcomes]
    assert not without.header.notes


def test_replies_of_different_lengths(model: Any, tmp_path: Path) -> None:
    """Two tasks with limits of their own, in one suite."""
    suite = ours(tmp_path, {**TASKS["replies"], "generation_kwargs": {"until": [], "max_gen_toks": 4}}, limit=5)
    longer = tuple(
        dataclasses.replace(item, id=f"long/{item.id}", max_new_tokens=9)  # type: ignore[call-arg]
        for item in suite.items
    )
    record = Scorer(Suite("two", (*suite.items, *longer)), model, tiny_tokenizer()).measure(model)
    for item in suite.items:
        short, long = record.by_id[item.id].reply or "", record.by_id[f"long/{item.id}"].reply or ""
        assert long.startswith(short.rstrip("\ufffd")), "greedy replies begin alike"
    assert any(len(record.by_id[i.id].reply or "") < len(record.by_id[f"long/{i.id}"].reply or "") for i in suite.items)


def test_nothing_is_disturbed(tmp_path: Path) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    ours(tmp_path, TASKS["few-shot"])
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


# What is wrong is said in one line.

FAR = {**CHOICE, "dataset_path": "nobody/nothing-here", "dataset_kwargs": None}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**CHOICE, "metric_list": [{"metric": "acc"}, {"metric": "acc_mutual_info"}]}, "metric acc_mutual_info"),
    ({**TASKS["replies"], "metric_list": [{"metric": "bleu"}]}, "the metrics bleu and not lm-eval's exact_match"),
    ({**TASKS["replies"], "generation_kwargs": {"until": [], "do_sample": True, "temperature": 0.7}}, "not greedy"),
    ({**TASKS["replies"], "repeats": 4}, "asks everything 4 times"),
    (
        {
            **TASKS["replies"],
            "filter_list": [{"name": "v", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}],
        },
        "the filter 'majority_vote'",
    ),
    (
        {**CHOICE, "doc_to_text": "{{ nothing.at.all }}"},
        r"document 0: its doc_to_text is .* \(UndefinedError: 'nothing' is undefined\); correct it, the columns are text",
    ),
    ({**CHOICE, "dataset_kwargs": {"data_files": {"test": "/no/such/file.jsonl"}}}, "its data cannot be had"),
    (FAR, r"its data cannot be had \(.*nobody/nothing-here.*\); go online once, or give a task file"),
]


@pytest.mark.parametrize(("config", "says"), REFUSED)
def test_what_cannot_be_asked_is_refused(
    config: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config
    import huggingface_hub.constants

    # As with HF_HUB_OFFLINE=1: not to wait for five tries.
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    with pytest.raises(SuiteError, match=f"lm-eval task 'local'.*{says}") as found:
        ours(tmp_path, config)
    assert "\n" not in str(found.value)


def test_unknown_tasks_and_options(tmp_path: Path) -> None:
    local_task(tmp_path, CHOICE)
    with pytest.raises(SuiteError, match="knows no task 'arc_eazy'; did you mean 'arc_easy'"):
        load_lm_eval("local,arc_eazy", TaskOptions(include_path=tmp_path))
    with pytest.raises(SuiteError, match="names no task"):
        Suite.load("lm-eval:")
    with pytest.raises(SuiteError, match="limit=3 is for lm-eval's tasks, and the suite is 'repertoire'"):
        Suite.load("repertoire", TaskOptions(limit=3))
    with pytest.raises(SuiteError, match="needs a tokenizer with a chat template"):
        load_lm_eval("local", TaskOptions(include_path=tmp_path, apply_chat_template=True))
    for option, says in (
        ({"limit": 0}, "limit is 0"),
        ({"limit": 2.5}, "limit is 2.5"),
        ({"num_fewshot": -1}, "num_fewshot is -1"),
        ({"fewshot_as_multiturn": True}, "needs apply_chat_template"),
        ({"include_path": tmp_path / "no"}, "is no folder"),
    ):
        with pytest.raises(SuiteError, match=says):
            TaskOptions(**option)


# What is wrong with a task's files is said with file, line or document, value and mend.

Q = {**CHOICE, "doc_to_text": "{{q}}", "doc_to_choice": "c", "doc_to_target": "g"}
GOOD_DOC = '{"q": "1+1=", "c": ["2", "3"], "g": 0}'
OUT_OF_RANGE = "document 0: gold is 7, but it has 2 choices (0-1); correct the data or doc_to_target"
FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "", "its data file {data} is empty; write a line a document"),
    ({}, GOOD_DOC.replace("0}", "7}"), OUT_OF_RANGE),
    ({}, GOOD_DOC.replace("3", ""), "document 0: its choices have '' at 1 (from 0), which is empty; correct the data"),
    ({}, f"{GOOD_DOC}\n{{oops", "its data cannot be read: {data}:2: not JSON: Expecting property name"),
    (
        {"metric_list": [{"metric": "ac"}]},
        GOOD_DOC,
        "its metric_list has 'ac', which is no metric of lm-eval; name one, did you mean 'acc'?",
    ),
    ({"doc_to_choice": "zz"}, GOOD_DOC, "document 0: its doc_to_choice is 'zz', which gives nothing (ValueError: "),
    ({"test_split": "tset"}, GOOD_DOC, "its test_split is 'tset', and the data has test; choose one of these"),
]


@pytest.mark.parametrize(("config", "docs", "says"), FAULTS)
def test_a_fault_of_a_task_is_named(
    config: dict[str, Any], docs: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    data = tmp_path / "docs.jsonl"
    files = {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")}
    local_task(tmp_path, {**Q, "dataset_kwargs": files, "fewshot_split": None, **config})
    data.write_text(docs)
    with pytest.raises(SuiteError) as raised:
        load_lm_eval("local", TaskOptions(include_path=tmp_path))
    begin = f"lm-eval task 'local' ({tmp_path / 'local.yaml'}): {says.replace('{data}', str(data))}"
    assert str(raised.value).startswith(begin) and "\n" not in str(raised.value)


def test_a_document_that_cannot_be_asked_is_numbered(tmp_path: Path) -> None:
    data = tmp_path / "docs.jsonl"
    files = {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")}
    local_task(
        tmp_path, {**Q, "dataset_kwargs": files, "fewshot_split": None, "doc_to_text": "{{q[0]}} {{c[g] | length}}"}
    )
    data.write_text(f"{GOOD_DOC}\n" * 3 + GOOD_DOC.replace("0}", "7}"))
    with pytest.raises(
        SuiteError, match=r"lm-eval task 'local', document 3: its requests cannot be written \(Undefined"
    ):
        load_lm_eval("local", TaskOptions(include_path=tmp_path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            b"task: local\n  a: [b\n",
            ":2: not YAML: mapping values are not allowed in this context at column 4, '  a: [b'",
        ),
        (b"task: local\n# \xff\n", ":2: byte 14 of the file is 0xff, which is not UTF-8"),
        (b"- task: local\n", ": ValueError: Expected YAML dict from"),
        (b"task: local\ninclude: none.yaml\n", ": {folder}/none.yaml: No such file or directory"),
    ],
)
def test_a_task_file_that_cannot_be_read_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    (tmp_path / "other.yaml").write_text("task: [\n")
    with pytest.raises(SuiteError) as raised:
        load_lm_eval("local", TaskOptions(include_path=tmp_path))
    begin = f"lm-eval knows no task 'local', and a task file cannot be read: {tmp_path / 'mine.yaml'}{says}"
    assert str(raised.value).startswith(begin.replace("{folder}", str(tmp_path))), str(raised.value)
    assert str(raised.value).endswith("; correct that file") and "\n" not in str(raised.value)


def test_a_filter_that_no_reply_ends_is_ended() -> None:
    filters = json.dumps([["regex", {"regex_pattern": "(a+)+$"}], ["take_first", None]])
    item = GenerationItem(id="t/0", capability="t", prompt="p", answers=("a",), filters=filters)
    with pytest.raises(Unended):
        right_reply("a" * 40 + "!", item)
    assert right_reply("a", item)


def test_without_lm_eval_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SuiteError, match=r"lm-eval:piqa needs the package lm-eval; pip install 'backslide\[lm-eval\]'"):
        Suite.load("lm-eval:piqa")


# lm-eval's layout, written and read.


@pytest.mark.parametrize("name", ["multiple choice", "perplexity", "filtered replies"])
def test_the_layout_is_lm_evals(name: str, model: Any, tiny_folder: Path, tmp_path: Path) -> None:
    theirs(tmp_path, ALL[name], model, tmp_path / "theirs", limit=8)
    options = TaskOptions(include_path=tmp_path, limit=8)
    take_baseline(
        str(tiny_folder), tmp_path / "b.jsonl", suite="lm-eval:local", dtype="float32", tasks=options,
        lm_eval_out=tmp_path / "ours",
    )  # fmt: skip
    found = {}
    for side in ("theirs", "ours"):
        (results,) = (tmp_path / side).rglob("results_*.json")
        (samples,) = results.parent.glob(f"samples_local_{results.stem.removeprefix('results_')}.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        found[side] = json.loads(results.read_text()), rows
    (head, rows), (own, own_rows) = found["theirs"], found["ours"]
    # `lm_eval` adds what it knows of the machine and of its own tokenizer.
    assert {"results", "configs", "versions", "n-shot", "n-samples", "config", "task_hashes", "model_name"} <= set(own)
    assert own["task_hashes"] == head["task_hashes"] and own["n-samples"] == head["n-samples"]
    # Log-likelihoods, and bits made of them, are equal but for rounding, as other tests see; the rest to the letter.
    near = ("resps", "filtered_resps", "word_perplexity", "byte_perplexity", "bits_per_byte")
    exact, own_exact = ([{k: v for k, v in row.items() if k not in near} for row in of] for of in (rows, own_rows))
    assert own_exact == exact
    assert [set(row) for row in own_rows] == [set(row) for row in rows]
    # And what was written is read back as it was measured.
    read = read_samples(tmp_path / "ours").answers(Suite.load("lm-eval:local", options))
    for id, outcome in Record.load(tmp_path / "b.jsonl").by_id.items():
        said = read[id]
        if isinstance(said, str):
            assert said == outcome.reply
        else:
            assert tuple(value for value, _ in said) == outcome.scores


@pytest.mark.parametrize("name", ["few-shot", "last word", "perplexity", "filtered replies"])
def test_a_folder_of_lm_evals_is_a_baseline(name: str, model: Any, tiny_folder: Path, tmp_path: Path) -> None:
    theirs(tmp_path, ALL[name], model, tmp_path / "out")
    options = TaskOptions(include_path=tmp_path)
    verdict = check_model(
        str(tiny_folder), tmp_path / "out", suite="lm-eval:local", part="all", tasks=options, out=tmp_path / "run"
    )
    (row,) = verdict.capabilities
    assert row.items == 24 and (row.lost, row.won) in ((0, 0), (None, None))
    assert row.main.drop == pytest.approx(0, abs=1e-5)
    old = Record.load(tmp_path / "run" / "baseline.jsonl")
    assert old.header.notes[0].startswith("the baseline is lm-eval's own")


def test_another_model_against_lm_evals_folder(model: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """The drop is the difference of the two accuracies that lm-eval finds."""
    there = theirs(tmp_path, CHOICE, model, tmp_path / "out")["results"]["local"]["acc,none"]
    other = tiny_model(seed=5)
    here = theirs(tmp_path, CHOICE, other)["results"]["local"]["acc,none"]
    assert here != there
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    verdict = check_model(
        str(tmp_path / "other"), tmp_path / "out", suite="lm-eval:local", part="all",
        tasks=TaskOptions(include_path=tmp_path),
    )  # fmt: skip
    assert verdict.capabilities[0].main.drop == pytest.approx(there - here)


def test_folders_that_do_not_fit(model: Any, tiny_folder: Path, tmp_path: Path) -> None:
    theirs(tmp_path, CHOICE, model, tmp_path / "out", limit=6)
    samples = read_samples(tmp_path / "out")
    assert samples.dtype == "float32"
    options = TaskOptions(include_path=tmp_path, limit=6)
    with pytest.raises(MismatchError, match=r"other words for 6 of 6 documents.*--num-fewshot"):
        samples.answers(load_lm_eval("local", dataclasses.replace(options, num_fewshot=1)))
    with pytest.raises(MismatchError, match=r"holds no sample for 2 of 8 documents, the first is 'local/6'.*--limit"):
        samples.answers(load_lm_eval("local", dataclasses.replace(options, limit=8)))
    with pytest.raises(MismatchError, match="use --suite lm-eval:local"):
        samples.answers(Suite.repertoire())

    (path,) = (tmp_path / "out").rglob("samples_*.jsonl")
    row = json.loads(path.read_text().splitlines()[0])
    for broken, says in (
        ({**row, "resps": [["-1.0"]]}, "does not fit its task"),
        ({**row, "resps": [[["much", "True"]]] * 2}, "does not fit its task"),
        ({**row, "arguments": {"gen_args_0": {"arg_0": "a", "arg_1": "b"}}}, "other contexts or continuations"),
    ):
        path.write_text(json.dumps(broken) + "\n")
        with pytest.raises(MismatchError, match=says):
            read_samples(tmp_path / "out").answers(load_lm_eval("local", dataclasses.replace(options, limit=1)))
    path.write_text(json.dumps({"doc_id": 0}) + "\n")
    with pytest.raises(RecordError, match=r"samples_local_.*:1: lacks doc_hash"):
        read_samples(tmp_path / "out")
    path.unlink()
    with pytest.raises(RecordError, match="run lm-eval with --log_samples"):
        read_samples(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="holds no record and no lm-eval results"):
        read_samples(tmp_path / "empty")


# The command line.


def backslide(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["backslide", *words])
    with pytest.raises(SystemExit) as ended:
        command()
    return int(ended.value.code or 0)


def test_the_command_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    local_task(tmp_path, CHOICE)
    monkeypatch.chdir(tmp_path)
    # lm-eval's spelling, and the usual one.
    suite = ["--suite", "lm-eval:local", "--include_path", str(tmp_path), "--num-fewshot", "2", "--limit", "20"]
    model = str(tiny_folder)
    asked = [*suite, "--apply_chat_template"]
    assert backslide(monkeypatch, "baseline", model, "--out", "b.jsonl", *asked, "--lm-eval-out", "theirs") == 0
    assert Record.load("b.jsonl").header.suite == "lm-eval:local num_fewshot=2 limit=20 apply_chat_template=True"
    for baseline in ("b.jsonl", "theirs"):
        # 20 items prove nothing.
        assert backslide(monkeypatch, "check", model, "--baseline", baseline, "--part", "all", *asked) == 3
        assert "lost 0 and won 0 of 20" in capsys.readouterr().out
    assert backslide(monkeypatch, "suite", "ls", *suite) == 0
    assert re.search(r"local +20 ", capsys.readouterr().out)
    tasks = ["lm-eval:local", *suite[2:]]
    assert backslide(monkeypatch, "suite", "show", *tasks) == 0
    assert re.search(r"20\s+continuation", capsys.readouterr().out)
    # What a task asks is looked for in the training data, the examples in front of it too.
    item = load_lm_eval("local", TaskOptions(include_path=str(tmp_path), num_fewshot=2, limit=20)).items[4]
    assert isinstance(item, ContinuationItem)
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": item.contexts[0] + item.continuations[item.gold[0]]}))
    assert backslide(monkeypatch, "suite", "check", *tasks, "--train", "train.jsonl", "--strict") == 1
    assert item.id in " ".join(capsys.readouterr().out.split())
    for words, says in (
        (
            ["baseline", model, "--suite", "lm-eval:loca", "--include-path", str(tmp_path)],
            "no task 'loca'; did you mean",
        ),
        (["check", model, "--baseline", "b.jsonl", *suite], "the baseline was measured on the suite lm-eval:local"),
        (["baseline", model, "--lm-eval-out", "x"], "lm-eval-out is for lm-eval's tasks"),
        (["baseline", model, *suite, "--part", "gate", "--lm-eval-out", "x"], "lm-eval-out needs all documents"),
        (["baseline", model, *suite, "--lm-eval-out", "b.jsonl"], "lm-eval-out is 'b.jsonl', which is a file"),
    ):
        assert backslide(monkeypatch, *words) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert says in lines[-1]
