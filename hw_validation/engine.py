"""vLLM in this process: started on random weights of a real configuration, traced, and described as it resolved."""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hw_validation.dummy_models import write_model_folder
from hw_validation.dummy_weights import condition_weights, draw_routers, estimate_loads
from hw_validation.environment import read_environment
from hw_validation.forced_routing import ForcedRouting, PackedScores, install
from hw_validation.machine.nvidia import topology
from hw_validation.marks import make_marks
from hw_validation.peers import ALONE, Peers, join_peers
from hw_validation.plan import Limits
from hw_validation.records import Setup
from hw_validation.step_trace import StepRow, StepTracer
from moesim.errors import InputError
from moesim.specs.catalog import get_model
from moesim.specs.model import Model

_SLOW_IMPORTS = ("vllm", "vllm.entrypoints.llm", "vllm.v1.engine.llm_engine", "vllm.v1.worker.gpu_worker")


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to start. None leaves the choice to the engine; the resolved value is recorded either way."""

    model: str
    num_layers: int | None = None
    bf16: bool = False
    enforce_eager: bool = False
    max_model_len: int = 4096
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    attention_backend: str | None = None
    max_captured_tokens: int | None = None
    capture_sizes: tuple[int, ...] = ()
    return_routed_experts: bool = False
    async_scheduling: bool | None = None
    gpu_memory_utilization: float = 0.92
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    disable_custom_all_reduce: bool = False
    eplb_interval: int = 0
    num_redundant_experts: int = 0
    force_routing: bool = False
    pack_scores: bool = False

    @property
    def num_ranks(self) -> int:
        """Processes, one a GPU, that run the deployment together."""
        return self.tensor_parallel_size * self.data_parallel_size


@dataclass
class TracedEngine:
    """A running engine with its step tracer."""

    engine: Any
    tracer: StepTracer
    runner: Any
    setup: Setup
    limits: Limits
    vocab_size: int
    top_k: int
    num_experts: int
    start_s: float
    peers: Peers = ALONE
    expert_ranks: int = 1
    routed: list[Any] = field(default_factory=list)
    forced: ForcedRouting | None = None

    def draw_routers(self, spread: float, falling: bool = False) -> dict[str, float]:
        """Redraw all routers with `spread` and return the load figures that follow."""
        model = self.runner.get_model()
        draw_routers(model, spread, falling=falling)
        return estimate_loads(model, self.top_k, ranks=self.expert_ranks)

    def step(self) -> list[tuple[str, int, bool]]:
        """Run one engine step: (request id, new tokens, finished) for every request that got tokens."""
        outputs = self.engine.step()
        self.routed.extend(
            out.outputs[0].routed_experts for out in outputs if out.outputs[0].routed_experts is not None
        )
        return [(out.request_id, len(out.outputs[0].token_ids), out.finished) for out in outputs]

    def add(self, request_id: str, prompt: list[int], num_tokens: int, temperature: float) -> None:
        """Queue a prompt of token ids that will be answered with exactly `num_tokens` tokens."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        params = SamplingParams(
            temperature=temperature,
            max_tokens=num_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self.engine.add_request(request_id, {"prompt_token_ids": prompt}, params)

    def abort(self, request_ids: list[str]) -> None:
        """Drop requests and let steps that are still in flight come home."""
        self.engine.abort_request(request_ids)
        for _ in range(3):
            self.engine.step()

    def drain(self) -> list[StepRow]:
        """The rows of all steps since the last call."""
        return self.tracer.drain()

    def take_routed(self) -> list[Any]:
        """Experts [tokens, layers, top_k] of the requests finished since the last call, if the engine returns them."""
        taken, self.routed = self.routed, []
        return taken

    @property
    def busy(self) -> bool:
        """Whether any request of this process is unanswered (asking the engine would ask all replicas, each time)."""
        return bool(self.engine.output_processor.has_unfinished_requests())


def prepare_engine(settings: EngineSettings, folder: Path) -> Path:
    """Do what a start can do without a GPU: write the model's folder under `folder`, import vLLM, inspect the model.

    Raises:
        InputError: vLLM is not installed.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    model = get_model(settings.model)
    path = write_model_folder(model, folder / folder_name(settings), settings.num_layers, settings.bf16)
    try:
        from vllm.engine.arg_utils import EngineArgs
    except ImportError as error:
        raise InputError(f"vLLM cannot be imported ({error}); install moesim[hw] on the GPU machine") from None
    for module in _SLOW_IMPORTS:
        importlib.import_module(module)
    EngineArgs(model=str(path), **_engine_words(settings)).create_model_config()
    return path


def folder_name(settings: EngineSettings) -> str:
    """The model folder's name: one for each configuration, so that compiled code found under it is the right one."""
    layers = f"-{settings.num_layers}layers" if settings.num_layers else ""
    return f"{settings.model}{layers}{'-bf16' if settings.bf16 else ''}"


