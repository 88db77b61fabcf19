"""The suite that a name and lm-eval's options mean, and the tokenizer where its questions go through a chat template.

Torch is loaded where a tokenizer is needed, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from backslide.errors import SuiteError
from backslide.suite.lm_eval import TaskOptions
from backslide.suite.suite import LM_EVAL, Suite


def suite_for(
    source: Suite | str,
    tasks: TaskOptions | None,
    model: str | Path | None,
    say: Callable[[str], None] | None = None,
) -> Suite:
    """Read a suite as it is asked of a model; no weights are loaded.

    Args:
        source: the suite, or where to read it.
        tasks: how lm-eval's tasks are asked; of a suite that is given as such no more is asked.
        model: whose tokenizer has the chat template, where `tasks` asks through one; None: it is not known.
        say: told what takes long.

    Raises:
        SuiteError: the suite cannot be read, options do not fit it, or a template is needed and there is none.
        ModelError: there is no such model.
    """
    if isinstance(source, Suite):
        return source
    if tasks is None or not tasks.apply_chat_template or not source.startswith(LM_EVAL):
        return Suite.load(source, tasks)
    if model is None:
        raise SuiteError(f"{source}: apply_chat_template needs a tokenizer; name the model with --model")
    from backslide.models import load_tokenizer

    return Suite.load(source, tasks, load_tokenizer(model, say))
