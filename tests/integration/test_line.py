"""The line between two models: exact at its ends, the same for an adapter as for its merged weights, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backslide.cure.line import between, open_line
from backslide.errors import ModelError
from backslide.models import load_model, model_fingerprint
from backslide.testing import tiny_model, tiny_tokenizer
from backslide_models import other_model


def shaken(model: Any, seed: int = 1) -> Any:
    """`model` with other weights, in place."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def saved(model: Any, folder: Path, **how: Any) -> str:
    model.save_pretrained(folder, **how)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    return {k: v for f in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(f).items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        one[k].dtype == two[k].dtype and torch.equal(one[k], two[k]) for k in one
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["plain", "sharded", "bfloat16", "qwen2", "gpt2", "mamba"])
def test_the_ends_are_the_base_and_the_tuned_model_bit_for_bit(tmp_path: Path, kind: str) -> None:
    make = {"plain": tiny_model, "sharded": tiny_model, "bfloat16": lambda: tiny_model().bfloat16()}.get(
        kind, lambda: other_model(kind)
    )
    how = {"max_shard_size": "60KB"} if kind == "sharded" else {}
    base, tuned = saved(make(), tmp_path / "base"), saved(shaken(make()), tmp_path / "tuned", **how)
    assert (len(list((tmp_path / "tuned").glob("*.safetensors"))) > 1) is (kind == "sharded")
    line = open_line(base, tuned)
    dtype = "bfloat16" if kind == "bfloat16" else "float32"
    loaded = load_model(tuned, dtype=dtype)
    assert line.exact_start and line.fits(loaded.model)
    for alpha, end in ((0, base), (1, tuned)):
        line.write(tmp_path / str(alpha), alpha)
        assert same(tensors(tmp_path / str(alpha)), tensors(end))
        line.put(loaded.model, alpha)
        assert model_fingerprint(loaded.model) == model_fingerprint(load_model(end, dtype=dtype).model)
    names = {path.name for path in (tmp_path / "tuned").iterdir()}
    assert {path.name for path in (tmp_path / "1").iterdir()} == names, "all that belongs to a model"

    line.write(tmp_path / "half", 0.5)
    old, new, halves = tensors(base), tensors(tuned), tensors(tmp_path / "half")
    for name, value in halves.items():
        assert value.dtype == new[name].dtype
        middle = (old[name].double() + new[name].double()) / 2
        rounding = torch.finfo(value.dtype).eps
        assert torch.allclose(value.double(), middle, rtol=rounding, atol=rounding), name
    line.put(loaded.model, 0.5)
    again = load_model(tmp_path / "half", dtype=dtype)
    assert model_fingerprint(again.model) == model_fingerprint(loaded.model), "measured in memory is what is written"
    shards = [json.loads((Path(p) / "model.safetensors.index.json").read_text())["weight_map"]
              for p in (tuned, tmp_path / "half") if kind == "sharded"]  # fmt: skip
    assert len({json.dumps(s) for s in shards}) == len(shards[:1])


def test_another_dtype_is_that_of_the_tuned_model(tmp_path: Path) -> None:
    base = saved(tiny_model(), tmp_path / "base")
    tuned = saved(shaken(tiny_model()).bfloat16(), tmp_path / "tuned")
    line = open_line(base, tuned)
    assert not line.exact_start
    line.write(tmp_path / "0", 0)
    line.write(tmp_path / "half", 0.5)
    old, new = tensors(base), tensors(tuned)
    for name, value in tensors(tmp_path / "half").items():
        # In fp32: the base is not rounded before.
        assert torch.equal(value, (old[name] + 0.5 * (new[name].float() - old[name])).bfloat16())
        assert torch.equal(tensors(tmp_path / "0")[name], old[name].bfloat16())


