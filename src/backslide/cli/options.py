"""Options that several verbs share."""

from __future__ import annotations

import enum
from typing import Annotated

import typer


class Format(str, enum.Enum):
    """How results are printed."""

    text = "text"
    json = "json"


DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
FormatOption = Annotated[Format, typer.Option("--format", help="json: machine-readable, on standard output.")]
