"""From a diffusion run to its result."""

from __future__ import annotations

import numpy as np

from moesim.engine.diffusion import DiffusionRunLog
from moesim.metrics.breakdown import Breakdown
from moesim.metrics.result import SimulationResult
from moesim.metrics.statistics import spread
from moesim.metrics.summary import imbalance_of_step, utilization
from moesim.specs.scenario import Scenario


def summarize_diffusion(scenario: Scenario, log: DiffusionRunLog) -> SimulationResult:
    """All metrics of a masked-diffusion run; TTFT is the time to the first finished block."""
    settings = log.settings
    sent = np.array([request.sent_s for request in log.requests])
    first = np.array([request.first_token_s for request in log.requests])
    last = np.array([request.last_token_s for request in log.requests])
    inputs = sum(request.input_tokens for request in log.requests)
    outputs = settings.generation_len * len(log.requests)
    later = settings.generation_len - settings.block_len
    per_token = (last - first) / later if later else (last - sent) / settings.generation_len
    breakdown = _breakdown(log)
    engines = scenario.deployment.num_engines
    running = sum(count * log.generation(count, prompt).seconds.sum() for _, count, prompt, _ in log.batches)
    token_spread = spread(per_token * 1e3)
    return SimulationResult(
        output_tokens_per_s=outputs / log.elapsed_s,
        total_tokens_per_s=(inputs + outputs) / log.elapsed_s,
        requests_per_s=len(log.requests) / log.elapsed_s,
        ttft_ms=spread((first - sent) * 1e3),
        tpot_ms=token_spread,
        itl_ms=token_spread,
        e2e_ms=spread((last - sent) * 1e3),
        duration_s=log.elapsed_s,
        num_requests=len(log.requests),
        num_gpus=scenario.cluster.num_accelerators,
        memory=log.memory,
        imbalance=imbalance_of_step(log.layout, _tokens_per_forward(log)),
        breakdown=breakdown,
        utilization=utilization(log.layout, breakdown, log.elapsed_s * engines),
        preemptions=0,
        peak_kv_share=0.0,
        mean_running=float(running) / log.elapsed_s,
        engine_steps=settings.steps * len(log.batches),
        parameter_set=scenario.parameters.name,
        calibrated=scenario.parameters.calibrated,
        seed=scenario.seed,
        digest=scenario.digest(),
        decoding="masked_diffusion",
    )


def _tokens_per_forward(log: DiffusionRunLog) -> float:
    _, count, prompt, _ = log.batches[0]
    return float(count * (prompt + log.settings.generation_len))


def _breakdown(log: DiffusionRunLog) -> Breakdown:
    operators: dict[str, float] = {}
    limits: dict[str, float] = dict.fromkeys(("memory", "compute", "network", "launch", "host"), 0.0)
    moved = flops = 0.0
    for _, count, prompt, _ in log.batches:
        times = log.generation(count, prompt)
        for name, cost in times.operators.items():
            operators[name] = operators.get(name, 0.0) + float(cost.seconds.sum())
            for cause in ("memory", "compute", "network", "launch"):
                limits[cause] += float(getattr(cost, f"{cause}_s").sum())
            moved += float(cost.hbm_bytes.sum())
            flops += float(cost.flops.sum())
        limits["host"] += float((times.seconds - times.gpu_s).sum())
    operators["host (exposed)"] = limits["host"]
    return Breakdown({name: value for name, value in operators.items() if value > 0}, limits, moved, flops)
