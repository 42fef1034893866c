"""The transformer: bidirectional attention with rotary positions, RMS norms, SwiGLU or routed experts.

Projections that read the same input are one matrix (queries, keys and values; gate and up). Activations are
[tokens, hidden] with the sequences of a batch one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from hw_validation.llada.cache import KVCache
from hw_validation.llada.config import Architecture
from hw_validation.llada.distributed import SINGLE, Parallel, run_dispatched
from hw_validation.llada.experts import Matrices, Routing
from hw_validation.llada.loads import ExpertLoads
from hw_validation.llada.ops import Ops, choose_ops


class Layer(nn.Module):
    """The parameters of one layer on one rank (shapes sharded as `Parallel` says)."""

    def __init__(self, architecture: Architecture, parallel: Parallel, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, tp = architecture.hidden_size, parallel.tp
        self.input_norm = _empty(dtype, hidden)
        self.qkv = _empty(dtype, architecture.qkv_size // tp, hidden)
        self.qk_norm = _empty(dtype, 2, architecture.head_dim) if architecture.qk_norm else None
        self.out = _empty(dtype, hidden, architecture.num_heads * architecture.head_dim // tp)
        self.post_norm = _empty(dtype, hidden)
        if architecture.is_moe:
            experts, width = architecture.num_experts // parallel.ep, architecture.expert_size // parallel.expert_tp
            self.router = _empty(dtype, architecture.num_experts, hidden)
            self.gate_up = _empty(dtype, experts, 2 * width, hidden)
            self.down = _empty(dtype, experts, hidden, width)
        else:
            width = architecture.intermediate_size // tp
            self.gate_up = _empty(dtype, 2 * width, hidden)
            self.down = _empty(dtype, hidden, width)


def _empty(dtype: torch.dtype, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class Llada(nn.Module):
    """A mask predictor: tokens in, logits of the asked-for positions out. Weights are uninitialised at first.

    `ops` may be replaced between runs; `loads`, if set, counts the tokens of every expert.
    """

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device,
        dtype: torch.dtype,
        parallel: Parallel = SINGLE,
        ops: Ops | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.parallel = parallel
        self.ops = ops or choose_ops("grouped", "torch", device, dtype)
        self.loads: ExpertLoads | None = None
        hidden = architecture.hidden_size
        with torch.device(device):
            self.embedding = _empty(dtype, architecture.vocab_size, hidden)
            self.layers = nn.ModuleList(Layer(architecture, parallel, dtype) for _ in range(architecture.num_layers))
            self.final_norm = _empty(dtype, hidden)
            self.head = _empty(dtype, architecture.vocab_size // parallel.tp, hidden)
            self.register_buffer("angles", rotary_table(architecture), persistent=False)
        self.angles: Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number format."""
        return self.embedding.dtype

    def new_cache(self, batch: int, total_len: int) -> KVCache:
        """An empty cache for `batch` sequences of `total_len` positions, this rank's heads."""
        size = self.architecture
        shape = (size.num_layers, batch, total_len, size.num_kv_heads // self.parallel.tp, size.head_dim)
        return KVCache(shape, self.device, self.dtype)

    @torch.no_grad()
    def forward(self, tokens: Tensor, positions: Tensor, rows: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [batch, rows, vocabulary] of the positions `rows` (indices into the span) of `tokens` [batch, span].

        `positions` [span] are the tokens' places in their sequences. With a cache the span's keys and values are
        stored and attention covers all cached positions; without one it covers the span.
        """
        batch, span = tokens.shape
        hidden = F.embedding(tokens.reshape(-1), self.embedding)
        where = _Where(batch, span, positions, self.angles.index_select(0, positions), cache)
        for index, layer in enumerate(self.layers):
            parameters = cast(Layer, layer)
            self._attend(hidden, parameters, index, where)
            self._feed_forward(hidden, parameters, index)
        chosen = hidden.view(batch, span, -1).index_select(1, rows)
        logits = self.ops.multiply(self._norm(chosen, self.final_norm), self.head, None)
        return self.parallel.join_last(logits)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return self.ops.norm(hidden, weight, self.architecture.norm_eps)

    def _attend(self, hidden: Tensor, layer: Layer, index: int, where: _Where) -> None:
        """Add the attention of layer `index` to `hidden` [tokens, hidden], in place."""
        size, tp = self.architecture, self.parallel.tp
        qkv = self.ops.multiply(self._norm(hidden, layer.input_norm), layer.qkv, None)
        qkv = qkv.view(where.batch, where.span, -1)
        heads = (size.num_heads // tp, size.num_kv_heads // tp)
        queries, keys, values = self.ops.rotate(qkv, where.angles, layer.qk_norm, heads, size.norm_eps)
        if where.cache is not None:
            keys, values = where.cache.update(index, where.positions, keys, values)
        attended = F.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), enable_gqa=heads[0] != heads[1]
        )
        self._project(hidden, attended.transpose(1, 2).reshape(hidden.shape[0], -1), layer.out)

    def _feed_forward(self, hidden: Tensor, layer: Layer, index: int) -> None:
        """Add the feed-forward part of layer `index` to `hidden` [tokens, hidden], in place."""
        normed = self._norm(hidden, layer.post_norm)
        if self.architecture.is_moe:
            self._experts(hidden, normed, layer, index)
        else:
            self._project(hidden, self.ops.gated(normed, layer.gate_up), layer.down)

    def _experts(self, hidden: Tensor, normed: Tensor, layer: Layer, index: int) -> None:
        """Add the routed experts of `normed` to `hidden`, both [tokens, hidden], in place."""
        size, parallel, ops = self.architecture, self.parallel, self.ops
        routing = ops.route(F.linear(normed, layer.router), size.experts_per_token, size.renormalize)
        matrices = Matrices(layer.gate_up, layer.down)
        if self.loads is not None:
            self.loads.count(index, routing.ids)
        if parallel.ep > 1:
            hidden.add_(run_dispatched(normed, routing, partial(_run_local, ops, matrices), parallel, size.num_experts))
            return
        summands = ops.experts(normed, routing, matrices)
        if parallel.tp > 1:
            summands = parallel.sum_shards(summands.sum(dim=1)).unsqueeze(1)
        ops.combine(hidden, summands)

    def _project(self, hidden: Tensor, inputs: Tensor, matrix: Tensor) -> None:
        """Add `inputs` @ `matrix`.T to `hidden`: in the product itself on one rank, after a sum over shards else."""
        if self.parallel.tp == 1:
            self.ops.multiply(inputs, matrix, hidden)
        else:
            hidden.add_(self.parallel.sum_shards(self.ops.multiply(inputs, matrix, None)))


@dataclass(frozen=True, slots=True)
class _Where:
    """Where a forward's tokens are: `positions` [span] of each sequence, their `angles` [span, 2, head_dim / 2]."""

    batch: int
    span: int
    positions: Tensor
    angles: Tensor
    cache: KVCache | None


def _run_local(ops: Ops, matrices: Matrices, rows: Tensor, experts: Tensor) -> Tensor:
    """This rank's experts for `rows` [n, hidden] that arrived from other ranks, expert `experts` [n] for each."""
    if rows.shape[0] == 0:
        return rows
    return ops.experts(rows, Routing(rows.new_ones(rows.shape[0], 1), experts.unsqueeze(1)), matrices).squeeze(1)


def rotary_table(architecture: Architecture) -> Tensor:
    """Cosines and sines of every position: [positions, 2, head_dim / 2], float32."""
    half = torch.arange(0, architecture.head_dim, 2, dtype=torch.float32) / architecture.head_dim
    angles = torch.outer(torch.arange(architecture.max_positions, dtype=torch.float32), architecture.rope_theta**-half)
    return torch.stack((angles.cos(), angles.sin()), dim=1)
