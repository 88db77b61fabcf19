"""lm-eval's tasks as suites: the very contexts and continuations that lm-eval asks, as items.

    load_lm_eval("arc_easy,piqa", TaskOptions(num_fewshot=5, limit=100))

lm-eval loads the task, draws the shots and writes the requests; each document becomes one item, with the id
`TASK/DOCUMENT` and the task as its capability:

- `multiple_choice` and `loglikelihood` (LAMBADA): a `continuation` item, right where lm-eval's `acc` is 1;
- `loglikelihood_rolling`: a `text` item;
- `generate_until` with `exact_match`: a `generation` item, right by the task's first filter.

Anything else is refused. lm-eval is imported where it is used; neither it nor torch is needed to import this module.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backslide.errors import SuiteError
from backslide.suite.item import ContinuationItem, GenerationItem, Item, TextItem
from backslide.suite.lm_eval_faults import document_of, load_error, unknown_task
from backslide.suite.lm_eval_match import SIMPLE, need_lm_eval
from backslide.suite.suite import LM_EVAL, Suite

FEWSHOT_SEED = 1234
"""lm-eval's own."""

_GREEDY: dict[str, tuple[Any, ...]] = {
    "do_sample": (False, None),
    "temperature": (0, None),
    "num_beams": (1, None),
    "repetition_penalty": (1, None),
}
"""Settings of generation with the values that leave it greedy."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """How tasks are asked, under lm-eval's names.

    Raises `SuiteError` for a number that is out of range.
    """

    include_path: str | Path | None = None
    """A folder of task files."""
    num_fewshot: int | None = None
    """Examples in front of each document; None: the task's own number. A task that is set to 0 stays at 0."""
    limit: float | None = None
    """The first so many documents of each task; below 1: a share of them."""
    apply_chat_template: bool = False
    """Ask through the tokenizer's chat template."""
    fewshot_as_multiturn: bool | None = None
    """Examples as turns of the chat; None: where the chat template is applied."""
    system_instruction: str | None = None
    """In front of everything."""

    def __post_init__(self) -> None:
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise SuiteError(f"num_fewshot is {self.num_fewshot}, a whole number from 0 is needed")
        if self.limit is not None and not 0 < self.limit < float("inf"):
            raise SuiteError(f"limit is {self.limit}, a number of documents above 0 is needed")
        if self.limit is not None and self.limit > 1 and self.limit != int(self.limit):
            raise SuiteError(f"limit is {self.limit}, a whole number of documents, or a share below 1, is needed")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise SuiteError("fewshot_as_multiturn is true, which needs apply_chat_template; give both or none")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise SuiteError(f"include_path is {str(self.include_path)!r}, which is no folder; give one of task files")

    @property
    def given(self) -> list[str]:
        """What differs from lm-eval's own, as words such as `num_fewshot=5`; not where the files are."""
        chosen = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return [
            f"{name}={f'{value:g}' if isinstance(value, float) else value}"
            for name, value in chosen.items()
            if value is not None and value is not False
        ]

    @property
    def words(self) -> list[str]:
        """The same on the command line."""
        found = []
        for name, value in self.to_dict().items():
            flag = name.replace("_", "-")
            if value is False and name == "fewshot_as_multiturn":
                found.append(f"--no-{flag}")
            elif value is not None and value is not False:
                said = f"{value:.15g}" if isinstance(value, float) else str(value)
                found += [f"--{flag}", *([] if value is True else [said])]
        return found

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON can hold them."""
        row = dataclasses.asdict(self)
        return {**row, "include_path": None if self.include_path is None else str(self.include_path)}

    @property
    def multiturn(self) -> bool:
        """Whether examples are turns of the chat."""
        return self.apply_chat_template if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn


@dataclass(frozen=True)
class TaskSuite(Suite):
    """A suite made of lm-eval's tasks, which knows them still."""

    options: TaskOptions = field(default_factory=TaskOptions)
    hashes: Mapping[str, tuple[str, str, str]] = field(default_factory=dict, repr=False)
    """For each item lm-eval's `doc_hash`, `prompt_hash` and `target_hash`."""
    loaded: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What lm-eval's `TaskManager.load` gave: `tasks` and `groups`."""


def options_of(suite: Suite) -> dict[str, Any] | None:
    """How the tasks of a suite are asked, as JSON can hold it; None where it is none of tasks."""
    return suite.options.to_dict() if isinstance(suite, TaskSuite) else None


