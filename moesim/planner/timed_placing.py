"""Placement weighed in seconds: the slowest rank plus the network, on a given model and cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.network.collectives import make_group
from moesim.placement.fit import fits
from moesim.placement.memory import plan_memory
from moesim.placement.plan import PlacementPlan, PlacementRequest, Progress, make_plan
from moesim.placement.traffic import Traffic, recorded_traffic
from moesim.planner.placing import PlacementReport, place, with_economics
from moesim.planner.rebalancing_economics import economics, experts_seconds
from moesim.routing.coactivation import coactivation
from moesim.routing.profile import RoutingProfile
from moesim.specs.routing import Routing
from moesim.specs.scenario import Scenario

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_SLACKS = (0.005, 0.02, 0.05, 0.1, 0.2)
_ROW_BYTES = 4.0
"""Bytes of a hidden value sent out and back: bf16 both ways."""


@dataclass(frozen=True, slots=True)
class TimedQuery:
    """What the seconds are for: a scenario (experts over all ranks), tokens of a step over them, steps between load
    changes, and whether plans are chosen by `tokens` or `seconds`.
    """

    scenario: Scenario
    tokens_per_step: int
    interval_steps: int | None
    objective: str


def place_in_time(
    profile: RoutingProfile,
    request: PlacementRequest,
    current: IntArray | None,
    hold_out_share: float,
    query: TimedQuery,
    progress: Progress | None = None,
) -> PlacementReport:
    """`place`, with what moving to the plan costs and brings; with objective seconds the fastest of several plans.

    Raises:
        InputError: the model does not run on the ranks, or seconds are asked of a profile without choices.
    """
    scenario = query.scenario
    _check_experts(scenario, profile.num_experts)
    if query.tokens_per_step < 1:
        raise InputError(f"tokens_per_step: {query.tokens_per_step} is out of range, must be at least 1")
    check_memory(scenario, request)
    if query.objective == "seconds":
        request = replace(request, algorithm="affinity", slack=_best_slack(profile, request, scenario, query, progress))
    report = place(profile, request, current, hold_out_share, progress)
    routing = _routing(profile)
    rows = list(profile.kept_layers)
    worth = economics(
        scenario,
        routing,
        report.before[rows],
        report.plan.physical[rows],
        query.tokens_per_step,
        query.interval_steps,
    )
    return with_economics(report, worth)


def _check_experts(scenario: Scenario, num_experts: int) -> None:
    moe = scenario.model.moe
    if moe is None or moe.num_experts != num_experts:
        raise InputError(
            f"model: {scenario.model.name} has {moe.num_experts if moe else 0} experts, the counts have {num_experts}"
        )


def check_memory(scenario: Scenario, request: PlacementRequest) -> None:
    """Refuse more replicas than the accelerators' memory holds beside one sequence's KV cache.

    Raises:
        InputError: says how many replicas fit.
    """
    moe = scenario.model.moe
    assert moe is not None
    ranks, workload = request.num_ranks, scenario.workload
    tokens = workload.input_tokens + workload.output_tokens

    def holds(slots: int) -> bool:
        deployment = msgspec.structs.replace(scenario.deployment, redundant_experts=slots - moe.num_experts)
        return fits(plan_memory(scenario.model, deployment, scenario.cluster.accelerator), tokens)

    if holds(request.num_slots):
        return
    most = request.num_slots
    while most >= moe.num_experts and not holds(most):
        most -= ranks
    hint = f"the most that fits is {most}" if most >= moe.num_experts else "it does not fit without replicas either"
    raise InputError(
        f"replicas: {request.num_slots} physical experts a layer do not fit on {ranks} x "
        f"{scenario.cluster.accelerator.name}; {hint}"
    )


def _routing(profile: RoutingProfile) -> Routing:
    rows = tuple(tuple(float(value) for value in row) for row in profile.totals)
    return Routing(kind="counts", counts=rows, source=profile.source)


def _best_slack(
    profile: RoutingProfile,
    request: PlacementRequest,
    scenario: Scenario,
    query: TimedQuery,
    progress: Progress | None,
) -> float:
    """The slack of the affinity plan that takes the fewest seconds: slowest rank plus dispatch and combine."""
    if profile.choices is None:
        raise InputError(
            f"objective: seconds weighs what tokens travel, and {profile.source} holds no choices of single tokens "
            "(record routed experts [tokens, layers, top_k])"
        )
    pairs = coactivation(profile)
    seconds: dict[float, float] = {}
    for number, slack in enumerate(_SLACKS):
        if progress is not None:
            progress(number, len(_SLACKS), f"slack {slack}")
        plan = make_plan(profile.totals, replace(request, algorithm="affinity", slack=slack), pairs)
        seconds[slack] = plan_seconds(plan, profile, scenario, query.tokens_per_step)
    return min(seconds, key=lambda slack: seconds[slack])


def plan_seconds(plan: PlacementPlan, profile: RoutingProfile, scenario: Scenario, tokens_per_step: int) -> float:
    """Routed experts on the slowest rank plus dispatch and combine, of one step over the profile's layers."""
    experts = experts_seconds(scenario, _routing(profile), plan.physical, tokens_per_step)
    return experts + network_seconds(plan, profile, scenario, tokens_per_step)


def network_seconds(plan: PlacementPlan, profile: RoutingProfile, scenario: Scenario, tokens_per_step: int) -> float:
    """Dispatch and combine by the busiest rank's recorded traffic, summed over the model's MoE layers."""
    request = plan.request
    assert profile.choices is not None
    group = make_group(scenario.cluster, scenario.parameters, request.num_ranks)
    total = 0.0
    for layer, row in enumerate(plan.physical):
        chosen = profile.choices[:, layer]
        traffic = recorded_traffic(chosen, row, profile.num_experts, request.num_ranks, request.num_nodes)
        inside, across = _busiest(traffic)
        row_bytes = _ROW_BYTES * scenario.model.hidden_size * tokens_per_step / traffic.tokens
        total += max(inside * row_bytes / group.exchange_bytes_per_s, across * row_bytes / group.nic_bytes_per_s)
        total += 2 * group.exchange_latency_s
    return total * scenario.model.num_moe_layers / len(plan.physical)


def _busiest(traffic: Traffic) -> tuple[float, float]:
    """Most copies that one rank sends or receives: inside its node, and between nodes."""
    node = np.arange(len(traffic.matrix)) // (len(traffic.matrix) // traffic.num_nodes)
    same = node[:, None] == node[None, :]
    moved = traffic.matrix * (1 - np.eye(len(node)))
    inside, across = np.where(same, moved, 0.0), np.where(same, 0.0, moved)
    most = [max(float(part.sum(axis=0).max()), float(part.sum(axis=1).max())) for part in (inside, across)]
    return most[0], most[1]
