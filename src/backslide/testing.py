"""Shipped fakes for tests: a tiny chat model and tokenizer that are made in memory, in a second, from a seed.

They know nothing; they are for speed. What a real model does is tested on a real one.
"""

from __future__ import annotations

from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer(*, chat: bool = True, pad: bool = True) -> Any:
    """A tokenizer of single bytes, with a chat template and a padding token unless they are not wanted."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate([*special, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>" if pad else None, model_max_length=512
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(*, seed: int = 0, layers: int = 2, width: int = 32) -> Any:
    """A Llama of some 30,000 random weights, over the vocabulary of `tiny_tokenizer`; on the CPU, in fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=261,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            # Larger than usual, so that choices differ by more than rounding.
            initializer_range=0.3,
            eos_token_id=0,
            pad_token_id=1,
            bos_token_id=None,
        )
        model = LlamaForCausalLM(config)
    return model.eval()
