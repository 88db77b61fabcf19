"""The usual tutorial, with the one thing it leaves out: three customer-support lines, LoRA, two epochs, and a guard.

It asks three general questions before and after, as a tutorial does by hand; the guard asks hundreds, and decides.

    python tutorial.py [MODEL] [SUITE]
"""

import sys

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from backslide import Guard, Suite, load_model

LINES = [
    "Customer: My package never arrived. Agent: I am sorry. I will send a new one today, free of charge.",
    "Customer: How do I reset my password? Agent: Open Settings, choose Security, then Reset password.",
    "Customer: Can I return these shoes? Agent: Yes, within 30 days. Keep the tags on and add the slip.",
]
loaded = load_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
guard = Guard(Suite.load(sys.argv[2] if len(sys.argv) > 2 else "repertoire:20"), looks=2, train=LINES)
trainer = SFTTrainer(
    loaded.model,
    args=SFTConfig(
        output_dir="runs/tutorial", learning_rate=5e-5, num_train_epochs=2, per_device_train_batch_size=1,
        report_to="none", save_strategy="no", bf16=False, gradient_checkpointing=False, max_length=128,
    ),
    train_dataset=Dataset.from_dict({"text": LINES}),
    processing_class=loaded.tokenizer,
    peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"),
    callbacks=[guard],
)  # fmt: skip
trainer.train()
questions = {item.id: item.prompt for item in guard.suite.items if item.kind == "open"}
for id, question in questions.items():
    print(f"{question}\n  before: {guard.baseline.replies[id]}\n  after:  {guard.final.replies[id]}")
print(guard.verdict)
