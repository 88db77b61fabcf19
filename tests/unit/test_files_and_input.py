"""Suites, records, configurations and training files: what is read back, and the one line on what cannot be."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import backslide
from backslide.config import TuneConfig
from backslide.data import TrainingData
from backslide.errors import ConfigError, DataError, InputError, RecordError, SuiteError
from backslide.files import write_text
from backslide.record import Outcome, Record
from backslide.rundir import RunFolder
from backslide.suite.matching import matches
from backslide.suite.suite import Suite
from backslide.verdict import broken
from builders import choices, record

GOOD = '{"id": "a", "kind": "choice", "capability": "c", "prompt": "p", "choices": ["x", "y"], "gold": 0}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the suite is empty"),
        ("\n\n", "the suite is empty"),
        (GOOD + "{oops\n", r"s\.jsonl:2: not JSON"),
        (GOOD + "[1]\n", r"s\.jsonl:2: is list"),
        (GOOD.replace('"gold": 0', '"gold": 4'), r"s\.jsonl:1: gold is 4, but the item has 2 choices \(0-1\)"),
        (GOOD.replace('"gold": 0', '"gold": true'), r"s\.jsonl:1: gold is True"),
        (GOOD + GOOD, r"s\.jsonl:2: the id 'a' was used before, at .*s\.jsonl:1"),
        (GOOD.replace('choice"', 'chioce"'), r"s\.jsonl:1: .*chioce"),
        (GOOD.replace('"prompt": "p"', '"prompt": ""'), r"s\.jsonl:1: .*prompt"),
        (GOOD.replace('["x", "y"]', '["x"]'), r"s\.jsonl:1: .*choices"),
    ],
)
def test_a_bad_suite_is_one_line_with_file_and_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(text)
    with pytest.raises(SuiteError, match=says) as raised:
        Suite.load(path)
    assert "\n" not in str(raised.value)


def test_a_missing_suite(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="no such suite"):
        Suite.load(tmp_path / "none.jsonl")


def test_a_suite_survives_saving_and_its_hash_ignores_order(tmp_path: Path) -> None:
    suite = Suite.repertoire()
    suite.save(tmp_path / "s.jsonl")
    again = Suite.load(tmp_path / "s.jsonl")
    assert again.items == suite.items and again.hash == suite.hash
    assert Suite("r", tuple(reversed(suite.items))).hash == suite.hash
    assert Suite("r", suite.items[:-1]).hash != suite.hash
    halves = [{item.id for item in suite.part(half)} for half in ("monitor", "gate")]  # type: ignore[arg-type]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == len(suite.items)


@pytest.mark.parametrize(
    ("reply", "answers", "match", "right"),
    [
        ("The answer is 4.", ["4"], "number", True),
        ("4, no, 5", ["4"], "number", False),
        ("It is 1,234.", ["1234"], "number", True),
        ("−3", ["-3"], "number", True),
        ("Paris is nice", ["Paris"], "contains", True),
        ("Parisian", ["Paris"], "contains", False),
        ("", [""], "exact", False),
        (" PARIS. ", ["paris"], "exact", True),
        ("a(((", ["a((("], "contains", True),
        ("x42", [r"\d+"], "regex", True),
    ],
)
def test_matching(reply: str, answers: list[str], match: str, right: bool) -> None:
    assert matches(reply, tuple(answers), match) is right  # type: ignore[arg-type]


@given(
    st.lists(
        st.builds(
            Outcome,
            id=st.text(min_size=1),
            kind=st.sampled_from(["choice", "open"]),
            capability=st.text(min_size=1),
            request=st.text(),
            correct=st.none() | st.booleans(),
            p=st.none() | st.floats(0, 1),
            scores=st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
            reply=st.none() | st.text(),
        ),
        min_size=1,
        unique_by=lambda outcome: outcome.id,
    )
)
def test_saving_and_loading_a_record_is_the_identity(outcomes: list[Outcome]) -> None:
    path = Path("r.jsonl")
    made = record(outcomes)
    try:
        made.save(path)
    except UnicodeEncodeError:
        return  # lone surrogates are no text
    assert Record.load(path) == made


def test_a_record_cut_short_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    record(choices([True] * 3)).save(path)
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(RecordError, match=r"r\.jsonl:4: not JSON"):
        Record.load(path)
    path.write_text(whole.splitlines()[0] + "\n")
    with pytest.raises(RecordError, match="holds no outcome"):
        Record.load(path)
    path.write_text("")
    with pytest.raises(RecordError, match="is empty"):
        Record.load(path)
    path.write_text(whole.replace("backslide.record/1", "backslide.record/9"))
    with pytest.raises(RecordError, match=r"schema is 'backslide\.record/9'"):
        Record.load(path)
    path.write_text(whole.replace("-1.0", "NaN"))
    with pytest.raises(RecordError, match="finite numbers or null"):
        Record.load(path)


BASE = '[model]\nbase = "m"\n[data]\ntrain = "t.jsonl"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            BASE + "[train]\nlearning_rat = 1e-4\n",
            r"unknown key 'learning_rat' in \[train\]; did you mean 'learning_rate'",
        ),
        (BASE + "[gaurd]\n", "unknown section 'gaurd'; did you mean 'guard'"),
        (BASE + '[train]\nlearning_rate = "5e-5"\n', "learning_rate is '5e-5', a number is needed"),
        (BASE + "[train]\nsteps = 2.5\n", "train.steps is 2.5, a whole number"),
        (BASE + "[train]\nsteps = true\n", "train.steps is True"),
        (BASE + "[train]\nsteps = 0\n", "train.steps is 0"),
        (BASE + "[train]\nsteps = 3\nepochs = 1\n", "both given"),
        (BASE + "[train]\nlearning_rate = nan\n", "learning_rate is nan"),
        (BASE + '[train]\nmethod = "lorra"\n', "one of lora, full"),
        (BASE + '[guard]\non_regression = "rollback"\n', "one of warn, stop"),
        (BASE + "[guard]\nalpha = 0.9\n", "guard.alpha is 0.9"),
        ('[model]\nbase = "m"\n', r"\[data\] lacks the key 'train'"),
        ("model = 3\n", "model is 3, a section is needed"),
        ("[model\n", "not TOML"),
    ],
)
def test_a_bad_configuration_is_one_line_that_names_the_mend(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as raised:
        TuneConfig.load(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_a_good_configuration_takes_its_name_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "support.toml").write_text(BASE + '[train]\nmethod = "full"\n')
    config = TuneConfig.load(tmp_path / "support.toml")
    assert config.folder == Path("runs/support") and config.train.rate == 2e-5
    assert (
        TuneConfig.from_dict({k: {n: v for n, v in t.items() if v is not None} for k, t in config.to_dict().items()})
        == config
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no usable text: the file has no line"),
        ('{"text": " "}\n{"text": ""}\n', "no usable text: all 2 lines are empty"),
        ('{"text": "a"}\n{"prompt": "a", "completion": "b"}\n', r"t\.jsonl:2: is of the format prompt/completion"),
        ('{"txt": "a"}\n', r"t\.jsonl:1: has the keys txt"),
        ('{"text": 3}\n', r"t\.jsonl:1: text is int"),
        ('{"messages": [{"role": "user"}]}\n', r"t\.jsonl:1: message 1 has no text in 'content'"),
    ],
)
def test_bad_training_files(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(DataError, match=says):
        TrainingData.load(tmp_path / "t.jsonl")


def test_messages_become_plain_text(tmp_path: Path) -> None:
    line = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "more": 1}\n'
    (tmp_path / "t.jsonl").write_text(line + '{"messages": []}\n')
    data = TrainingData.load(tmp_path / "t.jsonl")
    assert data.skipped == 1 and data.as_text().rows == ({"text": "User: Hi\nAssistant: Hello"},)


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_text(path, "old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_second_run_in_a_folder_moves_the_first_aside(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for number in range(3):
        run.begin({"number": number})
        run.append([{"event": "loss", "step": number}])
        run.save_verdict(broken("x"))
    assert run.config == {"number": 2}
    earlier = sorted(p.name for p in (tmp_path / "run" / "earlier").iterdir())
    kept = {RunFolder(tmp_path / "run" / "earlier" / name).config["number"] for name in earlier}
    assert kept == {0, 1}


def test_events_after_a_killed_write_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append([{"event": "loss", "step": 1}])
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"event": "lo')
    run.append([{"event": "loss", "step": 2}])
    assert [event["step"] for event in run.events()] == [1, 2]


def test_importing_backslide_and_its_help_needs_no_torch_and_is_quick() -> None:
    code = (
        "import sys, backslide, backslide.cli.main, backslide.report.markdown, backslide.verdict\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets', 'peft')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    help_code = "import sys; sys.argv = ['backslide', '--help']; from backslide.cli.main import run; run()"
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", help_code], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.5


def test_every_public_name_is_there() -> None:
    assert all(getattr(backslide, name) is not None for name in backslide.__all__)
    with pytest.raises(AttributeError):
        backslide.nothing  # noqa: B018
    assert issubclass(ConfigError, InputError) and InputError.exit_code == 2
