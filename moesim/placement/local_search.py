"""Local search on a layer's plan: swap two replicas, or turn a replica of one expert into one of another."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.placement.replicas import presence, rank_loads_of, replica_counts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
_MOST_MOVES = 4000
_GAIN = 1e-9
_POWER = 16
"""Changes of replica counts touch many ranks: the sum of loads to this power tells which leave fewer ranks high."""
_CLOSE = 2e-4
"""Kicks stop here: what is left is less than the sampling noise of ten million recorded tokens."""


@dataclass(slots=True)
class _State:
    """A plan under change: `physical` [slots], who holds what [ranks, experts], load of each rank [ranks]."""

    loads: FloatArray
    physical: IntArray
    held: BoolArray
    counts: IntArray
    ranks: FloatArray

    @property
    def rank_slots(self) -> int:
        return len(self.physical) // len(self.ranks)


def improve(loads: FloatArray, physical: IntArray, num_ranks: int, goal: float) -> IntArray:
    """Lower the fullest rank until `goal` (a lower bound) is met or no move helps; never returns a worse plan.

    Each move takes the best change of the fullest rank: a swap with any slot elsewhere, else a change of replica
    counts. Ends because every move lowers the fullest rank, or the number of ranks that are as full.
    """
    state = _state(loads, physical, num_ranks)
    for _ in range(_MOST_MOVES):
        if state.ranks.max() <= goal * (1 + _GAIN):
            break
        if not _swap(state) and not _recount(state):
            break
    return state.physical


def _state(loads: FloatArray, physical: IntArray, num_ranks: int) -> _State:
    return _State(
        loads=loads,
        physical=physical.copy(),
        held=presence(physical, len(loads), num_ranks),
        counts=replica_counts(physical, len(loads)),
        ranks=rank_loads_of(loads, physical, num_ranks),
    )


def _swap(state: _State) -> bool:
    """Swap a slot of the fullest rank with one elsewhere, so that both ranks end lowest."""
    full, width = int(state.ranks.argmax()), state.rank_slots
    share = state.loads / state.counts
    mine = state.physical[full * width : (full + 1) * width]
    there = np.repeat(np.arange(len(state.ranks)), width)
    moved = share[mine][:, None] - share[state.physical][None, :]
    after = np.maximum(state.ranks[full] - moved, state.ranks[there][None, :] + moved)
    allowed = (moved > 0) & ~state.held[full][state.physical][None, :] & ~state.held[there][:, mine].T
    after = np.where(allowed, after, np.inf)
    best = int(after.argmin())
    slot, other = divmod(best, len(state.physical))
    if not after[slot, other] < state.ranks[full] * (1 - _GAIN):
        return False
    slot += full * width
    rank, mine_expert, other_expert = int(there[other]), state.physical[slot], state.physical[other]
    amount = share[mine_expert] - share[other_expert]
    state.physical[slot], state.physical[other] = other_expert, mine_expert
    state.held[full, mine_expert] = state.held[rank, other_expert] = False
    state.held[full, other_expert] = state.held[rank, mine_expert] = True
    state.ranks[full] -= amount
    state.ranks[rank] += amount
    return True


def _recount(state: _State) -> bool:
    """Turn one replica of a replicated expert into a further replica of an expert on the fullest rank."""
    full, width, ranks = int(state.ranks.argmax()), state.rank_slots, len(state.ranks)
    slots = np.flatnonzero(state.counts[state.physical] > 1)
    wanted = state.physical[full * width : (full + 1) * width]
    wanted = wanted[state.counts[wanted] < ranks]
    slot = np.repeat(slots, len(wanted))
    gain = np.tile(wanted, len(slots))
    lose, rank = state.physical[slot], slot // width
    keep = (lose != gain) & ~state.held[rank, gain]
    slot, gain, lose, rank = slot[keep], gain[keep], lose[keep], rank[keep]
    if not len(slot):
        return False
    now, loads, counts = state.ranks, state.loads, state.counts
    lighter = loads[gain] / counts[gain] - loads[gain] / (counts[gain] + 1)
    heavier = loads[lose] / (counts[lose] - 1) - loads[lose] / counts[lose]
    after = now[None, :] - state.held[:, gain].T * lighter[:, None] + state.held[:, lose].T * heavier[:, None]
    rows = np.arange(len(slot))
    after[rows, rank] += loads[gain] / (counts[gain] + 1) - loads[lose] / (counts[lose] - 1)
    top = now.max()
    height = ((after / top) ** _POWER).sum(axis=1)
    best = int(height.argmin())
    if not height[best] < ((now / top) ** _POWER).sum() * (1 - _GAIN):
        return False
    state.physical[slot[best]] = gain[best]
    fresh = _state(loads, state.physical, ranks)
    state.held, state.counts, state.ranks = fresh.held, fresh.counts, fresh.ranks
    return True


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to search: kicks in all, kicks in a row without gain, and a time on the clock (perf_counter) to stop."""

    rounds: int
    stall: int
    ends_s: float


def search(
    loads: FloatArray, starts: list[IntArray], num_ranks: int, goal: float, effort: Effort, rng: np.random.Generator
) -> IntArray:
    """Iterated local search from the best of `starts`: kick a few replicas, improve, keep what is no worse.

    Never worse than the best start. `goal`: lower bound of the fullest rank; the search stops close to it.
    """
    plans = [improve(loads, start, num_ranks, goal) for start in starts]
    tops = [float(rank_loads_of(loads, plan, num_ranks).max()) for plan in plans]
    best, top = plans[int(np.argmin(tops))], min(tops)
    since = 0
    for _ in range(effort.rounds):
        if top <= goal * (1 + _CLOSE) or since >= effort.stall or time.perf_counter() > effort.ends_s:
            break
        trial = improve(loads, _kick(loads, best, num_ranks, rng), num_ranks, goal)
        reached = float(rank_loads_of(loads, trial, num_ranks).max())
        since = 0 if reached < top * (1 - _GAIN) else since + 1
        if reached <= top:
            best, top = trial, reached
    return best


def _kick(loads: FloatArray, physical: IntArray, num_ranks: int, rng: np.random.Generator) -> IntArray:
    """Up to four random changes: swap two slots, or turn a spare replica into one of another expert."""
    state = _state(loads, physical, num_ranks)
    width, experts = state.rank_slots, len(loads)
    for _ in range(int(rng.integers(1, 5))):
        slot = int(rng.integers(len(physical)))
        rank, expert = slot // width, state.physical[slot]
        if state.counts[expert] > 1 and rng.random() < 0.5:
            other = int(rng.choice(experts, p=loads / loads.sum()))
            if not state.held[rank, other]:
                state.physical[slot] = other
                state = _state(loads, state.physical, num_ranks)
            continue
        place = int(rng.integers(len(physical)))
        there, other = place // width, state.physical[place]
        if not state.held[rank, other] and not state.held[there, expert]:
            state.physical[slot], state.physical[place] = other, expert
            state = _state(loads, state.physical, num_ranks)
    return state.physical
