"""Fused mixture-of-experts kernels: sort, two grouped products, activation, and the sum over a token's experts.

    fixed_s (+ moe_sort_s) + product 1 + product 2 + elementwise bytes / (combine_efficiency x HBM bandwidth)

Each grouped product is (memory^p + tiles^p)^(1/p). `memory`: the weights of the distinct experts that the tokens
touch, as often as their row blocks fetch them (`_fetches`), and the routed rows in and out. `tiles`: sum over experts
of ceil(rows / block rows), times the column tiles, in waves over the compute units (half of a partly filled last wave
is hidden by neighbours); a tile's time is as in `gemm`. Tiles follow the library's rule (`tiling`).
Left out: expert-to-expert differences within a wave, depth and stages of a tile (up to 1.3x), and the autotuning of
FlashInfer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.costs.gemm import ACTIVATION_BYTES, Constants, KernelParts, smooth_maximum
from moesim.costs.triton_tiles import TileTable
from moesim.specs.dtypes import Dtype
from moesim.specs.hardware import Accelerator, peak_rate

FloatArray = NDArray[np.float64]
BlockRule = Literal["tokens", "experts", "mean", "mean64", "full", "marlin", "rows", "scaled"]
_COLUMN_TILES = (32.0, 64.0, 128.0, 256.0)
_STEP = 64.0
_CACHE_SHARE = 0.45
"""Share of the L2 cache that keeps weights between back-to-back calls (the rest holds activations)."""
_RESIDENT = 1.0
"""Tiles at work on a compute unit at a time (of 1, 2, 3 and many, what the tables of the H200 agree with best)."""
_SPARSE = 4.0
"""Below one routed slot per four experts vLLM skips the sort (its SPARSITY_FACTOR)."""


@dataclass(frozen=True, slots=True)
class FusedKernel:
    """One implementation: the prefix of its constants, its rule for the rows of a block, and what it does besides.

    `walks_foreign_rows`: also activates and sums the slots of experts on other ranks (Triton and Marlin keep a row
    for every slot; FlashInfer and the gpt-oss kernels gather the local ones). `sorts`: runs vLLM's alignment kernel.
    `activation_bytes`: per element of the products' inputs. `slow_partial_tiles`: rows missing from a tile cost
    more than rows computed (measured for FlashInfer's per-tensor fp8: 120 rows an expert take twice as long as 128).
    `maps_experts`: routes in one kernel, and in several where a rank holds some of the experts only (gpt-oss kernels).
    """

    name: str
    block_rule: BlockRule | TileTable
    walks_foreign_rows: bool
    sorts: bool
    activation_bytes: float
    slow_partial_tiles: bool = False
    maps_experts: bool = False


_TRITON = ("bf16", "fp8")

KERNELS: dict[str, FusedKernel] = {
    kernel.name: kernel
    for kernel in (
        FusedKernel("bf16", "tokens", True, True, 2.0),
        FusedKernel("fp8", "tokens", True, True, 1.0),
        FusedKernel("block", "scaled", True, True, 1.0),
        FusedKernel("cutlass", "full", False, False, 1.0, slow_partial_tiles=True),
        FusedKernel("cutlass_block", "mean64", False, False, 1.0),
        FusedKernel("int4", "marlin", True, False, 2.0),
        FusedKernel("mxfp4", "rows", False, True, 2.0, maps_experts=True),
        FusedKernel("mxfp4_marlin", "marlin", True, False, 2.0),
        FusedKernel("nvfp4", "mean64", False, False, 0.5),
    )
}
"""By name: Triton with bf16, per-tensor fp8 and block-fp8 weights; FlashInfer CUTLASS with per-tensor and block fp8;
Marlin with int4; the gpt-oss Triton kernels with MXFP4; Marlin with MXFP4; FlashInfer on Blackwell with NVFP4."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles of a grouped product: `rows`, `columns` (0: the best of four), and how many row blocks walk the columns
    together (`groups`), so that they fetch a column's weights once.
    """

    rows: FloatArray
    columns: FloatArray
    groups: FloatArray


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """What one rank's fused kernel is given; arrays broadcast to one shape.

    `tokens` in the call, `slots` = tokens x top-k on all ranks, and on this rank: `distinct` experts touched,
    `rows` routed slots, `tiles` = sum over experts of ceil(rows / rows of a tile), for tiles as in `tiling`.
    `global_experts`: experts of the layer on all ranks, `split` whether the rank holds some of them only.
    """

    tokens: FloatArray
    slots: FloatArray
    distinct: FloatArray
    rows: FloatArray
    tiles: FloatArray
    tiling: Tiling
    global_experts: FloatArray | float
    split: NDArray[np.bool_] | bool


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """One expert on one rank: hidden size, its (sharded) width, and how many products precede the activation."""

    hidden: FloatArray | float
    width: FloatArray | float
    up_products: FloatArray | float = 2.0


def tiling(
    rule: BlockRule | TileTable,
    tokens: FloatArray,
    slots: FloatArray,
    experts: FloatArray | float,
    local_experts: FloatArray | float,
) -> Tiling:
    """Tiles for calls of `tokens` tokens with `slots` choices of `experts`, `local_experts` of which are on the rank.

    tokens: vLLM's default Triton configuration since 0.17 (16, 32, 64, 128 rows up to 32, 96, 512 tokens and above).
    experts: the default before (16 rows up to as many tokens as local experts, then 64). mean, mean64: the power of
    two above the mean rows of an expert, 16 to 128 or 64. full: always 128. scaled: vLLM's for block-fp8 weights (16
    rows up to 64 tokens, then 64, and the 128 columns of a scale). rows: as mean (gpt-oss kernels), and
    marlin: the smallest block that the mean fills to less than 0.9; both divide all choices by the local experts, so
    that expert parallelism makes blocks larger than its experts fill. A table of the library's tiles: its own.
    Kernels of other kinds than Triton's take any columns and share weights among row blocks. Read off vLLM 0.23:
    `fused_moe.get_default_config`, `fused_marlin_moe`, and `opt_flags` of its copy of triton_kernels.
    """
    tokens = np.asarray(tokens, dtype=float)
    mean, taken = np.maximum(slots / experts, 1e-9), np.maximum(slots / local_experts, 1e-9)
    if isinstance(rule, TileTable):
        return Tiling(*rule.at(tokens))
    if rule == "tokens":
        rows = np.select([tokens <= 32, tokens <= 96, tokens <= 512], [16.0, 32.0, 64.0], 128.0)
        return Tiling(rows, np.where(tokens <= 64, 64.0, 128.0), np.where(tokens // local_experts > 128, 16.0, 1.0))
    if rule == "experts":
        few = tokens <= local_experts
        return Tiling(np.where(few, 16.0, 64.0), np.where(few, 32.0, 64.0), np.where(few, 1.0, 8.0))
    if rule == "scaled":
        rows = np.where(tokens <= 64, 16.0, 64.0)
        return Tiling(rows, np.full_like(rows, 128.0), np.where(tokens <= 16, 1.0, 32.0))
    if rule == "marlin":
        rows = np.select([taken < 7.2, taken < 14.4, taken < 28.8, taken < 43.2], [8.0, 16.0, 32.0, 48.0], 64.0)
    elif rule == "full":
        rows = np.full_like(mean, 128.0)
    else:
        mean = np.floor(taken) if rule == "rows" else mean
        rows = np.clip(2.0 ** np.ceil(np.log2(np.maximum(mean, 1.0))), 16.0, 64.0 if rule == "mean64" else 128.0)
    return Tiling(rows, np.zeros_like(rows), np.full_like(rows, np.inf))


def fused_experts(
    load: ExpertLoad,
    shape: ExpertShape,
    dtype: Dtype,
    accelerator: Accelerator,
    constants: Constants,
    kernel: FusedKernel,
    *,
    warm: bool = False,
    tuned: NDArray[np.bool_] | bool = True,
) -> KernelParts:
    """Cost of one rank's fused-MoE call.

    Args:
        warm: calls follow each other on the same weights, as in a microbenchmark, so that weights smaller than
            the L2 cache stay there (never true between the layers of a model).
        tuned: the library ships a configuration for the shape; where false, the rule "experts" prescribes its
            small default tile, which costs `moe_untuned_slowdown` besides.
    """
    hidden, width = np.asarray(shape.hidden, dtype=float), np.asarray(shape.width, dtype=float)
    up = np.asarray(shape.up_products, dtype=float)
    expert_bytes = hidden * width * dtype.bytes_per_element
    cold = _cold_share(load.distinct * expert_bytes * (up + 1.0), accelerator) if warm else 1.0
    prefix = f"moe_{kernel.name}_"
    spill = 1.0 + constants[prefix + "spill_loss"] * _beyond_cache(load.tokens * hidden * ACTIVATION_BYTES, accelerator)
    if kernel.block_rule == "experts":
        spill = spill * np.where(tuned, 1.0, constants["moe_untuned_slowdown"])
    parts = [
        _product(load, inner, outer, weights * cold, (slow, spill), dtype, accelerator, constants, kernel)
        for inner, outer, weights, slow in (
            (hidden, up * width, load.distinct * expert_bytes * up, 1.0),
            (width, hidden, load.distinct * expert_bytes, _misaligned(width, constants, kernel)),
        )
    ]
    foreign = load.slots - load.rows if kernel.walks_foreign_rows else 0.0
    streamed = (load.rows + foreign) * ((up + 1.0) * width + 2.0 * hidden) + load.tokens * hidden
    streamed = streamed * ACTIVATION_BYTES
    around = streamed / (accelerator.hbm_bandwidth_bytes_per_s * constants[prefix + "combine_efficiency"])
    fixed = constants[prefix + "fixed_s"] + np.zeros_like(around)
    if kernel.sorts:
        fixed = fixed + np.where(load.slots * _SPARSE > load.global_experts, constants["moe_sort_s"], 0.0)
    if kernel.maps_experts:
        fixed = fixed + np.where(load.split, constants["moe_map_s"], 0.0)
    return KernelParts(
        memory_s=parts[0].memory_s + parts[1].memory_s + around,
        compute_s=parts[0].compute_s + parts[1].compute_s,
        fixed_s=fixed,
        hbm_bytes=parts[0].hbm_bytes + parts[1].hbm_bytes + streamed,
        flops=parts[0].flops + parts[1].flops,
    )


def _cold_share(footprint: FloatArray, accelerator: Accelerator) -> FloatArray:
    """Share of the weights that a repeated call must read from HBM again."""
    return 1.0 - 1.0 / (1.0 + (footprint / (_CACHE_SHARE * accelerator.l2_cache_bytes)) ** 3)


def _beyond_cache(footprint: FloatArray, accelerator: Accelerator) -> FloatArray:
    """0 while activations fit in the L2 cache, 1 when they are far larger."""
    return 1.0 / (1.0 + (accelerator.l2_cache_bytes / np.maximum(footprint, 1.0)) ** 2)


def _misaligned(width: FloatArray, constants: Constants, kernel: FusedKernel) -> FloatArray:
    """Slowdown of Triton's second product where a row of its weights is no multiple of 16 elements (no wide loads)."""
    if kernel.name not in _TRITON:
        return np.ones_like(width)
    return np.where(width % 16 > 0, constants["moe_misaligned_slowdown"], 1.0)


