"""What imbalance costs: the slowest rank against the mean rank, in milliseconds and as a share of the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from moesim.costs.closed_form import Batch, StepEstimate, estimate_step
from moesim.costs.experts import routed_experts
from moesim.costs.layout import Layout, make_layout
from moesim.errors import InputError
from moesim.metrics.summary import imbalance_of_step
from moesim.specs.routing import Routing
from moesim.specs.scenario import Scenario

_CURVE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2)
"""Zipf exponents of the curve: Gini 0 to 0.7 at 64 experts."""


@dataclass(frozen=True, slots=True)
class ImbalanceCost:
    """One decode step under one routing: rank max over mean, seconds, and what balanced ranks would save."""

    label: str
    gini: float
    rank_max_over_mean: float
    step_s: float
    slowest_rank_experts_s: float
    mean_rank_experts_s: float
    uniform_step_s: float

    @property
    def imbalance_s(self) -> float:
        """Seconds a step that all ranks wait for the slowest one's experts."""
        return max(self.slowest_rank_experts_s - self.mean_rank_experts_s, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `share_of_step` is what the wait adds to a step without it."""
        even = max(self.step_s - self.imbalance_s, 1e-300)
        return {
            "routing": self.label,
            "gini": self.gini,
            "rank_max_over_mean": self.rank_max_over_mean,
            "step_ms": self.step_s * 1e3,
            "slowest_rank_experts_ms": self.slowest_rank_experts_s * 1e3,
            "mean_rank_experts_ms": self.mean_rank_experts_s * 1e3,
            "imbalance_ms": self.imbalance_s * 1e3,
            "share_of_step": self.imbalance_s / even,
            "against_uniform": self.step_s / self.uniform_step_s - 1,
        }


def imbalance_cost(scenario: Scenario, batch: int) -> tuple[ImbalanceCost, list[ImbalanceCost]]:
    """(the scenario's own routing, the curve over Zipf exponents) for one decode step of `batch` sequences a rank.

    The curve shows that skew has two sides: it makes ranks wait for the fullest one, and at small batches it also
    reads fewer distinct experts, which can make a step faster.

    Raises:
        InputError: dense model or bad batch.
    """
    if scenario.model.moe is None:
        raise InputError(f"model: {scenario.model.name} has no routed experts")
    if not 1 <= batch <= scenario.deployment.max_num_seqs:
        raise InputError(
            f"batch: {batch} is out of range, must be 1 to max_num_seqs = {scenario.deployment.max_num_seqs}"
        )
    uniform = _estimate(scenario, Routing(), batch)[0].seconds
    own = _cost(scenario, scenario.routing, batch, _label(scenario.routing), uniform)
    curve = [
        _cost(scenario, Routing(kind="zipf", strength=strength), batch, f"zipf:{strength:g}", uniform)
        for strength in _CURVE
    ]
    return own, curve


def _label(routing: Routing) -> str:
    return routing.source if routing.kind == "counts" else f"{routing.kind}:{routing.strength:g}"


def _estimate(scenario: Scenario, routing: Routing, batch: int) -> tuple[StepEstimate, Layout]:
    changed = msgspec.structs.replace(scenario, routing=routing)
    layout = make_layout(
        changed.model, changed.deployment, changed.cluster, changed.parameters, changed.routing, changed.seed
    )
    workload = scenario.workload
    middle = workload.input_tokens + workload.output_tokens // 2
    return estimate_step(layout, Batch(decodes=batch, context_tokens=middle)), layout


def _cost(scenario: Scenario, routing: Routing, batch: int, label: str, uniform_s: float) -> ImbalanceCost:
    step, layout = _estimate(scenario, routing, batch)
    tokens = batch * layout.deployment.lockstep_ranks
    load = imbalance_of_step(layout, tokens)
    routed = routed_experts(layout, np.array([tokens]))
    layers = layout.model.num_moe_layers
    assert load is not None
    return ImbalanceCost(
        label=label,
        gini=load.gini,
        rank_max_over_mean=load.rank_max_over_mean,
        step_s=step.seconds,
        slowest_rank_experts_s=float(routed.slowest.seconds[0]) * layers,
        mean_rank_experts_s=float(routed.mean_rank_s[0]) * layers,
        uniform_step_s=uniform_s,
    )
