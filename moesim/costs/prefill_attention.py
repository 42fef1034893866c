"""Attention of many new tokens: query tiles against the cached and new keys, the cache write beside it.

Left out: unequal chunks within a step (the mean chunk counts), tile shapes by head size beyond 64, power limits in
calls of many milliseconds (up to 8 % slower).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.costs.arithmetic import ARRAYS, FLOATS, Arithmetic, Numeric
from moesim.costs.decode_attention import FULL_CONTEXT
from moesim.specs.hardware import Accelerator, peak_rate
from moesim.specs.parameters import Constants

_KEY_BLOCK = 128.0
_WRITE_THREADS = 512.0
_UNIT_THREADS = 2048.0
_FILLED = 0.8
"""Kernels that split do so below this share of compute units with a tile."""
_SPLIT_BALANCE = 1.5
"""Splits are chosen so that the last wave is nearly full: finer than one tile a compute unit."""


@dataclass(frozen=True, slots=True)
class PrefillKernel:
    """Prefill attention of one layer on one rank; fields are numbers, or arrays with one entry a measured row.

    `pair_s`: seconds of one compute unit per (query, key) pair and head. `query_token_s` and `write_token_s`: of
    the whole chip per new token, for queries and outputs, and for writing keys and values to the cache.
    `tile_rows`: query rows a tile, `packed` of which are heads of one group.
    """

    compute_units: float
    heads: Numeric
    packed: Numeric
    tile_rows: Numeric
    start_s: Numeric
    tile_s: Numeric
    pair_s: Numeric
    query_token_s: Numeric
    write_token_s: Numeric
    max_splits: float
    edge: float
    exposed: float
    window: Numeric


def prefill_seconds(
    kernel: PrefillKernel,
    chunks: Numeric,
    tokens: Numeric,
    pairs: Numeric,
    cached: Numeric,
    arithmetic: Arithmetic = FLOATS,
) -> Numeric:
    """Seconds for `chunks` chunks of together `tokens` new tokens that attend `pairs` (query, key) pairs.

    `cached`: keys visible in all (old and new). Work is spread over the chip, but no call ends before its longest
    tile; tiles at the diagonal compute masked pairs as well.
    """
    least, most, ceil = arithmetic
    units, packed, rows = kernel.compute_units, kernel.packed, kernel.tile_rows
    length = tokens / chunks
    tiles_each = ceil(length * packed / rows)
    tiles = chunks * kernel.heads / packed * tiles_each
    keys = cached / chunks
    slides = keys > kernel.window
    masked = kernel.edge * (rows / packed + _KEY_BLOCK) / 2 * (1 + slides)
    padded = tiles_each * rows / packed / length * (pairs + tokens * masked)
    work = (tiles * kernel.tile_s + kernel.heads * padded * kernel.pair_s) / units
    splits = least(most(_SPLIT_BALANCE * units / tiles * (tiles < _FILLED * units), 1.0), kernel.max_splits)
    longest = kernel.tile_s + rows * least(keys, kernel.window + rows) * kernel.pair_s / splits
    moved = tokens * (kernel.query_token_s + kernel.write_token_s)
    return kernel.start_s + moved + most(work, longest) + kernel.exposed * least(work, longest)


def flash_kernel(
    accelerator: Accelerator,
    constants: Constants,
    heads: Numeric,
    kv_heads: Numeric,
    head_dim: Numeric,
    kv_bytes: Numeric,
    window: Numeric = FULL_CONTEXT,
) -> PrefillKernel:
    """FlashAttention on paged caches. `kv_bytes`: of one cached value.

    A pair costs 4 head_dim FLOPs of the matrix units and a softmax that weighs as `prefill_softmax_flops` of them.
    """
    one_byte = kv_bytes < 2
    units = accelerator.num_compute_units
    rate = peak_rate(accelerator, "bf16") * constants["attention_compute_efficiency"]
    rate = rate * np.where(one_byte, constants["attention_fp8_compute"], 1.0) / units
    bandwidth = accelerator.hbm_bandwidth_bytes_per_s * constants["prefill_hbm_efficiency"]
    threads = np.minimum(kv_heads * head_dim, _WRITE_THREADS) / _UNIT_THREADS
    rows = constants["prefill_tile_rows"] * np.where(head_dim == 64, constants["prefill_narrow_rows"], 1.0)
    query_bytes = 4.0 * heads * head_dim * np.where(one_byte, constants["prefill_fp8_query"], 1.0)
    return PrefillKernel(
        compute_units=float(units),
        heads=heads,
        packed=np.minimum(heads / kv_heads, constants["prefill_packed_heads"]),
        tile_rows=rows,
        start_s=constants["prefill_start_s"] * np.where(one_byte, constants["attention_fp8_start"], 1.0),
        tile_s=constants["prefill_tile_s"],
        pair_s=(4.0 * head_dim + constants["prefill_softmax_flops"]) / rate,
        query_token_s=query_bytes / bandwidth,
        write_token_s=threads * constants["kv_write_block_s"] / units
        + 2.0 * kv_heads * head_dim * (2.0 + kv_bytes) / bandwidth,
        max_splits=constants["prefill_max_splits"],
        edge=constants["prefill_edge"],
        exposed=constants["prefill_exposed"],
        window=window,
    )


def latent_prefill_kernel(
    accelerator: Accelerator,
    constants: Constants,
    heads: Numeric,
    head_dim: float,
    value_dim: float,
) -> PrefillKernel:
    """MLA prefill: keys and values are expanded from the latent to full heads, then attended like any heads.

    The expansion product counts among the projections; its copies (concatenation with rope, padding of values)
    move `mla_expand_passes` times the expanded elements.
    """
    units = accelerator.num_compute_units
    rate = peak_rate(accelerator, "bf16") * constants["mla_prefill_compute_efficiency"] / units
    passes = constants["mla_expand_passes"] * 4.0 * heads * (head_dim + value_dim)
    return PrefillKernel(
        compute_units=float(units),
        heads=heads,
        packed=1.0,
        tile_rows=constants["prefill_tile_rows"],
        start_s=constants["mla_start_s"],
        tile_s=constants["prefill_tile_s"],
        pair_s=2.0 * (head_dim + value_dim) / rate,
        query_token_s=passes / accelerator.hbm_bandwidth_bytes_per_s,
        write_token_s=0.0,
        max_splits=constants["prefill_max_splits"],
        edge=constants["prefill_edge"],
        exposed=constants["prefill_exposed"],
        window=FULL_CONTEXT,
    )


def causal_pairs(tokens: Numeric, window: Numeric = FULL_CONTEXT) -> Numeric:
    """(Query, key) pairs of a prompt of `tokens` with nothing cached before it, each query seeing `window` keys."""
    seen = np.minimum(tokens, window)
    return seen * (seen + 1) / 2 + (tokens - seen) * seen


def prefill_rows_seconds(kernel: PrefillKernel, batch: Numeric, tokens: Numeric, pairs: Numeric) -> Numeric:
    """Seconds of measured rows: `batch` prompts of `tokens` tokens each, `pairs` pairs in a prompt."""
    return prefill_seconds(kernel, batch, batch * tokens, batch * pairs, batch * tokens, ARRAYS)
