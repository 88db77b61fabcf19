"""Arguments and options that several verbs take."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class Format(str, enum.Enum):
    """How results are printed."""

    text = "text"
    json = "json"


class Part(str, enum.Enum):
    """Which items."""

    all = "all"
    monitor = "monitor"
    gate = "gate"


ModelArgument = Annotated[
    str, typer.Argument(help="A model folder, adapter folder, hub id, or smollm2-135m-instruct.", show_default=False)
]
SUITES = (
    "'repertoire', 'repertoire:50' (so many items a capability), a .jsonl file, a folder of them, or lm-eval's tasks: "
    "'lm-eval:piqa,boolq'."
)
SuiteArgument = Annotated[str, typer.Argument(help=SUITES, show_default=False)]
SuiteOption = Annotated[str, typer.Option(help=SUITES)]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
FormatOption = Annotated[Format, typer.Option("--format", help="json: machine-readable, on standard output.")]

OF_RUN = "of the run that tuned it"
"""Whose values are taken where an option of `repair` is left out."""

TASKS = "lm-eval's tasks"
IncludePathOption = Annotated[
    Path | None,
    typer.Option("--include-path", "--include_path", help="A folder of task files.", rich_help_panel=TASKS),
]
FewshotOption = Annotated[
    int | None,
    typer.Option("--num-fewshot", "--num_fewshot", help="Examples before each document.", rich_help_panel=TASKS),
]
LimitOption = Annotated[
    float | None,
    typer.Option("--limit", "-L", help="Documents of each task; below 1: a share.", rich_help_panel=TASKS),
]
TemplateOption = Annotated[
    bool,
    typer.Option(
        "--apply-chat-template", "--apply_chat_template", help="Ask through the chat template.", rich_help_panel=TASKS
    ),
]
MultiturnOption = Annotated[
    bool | None,
    typer.Option(
        "--fewshot-as-multiturn/--no-fewshot-as-multiturn",
        "--fewshot_as_multiturn/--no_fewshot_as_multiturn",
        help="Examples as turns of the chat; default: with the chat template.",
        rich_help_panel=TASKS,
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--model", help="With --apply-chat-template: the model whose template it is.", rich_help_panel=TASKS),
]
SystemOption = Annotated[
    str | None,
    typer.Option("--system-instruction", "--system_instruction", help="In front of everything.", rich_help_panel=TASKS),
]
