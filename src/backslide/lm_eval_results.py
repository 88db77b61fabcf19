"""Results in lm-eval's own layout, written from a record and read as a baseline.

    OUT/MODEL/results_TIME.json          the metrics of each task and group
    OUT/MODEL/samples_TASK_TIME.jsonl    a line a document: what was asked, what came back, and three hashes

Writing replays a record's outcomes through lm-eval's evaluator, so every metric is computed by lm-eval; reading takes
what lm-eval wrote with `--log_samples` and pairs it with a suite of the same tasks by `doc_hash`, `prompt_hash` and
`target_hash`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backslide.errors import ConfigError, MismatchError, RecordError, RunError
from backslide.files import check_writable, read_json, read_lines
from backslide.record import Outcome, Record
from backslide.suite.item import ContinuationItem, Item, TextItem
from backslide.suite.lm_eval import FEWSHOT_SEED, TaskSuite, chat_template, undisturbed
from backslide.suite.suite import Suite
from backslide.version import __version__

Pairs = list[tuple[float, bool]]
Answers = Pairs | str
"""To one item: log-likelihood (nats) and greedy flag of each continuation, or of the text; or the reply."""


def check_out(suite: Suite, part: str, out: str | Path) -> TaskSuite:
    """The suite, if its results can be written in lm-eval's layout under `out`; `ConfigError` if not."""
    if Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"lm-eval-out is {str(out)!r}, which is a file; give a folder")
    if not isinstance(suite, TaskSuite):
        raise ConfigError(
            f"lm-eval-out is for lm-eval's tasks, and the suite is {suite.name!r}; use --suite lm-eval:TASK"
        )
    if part != "all":
        raise ConfigError(f"lm-eval-out needs all documents, and the part is {part!r}; use --part all")
    check_writable(Path(out), ConfigError, folder=True)
    return suite


def replay(record: Record, suite: TaskSuite, tokenizer: Any = None) -> dict[str, Any]:
    """What `lm_eval.evaluate` returns (`results`, `samples`, …) for the outcomes of a record.

    Args:
        record: measured on all of the suite.
        suite: the tasks.
        tokenizer: the model's, where the tasks are asked through its chat template.

    Raises:
        RunError: a task asks for something else than it asked before.
    """
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate

    chat = suite.options.apply_chat_template
    items = {item.id: item for item in suite.items}

    class Replay(LM):  # type: ignore[misc]
        """Answers from the record."""

        def _outcome(self, request: Any, place: int | None = None) -> Outcome:
            id = f"{request.task_name}/{request.doc_id}"
            if id not in items or _asked(items[id], place) != request.args[: 1 if place is None else 2]:
                raise RunError(f"lm-eval asks something else for {id!r} than before; its task is not deterministic")
            return record.by_id[id]

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            outcomes = [(self._outcome(request, request.idx), request.idx) for request in requests]
            return [(_number(outcome.scores[place]), outcome.greedy[place]) for outcome, place in outcomes]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return [_number(self._outcome(request).scores[0]) for request in requests]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return [self._outcome(request).reply or "" for request in requests]

        @property
        def tokenizer_name(self) -> str:
            return ""

        def apply_chat_template(self, history: Any, add_generation_prompt: bool = True) -> str:
            return chat_template(tokenizer)(history, add_generation_prompt)

    tasks = suite.loaded["tasks"]
    # Means have their standard error in closed form; others would fork a pool of processes.
    plain = all(
        getattr(how, "__name__", "") == "mean" for task in tasks.values() for how in task.aggregation().values()
    )
    with undisturbed():
        for task in tasks.values():
            # The shots are drawn anew, from the beginning.
            task.set_fewshot_seed(FEWSHOT_SEED)
        found = evaluate(
            Replay(),
            dict(suite.loaded),
            limit=suite.options.limit,
            bootstrap_iters=100_000 if plain else 0,
            log_samples=True,
            system_instruction=suite.options.system_instruction,
            apply_chat_template=chat,
            fewshot_as_multiturn=suite.options.multiturn,
        )
    return dict(found)


