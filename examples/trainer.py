"""transformers' own Trainer, all weights; the best checkpoint is the best one that kept its abilities."""

import sys

from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from backslide import Guard, load_model

loaded = load_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct", dtype="float32")
tokenizer = loaded.tokenizer
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
lines = [f"Order {number}: one flat white, to go." for number in range(20)]
data = Dataset.from_dict({"input_ids": [tokenizer(line).input_ids for line in lines]})
guard = Guard()
trainer = Trainer(
    loaded.model,
    args=TrainingArguments(
        output_dir="runs/trainer",
        max_steps=8,
        per_device_train_batch_size=2,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="backslide_guarded_loss",
        report_to="none",
    ),
    train_dataset=data.select(range(16)),
    eval_dataset=data.select(range(16, 20)),
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    processing_class=tokenizer,
    callbacks=[guard],
)
trainer.train()
print(guard.verdict)