def start_engine(settings: EngineSettings, folder: Path) -> TracedEngine:
    """Write the model's config.json under `folder`, start vLLM on dummy weights, condition them and trace.

    Raises:
        InputError: vLLM is not installed.
    """
    begin = time.perf_counter()
    path = prepare_engine(settings, folder)
    from vllm import LLM

    check_ranks(settings)
    _skip_graph_memory_estimate()
    model = get_model(settings.model)
    num_experts = model.moe.num_experts if model.moe else 0
    forced = ForcedRouting(num_experts) if settings.force_routing else None
    routing = forced or (PackedScores() if settings.pack_scores else None)
    if routing:
        install(routing)
    engine = LLM(model=str(path), **_engine_words(settings)).llm_engine
    runner = engine.model_executor.driver_worker.worker.model_runner
    top_k = model.moe.top_k if model.moe else 0
    expert_ranks = settings.num_ranks if settings.enable_expert_parallel else 1
    flags: dict[str, Any] = condition_weights(runner.get_model()) | estimate_loads(
        runner.get_model(), top_k, ranks=expert_ranks
    )
    config, peers = engine.vllm_config, join_peers(settings.data_parallel_size)
    if routing:
        flags |= {"forced_routing": bool(forced), "router_score_strides": sorted(map(list, routing.strides))}
        _seed_gpu(1 + peers.replica)
    return TracedEngine(
        engine=engine,
        tracer=StepTracer(engine.engine_core.engine_core.scheduler, runner, make_marks()),
        runner=runner,
        setup=_describe(model, settings, _read_flags(config, runner) | _read_parallel(config) | flags),
        limits=_read_limits(config),
        vocab_size=model.vocab_size,
        top_k=top_k,
        num_experts=num_experts,
        start_s=time.perf_counter() - begin,
        peers=peers,
        expert_ranks=expert_ranks,
        forced=forced,
    )


def _seed_gpu(seed: int) -> None:
    """Let replicas draw different numbers, and the ranks of a replica the same."""
    import torch

    torch.cuda.manual_seed(seed)


def check_ranks(settings: EngineSettings) -> None:
    """Refuse sizes for which this process was not started with as many others."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != settings.num_ranks:
        raise InputError(
            f"tensor_parallel_size x data_parallel_size is {settings.num_ranks}, but {world} processes were started "
            f"(python -m hw_validation.ranks {settings.num_ranks} -- ..., or torchrun)"
        )


def _skip_graph_memory_estimate() -> None:
    """Leave out vLLM's trial capture of graphs at start (about 10 s), which only sizes the KV cache (by under 1 %)."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if hasattr(GPUModelRunner, "profile_cudagraph_memory"):
        GPUModelRunner.profile_cudagraph_memory = lambda _: 0


def _engine_words(settings: EngineSettings) -> dict[str, Any]:
    words: dict[str, Any] = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "enable_prefix_caching": False,
        "enforce_eager": settings.enforce_eager,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enable_return_routed_experts": settings.return_routed_experts,
    }
    if settings.num_ranks > 1:
        words |= _parallel_words(settings)
    if settings.async_scheduling is not None:
        words["async_scheduling"] = settings.async_scheduling
    if settings.attention_backend:
        words["attention_config"] = {"backend": settings.attention_backend}
    if settings.capture_sizes:
        words["compilation_config"] = {"cudagraph_capture_sizes": list(settings.capture_sizes)}
    elif settings.max_captured_tokens:
        words["compilation_config"] = {"max_cudagraph_capture_size": settings.max_captured_tokens}
    return words


def _parallel_words(settings: EngineSettings) -> dict[str, Any]:
    """One process a rank, each with an engine of its own, so that every step can be traced where it runs."""
    words: dict[str, Any] = {
        "distributed_executor_backend": "external_launcher",
        "tensor_parallel_size": settings.tensor_parallel_size,
        "data_parallel_size": settings.data_parallel_size,
        "enable_expert_parallel": settings.enable_expert_parallel,
        "disable_custom_all_reduce": settings.disable_custom_all_reduce,
    }
    if settings.eplb_interval:
        words["enable_eplb"] = True
        words["eplb_config"] = {
            "window_size": settings.eplb_interval,
            "step_interval": settings.eplb_interval,
            "num_redundant_experts": settings.num_redundant_experts,
            "use_async": False,
            "communicator": "pynccl",
        }
    return words


