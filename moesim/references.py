"""The embedded example: questions that `moesim demo` answers, and measured figures to hold beside predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from moesim.errors import InputError
from moesim.metrics.result import SimulationResult
from moesim.planner.search import Goal
from moesim.scenarios import Request, make_planning_scenario, make_scenario
from moesim.simulation import simulate_scenario
from moesim.specs.loading import config_root, convert, load
from moesim.specs.scenario import Scenario


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A measured figure of somebody's run. `figure`: the field of a result that it measures (`itl_ms.mean`)."""

    id: str
    words: dict[str, Any]
    figure: str
    value: float
    note: str
    source: str


class DemoGoal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Objective and p90 limits in milliseconds, in the words of `moesim recommend`."""

    objective: str = "throughput"
    ttft_slo: float | None = None
    tpot_slo: float | None = None


class Demo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Questions (`cases` of words, all under one `load` and `goal`) and the measured figures."""

    goal: DemoGoal
    load: dict[str, Any]
    cases: tuple[dict[str, Any], ...]
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """A measured figure beside moesim's prediction of the same run and its 90 % interval."""

    reference: Reference
    scenario: Scenario
    predicted: float
    low: float
    high: float

    def row(self) -> dict[str, Any]:
        """One flat row."""
        cluster, deployment = self.scenario.cluster, self.scenario.deployment
        return {
            "run": f"{self.scenario.model.name}, {cluster.num_accelerators} x {cluster.accelerator.name}, "
            f"tp {deployment.tensor_parallel_size}",
            "figure": self.reference.figure,
            "measured": self.reference.value,
            "predicted": self.predicted,
            "predicted_low": self.low,
            "predicted_high": self.high,
            "note": self.reference.note,
            "source": self.reference.source,
        }


def load_demo() -> Demo:
    """The shipped example."""
    return load(config_root() / "demo.yaml", Demo)


def demo_goal(demo: Demo) -> Goal:
    """The planner's goal of the example."""
    return Goal(demo.goal.objective, demo.goal.ttft_slo, demo.goal.tpot_slo)


def demo_scenarios(demo: Demo) -> list[Scenario]:
    """The planning scenario of each case."""
    return [make_planning_scenario(_request({**demo.load, **case}, "cases")) for case in demo.cases]


def compare(reference: Reference) -> Compared:
    """Simulate the measured run; raises InputError when its words or its figure are unknown."""
    scenario = make_scenario(_request(reference.words, reference.id))
    result = simulate_scenario(scenario)
    value, low, high = predicted_figure(result, reference.figure)
    return Compared(reference, scenario, value, low, high)


def predicted_figure(result: SimulationResult, figure: str) -> tuple[float, float, float]:
    """(value, low, high) of a result's figure: a rate, `duration_s`, or `<latency>_ms.<statistic>`.

    The 90 % interval of a latency's mean is carried over to its percentiles, that of the throughput to all
    rates and durations, as factors.
    """
    field, _, statistic = figure.partition(".")
    found: Any = getattr(result, field, None)
    if found is not None and statistic:
        found = getattr(found, statistic, None)
    if not isinstance(found, float):
        raise InputError(f"figure: {figure!r} is no figure of a simulation result")
    key = field if field in result.interval_90 else "output_tokens_per_s"
    low, high = result.interval_90[key]
    factor = (high / low) ** 0.5
    return found, found / factor, found * factor


def _request(words: dict[str, Any], where: str) -> Request:
    return convert(words, Request, f"demo.yaml {where}")
