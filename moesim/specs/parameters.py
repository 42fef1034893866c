"""The constants that a measurement can improve: one set per kind of accelerator and engine."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, Protocol

import msgspec

from moesim.errors import InputError, nearest
from moesim.specs.catalog import get_hardware
from moesim.specs.hardware import Accelerator
from moesim.specs.loading import config_root, load

GEMM_FAMILIES = ("bf16", "fp8", "block")
"""Libraries of dense products: cuBLAS, vLLM's CUTLASS fp8, DeepGEMM (block fp8)."""

GEMM_FIELDS = (
    "hbm_efficiency",
    "compute_efficiency",
    "unit_load_bytes_per_s",
    "tile_s",
    "step_s",
    "store_factor",
    "sharpness",
    "kernel_s",
    "sustained_loss",
)

GEMM_PARAMETERS = (
    *(f"gemm_{family}_{field}" for family in GEMM_FAMILIES for field in GEMM_FIELDS),
    "gemm_split_s",
    "gemm_sustained_s",
    "quantise_row_s",
    "quantise_hbm_efficiency",
)
"""Dense matrix products (`moesim.costs.gemm`): nine constants for each library, and what they share."""

GEMM_HOST_PARAMETERS = (
    "host_flashinfer_s",
    "host_deepgemm_s",
    "host_pad_s",
    "host_cutlass_s",
)
"""Host time of block-fp8 products launched outside a graph; no part of a graph-mode simulation."""

EXPERTS_FAMILIES = ("bf16", "fp8", "block", "cutlass", "cutlass_block", "int4", "mxfp4", "mxfp4_marlin", "nvfp4")
"""Fused mixture-of-experts kernels, see `moesim.costs.grouped_gemm.KERNELS`."""

EXPERTS_FIELDS = (
    "hbm_efficiency",
    "compute_efficiency",
    "unit_load_bytes_per_s",
    "tile_s",
    "step_s",
    "store_factor",
    "sharpness",
    "spill_loss",
    "combine_efficiency",
    "fixed_s",
)

EXPERTS_PARAMETERS = (
    *(f"moe_{family}_{field}" for family in EXPERTS_FAMILIES for field in EXPERTS_FIELDS),
    "moe_sort_s",
    "moe_map_s",
    "moe_misaligned_slowdown",
    "moe_untuned_slowdown",
    "moe_partial_efficiency",
)
"""Routed experts (`moesim.costs.grouped_gemm`): ten constants for each kernel, and what they share."""

ATTENTION_PARAMETERS = (
    "decode_start_s",
    "decode_tile_s",
    "decode_dim_exponent",
    "attention_hbm_efficiency",
    "decode_unit_share",
    "decode_split_tokens",
    "decode_max_splits",
    "decode_ungrouped_splits",
    "decode_exposed",
    "decode_combine_s",
    "decode_regroup_s",
    "decode_sequence_s",
    "decode_window_tile",
    "decode_fp8_flops",
    "attention_fp8_start",
    "attention_fp8_compute",
    "prefill_start_s",
    "prefill_tile_s",
    "prefill_tile_rows",
    "prefill_narrow_rows",
    "prefill_packed_heads",
    "prefill_max_splits",
    "attention_compute_efficiency",
    "prefill_softmax_flops",
    "prefill_edge",
    "prefill_exposed",
    "prefill_hbm_efficiency",
    "prefill_fp8_query",
    "kv_write_block_s",
    "mla_start_s",
    "mla_tile_s",
    "mla_head_rows",
    "mla_max_splits",
    "mla_unit_share",
    "mla_hbm_efficiency",
    "mla_decode_compute_efficiency",
    "mla_fp8_compute",
    "mla_prefill_compute_efficiency",
    "mla_expand_passes",
)
"""Attention over cached and new tokens."""

KERNEL_PARAMETERS = (
    "elementwise_hbm_efficiency",
    "roofline_sharpness",
    "kernel_s",
)
"""What every kernel shares, and norms, activations, sampling."""

