"""Dummy tokens in recorded routing: found and cut, with a count of what was cut and why.

Engines run forwards of identical tokens when they start (memory profiling, graph capture) and pad batches. Their
routing is in the logs: public vLLM logs of one layer show a Gini of 0.8 with them and 0.1 without.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.routing.imbalance import gini

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
_RUN = 16
"""Equal rows in a row that no text produces: a token's choices depend on its context from layer 1 on."""
_FREQUENT = 0.01
_DUMMY_TOKENS = 8


def dummy_tokens(choices: IntArray) -> dict[str, BoolArray]:
    """Tokens [tokens] that are no real text, by reason. `choices` [tokens, layers, top_k].

    padding: a layer names an expert twice (buffers that were never written). repeated: a run of 16 or more tokens
    with equal choices in every layer, or, with two layers and more, such tokens that make up over 1 % of the trace.
    """
    tokens, layers, top_k = choices.shape
    padding = np.zeros(tokens, dtype=bool)
    if top_k > 1:
        ordered = np.sort(choices, axis=2)
        padding = (ordered[:, :, 1:] == ordered[:, :, :-1]).any(axis=(1, 2))
    rows = np.sort(choices, axis=2).reshape(tokens, -1)
    _, kind, times = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    kind = kind.ravel()
    change = np.flatnonzero(np.diff(kind)) + 1
    edges = np.concatenate([[0], change, [tokens]])
    long_runs = np.repeat(np.diff(edges) >= _RUN, np.diff(edges))
    dummy = np.isin(kind, kind[long_runs])
    if layers > 1:
        dummy |= times[kind] > max(_RUN, _FREQUENT * tokens)
    if len(times) == 1:
        dummy[:] = False
    return {"padding tokens": padding, "repeated dummy tokens": dummy & ~padding}


def dummy_steps(counts: FloatArray) -> dict[str, BoolArray]:
    """Steps [steps] that are no real load, by reason. `counts` [steps, layers, experts].

    empty: no tokens. identical: 8 or more tokens that all chose the same experts in every layer. warm-up: leading
    steps whose mean Gini lies far above the rest's (over 0.2 and six median deviations).
    """
    sums = counts.sum(axis=(1, 2))
    empty = sums == 0
    used = counts.sum(axis=2) > 0
    top = counts.max(axis=2)
    same = (((counts == 0) | (counts == top[:, :, None])).all(axis=2) | ~used).all(axis=1)
    touched = (counts > 0).sum(axis=2)
    few = ((touched * 2 <= counts.shape[2]) | ~used).all(axis=1)
    identical = ~empty & same & few & (top.max(axis=1) >= _DUMMY_TOKENS)
    rest = ~empty & ~identical
    leading = np.zeros(len(counts), dtype=bool)
    if rest.sum() >= 8:
        level = np.where(used, gini(counts), 0.0).sum(axis=1) / np.maximum(used.sum(axis=1), 1)
        middle = float(np.median(level[rest]))
        spread = float(np.median(np.abs(level[rest] - middle)))
        high = rest & (level > middle + max(0.2, 6 * spread))
        first_normal = int(np.argmin(high | ~rest))
        leading[:first_normal] = high[:first_normal]
    return {"empty steps": empty, "steps of identical tokens": identical, "warm-up steps": leading}
