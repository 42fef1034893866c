"""The scenario that a run amounts to, with as many layers as it builds."""

from __future__ import annotations

import math

import msgspec

from hw_validation.experiment.measurement import Measurement
from moesim.errors import InputError
from moesim.placement.fit import require_fit
from moesim.scenarios import Request, make_scenario
from moesim.specs.model import Model
from moesim.specs.scenario import Scenario


def planned_scenario(request: Request, measurement: Measurement) -> Scenario:
    """The checked scenario of a run, which fits in memory.

    Raises:
        InputError: what the simulator refuses, or layers that the model does not have.
    """
    scenario = make_scenario(request)
    if measurement.num_layers is not None:
        scenario = msgspec.structs.replace(scenario, model=with_layers(scenario.model, measurement.num_layers))
    require_fit(scenario.model, scenario.deployment, scenario.cluster, longest_sequence(scenario))
    return scenario


def with_layers(model: Model, num_layers: int) -> Model:
    """The model with its first `num_layers` layers; those without experts come first, as in the real ones.

    Raises:
        InputError: fewer than one layer of each sort, or more layers than there are.
    """
    fewest = model.num_dense_layers + 1 if model.num_moe_layers else 1
    if not fewest <= num_layers <= model.num_layers:
        raise InputError(f"num_layers: {num_layers} is out of range, {model.name} has {fewest} to {model.num_layers}")
    dense = model.num_dense_layers if model.num_moe_layers else num_layers
    return msgspec.structs.replace(
        model, num_layers=num_layers, num_dense_layers=dense, num_moe_layers=num_layers - dense
    )


def longest_sequence(scenario: Scenario) -> int:
    """Tokens of the longest sequence of the load."""
    workload, diffusion = scenario.workload, scenario.diffusion
    outputs = workload.output_tokens if diffusion is None else diffusion.generation_len
    return math.ceil((workload.input_tokens + outputs) * (1 + workload.range_ratio))
