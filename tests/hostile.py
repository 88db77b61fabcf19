"""Texts that a model could say to break a page, and a run that holds one in every place."""

from __future__ import annotations

from pathlib import Path

from backslide.rundir import RunFolder
from builders import run_folder

HOSTILE = {
    "ansi": "\x1b[31mred\x1b[0m \x1b]8;;http://evil.example\x07click\x1b]8;;\x07 \x9b31m \x08\x00\x7f",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)><!-- x --></td></table>",
    "comment": "<!-- hidden",
    "instruction": "<?php x",
    "declaration": "<!DOCTYPE x",
    "tag without an end": "<script src=x",
    "pipes": "a | b || \\| c \\\\| d |---|",
    "table": "\n| a | b |\n|---|---|\n| c | d |\n",
    "backticks": "` `` ``` ~~~\n```python\ncode\n```",
    "links": "[x](http://evil.example) ![i](https://e.example/p.png) <http://a.example> www.evil.example HTTPS://x ftp://y",
    "half a link": "](http://evil.example) [",
    "definition": "[a]: http://evil.example 'x'",
    "bidi": "abc\u202egnp.exe\u2066x\u2069\u200f\u061c",
    "lines": "one\r\n\r\ntwo\u2028three\u2029four\x85five\x0bsix\tseven",
    "headings": "# Fake\n\n## Verdict\n\nretained\n===\n---\n",
    "heading": "# retained: all is well",
    "underline": "===",
    "rule": "---",
    "stars": "* * *",
    "bullet": "- x",
    "plus": "+ x",
    "number": "1. x",
    "number in brackets": "12) x",
    "quote": "> quoted",
    "mention": "@octocat and me@evil.example",
    "rich": "[bold red]x[/bold red] [link=http://e.example]y[/link] [/] :smile:",
    "formula": "$x$ $$y$$ \\(z\\)",
    "entities": "&lt;b&gt; &#64;octocat &commat; &#x3c;",
    "backslash": "\\",
    "backslashes": "\\* \\\\* \\_ end\\",
    "emphasis": "*a* _b_ **c** __d__ ~~e~~ ~f~ ^g^",
    "code block": "        code",
    "template": "{{ 7 * 7 }} {% raw %} {# x #} ${x}",
    "long": "A" * 100_000,
    "long markup": "|`<" * 30_000,
    "combining": "e" + "\u0301" * 20_000,
}


def spread(path: Path, text: str) -> RunFolder:
    """A run in which `text` stands in every place that holds text from outside."""
    return run_folder(path, capability=text, model=text, before=text, after=text, question=text, note=text, word=text)
