"""What a repair is given: what was measured before, bases that are not the base, and refusals that leave nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backslide.cure.line import open_line
from backslide.cure.place import RECORDS
from backslide.cure.repair import repair
from backslide.errors import DataError, MismatchError
from backslide.files import write_lines
from backslide.gate import take_baseline
from backslide.models import load_model
from backslide.record import Record
from backslide.rundir import RunFolder
from backslide.scoring.engine import Scorer
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from repair_models import TEXTS, WIDE, adapter, files, outcomes, run_of, saved, trained


@pytest.fixture(scope="module")
def choices(known_suite: Suite) -> Suite:
    return Suite("choices", tuple(i for i in known_suite.items if i.kind == "choice"))


class Asked:
    """A progress that adds up the requests of each look, and ends the process's work where it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.looks: list[int] = []
        self._stop_at = stop_at

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == "monitor half" and done == total:
            self.looks.append(total)
            if len(self.looks) == self._stop_at:
                raise KeyboardInterrupt


def looked(folder: str, suite: Suite, only: set[str] | None = None) -> Record:
    """A look at the monitor half as a run takes it, or at the packs of some items of it."""
    loaded = load_model(folder, dtype="float32")
    scorer = Scorer(suite, loaded.model, loaded.tokenizer)
    return scorer.measure(loaded.model, part="monitor", replies=False, only=only)


def part_of(whole: Record, folder: str, suite: Suite) -> Record:
    """The pack of the first item, as a look within a budget may ask it."""
    part = looked(folder, suite, {whole.outcomes[0].id})
    assert 0 < len(part.outcomes) < len(whole.outcomes)
    return part


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, choices: Suite) -> RunFolder:
    torch.set_num_threads(1)
    return run_of(tmp_path_factory.mktemp("run"), str(tiny_folder), choices, trained(tiny_model()), tolerance=0.2)


def test_a_look_at_a_part_is_no_look_at_the_half_and_spares_its_items(
    tmp_path: Path, tiny_folder: Path, choices: Suite, run: RunFolder
) -> None:
    model = str(run.path / "model")
    whole = looked(model, choices)
    part = part_of(whole, model, choices)
    found, asked = {}, {}
    for name, record in (("none", None), ("part", part), ("whole", whole)):
        run.step(8).unlink(missing_ok=True)
        if record is not None:
            record.save(run.step(8))
        asked[name] = Asked()
        found[name] = repair(str(tiny_folder), model, tmp_path / name, progress=asked[name])
        assert outcomes(tmp_path / name / RECORDS / "line" / "at-1.00000.jsonl") == whole.outcomes, name
    assert found["none"].points == found["part"].points == found["whole"].points
    # Four choices an item.
    assert asked["none"].looks[0] - asked["part"].looks[0] == 4 * len(part.outcomes)
    assert asked["none"].looks[1:] == asked["part"].looks[1:] == asked["whole"].looks


