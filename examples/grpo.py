"""TRL's GRPOTrainer: a reward for short replies, and a guard that lowers the rate when abilities fall."""

import sys

from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from backslide import Guard, load_model


def is_short(completions, **_):
    """The shorter a reply, the higher its reward."""
    return [-float(len(completion[0]["content"])) for completion in completions]


loaded = load_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
guard = Guard("repertoire:50", on_regression="lower_lr")  # 50 items a capability, for a small machine
trainer = GRPOTrainer(
    loaded.model,
    reward_funcs=is_short,
    args=GRPOConfig(
        output_dir="runs/grpo",
        max_steps=4,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=12,
        report_to="none",
        bf16=False,
    ),
    train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "What is on the menu?"}]] * 8}),
    processing_class=loaded.tokenizer,
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    callbacks=[guard],
)
trainer.train()
print(guard.verdict)
