"""Operators whose cost depends only on the tokens of a step: projections, norms, dense and shared MLPs, head.

All functions take `tokens` [steps] (new tokens on one rank) and return costs of one layer on one rank.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.costs.gemm import dense_gemm
from moesim.costs.kernels import OperatorCost, from_parts, nothing, transfer
from moesim.costs.layout import Layout
from moesim.network.collectives import engine_all_gather_s, engine_all_reduce_s
from moesim.placement.memory import kv_heads_per_rank
from moesim.specs.dtypes import Dtype
from moesim.specs.model import GroupedQueryAttention, MultiHeadLatentAttention

FloatArray = NDArray[np.float64]
_ACTIVATION_BYTES = 2.0


def gemm(layout: Layout, rows: FloatArray, inner: float, columns: float, dtype: Dtype) -> OperatorCost:
    """C[rows, columns] = A[rows, inner] B[inner, columns] with weights B in `dtype`, see `dense_gemm`.

    An engine runs it `gemm_slowdown` times as long as a benchmark's loop does (other kernels share caches and clocks).
    """
    parts = dense_gemm(rows, inner, columns, dtype, layout.rates.accelerator, layout.parameters)
    cost = from_parts(parts, 2.0 if dtype.compute != "bf16" else 1.0)
    return cost.slowed(layout.parameters["gemm_slowdown"])


def attention_projections(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """Query, key, value and output projections; with MLA the low-rank pairs and the absorbed per-head products."""
    attention, hidden, dtype = layout.model.attention, float(layout.model.hidden_size), layout.attention_dtype
    if isinstance(attention, MultiHeadLatentAttention):
        return _latent_projections(layout, attention, tokens)
    heads = attention.num_heads / layout.tp
    kv_heads = kv_heads_per_rank(attention, layout.tp)
    width = heads * attention.head_dim
    qkv = gemm(layout, tokens, hidden, width + 2 * kv_heads * attention.head_dim, dtype)
    return qkv + gemm(layout, tokens, width, hidden, dtype)


def _latent_projections(layout: Layout, attention: MultiHeadLatentAttention, tokens: FloatArray) -> OperatorCost:
    hidden, dtype = float(layout.model.hidden_size), layout.attention_dtype
    heads = attention.num_heads / layout.tp
    latent = attention.kv_lora_rank
    down = gemm(layout, tokens, hidden, attention.q_lora_rank + latent + attention.qk_rope_head_dim, dtype)
    query_width = heads * (attention.qk_nope_head_dim + attention.qk_rope_head_dim)
    query = gemm(layout, tokens, attention.q_lora_rank, query_width, dtype)
    absorb = gemm(layout, tokens, heads * attention.qk_nope_head_dim, latent, layout.embedding_dtype)
    expand = gemm(layout, tokens, latent, heads * attention.v_head_dim, layout.embedding_dtype)
    return down + query + absorb + expand + gemm(layout, tokens, heads * attention.v_head_dim, hidden, dtype)


def norms_and_rotary(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """Two norms with residual (read and write two rows each), rotary embedding, query/key norms.

    Writing the cache is part of the attention's measured time.
    """
    attention, hidden = layout.model.attention, layout.model.hidden_size
    moved = tokens * hidden * 8 * _ACTIVATION_BYTES
    launches = 3.0
    if isinstance(attention, GroupedQueryAttention):
        width = (attention.num_heads + 2 * attention.num_kv_heads) / layout.tp * attention.head_dim
        launches += 0 if attention.qk_norm == "none" else 2
    else:
        width = attention.num_heads / layout.tp * (attention.qk_nope_head_dim + attention.qk_rope_head_dim)
        launches += 2
    return layout.rates.kernel(
        "elementwise", moved + tokens * width * 4 * _ACTIVATION_BYTES, 0 * tokens, launches=launches
    )


def mlp(layout: Layout, tokens: FloatArray, width: float) -> OperatorCost:
    """Gated MLP: gate and up in one product, activation, down."""
    hidden = float(layout.model.hidden_size)
    gate_up = gemm(layout, tokens, hidden, 2 * width, layout.dense_dtype)
    activation = layout.rates.kernel("elementwise", tokens * 3 * width * _ACTIVATION_BYTES, 0 * tokens)
    return gate_up + activation + gemm(layout, tokens, width, hidden, layout.dense_dtype)


def dense_mlp(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """The MLP of a dense layer, sharded over tensor parallelism."""
    return mlp(layout, tokens, layout.model.dense_intermediate_size / layout.tp)


def shared_expert(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """The expert that every token passes, its sigmoid gate where there is one, and the final addition."""
    moe = layout.model.moe
    if moe is None or not moe.shared_intermediate_size:
        return nothing(tokens)
    cost = mlp(layout, tokens, moe.shared_intermediate_size / layout.tp)
    moved = tokens * layout.model.hidden_size * 3 * _ACTIVATION_BYTES
    extra = 3.0 if moe.shared_expert_gate else 1.0
    return cost + layout.rates.kernel("elementwise", moved, 0 * tokens, launches=extra)


def router(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """Router product (bf16 weights), softmax or sigmoid, and top-k (the sort by expert is the fused kernel's).

    A rank with some of the experts looks its own up among those chosen: three kernels more (vLLM's expert map).
    """
    moe = layout.model.moe
    if moe is None:
        return nothing(tokens)
    scores = gemm(layout, tokens, float(layout.model.hidden_size), float(moe.num_experts), layout.embedding_dtype)
    calls = 1.0 if layout.deployment.moe_backend == "aiter" else 2.0
    calls += 3.0 if layout.deployment.expert_parallel_size > 1 else 0.0
    choose = layout.rates.kernel("elementwise", tokens * moe.num_experts * 12.0, 0 * tokens, launches=calls)
    return scores + choose


def tensor_parallel_reduce(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """One all-reduce of the hidden states over the tensor-parallel group."""
    message = tokens * layout.model.hidden_size * _ACTIVATION_BYTES
    return transfer(engine_all_reduce_s(layout.tp_group, layout.parameters, message))


def head(layout: Layout, rows: FloatArray) -> OperatorCost:
    """Final norm, output head on the sampled rows, gather of the logits over ranks."""
    vocab, hidden = layout.model.vocab_size / layout.tp, float(layout.model.hidden_size)
    cost = gemm(layout, rows, hidden, vocab, layout.embedding_dtype)
    if layout.tp > 1:
        logits = rows * layout.model.vocab_size * _ACTIVATION_BYTES
        cost += transfer(engine_all_gather_s(layout.tp_group, layout.parameters, logits))
    return cost


def sampling(layout: Layout, rows: FloatArray) -> OperatorCost:
    """Sampling from fp32 logits: a dozen small kernels, and passes over all logits.

    vLLM's sampler moves 10 bytes a logit when greedy (conversion, arg-max) and 46 at random (conversion 6, temperature
    8, softmax 12, exponential draws 4, division 12, arg-max 4); top-k and top-p, which sort, are left out.
    """
    moved = rows * layout.model.vocab_size * layout.parameters["sampling_logit_bytes"]
    passes = layout.rates.kernel("elementwise", moved, 0 * rows, launches=4.0)
    return replace(passes, launch_s=passes.launch_s + layout.parameters["sampling_s"])
