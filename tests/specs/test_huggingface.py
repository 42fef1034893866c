"""config.json files of every family become the shipped models; bad ones become InputError."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.specs.catalog import get_model, list_models
from moesim.specs.huggingface import UNSUPPORTED, model_from_huggingface
from moesim.specs.model import GroupedQueryAttention, count_parameters, kv_bytes_per_token, weight_bytes

_DATA = Path(__file__).parent / "data"
_OWN = {"name", "huggingface_id", "aliases", "sources", "published", "notes"}
CONFIGS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in sorted(_DATA.glob("*.json"))}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def read(config: dict[str, Any]):
    return model_from_huggingface(config, "here/config.json")


def changed(name: str, **fields: Any) -> dict[str, Any]:
    """The config of `name` with fields replaced; None drops the field."""
    config = copy.deepcopy(CONFIGS[name]) | fields
    return {key: value for key, value in config.items() if value is not None}


def test_every_shipped_model_has_a_config():
    assert set(CONFIGS) == set(list_models())


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_config_gives_the_shipped_model(name: str):
    model, shipped = read(CONFIGS[name]), get_model(name)
    for field in set(model.__struct_fields__) - _OWN:
        assert getattr(model, field) == getattr(shipped, field), field
    assert count_parameters(model) == count_parameters(shipped)
    assert weight_bytes(model) == weight_bytes(shipped)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_config_is_found_by_path(name: str, tmp_path: Path):
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    model = get_model(str(folder))
    assert model.name == "my-model"
    assert set(model.sources.values()) == {str(folder / "config.json")}


def test_names():
    assert read(LLAMA).name == "here"
    named = read(LLAMA | {"_name_or_path": "meta-llama/Llama-3.1-8B"})
    assert (named.name, named.huggingface_id) == ("llama-3.1-8b", "meta-llama/Llama-3.1-8B")
    assert read(LLAMA | {"_name_or_path": "/models/Local"}).huggingface_id == ""
    assert model_from_huggingface(LLAMA, "config.json").name == "llama"


def test_dense_families_match_published_counts():
    """Hugging Face API counts of Llama-3.1-8B, Mistral-7B-v0.3, Qwen2.5-7B and Qwen3-8B."""
    assert count_parameters(read(LLAMA)).total == 8_030_261_248
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32768}
    assert count_parameters(read(mistral)).total == 7_248_023_552
    qwen = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    qwen2 = LLAMA | qwen | {"model_type": "qwen2", "architectures": [], "num_hidden_layers": 28, "vocab_size": 152064}
    assert count_parameters(read(qwen2)).total == 7_615_616_512
    qwen3 = LLAMA | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 36}
    qwen3 |= {"head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936}
    assert count_parameters(read(qwen3)).total == 8_190_735_360


def test_heads_default_to_multi_head_attention():
    config = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert kv_bytes_per_token(read(config)) == 2 * 32 * 32 * 128 * 2


def test_sliding_windows():
    def windows(config: dict[str, Any]) -> tuple[int | None, int]:
        attention = read(config).attention
        assert isinstance(attention, GroupedQueryAttention)
        return attention.sliding_window, attention.sliding_window_layers

    assert windows(changed("mixtral-8x7b", sliding_window=4096)) == (4096, 32)
    assert windows(changed("qwen2-57b-a14b")) == (None, 0)
    assert windows(changed("qwen2-57b-a14b", use_sliding_window=True, max_window_layers=20)) == (131072, 8)
    assert windows(changed("gpt-oss-120b", layer_types=None)) == (128, 18)


def test_sparse_layers_follow_step_and_dense_list():
    model = read(changed("qwen3-30b-a3b", decoder_sparse_step=2, mlp_only_layers=[1]))
    assert (model.num_moe_layers, model.num_dense_layers, model.dense_intermediate_size) == (23, 25, 6144)
    mixed = read(changed("llada-moe-7b", moe_layer_freq=[0, 1] * 8))
    assert (mixed.num_moe_layers, mixed.dense_intermediate_size) == (8, 8192)
    assert read(changed("deepseek-v3", moe_layer_freq=2)).num_moe_layers == 29


def test_number_formats():
    def formats(**fields: Any) -> tuple[str, str, str, str]:
        dtypes = read(changed("mixtral-8x7b", **fields)).dtypes
        return dtypes.attention, dtypes.experts, dtypes.dense, dtypes.embedding

    assert formats(torch_dtype="float16") == ("float16",) * 4
    assert formats(torch_dtype=None, dtype="float32") == ("float32",) * 4
    assert formats(quantization_config={"quant_method": "fp8"}) == ("fp8", "fp8", "fp8", "bfloat16")
    weights = {"num_bits": 8, "type": "float", "strategy": "block"}
    packed = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    assert formats(quantization_config=packed) == ("fp8_block", "fp8_block", "fp8_block", "bfloat16")


def test_flat_copy_of_a_wrapper_is_read_too():
    flat = CONFIGS["kimi-k2.5"]["text_config"] | {"model_type": "kimi_k25", "architectures": None}
    assert count_parameters(read(flat)) == count_parameters(get_model("kimi-k2.5"))


@pytest.mark.parametrize("model_type", [key for key in UNSUPPORTED if "_" in key])
def test_unsupported_families_say_why(model_type: str):
    with pytest.raises(InputError, match=f"'{model_type}' is not supported: .*attention"):
        read({"model_type": model_type})


def test_unknown_families_name_the_supported_ones():
    with pytest.raises(
        InputError, match=r"config.json: model_type 'gemma' is not supported; supported: dbrx, .*qwen3_moe"
    ):
        read({"model_type": "gemma", "architectures": ["GemmaForCausalLM"]})


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mixtral-8x7b", {"hidden_size": None}, r"hidden_size \(or d_model\) is missing; it should be a whole number"),
        ("mixtral-8x7b", {"num_local_experts": "8"}, "num_local_experts is '8'; it should be a whole number"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "moe.top_k is 9, must be at most moe.num_experts = 8"),
        ("mixtral-8x7b", {"num_hidden_layers": True}, "num_hidden_layers is True; it should be a whole number"),
        ("mixtral-8x7b", {"vocab_size": 0}, "vocab_size is 0; it should be a whole number from 1"),
        ("mixtral-8x7b", {"num_key_value_heads": 5}, "num_heads 32 is no multiple of num_kv_heads 5"),
        ("mixtral-8x7b", {"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; it should be true or false"),
        ("mixtral-8x7b", {"torch_dtype": "bloat16"}, "torch_dtype: unknown number format 'bloat16'; did you mean"),
        ("mixtral-8x7b", {"architectures": "Mixtral"}, "architectures is 'Mixtral'; it should be a list of str"),
        ("mixtral-8x7b", {"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method is 'awq'"),
        ("dbrx", {"ffn_config": None}, "ffn_config is missing; it should be an object"),
        ("dbrx", {"ffn_config": {"moe_num_experts": 16}}, "ffn_config.moe_top_k is missing"),
        ("deepseek-v3", {"q_lora_rank": None}, "q_lora_rank is missing"),
        ("gpt-oss-120b", {"layer_types": ["full_attention"]}, "layer_types is .* for every layer"),
        ("llada-moe-7b", {"moe_layer_freq": [1, 2]}, "moe_layer_freq is .* a 0 or 1 for every layer"),
        ("kimi-k2.5", {"text_config": []}, r"text_config is \[\]; it should be an object"),
    ],
)
def test_bad_fields_are_named(name: str, fields: dict[str, Any], message: str):
    with pytest.raises(InputError, match=f"here/config.json: .*{message}"):
        read(changed(name, **fields))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(CONFIGS)))
def test_mutated_configs_raise_nothing_but_input_errors(data: st.DataObject, name: str):
    config = copy.deepcopy(CONFIGS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        target = config
        key = data.draw(st.sampled_from(sorted(target)))
        while isinstance(target[key], dict) and target[key] and data.draw(st.booleans()):
            target = target[key]
            key = data.draw(st.sampled_from(sorted(target)))
        target[key] = data.draw(_JSON)
    try:
        model = read(config)
    except InputError as error:
        assert str(error).startswith("here/config.json: ")
        assert "\n" not in str(error)
    else:
        assert count_parameters(model).total > 0
