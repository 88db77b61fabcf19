"""Two processes never write into one run's folder."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backslide import lock
from backslide.errors import BusyError
from backslide.lock import FILE, claimed
from backslide.rundir import RunFolder
from processes import another


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_another_process_writes_in_is_refused_and_left_alone(tmp_path: Path) -> None:
    with another(tmp_path / "run") as other:
        before = files(tmp_path)
        with pytest.raises(BusyError, match=r"run: another process is writing there; wait until it has") as refused:
            RunFolder(tmp_path / "run").begin({"number": 2})
        assert len(str(refused.value).splitlines()) == 1
        assert files(tmp_path) == before
        other.send_signal(signal.SIGKILL)
        other.wait()
        # Whoever was killed holds nothing any more.
        RunFolder(tmp_path / "run").begin({"number": 2})
    assert RunFolder(tmp_path / "run").config == {"number": 2}


def test_a_relative_name_and_a_link_are_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with another(tmp_path / "run"):
        (tmp_path / "link").symlink_to(tmp_path / "run")
        monkeypatch.chdir(tmp_path)
        for name in ("run", "link"):
            with pytest.raises(BusyError, match=f"^{name}: another process"):
                RunFolder(name).claim()


def test_one_process_may_claim_a_folder_twice_and_holds_it_until_the_last_release(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with claimed(tmp_path):
        run.begin({})
        run.begin({})
        run.release()
        run.release()
        assert not _free(tmp_path)
    assert _free(tmp_path) and not (tmp_path / FILE).exists()


def test_a_claim_that_nobody_has_any_more_is_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "run")
    run.claim()
    assert not _free(run.path)
    del run
    gc.collect()
    assert not list(tmp_path.iterdir()), "and leaves no folder of its own"


def test_a_forked_child_does_not_hold_it(tmp_path: Path) -> None:
    """As a worker that loads data would, which lives on for a while where its parent was killed."""
    with claimed(tmp_path):
        child = os.fork()
        if child == 0:
            lock._held.clear()
            gc.collect()
            time.sleep(60)
            os._exit(0)
        assert not _free(tmp_path), "what the child forgets is the parent's still"
    try:
        assert _free(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_of_many_that_come_and_go_never_two_are_there(tmp_path: Path) -> None:
    code = (
        "import sys, os, time, pathlib\nfrom backslide.lock import claimed\nfrom backslide.errors import BusyError\n"
        "place = pathlib.Path(sys.argv[1]); end = time.time() + 3; had = 0\n"
        "while time.time() < end:\n"
        "    try:\n"
        "        with claimed(place / 'run'):\n"
        "            os.close(os.open(place / 'inside', os.O_CREAT | os.O_EXCL)); had += 1; os.unlink(place / 'inside')\n"
        "    except BusyError:\n"
        "        pass\n"
        "print(had)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    many = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(4)
    ]
    had = [int(one.communicate()[0] or 0) for one in many]
    assert [one.returncode for one in many] == [0] * 4 and sum(count > 0 for count in had) > 1


def _free(folder: Path) -> bool:
    """Whether another process could claim the folder now."""
    code = "import sys; from backslide.lock import claimed\nwith claimed(__import__('pathlib').Path(sys.argv[1])): pass"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, env=env).returncode == 0


def test_a_file_system_without_locks_goes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    run = RunFolder(tmp_path / "run")
    run.begin({})
    run.release()
    assert run.exists()
