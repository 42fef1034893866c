"""Where the time of a run went: seconds by operator, and what each waited for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.costs.kernels import OperatorCost
from moesim.costs.step import StepModel
from moesim.engine.group import StepLog
from moesim.engine.rebalancing import Rebalancing

FloatArray = NDArray[np.float64]
_FIELDS = ("memory_s", "compute_s", "network_s", "launch_s", "hbm_bytes", "flops")


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Seconds of the slowest rank over a whole run.

    `operators`: seconds by operator, and `host (exposed)`: time in which the GPU waited for the host.
    `limits`: the same seconds by cause: memory, compute, network, launch (fixed time of kernels), host.
    `hbm_bytes`, `flops`: moved and computed per rank.
    """

    operators: dict[str, float]
    limits: dict[str, float]
    hbm_bytes: float
    flops: float

    @property
    def total_s(self) -> float:
        """Seconds in all."""
        return sum(self.operators.values())

    @property
    def limited_by(self) -> str:
        """The cause with the largest share, in a user's words."""
        words = {"memory": "HBM bandwidth", "launch": "kernel launch", "host": "host"}
        cause = max(self.limits, key=lambda name: self.limits[name])
        return words.get(cause, cause)


def run_breakdown(model: StepModel, logs: Sequence[StepLog], rebalancing: Sequence[Rebalancing] = ()) -> Breakdown:
    """Integrate the step tables over the sizes that a run met; balancing and drift change the routed experts."""
    operators: dict[str, float] = {}
    totals: dict[str, float] = dict.fromkeys(_FIELDS, 0.0)
    for position, grid, costs in _tables(model):
        sizes, counts = _histogram(logs, position, model)
        for name, cost in costs.items():
            parts = _integrate(cost, grid, sizes, counts)
            operators[name] = sum(parts[:4])
            for field, value in zip(_FIELDS, parts, strict=True):
                totals[field] += value
    _add_attention(model, logs, operators, totals)
    _add_rebalancing(rebalancing, operators, totals)
    gpu_s = sum(operators.values())
    busy_s = sum(log.busy_s for log in logs)
    operators["host (exposed)"] = max(busy_s - gpu_s, 0.0)
    limits = {name.removesuffix("_s"): totals[name] for name in _FIELDS[:4]}
    limits["host"] = operators["host (exposed)"]
    kept = {name: seconds for name, seconds in operators.items() if seconds > 0}
    return Breakdown(kept, limits, totals["hbm_bytes"], totals["flops"])


def _add_rebalancing(rebalancing: Sequence[Rebalancing], operators: dict[str, float], totals: dict[str, float]) -> None:
    """Routed experts by what drift and maps changed; time in which all ranks waited for weights, to the network."""
    for log in rebalancing:
        change = max(log.added_s, -operators.get("routed experts", 0.0))
        operators["routed experts"] = operators.get("routed experts", 0.0) + change
        totals["memory_s"] = max(totals["memory_s"] + change, 0.0)
        operators["moving experts"] = operators.get("moving experts", 0.0) + log.stalled_s
        totals["network_s"] += log.stalled_s


def _tables(model: StepModel) -> list[tuple[int, NDArray[np.int64], dict[str, OperatorCost]]]:
    operators = model.operators
    return [
        (0, operators.token_grid, operators.token),
        (1, operators.token_grid, operators.routed),
        (2, operators.row_grid, operators.row),
    ]


def _histogram(logs: Sequence[StepLog], position: int, model: StepModel) -> tuple[FloatArray, FloatArray]:
    """Distinct sizes and how many steps had them; group tokens are divided by the lockstep ranks."""
    scale = model.layout.deployment.lockstep_ranks if position == 1 else 1
    sizes = [key[position] / scale for log in logs for key in log.by_size]
    counts = [count for log in logs for count in log.by_size.values()]
    return np.array(sizes, dtype=float), np.array(counts, dtype=float)


def _integrate(cost: OperatorCost, grid: NDArray[np.int64], sizes: FloatArray, counts: FloatArray) -> list[float]:
    used = counts * (sizes > 0)
    return [float(used @ np.interp(sizes, grid, getattr(cost, field))) for field in _FIELDS]


def _add_attention(
    model: StepModel, logs: Sequence[StepLog], operators: dict[str, float], totals: dict[str, float]
) -> None:
    """Attention was summed over lockstep ranks; the mean rank is charged."""
    ranks = model.layout.deployment.lockstep_ranks
    attention = model.attention
    seconds = sum(log.attention_s(attention) for log in logs) / ranks
    decodes = np.concatenate([log.decodes() for log in logs])
    prefills = np.concatenate([log.prefills() for log in logs])
    context = float(decodes[:, 1] @ decodes[:, 2]) / ranks
    pairs, kv_tokens = float(prefills[:, 2].sum()) / ranks, float(prefills[:, 4].sum()) / ranks
    decode_s = min(context * attention.decode_full_s, seconds)
    prefill_s = min(pairs * attention.pair_full_s, seconds - decode_s)
    operators["attention"] = seconds
    totals["memory_s"] += decode_s * attention.memory_share
    totals["compute_s"] += decode_s * (1 - attention.memory_share) + prefill_s
    totals["launch_s"] += seconds - decode_s - prefill_s
    totals["hbm_bytes"] += (context + kv_tokens) * attention.kv_token_bytes
    totals["flops"] += context * attention.decode_flops + pairs * attention.pair_flops
