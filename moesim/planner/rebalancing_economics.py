"""Rebalancing as economics: what moving experts costs, what it brings a step, and when it pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from moesim.costs.exchange import expert_exchange
from moesim.costs.experts import routed_experts
from moesim.costs.layout import Layout, make_layout
from moesim.placement.migration import Migration, migrate
from moesim.placement.transfer import expert_bytes, transfer_seconds
from moesim.specs.routing import Routing
from moesim.specs.scenario import Scenario

IntArray = NDArray[np.int64]
_WORTH_IT = 0.01
"""Gains below 1 % of the experts' time are within what two runs of one server differ by."""


@dataclass(frozen=True, slots=True)
class Economics:
    """Moving from the current map to the plan, for steps of `tokens_per_step` tokens over the group.

    `before_s`, `after_s`: routed experts and exchange of one step, all layers. `interval_steps`: steps between two
    changes of the load (None: it does not change).
    """

    migration: Migration
    bytes_moved: float
    move_s: float
    tokens_per_step: int
    before_s: float
    after_s: float
    interval_steps: int | None

    @property
    def gain_s(self) -> float:
        """Seconds saved a step."""
        return self.before_s - self.after_s

    @property
    def steps_to_pay(self) -> float | None:
        """Steps after which the move has paid, None when it never does."""
        return self.move_s / self.gain_s if self.gain_s > 0 else None

    @property
    def verdict(self) -> str:
        """Whether to move, and why not."""
        if self.gain_s <= _WORTH_IT * self.before_s:
            share = self.gain_s / max(self.before_s, 1e-300)
            return f"stay: already balanced (the plan saves {share:.1%} of the experts' time)"
        steps = self.steps_to_pay or 0.0
        if self.interval_steps is not None and steps >= self.interval_steps:
            return f"stay: the load drifts within {self.interval_steps} steps, moving pays after {steps:.0f}"
        return f"move: it pays after {steps:.0f} steps"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "replicas_moved": self.migration.replicas_moved,
            "bytes_moved": self.bytes_moved,
            "move_ms": self.move_s * 1e3,
            "tokens_per_step": self.tokens_per_step,
            "experts_and_exchange_before_ms": self.before_s * 1e3,
            "experts_and_exchange_after_ms": self.after_s * 1e3,
            "gain_ms_per_step": self.gain_s * 1e3,
            "steps_to_pay": self.steps_to_pay,
            "interval_steps": self.interval_steps,
            "verdict": self.verdict,
        }


def economics(
    scenario: Scenario,
    routing: Routing,
    current: IntArray,
    planned: IntArray,
    tokens_per_step: int,
    interval_steps: int | None = None,
) -> Economics:
    """Cost and gain of moving from `current` to `planned` [layers, slots] on the scenario's cluster.

    Args:
        routing: the load that both maps are judged by (one layer a row of the maps).
        tokens_per_step: tokens of a step over the whole group.
    """
    moe = scenario.model.moe
    assert moe is not None
    ranks = scenario.deployment.expert_parallel_size
    moved = migrate(current, planned, moe.num_experts, ranks, scenario.cluster.num_nodes)
    layers = scenario.model.num_moe_layers / len(planned)
    size = expert_bytes(scenario.model, scenario.deployment)
    return Economics(
        migration=moved,
        bytes_moved=moved.replicas_moved * layers * size,
        move_s=transfer_seconds(moved, size * layers, scenario.cluster, scenario.parameters),
        tokens_per_step=tokens_per_step,
        before_s=_step_s(_layout(scenario, routing, current), tokens_per_step),
        after_s=_step_s(_layout(scenario, routing, planned), tokens_per_step),
        interval_steps=interval_steps,
    )


def _layout(scenario: Scenario, routing: Routing, physical: IntArray) -> Layout:
    moe = scenario.model.moe
    assert moe is not None
    deployment = msgspec.structs.replace(
        scenario.deployment,
        placement=tuple(tuple(int(expert) for expert in row) for row in physical),
        redundant_experts=physical.shape[1] - moe.num_experts,
    )
    return make_layout(scenario.model, deployment, scenario.cluster, scenario.parameters, routing, scenario.seed)


def experts_seconds(scenario: Scenario, routing: Routing, physical: IntArray, tokens: int) -> float:
    """Routed experts of a step of `tokens` tokens over all MoE layers under a map [layers, slots]."""
    layout = _layout(scenario, routing, physical)
    return float(routed_experts(layout, np.array([tokens])).slowest.seconds[0]) * layout.model.num_moe_layers


def _step_s(layout: Layout, tokens: int) -> float:
    """Routed experts and exchange of a step over all MoE layers."""
    ranks = layout.deployment.lockstep_ranks
    experts = routed_experts(layout, np.array([tokens])).slowest.seconds
    exchange = expert_exchange(layout, np.array([max(tokens / ranks, 1.0)])).seconds
    return float((experts + exchange)[0]) * layout.model.num_moe_layers
