"""What a model is: the architecture as its config.json states it, and the counts that follow from it.

Parameter counts are computed, never typed in. Tests hold the exact totals against published checkpoints.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from moesim.errors import InputError
from moesim.specs.dtypes import get_dtype


class GroupedQueryAttention(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="gqa"):
    """Multi-head attention with `num_kv_heads` shared key/value heads (equal to `num_heads` for MHA).

    `sliding_window` tokens are attended in `sliding_window_layers` of the layers; the others attend to all.
    `qk_norm`: none, per_head (one weight of head_dim for q and k each) or full (over all heads' width).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["none", "per_head", "full"] = "none"
    sliding_window: int | None = None
    sliding_window_layers: int = 0
    sinks: bool = False


class MultiHeadLatentAttention(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="mla"):
    """DeepSeek's latent attention: the cache holds `kv_lora_rank + qk_rope_head_dim` values a token and layer."""

    num_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


Attention = GroupedQueryAttention | MultiHeadLatentAttention


class MixtureOfExperts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The routed part of an MoE layer, and the shared expert that every token passes.

    `shared_intermediate_size` is the total width of the fused shared expert (0: none).
    `expert_groups`/`expert_groups_kept`: group-limited selection (DeepSeek); 1/1 means free choice.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    shared_intermediate_size: int = 0
    shared_expert_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    expert_groups: int = 1
    expert_groups_kept: int = 1


class Diffusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Masked-diffusion decoding defaults. `block_causal`: finished blocks' KV cache is exact (LLaDA2)."""

    block_len: int
    steps: int
    generation_len: int
    block_causal: bool = False


class WeightDtypes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stored number formats by part of the model (names in `moesim.specs.dtypes`)."""

    attention: str = "bfloat16"
    experts: str = "bfloat16"
    dense: str = "bfloat16"
    embedding: str = "bfloat16"


class ParameterCounts(msgspec.Struct, frozen=True):
    """Number of weights by part; `total` is their sum.

    "Active" follows no single convention in print, so each one has its own property.
    """

    attention: int
    norms: int
    router: int
    routed_experts: int
    routed_experts_active: int
    shared_experts: int
    dense_mlp: int
    embedding: int
    lm_head: int

    @property
    def total(self) -> int:
        """All weights."""
        return self.active + self.routed_experts - self.routed_experts_active

    @property
    def active(self) -> int:
        """Weights a token passes, with input embedding and output head."""
        body = self.attention + self.norms + self.router + self.shared_experts + self.dense_mlp
        return body + self.routed_experts_active + self.embedding + self.lm_head

    @property
    def active_without_input_embedding(self) -> int:
        """As `active`, less the input embedding table (a look-up, not a product)."""
        return self.active - self.embedding


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A transformer language model: what its config.json says, plus the number formats of its checkpoint.

    `compiled`: vLLM compiles its forward pass; where it does not, no graph is cut at attention, and a step with prompts
    launches its kernels one by one.
    """

    name: str
    huggingface_id: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    attention: Attention
    sources: dict[str, str]
    moe: MixtureOfExperts | None = None
    dense_intermediate_size: int = 0
    num_dense_layers: int = 0
    num_moe_layers: int = 0
    tied_embeddings: bool = False
    max_position_embeddings: int = 0
    dtypes: WeightDtypes = WeightDtypes()
    decoding: Literal["autoregressive", "masked_diffusion"] = "autoregressive"
    diffusion: Diffusion | None = None
    compiled: bool = True
    aliases: tuple[str, ...] = ()
    published: dict[str, float] = {}
    notes: str = ""

    @property
    def is_diffusion(self) -> bool:
        """True for models that denoise masked positions instead of emitting one token a step."""
        return self.decoding == "masked_diffusion"


def check_model(model: Model, where: str) -> Model:
    """Refuse architectures that cannot exist; returns the model unchanged.

    Raises:
        InputError: naming `where`, the field and its value.
    """
    if model.num_dense_layers + model.num_moe_layers != model.num_layers:
        raise InputError(
            f"{where}: num_dense_layers {model.num_dense_layers} + num_moe_layers {model.num_moe_layers} "
            f"must equal num_layers {model.num_layers}"
        )
    for field in ("hidden_size", "num_layers", "vocab_size"):
        if getattr(model, field) <= 0:
            raise InputError(f"{where}: {field} is {getattr(model, field)}, must be at least 1")
    if model.num_dense_layers and model.dense_intermediate_size <= 0:
        raise InputError(f"{where}: dense_intermediate_size is {model.dense_intermediate_size}, must be at least 1")
    if model.num_moe_layers and model.moe is None:
        raise InputError(f"{where}: moe is missing although num_moe_layers is {model.num_moe_layers}")
    if model.is_diffusion and model.diffusion is None:
        raise InputError(f"{where}: diffusion is missing although decoding is masked_diffusion")
    _check_moe(model.moe, where)
    _check_attention(model.attention, where)
    for part in ("attention", "experts", "dense", "embedding"):
        get_dtype(getattr(model.dtypes, part), f"{where}: dtypes.{part}")
    return model


def _check_moe(moe: MixtureOfExperts | None, where: str) -> None:
    if moe is None:
        return
    for field in ("num_experts", "top_k", "intermediate_size"):
        if getattr(moe, field) <= 0:
            raise InputError(f"{where}: moe.{field} is {getattr(moe, field)}, must be at least 1")
    if moe.top_k > moe.num_experts:
        raise InputError(f"{where}: moe.top_k is {moe.top_k}, must be at most moe.num_experts = {moe.num_experts}")


def _check_attention(attention: Attention, where: str) -> None:
    names = [name for name in attention.__struct_fields__ if isinstance(getattr(attention, name), int)]
    for name in names:
        value = getattr(attention, name)
        if not isinstance(value, bool) and value < (0 if name == "sliding_window_layers" else 1):
            raise InputError(f"{where}: attention.{name} is {value}, must be at least 1")
    if isinstance(attention, GroupedQueryAttention) and attention.num_heads % attention.num_kv_heads:
        raise InputError(
            f"{where}: attention.num_heads {attention.num_heads} is no multiple of "
            f"num_kv_heads {attention.num_kv_heads}"
        )


def attention_params_per_layer(model: Model) -> int:
    """Weights of one layer's attention, its biases and inner norms included."""
    hidden, attention = model.hidden_size, model.attention
    if isinstance(attention, MultiHeadLatentAttention):
        heads, latent = attention.num_heads, attention.kv_lora_rank
        query = hidden * attention.q_lora_rank + attention.q_lora_rank
        query += attention.q_lora_rank * heads * (attention.qk_nope_head_dim + attention.qk_rope_head_dim)
        cache = hidden * (latent + attention.qk_rope_head_dim) + latent
        expand = latent * heads * (attention.qk_nope_head_dim + attention.v_head_dim)
        return query + cache + expand + heads * attention.v_head_dim * hidden
    q_width = attention.num_heads * attention.head_dim
    kv_width = attention.num_kv_heads * attention.head_dim
    weights = hidden * (q_width + 2 * kv_width) + q_width * hidden
    weights += (q_width + 2 * kv_width) * attention.qkv_bias + hidden * attention.output_bias
    weights += {"none": 0, "per_head": 2 * attention.head_dim, "full": q_width + kv_width}[attention.qk_norm]
    return weights + attention.num_heads * attention.sinks


def expert_params(model: Model) -> int:
    """Weights of one routed expert: three matrices (gate, up, down) and its biases."""
    if model.moe is None:
        return 0
    width = model.moe.intermediate_size
    bias = (2 * width + model.hidden_size) if model.moe.expert_bias else 0
    return 3 * model.hidden_size * width + bias


def count_parameters(model: Model) -> ParameterCounts:
    """Count the weights of every part from the architecture alone.

    The multi-token-prediction layers that some checkpoints carry (DeepSeek-V3: 14 B) are not counted.
    """
    moe, hidden, layers = model.moe, model.hidden_size, model.num_layers
    norm_weights = hidden
    table = model.vocab_size * hidden
    router = shared = routed = routed_active = 0
    if moe is not None:
        router = model.num_moe_layers * (hidden * moe.num_experts + moe.num_experts * moe.router_bias)
        shared = model.num_moe_layers * (3 * hidden * moe.shared_intermediate_size + hidden * moe.shared_expert_gate)
        routed = model.num_moe_layers * moe.num_experts * expert_params(model)
        routed_active = model.num_moe_layers * moe.top_k * expert_params(model)
    return ParameterCounts(
        attention=layers * attention_params_per_layer(model),
        norms=(2 * layers + 1) * norm_weights,
        router=router,
        routed_experts=routed,
        routed_experts_active=routed_active,
        shared_experts=shared,
        dense_mlp=model.num_dense_layers * 3 * hidden * model.dense_intermediate_size,
        embedding=0 if model.tied_embeddings else table,
        lm_head=table,
    )


def kv_elements_per_token_per_layer(attention: Attention) -> int:
    """Cached values of one token in one layer, over all heads."""
    if isinstance(attention, MultiHeadLatentAttention):
        return attention.kv_lora_rank + attention.qk_rope_head_dim
    return 2 * attention.num_kv_heads * attention.head_dim


def kv_bytes_per_token(model: Model, kv_dtype: str = "bfloat16") -> float:
    """KV-cache bytes of one token over all layers, unsharded (sliding-window layers counted in full)."""
    per_layer = kv_elements_per_token_per_layer(model.attention)
    return model.num_layers * per_layer * get_dtype(kv_dtype, "kv_cache_dtype").bytes_per_element


def weight_bytes(model: Model) -> float:
    """Bytes of all weights as stored in the checkpoint's number formats."""
    counts, dtypes = count_parameters(model), model.dtypes
    by_part = (
        (counts.attention, dtypes.attention),
        (counts.routed_experts, dtypes.experts),
        (counts.shared_experts + counts.dense_mlp, dtypes.dense),
        (counts.norms + counts.router + counts.embedding + counts.lm_head, dtypes.embedding),
    )
    return sum(count * get_dtype(dtype).bytes_per_element for count, dtype in by_part)
