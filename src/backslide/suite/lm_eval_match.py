"""Is a reply right by lm-eval's filters and its `exact_match`? lm-eval itself says so; needs the package `lm-eval`."""

from __future__ import annotations

import json

from backslide.errors import SuiteError
from backslide.suite.item import GenerationItem
from backslide.suite.patterns import is_found

SIMPLE = ("take_first", "regex", "remove_whitespace", "lowercase", "uppercase")
"""Filters that look at nothing but the reply."""


def right_reply(reply: str, item: GenerationItem) -> bool:
    """Whether `reply`, filtered, equals one of the item's answers.

    Raises `SuiteError` where lm-eval is not installed, and `Unended` where a filter's pattern is not through with the
    reply in the time that it has.
    """
    need_lm_eval(item.id)
    # Filters are known to the registry once their package is imported.
    import lm_eval.filters  # noqa: F401
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.api.registry import get_filter

    responses: list[list[str]] = [[reply]]
    for name, arguments in json.loads(item.filters):
        if name == "regex" and "regex_pattern" in (arguments or {}):
            for said in responses[0]:
                is_found(arguments["regex_pattern"], said, everywhere=True)
        responses = list(get_filter(name)(**(arguments or {})).apply(responses, [{}]))
    # As `Task.process_results`: what no `take_first` picked is still a list of one.
    said = responses[0] if isinstance(responses[0], str) else responses[0][0]
    answers = list(item.answers)
    found = exact_match_hf_evaluate([said] * len(answers), answers, **json.loads(item.metric))
    return bool(found["exact_match"] > 0)


def need_lm_eval(what: str) -> None:
    """Raise `SuiteError` with the line that installs lm-eval, where it is missing."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise SuiteError(f"{what} needs the package lm-eval; pip install 'backslide[lm-eval]'") from None
