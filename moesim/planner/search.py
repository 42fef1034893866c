"""Search over strategies and queue depths: every candidate that fits is simulated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec

from moesim.engine.serving import paused_collector
from moesim.errors import InputError
from moesim.metrics.result import SimulationResult
from moesim.placement.fit import fits, require_fit
from moesim.placement.memory import plan_memory
from moesim.placement.strategies import Refusal, Strategy, enumerate_strategies
from moesim.planner.command import server_command
from moesim.planner.explanation import explain
from moesim.planner.recommendation import Candidate, Recommendation
from moesim.simulation import simulate_scenario, with_intervals
from moesim.specs.deployment import Deployment
from moesim.specs.scenario import Scenario
from moesim.specs.workload import ClosedLoop

QUEUE_DEPTHS = (4, 8, 16, 32, 64, 128, 256)
OBJECTIVES = ("throughput", "latency")
_MANY_PROMPTS = 768
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Goal:
    """What makes a deployment good.

    throughput: most output tokens/s among those that meet the limits. latency: least end-to-end time.
    Limits are p90 in milliseconds (None: no limit).
    """

    objective: str = "throughput"
    ttft_slo_ms: float | None = None
    tpot_slo_ms: float | None = None

    def met_by(self, result: SimulationResult) -> bool:
        """True when both p90 limits hold."""
        pairs = ((self.ttft_slo_ms, result.ttft_ms), (self.tpot_slo_ms, result.tpot_ms))
        return all(limit is None or value is None or value.p90 <= limit for limit, value in pairs)

    def score(self, result: SimulationResult) -> float:
        """Higher is better."""
        if self.objective == "latency":
            return -result.e2e_ms.mean if result.e2e_ms else -math.inf
        return result.output_tokens_per_s


def check_goal(goal: Goal) -> Goal:
    """Refuse unknown objectives and limits that are not positive; returns the goal unchanged."""
    if goal.objective not in OBJECTIVES:
        raise InputError(f"objective: unknown {goal.objective!r}; known: {', '.join(OBJECTIVES)}")
    for name in ("ttft_slo_ms", "tpot_slo_ms"):
        value = getattr(goal, name)
        if value is not None and not (0 < value < math.inf):
            raise InputError(f"{name}: {value} is out of range, must be a positive number of milliseconds")
    return goal


def recommend_scenario(
    scenario: Scenario,
    goal: Goal,
    depths: tuple[int, ...] = QUEUE_DEPTHS,
    top: int = 10,
    progress: Progress | None = None,
) -> Recommendation:
    """Rank all feasible deployments of the scenario's model on its cluster.

    The scenario's parallel sizes are replaced by each strategy in turn and its max_num_seqs by each depth;
    with a closed loop the concurrency follows the depth (every slot is kept busy, for two or three whole waves:
    a last one that is part empty would belittle deep queues), with arrivals it stays.

    Raises:
        InputError: nothing fits (says the smallest count that does).
    """
    check_goal(goal)
    strategies, refused = enumerate_strategies(scenario.model, scenario.cluster)
    feasible, unfit = _feasible(scenario, strategies)
    if not feasible:
        _raise_unfit(scenario)
    trials = list(_trials(scenario, feasible, depths))
    candidates: list[Candidate] = []
    with paused_collector():
        for done, (trial, equal_to) in enumerate(trials):
            if progress is not None:
                progress(done, len(trials), trial.deployment.strategy)
            candidates.append(_candidate(trial, simulate_scenario(trial, intervals=False), goal, equal_to))
    ranked = sorted(candidates, key=lambda item: (not item.meets_slo, -item.score, item.deployment.max_num_seqs))
    leading = [_with_interval(item, scenario) for item in ranked[:top]]
    return Recommendation(
        candidates=tuple(leading),
        refused=(*refused, *unfit),
        objective=goal.objective,
        explanation=explain(leading, ranked, goal.ttft_slo_ms, goal.tpot_slo_ms),
    )


def _feasible(scenario: Scenario, strategies: list[Strategy]) -> tuple[list[Strategy], list[Refusal]]:
    kept: list[Strategy] = []
    unfit: list[Refusal] = []
    for strategy in strategies:
        deployment = _deploy(scenario.deployment, strategy, scenario.deployment.max_num_seqs)
        plan = plan_memory(scenario.model, deployment, scenario.cluster.accelerator)
        if fits(plan, _sequence_tokens(scenario)):
            kept.append(strategy)
        else:
            usable = plan.visible_bytes * deployment.gpu_memory_utilization / 1e9
            needed = (plan.weights_bytes + plan.activation_bytes + plan.runtime_bytes) / 1e9
            reason = f"needs {needed:.1f} GB a GPU before any KV cache, {usable:.1f} GB are usable"
            unfit.append(Refusal(strategy.name, reason))
    return kept, unfit


def _raise_unfit(scenario: Scenario) -> None:
    size = scenario.cluster.num_accelerators
    deployment = msgspec.structs.replace(
        scenario.deployment, tensor_parallel_size=size, data_parallel_size=1, expert_parallel_size=1
    )
    require_fit(scenario.model, deployment, scenario.cluster, _sequence_tokens(scenario))
    raise InputError(f"no strategy can place {scenario.model.name} on {size} x {scenario.cluster.accelerator.name}")


def _sequence_tokens(scenario: Scenario) -> int:
    workload = scenario.workload
    generated = scenario.diffusion.generation_len if scenario.diffusion else workload.output_tokens
    return math.ceil((workload.input_tokens + generated) * (1 + workload.range_ratio))


def _deploy(base: Deployment, strategy: Strategy, depth: int) -> Deployment:
    return msgspec.structs.replace(
        base,
        strategy=strategy.name,
        tensor_parallel_size=strategy.tensor_parallel_size,
        data_parallel_size=strategy.data_parallel_size,
        expert_parallel_size=strategy.expert_parallel_size,
        pipeline_parallel_size=1,
        max_num_seqs=depth,
    )


def _trials(
    scenario: Scenario, strategies: list[Strategy], depths: tuple[int, ...]
) -> Iterator[tuple[Scenario, tuple[str, ...]]]:
    for strategy in strategies:
        for depth in depths:
            deployment = _deploy(scenario.deployment, strategy, depth)
            workload = scenario.workload
            if isinstance(workload.arrival, ClosedLoop):
                clients = depth * strategy.data_parallel_size
                waves = 3 if 3 * clients <= _MANY_PROMPTS else 2
                loop = ClosedLoop(concurrency=clients)
                workload = msgspec.structs.replace(workload, arrival=loop, num_prompts=waves * clients)
            yield msgspec.structs.replace(scenario, deployment=deployment, workload=workload), strategy.equal_to


def _candidate(trial: Scenario, result: SimulationResult, goal: Goal, equal_to: tuple[str, ...]) -> Candidate:
    command = server_command(trial.model, trial.deployment, _sequence_tokens(trial))
    return Candidate(trial.deployment, result, goal.score(result), goal.met_by(result), command, equal_to)


def _with_interval(item: Candidate, scenario: Scenario) -> Candidate:
    trial = msgspec.structs.replace(scenario, deployment=item.deployment)
    return replace(item, predicted=with_intervals(trial, item.predicted))
