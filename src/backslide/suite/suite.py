"""Suite: a set of items with a content hash, split once and for all into a monitor and a gate half."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from backslide.errors import SuiteError, shown
from backslide.files import read_lines, write_lines, writing
from backslide.suite.item import Item, item_from_dict

if TYPE_CHECKING:
    from backslide.suite.lm_eval import TaskOptions

Part = Literal["monitor", "gate", "all"]

REPERTOIRE = "repertoire"
"""The name of the bundled suite."""
LM_EVAL = "lm-eval:"
"""What stands in front of the names of lm-eval's tasks."""

_SOURCES = f"a .jsonl file, a folder of them, {REPERTOIRE!r} or 'lm-eval:TASK'"
_ONE_ID = "give each item an id of its own, or leave out the copy"


@dataclass(frozen=True)
class Suite:
    """Items under a name.

    Raises `SuiteError` when there are no items or two of them have the same id.
    """

    name: str
    items: tuple[Item, ...]
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """File and line of each item, by its id, where it was read from a file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        if not self.items:
            raise SuiteError(f"suite {self.name}: has no items")
        twice = [id for id, count in Counter(item.id for item in self.items).items() if count > 1]
        if twice:
            raise SuiteError(f"suite {self.name}: the id {shown(twice[0])} is used more than once; {_ONE_ID}")

    @classmethod
    def load(cls, source: str | Path, tasks: TaskOptions | None = None, tokenizer: Any = None) -> Suite:
        """Read a JSON Lines file, a folder of them, the bundled suite `repertoire`, or tasks of lm-eval.

        Args:
            source: path or name; `repertoire:50` for 50 items of each capability (see `sample`),
                `lm-eval:arc_easy,piqa` for tasks of lm-eval.
            tasks: how lm-eval's tasks are asked; for no other suite.
            tokenizer: of the model, where lm-eval's tasks are asked through its chat template.

        Raises `SuiteError` naming file and line.
        """
        if source == "":
            raise SuiteError(f"the suite's name is empty; give {_SOURCES}")
        if str(source).startswith(LM_EVAL):
            from backslide.suite.lm_eval import load_lm_eval

            return load_lm_eval(str(source).removeprefix(LM_EVAL), tasks, tokenizer=tokenizer)
        if tasks is not None and (given := tasks.given):
            raise SuiteError(f"{given[0]} is for lm-eval's tasks, and the suite is {str(source)!r}; leave it out")
        if str(source) == REPERTOIRE:
            return cls.repertoire()
        if str(source).startswith(f"{REPERTOIRE}:"):
            each = str(source).removeprefix(f"{REPERTOIRE}:")
            if not (each.isdecimal() and len(each) < 10 and int(each)):
                raise SuiteError(f"{source}: a number of items a capability is needed, such as {REPERTOIRE}:50")
            return cls.repertoire().sample(int(each))
        path = Path(source)
        found = list(_read((str(file), file) for file in _files(path)))
        return cls(path.stem, tuple(item for item, _ in found), {item.id: place for item, place in found})

    @classmethod
    def repertoire(cls) -> Suite:
        """The bundled suite of general abilities."""
        with importlib.resources.as_file(importlib.resources.files(__package__) / REPERTOIRE) as folder:
            found = list(_read((f"{REPERTOIRE}/{file.name}", file) for file in sorted(folder.glob("*.jsonl"))))
        return cls(REPERTOIRE, tuple(item for item, _ in found), {item.id: place for item, place in found})

    def sample(self, each: int) -> Suite:
        """At most so many items of each capability, half of them (the odd one more) of the monitor half.

        They are the same every time, and a larger sample holds a smaller one: those whose ids hash lowest, by another
        hash than that which decides the half. Where a half has too few, the other one fills up. Open items without a
        reference, by which nothing is judged, all stay. Raises `SuiteError` for `each` below 1.
        """
        if each < 1:
            raise SuiteError(f"{each} items of each capability are asked for, at least 1 is needed")
        ranked = sorted(self.items, key=lambda item: hashlib.sha256(f"sample:{item.id}".encode()).digest())
        chosen = {item.id for item in ranked if item.kind == "open" and not item.judged}
        for capability in self.capabilities:
            own = [item for item in ranked if item.capability == capability and item.id not in chosen]
            monitor, gate = ([item.id for item in own if half_of(item) == half] for half in ("monitor", "gate"))
            of_gate = min(len(gate), max(each // 2, each - len(monitor)))
            chosen |= {*gate[:of_gate], *monitor[: each - of_gate]}
        if len(chosen) == len(self.items):
            return self
        items = tuple(item for item in self.items if item.id in chosen)
        return Suite(f"{self.name}:{each}", items, self.places)

    def save(self, path: str | Path) -> None:
        """Write the suite as JSON Lines, atomically. Raises `SuiteError` where that cannot be done."""
        with writing(Path(path), SuiteError):
            write_lines(Path(path), (item.to_dict() for item in self.items))

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the items' content, whatever their order and the suite's name."""
        rows = sorted(json.dumps(item.to_dict(), sort_keys=True) for item in self.items)
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def part(self, part: Part) -> tuple[Item, ...]:
        """The items of one half, or all of them, in the suite's order."""
        if part not in get_args(Part):
            raise SuiteError(f"part is {part!r}, one of {', '.join(get_args(Part))} is needed")
        if part == "all":
            return self.items
        return tuple(item for item in self.items if half_of(item) == part)

    @property
    def capabilities(self) -> dict[str, int]:
        """Number of items of each capability, in the suite's order."""
        return dict(Counter(item.capability for item in self.items))


def half_of(item: Item) -> Literal["monitor", "gate"]:
    """The half in which an item is, by hash of its cluster, or of its id where it has none.

    It depends on nothing else, so adding items to a suite moves none from one half to the other.
    """
    digest = hashlib.sha256((item.cluster or item.id).encode()).digest()
    return "monitor" if digest[0] % 2 == 0 else "gate"


def _files(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            files = sorted(path.glob("*.jsonl"))
            if not files:
                raise SuiteError(f"{path}: the folder has no .jsonl file")
            return files
        if path.exists():
            return [path]
    except OSError as bad:  # a name that is too long, a folder that may not be read
        raise SuiteError(f"{path}: cannot be read: {bad.strerror or bad}") from None
    raise SuiteError(f"{path}: no such suite; give {_SOURCES}")


def _read(named: Iterable[tuple[str, Path]]) -> Iterator[tuple[Item, str]]:
    """Each item and its place, of files that are called by the name beside them."""
    seen: dict[str, str] = {}
    files = list(named)
    for name, path in files:
        number = 0
        for number, row in read_lines(path, SuiteError):
            place = f"{name}:{number}"
            try:
                item = item_from_dict(row)
            except SuiteError as bad:
                raise SuiteError(f"{path}:{number}: {bad}") from None
            if item.id in seen:
                raise SuiteError(
                    f"{path}:{number}: the id {shown(item.id)} was used before, at {seen[item.id]}; {_ONE_ID}"
                )
            seen[item.id] = place
            yield item, place
        if not number:
            # In a folder of several nobody would miss what should be in it.
            mend = "a line an item is needed"
            if len(files) > 1:
                raise SuiteError(f"{path}: the file is empty; {mend}, or leave the file out")
            raise SuiteError(f"{path}: the suite is empty; {mend}")