def load_lm_eval(names: str, options: TaskOptions | None = None, *, tokenizer: Any = None) -> TaskSuite:
    """Make a suite of lm-eval's tasks.

    Args:
        names: tasks, groups, tags or patterns (`arc_*`), with commas between them.
        options: how they are asked.
        tokenizer: of the model, for `apply_chat_template`.

    Raises:
        SuiteError: lm-eval is missing, it knows no such task, a task's data cannot be had, or it asks for what is not
            supported.
    """
    options = options or TaskOptions()
    source = f"{LM_EVAL}{names}"
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise SuiteError(f"{source!r} names no task; give some, such as {LM_EVAL}arc_easy,piqa")
    need_lm_eval(source)
    if options.apply_chat_template and not getattr(tokenizer, "chat_template", None):
        raise SuiteError(f"{source}: apply_chat_template needs a tokenizer with a chat template; leave the option out")
    with undisturbed():
        loaded = _load(wanted, options)
        items: list[Item] = []
        hashes: dict[str, tuple[str, str, str]] = {}
        for name, task in loaded["tasks"].items():
            _supported(name, task)
            _set_shots(task, options)
            task.set_fewshot_seed(FEWSHOT_SEED)
            _build(name, task, options, tokenizer)
            for doc_id, instances in _by_document(task).items():
                item = _item(name, task, doc_id, instances)
                items.append(item)
                hashes[item.id] = _hashes(task, instances[0])
    asked = [word for word in options.given if not word.startswith("include_path")]
    return TaskSuite(" ".join([source, *asked]), tuple(items), options=options, hashes=hashes, loaded=loaded)


