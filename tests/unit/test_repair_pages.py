"""The pages of a repair: the line as a table, and an account of its own in place of a diagnosis of the training."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

from backslide.report.line import Point, rows
from backslide.report.markdown import write_report
from repair_folders import point, repair_folder

TRIED = (point(1.0, 3.0, 300, 0), point(0.5, 2.5, 90, 10), point(0.25, 2.75, 6, 4), Point(at=0.0, loss=4.0))


def tables(page: str) -> list[list[list[str]]]:
    """The cells of each table of a page, row by row, as a reader sees them."""
    found: list[list[list[str]]] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    for token, inside in pairwise(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append("".join(child.content for child in inside.children or []))
    return found


def test_the_line_is_a_table_with_a_cell_for_each_value(tmp_path: Path) -> None:
    run = repair_folder(tmp_path / "run", points=TRIED, chosen=0.25, gate=(600, 5, 5))
    (line,) = (table for table in tables(write_report(run).read_text()) if table[0][0] == "α on the line")
    assert len(line[0]) == 8
    assert [tuple(row) for row in line[1:]] == rows(TRIED, 0.25)
    assert [row[-1] for row in line[1:]] == ["a loss is proven", "a loss is proven", "kept, chosen", "the base"]
