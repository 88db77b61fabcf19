"""Tiny random models of several architectures, over the vocabulary of `backslide.testing.tiny_tokenizer`."""

from __future__ import annotations

from typing import Any

import torch


def other_model(kind: str) -> Any:
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, MambaConfig, MistralConfig, Qwen2Config

    sizes = {
        "vocab_size": 261, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
        "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    gpt = {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "tie_word_embeddings": True}
    state = {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "initializer_range": 0.3, "expand": 2}
    config = {
        "qwen2": lambda: Qwen2Config(**sizes, tie_word_embeddings=True),
        "mistral": lambda: MistralConfig(**sizes, sliding_window=16),
        "gpt2": lambda: GPT2Config(vocab_size=261, eos_token_id=0, bos_token_id=0, initializer_range=0.3, **gpt),
        # The first layer slides, the second does not.
        "gemma3": lambda: Gemma3TextConfig(
            **{**sizes, "bos_token_id": 2},
            head_dim=8,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "mamba": lambda: MambaConfig(vocab_size=261, eos_token_id=0, pad_token_id=1, bos_token_id=0, **state),
    }[kind]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()
