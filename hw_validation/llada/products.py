"""Dense matrix products, each by the way that was found fastest for its shape.

Ways: the BLAS library as PyTorch calls it, the same over more rows than there are (its choice of kernel is better
for some row counts), and the library's other kernels (`blaslt`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from hw_validation.llada.blaslt import BlasLt, BlasLtError, Shape

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Inputs [rows, depth], a matrix [width, depth] and a sum [rows, width] to add to in place, or None: the result."""

_PADDED_TO = (64, 128, 192, 256)
"""Multiples of rows that BLAS kernels are cut for."""


def by_blas(inputs: Tensor, matrix: Tensor, residual: Tensor | None) -> Tensor:
    """PyTorch's own product; inputs may have leading dimensions where nothing is added."""
    return F.linear(inputs, matrix) if residual is None else residual.addmm_(inputs, matrix.T)


def by_padded_blas(rows: int, inputs: Tensor, matrix: Tensor, residual: Tensor | None) -> Tensor:
    """PyTorch's product over `rows` rows, the last of them zeros that are thrown away."""
    count = inputs.shape[0]
    result = F.linear(F.pad(inputs, (0, 0, 0, rows - count)), matrix)[:count]
    return result if residual is None else residual.add_(result)


def ways(shape: Shape, dtype: torch.dtype, library: BlasLt | None) -> dict[str, Product]:
    """The ways to try for a shape, by name; PyTorch's own first."""
    found: dict[str, Product] = {"blas": by_blas}
    for multiple in _PADDED_TO:
        rows = -(-shape.rows // multiple) * multiple
        if shape.rows < rows <= 2 * shape.rows:
            found[f"blas over {rows} rows"] = partial(by_padded_blas, rows)
    if library is not None:
        try:
            kernels = library.kernels(shape, dtype)
        except BlasLtError:
            kernels = []
        found |= {f"cublasLt {place}": kernel for place, kernel in enumerate(kernels)}
    return found


@cache
def open_library(device: torch.device) -> BlasLt | None:
    """cuBLASLt on `device`, or None where it cannot be used."""
    if device.type != "cuda":
        return None
    try:
        return BlasLt(device)
    except (BlasLtError, AttributeError):
        return None


class ProductTable:
    """The way that each shape was found fastest in; `by_blas` for all others."""

    def __init__(self) -> None:
        self._chosen: dict[Shape, tuple[str, Product]] = {}

    def knows(self, shape: Shape) -> bool:
        """Whether a way was chosen for the shape."""
        return shape in self._chosen

    def put(self, shape: Shape, name: str, product: Product) -> None:
        """Multiply by `product`, called `name`, from now on."""
        self._chosen[shape] = (name, product)

    def multiply(self, inputs: Tensor, matrix: Tensor, residual: Tensor | None = None) -> Tensor:
        """The product, added to `residual` in place if one is given."""
        rows = inputs.numel() // inputs.shape[-1]
        chosen = self._chosen.get(Shape(rows, matrix.shape[0], matrix.shape[1], residual is not None))
        if chosen is None:
            return by_blas(inputs, matrix, residual)
        result = chosen[1](inputs.reshape(rows, -1), matrix, residual)
        return result.view(*inputs.shape[:-1], -1)

    def as_dict(self) -> dict[str, str]:
        """The chosen ways for the record, by "rows x width x depth" ("+" where the result is added)."""
        return {
            f"{shape.rows}x{shape.width}x{shape.depth}{'+' if shape.adds else ''}": name
            for shape, (name, _) in self._chosen.items()
        }
