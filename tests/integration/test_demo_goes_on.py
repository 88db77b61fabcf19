"""A demo that is interrupted goes on, on a tiny model: the real one takes minutes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backslide.demo import mending, story
from backslide.demo.mark import FILE, Mark, place
from backslide.errors import BusyError
from backslide.scoring.engine import Scorer
from guard_runs import SMALL
from guard_runs import suite as fragile
from processes import another
from told import Told


class Stop(BaseException):
    """As a keyboard interrupt: nothing may catch it."""


@pytest.fixture
def made(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The story told of a tiny model, and what is made: runs that are trained, and items asked of the bare base."""
    monkeypatch.setenv("BACKSLIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(story, "BUILTIN", str(tiny_folder))
    monkeypatch.setattr(story, "SETTINGS", SMALL)
    monkeypatch.setitem(story.RUNS["aggressive"], "learning_rate", 0.05)
    count: Counter[str] = Counter()
    tune, measure = mending.tune, Scorer.measure

    def counted(config: Any, **more: Any) -> Any:
        count[config.folder.name] += 1
        return tune(config, **more)

    def asked(self: Scorer, model: Any, *, keep: Any = None, **more: Any) -> Any:
        def kept(outcomes: Any) -> None:
            count["asked"] += len(outcomes)
            keep(outcomes)

        # A repair keeps what it asks too, and probes nothing.
        bare = keep is not None and more.get("probe", False) and "ranks" not in more
        return measure(self, model, keep=kept if bare else keep, **more)

    monkeypatch.setattr(mending, "tune", counted)
    monkeypatch.setattr(Scorer, "measure", asked)
    return count


def at(name: str, place: int) -> Callable[[str, int, int], None]:
    """Interrupts at the first such progress."""

    def watch(now: str, done: int, total: int) -> None:
        if now == name and done >= place:
            raise Stop

    return watch


def test_what_was_made_before_an_interruption_is_not_made_again(tmp_path: Path, made: Counter[str]) -> None:
    suite, out = fragile(), tmp_path / "demo"
    with pytest.raises(Stop):
        story.tell(Told(at("monitor half", 40)), out, suite=suite)
    first = made["asked"]
    assert 0 < first < len(suite.items) / 2 and not (out / "conservative").exists()

    class InTheSecondRun(Told):
        def show(self, thing: Any = "") -> None:
            super().show(thing)
            if "3. An aggressive" in self.console.export_text(clear=False):
                self.watch = at("training", 5)

    with pytest.raises(Stop):
        story.tell(InTheSecondRun(), out, suite=suite)
    assert made["asked"] == len(suite.items), "each item of the base once, over both"
    assert made["conservative"] == made["aggressive"] == 1
    model = (out / "conservative" / "model" / "adapter_model.safetensors").stat().st_mtime_ns

    class InTheThirdAct(Told):
        def show(self, thing: Any = "") -> None:
            super().show(thing)
            if "6. The same fine-tune" in self.console.export_text(clear=False):
                self.watch = at("training", 5)

    told = InTheThirdAct()
    with pytest.raises(Stop):
        story.tell(told, out, suite=suite)
    assert f"{out}: goes on with the demo that was interrupted there" in told.said
    assert (made["conservative"], made["aggressive"], made["auto"]) == (1, 2, 1)

    told = Told()
    story.tell(told, out, suite=suite)
    assert (made["conservative"], made["aggressive"], made["auto"]) == (1, 2, 2)
    assert made["asked"] == len(suite.items)
    assert (out / "conservative" / "model" / "adapter_model.safetensors").stat().st_mtime_ns == model
    assert f"{out / 'repaired'}: this repair has ended already" in " ".join(told.said)
    shown = told.console.export_text()
    for heading in ("1. What the base", "2. A conservative", "3. An aggressive", "4. Side by side", "5. The model",
                    "6. The same", "7. What came of it", "Done in"):  # fmt: skip
        assert heading in shown, heading
    assert json.loads((out / FILE).read_text())["ended"] is True and not list(out.glob("*.part-*"))


def test_a_demo_of_another_story_or_one_that_was_told_is_told_anew(tmp_path: Path) -> None:
    first = Mark(tmp_path, {"dialogues": 3})
    assert not first.goes_on
    part = tmp_path / "baseline.part-0"
    part.write_text("x")
    assert Mark(tmp_path, {"dialogues": 3}).goes_on and part.exists()
    assert not Mark(tmp_path, {"dialogues": 4}).goes_on and not part.exists(), "of other training data"
    second = Mark(tmp_path, {"dialogues": 4})
    assert second.goes_on
    second.end()
    assert not Mark(tmp_path, {"dialogues": 4}).goes_on
    (tmp_path / FILE).write_text("[1")
    assert not Mark(tmp_path, {"dialogues": 4}).goes_on, "what cannot be read is no story"


def test_the_folder_of_a_demo(tmp_path: Path) -> None:
    first = tmp_path / "demo"

    def chosen() -> str:
        with place(None, first) as folder:
            return folder.name

    assert chosen() == "demo"
    first.mkdir()
    assert chosen() == "demo-2", "whatever that folder is, it is no demo"
    mark = Mark(first, {})
    assert chosen() == "demo", "interrupted"
    mark.end()
    assert chosen() == "demo-2"
    Mark(tmp_path / "demo-2", {})
    assert chosen() == "demo-2"
    with another(tmp_path / "demo-2"):
        assert chosen() == "demo-3", "under way in another process"
        with pytest.raises(BusyError), place(tmp_path / "demo-2"):
            raise AssertionError
