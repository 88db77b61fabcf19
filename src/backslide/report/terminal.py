"""Verdicts and runs as Rich tables. Text from a model or a file is never read as Rich markup."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from backslide.planning import Reach
from backslide.report.summary import Reply, Summary, loss_span
from backslide.report.text import plain
from backslide.verdict import CapabilityVerdict, Verdict, Zone, main_row

BARELY = 1e-9
"""A bound between 0 and this says "above 0", and no size (`stats.paired.OPEN_ZERO`)."""
NAME = 20
"""Characters of a capability's name on a line of a table."""
COLOURS = {Zone.RETAINED: "green", Zone.REGRESSED: "bold red", Zone.UNDECIDED: "yellow"}


def zone(value: Zone) -> Text:
    """A zone in its colour."""
    return Text(str(value), style=COLOURS[value])


def verdict_table(verdict: Verdict) -> Table:
    """A row for each capability, and one for all items."""
    rows = [*verdict.capabilities, *([verdict.pooled] if verdict.pooled is not None else [])]
    # Of few suites, and a terminal is narrow.
    kl = ["KL to the base, nats a token, at least"] if any(row.kl is not None for row in rows) else []
    table = _table(
        "capability", "items", "before", "after", "drop", "bounds", *kl, "lost", "won", "p(right)", "verdict", "by"
    )  # fmt: skip
    for row in rows:
        table.add_row(
            named(row.capability),
            str(row.items),
            _value(row, row.baseline),
            _value(row, row.candidate),
            _amount(row, row.drop),
            f"{_amount(row, row.lower)} to {_amount(row, row.upper)}",
            *(["–" if row.kl is None else f"{row.kl:.3f}"] if kl else []),
            _count(row.lost),
            _count(row.won),
            _points(row.soft.drop) if row.soft is not None else "–",
            zone(row.zone),
            row.decided_by or "–",
        )
    return table


def reach_table(rows: Sequence[Reach], looks: int) -> Table:
    """The smallest drop, in points, that each capability can prove; `–` where none can be."""
    table = _table(
        "capability", "gate items", "accuracy", "p(right)", "monitor items", f"accuracy, {looks} looks", "p(right)",
        "flips expected", "gate items for the tolerance",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            named(row.capability),
            str(row.gate_items),
            _smallest(row.gate),
            _smallest(row.gate_soft),
            str(row.monitor_items),
            _smallest(row.monitor),
            _smallest(row.monitor_soft),
            f"{row.flip_rate:.1%}",
            "–" if row.items_for_tolerance is None else f"{row.items_for_tolerance:,}",
        )
    return table


def accuracy_table(rows: Mapping[str, tuple[int, int]]) -> Table:
    """Accuracy of each capability: right answers and items."""
    table = _table("capability", "items", "right", "accuracy")
    for name, (right, count) in rows.items():
        table.add_row(named(name), str(count), str(right), f"{right / count:.1%}")
    right, count = (sum(values) for values in zip(*rows.values(), strict=True)) if rows else (0, 0)
    if len(rows) > 1:
        table.add_row("all items", str(count), str(right), f"{right / count:.1%}")
    return table


