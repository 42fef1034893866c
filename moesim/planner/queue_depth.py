"""Queue depth, untangled: sequences in flight, tokens in a step, tokens per expert, and what each costs.

Three numbers go by one name. Sequences in flight (`max_num_seqs`, times the data-parallel ranks) bound the tokens of
a decode step (one a sequence, padded to a captured graph), and routing spreads those over the experts: T k / E each
on average, far more or fewer with skew. The question behind expert-aware batching is the third: how deep must the
queue be before an expert's product spends more time on its tokens than on reading its weights, and what does a
step take by then. Dual-batch overlap halves the tokens of a product to hide the exchange behind the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.closed_form import Batch, StepEstimate, estimate_step
from moesim.costs.experts import routed_experts
from moesim.costs.layout import Layout, make_layout
from moesim.costs.operators import graph_sizes
from moesim.errors import InputError
from moesim.placement.deployed import deployed_map, expert_layout
from moesim.placement.replicas import replica_counts
from moesim.routing.loads import draw_loads, make_bank
from moesim.specs.model import MixtureOfExperts
from moesim.specs.routing import Routing
from moesim.specs.scenario import Scenario

FloatArray = NDArray[np.float64]
DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_SHARES = (0.1, 0.5, 0.9)
_LARGEST = 1 << 17
_DRAWS = 64


@dataclass(frozen=True, slots=True)
class DepthRow:
    """One depth: `sequences` in flight on each rank, tokens as run, tokens per expert, step times.

    `experts_memory_share`: share of the routed experts' time that waits for weights and activations rather than for
    arithmetic. `overlapped_s`: the step with two half batches whose exchange hides behind the other half's products.
    """

    sequences: int
    step_tokens: int
    group_tokens: int
    tokens_per_expert: dict[str, float]
    step_s: float
    overlapped_s: float
    experts_s: float
    exchange_s: float
    experts_memory_share: float
    output_tokens_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "sequences_per_rank": self.sequences,
            "tokens_per_rank_step": self.step_tokens,
            "tokens_per_group_step": self.group_tokens,
            "tokens_per_expert": self.tokens_per_expert,
            "step_ms": self.step_s * 1e3,
            "step_with_dual_batch_overlap_ms": self.overlapped_s * 1e3,
            "routed_experts_ms": self.experts_s * 1e3,
            "expert_exchange_ms": self.exchange_s * 1e3,
            "experts_memory_share": self.experts_memory_share,
            "output_tokens_per_s": self.output_tokens_per_s,
        }


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where an expert leaves the regime bound by reading its weights: `tokens` in its product, and the depth.

    `experts`: which (mean, or the share of experts that have left by then). `sequences` a rank and `step_s` there;
    None beyond 131,072 tokens a rank.
    """

    experts: str
    tokens: float | None
    sequences: int | None
    step_s: float | None
    overlapped_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "experts": self.experts,
            "tokens_in_its_product": self.tokens,
            "sequences_per_rank": self.sequences,
            "step_ms": None if self.step_s is None else self.step_s * 1e3,
            "step_with_dual_batch_overlap_ms": None if self.overlapped_s is None else self.overlapped_s * 1e3,
        }


