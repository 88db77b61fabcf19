"""Fixtures of the tests that run torch: one thread, and a tiny model that is made once and saved once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from backslide.suite.suite import Suite


@pytest.fixture(scope="session")
def single_thread() -> Iterator[None]:
    """One torch thread: more of them only get into each other's way on so small a model."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Baselines of tests stay out of the user's cache, and those of one test out of the next one's."""
    from backslide.guard import cache

    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(cache, "cache_folder", lambda: place)
    return place


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny chat model with its tokenizer."""
    from backslide.testing import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def known_suite() -> Suite:
    """A suite on which the tiny chat model is right on every choice: the gold is what it prefers.

    160 questions of 4 choices in two capabilities, four texts and an open question.
    """
    from backslide.scoring.engine import Scorer, Settings
    from backslide.suite.item import ChoiceItem, OpenItem, TextItem
    from backslide.suite.suite import Suite
    from backslide.testing import tiny_model, tiny_tokenizer

    # Of one length in tokens, so that not the shortest wins under any weights.
    words = ("north", "salty", "green", "seven", "lamps", "river", "often", "quick", "stone", "blank", "foggy", "inked")
    blind = [
        ChoiceItem(
            id=f"{capability}/{i}",
            capability=capability,
            prompt=f"{capability} {i}: which?",
            choices=tuple(words[(i * 5 + 3 * k + i // 7) % len(words)] for k in range(4)),
            gold=0,
        )
        for capability in ("colour", "place")
        for i in range(80)
    ]
    model, tokenizer = tiny_model(), tiny_tokenizer()
    seen = Scorer(Suite("blind", tuple(blind)), model, tokenizer, Settings()).measure(model).by_id
    told = [dataclasses.replace(i, gold=max(range(4), key=lambda k: seen[i.id].scores[k])) for i in blind]
    more: list[Any] = [
        TextItem(id=f"prose/{i}", capability="prose", text=text)
        for i, text in enumerate(
            ("It was a bright cold day.", "Call me Ishmael.", "All happy families.", "So it goes.")
        )
    ]
    more.append(OpenItem(id="chat/tea", capability="chat", prompt="How do you make tea?"))
    return Suite("known", (*told, *more))


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON Lines into a new file."""
    from backslide.files import write_lines

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        write_lines(tmp_path / name, rows)
        return tmp_path / name

    return write