ENGINE_PARAMETERS = (
    "gemm_slowdown",
    "experts_slowdown",
    "attention_slowdown",
    "collective_slowdown",
    "shared_expert_exposed",
    "prompt_routing_exponent",
    "sampling_s",
    "sampling_logit_bytes",
)
"""How much longer a kernel takes inside an engine than in the benchmark loop that its own constants come from; how
much of a shared expert on a stream of its own is not hidden behind the routed ones; how alike the tokens of one prompt,
or of a text that is being denoised, are routed (n tokens touch the experts of n ** exponent independent ones); and
sampling: a step's small kernels together, and what moves for each logit."""

NETWORK_PARAMETERS = (
    "ring_ll_s",
    "ring_ll_hop_s",
    "ring_ll_efficiency",
    "ring_ll128_s",
    "ring_ll128_hop_s",
    "ring_ll128_efficiency",
    "ring_simple_s",
    "ring_simple_hop_s",
    "ring_simple_efficiency",
    "ring_copy_efficiency",
    "ring_graph_s",
    "collective_skew_s",
    "switch_reduce_s",
    "switch_reduce_efficiency",
    "exchange_ll_s",
    "exchange_ll_hop_s",
    "exchange_ll_efficiency",
    "exchange_simple_s",
    "exchange_simple_hop_s",
    "exchange_simple_efficiency",
    "exchange_copy_efficiency",
    "one_shot_s",
    "one_shot_hop_s",
    "one_shot_efficiency",
    "two_shot_s",
    "two_shot_hop_s",
    "two_shot_efficiency",
    "deepep_ll_dispatch_s",
    "deepep_ll_dispatch_expert_s",
    "deepep_ll_dispatch_efficiency",
    "deepep_ll_token_s",
    "deepep_ll_combine_s",
    "deepep_ll_combine_expert_s",
    "deepep_ll_combine_efficiency",
    "deepep_ht_dispatch_s",
    "deepep_ht_dispatch_token_s",
    "deepep_ht_dispatch_unit_share",
    "deepep_ht_dispatch_efficiency",
    "deepep_ht_combine_s",
    "deepep_ht_combine_width_s",
    "deepep_ht_combine_token_s",
    "deepep_ht_combine_unit_share",
    "deepep_ht_combine_row_share",
    "deepep_ht_combine_efficiency",
    "exchange_byte_s",
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
    "host_layer_s",
    "host_uncaptured_s",
    "host_exchange_s",
    "host_piece_s",
    "host_eager_op_s",
    "graph_replay_s",
    "server_request_s",
    "server_token_s",
    "server_response_s",
)
"""The host beside the GPU, and the server in front of the engine."""

PARAMETER_NAMES = (
    *GEMM_PARAMETERS,
    *GEMM_HOST_PARAMETERS,
    *EXPERTS_PARAMETERS,
    *ATTENTION_PARAMETERS,
    *KERNEL_PARAMETERS,
    *ENGINE_PARAMETERS,
    *NETWORK_PARAMETERS,
    *HOST_PARAMETERS,
    "model_error",
)


