"""Replay a forward as one CUDA graph, so that the host launches one thing a step instead of hundreds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hw_validation.llada.cache import KVCache
from hw_validation.llada.model import Llada

_WARM_UPS = 3
"""Eager forwards before a capture: libraries choose algorithms and allocate workspaces in them."""


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    positions: Tensor
    rows: Tensor
    logits: Tensor


class GraphedForward:
    """A model's forward with one captured graph per shape; call it as the model itself.

    The returned logits are overwritten by the next call of the same shape. All graphs share one memory pool.
    """

    def __init__(self, model: Llada) -> None:
        self._model = model
        self._captured: dict[tuple[int, ...], _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far."""
        return len(self._captured)

    def __call__(self, tokens: Tensor, positions: Tensor, rows: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [batch, rows, vocabulary], as `Llada.forward`; captures a graph the first time a shape is seen."""
        key = (*tokens.shape, rows.shape[0], id(cache))
        if key not in self._captured:
            self._captured[key] = self._capture(tokens, positions, rows, cache)
        captured = self._captured[key]
        captured.tokens.copy_(tokens)
        captured.positions.copy_(positions)
        captured.rows.copy_(rows)
        captured.graph.replay()
        return captured.logits

    def _capture(self, tokens: Tensor, positions: Tensor, rows: Tensor, cache: KVCache | None) -> _Captured:
        held = (tokens.clone(), positions.clone(), rows.clone())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._model(*held, cache)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._model(*held, cache)
        return _Captured(graph, *held, logits)
