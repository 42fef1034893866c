"""Measured MLA kernels (Ampere, launched by the host) and whole MLA modules (Hopper) of DeepSeek-V3.

A module holds the projections as well: their constants (`module_...`) serve these tables alone; the simulator
prices projections as matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from calibration.kernels.attention import AMPERE_FIXED, HOPPER_FIXED, UNUSED
from calibration.kernels.families import Family
from calibration.kernels.fixed_splits import triton_latent_seconds
from calibration.kernels.tables import KernelTable
from moesim.costs.arithmetic import ARRAYS
from moesim.costs.decode_attention import decode_seconds, latent_kernel
from moesim.costs.prefill_attention import causal_pairs, latent_prefill_kernel, prefill_seconds
from moesim.specs.hardware import peak_rate

FloatArray = NDArray[np.float64]
_LATENT, _ROPE, _NOPE, _VALUE = 512.0, 64.0, 128.0, 128.0
_HIDDEN, _QUERY_RANK = 7168.0, 1536.0
_FLOOR_CORNER = 6.0
_SHAPE = ("batch_size", "isl", "step", "num_heads")


def predict_generation_kernel(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    """Decode rows of one MLA kernel, launched without a graph: `host_floor_s` of host time shows below it.

    `isl + step - 1` tokens are cached (the first rows show one and three busy splits, not two and four).
    """
    cached = table.number("isl") + table.number("step") - 1
    batch, heads = table.number("batch_size"), table.number("num_heads")
    seconds = triton_latent_seconds(table.accelerator, constants, batch, cached, heads, (_LATENT + _ROPE) * 2)
    return _above_floor(seconds, constants)


def predict_context_kernel(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    """Prefill rows of the MLA kernels, launched without a graph."""
    return _above_floor(constants["eager_start_s"] + _prefill(table, constants), constants)


def _above_floor(seconds: FloatArray, constants: Mapping[str, float]) -> FloatArray:
    floor = constants["host_floor_s"]
    return (seconds**_FLOOR_CORNER + floor**_FLOOR_CORNER) ** (1 / _FLOOR_CORNER)


def _decode(table: KernelTable, constants: Mapping[str, float], length: FloatArray) -> FloatArray:
    batch = table.number("batch_size")
    kernel = latent_kernel(table.accelerator, constants, table.number("num_heads"), _LATENT, _ROPE, _kv_bytes(table))
    return decode_seconds(kernel, batch, batch * length)


def _prefill(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    batch, tokens = table.number("batch_size"), table.number("isl")
    kernel = latent_prefill_kernel(table.accelerator, constants, table.number("num_heads"), _NOPE + _ROPE, _VALUE)
    return prefill_seconds(kernel, batch, batch * tokens, batch * causal_pairs(tokens), batch * tokens, ARRAYS)


def _kv_bytes(table: KernelTable) -> FloatArray:
    return np.where(table.text("kv_cache_dtype") == "fp8", 1.0, 2.0)


def predict_generation_module(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    """Decode rows of a whole module; `step` keys are visible with the new one."""
    attention = _decode(table, constants, table.number("step"))
    return _projections(table, constants, table.number("batch_size")) + attention


def predict_context_module(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    """Prefill rows of a whole module: short prompts attend in the latent space, long ones with full heads."""
    batch, tokens, heads = table.number("batch_size"), table.number("isl"), table.number("num_heads")
    expanded = table.text("kernel_source") == "FLASH_ATTN"
    rows = np.ceil(tokens * heads / constants["mla_head_rows"]) * constants["mla_head_rows"] / heads
    pairs = rows / tokens * batch * (causal_pairs(tokens) + tokens * constants["prefill_edge"] * 32.0)
    rate = peak_rate(table.accelerator, "bf16") * constants["module_absorbed_efficiency"]
    rate = rate * np.where(_kv_bytes(table) < 2, constants["module_absorbed_fp8"], 1.0)
    absorbed = 2.0 * (2 * _LATENT + _ROPE) * heads * pairs / rate
    attention = np.where(expanded, _prefill(table, constants), absorbed)
    return _projections(table, constants, batch * tokens) + attention


def _projections(table: KernelTable, constants: Mapping[str, float], tokens: FloatArray) -> FloatArray:
    """Query, key-value, absorbed and output products of `tokens` tokens, and what moves between them."""
    heads, block = table.number("num_heads"), table.text("gemm_type") != "bfloat16"
    shared = _HIDDEN * (_QUERY_RANK + _LATENT + _ROPE)
    each = _QUERY_RANK * (_NOPE + _ROPE) + _LATENT * (_NOPE + _VALUE) + _HIDDEN * _VALUE
    weights = shared + heads * each
    accelerator = table.accelerator
    memory = weights * np.where(block, 1.0, 2.0)
    memory = memory / (accelerator.hbm_bandwidth_bytes_per_s * constants["module_hbm_efficiency"])
    rate = np.where(block, peak_rate(accelerator, "fp8"), peak_rate(accelerator, "bf16"))
    rate = rate * constants["module_compute_efficiency"] * np.where(block, constants["module_fp8_compute"], 1.0)
    arithmetic = 2.0 * weights * tokens / rate
    moved = (
        tokens * 2.0 * (constants["module_token_passes"] * _HIDDEN + constants["module_head_passes"] * heads * 640.0)
    )
    start = constants["module_start_s"] * np.where(block, constants["module_fp8_start"], 1.0)
    start = start * np.where(_kv_bytes(table) < 2, constants["module_fp8_cache_start"], 1.0)
    return start + memory + arithmetic + moved / accelerator.hbm_bandwidth_bytes_per_s


_MODULE_START = {
    "module_start_s": 8e-5,
    "module_fp8_start": 1.1,
    "module_fp8_cache_start": 1.1,
    "module_hbm_efficiency": 0.85,
    "module_fp8_compute": 0.7,
    "module_token_passes": 6.0,
    "module_head_passes": 6.0,
}
_MODULE_FIXED = {"mla_head_rows": 64.0, "mla_max_splits": 132.0}
"""FlashMLA's and FlashAttention-3's source: blocks of 64 heads, a split for each compute unit."""
_MODULE_HELD = {
    **UNUSED,
    **HOPPER_FIXED,
    "module_compute_efficiency": 0.76,
    "mla_start_s": 1e-6,
    "decode_split_tokens": 64.0,
    "decode_combine_s": 2e-6,
    "mla_unit_share": 2.0,
    "prefill_tile_s": 2.8e-6,
    "prefill_exposed": 0.03,
    "prefill_edge": 0.39,
    "mla_prefill_compute_efficiency": 0.8,
}
"""Products at what the matrix-product tables show, attention's prefill as in its own tables."""
TRITON_GENERATION = Family(
    "Triton MLA decode",
    predict_generation_kernel,
    {
        "host_floor_s": 3.3e-4,
        "mla_tile_s": 4e-5,
        "mla_unit_share": 0.5,
        "mla_reduce_s": 1e-8,
        "single_head": 3.0,
    },
    _SHAPE,
    {"mla_head_rows": 16.0, "mla_max_splits": 4.0},
    held={"mla_start_s": 8e-6},
)
"""The host floor hides `mla_start_s`: it stays at its prior."""
AMPERE_CONTEXT = Family(
    "MLA prefill on Ampere",
    predict_context_kernel,
    {
        "host_floor_s": 3e-4,
        "eager_start_s": 1e-4,
        "mla_prefill_compute_efficiency": 0.52,
        "mla_expand_passes": 6.0,
    },
    _SHAPE,
    held={
        **UNUSED,
        **AMPERE_FIXED,
        "mla_start_s": 1e-6,
        "prefill_tile_s": 2.4e-6,
        "prefill_edge": 0.23,
        "prefill_exposed": 0.5,
    },
)
GENERATION_MODULE = Family(
    "MLA module decode",
    predict_generation_module,
    {
        **_MODULE_START,
        "mla_hbm_efficiency": 0.92,
        "mla_decode_compute_efficiency": 0.72,
        "mla_fp8_compute": 1.05,
        "mla_tile_s": 1e-6,
    },
    _SHAPE,
    _MODULE_FIXED,
    held=_MODULE_HELD,
)
CONTEXT_MODULE = Family(
    "MLA module prefill",
    predict_context_module,
    {
        **_MODULE_START,
        "mla_expand_passes": 0.5,
        "module_absorbed_efficiency": 0.35,
        "module_absorbed_fp8": 0.3,
    },
    _SHAPE,
    _MODULE_FIXED,
    held=_MODULE_HELD,
)
