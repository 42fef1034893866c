"""What a residual model sees of a run: its sizes, and which part of the machine its simulated time went to."""

from __future__ import annotations

import math

from calibration.runs import MeasuredRun
from moesim.metrics.result import SimulationResult
from moesim.specs.catalog import get_model
from moesim.specs.model import count_parameters, weight_bytes

FEATURES = (
    *("log_sequences", "log_running", "log_input_tokens", "log_output_tokens"),
    *("log_active", "log_total", "log_bytes_per_parameter", "log_gpus", "log_tp", "log_dp", "expert_parallel"),
    *("memory", "compute", "network", "launch", "host", "eager", "sglang"),
)
_LIMITS = ("memory", "compute", "network", "launch", "host")


def residual_features(run: MeasuredRun, result: SimulationResult) -> list[float]:
    """One number a feature, in the order of FEATURES; sizes as logarithms, limits as shares of the simulated time."""
    request = run.request
    model = get_model(request.model)
    counts = count_parameters(model)
    limits = result.breakdown.limits
    whole = sum(limits.get(name, 0.0) for name in _LIMITS) or 1.0
    gpus = request.gpus or (request.tp or 1) * (request.dp or 1)
    return [
        math.log(request.concurrency or 1),
        math.log(max(result.mean_running, 0.1)),
        math.log(request.input_len),
        math.log(request.output_len),
        math.log(counts.active),
        math.log(counts.total),
        math.log(weight_bytes(model) / counts.total),
        math.log(gpus),
        math.log(request.tp or 1),
        math.log(request.dp or 1),
        float((request.ep or 1) > 1),
        *(limits.get(name, 0.0) / whole for name in _LIMITS),
        float(request.enforce_eager),
        float(request.engine == "sglang"),
    ]
