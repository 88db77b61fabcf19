"""How long the built-in model takes to write its own rehearsal data, and what becomes of the replies.

    python benchmarks/synthesis.py [--tokens N] [--temperature T] [--each N] [--out FILE]

Prints the seconds, the tokens and what was left out, with the items of the repertoire looked for in what is kept.
Where FILE holds the replies already, only the sorting is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from backslide.cure.prompts import bundled_prompts
from backslide.cure.synthesis import TOKENS, synthesise
from backslide.models import BUILTIN, load_model
from backslide.suite.leakage import find_leaks
from backslide.suite.suite import Suite


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--each", type=int, default=1, help="only every N-th of the bundled prompts")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    loaded = load_model(BUILTIN, dtype="bfloat16")
    suite = Suite.repertoire()
    with tempfile.TemporaryDirectory() as folder:
        out = asked.out or Path(folder) / "replies.jsonl"
        begin = time.perf_counter()

        def progress(what: str, done: int, total: int) -> None:
            print(f"{what}: {done} of {total}, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)

        made = synthesise(
            loaded.model, loaded.tokenizer, out=out, max_new_tokens=asked.tokens, temperature=asked.temperature,
            prompts=[row["prompt"] for row in bundled_prompts()[:: asked.each]], suite=suite, cache=False,
            progress=progress,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        replies = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()[1:]]
    tokens = sum(reply["tokens"] for reply in replies)
    kept = [(str(i), "\n".join(m["content"] for m in row["messages"])) for i, row in enumerate(made.rows)]
    print(f"temperature {asked.temperature}: {len(replies)} replies of at most {asked.tokens} tokens")
    print(f"{tokens:,} tokens in {seconds:.0f} s, {tokens / seconds:.0f} tokens/s")
    print("\n".join(made.notes))
    print(f"items of the repertoire in what is kept: {len(find_leaks(suite, kept))}")


if __name__ == "__main__":
    main()
