"""Routed experts: the heart. Which experts a step touches decides what must be read; skew decides who waits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim.costs.kernels import OperatorCost, nothing, transfer
from moesim.costs.layout import Layout
from moesim.network.collectives import Group, all_gather_s, all_to_all_s
from moesim.placement.deployed import ExpertLayout, deployed_map, expert_layout, split_tokens, sum_slots
from moesim.routing.loads import LoadBank, draw_loads, make_bank
from moesim.specs.model import MixtureOfExperts
from moesim.specs.routing import Routing

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_DRAWS = 32
_ACTIVATION_BYTES = 2.0


@dataclass(frozen=True, slots=True)
class RankLoads:
    """Per step size, layer draw and expert-parallel rank [steps, draws, ranks].

    `distinct` experts touched, `rows` routed token slots, `padded_rows` after rounding each expert to tiles.
    `destinations` [steps]: mean number of other ranks that a token's experts lie on.
    """

    distinct: FloatArray
    rows: FloatArray
    padded_rows: FloatArray
    destinations: float


def tile_rows(rows_per_expert: FloatArray) -> FloatArray:
    """Rows of a grouped-GEMM tile: the power of two above the mean rows of an expert, 16 to 128.

    Follows the choices in vLLM's tuned fused-MoE configurations (small tiles at small batches).
    """
    return np.clip(2.0 ** np.ceil(np.log2(np.maximum(rows_per_expert, 1.0))), 16.0, 128.0)


@lru_cache(maxsize=128)
def rank_loads(
    moe: MixtureOfExperts, routing: Routing, layers: int, seed: int, tokens: tuple[int, ...], layout: ExpertLayout
) -> RankLoads:
    """Loads of every expert-parallel rank for steps of `tokens` tokens, 32 layer draws each."""
    bank = make_bank(moe, routing, layers, seed)
    counts = _counts(bank, tokens, seed)
    physical = _draw_maps(bank, deployed_map(moe, routing, layout, layers, seed))
    slots, ranks = split_tokens(counts, physical), layout.num_ranks
    tile = tile_rows(np.array(tokens) * moe.top_k / moe.num_experts)[:, None, None]
    return RankLoads(
        distinct=sum_slots((slots > 0.5).astype(float), ranks),
        rows=sum_slots(slots, ranks),
        padded_rows=sum_slots(np.ceil(slots / tile) * tile, ranks),
        destinations=_other_ranks(bank, physical, ranks, seed),
    )


def _counts(bank: LoadBank, tokens: tuple[int, ...], seed: int) -> FloatArray:
    return draw_loads(bank, np.array(tokens, dtype=np.int64), _DRAWS, np.random.default_rng([seed, 0xD3A3]))


def _draw_maps(bank: LoadBank, maps: IntArray) -> IntArray:
    """Map of the layer of each draw [draws, slots]; draws take the bank's layers in turn."""
    return maps[np.arange(_DRAWS) % len(bank.cumulative) % len(maps)]


def _other_ranks(bank: LoadBank, physical: IntArray, ranks: int, seed: int) -> float:
    """Mean distinct ranks of one token's experts, less the share that lies on the token's own rank."""
    single = draw_loads(bank, np.ones(64, dtype=np.int64), _DRAWS, np.random.default_rng([seed, 0x0E]))
    reached = sum_slots(split_tokens(single, physical), ranks) > 0.5
    return float(reached.sum(axis=-1).mean() * (ranks - 1) / ranks)


@dataclass(frozen=True, slots=True)
class RoutedCost:
    """One layer's routed experts [steps]: the slowest rank's mean cost, its spread over draws, the mean rank."""

    slowest: OperatorCost
    deviation_s: FloatArray
    mean_rank_s: FloatArray


