"""`tune` that is killed and started again: it ends as if nothing had happened."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from test_guard_survives import limited
from transformers import TrainerCallback

import tune_runs
from backslide.errors import ConfigError, RunError
from backslide.files import write_lines
from backslide.resume import checkpoints
from backslide.rundir import RunFolder
from backslide.tune import Tuned
from processes import forked
from tune_runs import STEPS, config, run


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKSLIDE_CACHE", str(tmp_path / "cache"))


def killed(folder: Path, base: Path, kind: str, where: str) -> None:
    done = forked(tune_runs.__file__, folder, base, kind, "--kill", where)
    assert done.returncode == -signal.SIGKILL, done.stderr


def weights(tuned: Tuned) -> bytes:
    (file,) = tuned.model.glob("*model.safetensors")
    return file.read_bytes()


def losses(tuned: Tuned) -> dict[tuple[int, str], float]:
    """The last that was said of each step: what was undone by a kill is in the events as well."""
    events = [e for e in tuned.run.events() if e["event"] == "loss"]
    return {(e["step"], name): e[name] for e in events for name in ("loss", "eval_loss") if name in e}


def actions(tuned: Tuned) -> dict[int, tuple[Any, ...]]:
    return {
        e["step"]: (e["action"], e.get("back_to"), e.get("share"), e.get("rate_after"), e.get("cures"))
        for e in tuned.run.events() if e["event"] == "action"
    }  # fmt: skip


def effects(tuned: Tuned) -> dict[int, dict[str, Any]]:
    told = [e for e in tuned.run.events() if e["event"] == "effect"]
    return {e["of"]: {name: value for name, value in e.items() if name != "time"} for e in told}


@pytest.mark.parametrize(
    ("kind", "where", "at", "before", "after"),
    [
        ("lora", "8", 6, 0, 0),
        ("full", "checkpoint", 3, 0, 0),
        ("full", "gate", 9, 0, 0),
        # Replay is raised after the resume, and before it.
        ("auto", "5", 3, 1, 1),
        ("auto", "8", 6, 2, 0),
        ("rollback", "8", 6, 2, 1),
        # The cache with the base's log-probabilities is cleared before it goes on.
        ("anchor", "8", 6, 0, 0),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, tiny_folder: Path, kind: str, where: str, at: int, before: int, after: int
) -> None:
    (tmp_path / "whole").mkdir()
    whole, _ = run(config(tmp_path / "whole", tiny_folder, kind))
    (tmp_path / "killed").mkdir()
    killed(tmp_path / "killed", tiny_folder, kind, where)
    setup = config(tmp_path / "killed", tiny_folder, kind)
    if kind == "anchor":
        shutil.rmtree(tmp_path / "cache" / "anchor")
    again, said = run(setup)
    assert f"{setup.folder}: goes on at step {at} of the unfinished run there" in said
    assert weights(again) == weights(whole)
    assert losses(again) == losses(whole)
    assert actions(again) == actions(whole)
    assert effects(again) == effects(whole)
    assert set(effects(whole)) == {step for step, (*_, cures) in actions(whole).items() if cures}
    acted = [step for step, (action, *_) in actions(whole).items() if action != "warn"]
    assert (sum(step <= at for step in acted), sum(step > at for step in acted)) == (before, after)
    if kind == "auto":
        ratios = [again.run.config["setup"]["replay"], whole.run.config["setup"]["replay"]]
        assert ratios[0] == ratios[1] > 0.25, "raised, and so it stayed"
    assert again.verdict == whole.verdict and again.steps == whole.steps
    kinds = [e["event"] for e in again.run.events()]
    assert kinds.count("baseline") == 1 and kinds.count("resumed") == 1 and kinds.count("end") == 1
    assert not [e for e in again.run.events() if e.get("anew")]
    left = {path.name for path in again.run.path.iterdir()}
    assert not left & {"checkpoints", "snapshot", "earlier", ".model.partial"}, "the model is what is kept"


def test_checkpoints_change_nothing(tmp_path: Path, tiny_folder: Path) -> None:
    found = []
    for number in (0, 5):
        tuned, _ = run(
            config(tmp_path, tiny_folder, "lora", output={"dir": str(tmp_path / f"{number}"), "checkpoints": number})
        )
        found.append((weights(tuned), losses(tuned)))
    assert found[0] == found[1]


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(setup: Any, step: int = 8) -> list[str]:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        tune_runs.tune(
            setup, suite=tune_runs.suite(), settings=tune_runs.SMALL, say=said.append, callbacks=[Stop(step)]
        )
    return said


def test_what_the_user_is_told_and_what_is_kept(tmp_path: Path, tiny_folder: Path) -> None:
    setup = config(tmp_path, tiny_folder, "lora", output={"keep_checkpoints": True}, guard={"every": 6})
    said = interrupted(setup)
    assert said[-1] == "interrupted at step 8; the same command goes on at step 6"
    places = setup.folder / "checkpoints"
    assert [path.name for path in checkpoints(places)] == ["checkpoint-3", "checkpoint-6"]
    assert {path.name for path in (places / "checkpoint-6").iterdir()} >= {"whole.json", "adapter_model.safetensors"}
    assert not list(places.rglob("training_args.bin")) and not list(places.rglob("README.md"))[2:]
    tuned, said = run(setup)
    assert tuned.steps == STEPS and not any("moved to" in line for line in said)
    assert [path.name for path in checkpoints(places)] == ["checkpoint-6", "checkpoint-9"]
    # The run has ended: the next one is another, and nothing of the first is lost.
    _, said = run(setup)
    (line,) = [line for line in said if "moved to" in line]
    assert line.startswith(f"{setup.folder}: the run there has ended; it is moved to {setup.folder / 'earlier'} (")
    (kept,) = (setup.folder / "earlier").iterdir()
    assert (kept / "model").is_dir() and [path.name for path in checkpoints(kept / "checkpoints")] == [
        "checkpoint-6",
        "checkpoint-9",
    ]


def test_a_broken_checkpoint_is_passed_over(tmp_path: Path, tiny_folder: Path) -> None:
    setup = config(tmp_path, tiny_folder, "lora", guard={"every": 6})
    interrupted(setup)
    places, copy = setup.folder / "checkpoints", tmp_path / "copy"
    shutil.copytree(setup.folder, copy)
    (places / "checkpoint-6" / "adapter_model.safetensors").write_bytes(b"half")
    tuned, said = run(setup)
    assert any(
        line.startswith(f"{places / 'checkpoint-6'}: passed over: adapter_model.safetensors has 4 bytes of")
        for line in said
    )
    assert any("goes on at step 3" in line for line in said) and tuned.steps == STEPS
    # Damaged within, and the other one half written: nothing to go on from.
    shutil.rmtree(setup.folder)
    shutil.copytree(copy, setup.folder)
    state = places / "checkpoint-6" / "optimizer.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 255
    state.write_bytes(bytes(content))
    (places / "checkpoint-3" / "whole.json").unlink()
    tuned, said = run(setup)
    assert any("passed over: optimizer.pt" in line for line in said)
    assert any("there is no checkpoint to go on from; it is moved to" in line for line in said)
    assert tuned.steps == STEPS and [e["step"] for e in tuned.run.events() if e["event"] == "resumed"] == []


def test_another_configuration_begins_anew(tmp_path: Path, tiny_folder: Path) -> None:
    setup = config(tmp_path, tiny_folder, "lora", guard={"every": 6})
    interrupted(setup)
    other = config(tmp_path, tiny_folder, "lora", guard={"every": 6}, train={"learning_rate": 2e-2})
    said = interrupted(other, 4)
    assert any(
        "is unfinished, and another one: train.learning_rate was 0.01, now 0.02; it is moved to" in s for s in said
    )
    write_lines(tmp_path / "train.jsonl", [{"text": f"Other {i:02}? Answer {i:02}."} for i in range(14)])
    said = []
    with pytest.raises(KeyboardInterrupt):
        tune_runs.tune(other, suite=tune_runs.suite(), settings=tune_runs.SMALL, say=said.append, callbacks=[Stop(4)])
    assert any("the file of data.train was another, or held other rows" in line for line in said)
    said = []
    with pytest.raises(KeyboardInterrupt):
        tune_runs.tune(
            other, suite=tune_runs.suite(), settings=tune_runs.SMALL, say=said.append, callbacks=[Stop(1)], anew=True
        )
    assert any("the run there is unfinished; it is moved to" in line for line in said)
    # Before its first checkpoint, with nothing to go on from.
    said = interrupted(other, 1)
    assert any("was interrupted, and there is no checkpoint to go on from" in line for line in said)
    assert len(list((other.folder / "earlier").iterdir())) == 4


class Full(TrainerCallback):
    """No file may grow from one step to another."""

    def __init__(self, first: int, until: int) -> None:
        self.first, self.until = first, until
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.first:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, self.before[1]))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.until:
            resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_full_disk_ends_no_training(tmp_path: Path, tiny_folder: Path) -> None:
    setup = config(
        tmp_path,
        tiny_folder,
        "auto",
        train={"learning_rate": 1e-4},
        output={"checkpoints": 5, "keep_checkpoints": True},
    )
    with limited():
        tuned, said = run(setup, callbacks=[Full(4, 7)])
    assert tuned.steps == STEPS
    (line,) = [line for line in said if "could not be written" in line]
    assert "checkpoint-4: this checkpoint could not be written: " in line
    assert "the training goes on, and if it is interrupted goes on at step 2; make room" in line
    assert [path.name for path in checkpoints(setup.folder / "checkpoints")] == ["checkpoint-8", "checkpoint-10"]


def test_a_model_that_cannot_be_saved_is_said_and_the_run_can_go_on(tmp_path: Path, tiny_folder: Path) -> None:
    setup = config(tmp_path, tiny_folder, "full", guard={"every": 6})
    with (
        limited(),
        pytest.raises(RunError, match="model: the trained model cannot be saved: .*; make room, and give the"),
    ):
        run(setup, callbacks=[Full(STEPS, -1)])
    assert not RunFolder(setup.folder).verdict()
    tuned, said = run(setup)
    assert any("goes on at step 9" in line for line in said) and (tuned.model / "config.json").exists()


def test_keys(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="output.checkpoints is -1, a whole number from 0 is needed"):
        config(tmp_path, tiny_folder, "lora", output={"checkpoints": -1})
    for kind, number, place in (("rollback", 3, "disk"), ("rollback", 0, None), ("lora", 3, None)):
        assert config(tmp_path, tiny_folder, kind, output={"checkpoints": number}).snapshots == place
    given = config(tmp_path, tiny_folder, "rollback", guard={"snapshots": "memory"})
    assert (
        given.snapshots == "memory" and json.loads(json.dumps(given.to_dict()))["output"]["keep_checkpoints"] is False
    )


def test_by_time_they_cost_a_share_of_it(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backslide import checkpoints as module

    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    class Tick(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock[0] += 10.0

    seen: list[int] = []
    real = module.seal

    def seal(place: Path) -> int:
        clock[0] += 1.5
        seen.append(int(place.name[11:]))
        return real(place)

    monkeypatch.setattr(module, "seal", seal)
    setup = config(tmp_path, tiny_folder, "lora", output={"checkpoints": 0}, guard={"every": 6})
    content = setup.to_dict()
    content["output"] = {"dir": str(tmp_path / "run")}
    from backslide.config import TuneConfig

    timed = TuneConfig.from_dict({name: {k: v for k, v in s.items() if v is not None} for name, s in content.items()})
    run(timed, callbacks=[Tick()])
    # The first after 0.2 s / 3% of training, then one after each 1.5 s / 3%.
    assert seen == [1, 6, 11]
