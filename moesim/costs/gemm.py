"""Dense matrix products as tiles on compute units: bytes against bandwidth, tiles against waves, launch beside both.

The time of C[rows, columns] = A[rows, inner] B[inner, columns] is

    kernel_s + (memory^p + tiles^p)^(1/p)

`memory`: weights, inputs and outputs once over the achieved HBM bandwidth. `tiles`: waves of tiles over the compute
units; a tile takes a fixed time, its trip along `inner` (the slowest of arithmetic, operand loads and the latency of
a 64-deep step) and the store of its result. The libraries choose the tile: cuBLAS and DeepGEMM by a search that
comes close to the best shape and, for cuBLAS, split of `inner` (here: the minimum over both); vLLM's CUTLASS fp8
kernels for Hopper by a fixed table of rows and columns (vLLM, scaled_mm_sm90_fp8_dispatch). Left out: cluster
shapes, stream-K and the misses of cuBLAS's heuristic (single shapes off by up to 1.5x).

Everything is vectorised over rows; constants come by name (`GEMM_FIELDS`) from any mapping, so that a fit and the
simulation evaluate the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.specs.dtypes import Dtype
from moesim.specs.hardware import Accelerator, peak_rate

FloatArray = NDArray[np.float64]
ACTIVATION_BYTES = 2.0
_STEP = 64.0
_TILE_ROWS = np.array([16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256], dtype=float)
_TILE_COLUMNS = np.array([32, 64, 128, 32, 64, 128, 256, 32, 64, 128, 256, 64, 128, 256, 64, 128], dtype=float)
_SPLITS = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
_SHORTEST_SPLIT = 128.0
_PARTIAL_BYTES = 8.0 / 5.0
"""Bytes per element and split of fp32 partial sums, written and read, at five times the HBM bandwidth (L2)."""


class Constants(Protocol):
    """Constants by name: a `ParameterSet`, or the trial values of a fit."""

    def __getitem__(self, name: str, /) -> float: ...


@dataclass(frozen=True, slots=True)
class KernelParts:
    """Seconds of a kernel by what they wait for, and what it moves and computes; arrays of one shape.

    `fixed_s`: launch, and whatever else does not grow with the work.
    """

    memory_s: FloatArray
    compute_s: FloatArray
    fixed_s: FloatArray
    hbm_bytes: FloatArray
    flops: FloatArray

    @property
    def seconds(self) -> FloatArray:
        """The kernel's time."""
        return self.memory_s + self.compute_s + self.fixed_s


def gemm_family(dtype: Dtype) -> str:
    """The library whose constants serve a weight format: bf16 (cuBLAS), fp8 (CUTLASS), block (DeepGEMM).

    Weight-only formats run as bf16 kernels that read fewer bytes; fp4 products as fp8 kernels at the fp4 rate.
    """
    if dtype.name == "fp8_block":
        return "block"
    return "bf16" if dtype.compute == "bf16" else "fp8"


def dense_gemm(
    rows: FloatArray,
    inner: FloatArray | float,
    columns: FloatArray | float,
    dtype: Dtype,
    accelerator: Accelerator,
    constants: Constants,
) -> KernelParts:
    """Cost of C[rows, columns] = A[rows, inner] B[inner, columns] with weights B in `dtype`.

    Products in fp8 first quantise A in a kernel of their own: `quantise_row_s` a row, or its bytes over
    `quantise_hbm_efficiency` where that is longer; the family's `kernel_s` counts both launches.

    Args:
        rows: [...]; `inner` and `columns` broadcast to it.

    Returns:
        Parts of the shape of `rows`.
    """
    family = gemm_family(dtype)
    read = ACTIVATION_BYTES if family == "bf16" else 1.0
    moved = inner * columns * dtype.bytes_per_element + rows * inner * read + rows * columns * ACTIVATION_BYTES
    memory = moved / (accelerator.hbm_bandwidth_bytes_per_s * constants[f"gemm_{family}_hbm_efficiency"])
    tiles = _tiles_s(rows, inner, columns, dtype, accelerator, constants)
    shared, arithmetic = smooth_maximum(memory, tiles, constants[f"gemm_{family}_sharpness"])
    if family != "bf16":
        quantised = rows * inner * (ACTIVATION_BYTES + 1.0)
        moved = moved + quantised
        rate = accelerator.hbm_bandwidth_bytes_per_s * constants["quantise_hbm_efficiency"]
        shared = shared + np.maximum(rows * constants["quantise_row_s"], quantised / rate)
    fixed = np.full_like(shared, constants[f"gemm_{family}_kernel_s"])
    return KernelParts(shared, arithmetic, fixed, moved, 2.0 * rows * inner * columns)


def smooth_maximum(memory: FloatArray, compute: FloatArray, sharpness: float) -> tuple[FloatArray, FloatArray]:
    """(m^p + c^p)^(1/p), split into the shares of memory and compute."""
    top = np.maximum(np.maximum(memory, compute), 1e-30)
    memory_power, compute_power = (memory / top) ** sharpness, (compute / top) ** sharpness
    total = memory_power + compute_power
    seconds = top * total ** (1.0 / sharpness)
    share = seconds / total
    return share * memory_power, share * compute_power


