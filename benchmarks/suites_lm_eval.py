"""Suites of lm-eval's tasks against lm-eval itself: are `results` equal, and how long does either take?

    python benchmarks/suites_lm_eval.py [--data ../shared/data/benchmarks] [--docs 300] [--shots 0 5] [--only arc_easy]
                                        [--batch 8]

SmolLM2-135M-Instruct in fp32 on one thread; `--batch` is lm-eval's, whose results do not depend on it in fp32. The
tasks are local files over the benchmarks' data, each with the prompt of lm-eval's task of that name; the shots come
from the documents after those that are asked. Our side goes all the way: `load_lm_eval`, a record, and the record
replayed through lm-eval's evaluator; lm-eval's is `simple_evaluate` with its `hf` model. A row a task and number of
shots is printed as it is found, and the exit code says whether all were equal.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lm_eval import evaluator, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval_tasks import FILES

from backslide.lm_eval_results import replay
from backslide.models import BUILTIN, load_model
from backslide.scoring.engine import Scorer
from backslide.suite.lm_eval import TaskOptions, load_lm_eval


def write_task(name: str, data: Path, folder: Path, docs: int) -> None:
    """A task file over the first `docs` documents, with the 200 after them to draw shots from."""
    lines = (data / f"{FILES[name]}.jsonl").read_text(encoding="utf-8").splitlines()
    files = {"test": lines[:docs], "train": lines[docs : docs + 200]}
    for part, chosen in files.items():
        (folder / f"{name}.{part}.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {part: str(folder / f"{name}.{part}.jsonl") for part in files}},
        "test_split": "test",
        "fewshot_split": "train",
    }
    if name == "lambada":
        config |= {"output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": " {{continuation}}"}
        config["metric_list"] = [{"metric": "perplexity"}, {"metric": "acc"}]
    else:
        config |= {"output_type": "multiple_choice", "doc_to_text": "{{query}}\nAnswer:"}
        config |= {"doc_to_target": "gold", "doc_to_choice": "choices"}
        config["metric_list"] = [{"metric": "acc"}, {"metric": "acc_norm"}]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def measure(name: str, shots: int, model: Any, tokenizer: Any, data: Path, docs: int, batch: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_task(name, data, folder, docs)
        begin = time.perf_counter()
        suite = load_lm_eval(name, TaskOptions(include_path=folder, num_fewshot=shots, limit=docs))
        record = Scorer(suite, model, tokenizer).measure(model)
        ours = replay(record, suite)
        ours_seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        theirs: Any = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch),
            tasks=[name],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            num_fewshot=shots,
            limit=docs,
            bootstrap_iters=0,
        )
        theirs_seconds = time.perf_counter() - begin
    one, other = theirs["results"][name], ours["results"][name]
    numbers = {key: (one[key], other[key]) for key, value in one.items() if isinstance(value, float)}
    pairs = list(zip(theirs["samples"][name], ours["samples"][name], strict=True))
    return {
        "task": name,
        "shots": shots,
        "documents": len(pairs),
        "equal": all(a == b if "perplexity" not in key else abs(a - b) < 1e-4 * a for key, (a, b) in numbers.items()),
        "results": {key: {"lm-eval": a, "ours": b} for key, (a, b) in numbers.items() if "stderr" not in key},
        "documents that differ": sum(a["acc"] != b["acc"] for a, b in pairs),
        "hashes equal": all(a[h] == b[h] for a, b in pairs for h in ("doc_hash", "prompt_hash", "target_hash")),
        "largest difference, nats": max(
            abs(x[0] - y[0])
            for a, b in pairs
            for x, y in zip(a["filtered_resps"], b["filtered_resps"], strict=True)
        ),
        "seconds": round(ours_seconds, 1),
        "lm-eval seconds": round(theirs_seconds, 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/benchmarks"))
    parser.add_argument("--docs", type=int, default=300)
    parser.add_argument("--shots", type=int, nargs="*", default=[0, 5])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=list(FILES), choices=list(FILES))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    # It asks the machine for its compilers and packages: seconds a call, and no part of the results.
    evaluator.add_env_info = lambda results: None
    loaded = load_model(BUILTIN, dtype="float32")
    good = True
    for shots in options.shots:
        for name in options.only:
            row = measure(name, shots, loaded.model, loaded.tokenizer, options.data, options.docs, options.batch)
            good &= row["equal"] and row["hashes equal"]
            print(json.dumps(row), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
