"""What has no line is refused before anything is loaded, in one line that says what, with which value, and the mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from backslide.cure.line import open_line
from backslide.cure.repair import repair
from backslide.errors import ModelError
from backslide.models import load_model
from backslide.suite.suite import Suite
from backslide.testing import tiny_model, tiny_tokenizer
from backslide_models import other_model
from repair_models import WIDE, adapter, saved


def refusal(base: str, tuned: str) -> str:
    with pytest.raises(ModelError) as bad:
        open_line(base, tuned)
    said = str(bad.value)
    assert "\n" not in said and said.startswith(f"{tuned}: ")
    return said


def resized(rows: int) -> Any:
    model = tiny_model()
    torch.manual_seed(0)
    model.resize_token_embeddings(rows)
    return model


def test_models_that_are_no_two_of_a_kind_are_told_apart_by_their_values(tmp_path: Path) -> None:
    base = saved(tiny_model(), tmp_path / "base")
    mend = "they have no line: name the model that it was trained from"
    other = refusal(base, saved(other_model("qwen2"), tmp_path / "other"))
    assert f"is of the architecture qwen2, and {base} of llama; {mend}" in other
    smaller = refusal(base, saved(resized(200), tmp_path / "smaller"))
    assert f"its lm_head.weight is [200, 32], and that of {base} [261, 32]; {mend}" in smaller
    deep = saved(tiny_model(layers=3), tmp_path / "deep")
    assert f"has model.layers.2.input_layernorm.weight, which {base} has not; {mend}" in refusal(base, deep)
    assert f"has no model.layers.2.input_layernorm.weight, which {deep} has; {mend}" in refusal(deep, base)


def test_a_tied_head_has_no_line_to_a_free_one_until_it_is_freed(tmp_path: Path) -> None:
    tuned = other_model("qwen2")
    free = other_model("qwen2")
    for model in (tuned, free):
        model.config.tie_word_embeddings = model is tuned
    free.lm_head.weight = torch.nn.Parameter(free.lm_head.weight.detach() * 2)
    base = saved(free, tmp_path / "base")
    said = refusal(base, saved(tuned, tmp_path / "tuned"))
    assert f"its lm_head.weight is tied to model.embed_tokens.weight, and that of {base} is a tensor of its own" in said
    assert "name the model that it was trained from, or save it with one of its own (tie_word_embeddings=False)" in said
    tuned.config.tie_word_embeddings = False
    tuned.lm_head.weight = torch.nn.Parameter(tuned.lm_head.weight.detach().clone())
    assert open_line(base, saved(tuned, tmp_path / "tuned")).exact_start, "the mend that was named"


GROWN: dict[str, dict[str, Any]] = {
    "saved beside LoRA": {},
    "whole modules": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "whole modules alone": {"modules_to_save": ["embed_tokens", "lm_head"], "save": False},
    "LoRA on both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "LoRA on the embeddings alone": {"target_modules": ["q_proj", "embed_tokens"], "save": False},
    "LoRA on the head alone": {"target_modules": ["q_proj", "lm_head"], "save": False},
}


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning")
@pytest.mark.parametrize("kind", list(GROWN))
def test_an_adapter_on_a_base_that_was_resized_is_refused_until_it_is_merged(tmp_path: Path, kind: str) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base, config = saved(tiny_model(), tmp_path / "base"), dict(GROWN[kind])
    save = config.pop("save", True)
    model = get_peft_model(
        resized(264), LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **config})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned = saved(model, tmp_path / "tuned", save_embedding_layers=save)
    row = json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())
    (tmp_path / "tuned" / "adapter_config.json").write_text(json.dumps({**row, "base_model_name_or_path": base}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(load_model(base, dtype="float32").model, tuned)
    said = refusal(base, tuned)
    assert f"is of 264 tokens, and {base} has 261" in said and "resize_token_embeddings" in said
    assert "merge" in said and said.endswith("and repair the merged folder")
    with pytest.raises(ModelError, match="is of 264 tokens"):
        repair(base, tuned, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.repair").exists()

    # The mend that was named.
    merged = PeftModel.from_pretrained(resized(264), tuned).merge_and_unload()
    line = open_line(base, saved(merged, tmp_path / "merged"))
    line.write(tmp_path / "half", 0.5)
    assert line.grown and load_model(tmp_path / "half", dtype="float32").model.config.vocab_size == 264


def test_an_adapter_with_whole_modules_under_two_names_has_a_line(tmp_path: Path) -> None:
    base = saved(tiny_model(), tmp_path / "base")
    tuned = adapter(tmp_path / "tuned", base, target_modules=["q_proj"], modules_to_save=["lm_head"])
    # As PEFT writes it where embeddings are to be saved as well.
    from safetensors.torch import load_file, save_file

    file = tmp_path / "tuned" / "adapter_model.safetensors"
    tensors = load_file(file)
    head = tensors["base_model.model.lm_head.weight"]
    save_file({**tensors, "base_model.model.lm_head.modules_to_save.weight": head.clone()}, file)
    line = open_line(base, tuned)
    half = line.tensor("base_model.model.lm_head.modules_to_save.weight", 0.5)
    assert torch.equal(half, line.tensor("base_model.model.lm_head.weight", 0.5)) and not torch.equal(half, head)


def test_an_adapter_that_does_not_load_is_named_as_the_user_named_it(tmp_path: Path, known_suite: Suite) -> None:
    base = saved(tiny_model(), tmp_path / "base")
    tuned = adapter(tmp_path / "tuned", base)
    row = json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())
    (tmp_path / "tuned" / "adapter_config.json").write_text(json.dumps({**row, "r": 8}))
    tiny_tokenizer().save_pretrained(tuned)
    with pytest.raises(ModelError, match="its weights do not fit") as bad:
        repair(base, tuned, tmp_path / "out", suite=known_suite, dtype="float32", **WIDE)
    assert str(bad.value).startswith(f"{tuned}: ") and ".out.repair" not in str(bad.value)
