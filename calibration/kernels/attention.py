"""Measured grouped-query attention kernels against the formulas of `moesim.costs`.

One family a `kernel_source`: FlashAttention-2 (Ampere), 3 (Hopper), 4 (Hopper, heads of 512).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from calibration.kernels.families import Family
from calibration.kernels.fixed_splits import flash4_seconds
from calibration.kernels.tables import KernelTable
from moesim.costs.arithmetic import ARRAYS
from moesim.costs.decode_attention import FULL_CONTEXT, decode_seconds, grouped_query_kernel
from moesim.costs.prefill_attention import causal_pairs, flash_kernel, prefill_seconds

FloatArray = NDArray[np.float64]
_SHAPE = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "window_size")
AMPERE_DECODE_START = {
    "decode_start_s": 8.5e-6,
    "decode_tile_s": 4.2e-6,
    "attention_hbm_efficiency": 0.7,
    "decode_unit_share": 1.2,
    "decode_split_tokens": 150.0,
    "decode_exposed": 0.2,
    "decode_combine_s": 9e-6,
    "decode_regroup_s": 6.5e-6,
}
DECODE_START = {
    "decode_start_s": 7.5e-6,
    "decode_tile_s": 3.5e-6,
    "attention_hbm_efficiency": 0.87,
    "decode_unit_share": 1.3,
    "decode_split_tokens": 64.0,
    "decode_exposed": 0.7,
    "decode_combine_s": 2.4e-6,
}
HOPPER_DECODE_START = {
    **DECODE_START,
    "decode_sequence_s": 2e-8,
    "decode_dim_exponent": 0.4,
    "decode_window_tile": 0.6,
    "decode_fp8_flops": 430.0,
    "attention_fp8_start": 1.15,
}
PREFILL_START = {
    "prefill_start_s": 9e-6,
    "prefill_tile_s": 3e-6,
    "attention_compute_efficiency": 0.75,
    "prefill_edge": 0.5,
    "prefill_exposed": 0.3,
    "prefill_hbm_efficiency": 1.0,
    "kv_write_block_s": 3e-6,
}
HOPPER_PREFILL_START = {
    **PREFILL_START,
    "prefill_softmax_flops": 130.0,
    "attention_fp8_compute": 0.95,
    "prefill_fp8_query": 2.0,
}
FLASH4_DECODE_START = {
    "decode_start_s": 7.5e-6,
    "decode_tile_s": 8e-6,
    "decode_search_s": 1e-8,
    "decode_combine_block_s": 7e-10,
    "attention_hbm_efficiency": 0.87,
    "decode_unit_share": 1.3,
}
UNUSED = {
    "decode_sequence_s": 1e-12,
    "decode_regroup_s": 1e-12,
    "decode_dim_exponent": 0.4,
    "decode_window_tile": 0.6,
    "decode_fp8_flops": 430.0,
    "attention_fp8_start": 1.0,
    "attention_fp8_compute": 1.0,
    "prefill_fp8_query": 1.0,
    "prefill_softmax_flops": 120.0,
}
"""Constants without effect on the rows of a family that does not fit them."""
AMPERE_FIXED = {
    "decode_max_splits": 128.0,
    "decode_ungrouped_splits": 1.0,
    "prefill_tile_rows": 64.0,
    "prefill_narrow_rows": 1.0,
    "prefill_packed_heads": 1.0,
    "prefill_max_splits": 1.0,
}
"""FlashAttention-2's source; `decode_regroup_s` is fitted."""
HOPPER_FIXED = {
    "decode_max_splits": 32.0,
    "decode_ungrouped_splits": 32.0,
    "prefill_tile_rows": 128.0,
    "prefill_narrow_rows": 1.5,
    "prefill_packed_heads": 128.0,
    "prefill_max_splits": 32.0,
}
"""FlashAttention-3's source; vLLM allows 32 splits under graphs."""


