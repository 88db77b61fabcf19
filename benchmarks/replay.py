"""What replay costs: the time of a training step with old rows in the batches, against the same steps without.

    python benchmarks/replay.py [--steps 10] [--data FOLDER]

SmolLM2-135M, all weights, in bf16, batches of 8 dialogues of at most 128 tokens; the old rows are other dialogues. Each
setting makes the same steps from the same weights. The expected ratio is that of the tokens, 1/(1 − ratio).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from backslide.cure.replay import Replay
from backslide.models import BUILTIN, load_model, quiet

RATIOS = (None, 0.0, 0.05, 0.25)
"""None: without replay."""


class Clock(TrainerCallback):
    """Processor time of the steps but the first, which prepares things."""

    def __init__(self) -> None:
        self.begin: float | None = None
        self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the time."""
        now = time.process_time()
        if self.begin is not None:
            self.seconds = now - self.begin
        else:
            self.begin = now


def run(rows: list[dict[str, Any]], ratio: float | None, steps: int) -> tuple[float, float, int, int]:
    """Seconds a step; the share of old tokens; tokens, and tokens with padding, of all steps but the first."""
    loaded = load_model(BUILTIN, dtype="bfloat16")
    clock, half = Clock(), len(rows) // 2
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder, max_steps=steps + 1, per_device_train_batch_size=8, max_length=128, learning_rate=1e-5,
            report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", gradient_checkpointing=False,
            dataloader_pin_memory=False, seed=0, bf16=False,
        )  # fmt: skip
        trainer = SFTTrainer(
            loaded.model, args, train_dataset=Dataset.from_list(rows[:half]), processing_class=loaded.tokenizer,
            callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        replay = Replay(rows[half:], ratio).attach(trainer) if ratio is not None else None
        shapes: list[tuple[int, int]] = []
        step = trainer.training_step

        def noted(model: Any, inputs: Any, *more: Any, **options: Any) -> Any:
            shapes.append((int(inputs["attention_mask"].sum()), inputs["input_ids"].numel()))
            return step(model, inputs, *more, **options)

        trainer.training_step = noted
        trainer.train()
    counts = [sum(shape[i] for shape in shapes[1:]) for i in (0, 1)]
    return clock.seconds / steps, replay.share if replay else 0.0, counts[0], counts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    asked = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)
    lines = (asked.data / "dialogues" / "taskmaster4.jsonl").read_text("utf-8").splitlines()
    rows = [{"messages": json.loads(line)["messages"]} for line in lines]
    random.Random(0).shuffle(rows)
    plain: tuple[float, float, int, int] | None = None
    with quiet():
        for ratio in RATIOS:
            found = run(rows, ratio, asked.steps)
            plain = plain or found
            name = "without" if ratio is None else f"{ratio:.0%}"
            print(
                f"{name:>8}  {found[0]:6.2f} s a step  {found[0] / plain[0]:.3f} of plain  share {found[1]:.3f}  "
                f"tokens {found[2] / plain[2]:.3f}  with padding {found[3] / plain[3]:.3f}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
