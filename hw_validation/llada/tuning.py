"""Pick the ways of dense products and the tiles of grouped ones by timing them on the device.

Every candidate runs over all layers, as one captured graph: in a forward it is replayed too, and the host of a
virtual machine launches a kernel slower than the GPU runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypeVar, cast

import torch
from torch import Tensor
from triton.runtime import OutOfResources

from hw_validation.llada.blaslt import BlasLtError, Shape
from hw_validation.llada.experts import Matrices, Routing
from hw_validation.llada.fused import Sorted, multiply_down, multiply_gate_up, one_group, sort_by_expert, swiglu
from hw_validation.llada.model import Layer, Llada
from hw_validation.llada.products import Product, ProductTable, by_blas, open_library, ways
from hw_validation.llada.tiles import Tile, TilePair, TileTable, candidates

Inputs = TypeVar("Inputs")
Choice = TypeVar("Choice")

_FIRST_SWEEPS = 2
_SWEEPS = 6
"""Timed passes over all layers, for each candidate and then for the good ones; every layer has weights of its own, so
no cache holds them."""
_GOOD = 1.1
"""Candidates within this factor of the fastest after the first sweeps are timed again."""
_SAME = 0.02
"""Largest relative difference (norms) to PyTorch's product; bfloat16 rounds to 0.004."""
_HEAD_COPIES = 2
"""The head is one matrix, larger than any cache; timed as if it were so many."""
_TILED_ROWS = 128
"""Rows above which our gated kernel is not tried: on an H200 the library won from there on."""


@dataclass(frozen=True, slots=True)
class _Call:
    """The inputs of one layer's experts: rows [tokens, hidden] (or [pairs, width]), routing, matrices, pairs."""

    rows: Tensor
    routing: Routing
    matrices: Matrices
    pairs: Sorted


def tune(
    model: Llada, tokens: Tensor, table: TileTable, products: ProductTable | None = None, head_rows: int = 0
) -> None:
    """Choose for a forward over `tokens` [batch, span] that turns `head_rows` of them into logits.

    What is fastest is put into `table`, and into `products` if given, unless something is there already.
    """
    if products is not None:
        tune_products(model, tokens.numel(), head_rows, products)
    if model.architecture.is_moe:
        _tune_experts(_collect(model, tokens), table)
    else:
        _tune_dense(model, tokens.numel(), table, products)


def tune_products(model: Llada, tokens: int, head_rows: int, products: ProductTable) -> None:
    """Put the fastest way of every dense product of a forward over `tokens` rows into `products`."""
    library = open_library(model.device)
    for shape, matrices in _product_shapes(model, tokens, head_rows).items():
        if products.knows(shape):
            continue
        inputs = torch.randn(shape.rows, shape.depth, device=model.device, dtype=model.dtype)
        start = inputs.new_zeros(shape.rows, shape.width) if shape.adds else None
        found = _correct(ways(shape, model.dtype, library), inputs, matrices[0], start)
        name = _fastest({name: partial(_multiply, way, inputs, start) for name, way in found.items()}, matrices)
        products.put(shape, name, found[name])


def _product_shapes(model: Llada, tokens: int, head_rows: int) -> dict[Shape, list[Tensor]]:
    """The dense products of a forward, each with the matrices of all layers."""
    layers, alone = [cast(Layer, layer) for layer in model.layers], model.parallel.tp == 1
    found = {False: [[layer.qkv for layer in layers]], True: [[layer.out for layer in layers]]}
    if not model.architecture.is_moe:
        found[False].append([layer.gate_up for layer in layers])
        found[True].append([layer.down for layer in layers])
    shapes = {
        Shape(tokens, *matrices[0].shape, adds and alone): list[Tensor](matrices)
        for adds, groups in found.items()
        for matrices in groups
    }
    if head_rows:
        shapes[Shape(head_rows, *model.head.shape, False)] = [model.head] * _HEAD_COPIES
    return shapes


