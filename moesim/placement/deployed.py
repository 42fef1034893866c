"""The map that a deployment runs with, and how a step's tokens fall on its slots and ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim.placement.baselines import linear, round_robin
from moesim.placement.eplb import eplb_global
from moesim.placement.replicas import check_slots
from moesim.routing.loads import make_bank
from moesim.specs.deployment import Deployment
from moesim.specs.model import MixtureOfExperts
from moesim.specs.routing import Routing

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """What decides a deployment's map: ranks, redundant experts, the map itself where one is given, or its rule."""

    num_ranks: int
    redundant_experts: int = 0
    placement: tuple[tuple[int, ...], ...] = ()
    expert_map: str = "linear"


def expert_layout(deployment: Deployment) -> ExpertLayout:
    """The part of a deployment that places experts."""
    return ExpertLayout(
        deployment.expert_parallel_size,
        deployment.redundant_experts,
        deployment.placement,
        deployment.expert_map,
    )


@lru_cache(maxsize=64)
def _maps(moe: MixtureOfExperts, routing: Routing, layout: ExpertLayout, num_layers: int, seed: int) -> IntArray:
    slots = moe.num_experts + layout.redundant_experts
    if layout.placement:
        rows = np.array(layout.placement, dtype=np.int64)
        return rows[np.arange(num_layers) % len(rows)]
    if not layout.redundant_experts:
        make = round_robin if layout.expert_map == "round_robin" else linear
        return np.tile(make(moe.num_experts, slots, layout.num_ranks), (num_layers, 1))
    check_slots(moe.num_experts, slots, layout.num_ranks)
    loads = make_bank(moe, routing, num_layers, seed).inclusion
    rows = np.stack([eplb_global(row, slots, layout.num_ranks) for row in loads])
    return rows[np.arange(num_layers) % len(rows)]


def deployed_map(moe: MixtureOfExperts, routing: Routing, layout: ExpertLayout, num_layers: int, seed: int) -> IntArray:
    """Map [layers, slots], rank-major: the placement given, EPLB's global policy for redundant experts without one
    (planned from the expected load, as after its first rearrangement), else linear or round-robin.
    """
    return _maps(moe, routing, layout, num_layers, seed)


def split_tokens(counts: FloatArray, physical: IntArray) -> FloatArray:
    """Tokens of each slot [..., draws, slots] when an expert's tokens take its replicas in turn.

    Args:
        counts: tokens per expert [..., draws, experts].
        physical: map of each draw's layer [draws, slots].
    """
    slots = physical.shape[1]
    if slots == counts.shape[-1]:
        return np.take_along_axis(counts, np.broadcast_to(physical, (*counts.shape[:-1], slots)), axis=-1)
    turn, copies = _turns(physical, counts.shape[-1])
    tokens = np.take_along_axis(counts, np.broadcast_to(physical, (*counts.shape[:-1], slots)), axis=-1)
    return np.floor((tokens + turn) / copies)


def _turns(physical: IntArray, num_experts: int) -> tuple[FloatArray, FloatArray]:
    """Each slot's place in the turn of its expert's replicas, and their number [draws, slots]."""
    turn, copies = np.zeros(physical.shape), np.ones(physical.shape)
    for draw, row in enumerate(physical):
        count = np.bincount(row, minlength=num_experts)
        copies[draw] = count[row]
        order = np.argsort(row, kind="stable")
        first = np.concatenate([[0], np.cumsum(count)[:-1]])
        place = np.empty(len(row))
        place[order] = np.arange(len(row)) - np.repeat(first, count)
        turn[draw] = (place + draw) % copies[draw]
    return turn, copies


def sum_slots(values: FloatArray, num_ranks: int) -> FloatArray:
    """Sum per-slot values [..., slots] over each rank's slots -> [..., ranks]."""
    return values.reshape(*values.shape[:-1], num_ranks, -1).sum(axis=-1)