class Constants(Protocol):
    """Estimates by name: a parameter set, or a plain dictionary."""

    def __getitem__(self, name: str, /) -> float:
        """The estimate of one constant."""
        ...


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One constant: its estimate, the standard deviation of its logarithm, unit and source.

    `status`: prior (no fit), fitted, prior_only (in a fit whose data did not narrow it) or at_bound.
    """

    value: float
    log_sd: float
    unit: str
    source: str
    status: Literal["prior", "fitted", "prior_only", "at_bound"] = "prior"

    @property
    def moved(self) -> bool:
        """Whether data moved the estimate."""
        return self.status in ("fitted", "at_bound")


class Correlation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Correlations of the logarithms of `names` [n, n]; names that are not here are independent."""

    names: tuple[str, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()


class ErrorLevel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Size that 90 % of |log(predicted / measured)| of rows not fitted stay below, by metric, and their number.

    `step` and `launch`: of single steps and of the host's part in them; 0 where none was measured.
    """

    rows: int
    ttft: float
    token: float
    throughput: float
    step: float = 0.0
    launch: float = 0.0


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


class KernelConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Constants of one kernel family as its own table gave them, and the 90 % quantile of its |log error|."""

    constants: dict[str, float]
    error: float
    rows: int
    source: str


class ParameterSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Named constants for `accelerators` (empty: any of `vendor`) under `engine`.

    `sites`: constants that belong to a machine and not to the accelerator (its host, a slow fabric), by site name.
    `site`: the one whose constants are in place (none in files). `kernels`: by kernel family, what the benchmark
    tables of this accelerator say (the simulator uses `parameters`).
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
    site: str = ""
    kernels: dict[str, KernelConstants] = {}
    correlation: Correlation = Correlation()
    evidence: Evidence = Evidence()

    def __getitem__(self, name: str) -> float:
        """The estimate of one constant."""
        return self.parameters[name].value


class RecordingSet(ParameterSet, frozen=True, kw_only=True):
    """A set that remembers which constants were asked for: those that a prediction depends on."""

    asked: dict[str, None] = msgspec.field(default_factory=dict[str, None])

    def __getitem__(self, name: str) -> float:
        """The estimate of one constant, noted."""
        self.asked[name] = None
        return self.parameters[name].value


def recording(parameters: ParameterSet) -> RecordingSet:
    """The set with a note of what is asked."""
    return RecordingSet(**{name: getattr(parameters, name) for name in ParameterSet.__struct_fields__})


def at_site(parameters: ParameterSet, site: str | None) -> ParameterSet:
    """The set with the constants of one machine. Raises InputError for an unknown site."""
    if not site:
        return parameters
    if site not in parameters.sites:
        raise InputError(
            f"site: {site!r} is no site of parameter set {parameters.name}; {nearest(site, parameters.sites)}"
        )
    return msgspec.structs.replace(
        parameters, parameters={**parameters.parameters, **parameters.sites[site]}, site=site
    )


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
def read_set(name: str) -> ParameterSet:
    """The shipped set called `name`."""
    path = config_root() / "parameters" / f"{name}.yaml"
    return check_parameters(load(path, ParameterSet), str(path))


@cache
def list_parameter_sets() -> dict[str, ParameterSet]:
    """All shipped parameter sets by name."""
    names = [path.stem for path in sorted((config_root() / "parameters").glob("*.yaml"))]
    return {name: read_set(name) for name in names}


def select_parameters(accelerator: Accelerator, engine: str = "vllm", version: str = "") -> ParameterSet:
    """The calibrated set for this accelerator and engine, or the vendor's data-sheet prior when there is none.

    An engine without a set of its own takes vLLM's, but for LLaDA's programs, which are nothing like it: those take
    theirs of the accelerator of the same vendor whose memory is nearest in bandwidth. Constants are shares of the data
    sheet: on an H100 those of the H200 err by -3 to +15 % in graphs, one cached batch by +25 %, vLLM's by 7 to 74 %.
    A set of the asked `version` is preferred, then the one without a version of its own (the reference). Sets of an
    accelerator are called ACCELERATOR-ENGINE or ACCELERATOR-ENGINE-VERSION, so that only these are read.
    """
    exact = [item for item in _sets_of(engine, accelerator.name) if accelerator.name in item.accelerators]
    exact.sort(key=lambda item: (item.engine_version != version, item.engine_version != ""))
    if exact:
        return exact[0]
    if engine == _DIFFUSION_ENGINE and (
        others := [item for item in _sets_of(engine) if item.vendor == accelerator.vendor]
    ):
        return min(others, key=lambda item: _distance(accelerator, get_hardware(item.accelerators[0])))
    return select_parameters(accelerator, "vllm") if engine != "vllm" else read_set(f"prior-{accelerator.vendor}")


_DIFFUSION_ENGINE = "llada"


def _sets_of(engine: str, accelerator: str = "*") -> list[ParameterSet]:
    """Shipped sets of an engine, by name; only files whose name begins with the accelerator's are read."""
    names = [path.stem for path in sorted((config_root() / "parameters").glob(f"{accelerator}-{engine}*.yaml"))]
    return [item for item in map(read_set, names) if item.engine == engine]


def _distance(one: Accelerator, other: Accelerator) -> float:
    return abs(math.log(one.hbm_bandwidth_bytes_per_s / other.hbm_bandwidth_bytes_per_s))


def scaled(parameters: ParameterSet, name: str, factor: float) -> ParameterSet:
    """A copy of the set with one estimate multiplied by `factor`."""
    old = parameters.parameters[name]
    new = msgspec.structs.replace(old, value=old.value * factor)
    return msgspec.structs.replace(parameters, parameters={**parameters.parameters, name: new})
