"""A placement report: the plan, what it does to traffic, whether it holds on other data, and whether moving pays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.placement.baselines import linear
from moesim.placement.judging import Judgement, hold_out
from moesim.placement.plan import PlacementPlan, PlacementRequest, Progress, check_request, make_plan
from moesim.placement.traffic import Traffic, expected_traffic, recorded_traffic
from moesim.planner.rebalancing_economics import Economics
from moesim.routing.coactivation import coactivation
from moesim.routing.profile import RoutingProfile, describe

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlacementReport:
    """Everything `moesim place` answers. `before` is the current map, or the linear one without replicas."""

    profile: RoutingProfile
    plan: PlacementPlan
    before: IntArray
    judgement: Judgement | None
    traffic_before: Traffic
    traffic_after: Traffic
    economics: Economics | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract of `moesim place`."""
        request = self.plan.request
        return {
            "algorithm": request.algorithm,
            "gpus": request.num_ranks,
            "nodes": request.num_nodes,
            "groups": request.num_groups,
            "replicas": request.num_slots,
            "layers": self.rows(),
            "summary": self.summary(),
            "physical_to_logical_map": self.plan.physical.tolist(),
            "seconds": self.plan.seconds,
            "held_out": judgement_dict(self.judgement),
            "traffic": {"before": traffic_dict(self.traffic_before), "after": traffic_dict(self.traffic_after)},
            "rebalancing": self.economics.to_dict() if self.economics else None,
            "profile": describe(self.profile),
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """Remarks of plan and profile, and a warning where the gain does not hold on data that did not plan."""
        kept = self.judgement.gain_kept if self.judgement is not None else None
        warning = (
            f"the gain does not hold on the rest of the trace ({kept:.0%} of it is kept)" if kept is not None else ""
        )
        return [*self.plan.notes, *self.profile.notes, *([warning] if kept is not None and kept < 0.5 else [])]

    def rows(self) -> list[dict[str, Any]]:
        """One row a layer: fullest rank over the mean, its lower bound and gap, Gini over ranks."""
        return [
            {
                "layer": item.layer,
                "max_over_mean": item.max_over_mean,
                "lower_bound_max_over_mean": item.lower_bound_max_over_mean,
                "gap": item.gap,
                "gini": item.rank_gini,
                "proved_optimal": item.proved_optimal,
            }
            for item in self.plan.layers
        ]

    def summary(self) -> dict[str, float]:
        """Means and extremes over layers."""
        layers = self.plan.layers
        return {
            "mean_max_over_mean": float(np.mean([item.max_over_mean for item in layers])),
            "worst_max_over_mean": max(item.max_over_mean for item in layers),
            "mean_gap": float(np.mean([item.gap for item in layers])),
            "worst_gap": max(item.gap for item in layers),
            "layers_proved_optimal": sum(item.proved_optimal for item in layers),
        }


def all_layers(profile: RoutingProfile) -> FloatArray:
    """Tokens per expert [layers of the file, experts]; layers without routed experts are zero."""
    loads = np.zeros((max(profile.num_file_layers, profile.num_layers), profile.num_experts))
    rows = list(profile.kept_layers) or list(range(profile.num_layers))
    loads[rows] = profile.totals
    return loads


def place(
    profile: RoutingProfile,
    request: PlacementRequest,
    current: IntArray | None = None,
    hold_out_share: float = 0.5,
    progress: Progress | None = None,
) -> PlacementReport:
    """Plan for a whole profile; a second plan from its first part is judged on the rest.

    Args:
        current: [layers of the file, slots] map in use, None: vLLM's linear map without replicas.
        hold_out_share: share of a profile with time that makes the judged plan.
    """
    check_request(request, profile.num_experts)
    judgement = hold_out(profile, request, hold_out_share)
    loads, rows = all_layers(profile), list(profile.kept_layers) or list(range(profile.num_layers))
    pairs = coactivation(profile) if request.algorithm == "affinity" else None
    if pairs is not None:
        full = np.zeros((len(loads), *pairs.shape[1:]))
        full[rows] = pairs
        pairs = full
    plan = make_plan(loads, request, pairs, progress)
    if current is None:
        slots = -(-profile.num_experts // request.num_ranks) * request.num_ranks
        current = np.tile(linear(profile.num_experts, slots, request.num_ranks), (len(loads), 1))
    return PlacementReport(
        profile=profile,
        plan=plan,
        before=current,
        judgement=judgement,
        traffic_before=_traffic(profile, current[rows], request),
        traffic_after=_traffic(profile, plan.physical[rows], request),
    )


def _traffic(profile: RoutingProfile, maps: IntArray, request: PlacementRequest) -> Traffic:
    """Mean over layers."""
    ranks, nodes = request.num_ranks, request.num_nodes
    if profile.choices is not None:
        parts = [
            recorded_traffic(profile.choices[:, layer], row, profile.num_experts, ranks, nodes)
            for layer, row in enumerate(maps)
        ]
    else:
        totals = profile.totals
        parts = [expected_traffic(totals[layer], row, ranks, nodes, profile.top_k) for layer, row in enumerate(maps)]
    matrix = np.mean([part.matrix for part in parts], axis=0)
    return Traffic(matrix, float(np.mean([part.tokens for part in parts])), nodes)


def with_economics(report: PlacementReport, economics: Economics) -> PlacementReport:
    """The report with what moving to the plan costs and brings."""
    return replace(report, economics=economics)


def traffic_dict(traffic: Traffic) -> dict[str, Any]:
    """Copies a token and the matrix (copies of tokens, from row to column, mean layer)."""
    return {
        "copies_per_token": traffic.copies_per_token,
        "copies_per_token_between_nodes": traffic.node_copies_per_token,
        "busiest_receiver_over_mean": traffic.busiest_receiver_share,
        "tokens": traffic.tokens,
        "matrix": [[float(value) for value in row] for row in traffic.matrix],
    }


def judgement_dict(judgement: Judgement | None) -> dict[str, Any] | None:
    """Held-out figures, means over layers."""
    if judgement is None:
        return None
    return {
        "planning_steps": judgement.planning_steps,
        "judging_steps": judgement.judging_steps,
        "max_over_mean_on_planning_part": float(judgement.planned.mean()),
        "max_over_mean_on_rest": float(judgement.judged.mean()),
        "linear_max_over_mean_on_rest": float(judgement.linear.mean()),
        "per_step_max_over_mean_on_rest": judgement.step_judged,
        "linear_per_step_max_over_mean_on_rest": judgement.step_linear,
        "gain_kept": judgement.gain_kept,
    }
