"""Folders with a real config.json and no weights, for engines that can fill a model with random numbers.

Architecture comes from configs/models; what a config.json needs beyond it (RoPE base, normalisation flags)
is stated here by family, as in the published config.json of the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moesim.errors import InputError
from moesim.specs.model import GroupedQueryAttention, MixtureOfExperts, Model, MultiHeadLatentAttention

Config = dict[str, Any]
_FP8_BLOCKS: Config = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "weight_block_size": [128, 128],
    "activation_scheme": "dynamic",
}
_DEEPSEEK_ROPE: Config = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}


def write_model_folder(model: Model, folder: Path, num_layers: int | None = None, bf16: bool = False) -> Path:
    """Write `folder`/config.json for `model` and return the folder.

    `num_layers` builds that many of its layers only; `bf16` leaves a native quantisation out.

    Raises:
        InputError: a family without a template, or a layer count that it cannot have.
    """
    config = make_config(model, num_layers, bf16)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "config.json"
    draft = folder / f"config.{os.getpid()}"  # several ranks write at once, and none may read a half
    draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    draft.replace(target)
    return folder


def make_config(model: Model, num_layers: int | None = None, bf16: bool = False) -> Config:
    """The config.json of `model`, with `num_layers` of its layers (None: all)."""
    layers = model.num_layers if num_layers is None else num_layers
    if not model.num_dense_layers < layers <= model.num_layers:
        raise InputError(
            f"num_layers is {layers}; {model.name} can be built with {model.num_dense_layers + 1} to {model.num_layers}"
        )
    lowered = model.huggingface_id.lower()
    for mark, build in _FAMILIES.items():
        if mark in lowered:
            config = build(model, layers)
            if bf16:
                config.pop("quantization_config", None)
            return config
    raise InputError(f"no config.json template for {model.huggingface_id}; known families: {', '.join(_FAMILIES)}")


def _common(model: Model, layers: int, architecture: str, model_type: str) -> Config:
    """Fields that every family but DBRX names alike."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": model.attention.num_heads,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "tie_word_embeddings": model.tied_embeddings,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }


def _olmoe(model: Model, layers: int) -> Config:
    moe, attention = _parts(model)
    return _common(model, layers, "OlmoeForCausalLM", "olmoe") | {
        "num_key_value_heads": attention.num_kv_heads,
        "intermediate_size": moe.intermediate_size,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": False,
        "clip_qkv": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }


def _qwen2_moe(model: Model, layers: int) -> Config:
    moe, attention = _parts(model)
    return _common(model, layers, "Qwen2MoeForCausalLM", "qwen2_moe") | {
        "num_key_value_heads": attention.num_kv_heads,
        "intermediate_size": model.dense_intermediate_size or moe.shared_intermediate_size,
        "moe_intermediate_size": moe.intermediate_size,
        "shared_expert_intermediate_size": moe.shared_intermediate_size,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    }


def _qwen3_moe(model: Model, layers: int) -> Config:
    moe, attention = _parts(model)
    return _common(model, layers, "Qwen3MoeForCausalLM", "qwen3_moe") | {
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": moe.top_k * moe.intermediate_size,
        "moe_intermediate_size": moe.intermediate_size,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    }


def _mixtral(model: Model, layers: int) -> Config:
    moe, attention = _parts(model)
    return _common(model, layers, "MixtralForCausalLM", "mixtral") | {
        "num_key_value_heads": attention.num_kv_heads,
        "intermediate_size": moe.intermediate_size,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    }


def _dbrx(model: Model, layers: int) -> Config:
    moe, attention = _parts(model)
    return {
        "architectures": ["DbrxForCausalLM"],
        "model_type": "dbrx",
        "d_model": model.hidden_size,
        "n_layers": layers,
        "n_heads": attention.num_heads,
        "max_seq_len": model.max_position_embeddings,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_embeddings,
        "torch_dtype": "bfloat16",
        "attn_config": {"clip_qkv": 8, "kv_n_heads": attention.num_kv_heads, "rope_theta": 500000},
        "ffn_config": {
            "ffn_hidden_size": moe.intermediate_size,
            "moe_num_experts": moe.num_experts,
            "moe_top_k": moe.top_k,
            "moe_normalize_expert_weights": 1.0,
        },
    }


def _deepseek_v3(model: Model, layers: int) -> Config:
    moe, attention = model.moe, model.attention
    if moe is None or not isinstance(attention, MultiHeadLatentAttention):
        raise InputError(f"{model.name}: a DeepSeek-V3 config.json needs MLA attention and experts")
    config = _common(model, layers, "DeepseekV3ForCausalLM", "deepseek_v3") | {
        "num_key_value_heads": attention.num_heads,
        "q_lora_rank": attention.q_lora_rank,
        "kv_lora_rank": attention.kv_lora_rank,
        "qk_nope_head_dim": attention.qk_nope_head_dim,
        "qk_rope_head_dim": attention.qk_rope_head_dim,
        "v_head_dim": attention.v_head_dim,
        "intermediate_size": model.dense_intermediate_size,
        "moe_intermediate_size": moe.intermediate_size,
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": moe.shared_intermediate_size // moe.intermediate_size,
        "num_experts_per_tok": moe.top_k,
        "first_k_dense_replace": model.num_dense_layers,
        "moe_layer_freq": 1,
        "n_group": moe.expert_groups,
        "topk_group": moe.expert_groups_kept,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": _DEEPSEEK_ROPE,
    }
    return config | ({"quantization_config": _FP8_BLOCKS} if model.dtypes.experts.startswith("fp8") else {})


def _parts(model: Model) -> tuple[MixtureOfExperts, GroupedQueryAttention]:
    if model.moe is None or not isinstance(model.attention, GroupedQueryAttention):
        raise InputError(f"{model.name}: this config.json needs grouped-query attention and experts")
    return model.moe, model.attention


_FAMILIES: dict[str, Callable[[Model, int], Config]] = {
    "olmoe": _olmoe,
    "qwen1.5-moe": _qwen2_moe,
    "qwen2-57b": _qwen2_moe,
    "qwen3-30b-a3b": _qwen3_moe,
    "mixtral-8x7b": _mixtral,
    "dbrx": _dbrx,
    "deepseek-v3": _deepseek_v3,
}
