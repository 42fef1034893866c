"""One step in closed form: every operator at one batch, without a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.costs.attention import AttentionCoefficients, attention_coefficients
from moesim.costs.experts import routed_experts
from moesim.costs.kernels import LIMITS, OperatorCost
from moesim.costs.layout import Layout
from moesim.costs.operators import gathered_operators, graph_sizes, rank_operators, sampled_operators
from moesim.costs.step import host_seconds, step_seconds


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of a rank: `decodes` sequences of `context_tokens` each, and prefill of whole prompts."""

    decodes: int = 0
    context_tokens: int = 0
    prompts: int = 0
    prompt_tokens: int = 0

    @property
    def tokens(self) -> int:
        """New tokens in the step."""
        return self.decodes + self.prompts * self.prompt_tokens


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """Seconds of one step on the slowest rank: by operator, by cause, GPU, host, and in all.

    `mean_rank_experts_s` is the routed experts' time on the average rank: what perfect balance would take.
    """

    batch: Batch
    operators: dict[str, float]
    limits: dict[str, float]
    gpu_s: float
    host_s: float
    seconds: float
    hbm_bytes: float
    flops: float
    mean_rank_experts_s: float

    @property
    def limited_by(self) -> str:
        """The cause with the largest share: HBM bandwidth, compute, network, kernel launch or host."""
        if self.seconds > self.gpu_s * 1.001 and self.seconds - self.gpu_s > 0.5 * self.seconds:
            return "host"
        words = {"memory": "HBM bandwidth", "launch": "kernel launch"}
        shares = {**self.limits, "host": self.seconds - self.gpu_s}
        cause = max(shares, key=lambda name: shares[name])
        return words.get(cause, cause)


def estimate_step(layout: Layout, batch: Batch) -> StepEstimate:
    """Evaluate one step; captured graphs pad its tokens, as in the simulation (mean routing, no draw)."""
    return estimate_steps(layout, (batch,))[0]


def estimate_steps(layout: Layout, batches: Sequence[Batch]) -> list[StepEstimate]:
    """Several steps of one layout at once, which costs little more than one."""
    sizes = graph_sizes(layout)
    captured = [bool(sizes) and batch.tokens <= sizes[-1] for batch in batches]
    tokens = [
        next(size for size in sizes if size >= batch.tokens) if replayed else max(batch.tokens, 1)
        for batch, replayed in zip(batches, captured, strict=True)
    ]
    rows = np.array([float(batch.decodes + batch.prompts) for batch in batches])
    sizes_run = np.array(tokens, dtype=float)
    operators = {**rank_operators(layout, sizes_run), **gathered_operators(layout, sizes_run)}
    operators |= sampled_operators(layout, rows)
    routed = routed_experts(layout, np.array(tokens) * layout.deployment.lockstep_ranks)
    operators["routed experts"] = routed.slowest.times(layout.model.num_moe_layers)
    coefficients = attention_coefficients(layout)
    return [
        _estimate(layout, batch, captured[at], _costs_at(operators, at, coefficients, batch), routed.mean_rank_s[at])
        for at, batch in enumerate(batches)
    ]


def _costs_at(
    operators: dict[str, OperatorCost], at: int, coefficients: AttentionCoefficients, batch: Batch
) -> dict[str, OperatorCost]:
    """The operators of one of the batches, attention included."""
    picked = {name: cost.at(at) for name, cost in operators.items()}
    return {**picked, "attention": _attention(coefficients, batch)}


def _estimate(
    layout: Layout, batch: Batch, captured: bool, operators: dict[str, OperatorCost], mean_rank_s: float
) -> StepEstimate:
    costs = list(operators.values())
    launches = sum(cost.launches for cost in costs)
    seconds = {name: float(cost.seconds[0]) for name, cost in operators.items()}
    gpu_s = sum(seconds.values())
    host = host_seconds(layout, launches, captured, batch.decodes + batch.prompts, batch.prompts > 0)
    return StepEstimate(
        batch=batch,
        operators={name: value for name, value in seconds.items() if value > 0},
        limits={name: sum(float(getattr(cost, f"{name}_s")[0]) for cost in costs) for name in LIMITS},
        gpu_s=gpu_s,
        host_s=sum(host),
        seconds=step_seconds(layout, host, gpu_s),
        hbm_bytes=sum(float(cost.hbm_bytes[0]) for cost in costs),
        flops=sum(float(cost.flops[0]) for cost in costs),
        mean_rank_experts_s=float(mean_rank_s) * layout.model.num_moe_layers,
    )


def _attention(coefficients: AttentionCoefficients, batch: Batch) -> OperatorCost:
    """Attention of the batch, split into memory and compute as its coefficients say."""
    context = float(batch.decodes * batch.context_tokens)
    length = float(batch.prompt_tokens)
    pairs = batch.prompts * length * (length + 1) / 2
    pairs_window = min(pairs, batch.prompts * length * coefficients.window)
    new = batch.prompts * length
    seconds = coefficients.decode_s(batch.decodes, context)
    prefill = coefficients.prefill_s(batch.prompts, new, pairs, pairs_window, new)
    decode = min(coefficients.decode_full_s * context, seconds)
    arithmetic = min(coefficients.pair_full_s * pairs, prefill)
    memory = decode * coefficients.memory_share
    values = (memory, decode - memory + arithmetic, 0.0, seconds - decode + prefill - arithmetic)
    moved = (context + batch.prompts * length) * coefficients.kv_token_bytes
    flops = context * coefficients.decode_flops + pairs * coefficients.pair_flops
    return OperatorCost(*(np.array([value]) for value in (*values, moved, flops)), launches=coefficients.launches)
