"""Loads that placement tests share, and the optimum by brute force."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.placement.replicas import rank_loads_of

FloatArray = NDArray[np.float64]

EPLB_EXAMPLE = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ],
    dtype=float,
)
"""The loads of the example in the README of github.com/deepseek-ai/EPLB (16 replicas, 4 groups, 8 ranks, 2 nodes)."""


def optimum(loads: FloatArray, num_slots: int, num_ranks: int) -> float:
    """Load of the fullest rank of the best of all plans: every content of every rank is tried."""
    width = num_slots // num_ranks
    contents = list(itertools.combinations(range(len(loads)), width))
    best = np.inf
    for ranks in itertools.combinations_with_replacement(contents, num_ranks):
        physical = np.array(ranks).ravel()
        if len(set(physical.tolist())) == len(loads):
            best = min(best, float(rank_loads_of(loads, physical, num_ranks).max()))
    return best


@st.composite
def tiny_cases(draw: st.DrawFn) -> tuple[FloatArray, int, int]:
    """(loads, slots, ranks) small enough for brute force."""
    num_ranks = draw(st.integers(1, 4))
    experts = draw(st.integers(2, 5))
    least = -(-experts // num_ranks)
    width = draw(st.integers(least, max(least, min(experts, 2 if num_ranks > 2 else 4))))
    loads = draw(st.lists(st.integers(0, 60), min_size=experts, max_size=experts))
    return np.array(loads, dtype=float), width * num_ranks, num_ranks


@st.composite
def middle_cases(draw: st.DrawFn) -> tuple[FloatArray, int, int]:
    """(loads, slots, ranks) of any skew, up to 40 experts on 8 ranks."""
    num_ranks = draw(st.integers(1, 8))
    experts = draw(st.integers(2, 40))
    least = -(-experts // num_ranks)
    width = draw(st.integers(least, min(experts, least + 3)))
    seed = draw(st.integers(0, 2**32 - 1))
    skew = draw(st.floats(0, 3))
    loads = np.random.default_rng(seed).lognormal(0, skew, experts)
    if draw(st.booleans()):
        loads = np.round(loads * 20)
    return loads, width * num_ranks, num_ranks
