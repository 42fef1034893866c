"""Routed experts: the heart. Which experts a step touches decides what must be read; skew decides who waits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim.costs.grouped_gemm import (
    KERNELS,
    BlockRule,
    ExpertLoad,
    ExpertShape,
    FusedKernel,
    Tiling,
    fused_experts,
    tiling,
)
from moesim.costs.kernels import OperatorCost, from_parts, nothing
from moesim.costs.layout import Layout
from moesim.costs.triton_tiles import TileTable, shipped_tiles
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

    `distinct` experts touched, `rows` routed token slots, `tiles` after rounding each expert to the rows of a tile
    (`tiling` [steps, 1, 1]). `destinations`: mean number of other ranks that a token's experts lie on.
    """

    distinct: FloatArray
    rows: FloatArray
    tiles: FloatArray
    tiling: Tiling
    destinations: float


@lru_cache(maxsize=128)
def rank_loads(
    moe: MixtureOfExperts,
    routing: Routing,
    layers: int,
    seed: int,
    tokens: tuple[int, ...],
    layout: ExpertLayout,
    rule: BlockRule | TileTable = "tokens",
) -> RankLoads:
    """Loads of every expert-parallel rank for steps of `tokens` tokens, 32 layer draws each."""
    bank = make_bank(moe, routing, layers, seed)
    counts = _counts(bank, tokens, seed)
    physical = _draw_maps(bank, deployed_map(moe, routing, layout, layers, seed))
    slots, ranks = split_tokens(counts, physical), layout.num_ranks
    sizes = np.array(tokens, dtype=float)[:, None, None]
    tiles = tiling(rule, sizes, sizes * moe.top_k, moe.num_experts, moe.num_experts / ranks)
    return RankLoads(
        distinct=sum_slots((slots > 0.5).astype(float), ranks),
        rows=sum_slots(slots, ranks),
        tiles=sum_slots(np.ceil(slots / tiles.rows), ranks),
        tiling=tiles,
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
    products, and computes whole tiles (sum of ceil(n_e / block) over its experts), see `grouped_gemm`. All ranks
    wait for the slowest one.
    """
    moe = layout.model.moe
    zero = np.zeros(len(group_tokens))
    if moe is None:
        return RoutedCost(nothing(zero), zero, zero)
    layers = layout.model.num_moe_layers
    sizes = tuple(int(size) for size in group_tokens)
    kernel = deployed_kernel(layout)
    placed = expert_layout(layout.deployment)
    loads = rank_loads(moe, layout.routing, layers, layout.seed, sizes, placed, rule=kernel.block_rule)
    cost = _fused(layout, moe, kernel, loads, group_tokens.astype(float)[:, None, None])
    seconds = cost.seconds
    slowest = seconds.argmax(axis=2)[:, :, None]
    means = [np.take_along_axis(array, slowest, axis=2)[:, :, 0].mean(axis=1) for array in _arrays(cost)]
    picked = OperatorCost(*means, launches=cost.launches)
    per_draw = np.take_along_axis(seconds, slowest, axis=2)[:, :, 0]
    return RoutedCost(picked, per_draw.std(axis=1), seconds.mean(axis=(1, 2)))


def _arrays(cost: OperatorCost) -> tuple[FloatArray, ...]:
    return (cost.memory_s, cost.compute_s, cost.network_s, cost.launch_s, cost.hbm_bytes, cost.flops)


def deployed_kernel(layout: Layout) -> FusedKernel:
    """The fused kernel that vLLM runs for the experts' format on Hopper (as its 0.24 tables record).

    Block-fp8 experts run on FlashInfer when sharded by expert and on Triton otherwise; per-tensor fp8 on Triton
    (ModelOpt checkpoints alone take FlashInfer's, which the tables show far slower), int4 on Marlin, MXFP4 on the
    gpt-oss kernels. NVFP4 runs on FlashInfer where the matrix units have an fp4 rate, else on Marlin like int4.
    """
    dtype = layout.expert_dtype
    if dtype.name == "nvfp4":
        return KERNELS["nvfp4" if "fp4" in layout.cluster.accelerator.peak_flops_per_s else "int4"]
    if dtype.name == "fp8_block":
        return KERNELS["cutlass_block" if layout.deployment.expert_parallel_size > 1 else "block"]
    if dtype.name in ("int4", "mxfp4"):
        return KERNELS[dtype.name]
    kernel = KERNELS["bf16" if dtype.compute == "bf16" else "fp8"]
    moe, deployment = layout.model.moe, layout.deployment
    if moe is None or kernel.name != "bf16":
        return kernel
    experts = moe.num_experts // deployment.expert_parallel_size
    width = moe.intermediate_size // deployment.moe_tensor_parallel_size
    tiles = shipped_tiles(layout.cluster.accelerator.name, experts, width)
    return replace(kernel, block_rule=tiles) if tiles else kernel


def _fused(
    layout: Layout, moe: MixtureOfExperts, kernel: FusedKernel, loads: RankLoads, tokens: FloatArray
) -> OperatorCost:
    """The fused call of every rank; with DeepEP a rank holds only the slots sent to it, else those of all tokens."""
    gathered = layout.deployment.lockstep_ranks == 1 or layout.deployment.all2all_backend == "allgather_reducescatter"
    load = ExpertLoad(
        tokens=tokens,
        slots=tokens * moe.top_k if gathered else loads.rows,
        distinct=loads.distinct,
        rows=loads.rows,
        tiles=loads.tiles,
        tiling=loads.tiling,
        global_experts=float(moe.num_experts),
        split=layout.deployment.expert_parallel_size > 1,
    )
    width = moe.intermediate_size / layout.deployment.moe_tensor_parallel_size
    shape = ExpertShape(float(layout.model.hidden_size), width)
    parts = fused_experts(load, shape, layout.expert_dtype, layout.rates.accelerator, layout.parameters, kernel)
    cost = from_parts(parts, _calls(layout, quantised=kernel.activation_bytes < _ACTIVATION_BYTES))
    return cost.slowed(layout.parameters["experts_slowdown"])


def _calls(layout: Layout, quantised: bool) -> float:
    """Host calls of one fused-MoE layer: Triton's sort, two products, activation and sum, and its quantisations.

    AITER does all of it in one call. Measured on MI300X (eager, `offline_batch.csv`): a layer costs the host 0.5 to
    0.6 ms less with AITER, six calls' worth. That AITER's kernels themselves differ is left out.
    """
    if layout.deployment.moe_backend == "aiter":
        return 1.0
    return 5.0 + (2.0 if quantised else 0.0)