def test_an_interrupted_repair_goes_on_from_a_part_of_a_look_too(
    tmp_path: Path, tiny_folder: Path, choices: Suite, run: RunFolder
) -> None:
    run.step(8).unlink(missing_ok=True)
    model, out = str(run.path / "model"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        repair(str(tiny_folder), model, out, progress=Asked(stop_at=2))
    look = out / RECORDS / "line" / "at-1.00000.jsonl"
    whole = Record.load(look)
    part_of(whole, model, choices).save(look)
    repair(str(tiny_folder), model, out)
    assert outcomes(look) == whole.outcomes


def bases(tmp_path: Path, kind: str) -> tuple[str, str, str]:
    """A base, another one, and what was trained from the first, of dtypes that differ."""
    narrow, wide = torch.bfloat16, torch.float32
    start, end = {"narrow base": (narrow, wide), "narrow tuned": (wide, narrow)}[kind]
    base = saved(tiny_model().to(start), tmp_path / "base")
    other = saved(tiny_model(seed=7).to(start), tmp_path / "other")
    return base, other, saved(trained(load_model(base, dtype="float32").model).to(end), tmp_path / "tuned")


@pytest.mark.parametrize("kind", ["narrow base", "narrow tuned"])
def test_another_base_is_refused_whatever_the_dtypes_of_the_files(tmp_path: Path, choices: Suite, kind: str) -> None:
    base, other, tuned = bases(tmp_path, kind)
    write_lines(tmp_path / "held.jsonl", TEXTS[12:])
    take_baseline(base, tmp_path / "baseline.jsonl", suite=choices, dtype="float32")
    given: dict[str, Any] = dict(suite=choices, baseline=tmp_path / "baseline.jsonl", held_out=tmp_path / "held.jsonl")
    with pytest.raises(MismatchError) as bad:
        repair(other, tuned, tmp_path / "out", **given, **WIDE)
    said = str(bad.value)
    assert "\n" not in said and base in said and other in said and "whose weights are not those of" in said
    # What was refused is in nobody's way.
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.repair").exists()
    done = repair(base, tuned, tmp_path / "out", **given, **WIDE)
    assert any(point.kept for point in done.points)


def test_of_a_base_with_a_larger_vocabulary_it_is_said_that_it_cannot_be_told(tmp_path: Path, choices: Suite) -> None:
    base, larger = saved(tiny_model(), tmp_path / "base"), tiny_model()
    torch.manual_seed(0)
    larger.resize_token_embeddings(263)
    take_baseline(saved(larger, tmp_path / "larger"), tmp_path / "baseline.jsonl", suite=choices, dtype="float32")
    tuned = saved(trained(larger, steps=2), tmp_path / "tuned")
    said: list[str] = []
    repair(base, tuned, tmp_path / "out", suite=choices, baseline=tmp_path / "baseline.jsonl", say=said.append, **WIDE)
    assert sum("cannot be told" in line for line in said) == 1
    # The record of the base itself is known for what it is.
    take_baseline(base, tmp_path / "own.jsonl", suite=choices, dtype="float32")
    said.clear()
    repair(base, tuned, tmp_path / "two", suite=choices, baseline=tmp_path / "own.jsonl", say=said.append, **WIDE)
    assert not any("cannot be told" in line for line in said)


@pytest.mark.parametrize("base", ["moved", "the same"])
def test_an_adapter_that_names_another_base_is_said_and_taken(tmp_path: Path, choices: Suite, base: str) -> None:
    here = saved(tiny_model(), tmp_path / "here")
    tuned = adapter(tmp_path / "adapter", here if base == "the same" else "/gone/base")
    said: list[str] = []
    repair(here, tuned, tmp_path / "out", suite=choices, dtype="float32", say=said.append, **WIDE)
    lines = [line for line in said if "adapter_config.json names" in line]
    assert len(lines) == (base == "moved")
    assert all("/gone/base" in line and here in line for line in lines)


def refused(tmp_path: Path, choices: Suite, why: str) -> tuple[type[Exception], Callable[..., Any]]:
    """A repair of an adapter that is refused for `why` when its models have been loaded, unless that is mended."""
    base, other = (saved(tiny_model(seed=seed), tmp_path / f"base {seed}") for seed in (0, 7))
    tuned = adapter(tmp_path / "adapter", base)
    write_lines(tmp_path / "long.jsonl", [{"prompt": "A long prompt", "completion": "Yes."}])
    fixed: dict[str, Any] = {"suite": choices, "dtype": "float32", **WIDE}
    if why == "tokenizer":
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}Other: {{ m['content'] }}{% endfor %}"
        tokenizer.save_pretrained(tuned)

        def mended_tokenizer(out: Path, mended: bool) -> Any:
            if mended:
                tiny_tokenizer().save_pretrained(tuned)
            return repair(base, tuned, out, **fixed)

        return MismatchError, mended_tokenizer
    if why == "held-out":
        return DataError, lambda out, mended: repair(
            base, tuned, out, held_out=tmp_path / "long.jsonl", max_length=100 if mended else 5, **fixed
        )
    take_baseline(base, tmp_path / "baseline.jsonl", suite=choices, dtype="float32")
    return MismatchError, lambda out, mended: repair(
        base if mended else other, tuned, out, baseline=tmp_path / "baseline.jsonl", **fixed
    )


