"""How sure a prediction is: the constants' joint doubt, and the errors found on rows that no fit had seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from moesim.costs.closed_form import Batch, estimate_steps
from moesim.costs.forward import forward_shapes, forward_times
from moesim.costs.layout import make_layout
from moesim.metrics.result import SimulationResult
from moesim.specs.parameters import ErrorLevel, ParameterSet, recording
from moesim.specs.scenario import Scenario

FloatArray = NDArray[np.float64]
Seconds = Callable[[ParameterSet], dict[str, float]]
_Z90 = 1.6449
_DRAWS = 8
_OUTSIDE = 1.4
"""Widening beyond the fitted range of concurrency: left-out sweep ends err as much more than left-out middles."""
_FAMILY = {
    "ttft_ms": "ttft",
    "tpot_ms": "token",
    "itl_ms": "token",
    "e2e_ms": "throughput",
    "output_tokens_per_s": "throughput",
}


def interval_90(scenario: Scenario, result: SimulationResult) -> dict[str, tuple[float, float]]:
    """90 % intervals of the main metrics.

    Two independent parts, added in squares of logarithms. The constants' joint uncertainty is carried through the
    closed form of the run's mean operating point (one decode step and one prompt, or one generation of a diffusion
    model) by 8 draws. The model's own error is the 90 % quantile that cross-validation found: on this model, on
    other models, or on other accelerators, whichever the query is to the set. Queueing that amplifies an error near
    saturation is left out.
    """
    seconds = _diffusion_seconds(scenario) if scenario.model.is_diffusion else _serving_seconds(scenario, result)
    deviations = _log_deviations(scenario.parameters, seconds, np.random.default_rng([scenario.seed, 0x90]))
    values = {"output_tokens_per_s": result.output_tokens_per_s}
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        spread = getattr(result, name)
        if spread is not None:
            values[name] = spread.mean
    found: dict[str, tuple[float, float]] = {}
    for name, value in values.items():
        doubt = _Z90 * deviations["e2e_ms" if name == "output_tokens_per_s" else name]
        factor = math.exp(math.hypot(doubt, model_error(scenario, _FAMILY[name])))
        found[name] = (value / factor, value * factor)
    return found


def model_error(scenario: Scenario, family: str) -> float:
    """The 90 % quantile of |log error| that applies to a query: by what of it the fit has seen.

    Args:
        family: ttft, token, throughput, step or launch (the last two as token where no single step was measured).
    """
    parameters, evidence = scenario.parameters, scenario.parameters.evidence
    if not evidence.errors:
        return _Z90 * parameters["model_error"]
    name = scenario.model.name
    if scenario.cluster.accelerator.name not in parameters.accelerators:
        level = evidence.errors.get("accelerator") or _widest(list(evidence.errors.values()))
    elif name in evidence.models:
        level = evidence.model_errors.get(name) or evidence.errors["configuration"]
    else:
        level = evidence.errors.get("model") or evidence.errors["configuration"]
    size = float(getattr(level, family)) or level.token
    low, high = evidence.concurrency
    running = getattr(scenario.workload.arrival, "concurrency", high)
    return size if low <= running <= high else size * _OUTSIDE


def _widest(levels: Sequence[ErrorLevel]) -> ErrorLevel:
    return max(levels, key=lambda level: level.token)


def _log_deviations(parameters: ParameterSet, seconds: Seconds, rng: np.random.Generator) -> dict[str, float]:
    """Standard deviation of the logarithm of every metric under joint draws of the constants it depends on."""
    recorder = recording(parameters)
    base = seconds(recorder)
    names = [name for name in recorder.asked if parameters.parameters[name].log_sd > 0]
    moves = _joint_draws(parameters, names, rng)
    logs: dict[str, list[float]] = {metric: [] for metric in base}
    for row in moves:
        moved = seconds(_moved(parameters, names, row))
        for metric, value in moved.items():
            logs[metric].append(math.log(value / base[metric]))
    return {metric: float(np.sqrt(np.mean(np.square(values)))) for metric, values in logs.items()}


def _joint_draws(parameters: ParameterSet, names: Sequence[str], rng: np.random.Generator) -> FloatArray:
    """Log moves [draws, names], correlated as the fit found."""
    draws = rng.standard_normal((_DRAWS, len(names)))
    keys = {f"{name}@{parameters.site}": name for name in names} if parameters.site else {}
    known = [keys.get(key, key) for key in parameters.correlation.names]
    place = {name: index for index, name in enumerate(names)}
    rows = [index for index, name in enumerate(known) if name in place]
    if rows:
        matrix = np.array(parameters.correlation.rows)[np.ix_(rows, rows)]
        values, vectors = np.linalg.eigh(matrix)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        columns = [place[known[index]] for index in rows]
        draws[:, columns] = draws[:, columns] @ root.T
    return draws * np.array([parameters.parameters[name].log_sd for name in names])


def _moved(parameters: ParameterSet, names: Sequence[str], row: FloatArray) -> ParameterSet:
    constants = dict(parameters.parameters)
    for name, move in zip(names, row.tolist(), strict=True):
        old = constants[name]
        constants[name] = msgspec.structs.replace(old, value=old.value * math.exp(move))
    return msgspec.structs.replace(parameters, parameters=constants)


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
        token, first = (step.seconds for step in estimate_steps(layout, (decode, prefill)))
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
