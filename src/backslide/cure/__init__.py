"""Cures: what mends a model that forgets, during training and after it."""