def predict_generation(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    """Decode rows: one token for each sequence; `isl + step` keys are visible with the new one."""
    batch = table.number("batch_size")
    return _decode(table, constants, batch, batch * (table.number("isl") + table.number("step")))


def predict_flash4_generation(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    """Decode rows of FlashAttention-4, whose splits do not depend on the batch."""
    heads, kv_heads, head_dim, kv_bytes, _ = _heads(table)
    tokens = table.number("isl") + table.number("step")
    token_bytes = 2 * head_dim * kv_bytes
    batch = table.number("batch_size")
    return flash4_seconds(table.accelerator, constants, batch, tokens, heads, kv_heads, token_bytes)


def predict_context(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    """Prefill rows; prompts of one token run as decode does."""
    batch, tokens = table.number("batch_size"), table.number("isl")
    heads, kv_heads, head_dim, kv_bytes, window = _heads(table)
    kernel = flash_kernel(table.accelerator, constants, heads, kv_heads, head_dim, kv_bytes, window)
    pairs = batch * causal_pairs(tokens, window)
    seconds = prefill_seconds(kernel, batch, batch * tokens, pairs, batch * tokens, ARRAYS)
    single = tokens == 1
    if single.any():
        rows = table.where(single)
        seconds[single] = _decode(rows, constants, batch[single], batch[single])
    return seconds


def _decode(table: KernelTable, constants: Mapping[str, float], batch: FloatArray, cached: FloatArray) -> FloatArray:
    heads, kv_heads, head_dim, kv_bytes, window = _heads(table)
    kernel = grouped_query_kernel(table.accelerator, constants, heads, kv_heads, head_dim, kv_bytes, window)
    return decode_seconds(kernel, batch, cached)


def _heads(table: KernelTable) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    window = table.number("window_size") if table.has("window_size") else np.zeros(len(table))
    return (
        table.number("num_heads"),
        table.number("num_key_value_heads"),
        table.number("head_dim"),
        _kv_bytes(table),
        np.where(window > 0, window + 1, FULL_CONTEXT),
    )


def _kv_bytes(table: KernelTable) -> FloatArray:
    return np.where(table.text("kv_cache_dtype") == "fp8", 1.0, 2.0)


def _family(
    name: str, decode: Mapping[str, float], fixed: Mapping[str, float], prefill: Mapping[str, float] | None = None
) -> Family:
    """A decode family, or with `prefill` the prefill family of the same library (prompts of one token: as decode)."""
    if prefill is None:
        return Family(f"{name} decode", predict_generation, decode, _SHAPE, fixed, held=UNUSED)
    return Family(f"{name} prefill", predict_context, prefill, _SHAPE, fixed, held={**UNUSED, **decode})


_FLASH4_SINGLE = {**DECODE_START, "decode_sequence_s": 2e-6}
"""What FlashAttention-4's prefill family takes for prompts of one token."""
GENERATION = {
    "vllm_flash_attn": _family("FlashAttention-2", AMPERE_DECODE_START, AMPERE_FIXED),
    "vllm_flash_attn_fa3": _family("FlashAttention-3", HOPPER_DECODE_START, HOPPER_FIXED),
    "vllm_flash_attn_fa4": Family(
        "FlashAttention-4 decode", predict_flash4_generation, FLASH4_DECODE_START, _SHAPE, HOPPER_FIXED
    ),
}
"""Decode families by `kernel_source`."""
CONTEXT = {
    "vllm_flash_attn": _family("FlashAttention-2", AMPERE_DECODE_START, AMPERE_FIXED, PREFILL_START),
    "vllm_flash_attn_fa3": _family("FlashAttention-3", HOPPER_DECODE_START, HOPPER_FIXED, HOPPER_PREFILL_START),
    "vllm_flash_attn_fa4": _family("FlashAttention-4", _FLASH4_SINGLE, HOPPER_FIXED, PREFILL_START),
}
"""Prefill families by `kernel_source`."""