def _multiply(way: Product, inputs: Tensor, residual: Tensor | None, matrix: Tensor) -> Tensor:
    return way(inputs, matrix, residual)


def _correct(found: dict[str, Product], inputs: Tensor, matrix: Tensor, start: Tensor | None) -> dict[str, Product]:
    """The ways that give what PyTorch's own product gives, with a sum to add to where `start` is one."""
    residual = None if start is None else torch.randn_like(start)
    results: dict[str, Tensor] = {}
    for name, way in found.items():
        try:
            results[name] = way(inputs, matrix, None if residual is None else residual.clone()).float()
        except BlasLtError:
            continue
    expected = results["blas"]
    bound = _SAME * expected.norm()
    return {name: found[name] for name, result in results.items() if bool((result - expected).norm() <= bound)}


def _tune_experts(calls: list[_Call], table: TileTable) -> None:
    if not calls or table.knows(calls[0].pairs.pairs):
        return
    hidden, width = calls[0].matrices.down.shape[1:]
    gate_up = _fastest(_by_tile(candidates(width, hidden), _gate_up), calls)
    halves = [replace(call, rows=_gate_up(gate_up, call)) for call in calls]
    down = _fastest(_by_tile(candidates(hidden, width), _down), halves)
    table.put(calls[0].pairs.pairs, TilePair(gate_up, down))


def _tune_dense(model: Llada, tokens: int, table: TileTable, products: ProductTable | None) -> None:
    """Compare the fused gated projection at every tile with a product followed by a SwiGLU kernel."""
    if table.knows(tokens):
        return
    if tokens > _TILED_ROWS:
        table.put_dense(tokens, None)
        return
    multiply = products.multiply if products is not None else by_blas
    rows = torch.randn(tokens, model.architecture.hidden_size, device=model.device, dtype=model.dtype)
    matrices = [cast(Layer, layer).gate_up for layer in model.layers]
    width, hidden = matrices[0].shape[0] // 2, matrices[0].shape[1]
    group = one_group(tokens, model.device)

    def launch(tile: Tile, gate_up: Tensor) -> Tensor:
        return multiply_gate_up(tile, rows, gate_up.unsqueeze(0), group, 1)

    def library(gate_up: Tensor) -> Tensor:
        return swiglu(multiply(rows, gate_up, None))

    choices: dict[Tile | None, Callable[[Tensor], Tensor]] = {None: library}
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
    sweeps: dict[Choice, Callable[[], object]] = {}
    for choice, launch in choices.items():
        try:
            sweeps[choice] = _sweep(launch, inputs)
        except OutOfResources:
            continue
    times = {choice: _least_ms(sweep, _FIRST_SWEEPS) for choice, sweep in sweeps.items()}
    good = [choice for choice, time in times.items() if time <= _GOOD * min(times.values())]
    times = {choice: _least_ms(sweeps[choice], _SWEEPS) for choice in good}
    return min(times, key=lambda choice: times[choice])


def _sweep(launch: Callable[[Inputs], Tensor], inputs: Sequence[Inputs]) -> Callable[[], object]:
    """Launches over all inputs as one call: a graph's replay on a GPU. Raises OutOfResources."""
    launch(inputs[0])
    if not torch.cuda.is_available():
        return lambda: [launch(each) for each in inputs]
    graph, (pool, stream) = torch.cuda.CUDAGraph(), _capturing()[:2]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):  # `torch.cuda.graph` would empty the allocator's cache every time
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        for each in inputs:
            launch(each)
        graph.capture_end()
    return graph.replay


@cache
def _capturing() -> tuple[tuple[int, int], torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """The memory that all graphs share (nobody reads their results), the stream that they are captured on, and a graph
    that stays: torch refuses to capture into memory whose last graph is gone.
    """
    pool, stream, graph = torch.cuda.graph_pool_handle(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        torch.zeros(1, device="cuda")
        graph.capture_end()
    return pool, stream, graph


def _least_ms(sweep: Callable[[], object], count: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    best = float("inf")
    for _ in range(count):
        begin.record()
        sweep()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end))
    return best
