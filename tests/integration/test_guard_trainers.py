"""The guard in every trainer that it is promised for, with adapters of several kinds and with all weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoHaConfig, LoraConfig, PromptTuningConfig, VeraConfig
from transformers import EarlyStoppingCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from backslide.errors import InputError, ModelError
from backslide.guard.callback import Guard
from backslide.rundir import RunFolder
from backslide.testing import tiny_model, tiny_tokenizer
from backslide.verdict import Zone
from guard_runs import SMALL, make, suite

COMMON: dict[str, Any] = {
    "max_steps": 4, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    "bf16": False, "save_strategy": "no", "dataloader_pin_memory": False, "logging_steps": 1, "learning_rate": 1e-4,
    "gradient_checkpointing": False,
}  # fmt: skip

ADAPTERS: dict[str, Any] = {
    "full": None,
    "lora": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "dora": LoraConfig(r=4, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "rslora": LoraConfig(r=4, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"),
    "heads too": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    "loha": LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "ia3": IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "vera": VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
}

ASK = [{"role": "user", "content": "Which one?"}]


def of(kind: str, folder: Path, guard: Guard, peft: Any = None, **more: Any) -> Any:
    settings = {"output_dir": str(folder), **COMMON, **more}
    known: dict[str, Any] = {"processing_class": tiny_tokenizer(), "peft_config": peft, "callbacks": [guard]}
    if kind == "sft":
        data = Dataset.from_dict({"text": [f"example {n} of some text" for n in range(12)]})
        evaluated = data if settings.get("eval_strategy", "no") != "no" else None
        return SFTTrainer(tiny_model(), SFTConfig(**settings), train_dataset=data, eval_dataset=evaluated, **known)
    if kind == "dpo":
        pair = {
            "chosen": [{"role": "assistant", "content": "This."}],
            "rejected": [{"role": "assistant", "content": "No"}],
        }
        data = Dataset.from_list([{"prompt": ASK, **pair}] * 8)
        # A reference of its own: one without a name could not be loaded again, as TRL does for all weights.
        reference = tiny_model() if peft is None else None
        args = DPOConfig(**settings, max_length=64)
        return DPOTrainer(tiny_model(), reference, args=args, train_dataset=data, **known)
    data = Dataset.from_list([{"prompt": ASK}] * 8)
    settings |= {"num_generations": 2, "max_completion_length": 4}

    def reward(completions: Any, **_: Any) -> list[float]:
        return [float(len(str(completion)) % 3) for completion in completions]

    return GRPOTrainer(tiny_model(), reward_funcs=reward, args=GRPOConfig(**settings), train_dataset=data, **known)


def watched(guard: Guard, trainer: Any, steps: list[int]) -> None:
    trainer.train()
    assert [look.step for look in guard.looks] == steps and guard.verdict is not None
    assert guard.baseline is not None and guard.final is not None
    assert RunFolder(Path(trainer.args.output_dir) / "backslide").report.exists()
    # The baseline is of the base, whatever stands on it.
    assert sum(bool(outcome.correct) for outcome in guard.baseline.outcomes) == 120


@pytest.mark.parametrize("adapter", list(ADAPTERS))
def test_sft_with_adapters_of_every_kind(tmp_path: Path, adapter: str) -> None:
    guard = Guard(suite(), every=2, settings=SMALL, say=lambda _: None, on_regression="rollback")
    watched(guard, of("sft", tmp_path, guard, ADAPTERS[adapter]), [2, 4])
    setup = RunFolder(tmp_path / "backslide").config["setup"]
    assert (setup["method"] == "full") == (adapter == "full") and setup["examples"] == 12


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_preferences_and_rewards(tmp_path: Path, kind: str, adapter: str) -> None:
    guard = Guard(suite(), every=2, settings=SMALL, say=lambda _: None)
    watched(guard, of(kind, tmp_path, guard, ADAPTERS[adapter]), [2, 4])
    # Losses of these may be zero or below; that alone breaks no run.
    assert guard.verdict is not None and guard.verdict.capabilities


@pytest.mark.parametrize(
    "more",
    [
        {"gradient_accumulation_steps": 3},
        {"gradient_checkpointing": True},
        {"bf16": True},
        {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True},
        {"eval_strategy": "epoch"},
        {"packing": True, "max_length": 32},
        {"neftune_noise_alpha": 5.0},
        {"optim": "sgd"},
        {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 3},
    ],
    ids=lambda more: ", ".join(more),
)
def test_settings_of_the_trainer(tmp_path: Path, more: dict[str, Any]) -> None:
    guard = Guard(suite(), every=2, settings=SMALL, say=lambda _: None)
    watched(guard, of("sft", tmp_path, guard, **more), [2, 4])


def test_a_run_that_another_callback_ends_early_is_judged_where_it_ended(tmp_path: Path) -> None:
    guard = Guard(suite(), every=3, settings=SMALL, say=lambda _: None)
    stopper = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0)
    trainer = make(
        tmp_path, guard, stopper, max_steps=12, eval_strategy="steps", eval_steps=2, save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 4 and [look.step for look in guard.looks] == [3]
    assert guard.verdict is not None and guard.verdict.step == 4
    last = RunFolder(tmp_path / "backslide").final_monitor
    assert last.exists(), "the final weights were looked at too"


def test_trained_twice_in_one_trainer(tmp_path: Path) -> None:
    guard = Guard(suite(), every=2, settings=SMALL, say=lambda _: None)
    trainer = make(tmp_path, guard, save_strategy="no", max_steps=2, learning_rate=0.3)
    trainer.train()
    first = guard.verdict
    assert first is not None and first.zone is Zone.REGRESSED
    trainer.train()
    # The second run begins from what the first one left: that is its base.
    assert guard.verdict is not None and guard.verdict is not first and guard.baseline is not None
    assert sum(bool(outcome.correct) for outcome in guard.baseline.outcomes) < 100
    assert len(list((tmp_path / "backslide" / "earlier").iterdir())) == 1


def test_what_cannot_be_watched_is_refused_before_training(tmp_path: Path) -> None:
    prompt = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    guard = Guard(suite(), every=2, settings=SMALL, say=lambda _: None)
    with pytest.raises(ModelError, match="PROMPT_TUNING, which cannot be scored; use LoRA"):
        of("sft", tmp_path, guard, prompt).train()
    trainer = make(tmp_path, Guard(suite(), every=2, settings=SMALL, say=lambda _: None))
    trainer.processing_class = trainer.callback_handler.processing_class = None
    with pytest.raises(InputError, match="the trainer has no tokenizer"):
        trainer.train()
    assert torch.is_grad_enabled()
