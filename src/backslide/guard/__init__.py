"""Watching a training run: when to look, what was seen, what to do."""
