"""What is wrong with a task of lm-eval that cannot be loaded: the file, the line or document, the value and the mend.

lm-eval says `KeyError: None`, or passes a file over that it cannot read. So what it was given is looked at again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from backslide.errors import DataError, SuiteError, number_of, shown
from backslide.files import read_lines
from backslide.suite.item import is_blank


def unknown_task(name: str, folder: str | Path | None, *, named: bool = False) -> SuiteError | None:
    """The error for a task that was not found because a task file in `folder` cannot be read; None where all can.

    Args:
        name: of the task, or a pattern.
        folder: of task files.
        named: only a file in which the name stands.
    """
    for path in sorted(Path(folder).glob("**/*.yaml")) if folder is not None else ():
        fault = _yaml_fault(path)
        if fault is None:
            continue
        if named and not re.search(rb"(?<![\w-])" + re.escape(name.encode()) + rb"(?![\w-])", path.read_bytes()):
            continue
        return SuiteError(f"lm-eval knows no task {name!r}, and a task file cannot be read: {fault}; correct that file")
    return None


def _yaml_fault(path: Path) -> str | None:
    """What lm-eval stumbles over in a task file, with its line; None where it does not."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        load_yaml(path, resolve_func=False)
    except yaml.reader.ReaderError as bad:  # bytes that are no text
        return _bytes_fault(path) or f"{path}: {_line(bad)}"
    except yaml.MarkedYAMLError as bad:
        if (mark := bad.problem_mark or bad.context_mark) is None:
            return f"{path}: {_line(bad)}"
        if Path(mark.name).is_file():
            path = Path(mark.name)  # one that it includes
        there = path.read_bytes().decode(errors="replace").splitlines()
        text = there[mark.line] if mark.line < len(there) else ""
        return f"{path}:{mark.line + 1}: not YAML: {bad.problem} at column {mark.column + 1}, {shown(text)}"
    except OSError as bad:  # what it includes is not there
        return f"{path}: {bad.filename}: {bad.strerror or bad}"
    except Exception as bad:
        return _bytes_fault(path) or f"{path}: {_line(bad)}"
    return None


def _bytes_fault(path: Path) -> str | None:
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as bad:
        line = content.count(b"\n", 0, bad.start) + 1
        return f"{path}:{line}: byte {bad.start} of the file is 0x{content[bad.start]:02x}, which is not UTF-8"
    return None


def load_error(name: str, file: str | Path | None, bad: Exception) -> SuiteError:
    """The error for a task, or a group with one, that lm-eval could not load.

    Args:
        name: what was asked for.
        file: its task file, where one is known.
        bad: what lm-eval raised.
    """
    task = _task_of(bad.__traceback__)
    if task is not None:
        name = task.config.task or name
        file = (task.config.metadata or {}).get("config_source", file)
    of = f"lm-eval task {name!r}" + (f" ({file})" if file is not None else "")
    fault = _fault(task) if task is not None else None
    if fault is not None:
        return SuiteError(f"{of}: {fault}")
    if isinstance(bad, OSError):
        return SuiteError(
            f"{of}: its data cannot be had ({_line(bad)}); go online once, or give a task file over local data with "
            "--include-path"
        )
    while bad.__cause__ is not None and isinstance(bad.__cause__, Exception):
        bad = bad.__cause__  # "An error occurred" is not what occurred
    return SuiteError(f"{of}: cannot be loaded ({_line(bad)}); correct its task file or its data")


def document_of(bad: Exception) -> str:
    """Where in the data lm-eval was when it raised `bad`: ", document 3", or nothing where that is not known."""
    found = ""
    for place in _frames(bad.__traceback__):
        if isinstance(number := place.get("doc_id"), int):
            found = f", document {number}"
    return found


def _task_of(trace: TracebackType | None) -> Any:
    """The task that was being made, however far that had come."""
    from lm_eval.api.task import ConfigurableTask

    found = None
    for place in _frames(trace):
        if isinstance(task := place.get("self"), ConfigurableTask):
            found = task
    return found if getattr(found, "_config", None) is not None else None


