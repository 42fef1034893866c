"""How sure a prediction is: parameters' uncertainty carried to first order to the reported metrics."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from moesim.costs.closed_form import Batch, estimate_step
from moesim.costs.forward import forward_shapes, forward_times
from moesim.costs.layout import make_layout
from moesim.metrics.result import SimulationResult
from moesim.specs.parameters import ParameterSet, scaled
from moesim.specs.scenario import Scenario

_Z90 = 1.6449
_STEP = 0.02
Seconds = Callable[[ParameterSet], dict[str, float]]


def interval_90(scenario: Scenario, result: SimulationResult) -> dict[str, tuple[float, float]]:
    """90 % intervals of the main metrics.

    The elasticity of each metric to each parameter is taken at the run's mean operating point (one decode step
    and one prompt, or one generation of a diffusion model) by finite differences of the closed form; log
    variances add up, with the parameter set's `model_error` for what the model leaves out. Queueing that
    amplifies an error near saturation is left out.
    """
    seconds = _diffusion_seconds(scenario) if scenario.model.is_diffusion else _serving_seconds(scenario, result)
    deviations = _log_deviations(scenario.parameters, seconds)
    values = {
        "output_tokens_per_s": (result.output_tokens_per_s, deviations["e2e_ms"]),
        **{
            name: (spread.mean, deviations[name])
            for name, spread in (
                ("ttft_ms", result.ttft_ms),
                ("tpot_ms", result.tpot_ms),
                ("itl_ms", result.itl_ms),
                ("e2e_ms", result.e2e_ms),
            )
            if spread is not None
        },
    }
    return {name: _bounds(value, deviation) for name, (value, deviation) in values.items()}


def _bounds(value: float, deviation: float) -> tuple[float, float]:
    factor = math.exp(_Z90 * deviation)
    return value / factor, value * factor


def _log_deviations(parameters: ParameterSet, seconds: Seconds) -> dict[str, float]:
    base = seconds(parameters)
    variance = dict.fromkeys(base, parameters["model_error"] ** 2)
    for name, parameter in parameters.parameters.items():
        if parameter.log_sd == 0:
            continue
        moved = seconds(scaled(parameters, name, math.exp(_STEP)))
        for metric, value in moved.items():
            elasticity = math.log(value / base[metric]) / _STEP
            variance[metric] += (elasticity * parameter.log_sd) ** 2
    return {metric: math.sqrt(value) for metric, value in variance.items()}


def _serving_seconds(scenario: Scenario, result: SimulationResult) -> Seconds:
    """Time to first token, of a token and of a request, at the run's mean batch."""
    deployment, workload = scenario.deployment, scenario.workload
    ranks = deployment.data_parallel_size
    decodes = max(1, round(result.mean_running / ranks))
    prompt = min(workload.input_tokens, deployment.max_num_batched_tokens)
    decode = Batch(decodes=decodes, context_tokens=workload.input_tokens + workload.output_tokens // 2)
    prefill = Batch(prompts=1, prompt_tokens=prompt)
    outputs = max(workload.output_tokens, 1)

    def seconds(parameters: ParameterSet) -> dict[str, float]:
        layout = make_layout(scenario.model, deployment, scenario.cluster, parameters, scenario.routing, scenario.seed)
        token, first = estimate_step(layout, decode).seconds, estimate_step(layout, prefill).seconds
        served = deployment.frontend == "server"
        frontend = parameters["server_request_s"] + parameters["server_response_s"] if served else 0.0
        request = first + frontend + outputs * token
        return {"ttft_ms": first + frontend, "tpot_ms": token, "itl_ms": token, "e2e_ms": request}

    return seconds


def _diffusion_seconds(scenario: Scenario) -> Seconds:
    from moesim.engine.diffusion import diffusion_settings

    settings = diffusion_settings(scenario)
    causal = scenario.model.diffusion is not None and scenario.model.diffusion.block_causal
    shapes = forward_shapes(settings, scenario.workload.input_tokens, causal)
    per_block = len(shapes) * settings.block_len // settings.generation_len

    def seconds(parameters: ParameterSet) -> dict[str, float]:
        layout = make_layout(
            scenario.model, scenario.deployment, scenario.cluster, parameters, scenario.routing, scenario.seed
        )
        times = forward_times(layout, settings, shapes, 1).seconds
        total, first = float(np.sum(times)), float(np.sum(times[:per_block]))
        return {"ttft_ms": first, "tpot_ms": total, "itl_ms": total, "e2e_ms": total}

    return seconds
