"""What the anchor costs, and what is lost by keeping only the likeliest tokens of the base.

    python benchmarks/anchor.py [--steps N]

SmolLM2-135M-Instruct on one thread: LoRA on bf16 weights, and all weights in fp32. Every second step is made with
weight 0, which is a step without an anchor, so both kinds meet the same machine; seconds are CPU time of the process.
Then the KL between base and tuned model on the anchored tokens, in full and with the tokens outside of the top taken
for one.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import backslide
from backslide.cure.anchor import Anchor
from backslide.cure.anchor_kl import full_kl, top_kl, top_of
from backslide.data import TrainingData
from backslide.models import BUILTIN, load_model, quiet

TASK = Path(backslide.__file__).parent / "demo" / "data" / "train.jsonl"
BATCH, LENGTH = 4, 128
PROMPTS = (
    "Why do leaves turn red in autumn?", "Describe a lighthouse in a storm.", "How do I sharpen a pencil with a knife?",
    "Write a short letter to a neighbour about a barking dog.", "What is a glacier?", "Explain how a bicycle stays up.",
    "Give three tips for sleeping better.", "What does the word reluctant mean?", "How is paper made?",
    "Tell a short story about a lost glove.", "Why is the sea salty?", "What should I see in a harbour town?",
    "How do bees find their way home?", "Compare tea and coffee.", "Write a haiku about rain.", "What is a noun?",
)  # fmt: skip
TOPS = (16, 64, 256)


class Turns(TrainerCallback):
    """Every second step without the anchor; the CPU time of each step."""

    def __init__(self, anchor: Anchor) -> None:
        self.anchor, self.began, self.seconds = anchor, 0.0, {0.0: [], 1.0: []}  # type: ignore[var-annotated]

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: D102
        self.anchor.weight = float(state.global_step % 2)
        self.began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: D102
        # The first of each kind warms up.
        if state.global_step > 2:
            self.seconds[self.anchor.weight].append(time.process_time() - self.began)


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--steps", type=int, default=14)
    steps = asked.parse_args().steps
    torch.set_num_threads(1)
    rows = replies()
    for method, dtype in (("lora", "bfloat16"), ("full", "float32")):
        run(method, dtype, rows, steps)


def replies() -> list[dict[str, Any]]:
    """What the base itself says: chats of at most 128 tokens or so."""
    loaded = load_model(BUILTIN, dtype="bfloat16")
    tokenizer, found = loaded.tokenizer, []
    for prompt in PROMPTS:
        asked = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with quiet():
            said = loaded.model.generate(**tokens, max_new_tokens=80, do_sample=False)[
                0, tokens["input_ids"].shape[1] :
            ]
        reply = tokenizer.decode(said, skip_special_tokens=True)
        found.append({"messages": [*asked, {"role": "assistant", "content": reply}]})
    return found


def run(method: str, dtype: str, rows: list[dict[str, Any]], steps: int) -> None:
    loaded = load_model(BUILTIN, dtype=dtype)
    model, tokenizer = loaded.model, loaded.tokenizer
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    texts = [row["text"] for row in TrainingData.load(TASK).rows]
    blocks = [tokenizer(" ".join(texts[n : n + 8])).input_ids[:LENGTH] for n in range(0, len(texts), 2)]
    blocks = [block for block in blocks if len(block) == LENGTH]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=1e-4, bf16=False,
            report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, save_strategy="no",
        )  # fmt: skip
        trainer = Trainer(
            model, settings, train_dataset=[{"input_ids": b, "labels": b} for b in blocks], processing_class=tokenizer,
            data_collator=lambda batch: {k: torch.tensor([row[k] for row in batch]) for k in batch[0]},
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        anchor = Anchor(rows, 1.0, batch_size=BATCH, max_length=LENGTH, folder=folder, say=print).attach(trainer)
        assert anchor.rows is not None
        turns = Turns(anchor)
        trainer.add_callback(turns)
        trainer.train()
    plain, held = (statistics.median(turns.seconds[weight]) for weight in (0.0, 1.0))
    tokens = sum(len(row.tokens) for row in anchor.rows.rows) / len(rows)
    print(
        f"{method} ({dtype}): {plain:.2f} s a step of {BATCH} × {LENGTH} tokens, {held:.2f} s with an anchor of "
        f"{BATCH} rows of {tokens:.0f} tokens on average: {held / plain:.2f} times",
        flush=True,
    )
    gaps(model, load_model(BUILTIN, dtype=dtype).model, anchor)


@torch.no_grad()
def gaps(model: Any, base: Any, anchor: Anchor) -> None:
    assert anchor.rows is not None
    model.eval()
    whole, parts, mass, places = 0.0, dict.fromkeys(TOPS, 0.0), dict.fromkeys(TOPS, 0.0), 0
    for row in anchor.rows.rows:
        tokens = torch.tensor([row.tokens])
        p, q = (m(tokens).logits[0, list(row.places)] for m in (base, model))
        whole += float(full_kl(p, q))
        places += len(row.places)
        for top in TOPS:
            kept = top_of(p, top)
            parts[top] += float(top_kl(kept, q))
            mass[top] += float(kept.rest.exp().sum())
    print(f"KL of {places} tokens: {whole / places:.4f} nats a token in full")
    for top in TOPS:
        print(
            f"  top {top}: {parts[top] / places:.4f}, {parts[top] / whole:.1%} of it; the base's mass outside of the "
            f"top is {mass[top] / places:.3f} on average",
            flush=True,
        )


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