def write_results(record: Record, suite: TaskSuite, out: str | Path, tokenizer: Any = None) -> Path:
    """Write a record in lm-eval's layout under `out`, as `lm-eval run --output_path OUT --log_samples` would.

    Returns the folder of the files.

    Raises:
        RunError: nothing could be written, or see `replay`.
    """
    from lm_eval.loggers import EvaluationTracker

    found = replay(record, suite, tokenizer)
    header, options = record.header, suite.options
    samples = found.pop("samples")
    found["config"] = {
        "model": "backslide",
        "model_args": f"pretrained={header.model}",
        "model_dtype": f"torch.{header.conditions.get('dtype')}",
        "batch_size": None,
        "device": header.conditions.get("device"),
        "limit": options.limit,
        "bootstrap_iters": 0,
        "gen_kwargs": None,
        "random_seed": 0,
        "numpy_seed": FEWSHOT_SEED,
        "torch_seed": FEWSHOT_SEED,
        "fewshot_seed": FEWSHOT_SEED,
        "backslide_version": __version__,
        "suite_hash": header.suite_hash,
    }
    tracker = EvaluationTracker(output_path=str(out))
    tracker.general_config_tracker.log_experiment_args(
        model_source="backslide",
        model_args=f"pretrained={header.model}",
        system_instruction=options.system_instruction,
        chat_template=tokenizer.chat_template if options.apply_chat_template else None,
        fewshot_as_multiturn=options.multiturn,
    )
    # The tracker says what goes wrong to its log alone.
    with contextlib.redirect_stderr(io.StringIO()):
        tracker.save_results_aggregated(results=found, samples=samples)
        for task, rows in samples.items():
            tracker.save_results_samples(task_name=task, samples=rows)
    folder = Path(out) / str(tracker.general_config_tracker.model_name_sanitized)
    written = {path.name for path in folder.glob(f"*_{getattr(tracker, 'date_id', '')}.json*")}
    if len(written) != 1 + len(samples):
        raise RunError(f"{out}: lm-eval's files could not be written there; give a folder that can be written")
    return folder


@dataclass(frozen=True)
class Samples:
    """What lm-eval found with `--log_samples`."""

    folder: Path
    model: str
    dtype: str | None
    """Of the model's weights, such as `bfloat16`; None where the folder does not say."""
    rows: Mapping[str, Mapping[tuple[str, str, str], Mapping[str, Any]]]
    """By task and by the three hashes of a document."""

    def answers(self, suite: Suite) -> dict[str, Answers]:
        """For each item of a suite what the model answered, by item id.

        Raises:
            MismatchError: the suite is not made of lm-eval's tasks, or a document was not asked, or asked otherwise.
        """
        if not isinstance(suite, TaskSuite):
            raise MismatchError(
                f"{self.folder}: holds lm-eval's results, and the suite is {suite.name!r}; use --suite lm-eval:"
                + ",".join(self.rows)
            )
        found: dict[str, Answers] = {}
        lacking: list[str] = []
        for item in suite.items:
            row = self.rows.get(item.capability, {}).get(suite.hashes[item.id])
            if row is None:
                lacking.append(item.id)
            else:
                found[item.id] = _answers(self.folder, item, row)
        if lacking:
            raise MismatchError(f"{self.folder}: {self._why(suite, lacking)}")
        return found

    def _why(self, suite: TaskSuite, lacking: list[str]) -> str:
        where = f"{len(lacking)} of {len(suite.items)} documents, the first is {lacking[0]!r}"
        task = lacking[0].rpartition("/")[0]
        if task not in self.rows:
            return (
                f"holds no samples of {task!r} (of {', '.join(self.rows)}); evaluate it with lm-eval, or leave it out"
            )
        doc = suite.hashes[lacking[0]][0]
        if any(doc == hashes[0] for hashes in self.rows[task]):
            return (
                f"was asked in other words for {where}; give --num-fewshot, --apply-chat-template and the like as "
                "they were when lm-eval was run"
            )
        return f"holds no sample for {where}; give the --limit with which lm-eval was run, or evaluate more documents"