def test_rows_that_the_tuned_model_added_to_its_vocabulary_are_its_own(tmp_path: Path) -> None:
    base, larger = saved(tiny_model(), tmp_path / "base"), tiny_model()
    larger.resize_token_embeddings(265)
    line = open_line(base, saved(shaken(larger), tmp_path / "tuned"))
    line.write(tmp_path / "0", 0)
    old, new, at = tensors(base), tensors(tmp_path / "tuned"), tensors(tmp_path / "0")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(at[name][:261], old[name]) and torch.equal(at[name][261:], new[name][261:])
    assert load_model(tmp_path / "0", dtype="float32").model.config.vocab_size == 265 and not line.exact_start


def test_a_head_that_is_tied_in_the_base_begins_as_its_embeddings(tmp_path: Path) -> None:
    base = saved(other_model("qwen2"), tmp_path / "base")
    free = other_model("qwen2")
    free.config.tie_word_embeddings = False
    free.lm_head.weight = torch.nn.Parameter(free.lm_head.weight.detach().clone())
    tuned = saved(shaken(free), tmp_path / "tuned")
    assert "lm_head.weight" in tensors(tuned) and "lm_head.weight" not in tensors(base)
    line = open_line(base, tuned)
    line.write(tmp_path / "0", 0)
    assert torch.equal(tensors(tmp_path / "0")["lm_head.weight"], tensors(base)["model.embed_tokens.weight"])
    with pytest.raises(ModelError, match="no line|is tied"):
        open_line(tuned, base)


def test_experts_that_are_fused_when_loaded_are_written_and_loaded(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    def make() -> Any:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            MixtralConfig(vocab_size=261, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=1, num_local_experts=2, pad_token_id=1,
                          eos_token_id=0, bos_token_id=None)
        )  # fmt: skip

    base, tuned = saved(make(), tmp_path / "base"), saved(shaken(make()), tmp_path / "tuned")
    line = open_line(base, tuned)
    assert not line.fits(load_model(tuned, dtype="float32").model)
    line.write(tmp_path / "0", 0)
    assert model_fingerprint(load_model(tmp_path / "0", dtype="float32").model) == model_fingerprint(
        load_model(base, dtype="float32").model
    )


