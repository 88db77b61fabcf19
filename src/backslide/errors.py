"""The exceptions that backslide raises on purpose.

::

    BackslideError
    ├── InputError              something that the user gave is wrong: exit code 2
    │   ├── SuiteError          a suite or an item
    │   ├── RecordError         a record file
    │   ├── MismatchError       two records that must not be compared
    │   ├── ModelError          a model, adapter or tokenizer
    │   ├── DataError           training data
    │   └── ConfigError         a configuration file or an argument
    └── RunError                the run itself broke: exit code 4

Each message is one line that names the thing, the value received and the mend.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable


class BackslideError(Exception):
    """Base of every exception that backslide raises on purpose."""

    exit_code = 4


class InputError(BackslideError):
    """Something that the user gave is wrong; the message names it and says how to mend it."""

    exit_code = 2


class SuiteError(InputError):
    """A suite or one of its items is malformed."""


class RecordError(InputError):
    """A record file is missing, malformed or of an unknown version."""


class MismatchError(InputError):
    """Two records were not measured on the same requests under the same conditions."""


class ModelError(InputError):
    """A model, adapter or tokenizer cannot be found or loaded."""


class DataError(InputError):
    """A training file has nothing that can be trained on."""


class ConfigError(InputError):
    """A configuration file or an argument is wrong."""


class BusyError(ConfigError):
    """Another process is writing where this one was told to write."""


class RunError(BackslideError):
    """The run itself broke."""


def listed(names: Iterable[object]) -> str:
    """Names out of a file, with commas between them: on one line, and no more than the eye can take."""
    texts = [str(name) for name in names]
    some = [text if text.isprintable() and 0 < len(text) <= 40 else shown(text) for text in texts[:20]]
    return ", ".join(some) + (f" and {len(texts) - 20} more" if len(texts) > 20 else "")


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 3


def number_of(count: int, noun: str) -> str:
    """A number of things in words: "1 item", "3 items"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def shown(value: object) -> str:
    """A value as a message shows it: on one line, whatever it holds, and no longer than the eye can take."""
    text = _SHORT.repr(value)
    return text if len(text) <= 200 else text[:199] + "…"
