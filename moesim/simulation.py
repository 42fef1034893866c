"""Run a scenario through the engine that its model needs."""

from __future__ import annotations

from moesim.engine.diffusion import run_diffusion
from moesim.engine.serving import ServingRun, run_serving
from moesim.metrics.diffusion import summarize_diffusion
from moesim.metrics.result import SimulationResult
from moesim.metrics.summary import summarize
from moesim.metrics.uncertainty import interval_90
from moesim.specs.scenario import Scenario, check_scenario


def simulate_scenario(scenario: Scenario, intervals: bool = True) -> SimulationResult:
    """Predict a scenario.

    Args:
        intervals: also carry the parameters' uncertainty to 90 % intervals (about 20 ms).

    Raises:
        InputError: the scenario cannot run (it names the field, the value and what would work).
    """
    check_scenario(scenario)
    if scenario.model.is_diffusion:
        result = summarize_diffusion(scenario, run_diffusion(scenario))
    else:
        result = summarize(scenario, run_serving(scenario))
    return with_intervals(scenario, result) if intervals else result


def with_intervals(scenario: Scenario, result: SimulationResult) -> SimulationResult:
    """The result with its 90 % intervals."""
    import dataclasses

    return dataclasses.replace(result, interval_90=interval_90(scenario, result))


def simulate_with_trace(scenario: Scenario) -> tuple[SimulationResult, ServingRun]:
    """As `simulate_scenario` for an autoregressive model, keeping every segment for a timeline."""
    check_scenario(scenario)
    run = run_serving(scenario, trace=True)
    return with_intervals(scenario, summarize(scenario, run)), run
