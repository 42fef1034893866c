"""The constants that a measurement can improve: one set per kind of accelerator and engine."""

from __future__ import annotations

from functools import cache
from typing import Literal

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
    "host_concurrent_s",
    "host_lockstep_s",
    "host_launch_s",
    "host_eager_op_s",
    "graph_replay_s",
    "server_request_s",
    "server_token_s",
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
    """One constant: its estimate, the standard deviation of its logarithm, unit and source.

    `status`: prior (no fit), fitted, prior_only (in a fit whose data did not narrow it) or at_bound.
    """

    value: float
    log_sd: float
    unit: str
    source: str
    status: Literal["prior", "fitted", "prior_only", "at_bound"] = "prior"


class Correlation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Correlations of the logarithms of `names` [n, n]; names that are not here are independent."""

    names: tuple[str, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()


class ErrorLevel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Size that 90 % of |log(predicted / measured)| of rows not fitted stay below, by metric, and their number."""

    rows: int
    ttft: float
    token: float
    throughput: float


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a set was fitted on, and how wrong it is on what it was not fitted on.

    `errors` by what was left out: `configuration` (within the fitted range), `model`, `accelerator`;
    `model_errors`: as `configuration`, of one model alone (20 rows and more). `inputs`: file to sha256.
    """

    models: tuple[str, ...] = ()
    concurrency: tuple[int, int] = (0, 0)
    rows: int = 0
    errors: dict[str, ErrorLevel] = {}
    model_errors: dict[str, ErrorLevel] = {}
    inputs: dict[str, str] = {}
    command: str = ""


class ParameterSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Named constants for `accelerators` (empty: any of `vendor`) under `engine`.

    `sites`: constants that belong to a machine and not to the accelerator (its host, a slow fabric), by site name.
    """

    name: str
    vendor: str
    engine: str
    calibrated: bool
    parameters: dict[str, Parameter]
    accelerators: tuple[str, ...] = ()
    engine_version: str = ""
    notes: str = ""
    sites: dict[str, dict[str, Parameter]] = {}
    correlation: Correlation = Correlation()
    evidence: Evidence = Evidence()

    def __getitem__(self, name: str) -> float:
        """The estimate of one constant."""
        return self.parameters[name].value


def at_site(parameters: ParameterSet, site: str | None) -> ParameterSet:
    """The set with the constants of one machine. Raises InputError for an unknown site."""
    if not site:
        return parameters
    if site not in parameters.sites:
        raise InputError(f"site: {site!r} is no site of parameter set {parameters.name}; {nearest(site, parameters.sites)}")
    return msgspec.structs.replace(parameters, parameters={**parameters.parameters, **parameters.sites[site]})


def check_parameters(parameters: ParameterSet, where: str) -> ParameterSet:
    """Refuse a set with a missing, unknown or non-positive constant; returns it unchanged."""
    for name in PARAMETER_NAMES:
        if name not in parameters.parameters:
            raise InputError(f"{where}: parameter {name!r} is missing")
    _check_constants(parameters.parameters, f"{where}: parameters")
    for site, constants in parameters.sites.items():
        _check_constants(constants, f"{where}: sites.{site}")
    size = len(parameters.correlation.names)
    if [len(row) for row in parameters.correlation.rows] != [size] * size:
        raise InputError(f"{where}: correlation.rows must be {size} rows of {size} numbers, one for each of its names")
    return parameters


def _check_constants(constants: dict[str, Parameter], where: str) -> None:
    for name, value in constants.items():
        if name not in PARAMETER_NAMES:
            raise InputError(f"{where}: unknown parameter {name!r}; {nearest(name, PARAMETER_NAMES)}")
        if not (value.value > 0 and value.log_sd >= 0):
            raise InputError(f"{where}.{name} is {value.value} (log_sd {value.log_sd}), must be positive")


@cache
def list_parameter_sets() -> dict[str, ParameterSet]:
    """All shipped parameter sets by name."""
    paths = sorted((config_root() / "parameters").glob("*.yaml"))
    found = (check_parameters(load(path, ParameterSet), str(path)) for path in paths)
    return {item.name: item for item in found}


def select_parameters(accelerator: Accelerator, engine: str = "vllm", version: str = "") -> ParameterSet:
    """The calibrated set for this accelerator and engine, or the vendor's data-sheet prior when there is none.

    A set of the asked `version` is preferred, then the one without a version of its own (the reference).
    """
    sets = list_parameter_sets().values()
    exact = [item for item in sets if accelerator.name in item.accelerators and item.engine == engine]
    exact.sort(key=lambda item: (item.engine_version != version, item.engine_version != ""))
    prior = [item for item in sets if not item.accelerators and item.vendor == accelerator.vendor]
    return (exact or prior)[0]


def scaled(parameters: ParameterSet, name: str, factor: float) -> ParameterSet:
    """A copy of the set with one estimate multiplied by `factor`."""
    old = parameters.parameters[name]
    new = msgspec.structs.replace(old, value=old.value * factor)
    return msgspec.structs.replace(parameters, parameters={**parameters.parameters, name: new})
