"""Memory of each accelerator: weights, activations, and the KV pool that is left."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from moesim.specs.deployment import Deployment
from moesim.specs.dtypes import get_dtype
from moesim.specs.hardware import Accelerator
from moesim.specs.model import (
    GroupedQueryAttention,
    Model,
    MultiHeadLatentAttention,
    WeightDtypes,
    count_parameters,
    kv_elements_per_token_per_layer,
)

RUNTIME_RESERVE_BYTES = 1.2e9
"""Driver context and communication buffers beside torch's memory (recalled: 0.8 to 2 GB on NVIDIA and AMD)."""

_QUANTIZED_PARTS: dict[str, tuple[str, ...]] = {
    "fp8": ("attention", "experts", "dense"),
    "fp8_block": ("attention", "experts", "dense"),
    "nvfp4": ("experts", "dense"),
    "mxfp4": ("experts",),
    "int4": ("experts",),
}
QUANTIZATIONS = ("none", *_QUANTIZED_PARTS)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on one accelerator (the fullest rank). `kv_tokens`: tokens that the KV pool of one engine holds."""

    visible_bytes: float
    weights_bytes: float
    activation_bytes: float
    runtime_bytes: float
    kv_pool_bytes: float
    kv_bytes_per_token: float
    kv_tokens: int

    @property
    def reserved_bytes(self) -> float:
        """What the engine takes: weights, activations, KV pool and runtime."""
        return self.weights_bytes + self.activation_bytes + self.runtime_bytes + max(self.kv_pool_bytes, 0.0)


def served_dtypes(model: Model, quantization: str) -> WeightDtypes:
    """Number formats in use: the checkpoint's, or those an engine's `--quantization` converts to."""
    if quantization == "none":
        return model.dtypes
    return msgspec.structs.replace(model.dtypes, **dict.fromkeys(_QUANTIZED_PARTS[quantization], quantization))


def kv_dtype_bytes(deployment: Deployment) -> float:
    """Bytes of one cached value."""
    name = "bfloat16" if deployment.kv_cache_dtype == "auto" else deployment.kv_cache_dtype
    return get_dtype(name, "kv_cache_dtype").bytes_per_element


def kv_heads_per_rank(attention: GroupedQueryAttention, tensor_parallel_size: int) -> int:
    """Key/value heads on each rank; replicated when there are more ranks than heads."""
    return max(1, attention.num_kv_heads // tensor_parallel_size)


def kv_bytes_per_token_per_rank(model: Model, deployment: Deployment) -> float:
    """KV bytes of one token on one rank: heads sharded over TP, layers over PP, MLA's latent replicated over TP."""
    layers = -(-model.num_layers // deployment.pipeline_parallel_size)
    if isinstance(model.attention, MultiHeadLatentAttention):
        elements = kv_elements_per_token_per_layer(model.attention)
    else:
        heads = kv_heads_per_rank(model.attention, deployment.tensor_parallel_size)
        elements = 2 * heads * model.attention.head_dim
    return layers * elements * kv_dtype_bytes(deployment)


def weights_bytes_per_rank(model: Model, deployment: Deployment) -> float:
    """Weight bytes on the fullest rank.

    Attention, dense and shared MLPs, embedding and head are sharded over TP (MLA's down-projections and all
    norms and routers are replicated); routed experts and their redundant replicas over EP and then MoE-TP; layers
    over PP.
    """
    counts, dtypes = count_parameters(model), served_dtypes(model, deployment.quantization)
    tp, stages = deployment.tensor_parallel_size, deployment.pipeline_parallel_size
    stage = -(-model.num_layers // stages) / model.num_layers
    replicated = model.num_layers * _replicated_attention_params(model)
    attention = (counts.attention - replicated) / tp + replicated
    replicas = 1 + deployment.redundant_experts / model.moe.num_experts if model.moe is not None else 1.0
    experts = counts.routed_experts * replicas / (deployment.expert_parallel_size * deployment.moe_tensor_parallel_size)
    dense = (counts.shared_experts + counts.dense_mlp) / tp
    body = attention * get_dtype(dtypes.attention).bytes_per_element
    body += experts * get_dtype(dtypes.experts).bytes_per_element
    body += dense * get_dtype(dtypes.dense).bytes_per_element
    embedding_bytes = get_dtype(dtypes.embedding).bytes_per_element
    body += (counts.norms + counts.router) * embedding_bytes
    tables = (counts.embedding + counts.lm_head) if stages == 1 else max(counts.embedding, counts.lm_head)
    return body * stage + tables / tp * embedding_bytes


def _replicated_attention_params(model: Model) -> int:
    attention = model.attention
    if isinstance(attention, MultiHeadLatentAttention):
        latent = attention.kv_lora_rank + attention.qk_rope_head_dim
        return model.hidden_size * (attention.q_lora_rank + latent) + attention.q_lora_rank + attention.kv_lora_rank
    return 0


def activation_bytes_per_rank(model: Model, deployment: Deployment) -> float:
    """Peak activations of the largest step the engine admits (what its start-up profile run allocates).

    Hidden states and residual, the widest of the MLP or expert workspaces (gate and up outputs of every routed
    row, as the fused-MoE kernels allocate them), and fp32 logits of the sampled rows. Within 30 % of the KV
    pools that vLLM reports; 1 to 3 % of an 80 GB card.
    """
    tokens, hidden = deployment.max_num_batched_tokens, model.hidden_size
    workspace = 3 * model.dense_intermediate_size / deployment.tensor_parallel_size if model.num_dense_layers else 0.0
    if model.moe is not None:
        width = model.moe.intermediate_size / deployment.moe_tensor_parallel_size
        routed = model.moe.top_k * (3 * width + hidden) / max(deployment.expert_parallel_size, 1)
        group_tokens = routed * deployment.lockstep_ranks
        workspace = max(workspace, group_tokens)
    logits = min(deployment.max_num_seqs, tokens) * model.vocab_size * 4.0
    return tokens * (4 * hidden + workspace) * 2.0 + logits


def plan_memory(model: Model, deployment: Deployment, accelerator: Accelerator) -> MemoryPlan:
    """Divide one accelerator's memory as the engine does: a fraction of the visible memory, less the rest."""
    weights = weights_bytes_per_rank(model, deployment)
    activations = activation_bytes_per_rank(model, deployment)
    budget = accelerator.hbm_bytes_visible * deployment.gpu_memory_utilization
    pool = budget - weights - activations - RUNTIME_RESERVE_BYTES
    per_token = kv_bytes_per_token_per_rank(model, deployment)
    blocks = int(max(pool, 0.0) // (per_token * deployment.block_size))
    return MemoryPlan(
        visible_bytes=float(accelerator.hbm_bytes_visible),
        weights_bytes=weights,
        activation_bytes=activations,
        runtime_bytes=RUNTIME_RESERVE_BYTES,
        kv_pool_bytes=pool,
        kv_bytes_per_token=per_token,
        kv_tokens=blocks * deployment.block_size,
    )