def read_samples(folder: str | Path) -> Samples:
    """Read the latest results in a folder that lm-eval wrote with `--log_samples`.

    Raises `RecordError` naming the file that is missing or malformed.
    """
    folder = Path(folder)
    results = sorted(folder.rglob("results_*.json"), key=lambda path: path.name)
    if not results:
        raise RecordError(f"{folder}: holds no record and no lm-eval results (results_*.json); give a record's file")
    if len({path.parent for path in results}) > 1:
        names = ", ".join(sorted({str(path.parent.relative_to(folder)) for path in results}))
        raise RecordError(f"{folder}: holds results of several models ({names}); give the folder of one")
    latest = results[-1]
    head = read_json(latest, RecordError)
    if not isinstance(head, dict) or not isinstance(head.get("results"), dict):
        raise RecordError(f"{latest}: has no results; it is no file of lm-eval")
    when = latest.stem.removeprefix("results_")
    rows: dict[str, dict[tuple[str, str, str], dict[str, Any]]] = {}
    for path in sorted(latest.parent.glob(f"samples_*_{when}.jsonl")):
        task = path.stem.removeprefix("samples_").removesuffix(f"_{when}")
        for number, row in read_lines(path, RecordError):
            hashes = tuple(row.get(name) for name in ("doc_hash", "prompt_hash", "target_hash"))
            if not all(isinstance(value, str) for value in hashes) or not isinstance(row.get("resps"), list):
                raise RecordError(
                    f"{path}:{number}: lacks doc_hash, prompt_hash, target_hash or resps; write it with lm-eval 0.4.9+"
                )
            # Each filter writes its own line; what the model said is the same in all.
            rows.setdefault(task, {}).setdefault(hashes, row)  # type: ignore[arg-type]
    if not rows:
        raise RecordError(f"{latest.parent}: has no samples_*_{when}.jsonl; run lm-eval with --log_samples")
    config = head.get("config") if isinstance(head.get("config"), dict) else {}
    dtype = str((config or {}).get("model_dtype") or "").removeprefix("torch.")
    model = str(head.get("model_name") or (config or {}).get("model_args") or latest.parent.name)
    return Samples(latest.parent, model, dtype or None, rows)


def _answers(folder: Path, item: Item, row: Mapping[str, Any]) -> Answers:
    """lm-eval writes every number and flag as text."""
    # A response is a list of one for each request (more with `repeats`, which are refused).
    resps = [resp[0] if isinstance(resp, list) and len(resp) == 1 else None for resp in row["resps"]]
    try:
        if isinstance(item, ContinuationItem):
            if len(resps) != len(item.continuations):
                raise ValueError(f"{len(resps)} responses for {len(item.continuations)} continuations")
            if _arguments(row) not in (None, item.pairs):
                raise ValueError("other contexts or continuations")
            return [(float(value), _flag(greedy)) for value, greedy in resps]  # type: ignore[misc]
        if isinstance(item, TextItem):
            return [(float(resps[0]), False)]  # type: ignore[arg-type]
        if not isinstance(resps[0], str):
            raise ValueError("no reply")
        return resps[0]
    except (TypeError, ValueError, IndexError, KeyError) as bad:
        raise MismatchError(
            f"{folder}: the sample of {item.id!r} does not fit its task ({bad}); evaluate it again with lm-eval"
        ) from None


def _arguments(row: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    asked = row.get("arguments")
    if not isinstance(asked, dict):
        return None
    return [(args["arg_0"], args["arg_1"]) for args in asked.values()]


def _flag(value: Any) -> bool:
    if str(value) not in ("True", "False"):
        raise ValueError(f"is_greedy is {value!r}")
    return str(value) == "True"


def _asked(item: Item, place: int | None) -> tuple[str, ...]:
    if isinstance(item, ContinuationItem):
        return item.pairs[place or 0]
    return (item.text,) if isinstance(item, TextItem) else (getattr(item, "prompt", ""),)


def _number(score: float | None) -> float:
    return float("-inf") if score is None else score
