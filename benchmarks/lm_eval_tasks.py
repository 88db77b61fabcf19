"""lm-eval tasks over local JSON Lines files: what the benchmarks measure with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager

FILES = {"arc_easy": "arc_easy", "piqa": "piqa", "boolq": "boolq", "lambada": "lambada_openai"}


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    data: str
    shots: int = 0
    first: bool = True
    """The first documents are the shots of every document; else each draws its own."""
    reply: bool = False
    """The question is to be answered in words, on one line."""
    docs: int | None = None
    """Documents, where it is another number than everywhere."""
    at_least: float = 1.0
    ideal: float | None = None


CASES = (
    Case("ARC-Easy 0-shot", "arc_easy", at_least=2.8, ideal=3.3),
    Case("ARC-Easy 5-shot, first_n", "arc_easy", shots=5, at_least=15, ideal=18.7),
    Case("ARC-Easy 5-shot, random shots", "arc_easy", shots=5, first=False, at_least=3.4, ideal=4.1),
    Case("PIQA 0-shot", "piqa", at_least=1.45, ideal=1.6),
    Case("PIQA 5-shot, first_n", "piqa", shots=5, at_least=6, ideal=7.0),
    Case("BoolQ 0-shot", "boolq", at_least=1.3, ideal=1.5),
    Case("LAMBADA", "lambada", at_least=1.1),
    Case("generation (answer)", "arc_easy", reply=True, docs=100, at_least=1.5),
)


def task(case: Case, data: Path, folder: Path, docs: int, seed: int = 1234) -> Any:
    """The task of a case, its requests built for the first `docs` documents; shots come from the documents after."""
    name = "".join(c if c.isalnum() else "_" for c in case.name).lower()
    lines = (data / f"{FILES[case.data]}.jsonl").read_text(encoding="utf-8").splitlines()
    parts = {"test": lines[:docs], "train": lines[docs : docs + 200]}
    for part, chosen in parts.items():
        (folder / f"{name}.{part}.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {part: str(folder / f"{name}.{part}.jsonl") for part in parts}},
        "test_split": "test",
        "fewshot_split": "train",
        "num_fewshot": case.shots,
    }
    if case.first:
        config["fewshot_config"] = {"sampler": "first_n"}
    if case.data == "lambada":
        config |= {"output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": " {{continuation}}"}
        config["metric_list"] = [{"metric": "acc"}, {"metric": "perplexity"}]
    elif case.reply:
        config |= {"output_type": "generate_until", "doc_to_text": "{{query}}\nAnswer:"}
        config["doc_to_target"] = "{{choices[gold]}}"
        config["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": 48, "do_sample": False}
        config["metric_list"] = [{"metric": "exact_match"}]
    else:
        config |= {"output_type": "multiple_choice", "doc_to_text": "{{query}}\nAnswer:"}
        config |= {"doc_to_target": "gold", "doc_to_choice": "choices"}
        config["metric_list"] = [{"metric": "acc"}, {"metric": "acc_norm"}]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"][name]
    loaded.set_fewshot_seed(seed)
    loaded.build_all_requests(limit=docs, rank=0, world_size=1)
    return loaded


def rows(path: Path) -> list[dict[str, Any]]:
    """A JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
