"""These tests run torch on tiny models."""

from __future__ import annotations

import pytest

from tiny import jsonl, known_suite, single_thread, tiny_folder

__all__ = ["jsonl", "known_suite", "single_thread", "tiny_folder"]


@pytest.fixture(autouse=True)
def _single_thread(single_thread: None) -> None:
    """See `tests/tiny.py`."""
