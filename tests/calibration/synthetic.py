"""Runs whose true constants are known: simulated under them, with the noise that such measurements have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from calibration.metrics import METRICS, predicted_value
from calibration.run_fit import scenario_of
from calibration.runs import MeasuredRun, RunFile
from moesim.scenarios import Request
from moesim.simulation import simulate_scenario
from moesim.specs.parameters import ParameterSet, list_parameter_sets, scaled

SERVING = ("output_tok_per_s", "itl_p50_ms", "tpot_p50_ms", "ttft_p50_ms")
TRUTH = {
    "gemm_slowdown": 1.2,
    "experts_slowdown": 0.9,
    "host_launch_s": 6e-5,
    "server_request_s": 2.5e-3,
}


def prior() -> ParameterSet:
    """The data sheet's set, which the tests take as first guess."""
    return list_parameter_sets()["prior-nvidia"]


def truth(values: Mapping[str, float] = TRUTH) -> ParameterSet:
    """The prior with some constants at known other values."""
    parameters = prior()
    for name, value in values.items():
        parameters = scaled(parameters, name, value / parameters[name])
    return parameters


def planned_runs(
    models: Sequence[str] = ("olmoe-1b-7b", "qwen1.5-moe-a2.7b"),
    concurrency: Sequence[int] = (1, 4, 16),
    eager: Sequence[bool] = (False, True),
    hardware: str = "a100-80gb",
    metrics: Sequence[str] = SERVING,
    site: str = "",
) -> list[MeasuredRun]:
    """Short runs of small models on one card, nothing measured yet (all values are one)."""
    return [
        MeasuredRun(
            id=f"{hardware}-{model}-{clients}-{'eager' if plain else 'graph'}{site}",
            engine="vllm",
            request=Request(
                model=model,
                hardware=hardware,
                gpus=1,
                input_len=128,
                output_len=24,
                concurrency=clients,
                num_prompts=2 * clients + 2,
                enforce_eager=plain,
            ),
            measured=dict.fromkeys(metrics, 1.0),
            configuration=f"{model}/{clients}",
            series=f"{model}/{clients}",
            site=site,
        )
        for model in models
        for clients in concurrency
        for plain in eager
    ]


def measure(
    runs: Sequence[MeasuredRun], parameters: ParameterSet, rng: np.random.Generator, noise: float = 1.0
) -> list[MeasuredRun]:
    """The runs with what a simulation under `parameters` gives, off by `noise` times each metric's own spread."""
    found: list[MeasuredRun] = []
    for run in runs:
        result = simulate_scenario(scenario_of(run, parameters), intervals=False)
        values = {
            name: predicted_value(name, result) * math.exp(noise * METRICS[name].log_sd * rng.standard_normal())
            for name in run.measured
        }
        found.append(msgspec.structs.replace(run, measured=values))
    return found


def write_runs(path: Path, runs: Sequence[MeasuredRun]) -> Path:
    """A file of the project's own schema."""
    path.write_bytes(msgspec.json.encode(RunFile(schema_version=1, runs=tuple(runs))))
    return path
