"""How good can any plan be: a lower bound of the fullest rank's load, for replicas that share evenly.

Three facts, each true of every plan with the same slots: the mean rank; a replica and the lightest neighbours that
its rank's other slots can hold; and how many heavy replicas ranks can take. Valid for all algorithms, since groups,
nodes and affinity only restrict further.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_STEPS = 60


def lower_bound(loads: FloatArray, num_slots: int, num_ranks: int) -> float:
    """Least load of the fullest rank that any plan of `num_slots` slots could reach (tokens).

    The bisection keeps an infeasible lower end, so that what it returns is a bound at every step.
    """
    total = float(loads.sum())
    if total == 0:
        return 0.0
    low = total / num_ranks
    if _possible(loads, low, num_slots, num_ranks):
        return low
    high = float(loads.max()) + total
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _possible(loads, middle, num_slots, num_ranks):
            high = middle
        else:
            low = middle
    return low


def _possible(loads: FloatArray, target: float, num_slots: int, num_ranks: int) -> bool:
    """False only when no plan keeps every rank at or below `target` (necessary conditions)."""
    target *= 1 + 1e-12
    rank_slots, extra = num_slots // num_ranks, num_slots - len(loads)
    light = _lightest_neighbours(loads, rank_slots - 1, extra)
    if target - light[0] < 2 * _heaviest_of_lightest(loads, rank_slots - 1):
        light = np.zeros(1)  # a replica of a heavy expert could be the lightest neighbour, and its extras count twice
    room = target - light
    spent = np.arange(len(light))
    usable = room > 0
    if not usable.any():
        return False
    wanted = np.ceil(loads[None, :] / room[usable, None] - 1e-9).clip(1, None)
    fits = (wanted.max(axis=1) <= num_ranks) & ((wanted - 1).sum(axis=1) + spent[usable] <= extra)
    if not fits.any():
        return False
    least = np.ceil(loads / target - 1e-9).clip(1, None)
    return _heavy_fit(loads, least, target, num_slots, num_ranks)


def _heaviest_of_lightest(loads: FloatArray, neighbours: int) -> float:
    return float(np.partition(loads, neighbours - 1)[neighbours - 1]) if 0 < neighbours <= len(loads) else 0.0


def _lightest_neighbours(loads: FloatArray, neighbours: int, extra: int) -> FloatArray:
    """Least load of `neighbours` slots with distinct experts when 0..extra replicas are spent on making them lighter.

    The lightest experts are best, and replicas go where they help most (each expert's load per replica is convex).
    """
    if neighbours <= 0 or neighbours > len(loads):
        return np.zeros(1)
    chosen = np.sort(loads)[:neighbours]
    times = np.arange(1, extra + 1)
    gains = (chosen[:, None] * (1 / times - 1 / (times + 1))[None, :]).ravel()
    best = np.sort(gains)[::-1][:extra]
    return float(chosen.sum()) - np.concatenate([[0.0], np.cumsum(best)])


def _heavy_fit(loads: FloatArray, least: FloatArray, target: float, num_slots: int, num_ranks: int) -> bool:
    """Dual-feasible check: a rank takes at most j replicas heavier than target / (j + 1).

    For each j, replicas beyond the least may shrink an expert's replicas below the threshold; the cheapest way
    (fewest replicas spent for each heavy replica removed) is granted in full, as a relaxation.
    """
    extra = num_slots - len(loads) - float((least - 1).sum())
    for j in range(1, num_slots // num_ranks):
        threshold = target / (j + 1) * (1 + 1e-9)
        heavy = loads / least > threshold
        if not heavy.any():
            continue
        shrink = np.floor(loads[heavy] / threshold + 1e-9) + 1 - least[heavy]
        removed = least[heavy]
        order = np.argsort(shrink / removed)
        spent = np.cumsum(shrink[order])
        affordable = float(
            np.interp(extra, np.concatenate([[0.0], spent]), np.concatenate([[0.0], np.cumsum(removed[order])]))
        )
        if removed.sum() - affordable > j * num_ranks + 1e-9:
            return False
    return True
