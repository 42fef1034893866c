"""Which experts the tokens really went to, from what vLLM returns: counts by layer and expert, and their imbalance."""

from __future__ import annotations

from typing import Any

import numpy as np

from hw_validation.server.bench import BenchmarkError
from moesim.specs.model import Model


def count_experts(routed: list[Any], model: Model) -> list[list[int]]:
    """Tokens of each expert in each MoE layer, [layers, experts], summed over requests.

    Args:
        routed: for each request an integer array [tokens, layers, top_k]; entries below 0 mark no expert.

    Raises:
        BenchmarkError: the engine returned nothing, or an expert that the model does not have.
    """
    if model.moe is None:
        raise BenchmarkError(f"{model.name} has no experts to count")
    experts = model.moe.num_experts
    if not routed or any(item is None for item in routed):
        raise BenchmarkError("the engine returned no routed experts; this version may not offer them")
    chosen = np.concatenate([np.asarray(item) for item in routed], axis=0)
    if chosen.ndim != 3 or chosen.max(initial=0) >= experts:
        raise BenchmarkError(
            f"routed experts have shape {chosen.shape} and reach {chosen.max()}; {model.name} has {experts}"
        )
    layers = chosen.shape[1]
    offsets = np.arange(layers)[None, :, None] * experts
    flat = (chosen + offsets)[chosen >= 0]
    return np.bincount(flat, minlength=layers * experts).reshape(layers, experts).tolist()


def load_statistics(counts: list[list[int]]) -> dict[str, float | None]:
    """Imbalance over experts, mean over the layers that routed anything: largest over mean, variation, share unused."""
    loads = np.asarray(counts, dtype=float)
    loads = loads[loads.sum(axis=1) > 0]
    if not len(loads):
        return {}
    mean = loads.mean(axis=1)
    return {
        "expert_load_max_over_mean": float((loads.max(axis=1) / mean).mean()),
        "expert_load_cv": float((loads.std(axis=1) / mean).mean()),
        "expert_unused_share": float((loads == 0).mean()),
    }
