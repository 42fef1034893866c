"""A Hugging Face config.json becomes a Model: one reader per model family, all reads named in errors.

Field names follow the config.json of each family in transformers or in the model's own repository. What a
config leaves out takes the default of the family's configuration class.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moesim.errors import InputError
from moesim.specs.huggingface_config import Config
from moesim.specs.huggingface_dtypes import dtypes_of
from moesim.specs.model import (
    Attention,
    Diffusion,
    GroupedQueryAttention,
    MixtureOfExperts,
    Model,
    MultiHeadLatentAttention,
    check_model,
)

_GATED_DELTA = "gated-delta linear attention, whose state kernels moesim does not model"
_QWEN35 = f"45 of its 60 layers are {_GATED_DELTA}"
_SPARSE = "DeepSeek sparse attention with a top-2048 indexer, which moesim does not model"
UNSUPPORTED: dict[str, str] = {
    "qwen3_5_moe": _QWEN35,
    "qwen3_5_moe_text": _QWEN35,
    "qwen3.5-397b-a17b": _QWEN35,
    "Qwen/Qwen3.5-397B-A17B": _QWEN35,
    "qwen3_next": f"most of its layers are {_GATED_DELTA}",
    "glm_moe_dsa": f"it uses {_SPARSE}",
    "glm-5": f"it uses {_SPARSE}",
    "zai-org/GLM-5": f"it uses {_SPARSE}",
    "deepseek_v32": f"it uses {_SPARSE}",
}
"""Why a model is refused, by model_type, name and Hugging Face id."""

_MAX_LAYERS = 10_000


def model_from_huggingface(config: dict[str, Any], where: str) -> Model:
    """Read a Hugging Face config.json that was parsed to `config` from the file `where`.

    Multimodal wrappers are read through their `text_config`; the counts leave the other towers out.

    Raises:
        InputError: an unknown or unsupported family, or a field that is missing, mistyped or impossible.
    """
    document = _unwrapped(Config(config, where))
    family = _family(document)
    fields = _shared_fields(document) | _FAMILIES[family](document)
    fields.setdefault("num_dense_layers", fields["num_layers"] - fields.get("num_moe_layers", 0))
    origin = Config(config, where).text("_name_or_path", "name_or_path")
    model = Model(
        name=_name(origin, where) or family,
        huggingface_id=origin if origin.count("/") == 1 and origin[0] not in "./" else "",
        dtypes=dtypes_of(document),
        sources=dict.fromkeys((*fields, "dtypes"), where),
        **fields,
    )
    return check_model(model, where)


def _unwrapped(config: Config) -> Config:
    if not config.has("text_config"):
        return config
    return Config(config.values | config.section("text_config").values, config.where)


def _name(origin: str, where: str) -> str:
    return (Path(origin).name or Path(where).parent.name).lower()


def _family(config: Config) -> str:
    model_type = config.text("model_type")
    if model_type in UNSUPPORTED:
        raise InputError(f"{config.where}: model_type {model_type!r} is not supported: {UNSUPPORTED[model_type]}")
    for architecture in config.list_of("architectures", str):
        if architecture in _ARCHITECTURES:
            return _ARCHITECTURES[architecture]
    if model_type not in _FAMILIES:
        raise InputError(
            f"{config.where}: model_type {model_type!r} is not supported; supported: {', '.join(_FAMILIES)}"
        )
    return "llada_moe" if model_type == "llada" and config.has("num_experts") else model_type


def _shared_fields(config: Config) -> dict[str, Any]:
    return {
        "hidden_size": config.integer("hidden_size", "d_model"),
        "num_layers": config.integer("num_hidden_layers", "n_layers", high=_MAX_LAYERS),
        "vocab_size": config.integer("embedding_size", "vocab_size"),
        "tied_embeddings": config.flag("tie_word_embeddings", "weight_tying"),
        "max_position_embeddings": config.integer(
            "max_position_embeddings", "max_sequence_length", "max_seq_len", default=0, low=0
        ),
    }


def _layers(config: Config) -> int:
    return config.integer("num_hidden_layers", "n_layers", high=_MAX_LAYERS)


def _grouped(config: Config, kv_heads: int | None = None, windowed: int = 0, **more: Any) -> dict[str, Any]:
    """Grouped-query attention; `windowed` layers slide when the config gives a window but no layer_types."""
    heads = config.integer("num_attention_heads", "n_heads")
    width = config.integer("hidden_size", "d_model")
    kinds = config.list_of("layer_types", str)
    if kinds and (len(kinds) != _layers(config) or not set(kinds) <= {"full_attention", "sliding_attention"}):
        raise config.error("layer_types", "should name full_attention or sliding_attention for every layer")
    layers = kinds.count("sliding_attention") if kinds else windowed
    window = config.integer("sliding_window", default=0, low=0) if layers else 0
    attention = GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=kv_heads or config.integer("num_key_value_heads", "n_kv_heads", default=heads),
        head_dim=config.integer("head_dim", default=width // heads),
        sliding_window=window or None,
        sliding_window_layers=layers if window else 0,
        **more,
    )
    return {"attention": attention}


def _experts(config: Config, width: str, layers: int | None = None, **more: Any) -> dict[str, Any]:
    """Routed experts of the width in field `width`, in all layers unless `layers` is given."""
    moe = MixtureOfExperts(
        num_experts=config.integer("num_experts", "num_local_experts", "n_routed_experts"),
        top_k=config.integer("num_experts_per_tok"),
        intermediate_size=config.integer(width),
        **more,
    )
    return {"moe": moe, "num_moe_layers": _layers(config) if layers is None else layers}


def _dense_width(config: Config, name: str, moe_layers: int = 0) -> dict[str, int]:
    return {"dense_intermediate_size": config.integer(name)} if _layers(config) > moe_layers else {}


def _biased(config: Config, default: bool = False) -> dict[str, bool]:
    biased = config.flag("attention_bias", default=default)
    return {"qkv_bias": biased, "output_bias": biased}


def _qwen_windowed(config: Config) -> int:
    layers = _layers(config)
    full = config.integer("max_window_layers", default=layers, low=0)
    return max(layers - full, 0) if config.flag("use_sliding_window") else 0


def _llama(config: Config) -> dict[str, Any]:
    return _grouped(config, **_biased(config)) | _dense_width(config, "intermediate_size")


def _mistral(config: Config) -> dict[str, Any]:
    return _grouped(config, windowed=_layers(config)) | _dense_width(config, "intermediate_size")


def _qwen2(config: Config) -> dict[str, Any]:
    return _grouped(config, windowed=_qwen_windowed(config), qkv_bias=True) | _dense_width(config, "intermediate_size")


def _qwen3(config: Config) -> dict[str, Any]:
    attention = _grouped(config, windowed=_qwen_windowed(config), qk_norm="per_head", **_biased(config))
    return attention | _dense_width(config, "intermediate_size")


def _mixtral(config: Config) -> dict[str, Any]:
    return _grouped(config, windowed=_layers(config)) | _experts(config, "intermediate_size")


def _olmoe(config: Config) -> dict[str, Any]:
    return _grouped(config, qk_norm="full", **_biased(config)) | _experts(config, "intermediate_size")


def _qwen_sparse_layers(config: Config) -> int:
    step, dense = config.integer("decoder_sparse_step", default=1), set(config.list_of("mlp_only_layers", int))
    return sum((layer + 1) % step == 0 and layer not in dense for layer in range(_layers(config)))


def _qwen2_moe(config: Config) -> dict[str, Any]:
    sparse = _qwen_sparse_layers(config)
    shared = config.integer("shared_expert_intermediate_size")
    attention = _grouped(config, windowed=_qwen_windowed(config), qkv_bias=config.flag("qkv_bias", default=True))
    experts = _experts(
        config, "moe_intermediate_size", sparse, shared_intermediate_size=shared, shared_expert_gate=True
    )
    return attention | experts | _dense_width(config, "intermediate_size", sparse)


def _qwen3_moe(config: Config) -> dict[str, Any]:
    sparse = _qwen_sparse_layers(config)
    attention = _grouped(config, windowed=_qwen_windowed(config), qk_norm="per_head", **_biased(config))
    experts = _experts(config, "moe_intermediate_size", sparse)
    return attention | experts | _dense_width(config, "intermediate_size", sparse)


def _dbrx(config: Config) -> dict[str, Any]:
    attention, ffn = config.section("attn_config"), config.section("ffn_config")
    moe = MixtureOfExperts(
        num_experts=ffn.integer("moe_num_experts"),
        top_k=ffn.integer("moe_top_k"),
        intermediate_size=ffn.integer("ffn_hidden_size"),
    )
    grouped = _grouped(config, kv_heads=attention.integer("kv_n_heads"))
    return grouped | {"moe": moe, "num_moe_layers": _layers(config), "compiled": False}


def _gpt_oss(config: Config) -> dict[str, Any]:
    windowed = (_layers(config) + 1) // 2
    attention = _grouped(config, windowed=windowed, sinks=True, **_biased(config, default=True))
    return attention | _experts(config, "intermediate_size", router_bias=True, expert_bias=True)


def _minimax_m2(config: Config) -> dict[str, Any]:
    attention = _grouped(config, qk_norm="full" if config.flag("use_qk_norm", default=True) else "none")
    return attention | _experts(
        config,
        "intermediate_size",
        shared_intermediate_size=config.integer("shared_intermediate_size", default=0, low=0),
        router_bias=config.flag("use_routing_bias", default=True),
    )


def _sparse_layers(config: Config) -> int:
    """MoE layers after the first dense ones; `moe_layer_freq` is a stride or one 0/1 per layer."""
    layers, first = _layers(config), config.integer("first_k_dense_replace", default=0, low=0)
    if isinstance(config.values.get("moe_layer_freq"), list):
        marks = config.list_of("moe_layer_freq", int)
        if len(marks) != layers or not set(marks) <= {0, 1}:
            raise config.error("moe_layer_freq", "should hold a 0 or 1 for every layer")
        return sum(marks[first:])
    stride = config.integer("moe_layer_freq", default=1)
    return sum(layer % stride == 0 for layer in range(first, layers))


def _grouped_choice(config: Config, groups: str, kept: str) -> dict[str, int]:
    return {
        "expert_groups": config.integer(groups, default=1),
        "expert_groups_kept": config.integer(kept, default=1),
    }


def _latent(config: Config) -> Attention:
    return MultiHeadLatentAttention(
        num_heads=config.integer("num_attention_heads"),
        q_lora_rank=config.integer("q_lora_rank"),
        kv_lora_rank=config.integer("kv_lora_rank"),
        qk_nope_head_dim=config.integer("qk_nope_head_dim"),
        qk_rope_head_dim=config.integer("qk_rope_head_dim"),
        v_head_dim=config.integer("v_head_dim"),
    )


def _deepseek_v3(config: Config) -> dict[str, Any]:
    sparse = _sparse_layers(config)
    shared = config.integer("n_shared_experts", default=0, low=0) * config.integer("moe_intermediate_size")
    experts = _experts(
        config,
        "moe_intermediate_size",
        sparse,
        shared_intermediate_size=shared,
        router_bias=config.text("topk_method", default="noaux_tc") == "noaux_tc",
        **_grouped_choice(config, "n_group", "topk_group"),
    )
    return {"attention": _latent(config)} | experts | _dense_width(config, "intermediate_size", sparse)


def _diffusion(block_len: int, generation_len: int, block_causal: bool = False) -> dict[str, Any]:
    """Decoding defaults of the model's card, one token a step; config.json holds none."""
    defaults = Diffusion(
        block_len=block_len, steps=generation_len, generation_len=generation_len, block_causal=block_causal
    )
    return {"decoding": "masked_diffusion", "diffusion": defaults}


