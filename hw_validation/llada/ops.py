"""The operators of a layer that have more than one implementation, chosen once for a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from hw_validation.llada.config import InputError
from hw_validation.llada.experts import PRODUCTS, Matrices, Routing, pick_product, route, run_grouped, run_loop, swiglu
from hw_validation.llada.products import Product, by_blas
from hw_validation.llada.settings import Execution, KernelChoice

Experts = Callable[[Tensor, Routing, Matrices], Tensor]
Norm = Callable[[Tensor, Tensor, float], Tensor]
Rotate = Callable[[Tensor, Tensor, Tensor | None, tuple[int, int], float], tuple[Tensor, Tensor, Tensor]]


def norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`hidden` [..., size] over the root mean square of its last dimension, times `weight` [size]."""
    return F.rms_norm(hidden, weight.shape, weight, eps)


@dataclass(frozen=True, slots=True)
class Ops:
    """Implementations by role; `name` says which, for the record. Shapes are those of the torch versions."""

    name: str
    rotate: Rotate
    gated: Callable[[Tensor, Tensor], Tensor]
    route: Callable[[Tensor, int, bool], Routing]
    experts: Experts
    combine: Callable[[Tensor, Tensor], None]
    multiply: Product = by_blas
    norm: Norm = norm


def rotate(
    qkv: Tensor, table: Tensor, norm: Tensor | None, heads: tuple[int, int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [batch, span, heads, head_dim] of `qkv` [batch, span, fused].

    `heads` are the numbers of query heads and of key and value heads. Queries and keys are RMS-normalised by head
    if `norm` [2, head_dim] is given, then turned by their position's angles: `table` [span, 2, head_dim / 2] holds
    cosines and sines.
    """
    batch, span, _ = qkv.shape
    parts = qkv.view(batch, span, heads[0] + 2 * heads[1], -1)
    queries, keys, values = parts.split([heads[0], heads[1], heads[1]], dim=2)
    if norm is not None:
        queries = F.rms_norm(queries, norm.shape[1:], norm[0], eps)
        keys = F.rms_norm(keys, norm.shape[1:], norm[1], eps)
    return _turn(queries, table), _turn(keys, table), values


def _turn(vectors: Tensor, table: Tensor) -> Tensor:
    """Rotate pairs (i, i + head_dim / 2) of `vectors` [batch, span, heads, head_dim], in float32."""
    low, high = vectors.float().chunk(2, dim=-1)
    cosine, sine = table[:, None, 0], table[:, None, 1]
    return torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1).to(vectors.dtype)


def gated(inputs: Tensor, gate_up: Tensor) -> Tensor:
    """silu(gate) * up of `inputs` [tokens, hidden] under `gate_up` [2 * width, hidden]: [tokens, width]."""
    return swiglu(F.linear(inputs, gate_up))


def combine(residual: Tensor, summands: Tensor) -> None:
    """Add the sum over j of `summands` [tokens, j, hidden] to `residual` [tokens, hidden], in place."""
    residual.add_(summands.squeeze(1) if summands.shape[1] == 1 else summands.sum(dim=1))


def choose_ops(execution: Execution, kernels: KernelChoice, device: torch.device, dtype: torch.dtype) -> Ops:
    """The operators for a run: the expert loop, Triton kernels, or PyTorch's grouped product."""
    if execution == "loop":
        return Ops("loop", rotate, gated, route, run_loop, combine)
    triton_runs = device.type == "cuda" and dtype != torch.float32 and find_spec("triton") is not None
    if kernels == "triton" and not triton_runs:
        raise InputError("kernels: triton needs the triton package, a GPU and a 16-bit dtype; use --kernels torch")
    if triton_runs and kernels != "torch":
        from hw_validation.llada.fused import triton_ops

        return triton_ops()
    product = pick_product(device, dtype)
    return Ops(product, rotate, gated, route, partial(run_grouped, PRODUCTS[product]), combine)
