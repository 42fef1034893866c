"""Measured columns in the simulator's words: which field and statistic of a result each one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesim.metrics.result import SimulationResult

Kind = Literal[
    "ttft", "token", "median_gap", "throughput", "elapsed", "step", "forward", "experts", "attention", "launch", "bytes"
]


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured column: `field` of the result, its `statistic` (None: a plain number), and what it is about.

    Metrics of single steps have no field: they are priced without a simulation (`calibration.steps`).
    `log_sd`: how much repeats of one run differ (seed repeats, and the README of the silicon points), the
    weight of the column in a fit. The replay of a graph is timed while the host also waits now and then.
    """

    field: str
    statistic: str | None
    kind: Kind
    log_sd: float


METRICS: dict[str, Metric] = {
    "output_tok_per_s": Metric("output_tokens_per_s", None, "throughput", 0.05),
    "total_tok_per_s": Metric("total_tokens_per_s", None, "throughput", 0.05),
    "requests_per_s": Metric("requests_per_s", None, "throughput", 0.05),
    "elapsed_s": Metric("duration_s", None, "elapsed", 0.03),
    "itl_p50_ms": Metric("itl_ms", "p50", "median_gap", 0.02),
    "itl_mean_ms": Metric("itl_ms", "mean", "token", 0.05),
    "tpot_p50_ms": Metric("tpot_ms", "p50", "token", 0.03),
    "tpot_mean_ms": Metric("tpot_ms", "mean", "token", 0.03),
    "ttft_p50_ms": Metric("ttft_ms", "p50", "ttft", 0.1),
    "ttft_mean_ms": Metric("ttft_ms", "mean", "ttft", 0.15),
    "ttft_p99_ms": Metric("ttft_ms", "p99", "ttft", 0.3),
    "silicon_ttft_ms": Metric("ttft_ms", "mean", "ttft", 0.15),
    "silicon_tpot_ms": Metric("tpot_ms", "mean", "token", 0.07),
    "step_gpu_ms": Metric("", None, "step", 0.02),
    "step_forward_ms": Metric("", None, "forward", 0.02),
    "step_experts_ms": Metric("", None, "experts", 0.04),
    "step_attention_ms": Metric("", None, "attention", 0.04),
    "step_launch_ms": Metric("", None, "launch", 0.12),
    "step_replay_ms": Metric("", None, "launch", 0.4),
    "dram_bytes": Metric("", None, "bytes", 0.05),
    "prompt_mean_ms": Metric("e2e_ms", "mean", "elapsed", 0.03),
}


def family_of(metric: str) -> str:
    """The family whose errors a metric shares: ttft, token, throughput, step, launch or bytes."""
    kind = METRICS[metric].kind
    parts = {"forward": "step", "experts": "step", "attention": "step"}
    return {"median_gap": "token", "elapsed": "throughput", **parts}.get(kind, kind)


def predicted_value(metric: str, result: SimulationResult) -> float:
    """The metric of a result; NaN where the run has none (no inter-token latency with one output token)."""
    chosen = METRICS[metric]
    found = getattr(result, chosen.field)
    if found is None:
        return float("nan")
    return float(getattr(found, chosen.statistic) if chosen.statistic else found)