def _frames(trace: TracebackType | None) -> Iterator[dict[str, Any]]:
    while trace is not None:
        yield trace.tb_frame.f_locals
        trace = trace.tb_next


def _fault(task: Any) -> str | None:
    """What is wrong with the task, by how far lm-eval had come: its metrics, its data, its first document."""
    if not hasattr(task, "dataset"):
        return _metric_fault(task) or _data_fault(task)
    try:
        docs = task.eval_docs
        count = len(docs)
    except Exception:
        return _split_fault(task)
    if not count:
        split = task.config.test_split or task.config.validation_split
        return f"its split {split!r} has no document; add some, or choose another split in the task file"
    try:
        return _document_fault(task, docs[0])
    except Exception:
        return None


def _metric_fault(task: Any) -> str | None:
    from lm_eval.api.registry import METRIC_REGISTRY

    known = list(METRIC_REGISTRY)
    for metric in task.config.metric_list or ():
        name = metric.get("metric") if isinstance(metric, dict) else metric
        if not callable(name) and (name not in known or not isinstance(metric, dict)):
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "such as acc, acc_norm or exact_match"
            return f"its metric_list has {shown(name)}, which is no metric of lm-eval; name one, {hint}"
    return None


def _data_fault(task: Any) -> str | None:
    """A file of local data that is empty, or is not what it is said to be."""
    for file in _files((task.config.dataset_kwargs or {}).get("data_files")):
        path = Path(file)
        if not path.is_file():
            continue
        with open(path, "rb") as opened:
            begin = opened.read(1 << 16)
        if not begin.strip():
            return f"its data file {path} is empty; write a line a document"
        # An array over many lines is JSON as well.
        if task.config.dataset_path == "json" and not begin.lstrip().startswith(b"["):
            try:
                for _ in read_lines(path, DataError):
                    pass
            except DataError as bad:
                return f"its data cannot be read: {bad}"
    return None


def _files(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    for entry in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(entry, (list, tuple)):
            yield from _files(entry)
        elif isinstance(entry, (str, Path)):
            yield str(entry)


def _split_fault(task: Any) -> str | None:
    names = [str(name) for name in task.dataset] if isinstance(task.dataset, dict) else []
    config = task.config
    for key in ("test_split", "validation_split", "training_split", "fewshot_split"):
        split = getattr(config, key)
        if split is not None and names and split not in names:
            return f"its {key} is {split!r}, and the data has {', '.join(names)}; choose one of these"
    return None


def _document_fault(task: Any, doc: Any) -> str | None:
    """What lm-eval cannot make of the first document."""
    columns = ", ".join(map(str, doc))
    made: dict[str, Any] = {}
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        given = getattr(task.config, key)
        if given is None:
            continue
        try:
            made[key] = getattr(task, key)(doc)
        except Exception as bad:
            said = f"its {key} is {shown(given)}, which gives nothing ({_line(bad)})"
            return f"document 0: {said}; correct it, the columns are {columns}"
    choices = made.get("doc_to_choice")
    if choices is None:
        return None
    if not isinstance(choices, list):
        return f"document 0: its choices are {shown(choices)}; a list is needed, correct doc_to_choice or the data"
    for place, choice in enumerate(choices):
        if not isinstance(choice, str) or is_blank(choice):
            why = "is empty" if isinstance(choice, str) else "is no text"
            return f"document 0: its choices have {shown(choice)} at {place} (from 0), which {why}; correct the data"
    gold = made.get("doc_to_target")
    if isinstance(gold, int) and not -len(choices) <= gold < len(choices):
        count = f"{number_of(len(choices), 'choice')} (0-{len(choices) - 1})"
        return f"document 0: gold is {shown(gold)}, but it has {count}; correct the data or doc_to_target"
    return None


def _line(bad: Exception) -> str:
    text = " ".join(f"{type(bad).__name__}: {bad}".split())
    return text if len(text) <= 300 else text[:299] + "…"
