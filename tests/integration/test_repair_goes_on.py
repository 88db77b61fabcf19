"""A repair that is killed inside a measurement goes on inside it; also run as a script, to be killed.

python test_repair_goes_on.py BASE TUNED OUT GROUP NUMBER
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backslide.cure.place import RECORDS
from backslide.cure.repair import Repaired, repair
from backslide.rundir import RunFolder
from backslide.suite.suite import Suite
from backslide.testing import tiny_model
from guard_runs import SMALL, suite
from processes import forked
from repair_models import WIDE, outcomes, saved, trained


class Asked:
    """A progress that counts the requests of each group, and calls `end` when 7 in 10 of a certain one are done."""

    def __init__(self, group: str = "", number: int = 0, end: Callable[[], None] | None = None) -> None:
        self.requests: list[tuple[str, int]] = []
        """What was asked one after the other, and how many requests it was."""
        self._until, self._end = (group, number), end
        self._over = True

    @property
    def total(self) -> int:
        return sum(count for _, count in self.requests)

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._over or self.requests[-1][0] != what:
            self.requests.append((what, 0))
        self.requests[-1] = (what, done)
        self._over = done == total
        place = (what, sum(name == what for name, _ in self.requests))
        if self._end is not None and place == self._until and done >= 0.7 * total:
            self._end()


def mend(base: str, tuned: str, out: str | Path, asked: Callable[[str, int, int], None], **more: Any) -> Repaired:
    choices = Suite("choices", tuple(item for item in suite().items if item.kind == "choice"))
    given: dict[str, Any] = {"suite": choices, "dtype": "float32", "settings": SMALL, **WIDE, **more}
    return repair(base, tuned, out, progress=asked, **given)


def interrupt() -> None:
    raise KeyboardInterrupt


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    return saved(tiny_model(), folder / "base"), saved(trained(tiny_model(), steps=3), folder / "tuned")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str]) -> tuple[Repaired, Asked]:
    """A repair that nothing disturbs, without a baseline: it measures everything itself."""
    asked = Asked()
    done = mend(*models, tmp_path_factory.mktemp("whole") / "out", asked)
    names = [name for name, _ in asked.requests]
    # The base, points, the certificate, the tuned model.
    assert names[:3] == ["monitor half", "gate half", "monitor half"] and names.count("gate half") == 3
    return done, asked


PLACES = {
    "base, killed": ("gate half", 1),
    "a point": ("monitor half", 3),
    "certificate": ("gate half", 2),
    "tuned model": ("gate half", 3),
}


@pytest.mark.parametrize("place", list(PLACES))
def test_what_was_found_inside_a_measurement_is_not_asked_again(
    tmp_path: Path, models: tuple[str, str], whole: tuple[Repaired, Asked], place: str
) -> None:
    out, (undisturbed, all_asked) = tmp_path / "out", whole
    group, number = PLACES[place]
    if "killed" in place:
        ran = forked(__file__, *models, out, group, str(number))
        assert ran.returncode == -signal.SIGKILL, ran.stderr
        at_first = int(ran.stdout.split()[-1])
    else:
        asked = Asked(group, number, interrupt)
        with pytest.raises(KeyboardInterrupt):
            mend(*models, out, asked)
        at_first = asked.total
    assert len(list((out / RECORDS).rglob("*.part-0"))) == 1
    again = Asked()
    done = mend(*models, out, again)
    # Nothing but the pass of which the process was told before its outcomes were: 32 requests here.
    lost = at_first + again.total - all_asked.total
    assert 0 <= lost <= 40, (at_first, again.requests, all_asked.requests)
    assert dataclasses.replace(done, out=undisturbed.out) == undisturbed
    one, two = (RunFolder(folder / RECORDS) for folder in (out, undisturbed.out))
    for name in (
        "baseline.jsonl",
        "final.jsonl",
        "tuned.jsonl",
        *(f"line/{p.name}" for p in (two.path / "line").iterdir()),
    ):
        assert outcomes(one.path / name) == outcomes(two.path / name), name
    assert not list(out.rglob("*.part-*")), "what is measured needs no journal"


@pytest.mark.parametrize("other", ["weights", "conditions", "requests", "half a line"])
def test_a_journal_of_something_else_is_not_believed(
    tmp_path: Path, models: tuple[str, str], whole: tuple[Repaired, Asked], other: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        mend(*models, out, Asked("gate half", 1, interrupt))
    (part,) = (out / RECORDS).rglob("*.part-0")
    head, *rows = part.read_text().split("\n")[:-1]
    assert len(rows) > 80
    lie: dict[str, Any] = {"p": 0.999}
    if other == "weights":
        head = json.dumps({**json.loads(head), "model": "0" * 64})
    elif other == "requests":
        # As of a chat template that tells the day.
        lie["request"] = "0" * 64
    lies = [json.dumps({**json.loads(row), **lie}) for row in rows]
    part.write_text("\n".join([head, *(lies if other != "half a line" else []), lies[0][:40]]))
    more = {"settings": dataclasses.replace(SMALL, row_tokens=96)} if other == "conditions" else {}

    def end(*_: Any) -> None:
        if (out / RECORDS / "baseline.jsonl").is_file():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mend(*models, out, end, **more)
    base = outcomes(out / RECORDS / "baseline.jsonl")
    assert not any(outcome.p == 0.999 for outcome in base)
    if other != "conditions":
        assert base == outcomes(whole[0].out / RECORDS / "baseline.jsonl")


def test_a_certificate_whose_verdict_was_not_written_is_not_asked_again(
    tmp_path: Path, models: tuple[str, str], whole: tuple[Repaired, Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    out, (undisturbed, all_asked) = tmp_path / "out", whole
    asked, again = Asked(), Asked()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFolder, "save_verdict", fail)
        mend(*models, out, asked)
    done = mend(*models, out, again)
    assert asked.total + again.total == all_asked.total
    assert dataclasses.replace(done, out=undisturbed.out) == undisturbed and done.verdict.opening == 1


if __name__ == "__main__":  # to be killed, for good
    torch.set_num_threads(1)
    *given, group, number = sys.argv[1:]

    def end() -> None:
        print(asked.total, flush=True)
        kill()

    asked = Asked(group, int(number), end)
    mend(*given, asked)
