"""Predictions of runs and their slopes against every constant, from one simulation a run.

The slope of a mean latency is the token- or request-weighted mean of its steps' slopes over the frozen schedule
(`calibration.replay`); the share of a latency that is spent in front of the engine moves with the server's constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.metrics import METRICS, predicted_value
from calibration.replay import StepTable, attention_seconds, replay_seconds, step_table
from calibration.runs import MeasuredRun, StepPoint
from calibration.steps import largest_sizes, step_bytes, step_slopes
from moesim.costs.layout import Layout, make_layout
from moesim.costs.operators import StepOperators, step_operators
from moesim.costs.step import alike, host_seconds
from moesim.engine.serving import ServingRun, run_serving
from moesim.errors import InputError
from moesim.metrics.summary import summarize
from moesim.simulation import simulate_scenario
from moesim.specs.parameters import ParameterSet, recording, scaled
from moesim.specs.scenario import Scenario
from moesim.specs.workload import ClosedLoop

FloatArray = NDArray[np.float64]
_STEP = 0.01
_SERVER = ("server_request_s", "server_token_s", "server_response_s")


@dataclass(frozen=True, slots=True)
class RunPrediction:
    """`values` of the asked metrics and `slopes` [names] of their logarithms against log constants."""

    values: dict[str, float]
    slopes: dict[str, FloatArray]


def predict_with_slopes(
    scenarios: Sequence[Scenario],
    metrics: Sequence[Sequence[str]],
    names: Sequence[str],
    points: Sequence[StepPoint | None],
) -> list[RunPrediction | str]:
    """Simulate runs of one layout, and price their steps under every constant of `names` moved by 1 %.

    Args:
        scenarios: equal in model, cluster, deployment, routing, seed and constants.
        metrics: of each scenario.
        points: the step of each scenario that is a single step; all are, or none.

    Returns:
        A prediction for each scenario, or the reason why it cannot run.
    """
    steps = [point for point in points if point is not None]
    if steps:
        return list(_step_predictions(scenarios[0], metrics, names, steps))
    if scenarios[0].model.is_diffusion:
        return [_diffusion_prediction(*pair, names) for pair in zip(scenarios, metrics, strict=True)]
    keys = [_load_key(scenario) for scenario in scenarios]
    runs = {key: _run(scenario) for key, scenario in dict(zip(keys, scenarios, strict=True)).items()}
    found = [run for run in runs.values() if not isinstance(run, str)]
    if not found:
        return [str(runs[key]) for key in keys]
    moved = moved_operators(scenarios[0], names, *_table_sizes(found))
    asked = tuple(dict.fromkeys(metric for some in metrics for metric in some))
    answers = {
        key: run if isinstance(run, str) else _prediction(scenario, run, moved, names, asked)
        for (key, run), scenario in zip(runs.items(), dict(zip(keys, scenarios, strict=True)).values(), strict=True)
    }
    return [answers[key] for key in keys]


def _load_key(scenario: Scenario) -> bytes:
    """What tells the simulated loads of one layout apart: more clients than requests are as many as requests."""
    workload = scenario.workload
    if isinstance(workload.arrival, ClosedLoop):
        clients = min(workload.arrival.concurrency, workload.num_prompts)
        workload = msgspec.structs.replace(workload, arrival=ClosedLoop(concurrency=clients))
    return msgspec.json.encode(workload)


def _step_predictions(
    scenario: Scenario, metrics: Sequence[Sequence[str]], names: Sequence[str], points: Sequence[StepPoint]
) -> Iterator[RunPrediction]:
    moved = moved_operators(scenario, names, *largest_sizes(points))
    values, slopes = step_slopes(moved, points, names, _STEP)
    for index, asked in enumerate(metrics):
        kinds = {metric: METRICS[metric].kind for metric in asked}
        yield RunPrediction(
            {metric: 1e3 * float(values[kind][index]) for metric, kind in kinds.items()},
            {metric: slopes[kind][index] for metric, kind in kinds.items()},
        )


def price_step(run: MeasuredRun, scenario: Scenario) -> dict[str, float]:
    """The measured metrics of a run that is a single step: milliseconds, or bytes of DRAM traffic."""
    if run.step is None:
        return {}
    counted = {metric: step_bytes(run.step, scenario) for metric in run.measured if METRICS[metric].kind == "bytes"}
    timed = tuple(metric for metric in run.measured if metric not in counted)
    values = next(_step_predictions(scenario, [timed], (), [run.step])).values if timed else {}
    return {**values, **counted}


def _diffusion_prediction(scenario: Scenario, metrics: Sequence[str], names: Sequence[str]) -> RunPrediction | str:
    """Diffusion runs have few distinct forwards, so they are simulated anew for every constant."""

    def values(parameters: ParameterSet) -> dict[str, float]:
        result = simulate_scenario(msgspec.structs.replace(scenario, parameters=parameters), intervals=False)
        return {metric: predicted_value(metric, result) for metric in metrics}

    try:
        base = values(scenario.parameters)
    except InputError as error:
        return str(error)
    factor = float(np.exp(_STEP))
    moved = [values(scaled(scenario.parameters, name, factor)) for name in names]
    slopes = {metric: np.array([np.log(item[metric] / base[metric]) / _STEP for item in moved]) for metric in metrics}
    return RunPrediction(base, slopes)


def _run(scenario: Scenario) -> ServingRun | str:
    try:
        return run_serving(scenario, trace=True)
    except InputError as error:
        return str(error)


def _table_sizes(runs: Sequence[ServingRun]) -> tuple[int, int]:
    return max(len(run.model.token_s) for run in runs) - 1, max(len(run.model.head_s) for run in runs) - 1


def moved_operators(
    scenario: Scenario, names: Sequence[str], largest_tokens: int, largest_rows: int
) -> dict[str | None, StepOperators]:
    """Operators at the scenario's constants (None) and with each of `names` moved by 1 %.

    An operator that never asks for the moved constant is taken from the first evaluation.
    """
    recorder = recording(scenario.parameters)
    layout = _layout(scenario, recorder)
    groups = set(recorder.asked)
    asked: dict[str, set[str]] = {}
    known: dict[str, Any] = {}

    def note(operator: str, make: Callable[[], Any]) -> Any:
        recorder.asked.clear()
        known[operator] = make()
        asked[operator] = set(recorder.asked)
        return known[operator]

    base = step_operators(layout, largest_tokens, largest_rows, note)
    recorder.asked.clear()
    host_seconds(layout, 1.0, 0.5, 2.0, 1.0)
    alike(layout, 2, 1)
    depends = groups.union(recorder.asked, *asked.values())

    def moved(name: str) -> StepOperators:
        def take(operator: str, make: Callable[[], Any]) -> Any:
            return make() if name in groups or name in asked[operator] else known[operator]

        parameters = scaled(scenario.parameters, name, float(np.exp(_STEP)))
        return step_operators(_layout(scenario, parameters), largest_tokens, largest_rows, take)

    return {None: base, **{name: moved(name) for name in names if name in depends}}


def _layout(scenario: Scenario, parameters: ParameterSet) -> Layout:
    return make_layout(
        scenario.model, scenario.deployment, scenario.cluster, parameters, scenario.routing, scenario.seed
    )


def _prediction(
    scenario: Scenario,
    run: ServingRun,
    moved: dict[str | None, StepOperators],
    names: Sequence[str],
    metrics: Sequence[str],
) -> RunPrediction:
    table = step_table(run.logs)
    weights = _weights(table, run)
    slopes = _step_slopes(moved, table, names, weights)
    if scenario.deployment.frontend == "server":
        shares = _engine_shares(run, table)
        slopes["ttft"] = slopes["ttft"] * shares["ttft"] + _first_token_slopes(scenario, run, names)
        outside = _server_slopes(scenario, names, 1 - shares["elapsed"])
        slopes["elapsed"] = slopes["elapsed"] * shares["elapsed"] + outside
    slopes["throughput"] = -slopes["elapsed"]
    result = summarize(scenario, run)
    return RunPrediction(
        {metric: predicted_value(metric, result) for metric in metrics},
        {metric: slopes[METRICS[metric].kind] for metric in metrics},
    )


def _step_slopes(
    moved: dict[str | None, StepOperators], table: StepTable, names: Sequence[str], weights: dict[str, FloatArray]
) -> dict[str, FloatArray]:
    base = moved[None]
    attention_s = attention_seconds(base, table)
    base_s = replay_seconds(base, table, attention_s)
    slopes = {kind: np.zeros(len(names)) for kind in weights}
    for column, name in enumerate(names):
        if name not in moved:
            continue
        other = moved[name]
        moved_s = replay_seconds(other, table, attention_s if other.attention == base.attention else None)
        for kind, weight in weights.items():
            total = float(weight @ base_s)
            slopes[kind][column] = np.log(float(weight @ moved_s) / total) / _STEP if total > 0 else 0.0
    return slopes


def _weights(table: StepTable, run: ServingRun) -> dict[str, FloatArray]:
    """How often a step of each segment counts in a mean: tokens out, requests waiting, or once."""
    token = table.steps * table.decodes
    plain = token * (table.chunks == 0)
    return {
        "token": token,
        "median_gap": plain if plain.sum() > 0.5 * token.sum() else token,
        "ttft": table.steps * table.queued,
        "elapsed": table.steps / len(run.logs),
    }


def _engine_shares(run: ServingRun, table: StepTable) -> dict[str, float]:
    """Shares of the time to first token and of the whole run that pass in engine steps."""
    waited_s = sum(request.first_token_s - request.sent_s for request in run.requests)
    in_engine_s = float(table.steps * table.queued @ table.seconds)
    busy_s = float(table.steps @ table.seconds) / len(run.logs)
    return {"ttft": min(in_engine_s / waited_s, 1.0), "elapsed": min(busy_s / run.elapsed_s, 1.0)}


def _first_token_slopes(scenario: Scenario, run: ServingRun, names: Sequence[str]) -> FloatArray:
    """The server's part in the time to first token: queueing before the engine (a burst waits for every request of
    it in turn), and the way back.
    """
    waited_s = sum(request.first_token_s - request.sent_s for request in run.requests)
    before_s = sum(request.ready_s - request.sent_s for request in run.requests)
    intake = scenario.parameters["server_request_s"]
    by_token = scenario.parameters["server_token_s"] * scenario.workload.input_tokens
    parts = {
        "server_request_s": before_s / waited_s * intake / (intake + by_token),
        "server_token_s": before_s / waited_s * by_token / (intake + by_token),
        "server_response_s": len(run.requests) * scenario.parameters["server_response_s"] / waited_s,
    }
    return np.array([parts.get(name, 0.0) for name in names])


def _server_slopes(scenario: Scenario, names: Sequence[str], share: float) -> FloatArray:
    """The server's share of a latency, divided between its constants in proportion to what each costs a request."""
    cost = {name: scenario.parameters[name] for name in _SERVER}
    cost["server_token_s"] *= scenario.workload.input_tokens
    total = sum(cost.values())
    return np.array([share * cost[name] / total if name in cost else 0.0 for name in names])
