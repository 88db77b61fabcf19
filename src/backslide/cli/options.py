"""Arguments and options that several verbs take."""

from __future__ import annotations

import enum
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
SuiteArgument = Annotated[
    str, typer.Argument(help="'repertoire', a .jsonl file, or a folder of them.", show_default=False)
]
SuiteOption = Annotated[str, typer.Option(help="'repertoire', a .jsonl file, or a folder of them.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
FormatOption = Annotated[Format, typer.Option("--format", help="json: machine-readable, on standard output.")]
