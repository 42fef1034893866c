"""Decode kernels that cut every context into a fixed number of splits, whatever the batch, and run in whole waves.

A thread block serves one split of one head block of one sequence; `waves` = ceil(blocks / blocks that fit the chip).
A block's prologue, first tile and epilogue do not overlap with other blocks of its compute unit, its further tiles
stream: t = start + waves (prologue + further tiles) + joining the splits. The tables show each of these as steps:
where a wave is added, and where a split gets its second tile.
Left out: unequal contexts inside a batch, and tiles found in L2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.specs.hardware import Accelerator

FloatArray = NDArray[np.float64]
_GRAPH_SEQUENCES = 512.0
"""vLLM (v1/attention/backends/flash_attn.py) asks for its fixed splits up to the largest captured batch."""
_FLASH4_TILE = 64.0
"""Keys of a tile of 512-wide heads, as the tables show it: the second tile comes above 64 keys a split."""
_COMBINE_ROWS, _COMBINE_DIMS = 8.0, 128.0
"""flash_attn/cute/interface.py: rows and head dimensions of a block of the combine kernel."""
_TRITON_TILE = 32.0
_RESIDENT_ALONE = 2.0
"""Blocks of the single-head kernel on a compute unit (its time doubles from 128 to 256 blocks on 108 units)."""


def flash4_seconds(
    accelerator: Accelerator,
    constants: Mapping[str, float],
    batch: FloatArray,
    tokens: FloatArray,
    heads: FloatArray,
    kv_heads: FloatArray,
    token_bytes: FloatArray,
) -> FloatArray:
    """FlashAttention-4 on Hopper, one token for each of `batch` sequences with `tokens` visible keys.

    `token_bytes`: cached bytes of a token and KV head, keys and values of two bytes. Up to 512 sequences
    `decode_max_splits` blocks are launched for every KV head (grouped heads share one), splits without keys as well;
    beyond, the library's own heuristic finds the chip full and splits nothing.
    `decode_search_s`: time of a block, for every sequence of the batch, to find its sequence by prefix sums over the
    query lengths (flash_attn/cute/tile_scheduler.py, SingleTileVarlenScheduler).
    `decode_combine_block_s`: of one block of the combine kernel; its grid counts the rows of all sequences once for
    every sequence (flash_attn/cute/flash_fwd_combine.py), so it grows with the square of the batch.
    """
    units = accelerator.num_compute_units
    splits = np.where(batch <= _GRAPH_SEQUENCES, constants["decode_max_splits"], 1.0)
    waves = np.ceil(batch * kv_heads * splits / units)
    tiles = np.ceil(tokens / _FLASH4_TILE)
    tile_s = _FLASH4_TILE * token_bytes / accelerator.hbm_bandwidth_bytes_per_s
    unit = waves * (np.ceil(tiles / splits) - 1) * tile_s * units / constants["decode_unit_share"]
    chip = batch * kv_heads * np.maximum(tiles - splits, 0) * tile_s / constants["attention_hbm_efficiency"]
    prologue = constants["decode_tile_s"] + constants["decode_search_s"] * batch
    combine = np.where(splits > 1, constants["decode_combine_block_s"], 0.0) * batch
    combine = combine * np.ceil(batch * heads / _COMBINE_ROWS) * np.ceil(token_bytes / 4 / _COMBINE_DIMS)
    return constants["decode_start_s"] + waves * prologue + np.maximum(unit, chip) + combine


def triton_latent_seconds(
    accelerator: Accelerator,
    constants: Mapping[str, float],
    batch: FloatArray,
    cached: FloatArray,
    heads: FloatArray,
    token_bytes: float,
) -> FloatArray:
    """vLLM's Triton MLA decode (v1/attention/ops/triton_decode_attention.py) over `cached` tokens a sequence.

    Blocks of `mla_head_rows` heads, `mla_max_splits` splits, tiles of 32 tokens; splits without tokens return at once.
    A single head runs another kernel, without matrix units: `single_head` times slower a token, two blocks to a
    compute unit. `mla_tile_s`: prologue, first tile and epilogue of all splits of a head block, one after another.
    `mla_reduce_s`: a row of the second kernel, which joins the splits of one head of one sequence.
    """
    alone = heads == 1
    cached = np.maximum(cached, 1)
    length = np.ceil(cached / constants["mla_max_splits"])
    blocks = batch * np.ceil(heads / constants["mla_head_rows"]) * np.ceil(cached / length)
    waves = np.ceil(blocks / accelerator.num_compute_units / np.where(alone, _RESIDENT_ALONE, 1.0))
    unit_rate = accelerator.hbm_bandwidth_bytes_per_s * constants["mla_unit_share"] / accelerator.num_compute_units
    token = token_bytes / unit_rate * np.where(alone, constants["single_head"], 1.0)
    further = np.maximum(length - _TRITON_TILE, 0) * token
    prologue = constants["mla_tile_s"] / constants["mla_max_splits"]
    return constants["mla_start_s"] + waves * (prologue + further) + batch * heads * constants["mla_reduce_s"]