def _llada(config: Config) -> dict[str, Any]:
    biased = config.flag("include_bias")
    attention = _grouped(
        config,
        qkv_bias=biased or config.flag("include_qkv_bias"),
        output_bias=biased,
        qk_norm="full" if config.flag("attention_layer_norm") else "none",
    )
    return attention | _dense_width(config, "mlp_hidden_size") | _diffusion(128, 128)


def _llada_moe(config: Config) -> dict[str, Any]:
    sparse = _sparse_layers(config)
    norm = "per_head" if config.flag("qk_layernorm", default=True) else "none"
    attention = _grouped(config, qk_norm=norm, **_biased(config))
    experts = _experts(
        config,
        "expert_intermediate_size",
        sparse,
        shared_intermediate_size=config.integer("shared_expert_intermediate_size", default=0, low=0),
        router_bias=config.flag("moe_router_enable_expert_bias"),
        **_grouped_choice(config, "router_num_group", "router_topk_group"),
    )
    return attention | experts | _dense_width(config, "dense_intermediate_size", sparse) | _diffusion(32, 128)


def _llada2_moe(config: Config) -> dict[str, Any]:
    sparse = _sparse_layers(config)
    norm = "per_head" if config.flag("use_qk_norm", default=True) else "none"
    attention = _grouped(
        config, qk_norm=norm, qkv_bias=config.flag("use_qkv_bias"), output_bias=config.flag("use_bias")
    )
    shared = config.integer("num_shared_experts", default=0, low=0) * config.integer("moe_intermediate_size")
    experts = _experts(
        config,
        "moe_intermediate_size",
        sparse,
        shared_intermediate_size=shared,
        router_bias=config.flag("moe_router_enable_expert_bias", default=True),
        **_grouped_choice(config, "n_group", "topk_group"),
    )
    return attention | experts | _dense_width(config, "intermediate_size", sparse) | _diffusion(32, 512, True)


_FAMILIES: dict[str, Callable[[Config], dict[str, Any]]] = {
    "dbrx": _dbrx,
    "deepseek_v3": _deepseek_v3,
    "gpt_oss": _gpt_oss,
    "kimi_k2": _deepseek_v3,
    "kimi_k25": _deepseek_v3,
    "llada": _llada,
    "llada2_moe": _llada2_moe,
    "llada_moe": _llada_moe,
    "llama": _llama,
    "minimax_m2": _minimax_m2,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}
_ARCHITECTURES = {
    "DbrxForCausalLM": "dbrx",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "GptOssForCausalLM": "gpt_oss",
    "LLaDA2MoeModelLM": "llada2_moe",
    "LLaDAMoEModel": "llada_moe",
    "LLaDAMoEModelLM": "llada_moe",
    "LLaDAModelLM": "llada",
    "LlamaForCausalLM": "llama",
    "MiniMaxM2ForCausalLM": "minimax_m2",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "OlmoeForCausalLM": "olmoe",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
