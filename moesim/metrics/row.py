"""A result as one flat row, for CSV files and tables."""

from __future__ import annotations

from typing import Any

from moesim.metrics.result import SimulationResult
from moesim.specs.scenario import Scenario


def result_row(scenario: Scenario, result: SimulationResult) -> dict[str, Any]:
    """What ran, and what came out (milliseconds, tokens per second)."""
    deployment = scenario.deployment
    row: dict[str, Any] = {
        "model": scenario.model.name,
        "hardware": scenario.cluster.accelerator.name,
        "gpus": scenario.cluster.num_accelerators,
        "nodes": scenario.cluster.num_nodes,
        "tp": deployment.tensor_parallel_size,
        "dp": deployment.data_parallel_size,
        "ep": deployment.expert_parallel_size,
        "pp": deployment.pipeline_parallel_size,
        "max_num_seqs": deployment.max_num_seqs,
        "requests": result.num_requests,
        "in_flight": result.mean_running,
        "output_tokens_per_s": result.output_tokens_per_s,
    }
    for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
        value = getattr(result, name)
        stem = name.removesuffix("_ms")
        row |= {f"{stem}_p50_ms": value.p50 if value else None, f"{stem}_p99_ms": value.p99 if value else None}
    return row | {"limited_by": result.breakdown.limited_by, "parameter_set": result.parameter_set}
