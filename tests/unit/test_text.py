"""Untrusted text: nothing in it comes to life, in a terminal or in Markdown."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from backslide.report.summary import Reply
from backslide.report.terminal import replies_table
from backslide.report.text import markdown, plain


@given(st.text())
def test_one_line_without_control_characters(text: str) -> None:
    for shown in (plain(text), markdown(text)):
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
        shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.0005", "0.0005"),
        ("1. item", "1\\. item"),
        ("- item", "\\- item"),
        ("# head", "\\# head"),
        ("<b>&amp;</b>", "&lt;b&gt;&amp;amp;&lt;/b&gt;"),
        ("a|b", "a\\|b"),
        ("![x](y)", "\\!\\[x\\](y)"),
        ("$x^2$", "\\$x\\^2\\$"),
        ("http://a", "http\u2060://a"),
        ("@me", "@\u2060me"),
    ],
)
def test_markup_is_shown_as_it_is(text: str, shown: str) -> None:
    assert markdown(text) == shown


def test_long_text_is_cut() -> None:
    assert len(plain("word " * 10_000)) <= 400 and plain("word " * 10_000).endswith("…")


def test_a_reply_is_no_markup_of_rich() -> None:
    out = io.StringIO()
    reply = Reply("q [link=http://x]", "[bold red]loud[/] \x1b[2J", None)
    Console(file=out, width=100, force_terminal=True).print(replies_table([[reply]], ["after"]))
    assert "[bold red]loud[/]" in out.getvalue() and "\x1b[2J" not in out.getvalue() and "(nothing)" in out.getvalue()
