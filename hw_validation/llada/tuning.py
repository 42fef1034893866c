"""Pick the grouped products' tiles by timing them on the device, with the routing of a real forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor
from triton.runtime import OutOfResources

from hw_validation.llada.experts import Matrices, Routing
from hw_validation.llada.fused import Sorted, multiply_down, multiply_gate_up, one_group, sort_by_expert, swiglu
from hw_validation.llada.model import Layer, Llada
from hw_validation.llada.tiles import Tile, TilePair, TileTable, candidates

Inputs = TypeVar("Inputs")
Choice = TypeVar("Choice")

_SWEEPS = 5
"""Timed passes over all layers for each tile; every layer has weights of its own, so no cache holds them."""


@dataclass(frozen=True, slots=True)
class _Call:
    """The inputs of one layer's experts: rows [tokens, hidden] (or [pairs, width]), routing, matrices, pairs."""

    rows: Tensor
    routing: Routing
    matrices: Matrices
    pairs: Sorted


def tune(model: Llada, tokens: Tensor, table: TileTable) -> None:
    """Put the fastest tiles for a forward over `tokens` [batch, span] into `table`, unless some are there already."""
    if model.architecture.is_moe:
        _tune_experts(_collect(model, tokens), table)
    else:
        _tune_dense(model, tokens.numel(), table)


def _tune_experts(calls: list[_Call], table: TileTable) -> None:
    if not calls or table.knows(calls[0].pairs.pairs):
        return
    hidden, width = calls[0].matrices.down.shape[1:]
    gate_up = _fastest(_by_tile(candidates(width, hidden), _gate_up), calls)
    halves = [replace(call, rows=_gate_up(gate_up, call)) for call in calls]
    down = _fastest(_by_tile(candidates(hidden, width), _down), halves)
    table.put(calls[0].pairs.pairs, TilePair(gate_up, down))


def _tune_dense(model: Llada, tokens: int, table: TileTable) -> None:
    """Compare the fused gated projection at every tile with the BLAS library followed by a SwiGLU kernel."""
    if table.knows(tokens):
        return
    rows = torch.randn(tokens, model.architecture.hidden_size, device=model.device, dtype=model.dtype)
    matrices = [cast(Layer, layer).gate_up for layer in model.layers]
    width, hidden = matrices[0].shape[0] // 2, matrices[0].shape[1]
    group = one_group(tokens, model.device)

    def launch(tile: Tile, gate_up: Tensor) -> Tensor:
        return multiply_gate_up(tile, rows, gate_up.unsqueeze(0), group, 1)

    choices: dict[Tile | None, Callable[[Tensor], Tensor]] = {None: lambda gate_up: swiglu(F.linear(rows, gate_up))}
    choices |= _by_tile(candidates(width, hidden), launch)
    table.put_dense(tokens, _fastest(choices, matrices))


def _gate_up(tile: Tile, call: _Call) -> Tensor:
    return multiply_gate_up(tile, call.rows, call.matrices.gate_up, call.pairs, call.routing.ids.shape[1])


def _down(tile: Tile, call: _Call) -> Tensor:
    return multiply_down(tile, call.rows, call.matrices.down, call.routing.weights, call.pairs)


def _collect(model: Llada, tokens: Tensor) -> list[_Call]:
    """What each layer's experts are given in one forward over `tokens` [batch, span]."""
    calls: list[_Call] = []
    real = model.ops

    def spy(hidden: Tensor, routing: Routing, matrices: Matrices) -> Tensor:
        pairs = sort_by_expert(routing.ids, matrices.down.shape[0])
        calls.append(_Call(hidden, routing, matrices, pairs))
        return real.experts(hidden, routing, matrices)

    model.ops = replace(real, experts=spy)
    try:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        model(tokens, positions, positions[:1])
    finally:
        model.ops = real
    return calls


def _by_tile(tiles: list[Tile], launch: Callable[[Tile, Inputs], Tensor]) -> dict[Tile, Callable[[Inputs], Tensor]]:
    return {tile: partial(launch, tile) for tile in tiles}


def _fastest(choices: Mapping[Choice, Callable[[Inputs], Tensor]], inputs: Sequence[Inputs]) -> Choice:
    """The choice with the least time over all inputs; those that the device has no room for are passed over."""
    times: dict[Choice, float] = {}
    for choice, launch in choices.items():
        try:
            launch(inputs[0])
        except OutOfResources:
            continue
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        best = float("inf")
        for _ in range(_SWEEPS):
            begin.record()
            for each in inputs:
                launch(each)
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end))
        times[choice] = best
    return min(times, key=lambda choice: times[choice])