def _fetches(load: ExpertLoad, outer: FloatArray, weight_bytes: FloatArray, accelerator: Accelerator) -> FloatArray:
    """How often the weights of an expert come from HBM in a product with `outer` columns, on average.

    Every row block of an expert reads all its weights. Those at work at the same time read them once: the row blocks
    that walk the columns together, or as many as fill the chip when a row block has few columns. Weights of an
    expert that fit in the L2 cache are read once as well.
    """
    rows = load.tiles / np.maximum(load.distinct, 1e-9)
    columns = np.where(load.tiling.columns > 0, load.tiling.columns, _COLUMN_TILES[-1])
    at_work = _RESIDENT * accelerator.num_compute_units / np.ceil(outer / columns)
    again = np.maximum(rows / np.maximum(load.tiling.groups, np.maximum(at_work, 1.0)) - 1.0, 0.0)
    return 1.0 + again * _cold_share(weight_bytes / np.maximum(load.distinct, 1e-9), accelerator)


def _product(
    load: ExpertLoad,
    inner: FloatArray,
    outer: FloatArray,
    weight_bytes: FloatArray,
    slowdown: tuple[FloatArray | float, FloatArray],
    dtype: Dtype,
    accelerator: Accelerator,
    constants: Constants,
    kernel: FusedKernel,
) -> KernelParts:
    """One grouped product [rows of each expert, inner] x [inner, outer]; `slowdown` of (all of it, its tiles)."""
    prefix, bandwidth = f"moe_{kernel.name}_", accelerator.hbm_bandwidth_bytes_per_s
    fetched = weight_bytes * _fetches(load, outer, weight_bytes, accelerator)
    moved = fetched + load.rows * (inner * kernel.activation_bytes + outer * ACTIVATION_BYTES)
    memory = moved / (bandwidth * constants[prefix + "hbm_efficiency"]) * slowdown[0]
    if kernel.slow_partial_tiles:
        missing = load.tiles - load.rows / load.tiling.rows
        per_expert = weight_bytes / np.maximum(load.distinct, 1e-9)
        memory = memory + missing * per_expert / (bandwidth * constants["moe_partial_efficiency"])
    tiles = _tiles_s(load, inner, outer, dtype, accelerator, constants, kernel) * slowdown[0] * slowdown[1]
    memory_s, compute_s = smooth_maximum(memory, tiles, constants[prefix + "sharpness"])
    zero = np.zeros_like(memory_s)
    return KernelParts(memory_s, compute_s, zero, moved + zero, 2.0 * load.rows * inner * outer + zero)


