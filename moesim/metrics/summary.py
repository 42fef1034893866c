"""From a run to its result: client-side latencies, rates, utilisation and imbalance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.costs.layout import Layout
from moesim.engine.group import flatten
from moesim.engine.serving import ServingRun
from moesim.metrics.breakdown import Breakdown, run_breakdown
from moesim.metrics.result import Imbalance, SimulationResult, Utilization
from moesim.metrics.statistics import spread, weighted_spread
from moesim.placement.deployed import deployed_map, expert_layout, split_tokens, sum_slots
from moesim.routing.imbalance import coefficient_of_variation, gini, max_over_mean
from moesim.routing.loads import draw_loads, make_bank
from moesim.specs.scenario import Scenario

FloatArray = NDArray[np.float64]


def summarize(scenario: Scenario, run: ServingRun) -> SimulationResult:
    """All metrics of an autoregressive run, as `vllm bench serve` defines them."""
    sent = np.array([request.sent_s for request in run.requests])
    first = np.array([request.first_token_s for request in run.requests])
    last = np.array([request.last_token_s for request in run.requests])
    outputs = np.array([request.output_tokens for request in run.requests])
    inputs = np.array([request.input_tokens for request in run.requests])
    several = outputs > 1
    gaps, weights = flatten(run.logs)
    breakdown = run_breakdown(run.model, run.logs, run.rebalancing)
    engines = len(run.logs)
    steps = sum(log.steps for log in run.logs)
    group_tokens = sum(key[1] * count for log in run.logs for key, count in log.by_size.items()) / max(steps, 1)
    return SimulationResult(
        output_tokens_per_s=float(outputs.sum()) / run.elapsed_s,
        total_tokens_per_s=float((inputs + outputs).sum()) / run.elapsed_s,
        requests_per_s=len(run.requests) / run.elapsed_s,
        ttft_ms=spread((first - sent) * 1e3),
        tpot_ms=spread((last - first)[several] / (outputs[several] - 1) * 1e3),
        itl_ms=weighted_spread(gaps * 1e3, weights),
        e2e_ms=spread((last - sent) * 1e3),
        duration_s=run.elapsed_s,
        num_requests=len(run.requests),
        num_gpus=scenario.cluster.num_accelerators,
        memory=run.memory,
        imbalance=_imbalance_of_run(run, group_tokens),
        breakdown=breakdown,
        utilization=utilization(run.model.layout, breakdown, run.elapsed_s * engines),
        preemptions=run.preemptions,
        peak_kv_share=run.peak_kv_blocks / max(run.total_kv_blocks, 1),
        mean_running=sum(log.sequence_s for log in run.logs) / run.elapsed_s,
        engine_steps=steps,
        parameter_set=scenario.parameters.name,
        calibrated=scenario.parameters.calibrated,
        seed=scenario.seed,
        digest=scenario.digest(),
        rebalancing=tuple(run.rebalancing),
    )


def _imbalance_of_run(run: ServingRun, group_tokens: float) -> Imbalance | None:
    """Imbalance at the mean step; with drift or balancing the ranks' ratio is the mean over the run's steps."""
    imbalance = imbalance_of_step(run.model.layout, group_tokens)
    steps = sum(log.steps for log in run.rebalancing)
    if imbalance is None or not steps:
        return imbalance
    return replace(imbalance, rank_max_over_mean=sum(log.ratio_steps for log in run.rebalancing) / steps)


def utilization(layout: Layout, breakdown: Breakdown, available_s: float) -> Utilization:
    """Shares of `available_s` seconds of one accelerator (of each engine in turn).

    Operators are priced at mean routing and the run drew its own, so that a GPU that never rests would be busy for up
    to a ten-thousandth more than all of the time.
    """
    accelerator = layout.cluster.accelerator
    gpu_s = breakdown.total_s - breakdown.limits["host"]
    peak = accelerator.peak_flops_per_s["bf16"]
    return Utilization(
        gpu_busy=min(gpu_s / available_s, 1.0),
        hbm_bandwidth=breakdown.hbm_bytes / available_s / accelerator.hbm_bandwidth_bytes_per_s,
        flops=breakdown.flops / available_s / peak,
        network_time=breakdown.limits["network"] / available_s,
    )


def imbalance_of_step(layout: Layout, group_tokens: float) -> Imbalance | None:
    """Imbalance statistics at the mean step size, from 64 exact layer draws; None for dense models."""
    moe, routing = layout.model.moe, layout.routing
    if moe is None or group_tokens <= 0:
        return None
    bank = make_bank(moe, routing, layout.model.num_moe_layers, layout.seed)
    rng = np.random.default_rng([layout.seed, 0x1B])
    tokens = max(round(group_tokens), 1)
    loads = draw_loads(bank, np.array([tokens]), 64, rng)[0]
    placed = expert_layout(layout.deployment)
    maps = deployed_map(moe, routing, placed, layout.model.num_moe_layers, layout.seed)
    slots = split_tokens(loads, maps[np.arange(len(loads)) % len(bank.cumulative)])
    return Imbalance(
        tokens_per_step=float(group_tokens),
        distinct_experts=float((loads > 0.5).sum(axis=-1).mean()),
        gini=float(gini(loads).mean()),
        cv=float(coefficient_of_variation(loads).mean()),
        max_over_mean=float(max_over_mean(loads).mean()),
        rank_max_over_mean=float(max_over_mean(sum_slots(slots, placed.num_ranks)).mean()),
    )
