"""The model card of a repaired model: README.md with the front matter that the hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backslide import openings
from backslide.report.line import Balance, Point, rows
from backslide.report.text import markdown
from backslide.verdict import Verdict

_TITLE = "## Repaired with backslide"


def card(
    *,
    base: str,
    tuned: str,
    is_adapter: bool,
    at: float,
    points: tuple[Point, ...],
    balance: Balance,
    verdict: Verdict,
    given: str | None,
) -> str:
    """The card's text.

    Args:
        base: what the user called the base.
        tuned: what the user called the tuned model.
        is_adapter: whether it is an adapter.
        at: the chosen point of the line.
        points: what was tried.
        balance: what was lost, given back, gained and kept.
        verdict: on the gate half.
        given: the card that the tuned model has; it is kept, and what was done stands at its end.
    """
    from huggingface_hub import ModelCardData

    old = _read(given) if given is not None else None
    data = dict(old.data.to_dict()) if old is not None else {}
    data.setdefault("library_name", "peft" if is_adapter else "transformers")
    if "base_model" not in data and not _is_local(base):
        data["base_model"] = base
        data["base_model_relation"] = "adapter" if is_adapter else "finetune"
    tags = data.get("tags")
    data["tags"] = [*(t for t in (tags if isinstance(tags, list) else []) if t != "backslide"), "backslide"]
    # What an earlier repair wrote is of other weights.
    body = f"# {_named(tuned)}, repaired" if old is None else old.text.split(f"\n{_TITLE}\n")[0].strip()
    done = _done(base, tuned, is_adapter, at, points, balance, verdict)
    return f"---\n{ModelCardData(**data, ignore_metadata_errors=True).to_yaml()}\n---\n\n{body}\n\n{done}"


def _done(
    base: str, tuned: str, is_adapter: bool, at: float, points: tuple[Point, ...], balance: Balance, verdict: Verdict
) -> str:
    what = "LoRA B times α" if is_adapter else "θ_base + α (θ_tuned − θ_base)"
    lines = [
        _TITLE,
        "",
        f"**{verdict.zone}**: {markdown(verdict.reasons[0], limit=4000)}",
        "",
        "Weights on the line between a base and what was tuned from it, chosen so that the abilities of the base are "
        "kept; no training.",
        "",
        "| | |",
        "|---|---|",
        f"| base | {_named(base)} |",
        f"| tuned | {_named(tuned)} |",
        f"| weights | {what}, α = {at:.5g} |",
        f"| abilities | {markdown(balance.lines[0])} |",
        f"| target | {markdown(balance.lines[1])} |",
        f"| verdict on the sealed gate half | {verdict.zone} |",
        "",
        f"What it covers: {markdown(verdict.claim, limit=4000)}",
        *(["", markdown(spent, limit=4000)] if (spent := openings.warning(verdict.opening)) else []),
        "",
        "What was tried, on the monitor half, which certifies nothing:",
        "",
        "| α | held-out loss | drop | at most | lost | won | items | abilities |",
        "|--:|--:|--:|--:|--:|--:|--:|---|",
        *(f"| {' | '.join(cells)} |" for cells in rows(points, at)),
        "",
    ]
    return "\n".join(lines)


def _read(text: str) -> Any:
    from huggingface_hub import ModelCard

    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except Exception:  # whatever the parsers of a front matter from outside raise
        return None


def _is_local(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def _named(name: str) -> str:
    # Of a folder its name alone: a card is read elsewhere. A run's `model` says nothing without the run.
    path = Path(name).expanduser()
    if not _is_local(name):
        return markdown(name)
    path = path.resolve()
    return markdown(f"{path.parent.name}/{path.name}" if path.name == "model" else path.name)