@dataclass(frozen=True, slots=True)
class QueueDepthReport:
    """Rows by depth, thresholds, and the least depth from which dual-batch overlap pays (None: never in the rows)."""

    scenario: Scenario
    rows: tuple[DepthRow, ...]
    thresholds: tuple[Threshold, ...]
    overlap_pays_from: int | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract of `moesim queue-depth`."""
        deployment = self.scenario.deployment
        return {
            "model": self.scenario.model.name,
            "hardware": self.scenario.cluster.accelerator.name,
            "max_num_seqs": deployment.max_num_seqs,
            "data_parallel_ranks": deployment.data_parallel_size,
            "depths": [row.to_dict() for row in self.rows],
            "memory_bound_until": [item.to_dict() for item in self.thresholds],
            "dual_batch_overlap_pays_from_sequences_per_rank": self.overlap_pays_from,
            "parameter_set": self.scenario.parameters.name,
            "digest": self.scenario.digest(),
        }


def queue_depth_report(scenario: Scenario) -> QueueDepthReport:
    """All three depths of a scenario, for powers of two up to its max_num_seqs.

    Raises:
        InputError: a model without routed experts, or one that decodes by diffusion.
    """
    moe = scenario.model.moe
    if moe is None:
        raise InputError(f"model: {scenario.model.name} has no routed experts")
    if scenario.model.is_diffusion:
        raise InputError(f"model: {scenario.model.name} decodes by diffusion: its tokens a step follow from the batch")
    layout = make_layout(
        scenario.model, scenario.deployment, scenario.cluster, scenario.parameters, scenario.routing, scenario.seed
    )
    middle = scenario.workload.input_tokens + scenario.workload.output_tokens // 2
    limit = scenario.deployment.max_num_seqs
    depths = [*(depth for depth in DEPTHS if depth < limit), limit]
    rows = tuple(_row(layout, moe, depth, middle) for depth in depths)
    pays = next((row.sequences for row in rows if row.overlapped_s < row.step_s * (1 - 1e-6)), None)
    return QueueDepthReport(scenario, rows, _thresholds(layout, moe, middle), pays)


def _row(layout: Layout, moe: MixtureOfExperts, depth: int, context: int) -> DepthRow:
    step = estimate_step(layout, Batch(decodes=depth, context_tokens=context))
    run = _as_run(layout, depth)
    group = run * layout.deployment.lockstep_ranks
    routed = routed_experts(layout, np.array([group])).slowest
    return DepthRow(
        sequences=depth,
        step_tokens=run,
        group_tokens=group,
        tokens_per_expert=_tokens_per_expert(layout, moe, group),
        step_s=step.seconds,
        overlapped_s=overlapped_seconds(layout, depth, context),
        experts_s=step.operators.get("routed experts", 0.0),
        exchange_s=step.operators.get("expert exchange", 0.0),
        experts_memory_share=_memory_share(float(routed.memory_s[0]), float(routed.compute_s[0])),
        output_tokens_per_s=depth * layout.deployment.data_parallel_size / step.seconds,
    )


def _as_run(layout: Layout, tokens: int) -> int:
    """Tokens padded to the next captured graph."""
    return next((size for size in graph_sizes(layout) if size >= tokens), tokens)


def _memory_share(memory_s: float, compute_s: float) -> float:
    return memory_s / max(memory_s + compute_s, 1e-300)


def _tokens_per_expert(layout: Layout, moe: MixtureOfExperts, group_tokens: int) -> dict[str, float]:
    """Distribution over experts, layers and draws of the tokens that an expert gets in a step."""
    bank = make_bank(moe, layout.routing, layout.model.num_moe_layers, layout.seed)
    rng = np.random.default_rng([layout.seed, 0x9D])
    loads = draw_loads(bank, np.array([group_tokens]), _DRAWS, rng)[0]
    low, middle, high = np.percentile(loads, (10, 50, 90))
    return {
        "mean": group_tokens * moe.top_k / moe.num_experts,
        "p10": float(low),
        "p50": float(middle),
        "p90": float(high),
        "max": float(loads.max(axis=1).mean()),
        "idle_experts": float((loads < 0.5).sum(axis=1).mean()),
    }


def overlapped_seconds(layout: Layout, depth: int, context: int) -> float:
    """A decode step with dual-batch overlap (vLLM's `--enable-dbo`): two half batches take turns on GPU and fabric.

    While one half is exchanged the other computes, so the step takes the longer of both halves' products and both
    halves' exchanges, and one exchange of a half batch at the start that nothing hides. The halves read all weights
    twice. One sequence, or experts that are not exchanged, leave the step as it is. Left out: that communication
    kernels take multiprocessors from the products (DeepEP's 20 of 132 on H100).
    """
    whole = estimate_step(layout, Batch(decodes=depth, context_tokens=context))
    if depth < 2 or not whole.operators.get("expert exchange"):
        return whole.seconds
    halves = [
        estimate_step(layout, Batch(decodes=part, context_tokens=context)) for part in (depth // 2, -(-depth // 2))
    ]
    exchange = [half.operators.get("expert exchange", 0.0) for half in halves]
    compute = [half.gpu_s - moved for half, moved in zip(halves, exchange, strict=True)]
    first = exchange[0] / max(layout.model.num_moe_layers, 1)
    return max(max(sum(compute), sum(exchange)) + first, _host_floor(whole))


def _host_floor(step: StepEstimate) -> float:
    """Host time that no overlap on the GPU shortens."""
    return step.seconds if step.seconds > step.gpu_s * 1.001 else 0.0


def _thresholds(layout: Layout, moe: MixtureOfExperts, context: int) -> tuple[Threshold, ...]:
    """Depths at which the mean expert, and 10, 50 and 90 % of the experts, have left the memory-bound regime.

    The tokens at which a product spends as long on them as on its weights come from the cost model, at even load; an
    expert with more than its share of the tokens meets them at a shallower queue.
    """
    group = _balance_point(layout, moe)
    if group is None:
        return (Threshold("mean", None, None, None, None),)
    tokens = group * moe.top_k / moe.num_experts
    shares = np.sort(_slot_inclusion(layout, moe).ravel())[::-1]
    ranks = layout.deployment.lockstep_ranks
    found = [_threshold(layout, "mean", tokens, group / ranks, context)]
    for share in _SHARES:
        inclusion = float(shares[min(int(share * len(shares)), len(shares) - 1)])
        depth = tokens / max(inclusion, 1e-12) / ranks
        found.append(_threshold(layout, f"{share:.0%} of the experts", tokens, depth, context))
    return tuple(found)


def _slot_inclusion(layout: Layout, moe: MixtureOfExperts) -> FloatArray:
    """Share of the tokens that goes to each replica [layers, slots]."""
    layers = layout.model.num_moe_layers
    chosen = make_bank(moe, layout.routing, layers, layout.seed).inclusion
    maps = deployed_map(moe, layout.routing, expert_layout(layout.deployment), layers, layout.seed)[: len(chosen)]
    each = chosen / replica_counts(maps, moe.num_experts)
    return np.take_along_axis(each, maps, axis=1)


def _balance_point(layout: Layout, moe: MixtureOfExperts) -> float | None:
    """Tokens of the group at which evenly loaded experts take twice as long as for reading their weights alone.

    The time for weights is what the products take with three tokens an expert: nearly all experts are read (95 %
    under uniform routing), and arithmetic and activations are still small. Fixed times of kernels count in neither.
    """
    even = make_layout(layout.model, layout.deployment, layout.cluster, layout.parameters, Routing(), layout.seed)
    sizes = np.unique(np.geomspace(3 * moe.num_experts / moe.top_k, _LARGEST, 100).round()).astype(np.int64)
    cost = routed_experts(even, sizes).slowest
    seconds = cost.seconds - cost.launch_s
    beyond = np.flatnonzero(seconds > 2 * seconds[0])
    return float(sizes[beyond[0]]) if len(beyond) else None


def _threshold(layout: Layout, experts: str, tokens: float, depth: float, context: int) -> Threshold:
    if depth > _LARGEST:
        return Threshold(experts, tokens, None, None, None)
    sequences = max(1, round(depth))
    step = estimate_step(layout, Batch(decodes=sequences, context_tokens=context))
    return Threshold(experts, tokens, sequences, step.seconds, overlapped_seconds(layout, sequences, context))
