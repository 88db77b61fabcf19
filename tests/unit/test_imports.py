"""What importing costs: no torch until a model is needed, and a command line that answers at once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import backslide

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")


def loaded(code: str, names: tuple[str, ...]) -> str:
    code = f"import sys\n{code}\nprint(*(name for name in {names!r} if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_the_check_sees_what_is_imported() -> None:
    assert loaded("import json", ("json", "torch")) == "json"


@pytest.mark.parametrize("module", ["backslide", "backslide.cli.main"])
def test_neither_torch_nor_scipy_is_needed_to_begin(module: str) -> None:
    assert loaded(f"import {module}", (*HEAVY, "scipy", "numpy")) == ""


@pytest.mark.parametrize(
    "modules",
    [
        "backslide.report.pages, backslide.report.terminal, backslide.report.summary",
        "backslide.verdict, backslide.diagnosis, backslide.record, backslide.rundir, backslide.suite.suite",
        "backslide.guard.monitor, backslide.guard.policy, backslide.guard.schedule, backslide.config, backslide.data",
        "backslide.cure.search, backslide.cure.place, backslide.cure.inputs, backslide.report.line",
        "backslide.cure.mixing",
    ],
)
def test_reports_verdicts_and_the_guards_logic_need_no_torch(modules: str) -> None:
    assert loaded(f"import {modules}", HEAVY) == ""


def test_help_is_quick() -> None:
    code = "import sys; sys.argv = ['backslide', '--help']; from backslide.cli.main import run; run()"
    times = []
    for _ in range(3):
        # The time of the process itself: on a busy machine the clock on the wall tells of others.
        begin = os.times()
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        end = os.times()
        times.append(end.children_user + end.children_system - begin.children_user - begin.children_system)
        assert ran.returncode == 0 and "Exit codes: 0 retained" in ran.stdout
    assert min(times) < 0.5, times


def test_every_public_name_is_there() -> None:
    # In a process of its own: it loads torch, which these tests do without.
    code = "import backslide\nassert all(getattr(backslide, name) is not None for name in backslide.__all__)"
    assert loaded(code, ("torch",)) == "torch"
    assert sorted(backslide.__all__) == sorted({*backslide._HOMES, "__version__"})
    assert set(backslide.__all__) <= set(dir(backslide))
    with pytest.raises(AttributeError, match="module 'backslide' has no attribute 'nothing'"):
        backslide.nothing  # noqa: B018
