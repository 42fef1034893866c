"""The best plan of a layer and its proof: mixed-integer programs solved by HiGHS (scipy.optimize.milp).

Two formulations of the same problem. Where a rank has few possible contents, every content is a variable (a
pattern: which experts, at which replica count) and ranks are not told apart, so nothing symmetric is searched twice;
the smallest feasible maximum is found by bisection over the patterns' loads. Otherwise replicas are assigned to
numbered ranks in decreasing order of load, with a time limit; the solver's dual bound certifies what is left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.placement.replicas import rank_loads_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_MOST_PATTERNS = 40_000
_MOST_VARIABLES = 30_000
_EXACT = 1e-9


@dataclass(frozen=True, slots=True)
class Certified:
    """A plan [slots], and a load (tokens) that no plan's fullest rank can go below."""

    physical: IntArray
    bound: float


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Contents of one rank: `items` (expert, replicas) pairs, `use` [patterns, slots of a rank] item numbers."""

    items: list[tuple[int, int]]
    use: IntArray
    load: FloatArray


def solve_exact(loads: FloatArray, start: IntArray, num_ranks: int, bound: float, limit_s: float) -> Certified:
    """Improve `start` [slots] to a proven optimum, or as far as `limit_s` seconds allow.

    Args:
        bound: a valid lower bound of the fullest rank (tokens) to begin with.
    """
    top = float(rank_loads_of(loads, start, num_ranks).max())
    if top <= bound * (1 + _EXACT):
        return Certified(start, bound)
    patterns = _patterns(loads, len(start), num_ranks, top)
    if patterns is not None:
        return _bisect(loads, start, num_ranks, bound, patterns, limit_s)
    extra = len(start) - len(loads)
    if len(loads) * min(extra + 1, num_ranks) * num_ranks > _MOST_VARIABLES:
        return Certified(start, bound)
    return _assign(loads, start, num_ranks, bound, limit_s)


def _patterns(loads: FloatArray, num_slots: int, num_ranks: int, top: float) -> _Patterns | None:
    """All contents of a rank with a load of at most `top`; None when there are too many."""
    most = min(num_ranks, num_slots - len(loads) + 1)
    items = [(expert, count) for expert in range(len(loads)) for count in range(1, most + 1)]
    items = [item for item in items if loads[item[0]] / item[1] <= top * (1 + _EXACT)]
    weight = np.array([loads[expert] / count for expert, count in items])
    expert = np.array([item[0] for item in items])
    use, load = np.arange(len(items))[:, None], weight
    for _ in range(num_slots // num_ranks - 1):
        if len(use) * len(items) > 60 * _MOST_PATTERNS:
            return None
        first, second = np.nonzero(expert[use[:, -1]][:, None] < expert[None, :])
        joined = load[first] + weight[second]
        keep = joined <= top * (1 + _EXACT)
        use = np.column_stack([use[first[keep]], second[keep]])
        load = joined[keep]
    return _Patterns(items, use, load) if 0 < len(use) <= _MOST_PATTERNS else None


def _bisect(
    loads: FloatArray, start: IntArray, num_ranks: int, bound: float, patterns: _Patterns, limit_s: float
) -> Certified:
    """Smallest pattern load at which the ranks can hold every expert. Infeasible targets raise the bound.

    The level just below the start is tried first, since a good start is often the optimum.
    """
    ends = time.perf_counter() + limit_s
    best, top = start, float(rank_loads_of(loads, start, num_ranks).max())
    levels = np.unique(patterns.load[patterns.load >= bound * (1 - _EXACT)])
    low, high = 0, int(np.searchsorted(levels, top * (1 - _EXACT)))
    middle = high - 1
    while low < high and time.perf_counter() < ends:
        found = _feasible(loads, num_ranks, patterns, float(levels[middle]), ends - time.perf_counter())
        if found is None:
            break
        if len(found):
            best = found
            high = int(np.searchsorted(levels, rank_loads_of(loads, best, num_ranks).max() * (1 - _EXACT)))
        else:
            low = middle + 1
            bound = max(bound, float(levels[low]) if low < len(levels) else top)
        middle = (low + high) // 2
    if low >= high:
        bound = max(bound, float(rank_loads_of(loads, best, num_ranks).max()))
    return Certified(best, bound)


def _feasible(loads: FloatArray, num_ranks: int, patterns: _Patterns, target: float, limit_s: float) -> IntArray | None:
    """A plan with no rank above `target`, an empty array when there is none, None when time ran out.

    Variables: how often each pattern is used, and which replica count each expert has. Every (expert, count) item
    is used `count` times when chosen and not otherwise.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, hstack

    allowed = np.flatnonzero(patterns.load <= target * (1 + _EXACT))
    use, items = patterns.use[allowed], patterns.items
    experts, counts = np.array(items).T
    pairs = np.arange(len(allowed)).repeat(use.shape[1])
    holds = csr_array((np.ones(use.size), (use.ravel(), pairs)), shape=(len(items), len(allowed)))
    chosen = csr_array((-counts.astype(float), (np.arange(len(items)), np.arange(len(items)))))
    one = csr_array((np.ones(len(items)), (experts, np.arange(len(items)))), shape=(len(loads), len(items)))
    nothing = csr_array((len(loads), len(allowed)))
    ranks = csr_array(np.concatenate([np.ones(len(allowed)), np.zeros(len(items))])[None, :])
    size = len(allowed) + len(items)
    most = np.concatenate([np.full(len(allowed), num_ranks), np.ones(len(items))])
    answer = milp(
        np.zeros(size),
        integrality=np.ones(size),
        bounds=Bounds(0, most),  # pyright: ignore[reportArgumentType]
        constraints=[
            LinearConstraint(hstack([holds, chosen]), 0, 0),  # pyright: ignore[reportArgumentType]
            LinearConstraint(hstack([nothing, one]), 1, 1),  # pyright: ignore[reportArgumentType]
            LinearConstraint(ranks, num_ranks, num_ranks),  # pyright: ignore[reportArgumentType]
        ],
        options={"time_limit": max(limit_s, 0.01)},
    )
    if answer.status == 2:
        return np.zeros(0, dtype=np.int64)
    if answer.x is None:
        return None
    times = np.rint(answer.x[: len(allowed)]).astype(np.int64)
    return experts[np.repeat(use, times, axis=0)].ravel().astype(np.int64)


