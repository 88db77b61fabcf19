"""What writing a point of a large model takes: a shard, not the model; also run as a script, in a process of its own.

python test_line_memory.py FOLDER
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backslide.cure.line import open_line
from backslide.testing import tiny_model

LAYERS, WIDTH, INNER = 6, 1024, 2816
MIB = 1 << 20


def large(folder: Path, shards: int) -> list[int]:
    """The folder of a Llama of 308 MB, straight from tensors, in so many files; and their sizes."""
    from transformers import LlamaConfig

    square, wide = (WIDTH, WIDTH), (INNER, WIDTH)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (261, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        for name, shape in {"self_attn.q_proj": square, "self_attn.k_proj": square, "self_attn.v_proj": square,
                            "self_attn.o_proj": square, "mlp.gate_proj": wide, "mlp.up_proj": wide,
                            "mlp.down_proj": wide[::-1], "input_layernorm": (WIDTH,),
                            "post_attention_layernorm": (WIDTH,)}.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    LlamaConfig(vocab_size=261, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
                num_attention_heads=16, tie_word_embeddings=True).save_pretrained(folder)  # fmt: skip
    whole, before, where = sum(math.prod(shape) for shape in shapes.values()), 0, {}
    for name, shape in shapes.items():
        where[name] = f"model-{before * shards // whole:05}.safetensors"
        before += math.prod(shape)
    files = sorted(set(where.values()))
    for file in files:
        save_file(
            {name: torch.ones(shapes[name]) for name in shapes if where[name] == file}, folder / file, {"format": "pt"}
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return [(folder / file).stat().st_size for file in files]


def anonymous(process: int | str) -> int:
    """Bytes of memory that a process holds itself.

    Not its resident set: pages of mapped weights count there, whole models of them, though they are the files' own and
    the system takes them back whenever it needs room.
    """
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(process)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is told apart by /proc")
def test_a_point_of_a_large_model_is_written_in_the_memory_of_a_shard(tmp_path: Path) -> None:
    sizes = large(tmp_path / "tuned", 12)
    # What the values are is nothing to memory: the same files, under the names of another model.
    shutil.copytree(tmp_path / "tuned", tmp_path / "base", copy_function=os.link)
    assert len(sizes) == 12 and 300e6 < sum(sizes) < 400e6
    command = [sys.executable, __file__, str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    peak = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        assert writer.stdout.readline() == "warm\n"
        before = anonymous(writer.pid)
        print("go", file=writer.stdin, flush=True)
        # From outside: a thread of its own would wait where the writer does not let go of the interpreter.
        while writer.poll() is None:
            try:
                peak = max(peak, anonymous(writer.pid))
            except (OSError, ProcessLookupError):
                break
            time.sleep(0.002)
    assert writer.returncode == 0
    grown = peak - before
    print(f"model {sum(sizes) / MIB:.0f} MiB, largest shard {max(sizes) / MIB:.0f} MiB, grown {grown / MIB:.0f} MiB")
    # Not nothing, or the measurement is none.
    assert max(sizes) * 0.5 < grown < 2 * max(sizes) + 32 * MIB < sum(sizes) / 3
    assert [file.stat().st_size for file in sorted((tmp_path / "half").glob("*.safetensors"))] == sizes


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    # What is imported and set up on the way is no part of it.
    tiny_model().save_pretrained(folder / "small")
    open_line(str(folder / "small"), str(folder / "small")).write(folder / "small half", 0.5)
    print("warm", flush=True)
    sys.stdin.readline()
    line = open_line(str(folder / "base"), str(folder / "tuned"))
    line.fingerprints()
    line.write(folder / "half", 0.5)