def _read_limits(config: Any) -> Limits:
    cache, scheduler = config.cache_config, config.scheduler_config
    return Limits(
        kv_cache_tokens=int(cache.num_gpu_blocks or 0) * int(cache.block_size),
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_model_len=config.model_config.max_model_len,
    )


def _describe(model: Model, settings: EngineSettings, flags: dict[str, Any]) -> Setup:
    import vllm

    return Setup(
        model=model.name,
        num_layers=settings.num_layers or model.num_layers,
        weights="dummy",
        engine="vllm",
        engine_version=vllm.__version__,
        environment=read_environment(),
        flags=flags,
    )


def _read_flags(config: Any, runner: Any) -> dict[str, Any]:
    """The engine's settings as it resolved them, and the environment variables that steer it."""
    compilation, limits = config.compilation_config, _read_limits(config)
    return msgspec.to_builtins(limits) | {
        "enforce_eager": bool(config.model_config.enforce_eager),
        "cudagraph_mode": getattr(compilation.cudagraph_mode, "name", str(compilation.cudagraph_mode)),
        "cudagraph_capture_sizes": list(compilation.cudagraph_capture_sizes or []),
        "compilation_mode": str(compilation.mode),
        "kv_cache_dtype": str(config.cache_config.cache_dtype),
        "kv_block_size": int(config.cache_config.block_size),
        "prefix_caching": bool(config.cache_config.enable_prefix_caching),
        "async_scheduling": bool(config.scheduler_config.async_scheduling),
        "chunked_prefill": bool(config.scheduler_config.enable_chunked_prefill),
        "quantization": str(config.model_config.quantization),
        "dtype": str(config.model_config.dtype),
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        "attention_backend": _attention_backend(runner),
        "moe_backends": _moe_backends(runner),
        "returns_routed_experts": bool(config.model_config.enable_return_routed_experts),
        "frontend": "in-process",
        "environment_variables": {name: os.environ[name] for name in sorted(os.environ) if name.startswith("VLLM_USE")},
    }


def _read_parallel(config: Any) -> dict[str, Any]:
    """How several GPUs share the model, and what links them; nothing on one GPU."""
    parallel = config.parallel_config
    ranks = parallel.tensor_parallel_size * parallel.data_parallel_size
    if ranks == 1:
        return {}
    from vllm.distributed.parallel_state import get_tp_group

    custom = getattr(get_tp_group().device_communicator, "ca_comm", None)
    return {
        "gpus": ranks,
        "data_parallel_size": parallel.data_parallel_size,
        "enable_expert_parallel": bool(parallel.enable_expert_parallel),
        "expert_parallel_size": ranks if parallel.enable_expert_parallel else 1,
        "all2all_backend": str(parallel.all2all_backend),
        "custom_all_reduce": custom is not None and not custom.disabled,
        "enable_eplb": bool(parallel.enable_eplb),
        "eplb_window": int(parallel.eplb_config.window_size),
        "eplb_interval": int(parallel.eplb_config.step_interval),
        "eplb_sync": not parallel.eplb_config.use_async,
        "eplb_communicator": str(parallel.eplb_config.communicator),
        "num_redundant_experts": int(parallel.eplb_config.num_redundant_experts),
        "expert_placement": str(parallel.expert_placement_strategy),
        "nccl_variables": {
            name: os.environ[name] for name in sorted(os.environ) if name.startswith(("NCCL_", "VLLM_ALLREDUCE"))
        },
        "topology": [" ".join(line.split()) for line in topology().splitlines() if line.strip()],
    }


def _moe_backends(runner: Any) -> list[str]:
    """Names of the classes that run routed experts (kernels and their preparation), as far as the modules tell."""
    found: set[str] = set()
    for module in runner.get_model().modules():
        method = getattr(module, "quant_method", None)
        if method is not None and "MoE" in type(method).__name__:
            backend = getattr(method, "unquantized_backend", None) or getattr(method, "fp8_backend", None)
            found.add(f"{type(method).__name__}/{getattr(backend, 'name', backend)}")
    return sorted(found)


def _attention_backend(runner: Any) -> str:
    try:
        return str(runner.attn_groups[0][0].backend.get_name())
    except (AttributeError, IndexError):
        return "unknown"
