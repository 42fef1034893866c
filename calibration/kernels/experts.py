"""Measured fused-MoE calls (`moe_perf`) against `moesim.costs.grouped_gemm`, one family of constants a kernel.

`kernel_source` names the kernel, and kernels are never mixed. Calls repeat on the same weights, so weights below the
L2 cache are read from it. `num_tokens` counts the tokens of the whole expert-parallel group; one rank is measured.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.kernels.benchmark_loads import Distribution, measured_rank_loads
from calibration.kernels.families import Family
from calibration.kernels.tables import KernelTable
from moesim.costs.grouped_gemm import KERNELS, ExpertLoad, ExpertShape, FusedKernel, Tiling, fused_experts, tiling
from moesim.costs.triton_tiles import shipped_tiles
from moesim.errors import InputError, nearest
from moesim.specs.dtypes import Dtype, get_dtype
from moesim.specs.parameters import EXPERTS_FIELDS

FloatArray = NDArray[np.float64]
_SHAPE = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
_LIMITS = {
    "num_tokens": 1 << 20,
    "hidden_size": 1 << 17,
    "inter_size": 1 << 20,
    "topk": 128,
    "num_experts": 8192,
    "moe_tp_size": 4096,
    "moe_ep_size": 8192,
}
_BY_SOURCE = {
    "vllm_fused_moe": {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "block"},
    "unquantizedfusedmoe_triton": {"bfloat16": "bf16"},
    "flashinfer_cutlass": {"fp8": "cutlass", "fp8_block": "cutlass_block"},
    "fp8moe_triton": {"fp8": "fp8", "fp8_block": "block"},
    "gptossmxfp4moe_triton": {"w4a16_mxfp4": "mxfp4"},
    "marlin": {"int4_wo": "int4", "w4a16_mxfp4": "mxfp4_marlin"},
}
"""Kernel by a part of `kernel_source` and `moe_dtype`."""
_DTYPES = {"int4_wo": "int4", "w4a16_mxfp4": "mxfp4"}
_INT4_GROUPED_128 = 0.5 + 2.0 / 128
"""Bytes a weight of the int4 tables: bf16 scale per group of 128 (their collector's group size)."""
_TUNED_A100 = {(8, 1792), (8, 2048), (8, 3584), (8, 4096), (8, 7168), (1, 14336), (128, 192), (16, 2688)}
"""Local experts and width for which vLLM 0.14 ships a tuned A100 configuration (seen in the rows: twice as fast)."""
_BOUNDS = {
    "hbm_efficiency": (0.1, 1.0),
    "compute_efficiency": (0.2, 1.0),
    "unit_load_bytes_per_s": (1.5e10, 3e11),
    "tile_s": (1e-8, 3e-5),
    "step_s": (1e-8, 1e-6),
    "store_factor": (0.03, 3.0),
    "sharpness": (1.0, 8.0),
    "spill_loss": (0.01, 2.0),
    "combine_efficiency": (0.05, 1.0),
    "fixed_s": (5e-6, 1e-4),
}
_START = {
    "hbm_efficiency": 0.85,
    "compute_efficiency": 0.6,
    "unit_load_bytes_per_s": 8e10,
    "tile_s": 5e-7,
    "step_s": 1e-7,
    "store_factor": 0.3,
    "sharpness": 2.5,
    "spill_loss": 0.1,
    "combine_efficiency": 0.4,
    "fixed_s": 2.5e-5,
}
_TRITON_START = {"moe_misaligned_slowdown": 5.0, "moe_untuned_slowdown": 1.9}
_TRITON_BOUNDS = {"moe_misaligned_slowdown": (1.0, 12.0), "moe_untuned_slowdown": (1.0, 3.0)}
_MAPPED_START, _MAPPED_BOUNDS = {"moe_map_s": 3e-5}, {"moe_map_s": (1e-6, 2e-4)}
_CUTLASS_START = {"moe_partial_efficiency": 0.27}
_CUTLASS_BOUNDS = {"moe_partial_efficiency": (0.02, 1.0)}
_FIXED = {
    "moe_sort_s": 1.1e-5,
    "moe_partial_efficiency": 0.27,
    "moe_misaligned_slowdown": 6.5,
    "moe_untuned_slowdown": 1.9,
    "moe_map_s": 3e-5,
}
"""Values of the shipped priors. The time of the sort cannot be told from `fixed_s` by every table, so none fits it."""


_OWN = {
    "bf16": (_TRITON_START, _TRITON_BOUNDS),
    "cutlass": (_CUTLASS_START, _CUTLASS_BOUNDS),
    "mxfp4": (_MAPPED_START, _MAPPED_BOUNDS),
}


def experts_families() -> dict[str, Family]:
    """A family of constants for each fused kernel, by its name."""
    return {name: _family(name) for name in KERNELS}


def _family(name: str) -> Family:
    """bf16 rows alone identify what Triton kernels share, per-tensor CUTLASS rows the cost of partial tiles, those of
    the gpt-oss kernels what mapping experts takes.
    """
    shared: tuple[dict[str, float], dict[str, tuple[float, float]]] = _OWN.get(name, ({}, {}))
    return Family(
        f"experts {name}",
        predict_experts,
        {**{f"moe_{name}_{field}": _START[field] for field in EXPERTS_FIELDS}, **shared[0]},
        _SHAPE,
        fixed={key: value for key, value in _FIXED.items() if key not in shared[0]},
        bounds={**{f"moe_{name}_{field}": _BOUNDS[field] for field in EXPERTS_FIELDS}, **shared[1]},
    )


def split_experts(table: KernelTable, least: int = 1) -> dict[str, KernelTable]:
    """The rows of each fused kernel, by kernel name; kernels of fewer than `least` rows are left out."""
    names = kernel_names(table)
    found = {name: table.where(names == name) for name in KERNELS}
    return {name: rows for name, rows in found.items() if len(rows) >= least}


def kernel_names(table: KernelTable) -> NDArray[np.str_]:
    """The fused kernel of every row. Raises InputError for a source and format that no model covers."""
    pairs = np.stack([table.text("kernel_source"), table.text("moe_dtype")], axis=1)
    kinds, index = np.unique(pairs, axis=0, return_inverse=True)
    return np.array([_kernel_name(table, str(source), str(kind)) for source, kind in kinds])[index.reshape(-1)]


def _kernel_name(table: KernelTable, source: str, kind: str) -> str:
    for part, by_kind in _BY_SOURCE.items():
        if part in source and kind in by_kind:
            return by_kind[kind]
    known = [f"{part} with {kind}" for part, by_kind in _BY_SOURCE.items() for kind in by_kind]
    raise InputError(
        f"{table.path}: kernel_source {source!r} with moe_dtype {kind!r} has no model; {nearest(source, known)}"
    )


def predict_experts(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    """Seconds of every row [rows]; rows of several kernels may be mixed.

    Raises:
        InputError: a column is missing, a size is impossible, or a kernel or distribution is unknown.
    """
    names = kernel_names(table)
    seconds = np.empty(len(table))
    for name in np.unique(names):
        at = np.flatnonzero(names == name)
        seconds[at] = _predict_kernel(table.where(at), KERNELS[str(name)], constants)
    return seconds


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Everything about rows of one kernel that no constant changes."""

    kernel: FusedKernel
    load: ExpertLoad
    shape: ExpertShape
    dtype: Dtype
    tuned: NDArray[np.bool_]


_PREPARED: dict[tuple[str, str, bytes], _Prepared] = {}
_MOST_PREPARED = 64


def _predict_kernel(table: KernelTable, kernel: FusedKernel, constants: Mapping[str, float]) -> FloatArray:
    item = _prepared(table, kernel)
    return fused_experts(
        item.load, item.shape, item.dtype, table.accelerator, constants, item.kernel, warm=True, tuned=item.tuned
    ).seconds


def _prepared(table: KernelTable, kernel: FusedKernel) -> _Prepared:
    """Loads and shapes of the rows; kept, because a fit asks for the same rows some hundred times."""
    key = (table.library, kernel.name, _digest(table))
    if key not in _PREPARED:
        while len(_PREPARED) >= _MOST_PREPARED:
            del _PREPARED[next(iter(_PREPARED))]
        _PREPARED[key] = _prepare(table, kernel)
    return _PREPARED[key]


def _digest(table: KernelTable) -> bytes:
    """Hash of the columns that loads and shapes depend on."""
    hashed = hashlib.sha256()
    for name in _LIMITS:
        hashed.update(np.ascontiguousarray(table.number(name)).tobytes())
    for name in ("distribution", "moe_dtype"):
        hashed.update("\n".join(table.text(name).tolist()).encode())
    return hashed.digest()


def _prepare(table: KernelTable, kernel: FusedKernel) -> _Prepared:
    sizes = _sizes(table)
    local = sizes["num_experts"] / sizes["moe_ep_size"]
    width = sizes["inter_size"] / sizes["moe_tp_size"]
    tuned = np.zeros(len(table), dtype=bool)
    version = _version(table)
    if version < (0, 17) and kernel.name == "bf16":
        kernel = replace(kernel, block_rule="experts")
        tuned = np.array([pair in _TUNED_A100 for pair in zip(local.tolist(), width.tolist(), strict=True)])
    tiles = _tiling(table, kernel, sizes, local, width, tuned)
    load = _expert_load(table, sizes, tiles, version)
    up = np.where(_ungated(sizes) & (version >= (0, 24)), 1.0, 2.0)
    return _Prepared(kernel, load, ExpertShape(sizes["hidden_size"], width, up), _dtype(table), tuned)


def _tiling(
    table: KernelTable,
    kernel: FusedKernel,
    sizes: Mapping[str, FloatArray],
    local: FloatArray,
    width: FloatArray,
    tuned: NDArray[np.bool_],
) -> Tiling:
    """Tiles of every row: the library's table for its shape, where there is one and it is known, else its rule.

    `tuned`: rows of shapes for which an older library had a table that is not known, taken for the best tiles.
    """
    tokens, experts = sizes["num_tokens"], sizes["num_experts"]
    slots = tokens * sizes["topk"]
    found, mean = (tiling(rule, tokens, slots, experts, local) for rule in (kernel.block_rule, "mean"))
    fields = {
        name: np.where(tuned, getattr(mean, name), getattr(found, name)) for name in ("rows", "columns", "groups")
    }
    if kernel.name != "bf16" or kernel.block_rule != "tokens":
        return Tiling(**fields)
    for few, wide in np.unique(np.stack([local, width], axis=1), axis=0).tolist():
        shipped = shipped_tiles(table.accelerator.name, int(few), int(wide))
        if shipped is not None:
            at = (local == few) & (width == wide)
            fields["rows"][at], fields["columns"][at], fields["groups"][at] = shipped.at(tokens[at])
    return Tiling(**fields)


def _ungated(sizes: Mapping[str, FloatArray]) -> NDArray[np.bool_]:
    """Nemotron-H experts have one product before the activation (relu squared); the tables name no activation."""
    nano = (sizes["hidden_size"] == 2688) & (sizes["inter_size"] == 1856)
    return nano | (sizes["topk"] == 22)


def _dtype(table: KernelTable) -> Dtype:
    kind = str(table.text("moe_dtype")[0])
    dtype = get_dtype(_DTYPES.get(kind, kind), f"{table.path}: moe_dtype")
    if kind == "int4_wo":
        return Dtype(dtype.name, _INT4_GROUPED_128, dtype.compute, dtype.source)
    return dtype


def _version(table: KernelTable) -> tuple[int, int]:
    """Library version from the folder name, as (major, minor)."""
    found = re.search(r"-(\d{1,4})\.(\d{1,4})", table.library)
    if found is None:
        raise InputError(
            f"{table.path}: the folder {table.library!r} names no library version; call it like vllm-0.24.0"
        )
    return int(found[1]), int(found[2])


def _sizes(table: KernelTable) -> dict[str, FloatArray]:
    """Whole-number columns, checked for what the loads are drawn from."""
    sizes = {name: table.number(name) for name in _LIMITS}
    for name, values in sizes.items():
        _refuse(table, name, values, (values < 1) | (values > _LIMITS[name]) | (values != np.floor(values)))
    experts, ranks = sizes["num_experts"], sizes["moe_ep_size"]
    _refuse(table, "moe_ep_size", ranks, experts % ranks > 0)
    _refuse(table, "topk", sizes["topk"], sizes["topk"] > experts)
    return sizes


def _refuse(table: KernelTable, name: str, values: FloatArray, bad: NDArray[np.bool_]) -> None:
    at = np.flatnonzero(bad)
    if len(at):
        raise InputError(
            f"{table.path} row {table.rows[at[0]]}: {name} is {values[at[0]]:g}, must be a whole number from 1 to "
            f"{_LIMITS[name]} (topk at most num_experts, moe_ep_size a divisor of it)"
        )


@dataclass(frozen=True, slots=True)
class _Counted:
    distinct: float
    rows: float
    tiles: float


def _expert_load(
    table: KernelTable, sizes: Mapping[str, FloatArray], tiles: Tiling, version: tuple[int, int]
) -> ExpertLoad:
    """Loads of the measured rank: means over the draws of distinct experts, rows and tiles."""
    kinds = {str(name): _distribution(table, str(name), version) for name in np.unique(table.text("distribution"))}
    keys = zip(
        *(sizes[name].astype(int).tolist() for name in ("num_tokens", "num_experts", "topk", "moe_ep_size")),
        table.text("distribution").tolist(),
        tiles.rows.astype(int).tolist(),
        strict=True,
    )
    cache: dict[tuple[int, int, int, int, str, int], _Counted] = {}
    counted = [_count(cache, key, kinds[key[4]]) for key in keys]
    return ExpertLoad(
        tokens=sizes["num_tokens"],
        slots=sizes["num_tokens"] * sizes["topk"],
        distinct=np.array([item.distinct for item in counted]),
        rows=np.array([item.rows for item in counted]),
        tiles=np.array([item.tiles for item in counted]),
        tiling=tiles,
        global_experts=sizes["num_experts"],
        split=sizes["moe_ep_size"] > 1,
    )


def _count(
    cache: dict[tuple[int, int, int, int, str, int], _Counted],
    key: tuple[int, int, int, int, str, int],
    distribution: Distribution,
) -> _Counted:
    if key not in cache:
        tokens, experts, top_k, ranks, _, block = key
        draws = np.stack(measured_rank_loads(tokens, experts, top_k, ranks, distribution))
        tiles = -(-draws // block)
        cache[key] = _Counted(
            float((draws > 0).sum(axis=1).mean()), float(draws.sum(axis=1).mean()), float(tiles.sum(axis=1).mean())
        )
    return cache[key]


def _distribution(table: KernelTable, name: str, version: tuple[int, int]) -> Distribution:
    if name == "balanced":
        return Distribution(None)
    found = re.fullmatch(r"power_law_(\d{1,2}(?:\.\d{1,6})?)", name)
    if found is None or float(found[1]) == 1.0:
        raise InputError(f"{table.path}: distribution {name!r} is unknown; known: balanced, power_law_<alpha>")
    return Distribution(float(found[1]), dealt_in_order=version < (0, 17))
