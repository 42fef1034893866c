"""Routed experts in PyTorch operators: one call an expert, or one grouped matrix product for all of them.

Every execution takes `hidden` [tokens, hidden], the tokens' routing and the experts' matrices, and returns summands
[tokens, j, hidden] whose sum over j is the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

GroupedProduct = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Rows [n, k] sorted by expert, their experts [n], ends [experts] and weights [experts, m, k] to products [n, m]."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts each token goes to, `ids` [tokens, top_k], and how much each counts, `weights` [tokens, top_k]."""

    weights: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True)
class Matrices:
    """One layer's experts: `gate_up` [experts, 2 * width, hidden], gate first; `down` [experts, hidden, width]."""

    gate_up: Tensor
    down: Tensor


def route(logits: Tensor, top_k: int, renormalize: bool) -> Routing:
    """The `top_k` most probable experts of each row of `logits` [tokens, experts], weighted by softmax over all."""
    weights, ids = torch.topk(F.softmax(logits, dim=-1, dtype=torch.float32), top_k, dim=-1)
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routing(weights.to(logits.dtype), ids)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, for `gate_up` [rows, 2 * width] with the gate first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def run_loop(hidden: Tensor, routing: Routing, matrices: Matrices) -> Tensor:
    """Each expert in turn, as the models' published code does: the host waits for every expert's token list."""
    gate_up, down = matrices.gate_up, matrices.down
    width = down.shape[2]
    result = torch.zeros_like(hidden)
    chosen = F.one_hot(routing.ids.long(), num_classes=gate_up.shape[0]).permute(2, 1, 0)
    for expert in range(gate_up.shape[0]):
        slot, token = torch.where(chosen[expert])
        rows = hidden[token]
        gate = F.linear(rows, gate_up[expert, :width])
        up = F.linear(rows, gate_up[expert, width:])
        output = F.linear(F.silu(gate) * up, down[expert]) * routing.weights[token, slot, None]
        result.index_add_(0, token, output)
    return result.unsqueeze(1)


def run_grouped(product: GroupedProduct, hidden: Tensor, routing: Routing, matrices: Matrices) -> Tensor:
    """All experts at once: rows sorted by expert, two grouped products, rows put back in token order."""
    tokens, top_k = routing.ids.shape
    experts, order = torch.sort(routing.ids.reshape(-1), stable=True)
    known = torch.arange(matrices.down.shape[0], device=experts.device, dtype=experts.dtype)
    ends = torch.searchsorted(experts, known, right=True, out_int32=True)
    rows = hidden.index_select(0, order // top_k)
    inner = swiglu(product(rows, experts, ends, matrices.gate_up))
    outputs = product(inner, experts, ends, matrices.down)
    slots = torch.empty_like(outputs).index_copy_(0, order, outputs)
    return torch.bmm(routing.weights.unsqueeze(1), slots.view(tokens, top_k, -1))


def by_grouped_mm(rows: Tensor, experts: Tensor, ends: Tensor, matrices: Tensor) -> Tensor:
    """PyTorch's grouped GEMM: group boundaries stay on the device (bfloat16, Hopper or newer)."""
    del experts
    if _GROUPED_MM is None:
        raise RuntimeError("this PyTorch has no grouped_mm")
    return _GROUPED_MM(rows, matrices.transpose(1, 2), offs=ends)


def by_padding(rows: Tensor, experts: Tensor, ends: Tensor, matrices: Tensor) -> Tensor:
    """A batched product over as many rows an expert as there are rows at all: any GPU, no synchronisation."""
    count, size = rows.shape
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    place = torch.arange(count, device=rows.device) - starts[experts]
    padded = rows.new_zeros(matrices.shape[0], count, size)
    padded[experts, place] = rows
    return torch.bmm(padded, matrices.transpose(1, 2))[experts, place]


def by_slices(rows: Tensor, experts: Tensor, ends: Tensor, matrices: Tensor) -> Tensor:
    """One product per expert over its slice of rows: for the CPU, where reading `ends` costs nothing."""
    del experts
    result = rows.new_empty(rows.shape[0], matrices.shape[1])
    first = 0
    for matrix, stop in zip(matrices, ends.tolist(), strict=True):
        if stop > first:
            result[first:stop] = rows[first:stop] @ matrix.T
        first = stop
    return result


PRODUCTS: dict[str, GroupedProduct] = {"grouped_mm": by_grouped_mm, "padded": by_padding, "slices": by_slices}


def pick_product(device: torch.device, dtype: torch.dtype) -> str:
    """The name in `PRODUCTS` of the fastest grouped product that this device runs without asking the host."""
    if device.type != "cuda":
        return "slices"
    modern = torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 9
    return "grouped_mm" if _GROUPED_MM is not None and dtype == torch.bfloat16 and modern else "padded"


def _find_grouped_mm() -> Callable[..., Tensor] | None:
    return getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


_GROUPED_MM = _find_grouped_mm()
