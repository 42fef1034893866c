"""Physical experts: a layer's map from slots to experts, and the load that each slot and rank then carries.

A plan of one layer is `physical` [slots]: the expert in each slot, rank-major (rank r owns slots r*s to r*s + s - 1).
An expert's tokens are split evenly over its replicas, as EPLB and the engines assume.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
MOST_RANKS = 1024
"""Ranks of one expert-parallel group that plans are made for."""


def replica_counts(physical: IntArray, num_experts: int) -> IntArray:
    """Replicas of each expert [..., experts] of a map `physical` [..., slots]."""
    flat = physical.reshape(-1, physical.shape[-1])
    shifted = flat + num_experts * np.arange(len(flat))[:, None]
    counts = np.bincount(shifted.ravel(), minlength=len(flat) * num_experts)
    return counts.reshape(*physical.shape[:-1], num_experts)


def slot_loads(loads: FloatArray, physical: IntArray) -> FloatArray:
    """Load of every slot [..., slots] when `loads` [..., experts] are split evenly over replicas."""
    share = loads / np.maximum(replica_counts(physical, loads.shape[-1]), 1)
    return np.take_along_axis(share, physical, axis=-1)


def rank_loads_of(loads: FloatArray, physical: IntArray, num_ranks: int) -> FloatArray:
    """Load of every rank [..., ranks]; sums to the loads' own sum when every expert has a replica."""
    slots = slot_loads(loads, physical)
    return slots.reshape(*slots.shape[:-1], num_ranks, -1).sum(axis=-1)


def check_slots(num_experts: int, num_slots: int, num_ranks: int) -> int:
    """Slots of a rank, if a plan exists.

    Raises:
        InputError: too few slots (says the smallest number that works), too many, or not divisible by the ranks.
    """
    if not 1 <= num_ranks <= MOST_RANKS:
        raise InputError(f"gpus: {num_ranks} is out of range, must be 1 to {MOST_RANKS}")
    smallest = -(-num_experts // num_ranks) * num_ranks
    if num_slots < num_experts:
        raise InputError(
            f"replicas: {num_slots} slots cannot hold {num_experts} experts; the smallest that works on "
            f"{num_ranks} ranks is {smallest}"
        )
    if num_slots % num_ranks:
        near = [size for size in (num_slots // num_ranks * num_ranks,) if size >= num_experts]
        near.append(-(-num_slots // num_ranks) * num_ranks)
        raise InputError(
            f"replicas: {num_slots} is no multiple of the {num_ranks} ranks; nearest that work: "
            f"{', '.join(map(str, near))}"
        )
    if num_slots > num_experts * num_ranks:
        raise InputError(
            f"replicas: {num_slots} slots exceed one replica of each of {num_experts} experts on each of "
            f"{num_ranks} ranks; the largest that works is {num_experts * num_ranks}"
        )
    return num_slots // num_ranks


def check_map(physical: IntArray, num_experts: int, num_ranks: int, where: str) -> IntArray:
    """Refuse maps [layers, slots] that no engine could load; returns the map unchanged.

    Raises:
        InputError: an expert out of range, without a replica, or twice on one rank.
    """
    layers, slots = physical.shape
    check_slots(num_experts, slots, num_ranks)
    outside = np.argwhere((physical < 0) | (physical >= num_experts))
    if len(outside):
        layer, slot = outside[0]
        raise InputError(
            f"{where}: layer {layer} slot {slot} holds expert {physical[layer, slot]}, must be 0 to {num_experts - 1}"
        )
    missing = np.argwhere(replica_counts(physical, num_experts) == 0)
    if len(missing):
        raise InputError(f"{where}: layer {missing[0][0]} has no replica of expert {missing[0][1]}")
    ordered = np.sort(physical.reshape(layers, num_ranks, -1), axis=-1)
    twice = np.argwhere(ordered[..., 1:] == ordered[..., :-1])
    if len(twice):
        layer, rank, place = twice[0]
        raise InputError(f"{where}: layer {layer} rank {rank} holds expert {ordered[layer, rank, place]} twice")
    return physical


def presence(physical: IntArray, num_experts: int, num_ranks: int) -> NDArray[np.bool_]:
    """Which rank holds which expert [ranks, experts], for one layer."""
    held = np.zeros((num_ranks, num_experts), dtype=bool)
    held[np.repeat(np.arange(num_ranks), len(physical) // num_ranks), physical] = True
    return held
