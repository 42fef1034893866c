"""Plans judged on data that they were not made from: the first part of a trace plans, the rest judges."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.baselines import linear
from moesim.placement.plan import PlacementRequest, make_plan
from moesim.placement.replicas import rank_loads_of
from moesim.routing.coactivation import coactivation
from moesim.routing.imbalance import max_over_mean
from moesim.routing.profile import RoutingProfile

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Fullest rank over the mean [layers]: on the part that planned, on the rest, and of the linear map on the rest.

    `windows`: steps that judged. `step_planned`, `step_linear`: means of each window's own ratio, averaged over
    layers, which also holds what no plan can even out (the load of single steps).
    """

    planning_steps: int
    judging_steps: int
    planned: FloatArray
    judged: FloatArray
    linear: FloatArray
    step_judged: float
    step_linear: float

    @property
    def gain_kept(self) -> float | None:
        """Share of the promised reduction of the excess over the mean that the rest of the trace confirms."""
        promised = float((self.linear - self.planned).mean())
        return float((self.linear - self.judged).mean()) / promised if promised > 1e-3 else None


def hold_out(profile: RoutingProfile, request: PlacementRequest, share: float) -> Judgement | None:
    """Plan from the first `share` of the profile and judge on the rest; None for a profile without time.

    Raises:
        InputError: the share leaves no step on one side.
    """
    if not 0 < share < 1:
        raise InputError(f"hold_out: {share} is out of range, must be between 0 and 1")
    if profile.num_steps < 2:
        return None
    first, rest = profile.part(0, share), profile.part(share, 1)
    if not first.num_steps or not rest.num_steps:
        raise InputError(f"hold_out: {share} leaves no step of {profile.num_steps} on one side")
    loads = first.totals
    request = replace(request, limit_s=min(request.limit_s, 5.0))
    pairs = coactivation(first) if request.algorithm == "affinity" else None
    plan = make_plan(loads, request, pairs)
    baseline = np.tile(linear(profile.num_experts, request.num_slots, request.num_ranks), (profile.num_layers, 1))
    return Judgement(
        planning_steps=first.num_steps,
        judging_steps=rest.num_steps,
        planned=_ratio(loads, plan.physical, request.num_ranks),
        judged=_ratio(rest.totals, plan.physical, request.num_ranks),
        linear=_ratio(rest.totals, baseline, request.num_ranks),
        step_judged=_step_ratio(rest, plan.physical, request.num_ranks),
        step_linear=_step_ratio(rest, baseline, request.num_ranks),
    )


def _ratio(loads: FloatArray, physical: IntArray, num_ranks: int) -> FloatArray:
    return max_over_mean(rank_loads_of(loads, physical, num_ranks))


def _step_ratio(profile: RoutingProfile, physical: IntArray, num_ranks: int) -> float:
    maps = np.broadcast_to(physical, (profile.num_steps, *physical.shape))
    return float(max_over_mean(rank_loads_of(profile.counts, maps, num_ranks)).mean())
