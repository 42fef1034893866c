"""How many tokens each expert receives, counted on the device without stopping it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hw_validation.llada.config import Architecture
from hw_validation.llada.distributed import Parallel


class ExpertLoads:
    """Counters [layers, experts]: routed tokens in all, and forwards in which the expert had any."""

    def __init__(self, architecture: Architecture, device: torch.device) -> None:
        shape = (architecture.num_layers, architecture.num_experts)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.active = torch.zeros(shape, dtype=torch.int64, device=device)

    def count(self, layer: int, ids: Tensor) -> None:
        """Add one forward's routing: `ids` [tokens, top_k] of layer `layer`."""
        chosen = ids.reshape(-1).long()
        counts = torch.zeros_like(self.tokens[layer]).scatter_add_(0, chosen, torch.ones_like(chosen))
        self.tokens[layer].add_(counts)
        self.active[layer].add_(counts > 0)

    def reset(self) -> None:
        """Forget what was counted (a warm-up)."""
        self.tokens.zero_()
        self.active.zero_()

    def summary(self, forwards: int, parallel: Parallel) -> LoadSummary:
        """The counts over `forwards` forwards, summed over replicas that step together."""
        tokens = parallel.sum_replicas(self.tokens.clone())
        active = self.active.double().sum(dim=1) / max(forwards, 1)
        imbalance = tokens.amax(dim=1) / tokens.double().mean(dim=1).clamp(min=1e-9)
        return LoadSummary(tokens.tolist(), active.tolist(), imbalance.tolist())


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """`tokens` [layers][experts] in all; a forward's distinct experts and the greatest over mean load, by layer.

    Distinct experts are those of this rank's own tokens.
    """

    tokens: list[list[int]]
    distinct_experts_a_forward: list[float]
    max_over_mean: list[float]
