"""The templates of the pages, and what they are filled with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2

from backslide.report.format import FILTERS
from backslide.report.summary import Summary, loss_span


def fill(
    name: str,
    summary: Summary,
    *,
    shown: Callable[[Any], Any],
    autoescape: bool,
    filters: dict[str, Callable[..., Any]] | None = None,
    **more: Any,
) -> str:
    """A page from its template.

    Args:
        name: of the template.
        summary: of the run.
        shown: what becomes of a value before it is escaped or written; ours go through it as well as others.
        autoescape: whether what it gives is escaped as HTML.
        filters: beside those of `format`.
        more: what the page needs beside the run.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("backslide.report"),
        finalize=shown,
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS, **(filters or {}))
    return environment.get_template(name).render(
        summary=summary,
        verdict=summary.verdict,
        diagnosis=summary.diagnosis,
        account=summary.account,
        setup=summary.setup,
        config=summary.config,
        loss=loss_span(summary.losses),
        **more,
    )
