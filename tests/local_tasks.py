"""Small lm-eval tasks over documents made here, one of each sort."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FABLE = "the north wind and the sun were disputing which was the stronger when a traveller came along"
WORDS = FABLE.split()


def local_task(folder: Path, config: dict[str, Any]) -> Any:
    import yaml
    from lm_eval.tasks import TaskManager

    docs = [
        {
            "text": f"{WORDS[i % len(WORDS)]} {i}",
            "options": [WORDS[(i * k + 3) % len(WORDS)] + " " + WORDS[k] for k in range(2 + i % 3)],
            "gold": i % 2,
            "several": [1, 0] if i % 3 else [1],
        }
        for i in range(24)
    ]
    (folder / "docs.jsonl").write_text("\n".join(json.dumps(doc) for doc in docs))
    common = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "fewshot_split": "test",
    }
    (folder / "local.yaml").write_text(yaml.safe_dump(common | config))
    return TaskManager(include_path=str(folder), include_defaults=False)


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{text}}\nA:",
    "doc_to_choice": "options",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TASKS: dict[str, dict[str, Any]] = {
    "multiple choice": CHOICE,
    "few-shot": {**CHOICE, "num_fewshot": 3},
    "few-shot, the first": {**CHOICE, "num_fewshot": 3, "fewshot_config": {"sampler": "first_n"}},
    "last word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}}",
        "doc_to_target": " {{options[0]}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}} {{options[0]}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "replies": {
        "output_type": "generate_until",
        "doc_to_text": "Q: {{text}}\nA:",
        "doc_to_target": "{{options[0]}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}
# What suites of tasks meet beside these: several right answers, answers by name, contexts that differ, filters.
MORE: dict[str, dict[str, Any]] = {
    "several right": {**CHOICE, "doc_to_target": "several"},
    "right by name": {
        **CHOICE,
        "doc_to_choice": ["north", "south"],
        "doc_to_target": "{{['north', 'south', 'neither'][gold + (options | length == 4)]}}",
    },
    "contexts differ": {
        **CHOICE,
        "doc_to_text": "gold",
        "doc_to_choice": "{{['The ' + text, 'A ' + text]}}",
        "doc_to_target": "{{options[0]}}",
        "metric_list": [{"metric": "acc"}],
    },
    "filtered replies": {
        "output_type": "generate_until",
        "doc_to_text": "Q: {{text}}\nA:",
        "doc_to_target": list("ABCDEFGHIJKLM"),
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0},
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}],
        "filter_list": [
            {
                "name": "letter",
                "filter": [{"function": "regex", "regex_pattern": "([a-zA-Z])"}, {"function": "take_first"}],
            },
            {"name": "whole", "filter": [{"function": "take_first"}]},
        ],
    },
}
