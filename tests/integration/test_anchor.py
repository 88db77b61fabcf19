"""The anchor in real trainers: the right gradient and no other, and a run that is resumed as if undisturbed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_guard_trainers import ADAPTERS, of
from transformers import TrainerCallback

import anchor_runs
from anchor_runs import ROWS, difference, new_model, plain_gradients, plain_kl, quiet, recorded
from backslide.cure.anchor import Anchor
from backslide.errors import ConfigError, InputError, ModelError
from guard_runs import make
from processes import two


def gap(run: tuple[anchor_runs.Recorder, Anchor], method: str, accumulation: int) -> float:
    recorder, anchor = run
    assert anchor.rows is not None
    numbers = list(range(accumulation, 2 * accumulation))
    plain = plain_gradients(method, recorder, anchor.rows, recorder.batches[accumulation : 2 * accumulation], numbers)
    return difference(recorder.gradients, plain)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_gradient_is_that_of_a_plain_loop(tmp_path: Path, method: str, accumulation: int) -> None:
    run = recorded(tmp_path, method, accumulation)
    assert gap(run, method, accumulation) < 1e-5
    # The anchor is a part of it that can be seen.
    recorder, anchor = run
    assert anchor.rows is not None and anchor.kl is not None and anchor.kl > 1e-3
    numbers = list(range(accumulation, 2 * accumulation))
    batches = recorder.batches[accumulation : 2 * accumulation]
    without = plain_gradients(method, recorder, anchor.rows, batches, numbers, weight=0.0)
    assert difference(recorder.gradients, without) > 1e-3


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, method: str) -> None:
    assert gap(recorded(tmp_path, method, 2, gradient_checkpointing=True), method, 2) < 1e-5


@pytest.mark.parametrize("method", ["full", "lora"])
def test_under_autocast_the_gradient_is_near_and_the_first_step_has_none(tmp_path: Path, method: str) -> None:
    assert gap(recorded(tmp_path, method, 1, bf16=True), method, 1) < 0.05
    trainer = make(tmp_path, None, model=new_model(method), bf16=True, max_steps=1, save_strategy="no")
    anchor = Anchor(ROWS[:1], 1.0, folder=tmp_path / "a", top=261, batch_size=1, say=quiet).attach(trainer)
    trainer.train()
    # Base and model are computed in the same precision, so that there is nothing between them but what was learned.
    assert anchor.kl is not None and abs(anchor.kl) < 1e-6


def test_with_a_fresh_adapter_the_first_step_is_that_without_an_anchor(tmp_path: Path) -> None:
    after = []
    for weight in (0.0, 5.0):
        trainer = make(tmp_path, None, model=new_model("lora"), max_steps=1, optim="sgd", save_strategy="no")
        anchor = Anchor(ROWS, weight, say=quiet).attach(trainer)
        trainer.train()
        after.append(trainer.model.state_dict())
    assert anchor.kl is not None and abs(anchor.kl) < 1e-7
    assert max(float((after[0][name] - after[1][name]).abs().max()) for name in after[0]) < 1e-7


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weight_0_is_no_anchor_bit_for_bit(tmp_path: Path, method: str) -> None:
    def run(anchored: bool) -> tuple[Any, Any]:
        # In full training the model drops out at random, so that a number drawn too much would be seen.
        model = None if method == "full" else new_model("lora", lora_dropout=0.3)
        trainer = make(tmp_path, None, model=model, save_strategy="no", gradient_accumulation_steps=2, max_steps=3)
        if anchored:
            Anchor(ROWS, 0.0, folder=tmp_path / "a", say=quiet).attach(trainer)
        trainer.train()
        losses = [{k: v for k, v in row.items() if k in ("loss", "grad_norm")} for row in trainer.state.log_history]
        return losses, trainer.model.state_dict()

    (losses, weights), (others, anchored) = run(False), run(True)
    assert losses == others and all(torch.equal(weights[name], anchored[name]) for name in weights)


def test_the_task_draws_the_random_numbers_of_a_run_without_anchor(tmp_path: Path) -> None:
    def first(weight: float) -> float:
        trainer = make(tmp_path, None, max_steps=1, save_strategy="no", gradient_accumulation_steps=3)
        Anchor(ROWS, weight, folder=tmp_path / "a", say=quiet).attach(trainer)
        trainer.train()
        return float(next(row["loss"] for row in trainer.state.log_history if "loss" in row))

    assert first(0.0) == first(3.0)


class Raises(TrainerCallback):
    """Raises the weight after the second step, as a guard may."""

    def __init__(self) -> None:
        self.anchor: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            assert self.anchor.more() == "anchor weight 0.5 → 1"


def resumable(folder: Path, method: str, **more: Any) -> tuple[Any, Anchor]:
    raises = Raises()
    model = None if method == "full" else new_model("lora", lora_dropout=0.3)
    trainer = make(folder, None, raises, model=model, gradient_accumulation_steps=2, max_steps=5)
    settings: dict[str, Any] = {"batch_size": 3, "top": 16, "folder": folder / "anchor", "say": quiet, **more}
    raises.anchor = Anchor(settings.pop("rows", ROWS), 0.5, **settings).attach(trainer)
    return trainer, raises.anchor


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path, method: str) -> None:
    trainer, first = resumable(tmp_path, method)
    trainer.train()
    weights = trainer.model.state_dict()
    again, anchor = resumable(tmp_path, method)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert anchor.weight == 1.0 and anchor.kl == first.kl
    assert all(torch.equal(weights[name], again.model.state_dict()[name]) for name in weights)

    def refused(pattern: str, **more: Any) -> None:
        with pytest.raises(InputError, match=pattern):
            resumable(tmp_path, method, **more)[0].train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))

    refused("begun with another anchor: its rows are others", rows=ROWS[:5])
    refused("begun with another anchor: seed was 0, now it is 3", seed=3)
    if method == "full":
        (kept,) = (tmp_path / "anchor").iterdir()
        kept.write_bytes(kept.read_bytes()[:-8])
        refused("cannot be read: .* cannot be had from trained weights: put the file back")
        kept.unlink()
        refused("no such file; .* begin the run anew .backslide tune --anew")
        bare = make(tmp_path / "bare", None, max_steps=3)
        bare.train()
        late = make(tmp_path / "bare", None)
        Anchor(ROWS, folder=tmp_path / "anchor", say=quiet).attach(late)
        with pytest.raises(ConfigError, match="resumed at step 3 and had no anchor"):
            late.train(resume_from_checkpoint=str(tmp_path / "bare" / "checkpoint-3"))


def test_a_model_that_grew_after_the_base_was_kept_is_refused(tmp_path: Path) -> None:
    trainer, _ = resumable(tmp_path, "full")
    trainer.args.max_steps, trainer.args.save_strategy = 1, "no"
    trainer.train()
    again, _ = resumable(tmp_path, "full")
    again.model.resize_token_embeddings(270)
    # The optimizer's state does not fit either, so the anchor alone is asked.
    again.state.global_step = 3
    again.state.stateful_callbacks = trainer.state.stateful_callbacks
    with pytest.raises(ConfigError, match="has 270 tokens, the base had 261"):
        next(c for c in again.callback_handler.callbacks if hasattr(c, "_anchor"))._anchor.begin(again.state)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_with_the_anchor_the_model_drifts_less(tmp_path: Path, method: str) -> None:
    def drift(weight: float) -> float:
        trainer = make(tmp_path, None, model=new_model(method), save_strategy="no")
        anchor = Anchor(ROWS, weight, folder=tmp_path / "a", say=quiet).attach(trainer)
        trainer.train()
        base, rows = new_model("full"), anchor.rows
        assert rows is not None
        kl = plain_kl(
            lambda tokens: trainer.model(input_ids=tokens).logits,
            lambda tokens: base(input_ids=tokens).logits,
            rows,
            list(range(len(ROWS))),
        )
        return float(kl.detach())

    free, held = drift(0.0), drift(5.0)
    assert held < 0.6 * free


class Poison(TrainerCallback):
    """From the first step on the projection gives NaN to what the anchor asks of it: rows that are no whole batch."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        def hook(module: Any, args: Any, output: Any) -> Any:
            return output * float("nan") if output.dim() == 2 else output

        model.lm_head.register_forward_hook(hook)


