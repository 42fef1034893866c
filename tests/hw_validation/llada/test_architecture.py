"""The published architectures: parameter totals, config.json, and what is refused."""

# ruff: noqa: E402 - what is imported depends on what is installed

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from hw_validation.llada.config import PRESETS, InputError, from_checkpoint, from_hf_config, preset
from hw_validation.llada.floor import Ceilings, count_parameters, forward_floor
from hw_validation.llada.model import Llada
from hw_validation.llada.weights import pieces

LLADA_8B = {
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "embedding_size": 126464,
    "vocab_size": 126464,
    "mask_token_id": 126336,
    "rope_theta": 500000.0,
    "max_sequence_length": 4096,
    "rms_norm_eps": 1e-05,
    "block_type": "llama",
    "weight_tying": False,
    "include_bias": False,
}
LLADA_MOE = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 157184,
    "rope_theta": 50000,
    "max_position_embeddings": 8192,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "expert_intermediate_size": 1024,
    "dense_intermediate_size": 8192,
    "shared_expert_intermediate_size": None,
    "moe_layer_freq": [1] * 16,
    "qk_layernorm": True,
    "norm_topk_prob": None,
    "partial_rotary_factor": 1,
    "rms_norm_eps": 1e-05,
}


@pytest.mark.parametrize(("name", "parameters"), [("llada-8b", 8_015_581_184), ("llada-moe-7b-a1b", 7_356_880_896)])
def test_parameter_totals(name, parameters):
    model = Llada(preset(name), torch.device("meta"), torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert count_parameters(preset(name)) == parameters


def test_checkpoint_names():
    dense = {piece.name: piece.shape for piece in pieces(preset("llada-8b"))}
    assert dense["model.transformer.blocks.31.ff_proj.weight"] == (12288, 4096)
    assert dense["model.transformer.ff_out.weight"] == (126464, 4096)
    moe = {piece.name: piece.shape for piece in pieces(preset("llada-moe-7b"))}
    assert moe["model.layers.15.mlp.experts.63.down_proj.weight"] == (2048, 1024)
    assert moe["model.layers.0.self_attn.q_norm.weight"] == (128,)


@pytest.mark.parametrize(("values", "name"), [(LLADA_8B, "llada-8b"), (LLADA_MOE, "llada-moe-7b-a1b")])
def test_config_json_gives_the_preset(values, name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps(values))
    assert from_checkpoint(tmp_path / name) == PRESETS[name]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"shared_expert_intermediate_size": 512}, "shared_expert"),
        ({"moe_layer_freq": [0] + [1] * 15}, "moe_layer_freq"),
        ({"moe_router_score_function": "sigmoid"}, "sigmoid"),
    ],
)
def test_unsupported_configs_are_refused(change, word):
    with pytest.raises(InputError, match=word):
        from_hf_config({**LLADA_MOE, **change}, "x")


def test_missing_field_is_named():
    with pytest.raises(InputError, match="num_experts_per_tok"):
        from_hf_config({k: v for k, v in LLADA_MOE.items() if k != "num_experts_per_tok"}, "x")


def test_unknown_model_suggests():
    with pytest.raises(InputError, match="did you mean llada-moe-7b-a1b"):
        preset("llada-moe-7b-a1")


def test_floor_of_the_reference_setting():
    moe = forward_floor(preset("llada-moe-7b"), 1, 188, 32, 2)
    assert moe.weight_bytes == 2 * 7_356_880_896
    assert moe.milliseconds(Ceilings()) == pytest.approx(3.42, abs=0.01)
    dense = forward_floor(preset("llada-8b"), 1, 188, 32, 2)
    assert dense.milliseconds(Ceilings()) == pytest.approx(3.73, abs=0.01)
    assert dense.flops == pytest.approx(188 * 2 * (8_015_581_184 - 2 * 126464 * 4096), rel=0.03)
