"""How the measured fused-MoE tables routed their tokens: balanced, or a power law with the heaviest rank measured.

The generator of the AIConfigurator project, described in its public collector: expert loads from x^-alpha on
[1, 0.8 tokens] (on [0.01, 2] below one slot per expert), scaled to tokens x top-k, at most `tokens` an expert, and
what is missing or too much dealt out over the ranks in turn. The heaviest rank is rank 0, which is measured. Its
versions before 2026 dealt the missing slots to idle experts by number, so that small batches fell on one rank. Five
draws a row, as there; their seeds are not recorded, so a row of few tokens scatters by a few percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
_DRAWS = 5


@dataclass(frozen=True, slots=True)
class Distribution:
    """`alpha` of the power law, or None for balanced; `dealt_in_order`: the generator before 2026."""

    alpha: float | None
    dealt_in_order: bool = False


@lru_cache(maxsize=200_000)
def measured_rank_loads(
    tokens: int, experts: int, top_k: int, ranks: int, distribution: Distribution
) -> tuple[IntArray, ...]:
    """Slots of each expert of the measured rank [experts / ranks], one array a draw."""
    if distribution.alpha is None:
        return (_balanced(tokens, experts, top_k)[: experts // ranks],)
    rng = np.random.default_rng([tokens, experts, top_k, ranks])
    draws: list[IntArray] = []
    for _ in range(_DRAWS):
        loads = _power_law(tokens, experts, top_k, distribution.alpha, rng)
        if distribution.dealt_in_order:
            counts = _deal_in_order(loads, tokens, tokens * top_k)
        else:
            counts = _deal_by_rank(loads, tokens, tokens * top_k, ranks)
        by_rank = counts.reshape(ranks, experts // ranks)
        draws.append(by_rank[by_rank.sum(axis=1).argmax()])
    return tuple(draws)


def _balanced(tokens: int, experts: int, top_k: int) -> IntArray:
    """Tokens walk over the experts; a token's choices lie a fixed stride apart."""
    stride = -(-experts // top_k)
    first = np.arange(tokens)[:, None] if tokens >= stride else np.arange(tokens)[:, None] * stride / tokens
    chosen = np.floor(first + np.arange(top_k)[None, :] * stride) % experts
    return np.bincount(chosen.astype(np.int64).ravel(), minlength=experts)


def _power_law(tokens: int, experts: int, top_k: int, alpha: float, rng: np.random.Generator) -> IntArray:
    """Rounded loads of all experts, before they are made to sum to tokens x top_k."""
    low, high = (1.0, max(0.8 * tokens, 1.0001)) if tokens * top_k > experts else (0.01, 2.0)
    power = 1.0 - alpha
    drawn = ((high**power - low**power) * rng.random(experts) + low**power) ** (1.0 / power)
    return np.rint(drawn / drawn.sum() * tokens * top_k).astype(np.int64)


def _deal_by_rank(loads: IntArray, cap: int, target: int, ranks: int) -> IntArray:
    """Bring the sum to `target`: every rank in turn fills its least loaded (empties its most loaded) expert."""
    counts = np.minimum(loads, cap).reshape(ranks, -1).copy()
    missing = target - int(counts.sum())
    share = np.full(ranks, abs(missing) // ranks)
    share[: abs(missing) % ranks] += 1
    for row, amount in zip(counts, share.tolist(), strict=True):
        if missing > 0:
            _fill(row, amount, cap)
        else:
            _empty(row, amount)
    return _settle(counts.ravel(), cap, target)


def _fill(row: IntArray, amount: int, cap: int) -> None:
    """Raise the lowest entries together until `amount` is placed or all are at `cap`."""
    while amount > 0 and (row < cap).any():
        low = row[row < cap].min()
        at = np.flatnonzero(row == low)
        above = row[row > low]
        rise = int((above.min() if len(above) else cap) - low)
        if amount >= rise * len(at):
            row[at] += rise
            amount -= rise * len(at)
        else:
            row[at] += amount // len(at)
            row[at[: amount % len(at)]] += 1
            amount = 0


def _empty(row: IntArray, amount: int) -> None:
    for _ in range(min(amount, int(row.sum()))):
        row[row.argmax()] -= 1


def _settle(counts: IntArray, cap: int, target: int) -> IntArray:
    """Place what single ranks could not take."""
    missing = target - int(counts.sum())
    if missing > 0:
        _fill(counts, missing, cap)
    elif missing < 0:
        _empty(counts, -missing)
    return counts


def _deal_in_order(loads: IntArray, cap: int, target: int) -> IntArray:
    """Missing slots go one each to the experts in ascending order of load, ties by number."""
    counts = loads.copy()
    missing = target - int(counts.sum())
    order = np.argsort(counts, kind="stable")
    if missing > 0:
        counts += missing // len(counts)
        counts[order[: missing % len(counts)]] += 1
    else:
        _empty(counts, -missing)
    return _settle(np.minimum(counts, cap), cap, target)
