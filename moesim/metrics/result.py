"""The result of a simulation, as Python types, JSON and tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moesim.engine.rebalancing import Rebalancing
from moesim.metrics.breakdown import Breakdown
from moesim.metrics.statistics import Spread
from moesim.placement.memory import MemoryPlan

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Expert load of a typical step: statistics over the experts of a layer (mean over layer draws).

    `rank_max_over_mean`: busiest expert-parallel rank over the mean; 1 when experts are not spread.
    """

    tokens_per_step: float
    distinct_experts: float
    gini: float
    cv: float
    max_over_mean: float
    rank_max_over_mean: float


@dataclass(frozen=True, slots=True)
class Utilization:
    """Shares of the run's time (0 to 1) and of data-sheet peaks, of one accelerator."""

    gpu_busy: float
    hbm_bandwidth: float
    flops: float
    network_time: float


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Latencies in milliseconds, rates per second, bytes and counts of one simulated run.

    For masked-diffusion models `ttft_ms` is the time to the first finished block, `tpot_ms` milliseconds per
    emitted token after it, and there is no inter-token latency of its own (`itl_ms` repeats the block gaps
    divided by the block length).
    """

    output_tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2e_ms: Spread | None
    duration_s: float
    num_requests: int
    num_gpus: int
    memory: MemoryPlan
    imbalance: Imbalance | None
    breakdown: Breakdown
    utilization: Utilization
    preemptions: int
    peak_kv_share: float
    mean_running: float
    engine_steps: int
    parameter_set: str
    calibrated: bool
    seed: int
    digest: str
    decoding: str = "autoregressive"
    rebalancing: tuple[Rebalancing, ...] = ()
    interval_90: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    @property
    def output_tokens_per_s_per_gpu(self) -> float:
        """Output throughput of one accelerator."""
        return self.output_tokens_per_s / self.num_gpus

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract of `moesim simulate` (docs: README, "JSON")."""
        latency = {"ttft_ms": self.ttft_ms, "tpot_ms": self.tpot_ms, "itl_ms": self.itl_ms, "e2e_ms": self.e2e_ms}
        return {
            "schema_version": SCHEMA_VERSION,
            "output_tokens_per_s": self.output_tokens_per_s,
            "total_tokens_per_s": self.total_tokens_per_s,
            "requests_per_s": self.requests_per_s,
            "output_tokens_per_s_per_gpu": self.output_tokens_per_s_per_gpu,
            **{name: value.as_dict() if value else None for name, value in latency.items()},
            "interval_90": {name: list(bounds) for name, bounds in self.interval_90.items()},
            "duration_s": self.duration_s,
            "num_requests": self.num_requests,
            "num_gpus": self.num_gpus,
            "decoding": self.decoding,
            "memory": memory_dict(self.memory),
            "imbalance": _plain(self.imbalance),
            "rebalancing": [rebalancing_dict(item) for item in self.rebalancing],
            "breakdown": breakdown_dict(self.breakdown),
            "limited_by": self.breakdown.limited_by,
            "utilization": _plain(self.utilization),
            "preemptions": self.preemptions,
            "peak_kv_share": self.peak_kv_share,
            "mean_running": self.mean_running,
            "engine_steps": self.engine_steps,
            "parameter_set": {"name": self.parameter_set, "calibrated": self.calibrated},
            "seed": self.seed,
            "digest": self.digest,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per latency metric with its mean and percentiles (milliseconds)."""
        import pandas as pd

        rows = {name: self.to_dict()[name] for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")}
        return pd.DataFrame({name: row for name, row in rows.items() if row}).T


def memory_dict(memory: MemoryPlan) -> dict[str, float]:
    """Bytes on the fullest accelerator."""
    return {
        "visible_bytes": memory.visible_bytes,
        "reserved_bytes": memory.reserved_bytes,
        "weights_bytes": memory.weights_bytes,
        "activation_bytes": memory.activation_bytes,
        "runtime_bytes": memory.runtime_bytes,
        "kv_pool_bytes": memory.kv_pool_bytes,
        "kv_bytes_per_token": memory.kv_bytes_per_token,
        "kv_pool_tokens": memory.kv_tokens,
    }


def rebalancing_dict(log: Rebalancing) -> dict[str, float]:
    """What drift and balancing did in one lockstep group."""
    return {
        "rearrangements": log.rearrangements,
        "bytes_moved": log.bytes_moved,
        "moving_s": log.moving_s,
        "stalled_s": log.stalled_s,
        "added_s": log.added_s,
        "rank_max_over_mean": log.rank_max_over_mean,
        "steps": log.steps,
    }


def breakdown_dict(breakdown: Breakdown) -> dict[str, Any]:
    """Seconds by operator and by cause, with shares."""
    total = breakdown.total_s or 1.0
    ordered = sorted(breakdown.operators.items(), key=lambda item: -item[1])
    return {
        "total_s": breakdown.total_s,
        "operators": [{"operator": name, "seconds": value, "share": value / total} for name, value in ordered],
        "limits": {name: value / total for name, value in breakdown.limits.items()},
    }


def _plain(value: Imbalance | Utilization | None) -> dict[str, float] | None:
    if value is None:
        return None
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