def routed_experts(layout: Layout, group_tokens: IntArray) -> RoutedCost:
    """Fused-MoE kernels of one layer for steps of `group_tokens` [steps] tokens over the expert-parallel group.

    A rank reads the weights of the distinct experts its tokens touch, moves every routed row in and out of the
    three products, and computes whole tiles (sum of ceil(n_e / tile) over its experts). All ranks wait for the
    slowest one. Left out: L2 reuse between tiles of one expert, and the kernel's own wave quantisation.
    """
    moe = layout.model.moe
    zero = np.zeros(len(group_tokens))
    if moe is None:
        return RoutedCost(nothing(zero), zero, zero)
    layers = layout.model.num_moe_layers
    sizes = tuple(int(size) for size in group_tokens)
    loads = rank_loads(moe, layout.routing, layers, layout.seed, sizes, expert_layout(layout.deployment))
    cost = _grouped_gemm(layout, moe, loads)
    seconds = cost.seconds
    slowest = seconds.argmax(axis=2)[:, :, None]
    picked = OperatorCost(
        *(np.take_along_axis(array, slowest, axis=2)[:, :, 0].mean(axis=1) for array in _arrays(cost)), cost.launches
    )
    per_draw = np.take_along_axis(seconds, slowest, axis=2)[:, :, 0]
    return RoutedCost(picked, per_draw.std(axis=1), seconds.mean(axis=(1, 2)))


def _arrays(cost: OperatorCost) -> tuple[FloatArray, ...]:
    return (cost.memory_s, cost.compute_s, cost.network_s, cost.launch_s, cost.hbm_bytes, cost.flops)


def _grouped_gemm(layout: Layout, moe: MixtureOfExperts, loads: RankLoads) -> OperatorCost:
    hidden, dtype = float(layout.model.hidden_size), layout.expert_dtype
    width = moe.intermediate_size / layout.deployment.moe_tensor_parallel_size
    weights = loads.distinct * 3 * hidden * width * dtype.bytes_per_element
    moved = loads.rows * (2 * hidden + 6 * width) * _ACTIVATION_BYTES
    launches = 4.0 + (2.0 if dtype.compute != "bf16" else 0.0)
    return layout.rates.kernel("moe", weights + moved, loads.padded_rows * 6 * hidden * width, dtype.compute, launches)


def expert_exchange(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """Dispatch and combine between data-parallel ranks for `tokens` [steps] tokens on each rank.

    allgather_reducescatter: every rank receives every token (vLLM's default). deepep_high_throughput: a token
    goes once to each rank that holds one of its experts, and once over the network to each other node.
    deepep_low_latency: one copy per expert, all over the network adapters between nodes. DeepEP dispatches fp8
    when the experts are fp8, and combines in bf16.
    """
    lockstep = layout.deployment.lockstep_ranks
    moe = layout.model.moe
    if moe is None or lockstep == 1:
        return nothing(tokens)
    row_bytes = layout.model.hidden_size * _ACTIVATION_BYTES
    if layout.deployment.all2all_backend == "allgather_reducescatter":
        one_way = all_gather_s(layout.dp_group, tokens * lockstep * row_bytes)
        return transfer(2 * one_way, launches=2.0)
    dispatch = row_bytes / 2 if layout.expert_dtype.compute == "fp8" else row_bytes
    local, remote = _copies(layout, moe)
    seconds = sum(
        (
            all_to_all_s(layout.ep_group, tokens * local * size, tokens * remote * size)
            for size in (dispatch, row_bytes)
        ),
        start=np.zeros_like(tokens),
    )
    return transfer(seconds, launches=4.0)


def _copies(layout: Layout, moe: MixtureOfExperts) -> tuple[float, float]:
    """Mean copies of a token sent to ranks of its own node and to other nodes."""
    group: Group = layout.ep_group
    ranks = layout.deployment.expert_parallel_size
    if layout.deployment.all2all_backend == "deepep_low_latency":
        per_token = moe.top_k * (ranks - 1) / ranks
        return per_token / group.num_nodes, per_token * (group.num_nodes - 1) / group.num_nodes
    loads = rank_loads(
        moe, layout.routing, layout.model.num_moe_layers, layout.seed, (1,), expert_layout(layout.deployment)
    )
    nodes = group.num_nodes
    other_nodes = (nodes - 1) * (1 - (1 - 1 / nodes) ** moe.top_k)
    return loads.destinations, other_nodes
