"""What the terminal, or a log in its place, shows: names are whole, and lines stay lines."""

from __future__ import annotations

import pytest
from rich.text import Text

from backslide.cli.screen import Screen
from backslide.judge import judge
from backslide.planning import reach
from backslide.report.suites import counts, counts_table, examples_table
from backslide.report.terminal import accuracy_table, reach_table, verdict_table
from backslide.suite.suite import Suite
from builders import choice, flipped, record


@pytest.mark.parametrize(
    "name", ["instructed_replies", "a name of more than forty characters that differs at its end 2"]
)
def test_no_table_cuts_the_name_of_a_capability(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = flipped(100, 60, 0, name)
    items = tuple(choice(f"{i}", capability=name) for i in range(100))
    suite = Suite("s", items)
    for table in (
        verdict_table(judge(record(old), record(new))),
        reach_table(reach(suite), 6),
        accuracy_table({name: (1, 2), "other": (1, 2)}),
        counts_table(counts(suite), kinds=True),
        examples_table(suite),
    ):
        Screen().show(table)
        shown, _ = capsys.readouterr()
        first = [line[:20].strip() for line in shown.splitlines()]
        assert name.replace(" ", "") in "".join("".join(first).split()) and "…" not in shown, shown


def test_lines_are_not_broken_where_no_terminal_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"found in {'/folder' * 40}/train.jsonl, with a space here and there, and more of it" * 2
    screen = Screen()
    screen.say(line)
    screen.show(line)
    screen.show(Text(line))
    out, err = capsys.readouterr()
    assert err == line + "\n" and out == f"{line}\n{line}\n"
