"""Two processes never write into one run's folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from backslide.errors import ConfigError
from backslide.lock import claimed
from backslide.rundir import RunFolder
from processes import another


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_another_process_writes_in_is_refused_and_left_alone(tmp_path: Path) -> None:
    with another(tmp_path / "run") as other:
        before = files(tmp_path)
        with pytest.raises(ConfigError, match=r"run: another process is writing its run there; wait until") as refused:
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
            with pytest.raises(ConfigError, match=f"^{name}: another process"):
                RunFolder(name).claim()


def test_one_process_may_claim_a_folder_twice_and_holds_it_until_the_last_release(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with claimed(tmp_path):
        run.begin({})
        run.begin({})
        run.release()
        run.release()
        assert not _free(tmp_path)
    assert _free(tmp_path)


def _free(folder: Path) -> bool:
    """Whether another process could claim the folder now."""
    code = "import sys; from backslide.lock import claimed\nwith claimed(__import__('pathlib').Path(sys.argv[1])): pass"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, env=env).returncode == 0


@pytest.mark.parametrize("bad", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: Exception
) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise bad

    monkeypatch.setattr(FileLock, "acquire", refuse)
    run = RunFolder(tmp_path / "run")
    run.begin({})
    run.release()
    assert run.exists()
