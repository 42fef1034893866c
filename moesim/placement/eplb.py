"""EPLB-style plans: replicate the hottest experts, then pack evenly; global, or by expert group and node.

Follows the published description of DeepSeek's load balancer (github.com/deepseek-ai/EPLB, README): the
hierarchical policy packs expert groups to nodes, replicates within each node and packs the replicas of a node to
its GPUs; the global policy ignores groups and nodes. One difference: packing by load alone may put two replicas of
an expert on one rank, where the second is of no use; its slot is given to the expert that helps most instead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.packing import pack, replicate_hottest
from moesim.specs.deployment import divisors

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def eplb_global(loads: FloatArray, num_slots: int, num_ranks: int) -> IntArray:
    """Map [slots] of one layer: replicate the hottest of `loads` [experts], pack heaviest first."""
    experts = replicate_hottest(loads, num_slots, num_ranks)
    weights = loads[experts] / np.bincount(experts)[experts]
    order = np.argsort(-weights, kind="stable")
    packed = _pack_by_load(weights[order], num_ranks)
    return _drop_twins(loads, experts[order][packed], num_ranks)


def _pack_by_load(weights: FloatArray, num_ranks: int) -> IntArray:
    """Items of each rank [slots], rank-major: every item, heaviest first, to the least loaded rank with room."""
    rank_slots = len(weights) // num_ranks
    load = np.zeros(num_ranks)
    items: list[list[int]] = [[] for _ in range(num_ranks)]
    for item, weight in enumerate(weights.tolist()):
        rank = int(load.argmin())
        items[rank].append(item)
        load[rank] = load[rank] + weight if len(items[rank]) < rank_slots else np.inf
    return np.array(items, dtype=np.int64).ravel()


def _drop_twins(loads: FloatArray, physical: IntArray, num_ranks: int) -> IntArray:
    """Part the replicas of one expert on one rank by the change with which the fullest rank stays lowest.

    Either the second replica changes places with a slot of another rank, or its slot goes to another expert.
    """
    plan = physical.reshape(num_ranks, -1).copy()
    for rank, slot in np.ndindex(plan.shape):
        if plan[rank, slot] in plan[rank, :slot]:
            _part(loads, plan, rank, slot)
    return plan.ravel()


def _part(loads: FloatArray, plan: IntArray, rank: int, slot: int) -> None:
    """Change `plan` [ranks, slots of a rank] so that slot `slot` of `rank` no longer repeats its expert."""
    twin, ranks = plan[rank, slot], len(plan)
    copies = np.zeros((ranks, len(loads)))
    np.add.at(copies, (np.arange(ranks)[:, None], plan), 1.0)
    counts = copies.sum(axis=0)
    share = loads / counts
    carried = copies @ share
    free = np.flatnonzero(copies[rank] == 0)
    lighter, heavier = loads[free] / (counts[free] + 1), loads[twin] / (counts[twin] - 1)
    given = carried + copies[:, free].T * (lighter - share[free])[:, None] + copies[:, twin] * (heavier - share[twin])
    given[:, rank] += lighter - heavier
    other, there = np.nonzero((copies[rank][plan] == 0) & (copies[:, twin] == 0)[:, None])
    moved = share[plan[other, there]] - share[twin]
    swapped = np.tile(carried, (len(other), 1))
    swapped[:, rank] += moved
    swapped[np.arange(len(other)), other] -= moved
    after = np.concatenate([given, swapped])
    best = int(np.lexsort(((after**2).sum(axis=1), after.max(axis=1)))[0])
    if best < len(free):
        plan[rank, slot] = free[best]
    else:
        place = other[best - len(free)], there[best - len(free)]
        plan[rank, slot], plan[place] = plan[place], twin


def eplb_hierarchical(loads: FloatArray, num_slots: int, num_ranks: int, num_groups: int, num_nodes: int) -> IntArray:
    """Map [slots] of one layer: groups to nodes, replicas within nodes, replicas to the node's GPUs.

    Raises:
        InputError: sizes that do not divide each other.
    """
    check_groups(len(loads), num_slots, num_ranks, num_groups, num_nodes)
    group_size = len(loads) // num_groups
    group_loads = loads.reshape(num_groups, group_size).sum(axis=1)
    order = np.argsort(-group_loads, kind="stable")
    groups = pack(order.tolist(), group_loads[order].tolist(), num_nodes, num_groups // num_nodes)
    parts: list[IntArray] = []
    for node in groups.reshape(num_nodes, -1):
        members = (node[:, None] * group_size + np.arange(group_size)).ravel()
        parts.append(members[eplb_global(loads[members], num_slots // num_nodes, num_ranks // num_nodes)])
    return np.concatenate(parts)


def check_groups(num_experts: int, num_slots: int, num_ranks: int, num_groups: int, num_nodes: int) -> None:
    """Refuse sizes that the hierarchical policy cannot use. Raises InputError."""
    if num_groups < 1 or num_experts % num_groups:
        raise InputError(
            f"groups: {num_groups} does not divide the {num_experts} experts; sizes that do: {divisors(num_experts)}"
        )
    if num_nodes < 1 or num_ranks % num_nodes:
        raise InputError(
            f"nodes: {num_nodes} does not divide the {num_ranks} gpus; sizes that do: {divisors(num_ranks)}"
        )
    if num_groups % num_nodes:
        raise InputError(
            f"groups: {num_groups} groups do not spread evenly over {num_nodes} nodes; use a multiple of {num_nodes} "
            "or the policy eplb_global"
        )
    if num_slots > num_experts // num_nodes * num_ranks:
        raise InputError(
            f"replicas: {num_slots} slots exceed one replica of each expert of a node on each of its ranks; the "
            f"largest that works is {num_experts // num_nodes * num_ranks}"
        )
