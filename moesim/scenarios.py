"""From a user's words to a scenario: names are looked up, sizes completed, the engine's defaults filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast, get_args

import msgspec

from moesim.errors import InputError, nearest
from moesim.placement.memory import QUANTIZATIONS
from moesim.placement.words import PlacementWords, place_experts
from moesim.routing.counts_file import drifting, find_routing
from moesim.specs.catalog import get_hardware, get_model
from moesim.specs.deployment import AllToAll, Deployment, Eplb, Frontend, MoeBackend, engine_defaults
from moesim.specs.hardware import Accelerator, make_cluster
from moesim.specs.loading import load
from moesim.specs.model import Model
from moesim.specs.parameters import (
    ParameterSet,
    at_site,
    check_parameters,
    list_parameter_sets,
    select_parameters,
)
from moesim.specs.scenario import DenoisingCode, DiffusionRun, Scenario, check_scenario
from moesim.specs.trace_file import read_trace
from moesim.specs.workload import AllAtOnce, Arrival, ClosedLoop, OpenLoop, Workload


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user may say; every name is also a flag of `moesim simulate` (with dashes) and a key of an
    experiment YAML. None means "the engine's or the model's default".
    """

    model: str
    hardware: str
    gpus: int | None = None
    nodes: int | None = None
    tp: int | None = None
    dp: int | None = None
    ep: int | None = None
    pp: int = 1
    input_len: int = 512
    output_len: int = 128
    range_ratio: float = 0.0
    concurrency: int | None = None
    request_rate: float | None = None
    burstiness: float = 1.0
    trace: str | None = None
    num_prompts: int | None = None
    shared_prefix_len: int = 0
    cached_prefix_len: int = 0
    routing: str = "uniform"
    seed: int = 0
    frontend: Frontend | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    max_cudagraph_capture_size: int | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    async_scheduling: bool = True
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    gpu_memory_utilization: float = 0.9
    all2all_backend: AllToAll = "allgather_reducescatter"
    moe_backend: MoeBackend = "triton"
    expert_map: Literal["linear", "round_robin"] = "linear"
    redundant_experts: int | None = None
    placement: str | None = None
    enable_eplb: bool = False
    eplb_window: int = 1000
    eplb_interval: int = 3000
    eplb_sync: bool = False
    drift_steps: int = 0
    generation_len: int | None = None
    steps: int | None = None
    block_len: int | None = None
    cfg_scale: float = 0.0
    cache: str | None = None
    expert_execution: str = "grouped"
    parameters: str | None = None
    engine: Literal["vllm", "sglang", "llada"] | None = None
    engine_version: str = ""
    site: str | None = None


def make_scenario(request: Request) -> Scenario:
    """The checked scenario a request describes. Raises InputError naming the field at fault."""
    model, accelerator = get_model(request.model), get_hardware(request.hardware)
    frontend: Frontend = request.frontend or ("offline" if model.is_diffusion else "server")
    tp, dp, gpus = _parallel_sizes(request)
    cluster = make_cluster(accelerator, gpus, request.nodes)
    parameters = find_parameters(request, accelerator, model)
    scenario = Scenario(
        model=model,
        cluster=cluster,
        deployment=place_experts(
            _deployment(request, accelerator, frontend, tp, dp, model), model, _placement_words(request)
        ),
        workload=make_workload(request, model),
        parameters=parameters,
        routing=drifting(find_routing(request.routing), request.drift_steps),
        diffusion=_diffusion(request, model, parameters),
        seed=request.seed,
    )
    return check_scenario(scenario)


def _placement_words(request: Request) -> PlacementWords:
    return PlacementWords(
        redundant_experts=request.redundant_experts,
        placement=request.placement,
        enable_eplb=request.enable_eplb,
        eplb=Eplb(
            window_size=request.eplb_window, step_interval=request.eplb_interval, use_async=not request.eplb_sync
        ),
    )


def make_planning_scenario(request: Request) -> Scenario:
    """The scenario of a search: sizes are left to the planner, which starts from one rank per accelerator.

    Parallel sizes of the request are ignored; the load defaults to a closed loop that fills every queue.
    """
    plain = msgspec.structs.replace(request, tp=None, dp=request.gpus or 1, ep=None, pp=1)
    return make_scenario(plain)


