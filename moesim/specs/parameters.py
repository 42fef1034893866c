"""The constants that a measurement can improve: one set per kind of accelerator and engine."""

from __future__ import annotations

from functools import cache

import msgspec

from moesim.errors import InputError, nearest
from moesim.specs.hardware import Accelerator
from moesim.specs.loading import config_root, load

GEMM_PARAMETERS = (
    "gemm_hbm_efficiency",
    "gemm_compute_efficiency",
)
"""Dense matrix products."""

EXPERTS_PARAMETERS = (
    "moe_hbm_efficiency",
    "moe_compute_efficiency",
)
"""Grouped matrix products of the routed experts."""

ATTENTION_PARAMETERS = (
    "attention_hbm_efficiency",
    "attention_compute_efficiency",
)
"""Attention over cached and new tokens."""

KERNEL_PARAMETERS = (
    "elementwise_hbm_efficiency",
    "roofline_sharpness",
    "kernel_s",
)
"""What every kernel shares, and norms, activations, sampling."""

NETWORK_PARAMETERS = (
    "allreduce_latency_s",
    "allreduce_bus_efficiency",
    "alltoall_latency_s",
    "alltoall_bus_efficiency",
    "nic_latency_s",
    "nic_efficiency",
)
"""Collectives and exchanges."""

HOST_PARAMETERS = (
    "host_step_s",
    "host_sequence_s",
    "host_launch_s",
    "host_eager_op_s",
    "graph_replay_s",
    "server_request_s",
    "server_response_s",
)
"""The host beside the GPU, and the server in front of the engine."""

PARAMETER_NAMES = (
    *GEMM_PARAMETERS,
    *EXPERTS_PARAMETERS,
    *ATTENTION_PARAMETERS,
    *KERNEL_PARAMETERS,
    *NETWORK_PARAMETERS,
    *HOST_PARAMETERS,
    "model_error",
)


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One constant: its estimate, the standard deviation of its logarithm, unit and source."""

    value: float
    log_sd: float
    unit: str
    source: str


class ParameterSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Named constants for `accelerators` (empty: any of `vendor`) under `engine`."""

    name: str
    vendor: str
    engine: str
    calibrated: bool
    parameters: dict[str, Parameter]
    accelerators: tuple[str, ...] = ()
    notes: str = ""

    def __getitem__(self, name: str) -> float:
        """The estimate of one constant."""
        return self.parameters[name].value


def check_parameters(parameters: ParameterSet, where: str) -> ParameterSet:
    """Refuse a set with a missing, unknown or non-positive constant; returns it unchanged."""
    for name in parameters.parameters:
        if name not in PARAMETER_NAMES:
            raise InputError(f"{where}: unknown parameter {name!r}; {nearest(name, PARAMETER_NAMES)}")
    for name in PARAMETER_NAMES:
        if name not in parameters.parameters:
            raise InputError(f"{where}: parameter {name!r} is missing")
        value = parameters.parameters[name]
        if not (value.value > 0 and value.log_sd >= 0):
            raise InputError(f"{where}: parameters.{name} is {value.value} (log_sd {value.log_sd}), must be positive")
    return parameters


@cache
def list_parameter_sets() -> dict[str, ParameterSet]:
    """All shipped parameter sets by name."""
    paths = sorted((config_root() / "parameters").glob("*.yaml"))
    found = (check_parameters(load(path, ParameterSet), str(path)) for path in paths)
    return {item.name: item for item in found}


def select_parameters(accelerator: Accelerator, engine: str = "vllm") -> ParameterSet:
    """The calibrated set for this accelerator and engine, or the vendor's data-sheet prior when there is none."""
    sets = list_parameter_sets().values()
    exact = [item for item in sets if accelerator.name in item.accelerators and item.engine == engine]
    prior = [item for item in sets if not item.accelerators and item.vendor == accelerator.vendor]
    return (exact or prior)[0]


def scaled(parameters: ParameterSet, name: str, factor: float) -> ParameterSet:
    """A copy of the set with one estimate multiplied by `factor`."""
    old = parameters.parameters[name]
    new = msgspec.structs.replace(old, value=old.value * factor)
    return msgspec.structs.replace(parameters, parameters={**parameters.parameters, name: new})