def runs_table(runs: Mapping[str, Summary]) -> Table:
    """Runs side by side: a column for each."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in runs:
        table.add_column(Text(plain(name)))
    summaries = list(runs.values())
    lines: list[tuple[str, Iterable[str | Text]]] = [
        ("method", (Text(plain(_method(s))) for s in summaries)),
        ("learning rate", (f"{s.setup.get('learning_rate') or math.nan:g}" for s in summaries)),
        ("steps made / planned", (f"{s.setup.get('steps')} / {s.setup.get('max_steps')}" for s in summaries)),
        ("trainable parameters", (f"{s.setup.get('trainable', 0):,}" for s in summaries)),
        ("total parameters", (f"{s.setup.get('parameters', 0):,}" for s in summaries)),
        ("training loss", (_span(s.losses.train) for s in summaries)),
        ("held-out loss of the target", (_span(s.losses.held_out) for s in summaries)),
        ("accuracy before → after", (_change(s.verdict) for s in summaries)),
        ("items lost / won", (_flips(s.verdict) for s in summaries)),
        ("drop, points, and its bounds", (_drop(s.verdict) for s in summaries)),
        ("regression proven at step", (str(s.diagnosis.regressed_at or "–") for s in summaries)),
        ("verdict", (zone(s.verdict.zone) for s in summaries)),
    ]
    for name, values in lines:
        table.add_row(name, *values)
    return table


def outcomes_table(columns: Mapping[str, tuple[Verdict, float | None]], *, start: float | None) -> Table:
    """Several models made from one base: a column for each.

    Args:
        columns: of each the verdict, and the target's loss on held-out data (None: not known).
        start: that loss of the base.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(Text(plain(name)))
    verdicts = [verdict for verdict, _ in columns.values()]
    losses = ["–" if loss is None else f"{loss:.2f}" for loss in (start, *(loss for _, loss in columns.values()))]
    lines: list[tuple[str, Iterable[str | Text]]] = [
        ("held-out loss of the target", (f"{losses[0]} → {loss}" for loss in losses[1:])),
        ("accuracy before → after", (_change(verdict) for verdict in verdicts)),
        ("items lost / won", (_flips(verdict) for verdict in verdicts)),
        ("drop, points, and its bounds", (_drop(verdict) for verdict in verdicts)),
        ("verdict", (zone(verdict.zone) for verdict in verdicts)),
    ]
    for name, values in lines:
        table.add_row(name, *values)
    return table


def replies_table(replies: Sequence[Sequence[Reply]], names: Sequence[str]) -> Table:
    """Open questions: the reply before, and after each run."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=False)
    for name in ("question", "before", *names):
        table.add_column(Text(plain(name)), ratio=1, overflow="fold")
    for versions in zip(*replies, strict=True):
        first = versions[0]
        cells = [first.question, first.before, *(reply.after for reply in versions)]
        table.add_row(*(Text(plain(cell or "(nothing)", 160)) for cell in cells))
        table.add_row()
    return table


def headline(verdict: Verdict) -> Text:
    """The verdict and its main reason in one line."""
    return Text.assemble(zone(verdict.zone), ": ", plain(verdict.reasons[0]))


def loss_line(summary: Summary) -> str | None:
    """How the target's loss went."""
    span = loss_span(summary.losses)
    return f"{span[0]} loss {span[1]:.2f} → {span[2]:.2f}" if span else None


def named(name: str) -> Text:
    """The name of a capability, whole: over several lines where it is long, since two may differ at their ends."""
    return Text("\n".join(textwrap.wrap(plain(name), NAME)))


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    # Where the terminal is narrow, numbers go over two lines first, and nothing is cut.
    table.add_column(first, no_wrap=True, overflow="fold")
    for name in others:
        words = name in ("verdict", "by")
        table.add_column(name, justify="left" if words else "right", no_wrap=words, overflow="fold")
    return table


def _method(summary: Summary) -> str:
    method, rank = summary.setup.get("method"), summary.setup.get("rank")
    return f"{method}, r = {rank}" if rank else f"{method} fine-tuning" if method == "full" else str(method)


def _span(points: Sequence[tuple[int, float]]) -> str:
    return f"{points[0][1]:.2f} → {points[-1][1]:.2f}" if points else "–"


def _change(verdict: Verdict) -> str:
    row = main_row(verdict)
    return f"{_value(row, row.baseline)} → {_value(row, row.candidate)}" if row else "–"


def _flips(verdict: Verdict) -> str:
    row = main_row(verdict)
    return f"{_count(row.lost)} / {_count(row.won)} of {row.items}" if row else "–"


def _drop(verdict: Verdict) -> str:
    row = main_row(verdict)
    return f"{_amount(row, row.drop)} ({_amount(row, row.lower)} to {_amount(row, row.upper)})" if row else "–"


def _value(row: CapabilityVerdict, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if row.unit == "accuracy" else f"{value:.3f}"


def _amount(row: CapabilityVerdict, value: float | None) -> str:
    """A drop or bound: in points, or for drift in nats a token."""
    if row.unit != "drift" or value is None or not math.isfinite(value) or 0 < value < BARELY:
        return _points(value)
    return f"{value:+.3f}".replace("-", "−")


def _points(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "any"
    if 0 < value < BARELY:
        return ">0"
    return f"{value * 100:+.1f}".replace("-", "−")


def _smallest(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value * 100:.1f}"


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)