def adapter(tmp_path: Path, base: str, name: str = "adapter", **config: Any) -> tuple[str, Any]:
    """A saved LoRA adapter with weights in all its parts, and the model that it is on."""
    from peft import LoraConfig, get_peft_model

    fields: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "up_proj"],
        "task_type": "CAUSAL_LM",
    }
    torch.manual_seed(0)
    model = get_peft_model(load_model(base, dtype="float32").model, LoraConfig(**{**fields, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / name)
    row = json.loads((tmp_path / name / "adapter_config.json").read_text())
    (tmp_path / name / "adapter_config.json").write_text(json.dumps({**row, "base_model_name_or_path": base}))
    tiny_tokenizer().save_pretrained(tmp_path / name)
    return str(tmp_path / name), model


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA, patterns": {"use_rslora": True, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "bias of B": {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
    "modules to save": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*lora_B.bias.*:UserWarning")  # PEFT 0.21 takes biases for matrices when it saves
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_an_adapters_line_is_that_of_its_merged_weights(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    # Qwen's projections have biases.
    base_folder = saved(other_model("qwen2"), tmp_path / "base") if kind == "bias of B" else str(tiny_folder)
    tuned, model = adapter(tmp_path, base_folder, **CONFIGS[kind])
    line = open_line(base_folder, tuned)
    loaded = load_model(tuned, dtype="float32")
    assert line.fits(loaded.model)
    whole = open_line(base_folder, saved(model.merge_and_unload(), tmp_path / "merged"))
    tokens = torch.arange(5, 60)[None]
    for alpha in (0, 0.375, 1):
        line.put(loaded.model, alpha)
        line.write(tmp_path / "at", alpha)
        whole.write(tmp_path / "whole", alpha)
        again = load_model(tmp_path / "at", dtype="float32").model
        other = load_model(tmp_path / "whole", dtype="float32").model
        with torch.no_grad():
            here, there, merged = (m(input_ids=tokens).logits for m in (loaded.model, again, other))
        assert torch.equal(here, there), "measured in memory is what is written"
        assert torch.allclose(there, merged, atol=1e-4), (alpha, (there - merged).abs().max())
        if alpha == 1:
            assert same(tensors(tmp_path / "at"), tensors(tuned))
        if alpha == 0:
            base = load_model(base_folder, dtype="float32").model
            with torch.no_grad():
                assert torch.equal(there, base(input_ids=tokens).logits)
    assert (tmp_path / "at" / "adapter_config.json").read_text() == (Path(tuned) / "adapter_config.json").read_text()


def test_trained_biases_lie_on_the_line_to_the_bases_own(tmp_path: Path) -> None:
    base = saved(other_model("qwen2"), tmp_path / "base")
    tuned, _ = adapter(tmp_path, base, bias="all")
    line = open_line(base, tuned)
    line.write(tmp_path / "half", 0.5)
    start, end, half = tensors(base), tensors(tuned), tensors(tmp_path / "half")
    biases = [name for name in end if name.endswith(".bias") and "lora" not in name]
    assert biases
    for name in biases:
        own = start[name.removeprefix("base_model.model.").replace(".base_layer.", ".")]
        assert torch.equal(half[name], own + 0.5 * (end[name] - own))
    loaded = load_model(tuned, dtype="float32")
    line.put(loaded.model, 0.5)
    again = load_model(tmp_path / "half", dtype="float32")
    assert model_fingerprint(loaded.model) == model_fingerprint(again.model)


def test_an_adapter_goes_onto_the_base_that_was_named(tmp_path: Path, tiny_folder: Path) -> None:
    tuned, _ = adapter(tmp_path, str(tiny_folder))
    tiny_folder_here = tmp_path / "moved"
    saved(tiny_model(), tiny_folder_here)
    line = open_line(str(tiny_folder_here), tuned)
    line.write(tmp_path / "half", 0.5)
    config = json.loads((tmp_path / "half" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder_here.resolve())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "type IA3"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ],
)
def test_adapters_without_a_scale_are_refused_with_the_mend(
    tmp_path: Path, tiny_folder: Path, change: dict[str, Any], said: str
) -> None:
    tuned, _ = adapter(tmp_path, str(tiny_folder))
    config = json.loads((Path(tuned) / "adapter_config.json").read_text())
    (Path(tuned) / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=f"{said}.*merge it into its base"):
        open_line(str(tiny_folder), tuned)


def test_what_has_no_line_is_refused_in_one_line(tmp_path: Path, tiny_folder: Path) -> None:
    base = str(tiny_folder)
    other = saved(other_model("qwen2"), tmp_path / "other")
    wide = saved(tiny_model(width=64), tmp_path / "wide")
    deep = saved(tiny_model(layers=3), tmp_path / "deep")
    tuned, _ = adapter(tmp_path, base)
    cases = [
        (base, other, "architecture qwen2"),
        (base, wide, r"is \[\d+.*no line"),
        (base, deep, "layers.2.*has not"),
        (deep, base, "has no model.layers.2"),
        (tuned, base, "is an adapter"),
        (base, str(tmp_path / "nowhere"), "no such model folder"),
    ]
    smaller = tiny_model()
    smaller.resize_token_embeddings(200)
    cases.append((base, saved(smaller, tmp_path / "smaller"), "no line"))
    for first, second, said in cases:
        with pytest.raises(ModelError, match=said) as bad:
            open_line(first, second)
        assert "\n" not in str(bad.value)


def test_files_from_outside_lead_nowhere_else(tmp_path: Path, tiny_folder: Path) -> None:
    tuned = tmp_path / "tuned"
    saved(shaken(tiny_model()), tuned, max_shard_size="60KB")
    index = tuned / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    for value, said in (("../base/model.safetensors", "beside it"), (None, "beside it")):
        index.write_text(json.dumps({**content, "weight_map": {**content["weight_map"], name: value}}))
        with pytest.raises(ModelError, match=said):
            open_line(str(tiny_folder), str(tuned))
    index.write_text(
        json.dumps({**content, "weight_map": {**content["weight_map"], "gone": content["weight_map"][name]}})
    )
    with pytest.raises(ModelError, match="names gone"):
        open_line(str(tiny_folder), str(tuned))
    index.unlink()
    whole = load_file(next(tuned.glob("*.safetensors")))
    save_file(whole, tuned / "model.safetensors", metadata={"format": "pt"})
    (tuned / "model.safetensors").write_bytes((tuned / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ModelError, match="cannot be read"):
        open_line(str(tiny_folder), str(tuned))


def layout(folder: Path, kind: str) -> Any:
    """The folder of the second of two models, with what the first, in shards, has left there; and that model."""
    saved(tiny_model(seed=7), folder, max_shard_size="60KB")
    model = tiny_model(seed=1)
    if kind == "index left":
        saved(model, folder)  # as transformers does: old shards go, their index stays
    elif kind == "shards left":
        model.save_pretrained(folder.with_name("one"))
        shutil.copy(folder.with_name("one") / "model.safetensors", folder)
    else:
        size = {"max_shard_size": "60KB"} if kind == "named shards" else {}
        model.save_pretrained(folder.with_name("one"), variant="mine", **size)
        for path in folder.with_name("one").glob("model*"):
            shutil.copy(path, folder)
        (own,) = [n for n in ("model.mine.safetensors", "model.safetensors.index.mine.json") if (folder / n).is_file()]
        name = own.replace(".index.mine.json", "-mine.safetensors.index.json")
        (folder / own).rename(folder / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    return model


@pytest.mark.parametrize("kind", ["index left", "shards left", "named file", "named shards"])
def test_of_several_files_of_weights_those_are_read_that_transformers_reads(tmp_path: Path, kind: str) -> None:
    model = layout(tmp_path / "base", kind)
    assert list((tmp_path / "base").glob("*index.json")), "what is left"
    loaded = load_model(tmp_path / "base", dtype="float32").model
    assert model_fingerprint(loaded) == model_fingerprint(model)
    tuned = saved(shaken(tiny_model(seed=1)), tmp_path / "tuned")
    line = open_line(str(tmp_path / "base"), tuned)
    for name, value in model.state_dict().items():
        assert torch.equal(line.tensor(name, 0), value), name
    # Written as the tuned model, it brings along no index but its own.
    back = open_line(tuned, str(tmp_path / "base"))
    back.write(tmp_path / "half", 0.5)
    assert len(list((tmp_path / "half").glob("*index.json"))) == (kind == "named shards")
    half = load_model(tmp_path / "half", dtype="float32").model
    for name, value in half.state_dict().items():
        assert torch.equal(value, back.tensor(name, 0.5)), name


@pytest.mark.parametrize("name", ["../base/model.safetensors", "gone.safetensors", "model.bin", 3])
def test_a_file_of_weights_that_a_configuration_names_lies_beside_it(
    tmp_path: Path, tiny_folder: Path, name: object
) -> None:
    tuned = Path(saved(shaken(tiny_model()), tmp_path / "tuned"))
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    with pytest.raises(ModelError, match="config.json: transformers_weights is .*; copy that file there"):
        open_line(str(tiny_folder), str(tuned))


def test_numbers_that_are_not_finite_stay_so_and_the_ends_do_not_spread_them() -> None:
    start, end = torch.tensor([1.0, 2.0]), torch.tensor([float("nan"), 4.0])
    assert torch.equal(between(start, end, 0), start)
    assert between(start, end, 0.25).isnan().tolist() == [True, False] and between(start, end, 0.25)[1] == 2.5
    assert between(torch.tensor([1, 2]), torch.tensor([3, 4]), 0.5).tolist() == [3, 4]
