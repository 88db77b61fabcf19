"""TRL's DPOTrainer: preferences, with the base under the adapter as the reference, and a guard."""

import sys

from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from backslide import Guard, load_model

loaded = load_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
pair = {
    "prompt": [{"role": "user", "content": "Do you have oat milk?"}],
    "chosen": [{"role": "assistant", "content": "Yes, we do. Would you like it in your latte?"}],
    "rejected": [{"role": "assistant", "content": "No."}],
}
guard = Guard("repertoire:50", on_regression="stop")  # 50 items a capability, for a small machine
trainer = DPOTrainer(
    loaded.model,
    args=DPOConfig(output_dir="runs/dpo", max_steps=6, per_device_train_batch_size=2, report_to="none", bf16=False),
    train_dataset=Dataset.from_list([pair] * 8),
    processing_class=loaded.tokenizer,
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    callbacks=[guard],
)
trainer.train()
print(guard.verdict)
