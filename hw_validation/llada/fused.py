"""Launches of the Triton kernels, as operators of a layer; the grouped products' tiles are tuned on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from hw_validation.llada import kernels as typed_kernels
from hw_validation.llada.experts import Matrices, Routing
from hw_validation.llada.ops import Ops
from hw_validation.llada.products import Product, ProductTable, by_blas
from hw_validation.llada.tiles import Tile, TileTable, next_power

kernels: Any = typed_kernels
"""The kernels; Triton's decorator hides the launch options from type checkers."""


def norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `ops.norm` for contiguous `hidden` [..., size]: one program a row."""
    size = weight.shape[0]
    out = torch.empty_like(hidden)
    block = next_power(size)
    warps = min(8, max(1, block // 512))
    kernels.norm_kernel[(hidden.numel() // size,)](hidden, weight, out, size, eps, block, num_warps=warps)
    return out


def rotate(
    qkv: Tensor, table: Tensor, norm: Tensor | None, heads: tuple[int, int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.rotate`, in place: the results are views of `qkv` [batch, span, fused], which must be contiguous."""
    batch, span, row_size = qkv.shape
    half, (queries_heads, kv_heads) = table.shape[-1], heads
    grid = (batch * span, _ceil(queries_heads + kv_heads, 8))
    weights = table if norm is None else norm
    kernels.rotate_kernel[grid](
        qkv, table, weights, span, row_size, queries_heads, kv_heads, eps, norm is not None, 8, half
    )
    queries, keys, values = qkv.view(batch, span, -1, 2 * half).split([queries_heads, kv_heads, kv_heads], dim=2)
    return queries, keys, values


def swiglu(gate_up: Tensor) -> Tensor:
    """As `experts.swiglu`: `gate_up` [rows, 2 * width] to [rows, width]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    kernels.swiglu_kernel[(rows, _ceil(width, 1024))](gate_up, out, width, 1024)
    return out


def gated(table: TileTable, inputs: Tensor, gate_up: Tensor, multiply: Product = by_blas) -> Tensor:
    """As `ops.gated`: one kernel where the tuner found that faster, else a product and a kernel."""
    tile = table.get_dense(inputs.shape[0])
    if tile is None:
        return swiglu(multiply(inputs, gate_up, None))
    return multiply_gate_up(tile, inputs, gate_up.unsqueeze(0), one_group(inputs.shape[0], inputs.device), 1)


def route(logits: Tensor, top_k: int, renormalize: bool) -> Routing:
    """As `experts.route` for `logits` [tokens, experts], with ids in int32."""
    tokens, num_experts = logits.shape
    weights = logits.new_empty(tokens, top_k)
    ids = torch.empty(tokens, top_k, dtype=torch.int32, device=logits.device)
    padded = next_power(num_experts)
    kernels.route_kernel[(tokens,)](logits, weights, ids, num_experts, top_k, renormalize, padded, num_warps=1)
    return Routing(weights, ids)


def combine(residual: Tensor, summands: Tensor) -> None:
    """As `ops.combine`: add `summands` [tokens, j, hidden] to `residual` [tokens, hidden] in place."""
    tokens, count, size = summands.shape
    kernels.combine_kernel[(tokens, _ceil(size, 1024))](residual, summands, size, count, 1024)


@dataclass(frozen=True, slots=True)
class Sorted:
    """(token, expert) pairs by expert: their indices, `order` [pairs], and the stretches' `starts` [experts + 1]."""

    order: Tensor
    starts: Tensor

    @property
    def pairs(self) -> int:
        """How many there are."""
        return self.order.shape[0]


def sort_by_expert(ids: Tensor, num_experts: int) -> Sorted:
    """The pairs of `ids` [tokens, top_k], by expert."""
    count = ids.numel()
    order = torch.empty(count, dtype=torch.int32, device=ids.device)
    starts = torch.empty(num_experts + 1, dtype=torch.int32, device=ids.device)
    chunk = min(4096, max(16, next_power(count)))
    kernels.sort_kernel[(num_experts + 1,)](ids.contiguous(), order, starts, count, chunk)
    return Sorted(order, starts)


@cache
def one_group(rows: int, device: torch.device) -> Sorted:
    """All rows as the pairs of a single expert: dense matrices are experts that everyone uses."""
    starts = torch.tensor([0, rows], dtype=torch.int32, device=device)
    return Sorted(torch.arange(rows, dtype=torch.int32, device=device), starts)


def run_experts(table: TileTable, hidden: Tensor, routing: Routing, matrices: Matrices) -> Tensor:
    """As `experts.run_grouped`, but the summands are not yet added up: [tokens, top_k, hidden]."""
    ids, down = routing.ids, matrices.down
    tiles = table.get(ids.numel(), down.shape[1], down.shape[2])
    pairs = sort_by_expert(ids, down.shape[0])
    inner = multiply_gate_up(tiles.gate_up, hidden, matrices.gate_up, pairs, ids.shape[1])
    return multiply_down(tiles.down, inner, down, routing.weights, pairs).view(*ids.shape, -1)


def multiply_gate_up(tile: Tile, hidden: Tensor, gate_up: Tensor, pairs: Sorted, top_k: int) -> Tensor:
    """silu(gate) * up of every pair, sorted by expert: [pairs, width]."""
    experts, width, depth = gate_up.shape[0], gate_up.shape[1] // 2, gate_up.shape[2]
    inner = hidden.new_empty(pairs.pairs, width)
    kernels.gate_up_kernel[_grid(tile, pairs.pairs, experts, width)](
        hidden,
        gate_up,
        inner,
        pairs.order,
        pairs.starts,
        top_k,
        experts,
        DEPTH=depth,
        WIDTH=width,
        **_constants(tile, experts),
    )
    return inner


def multiply_down(tile: Tile, inner: Tensor, down: Tensor, weights: Tensor, pairs: Sorted) -> Tensor:
    """The expert outputs of every pair times its weight, in token order: [pairs, hidden]."""
    experts, width, depth = down.shape
    slots = inner.new_empty(pairs.pairs, width)
    kernels.down_kernel[_grid(tile, pairs.pairs, experts, width)](
        inner,
        down,
        weights,
        slots,
        pairs.order,
        pairs.starts,
        experts,
        DEPTH=depth,
        WIDTH=width,
        **_constants(tile, experts),
    )
    return slots


def _constants(tile: Tile, experts: int) -> dict[str, int]:
    """The tile as the kernels' compile-time constants and launch options."""
    return {
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": tile.depth,
        "EXPERTS": next_power(experts),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def triton_ops(table: TileTable | None = None, products: ProductTable | None = None) -> Ops:
    """All operators as Triton kernels; the tiles come from `table`, the ways of dense products from `products`."""
    tiles, multiply = table or TileTable(), products.multiply if products else by_blas
    return Ops(
        "triton",
        rotate,
        partial(gated, tiles, multiply=multiply),
        route,
        partial(run_experts, tiles),
        combine,
        multiply,
        norm,
    )


def _grid(tile: Tile, rows: int, experts: int, width: int) -> tuple[int, int]:
    """As many row tiles as any distribution of the rows over the experts can need, and column tiles."""
    return rows // tile.rows + min(experts, rows), width // tile.columns


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit)
