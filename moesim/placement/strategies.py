"""The five named ways to put a model on G accelerators."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.errors import InputError
from moesim.specs.deployment import Deployment, check_deployment
from moesim.specs.hardware import Cluster
from moesim.specs.model import Model

STRATEGIES = ("colocate_single", "tp_only", "ep_only", "tp_ep_hybrid", "dp_ep")


@dataclass(frozen=True, slots=True)
class Strategy:
    """A named placement. `equal_to` lists other names that come to the same deployment."""

    name: str
    tensor_parallel_size: int
    data_parallel_size: int
    expert_parallel_size: int
    equal_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A strategy that cannot be used, and why."""

    name: str
    reason: str


def enumerate_strategies(model: Model, cluster: Cluster) -> tuple[list[Strategy], list[Refusal]]:
    """All strategies for the cluster's G accelerators, and those refused with the reason.

    colocate_single: whole model on each accelerator, independent replicas. tp_only: TP = G, every expert
    sharded. ep_only: attention TP = G, whole experts spread over the same ranks. tp_ep_hybrid: TP = t,
    DP = G / t, EP = G for each 1 < t < G that divides G. dp_ep: attention DP = G, EP = G.
    Where two coincide (G = 1) the first is kept and names the others.
    """
    size = cluster.num_accelerators
    candidates = [
        Strategy("colocate_single", 1, size, 1),
        Strategy("tp_only", size, 1, 1),
        Strategy("ep_only", size, 1, size),
        *(Strategy("tp_ep_hybrid", t, size // t, size) for t in range(2, size) if size % t == 0),
        Strategy("dp_ep", 1, size, size),
    ]
    kept: list[Strategy] = []
    refused: list[Refusal] = []
    for candidate in _merge_equal(candidates):
        try:
            check_deployment(to_deployment(candidate), model, cluster)
            kept.append(candidate)
        except InputError as error:
            refused.append(Refusal(_label(candidate), str(error)))
    return kept, refused


def to_deployment(strategy: Strategy, **settings: object) -> Deployment:
    """The strategy as a deployment, with further engine settings by name."""
    return Deployment(
        strategy=strategy.name,
        tensor_parallel_size=strategy.tensor_parallel_size,
        data_parallel_size=strategy.data_parallel_size,
        expert_parallel_size=strategy.expert_parallel_size,
        **settings,  # pyright: ignore[reportArgumentType]
    )


def _label(strategy: Strategy) -> str:
    if strategy.name != "tp_ep_hybrid":
        return strategy.name
    return f"tp_ep_hybrid (tp {strategy.tensor_parallel_size})"


def _merge_equal(candidates: list[Strategy]) -> list[Strategy]:
    merged: dict[tuple[int, int, int], Strategy] = {}
    for item in candidates:
        key = (item.tensor_parallel_size, item.data_parallel_size, item.expert_parallel_size)
        first = merged.get(key)
        if first is None:
            merged[key] = item
        else:
            merged[key] = Strategy(first.name, *key, equal_to=(*first.equal_to, item.name))
    return list(merged.values())