def test_a_kl_that_is_no_number_is_left_out_and_said_once(tmp_path: Path) -> None:
    lines: list[str] = []

    def run(anchored: bool) -> Any:
        trainer = make(tmp_path, None, model=new_model("full"), save_strategy="no", max_steps=3)
        if anchored:
            anchor = Anchor(ROWS, 1.0, folder=tmp_path / "a", say=lines.append).attach(trainer)
            trainer.add_callback(Poison())
        trainer.train()
        if anchored:
            assert anchor.skipped == 3 and anchor.kl is None
        return trainer.model.state_dict()

    plain, poisoned = run(False), run(True)
    assert all(torch.equal(plain[name], poisoned[name]) for name in plain)
    said = [line for line in lines if "no finite number" in line]
    assert len(said) == 1 and "at step 0 the KL to the base is nan" in said[0]


@pytest.mark.parametrize(
    ("kind", "adapter"), [("sft", "full"), ("sft", "heads too"), ("dpo", "lora"), ("grpo", "lora")]
)
def test_in_trl_s_trainers(tmp_path: Path, kind: str, adapter: str) -> None:
    none: Any = TrainerCallback()
    trainer = of(kind, tmp_path, none, ADAPTERS[adapter], max_steps=2, learning_rate=1e-2)
    chats = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "So."}]} for i in "abc"
    ]
    anchor = Anchor(chats, 2.0, batch_size=2, folder=tmp_path / "a", say=quiet).attach(trainer)
    trainer.train()
    kls = [row["backslide/anchor_kl"] for row in trainer.state.log_history if "backslide/anchor_kl" in row]
    assert len(kls) == 2 and abs(kls[0]) < 1e-5 < kls[1]
    assert anchor._reader is not None and anchor._reader.projects
    # The trainer's own line of a step is still its own.
    assert sum("loss" in row for row in trainer.state.log_history) == 2


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda t: setattr(t, "processing_class", None), "the trainer has no tokenizer"),
        (lambda t: setattr(t, "is_deepspeed_enabled", True), "cannot be used with DeepSpeed"),
        (lambda t: setattr(t, "is_fsdp_enabled", True), "cannot be used with FSDP"),
        (lambda t: setattr(t.args, "optim", "lomo"), "the optimizer lomo, which steps within"),
        (lambda t: setattr(t.model.config, "is_encoder_decoder", True), "needs a causal language model"),
    ],
)
def test_what_cannot_be_anchored_is_refused_in_a_line(
    tmp_path: Path, change: Callable[[Any], None], pattern: str
) -> None:
    trainer = make(tmp_path, None, model=new_model("full"))
    change(trainer)
    with pytest.raises(ConfigError, match=pattern):
        Anchor(ROWS, say=quiet).attach(trainer)


def test_more_that_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    from backslide.testing import tiny_model

    with pytest.raises(ConfigError, match="attached to str, a transformers Trainer is needed"):
        Anchor(ROWS).attach("trainer")
    prompts = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ConfigError, match="cannot be used with PROMPT_TUNING"):
        Anchor(ROWS).attach(make(tmp_path, None, model=prompts))
    pissa = get_peft_model(tiny_model(), LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"]))
    trainer = make(tmp_path, None, model=pissa)
    anchor = Anchor(ROWS, say=quiet).attach(trainer)
    with pytest.raises(ModelError, match="takes a part of the base's weights"):
        trainer.train()
    with pytest.raises(ConfigError, match="attached already"):
        anchor.attach(trainer)


def test_two_processes_have_the_gradient_of_all_their_batches(tmp_path: Path) -> None:
    two(anchor_runs.__file__, tmp_path)
    gaps = json.loads((tmp_path / "gaps.json").read_text())
    assert set(gaps) == {"lora 1", "full 2"} and max(gaps.values()) < 1e-5