@pytest.mark.parametrize("why", ["base", "tokenizer", "held-out"])
def test_what_is_refused_leaves_nothing_and_the_mended_command_goes(tmp_path: Path, choices: Suite, why: str) -> None:
    error, go = refused(tmp_path, choices, why)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(error):
        go(tmp_path / "new" / "out", mended=False)
    assert {path.name for path in tmp_path.iterdir()} == before, "neither the folder nor weights beside it"
    go(tmp_path / "new" / "out", mended=True)
    assert (tmp_path / "new" / "out" / RECORDS / "verdict.json").is_file()


def test_what_is_refused_leaves_an_interrupted_repair_as_it_was(
    tmp_path: Path, tiny_folder: Path, choices: Suite, run: RunFolder
) -> None:
    model, out = str(run.path / "model"), tmp_path / "out"
    other = saved(tiny_model(seed=7), tmp_path / "other")
    take_baseline(other, tmp_path / "other.jsonl", suite=choices, dtype="float32")
    with pytest.raises(KeyboardInterrupt):
        repair(str(tiny_folder), model, out, progress=Asked(stop_at=2))
    before = files(out)
    assert f"{RECORDS}/line/at-1.00000.jsonl" in before
    with pytest.raises(MismatchError, match="whose weights are not those of"):
        repair(str(tiny_folder), model, out, baseline=tmp_path / "other.jsonl")
    assert files(out) == before
    assert repair(str(tiny_folder), model, out).at is not None


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("full", 0.3), ("sharded", 0.3), ("adapter", 0.35), ("adapter with whole modules", 0.4)]
)
def test_what_is_shipped_loads_in_plain_libraries_and_scores_as_certified(
    tmp_path: Path, known_suite: Suite, kind: str, tolerance: float
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Of two texts each is heavy: nothing would be shipped.
    suite = Suite("spoken", tuple(item for item in known_suite.items if item.kind != "text"))
    base = saved(tiny_model(), tmp_path / "base")
    if kind.startswith("adapter"):
        whole: dict[str, Any] = {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}
        more = whole if "whole" in kind else {"rate": 8e-3}
        tuned = adapter(tmp_path / "tuned", base, **more)
    else:
        size = {"max_shard_size": "60KB"} if kind == "sharded" else {}
        tuned = saved(trained(tiny_model()), tmp_path / "tuned", **size)
    assert (len(list(Path(tuned).glob("*.safetensors"))) > 1) is (kind == "sharded")
    out = tmp_path / "out"
    done = repair(base, tuned, out, suite=suite, dtype="float32", tolerance=tolerance, drift=0.5)
    assert done.at is not None and 0 < done.at < 1, "weights that no file had before"
    kinds = [AutoModelForCausalLM, *([AutoPeftModelForCausalLM] if kind.startswith("adapter") else [])]
    for loader in kinds:
        model = loader.from_pretrained(out, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(out)
        plain = Scorer(suite, model, tokenizer).measure(model, part="gate", replies=True)
        assert plain.outcomes == outcomes(out / RECORDS / "final.jsonl"), "to the last digit"
    assert {p.name for p in Path(tuned).iterdir()} <= {p.name for p in out.iterdir()}


def test_a_point_is_the_bases_own_where_the_tuned_dtype_holds_it(tmp_path: Path) -> None:
    for kind, exact in (("narrow base", True), ("narrow tuned", False)):
        base, _, tuned = bases(tmp_path / kind, kind)
        assert open_line(base, tuned).exact_start is exact, kind