def chat_template(tokenizer: Any) -> Callable[..., str]:
    """What lm-eval takes as a chat template; a system message that the template refuses is left out, as it does."""
    from jinja2.exceptions import TemplateError

    def apply(history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        def render(messages: list[dict[str, str]]) -> str:
            return str(
                tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        try:
            return render(history)
        except TemplateError:
            return render([message for message in history if message["role"] != "system"])

    return apply


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Seeds as lm-eval sets them, for tasks that shuffle; the generators as before afterwards. No progress bars."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(FEWSHOT_SEED)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _load(wanted: list[str], options: TaskOptions) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    where = None if options.include_path is None else str(options.include_path)
    manager, found = None, list[str]()
    if where is not None:
        # lm-eval's own thousands of tasks take seconds to look through.
        manager = TaskManager(include_path=where, include_defaults=False)
        found = _match(manager, wanted)
        for name in () if found else wanted:
            # One that stands in a file that cannot be read is not to be looked for there.
            if not manager.match_tasks([name]) and (unread := unknown_task(name, where, named=True)) is not None:
                raise unread
    if manager is None or not found:
        manager = TaskManager(include_path=where)
        found = _match(manager, wanted)
    if not found:
        unknown = next(name for name in wanted if not manager.match_tasks([name]))
        if (unread := unknown_task(unknown, where)) is not None:
            raise unread
        near = difflib.get_close_matches(unknown, manager.all_tasks, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm-eval ls tasks` lists them"
        raise SuiteError(f"lm-eval knows no task {unknown!r}; {hint}")
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in found:
        try:
            one = manager.load([name])
        except Exception as bad:
            entry = manager.task_index.get(name)
            raise load_error(name, getattr(entry, "yaml_path", None), bad) from None
        for part in loaded:
            loaded[part].update(one.get(part) or {})
    return loaded


def _match(manager: Any, wanted: list[str]) -> list[str]:
    """The names that the manager knows; none where one of them is unknown."""
    found = [manager.match_tasks([name]) for name in wanted]
    return list(dict.fromkeys(name for names in found for name in sorted(names))) if all(found) else []


def _supported(name: str, task: Any) -> None:
    from lm_eval.api.registry import get_metric
    from lm_eval.api.task import ConfigurableTask

    def refuse(what: str) -> None:
        raise SuiteError(f"lm-eval task {name!r}: {what}, which is not supported; leave the task out")

    if not isinstance(task, ConfigurableTask):
        refuse("is written in Python, not as a task file")
    kind, own = task.OUTPUT_TYPE, callable(task.config.process_results)
    metrics = task._metric_fn_list
    if getattr(task, "MULTIMODAL", False) or task.config.doc_to_image or getattr(task.config, "doc_to_audio", None):
        refuse("shows images or sounds")
    if getattr(task, "UNSAFE_CODE", False):
        refuse("runs code that the model wrote")
    # Of running text only the text is taken: how lm-eval counts its words is for lm-eval's results alone.
    if own and kind != "loglikelihood_rolling":
        refuse("judges replies by a function of its own (process_results)")
    if (task.config.repeats or 1) > 1:
        refuse(f"asks everything {task.config.repeats} times (repeats)")
    if "acc_mutual_info" in metrics:
        refuse("has the metric acc_mutual_info")
    if kind != "generate_until":
        return
    if metrics.get("exact_match") is not get_metric("exact_match"):
        refuse(f"has the metrics {', '.join(map(str, metrics))} and not lm-eval's exact_match")
    for step, _ in _filters(task):
        if step not in SIMPLE:
            refuse(f"has the filter {step!r}")


def _filters(task: Any) -> list[tuple[str, dict[str, Any] | None]]:
    """The task's first filter: the one that decides."""
    if task.config.filter_list is None:
        return [("take_first", None)]
    steps = task.config.filter_list[0]["filter"]
    return [(step["function"], {k: v for k, v in step.items() if k != "function"} or None) for step in steps]


def _set_shots(task: Any, options: TaskOptions) -> None:
    """As `lm_eval.simple_evaluate`: a task whose file says 0 stays at 0."""
    own = task.get_config("num_fewshot")
    if own is None or (options.num_fewshot is not None and own != 0):
        task.set_config("num_fewshot", options.num_fewshot or 0)


def _build(name: str, task: Any, options: TaskOptions, tokenizer: Any) -> None:
    from lm_eval.evaluator_utils import get_sample_size

    chat = options.apply_chat_template
    try:
        task.build_all_requests(
            limit=get_sample_size(task, options.limit),
            rank=0,
            world_size=1,
            system_instruction=options.system_instruction,
            apply_chat_template=chat,
            fewshot_as_multiturn=options.multiturn,
            chat_template=chat_template(tokenizer) if chat else None,
            tokenizer_name="",
        )
    except Exception as bad:
        line = " ".join(f"{type(bad).__name__}: {bad}".split())
        raise SuiteError(
            f"lm-eval task {name!r}{document_of(bad)}: its requests cannot be written ({line}); correct its task file "
            "or its data"
        ) from None


def _by_document(task: Any) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance)
    return {doc: sorted(of, key=lambda instance: instance.idx) for doc, of in found.items()}


def _item(name: str, task: Any, doc_id: int, instances: list[Any]) -> Item:
    common: dict[str, Any] = {"id": f"{name}/{doc_id}", "capability": name}
    first, kind = instances[0], task.OUTPUT_TYPE
    try:
        if kind == "loglikelihood_rolling":
            return TextItem(text=first.args[0], **common)
        if kind == "generate_until":
            return _generation(task, first, common)
        contexts = tuple(instance.args[0] for instance in instances)
        return ContinuationItem(
            contexts=contexts[:1] if len(set(contexts)) == 1 else contexts,
            continuations=tuple(instance.args[1] for instance in instances),
            gold=(0,) if kind == "loglikelihood" else _gold(task, first.doc, len(instances)),
            greedy=kind == "loglikelihood",
            **common,
        )
    except SuiteError as bad:
        raise SuiteError(f"lm-eval task {name!r}, document {doc_id}: {bad}") from None


def _gold(task: Any, doc: Any, count: int) -> tuple[int, ...]:
    """As `ConfigurableTask.process_results`: what is out of range is never right."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        choices = list(task.doc_to_choice(doc))
        gold = choices.index(gold) if gold in choices else -1
    places = gold if isinstance(gold, (list, tuple)) else [gold]
    return tuple(dict.fromkeys(int(place) for place in places if 0 <= int(place) < count))


def _generation(task: Any, instance: Any, common: dict[str, Any]) -> GenerationItem:
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    settings = dict(normalize_gen_kwargs(dict(instance.args[1]), 256))
    stop = [text for text in handle_stop_sequences(settings.pop("until", None), eos=None) if text]
    limit = int(settings.pop("max_gen_toks"))
    if any(value not in _GREEDY.get(key, ()) for key, value in settings.items()):
        raise SuiteError(f"its generation_kwargs {settings!r} are not greedy, which is not supported; leave it out")
    gold = task.doc_to_target(instance.doc)
    if task.config.doc_to_choice is not None:
        gold = task.doc_to_choice(instance.doc)[gold]
    answers = list(gold) if task.multiple_target and isinstance(gold, (list, tuple)) else [gold]
    return GenerationItem(
        prompt=instance.args[0],
        answers=tuple(dict.fromkeys(map(str, answers))),
        stop=tuple(dict.fromkeys(stop)),
        max_new_tokens=limit,
        filters=json.dumps(_filters(task)),
        metric=json.dumps(task._metric_fn_kwargs["exact_match"]),
        **common,
    )


def _hashes(task: Any, instance: Any) -> tuple[str, str, str]:
    """As `lm_eval.evaluator.evaluate` writes them into its samples."""
    from lm_eval.utils import handle_non_serializable, hash_string

    doc = json.dumps(instance.doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    target = str(task.doc_to_target(instance.doc))
    return hash_string(doc), hash_string(instance.arguments[0]), hash_string(target)
