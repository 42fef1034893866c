"""NVIDIA's cuBLASLt through its C interface: every kernel that it proposes for a product, not only its first choice.

PyTorch takes the first proposal. At the sizes of a denoising forward (a few hundred rows, matrices of a hundred
megabytes) that can be a fifth slower than another one, or than the same product with more rows.
Structures and numbers are those of cublasLt.h (unchanged from CUDA 11 to 13).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WORKSPACE_BYTES = 64 << 20
_NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")
_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}
_FLOAT32 = 0
_COMPUTE_FLOAT32 = 68
_TRANSPOSE_A = 3
_TRANSPOSED = 1
_MAX_WORKSPACE = 1
_PROPOSALS = 32


class BlasLtError(RuntimeError):
    """The library is not there, or refused a call."""


class Proposal(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """A product of `rows` inputs [rows, depth] with a matrix [width, depth]; `adds`: to what the result holds."""

    rows: int
    width: int
    depth: int
    adds: bool


class BlasLt:
    """The library on one device, with a workspace that its kernels share; calls follow each other on one stream."""

    def __init__(self, device: torch.device, library: Any = None) -> None:
        self._library = library or _load()
        self._handle = ctypes.c_void_p()
        self._call("cublasLtCreate", ctypes.byref(self._handle))
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._on_gpu = device.type == "cuda"

    def kernels(self, shape: Shape, dtype: torch.dtype) -> list[Callable[[Tensor, Tensor, Tensor | None], Tensor]]:
        """The kernels proposed for a shape, the library's favourite first: (inputs, matrix, sum to add to or None).

        Raises:
            BlasLtError: the library refuses the shape.
        """
        kind = _TYPES[dtype]
        product = _handle()
        self._call("cublasLtMatmulDescCreate", ctypes.byref(product), _COMPUTE_FLOAT32, _FLOAT32)
        transposed = ctypes.c_int(_TRANSPOSED)
        self._set("cublasLtMatmulDescSetAttribute", product, _TRANSPOSE_A, transposed)
        # The library counts in columns: [rows, depth] row by row is depth x rows column by column.
        matrix = self._layout(kind, shape.depth, shape.width)
        inputs = self._layout(kind, shape.depth, shape.rows)
        result = self._layout(kind, shape.width, shape.rows)
        preference = _handle()
        self._call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        self._set("cublasLtMatmulPreferenceSetAttribute", preference, _MAX_WORKSPACE, ctypes.c_uint64(WORKSPACE_BYTES))
        found, count = (Proposal * _PROPOSALS)(), ctypes.c_int()
        layouts = (matrix, inputs, result, result)
        self._call(
            "cublasLtMatmulAlgoGetHeuristic",
            self._handle,
            product,
            *layouts,
            preference,
            _PROPOSALS,
            ctypes.byref(found),
            ctypes.byref(count),
        )
        usable = [proposal for proposal in found[: count.value] if proposal.state == 0]
        return [self._kernel(shape, product, layouts, proposal) for proposal in usable]

    def _kernel(
        self, shape: Shape, product: ctypes.c_void_p, layouts: tuple[ctypes.c_void_p, ...], proposal: Proposal
    ) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        one, kept = ctypes.c_float(1.0), ctypes.c_float(1.0 if shape.adds else 0.0)
        matrix_layout, inputs_layout, sum_layout, result_layout = layouts

        def multiply(inputs: Tensor, matrix: Tensor, residual: Tensor | None) -> Tensor:
            if not inputs.is_contiguous() or not matrix.is_contiguous() or (residual is not None) != shape.adds:
                raise BlasLtError(f"this kernel is for contiguous tensors of {shape}")
            result = inputs.new_empty(shape.rows, shape.width) if residual is None else residual
            at = ctypes.c_void_p(result.data_ptr())
            self._call(
                "cublasLtMatmul",
                self._handle,
                product,
                ctypes.byref(one),
                ctypes.c_void_p(matrix.data_ptr()),
                matrix_layout,
                ctypes.c_void_p(inputs.data_ptr()),
                inputs_layout,
                ctypes.byref(kept),
                at,
                sum_layout,
                at,
                result_layout,
                ctypes.byref(proposal, Proposal.algorithm.offset),
                ctypes.c_void_p(self._workspace.data_ptr()),
                ctypes.c_size_t(WORKSPACE_BYTES),
                ctypes.c_void_p(torch.cuda.current_stream().cuda_stream if self._on_gpu else 0),
            )
            return result

        return multiply

    def _layout(self, kind: int, rows: int, columns: int) -> ctypes.c_void_p:
        layout = _handle()
        sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
        self._call("cublasLtMatrixLayoutCreate", ctypes.byref(layout), kind, *sizes)
        return layout

    def _set(self, function: str, target: ctypes.c_void_p, name: int, value: Any) -> None:
        self._call(function, target, name, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            raise BlasLtError(f"{function}: cuBLAS status {status}")


def _handle() -> ctypes.c_void_p:
    return ctypes.c_void_p()


def _load() -> Any:
    """The library that PyTorch has loaded. Raises BlasLtError."""
    if torch.version.hip is None:
        for name in _NAMES:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
    raise BlasLtError(f"none of {', '.join(_NAMES)} can be loaded")