def host_floor_s(rows: FloatArray, inner: FloatArray, columns: FloatArray, constants: Constants) -> FloatArray:
    """Host time of a block-fp8 product launched outside a graph: the least that such a measurement can show.

    Which library serves a shape (vLLM 0.24): CUTLASS where columns are not a multiple of 64 or inner not of 128,
    FlashInfer below 32 rows, DeepGEMM above (rows that are no multiple of 4 are padded first).
    """
    deep = constants["host_deepgemm_s"] + np.where(rows % 4 > 0, constants["host_pad_s"], 0.0)
    served = np.where(rows < 32, constants["host_flashinfer_s"], deep)
    return np.where((columns % 64 > 0) | (inner % 128 > 0), constants["host_cutlass_s"], served)


def _tiles_s(
    rows: FloatArray,
    inner: FloatArray | float,
    columns: FloatArray | float,
    dtype: Dtype,
    accelerator: Accelerator,
    constants: Constants,
) -> FloatArray:
    """Seconds of the tiles; long kernels lose clock to the power limit (`sustained_loss` of it at most)."""
    family, units = gemm_family(dtype), accelerator.num_compute_units
    if family == "fp8":
        shape = _tile_costs(rows, columns, *fp8_tile(rows, columns), dtype, accelerator, constants)
        seconds = np.ceil(shape.count / units) * (shape.fixed_s + _depth(inner) * shape.per_inner_s)
    else:
        inner, columns = np.asarray(inner)[..., None], np.asarray(columns)[..., None]
        shape = _tile_costs(rows[..., None], columns, _TILE_ROWS, _TILE_COLUMNS, dtype, accelerator, constants)
        if family == "block":
            one = shape.fixed_s + _depth(inner) * shape.per_inner_s
            seconds = (np.ceil(shape.count / units) * one).min(axis=-1)
        else:
            seconds = _best_split_s(rows, inner, columns, shape, accelerator, constants)
    loss = constants[f"gemm_{family}_sustained_loss"]
    return seconds * (1.0 + loss * seconds / (seconds + constants["gemm_sustained_s"]))


def fp8_tile(rows: FloatArray, columns: FloatArray | float) -> tuple[FloatArray, FloatArray]:
    """Tile rows and columns of vLLM's CUTLASS fp8 kernels for Hopper (operands swapped below 65 rows)."""
    few = np.where((rows <= 16) | (columns <= 1280), 16.0, 64.0)
    tile_rows = np.where(rows <= 64, few, np.where(rows <= 128, 64.0, 128.0))
    return tile_rows, np.where(rows <= 64, 64.0, 128.0)


@dataclass(frozen=True, slots=True)
class _TileCosts:
    """Number of tiles, seconds of a tile for each element of `inner`, and beside it."""

    count: FloatArray
    per_inner_s: FloatArray
    fixed_s: FloatArray


def _tile_costs(
    rows: FloatArray,
    columns: FloatArray | float,
    tile_rows: FloatArray,
    tile_columns: FloatArray,
    dtype: Dtype,
    accelerator: Accelerator,
    constants: Constants,
) -> _TileCosts:
    family, units = gemm_family(dtype), accelerator.num_compute_units
    read = ACTIVATION_BYTES if family == "bf16" else 1.0
    weight = min(dtype.bytes_per_element, read)
    area = tile_rows * tile_columns
    compute = constants[f"gemm_{family}_compute_efficiency"] * peak_rate(accelerator, dtype.compute) / units
    loaded = np.minimum(tile_rows, rows) * read + np.minimum(tile_columns, columns) * weight
    trip = np.maximum(2.0 * area / compute, loaded / constants[f"gemm_{family}_unit_load_bytes_per_s"])
    stored = constants[f"gemm_{family}_store_factor"] * ACTIVATION_BYTES * units / accelerator.hbm_bandwidth_bytes_per_s
    return _TileCosts(
        count=np.ceil(rows / tile_rows) * np.ceil(columns / tile_columns),
        per_inner_s=np.maximum(trip, constants[f"gemm_{family}_step_s"] / _STEP),
        fixed_s=constants[f"gemm_{family}_tile_s"] + stored * area,
    )


def _depth(inner: FloatArray | float) -> FloatArray:
    """`inner` rounded up to whole steps."""
    return np.ceil(np.asarray(inner) / _STEP) * _STEP


def _best_split_s(
    rows: FloatArray,
    inner: FloatArray,
    columns: FloatArray,
    shape: _TileCosts,
    accelerator: Accelerator,
    constants: Constants,
) -> FloatArray:
    """Least seconds over tiles and splits of `inner`; a split adds a reduction over fp32 partial sums.

    `inner` and `columns` [..., 1], `shape` [..., tiles]; the splits are a further axis.
    """
    units, bandwidth = accelerator.num_compute_units, accelerator.hbm_bandwidth_bytes_per_s
    reduction = constants["gemm_split_s"] + _SPLITS * (rows[..., None] * columns) * (_PARTIAL_BYTES / bandwidth)
    reduction = np.where(_SPLITS > 1, reduction, 0.0) + np.where(
        (_SPLITS > 1) & (inner < _SHORTEST_SPLIT * _SPLITS), np.inf, 0.0
    )
    seconds = np.ceil(shape.count[..., None] * _SPLITS / units)
    seconds *= _depth(inner / _SPLITS)[..., None, :] * shape.per_inner_s[..., None] + shape.fixed_s[..., None]
    seconds += reduction[..., None, :]
    return seconds.min(axis=(-2, -1))
