"""TRL's SFTTrainer with a guard that goes back when something was lost."""

import sys

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from backslide import Guard, load_model

loaded = load_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
dialogue = [
    {"role": "user", "content": "A large oat latte, please."},
    {"role": "assistant", "content": "A large oat latte. Anything else?"},
]
data = Dataset.from_dict({"messages": [dialogue] * 16})
# 50 items a capability, for a small machine; those that are in the training data are left out of the verdicts.
guard = Guard("repertoire:50", on_regression="rollback", train=data)
trainer = SFTTrainer(
    loaded.model,
    args=SFTConfig(output_dir="runs/sft", max_steps=12, per_device_train_batch_size=2, report_to="none", bf16=False),
    train_dataset=data,
    processing_class=loaded.tokenizer,
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    callbacks=[guard],
)
trainer.train()
print(guard.verdict)