def _tiles_s(
    load: ExpertLoad,
    inner: FloatArray,
    outer: FloatArray,
    dtype: Dtype,
    accelerator: Accelerator,
    constants: Constants,
    kernel: FusedKernel,
) -> FloatArray:
    """Seconds of all tiles with the best allowed column tile (a single one where the library's rule names it)."""
    prefix, units = f"moe_{kernel.name}_", accelerator.num_compute_units
    compute = constants[prefix + "compute_efficiency"] * peak_rate(accelerator, _compute_format(kernel, dtype)) / units
    load_rate = constants[prefix + "unit_load_bytes_per_s"]
    depth = np.ceil(inner / _STEP) * _STEP
    stored = constants[prefix + "store_factor"] * ACTIVATION_BYTES * units / accelerator.hbm_bandwidth_bytes_per_s
    named = load.tiling.columns > 0
    candidates: list[FloatArray] = []
    for free in _COLUMN_TILES[:1] if np.all(named) else _COLUMN_TILES:
        tile = np.where(named, load.tiling.columns, free)
        waves = load.tiles * np.ceil(outer / tile) / units
        waves = np.maximum(0.5 * (waves + np.ceil(waves)), 1.0)
        area = load.tiling.rows * tile
        loaded = load.tiling.rows * kernel.activation_bytes + tile * dtype.bytes_per_element
        per_inner = np.maximum(2.0 * area / compute, loaded / load_rate)
        per_inner = np.maximum(per_inner, constants[prefix + "step_s"] / _STEP)
        candidates.append(waves * (constants[prefix + "tile_s"] + depth * per_inner + stored * area))
    return reduce(np.minimum, candidates)


def _compute_format(kernel: FusedKernel, dtype: Dtype) -> str:
    """Weight-only kernels multiply in bf16 (on accelerators with fp4 units the fp4 rate is not used by them)."""
    return "bf16" if kernel.activation_bytes == ACTIVATION_BYTES else dtype.compute
