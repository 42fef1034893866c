"""Plans for all layers: an algorithm makes them, a lower bound certifies them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, nearest
from moesim.placement.affinity import cluster_affine
from moesim.placement.baselines import linear, round_robin
from moesim.placement.bounds import lower_bound
from moesim.placement.eplb import check_groups, eplb_global, eplb_hierarchical
from moesim.placement.exact import solve_exact
from moesim.placement.local_search import Effort, search
from moesim.placement.packing import pack_heaviest_first, replicate_below
from moesim.placement.replicas import check_map, check_slots, rank_loads_of
from moesim.routing.imbalance import gini

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Progress = Callable[[int, int, str], None]
ALGORITHMS = (
    "linear",
    "round_robin",
    "greedy",
    "eplb_global",
    "eplb_hierarchical",
    "affinity",
    "optimal",
    "auto",
)
_SEARCH_ROUNDS = 120
_SEARCH_STALL = 40
_EXACT = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """What to plan for: `num_slots` physical experts over `num_ranks` ranks in `num_nodes` nodes.

    `num_groups`: expert groups for the hierarchical policy (0: one a node). `limit_s`: seconds for local search and
    exact solver over all layers (on a slow machine the last layers are searched less). `slack`: how far above the
    balanced plan's fullest rank affinity may go.
    """

    num_slots: int
    num_ranks: int
    num_nodes: int = 1
    num_groups: int = 0
    algorithm: str = "auto"
    limit_s: float = 12.0
    slack: float = 0.02
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer: `physical` [slots] rank-major, load of the fullest rank and its lower bound over the mean rank."""

    layer: int
    physical: IntArray
    max_over_mean: float
    lower_bound_max_over_mean: float
    rank_gini: float

    @property
    def gap(self) -> float:
        """How far from optimal the plan can be at most: fullest rank over the bound, less one."""
        return max(self.max_over_mean / self.lower_bound_max_over_mean - 1.0, 0.0)

    @property
    def proved_optimal(self) -> bool:
        """The plan meets its bound."""
        return self.gap <= _EXACT


