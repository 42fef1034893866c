"""Measured dense products (`gemm_perf`) against `moesim.costs.gemm`: cuBLAS bf16, CUTLASS fp8, DeepGEMM block fp8.

Block-fp8 rows were launched one by one, so most of them show the host's time: predicted as max(kernel, host floor).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from calibration.kernels.families import Family
from calibration.kernels.tables import KernelTable
from moesim.costs.gemm import dense_gemm, gemm_family, host_floor_s
from moesim.errors import InputError
from moesim.specs.dtypes import Dtype, get_dtype
from moesim.specs.parameters import GEMM_FAMILIES, GEMM_FIELDS, GEMM_HOST_PARAMETERS

FloatArray = NDArray[np.float64]
_SHAPE = ("n", "k")
_LARGEST = 1e9
_BOUNDS = {
    "hbm_efficiency": (0.3, 1.0),
    "compute_efficiency": (0.3, 1.0),
    "unit_load_bytes_per_s": (1.5e10, 4e11),
    "tile_s": (1e-8, 2e-5),
    "step_s": (1e-8, 1e-6),
    "store_factor": (0.03, 3.0),
    "sharpness": (1.0, 8.0),
    "kernel_s": (5e-7, 2e-5),
    "sustained_loss": (0.01, 1.0),
}
_START = {
    "hbm_efficiency": 0.83,
    "compute_efficiency": 0.9,
    "unit_load_bytes_per_s": 1.5e11,
    "tile_s": 4e-7,
    "step_s": 8e-8,
    "store_factor": 0.4,
    "sharpness": 2.5,
    "kernel_s": 2.5e-6,
    "sustained_loss": 0.15,
}
_SHARED: dict[str, dict[str, float]] = {
    "bf16": {"gemm_split_s": 2.5e-6},
    "fp8": {"quantise_row_s": 7e-9, "quantise_hbm_efficiency": 0.3},
}
_FIXED = {
    "gemm_split_s": 3.1e-6,
    "gemm_sustained_s": 5e-4,
    "quantise_row_s": 7.4e-9,
    "quantise_hbm_efficiency": 0.27,
    "gemm_block_kernel_s": 4.5e-6,
}
"""Values of the shipped priors."""
_HOST_START: dict[str, float] = dict(zip(GEMM_HOST_PARAMETERS, (5.8e-5, 7.95e-5, 8e-6, 1.75e-4), strict=True))


def gemm_start(family: str) -> dict[str, float]:
    """First guess of the constants that rows of one library (bf16, fp8, block) identify.

    The host's time hides that of small block products, so `gemm_block_kernel_s` keeps the value of the fp8 kernels.
    """
    own = {f"gemm_{family}_{name}": _START[name] for name in GEMM_FIELDS}
    own = {name: value for name, value in own.items() if name not in _FIXED}
    shared: dict[str, float] = _HOST_START if family == "block" else _SHARED[family]
    return {**own, **shared}


def gemm_bounds(family: str) -> dict[str, tuple[float, float]]:
    """Limits of the constants: no more than the data sheet, no exponent below that of a plain sum."""
    return {f"gemm_{family}_{name}": _BOUNDS[name] for name in GEMM_FIELDS}


def gemm_families() -> dict[str, Family]:
    """A family of constants for each library, by its name."""
    return {name: _family(name) for name in GEMM_FAMILIES}


def _fixed(name: str) -> dict[str, float]:
    return {key: value for key, value in _FIXED.items() if key not in gemm_start(name)}


def _family(name: str) -> Family:
    return Family(f"gemm {name}", predict_gemm, gemm_start(name), _SHAPE, fixed=_fixed(name), bounds=gemm_bounds(name))


def split_gemm(table: KernelTable) -> dict[str, KernelTable]:
    """The rows of each library, by family name; libraries without rows are absent."""
    names = np.array([gemm_family(_dtype(table, name)) for name in np.unique(table.text("gemm_dtype"))])
    kinds = np.unique(table.text("gemm_dtype"))
    found = {}
    for name in GEMM_FAMILIES:
        mask = np.isin(table.text("gemm_dtype"), kinds[names == name])
        if mask.any():
            found[name] = table.where(mask)
    return found


def predict_gemm(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    """Seconds of every row [rows]; rows of several formats may be mixed.

    Raises:
        InputError: a column is missing, a size is no positive whole number, or a format is unknown.
    """
    rows, inner, columns = (_size(table, name) for name in ("m", "k", "n"))
    kinds = table.text("gemm_dtype")
    seconds = np.empty(len(table))
    for kind in np.unique(kinds):
        at, dtype = np.flatnonzero(kinds == kind), _dtype(table, str(kind))
        parts = dense_gemm(rows[at], inner[at], columns[at], dtype, table.accelerator, constants)
        seconds[at] = parts.seconds
        if gemm_family(dtype) == "block":
            floor = host_floor_s(rows[at], inner[at], columns[at], constants)
            seconds[at] = np.maximum(seconds[at], floor)
    return seconds


def _dtype(table: KernelTable, name: str) -> Dtype:
    return get_dtype(str(name), f"{table.path}: gemm_dtype")


def _size(table: KernelTable, name: str) -> FloatArray:
    values = table.number(name)
    bad = np.flatnonzero(~((values >= 1) & (values <= _LARGEST) & (values == np.floor(values))))
    if len(bad):
        row = table.rows[bad[0]]
        raise InputError(
            f"{table.path} row {row}: {name} is {values[bad[0]]:g}, must be a whole number from 1 to {_LARGEST:g}"
        )
    return values