def _assign(loads: FloatArray, start: IntArray, num_ranks: int, bound: float, limit_s: float) -> Certified:
    """Assign replicas to numbered ranks: x[expert, count, rank], chosen counts y[expert, count], maximum T."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    top = float(rank_loads_of(loads, start, num_ranks).max())
    most = min(num_ranks, len(start) - len(loads) + 1)
    items = [(e, k) for e in range(len(loads)) for k in range(1, most + 1) if loads[e] / k <= top * (1 + _EXACT)]
    size = len(items) * num_ranks + len(items) + 1
    matrix, low, high = _assignment_rows(loads, items, num_ranks, len(start) // num_ranks)
    cost = np.zeros(size)
    cost[-1] = 1.0
    least, most_values = np.append(np.zeros(size - 1), bound), np.append(np.ones(size - 1), top)
    answer = milp(
        cost,
        integrality=np.concatenate([np.ones(size - 1), [0]]),
        bounds=Bounds(least, most_values),  # pyright: ignore[reportArgumentType]
        constraints=LinearConstraint(matrix, low, high),  # pyright: ignore[reportArgumentType]
        options={"time_limit": max(limit_s, 0.05), "mip_rel_gap": 1e-9},
    )
    dual = getattr(answer, "mip_dual_bound", None)
    proven = max(bound, float(dual)) if dual is not None and np.isfinite(dual) else bound
    if answer.x is None:
        return Certified(start, min(proven, top))
    chosen = answer.x[: len(items) * num_ranks].reshape(len(items), num_ranks) > 0.5
    plan = np.array([items[item][0] for rank in range(num_ranks) for item in np.flatnonzero(chosen[:, rank])])
    reached = float(rank_loads_of(loads, plan, num_ranks).max())
    best, top = (plan, reached) if reached < top else (start, top)
    return Certified(best, min(proven, top))


def _assignment_rows(
    loads: FloatArray, items: list[tuple[int, int]], num_ranks: int, rank_slots: int
) -> tuple[object, FloatArray, FloatArray]:
    """Constraint rows: copies of an item, one count an expert, slots of a rank, loads in decreasing order below T."""
    from scipy.sparse import lil_array

    count = len(items)
    rows = count + len(loads) + 2 * num_ranks + count * num_ranks
    matrix = lil_array((rows, count * num_ranks + count + 1))
    low, high = np.zeros(rows), np.zeros(rows)
    weight = np.array([loads[expert] / copies for expert, copies in items])
    for item, (expert, copies) in enumerate(items):
        matrix[item, item * num_ranks : (item + 1) * num_ranks] = 1
        matrix[item, count * num_ranks + item] = -copies
        matrix[count + expert, count * num_ranks + item] = 1
    low[count : count + len(loads)] = high[count : count + len(loads)] = 1
    base = count + len(loads)
    for rank in range(num_ranks):
        columns = np.arange(count) * num_ranks + rank
        matrix[base + rank, columns] = 1
        low[base + rank] = high[base + rank] = rank_slots
        order = base + num_ranks + rank
        matrix[order, columns] = weight
        if rank:
            matrix[order, columns - 1] = -weight
        else:
            matrix[order, -1] = -1
        low[order] = -np.inf
    base += 2 * num_ranks
    for item in range(count):
        for rank in range(num_ranks):
            matrix[base, item * num_ranks + rank] = 1
            matrix[base, count * num_ranks + item] = -1
            low[base] = -np.inf
            base += 1
    return matrix.tocsr(), low, high