@dataclass(frozen=True, slots=True)
class PlacementPlan:
    """Plans of all layers by one algorithm, with the seconds it took and remarks."""

    request: PlacementRequest
    layers: tuple[LayerPlan, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def physical(self) -> IntArray:
        """Map [layers, slots]."""
        return np.stack([layer.physical for layer in self.layers])


def check_request(request: PlacementRequest, num_experts: int) -> PlacementRequest:
    """Refuse sizes that cannot work, and unknown algorithms; returns the request with its groups filled in."""
    if request.algorithm not in ALGORITHMS:
        raise InputError(f"algorithm: unknown {request.algorithm!r}; {nearest(request.algorithm, ALGORITHMS)}")
    check_slots(num_experts, request.num_slots, request.num_ranks)
    if request.num_nodes < 1 or request.num_ranks % request.num_nodes:
        raise InputError(f"nodes: {request.num_nodes} does not divide the {request.num_ranks} gpus")
    if not 0 <= request.limit_s <= 86_400:
        raise InputError(f"time_limit: {request.limit_s} is out of range, must be 0 to 86400 seconds")
    if not 0 <= request.slack <= 10:
        raise InputError(f"slack: {request.slack} is out of range, must be 0 to 10")
    if request.num_groups < 0:
        raise InputError(f"groups: {request.num_groups} is out of range, must be 0 (one a node) or more")
    groups = request.num_groups or request.num_nodes
    request = replace(request, num_groups=groups)
    if request.algorithm == "eplb_hierarchical":
        check_groups(num_experts, request.num_slots, request.num_ranks, groups, request.num_nodes)
    return request


def make_plan(
    loads: FloatArray,
    request: PlacementRequest,
    coactivation: FloatArray | None = None,
    progress: Progress | None = None,
) -> PlacementPlan:
    """Plan every layer of `loads` [layers, experts] (tokens per expert).

    Args:
        coactivation: [layers, experts, experts], how often two experts served the same token (for affinity; without
            it experts are independent, and where they live changes no traffic: the balanced plan is kept).
        progress: called with (done, total, what) before each layer.

    Raises:
        InputError: sizes that cannot work.
    """
    request = check_request(request, loads.shape[1])
    began = time.perf_counter()
    ends = began + request.limit_s
    rng = np.random.default_rng([request.seed, 0x9EA])
    layers: list[LayerPlan] = []
    for layer, row in enumerate(loads):
        if progress is not None:
            progress(layer, len(loads), f"layer {layer}")
        share_s = max(ends - time.perf_counter(), 0.0) / (len(loads) - layer)
        pairs = None if coactivation is None else coactivation[layer]
        layers.append(_plan_layer(layer, row, request, pairs, share_s, rng))
    check_map(np.stack([plan.physical for plan in layers]), loads.shape[1], request.num_ranks, "plan")
    if progress is not None:
        progress(len(loads), len(loads), "done")
    return PlacementPlan(request, tuple(layers), time.perf_counter() - began, _notes(request, coactivation))


def _notes(request: PlacementRequest, coactivation: FloatArray | None) -> tuple[str, ...]:
    if request.algorithm == "affinity" and coactivation is None:
        return (
            "affinity: the file holds no choices of single tokens, so experts are taken as independent: balanced plan",
        )
    return ()


def _plan_layer(
    layer: int,
    loads: FloatArray,
    request: PlacementRequest,
    coactivation: FloatArray | None,
    limit_s: float,
    rng: np.random.Generator,
) -> LayerPlan:
    ranks = request.num_ranks
    if loads.sum() == 0:
        return _certify(layer, loads, linear(len(loads), request.num_slots, ranks), ranks, 0.0)
    bound = lower_bound(loads, request.num_slots, ranks)
    if request.algorithm in ("optimal", "auto", "affinity"):
        plan = balanced(loads, request, bound, time.perf_counter() + limit_s, rng)
        if request.algorithm == "affinity" and coactivation is not None:
            ends_s = time.perf_counter() + max(limit_s, 0.05)
            plan = cluster_affine(loads, plan, ranks, request.num_nodes, coactivation, request.slack, ends_s=ends_s)
        if request.algorithm == "optimal":
            best = solve_exact(loads, plan, ranks, bound, limit_s)
            plan, bound = best.physical, best.bound
    else:
        plan = _by_rule(loads, request)
    return _certify(layer, loads, plan, ranks, bound)


def _by_rule(loads: FloatArray, request: PlacementRequest) -> IntArray:
    slots, ranks = request.num_slots, request.num_ranks
    if request.algorithm == "linear":
        return linear(len(loads), slots, ranks)
    if request.algorithm == "round_robin":
        return round_robin(len(loads), slots, ranks)
    if request.algorithm == "greedy":
        return pack_heaviest_first(loads, replicate_below(loads, slots, ranks), ranks)
    if request.algorithm == "eplb_hierarchical":
        return eplb_hierarchical(loads, slots, ranks, request.num_groups, request.num_nodes)
    return eplb_global(loads, slots, ranks)


def balanced(
    loads: FloatArray, request: PlacementRequest, bound: float, ends_s: float, rng: np.random.Generator
) -> IntArray:
    """The most even plan that local search finds from several starts, EPLB's among them (so never worse)."""
    slots, ranks = request.num_slots, request.num_ranks
    starts = [
        eplb_global(loads, slots, ranks),
        pack_heaviest_first(loads, replicate_below(loads, slots, ranks), ranks),
    ]
    groups, nodes = request.num_groups, request.num_nodes
    if groups > 1 and len(loads) % groups == 0 and groups % nodes == 0 and slots <= len(loads) // nodes * ranks:
        starts.append(eplb_hierarchical(loads, slots, ranks, groups, nodes))
    return search(loads, starts, ranks, bound, Effort(_SEARCH_ROUNDS, _SEARCH_STALL, ends_s), rng)


def _certify(layer: int, loads: FloatArray, physical: IntArray, num_ranks: int, bound: float) -> LayerPlan:
    carried = rank_loads_of(loads, physical, num_ranks)
    mean = float(loads.sum()) / num_ranks
    if mean == 0:
        return LayerPlan(layer, physical, 1.0, 1.0, 0.0)
    top = max(float(carried.max()) / mean, 1.0)
    return LayerPlan(layer, physical, top, min(max(bound / mean, 1.0), top), float(gini(carried)))
