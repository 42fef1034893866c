"""Greedy building blocks: how many replicas, and which rank takes the next one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def replicate_hottest(loads: FloatArray, num_slots: int, most: int) -> IntArray:
    """Experts of the replicas [slots]: every expert once, then the one with the highest load per replica, repeatedly.

    This minimises the largest load per replica (EPLB's replication step). `most`: most replicas of one expert.
    """
    counts = [1] * len(loads)
    share = loads.tolist()
    added: list[int] = []
    for _ in range(num_slots - len(loads)):
        expert = max(range(len(share)), key=share.__getitem__)
        counts[expert] += 1
        share[expert] = float(loads[expert]) / counts[expert] if counts[expert] < most else -1.0
        added.append(expert)
    return np.concatenate([np.arange(len(loads)), np.array(added, dtype=np.int64)])


def replicate_below(loads: FloatArray, num_slots: int, most: int) -> IntArray:
    """Experts of the replicas [slots]: as few replicas as keep each below a common level, the rest to the hottest.

    The level is the lowest that the slots allow, but not below half the mean load of a rank: below that further
    replicas of hot experts no longer help, and slots are better spent where packing needs them.
    """
    level = float(loads.sum()) / most / 2
    high = max(float(loads.max()), level)
    for _ in range(50):
        middle = (level + high) / 2
        wanted = np.ceil(loads / middle - 1e-9).clip(1, None)
        if wanted.sum() <= num_slots and wanted.max() <= most:
            high = middle
        else:
            level = middle
    counts = np.ceil(loads / high - 1e-9).clip(1, most).astype(np.int64)
    experts = np.repeat(np.arange(len(loads)), counts).tolist()
    while len(experts) < num_slots:
        share = np.where(counts < most, loads / counts, -1.0)
        counts[share.argmax()] += 1
        experts.append(int(share.argmax()))
    return np.array(experts, dtype=np.int64)


def pack(experts: Sequence[int], weights: Sequence[float], num_ranks: int, rank_slots: int) -> IntArray:
    """Put replicas on ranks in the given order, each on the least loaded rank that has room and lacks the expert.

    When every rank with room already holds the expert, a replica on another rank makes way for it (the swap
    that leaves the lower maximum). Needs len(experts) == num_ranks * rank_slots and at most `num_ranks`
    replicas of an expert.

    Returns:
        Map [slots], rank-major.
    """
    held: list[dict[int, float]] = [{} for _ in range(num_ranks)]
    load = [0.0] * num_ranks
    for expert, weight in zip(experts, weights, strict=True):
        best = -1
        for rank in range(num_ranks):
            if len(held[rank]) < rank_slots and expert not in held[rank] and (best < 0 or load[rank] < load[best]):
                best = rank
        if best < 0:
            best = _make_way(int(expert), held, load, rank_slots)
        held[best][int(expert)] = float(weight)
        load[best] += weight
    return np.array([expert for rank in held for expert in rank], dtype=np.int64)


def _make_way(expert: int, held: list[dict[int, float]], load: list[float], rank_slots: int) -> int:
    """Move a replica from a rank without `expert` to one with room; returns the rank that got room."""
    choices: list[tuple[float, int, int, int]] = []
    for target, there in enumerate(held):
        if len(there) >= rank_slots:
            continue
        for source, here in enumerate(held):
            if expert in here:
                continue
            choices.extend(
                (max(load[target] + weight, load[source] - weight), source, target, other)
                for other, weight in here.items()
                if other not in there
            )
    _, source, target, other = min(choices)
    weight = held[source].pop(other)
    held[target][other] = weight
    load[source] -= weight
    load[target] += weight
    return source


def pack_heaviest_first(loads: FloatArray, experts: IntArray, num_ranks: int) -> IntArray:
    """Longest-processing-time packing of the replicas `experts` [slots], an equal number of slots on each rank."""
    weights = loads[experts] / np.bincount(experts)[experts]
    order = np.argsort(-weights, kind="stable")
    return pack(experts[order].tolist(), weights[order].tolist(), num_ranks, len(experts) // num_ranks)