def _parallel_sizes(request: Request) -> tuple[int, int, int]:
    """(tp, dp, gpus): sizes that are not given follow from the others; tensor parallelism takes what is left."""
    for name in ("gpus", "tp", "dp", "ep", "pp"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise InputError(f"{name}: {value} is out of range, must be at least 1")
    if request.gpus is None:
        tp, dp = request.tp or 1, request.dp or 1
        return tp, dp, tp * dp * request.pp
    left, rest = divmod(request.gpus, request.pp)
    if rest:
        raise InputError(f"pp: {request.pp} does not divide the {request.gpus} gpus")
    if request.tp is None and request.dp is None:
        return left, 1, request.gpus
    given = request.tp or request.dp or 1
    if left % given:
        name = "tp" if request.tp is not None else "dp"
        raise InputError(f"{name}: {given} does not divide gpus / pp = {left}")
    tp = request.tp if request.tp is not None else left // given
    return tp, request.dp if request.dp is not None else left // tp, request.gpus


def _deployment(
    request: Request, accelerator: Accelerator, frontend: Frontend, tp: int, dp: int, model: Model
) -> Deployment:
    defaults: dict[str, Any] = dict(engine_defaults(accelerator, frontend))
    if model.is_diffusion:
        defaults["max_num_seqs"] = min(defaults["max_num_seqs"], 8)
    settings = {name: getattr(request, name) for name in _ENGINE_WORDS if getattr(request, name) is not None}
    if settings.get("quantization", "none") not in QUANTIZATIONS:
        raise InputError(
            f"quantization: unknown {request.quantization!r}; {nearest(str(request.quantization), QUANTIZATIONS)}"
        )
    merged = {**defaults, **settings}
    if request.max_num_seqs is None:
        merged["max_num_seqs"] = min(merged["max_num_seqs"], merged["max_num_batched_tokens"])
    return Deployment(
        tensor_parallel_size=tp,
        data_parallel_size=dp,
        expert_parallel_size=request.ep or 1,
        pipeline_parallel_size=request.pp,
        frontend=frontend,
        **merged,
    )


_ENGINE_WORDS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "max_cudagraph_capture_size",
    "enforce_eager",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "async_scheduling",
    "kv_cache_dtype",
    "quantization",
    "gpu_memory_utilization",
    "all2all_backend",
    "moe_backend",
    "expert_map",
)


def make_workload(request: Request, model: Model) -> Workload:
    """The load a request describes; closed loop with 16 clients when it names none."""
    arrival = _arrival(request, model)
    outputs = request.output_len if not model.is_diffusion else 1
    default_prompts = 4 * arrival.concurrency if isinstance(arrival, ClosedLoop) else 100
    return Workload(
        arrival=arrival,
        input_tokens=request.input_len,
        output_tokens=outputs,
        num_prompts=request.num_prompts if request.num_prompts is not None else max(default_prompts, 100),
        range_ratio=request.range_ratio,
        shared_prefix_tokens=request.shared_prefix_len,
        cached_prefix_tokens=request.cached_prefix_len if request.enable_prefix_caching else 0,
    )


def _arrival(request: Request, model: Model) -> Arrival:
    named = [name for name in ("concurrency", "request_rate", "trace") if getattr(request, name) is not None]
    if len(named) > 1:
        raise InputError(f"{named[0]} and {named[1]}: give only one of concurrency, request_rate and trace")
    if request.trace is not None:
        return read_trace(Path(request.trace))
    if request.concurrency is not None:
        return ClosedLoop(concurrency=request.concurrency)
    if request.request_rate is not None:
        if request.request_rate == float("inf"):
            return AllAtOnce()
        return OpenLoop(request_rate_per_s=request.request_rate, burstiness=request.burstiness)
    return ClosedLoop(concurrency=1 if model.is_diffusion else 16)


def _diffusion(request: Request, model: Model, parameters: ParameterSet) -> DiffusionRun | None:
    words = {name: getattr(request, name) for name in ("generation_len", "steps", "block_len", "cache")}
    given = {name: value for name, value in words.items() if value is not None}
    defaults = model.diffusion
    if defaults is None:
        if given:
            name = next(iter(given))
            raise InputError(f"{name}: {model.name} is no masked-diffusion model; leave it out")
        return None
    generation = request.generation_len or defaults.generation_len
    block = request.block_len or min(defaults.block_len, generation)
    steps = request.steps
    if steps is None:
        steps = max(round(defaults.steps * generation / defaults.generation_len), 1)
    return DiffusionRun(
        generation_len=generation,
        steps=steps,
        block_len=block,
        cfg_scale=request.cfg_scale,
        cache=request.cache or ("prefix" if defaults.block_causal else "none"),
        expert_execution=request.expert_execution,
        code=cast(DenoisingCode, _denoising_code(request, parameters)),
    )


def _denoising_code(request: Request, parameters: ParameterSet) -> str:
    """The program: as asked, else the one that the constants were fitted on, else this project's engine."""
    fitted_on = parameters.engine_version if parameters.engine_version in get_args(DenoisingCode) else "moesim"
    return request.engine_version or fitted_on


def engine_of(request: Request, model: Model) -> str:
    """The engine whose constants apply: as asked, or vLLM; LLaDA's own PyTorch loop for masked diffusion."""
    return request.engine or ("llada" if model.is_diffusion else "vllm")


def find_parameters(request: Request, accelerator: Accelerator, model: Model) -> ParameterSet:
    """The parameter set that a request names (or its file), or the best one for the accelerator, at its site."""
    name = request.parameters
    if name is None:
        chosen = select_parameters(accelerator, engine_of(request, model), request.engine_version)
        return at_site(chosen, request.site)
    if name.endswith((".yaml", ".yml")):
        return at_site(check_parameters(load(Path(name), ParameterSet), name), request.site)
    known = list_parameter_sets()
    if name not in known:
        raise InputError(f"parameters: unknown set {name!r}; {nearest(name, known)}")
    return at_site(known[name], request.site)
