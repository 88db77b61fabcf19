"""These tests run torch on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import jsonl, known_suite, own_cache, single_thread, tiny_folder

__all__ = ["jsonl", "known_suite", "own_cache", "single_thread", "tiny_folder"]


@pytest.fixture(autouse=True)
def _single_thread(single_thread: None, own_cache: Path) -> None:
    """See `tests/tiny.py`."""
