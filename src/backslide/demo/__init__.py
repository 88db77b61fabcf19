"""The demo: the story that every fine-tuner should see once, on a real model, with real training."""
