"""Curing a fine-tune that forgets."""
