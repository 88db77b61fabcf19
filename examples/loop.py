"""A loop of one's own, without any trainer."""

import sys

import torch

from backslide import Guard, load_model

loaded = load_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct", dtype="float32")
model, tokenizer = loaded.model.train(), loaded.tokenizer
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
tokens = tokenizer("Order 7: one flat white, to go.", return_tensors="pt").input_ids

guard = Guard("repertoire:50", on_regression="stop", run_dir="runs/loop")  # 50 items a capability
guard.before_training(model, tokenizer, steps=8, optimizer=optimizer)
for step in range(1, 9):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if guard.after_step(step, loss.item()) == "stop":
        break
print(guard.finish())
