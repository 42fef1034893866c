from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hw_validation.dummy_models import make_config, write_model_folder
from moesim.errors import InputError
from moesim.specs.model import Model

MOE: dict[str, Any] = {"num_experts": 8, "top_k": 2, "intermediate_size": 64, "shared_intermediate_size": 128}
GQA: dict[str, Any] = {"type": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
MLA: dict[str, Any] = {
    "type": "mla",
    "num_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
FAMILIES = [
    ("allenai/OLMoE-1B-7B-0924", "OlmoeForCausalLM"),
    ("Qwen/Qwen1.5-MoE-A2.7B", "Qwen2MoeForCausalLM"),
    ("Qwen/Qwen2-57B-A14B", "Qwen2MoeForCausalLM"),
    ("mistralai/Mixtral-8x7B-v0.1", "MixtralForCausalLM"),
    ("databricks/dbrx-instruct", "DbrxForCausalLM"),
    ("deepseek-ai/DeepSeek-V3", "DeepseekV3ForCausalLM"),
]


def model(huggingface_id: str, **fields: Any) -> Model:
    """A small model of the family of `huggingface_id`."""
    is_mla = "DeepSeek" in huggingface_id
    document = {
        "name": "small",
        "huggingface_id": huggingface_id,
        "hidden_size": 128,
        "num_layers": 6,
        "vocab_size": 512,
        "attention": MLA if is_mla else GQA,
        "moe": MOE,
        "num_dense_layers": 2 if is_mla else 0,
        "num_moe_layers": 4 if is_mla else 6,
        "dense_intermediate_size": 256 if is_mla else 0,
        "max_position_embeddings": 4096,
        "dtypes": {"experts": "fp8_block"} if is_mla else {},
        "sources": {},
    }
    return msgspec.convert(document | fields, Model)


@pytest.mark.parametrize(("huggingface_id", "architecture"), FAMILIES)
def test_every_family_states_its_architecture(huggingface_id: str, architecture: str, tmp_path: Path) -> None:
    folder = write_model_folder(model(huggingface_id), tmp_path / "small", num_layers=3)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert 3 in (config.get("num_hidden_layers"), config.get("n_layers"))
    assert config["vocab_size"] == 512


def test_deepseek_keeps_its_blocks_of_fp8_unless_told_otherwise() -> None:
    deepseek = model("deepseek-ai/DeepSeek-V3")
    assert make_config(deepseek)["quantization_config"]["weight_block_size"] == [128, 128]
    assert "quantization_config" not in make_config(deepseek, bf16=True)
    assert make_config(deepseek)["n_shared_experts"] == 2
    assert make_config(deepseek)["first_k_dense_replace"] == 2


@pytest.mark.parametrize("layers", [0, 2, 7])
def test_impossible_layer_counts_are_refused(layers: int) -> None:
    with pytest.raises(InputError, match=f"num_layers is {layers}; small can be built with 3 to 6"):
        make_config(model("deepseek-ai/DeepSeek-V3"), layers)


def test_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no config\.json template for some/model; known families: olmoe"):
        make_config(model("some/model"))


def test_configurations_are_accepted_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for huggingface_id, _ in FAMILIES:
        folder = write_model_folder(model(huggingface_id), tmp_path / huggingface_id.replace("/", "_"))
        assert transformers.AutoConfig.from_pretrained(folder).hidden_size == 128
