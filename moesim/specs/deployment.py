"""How a model is put on a cluster: parallel sizes and the engine's settings, in the engine's own words."""

from __future__ import annotations

from typing import Literal

import msgspec

from moesim.errors import InputError
from moesim.specs.hardware import Accelerator, Cluster
from moesim.specs.model import GroupedQueryAttention, Model

Frontend = Literal["server", "offline"]
AllToAll = Literal["allgather_reducescatter", "deepep_high_throughput", "deepep_low_latency"]
MoeBackend = Literal["triton", "aiter"]


class Eplb(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Expert load balancing while the engine runs, in vLLM's words and defaults (`--eplb-config`).

    Every `step_interval` steps the experts are placed anew from the loads of the last `window_size` steps; weights
    move beside the steps (`use_async`) or while all ranks wait.
    """

    window_size: int = 1000
    step_interval: int = 3000
    use_async: bool = True


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Parallel sizes and engine settings. Field names follow vLLM's flags.

    The ranks are `tensor_parallel_size * data_parallel_size * pipeline_parallel_size`. With
    `expert_parallel_size` 1 the data-parallel replicas are independent servers; above 1 whole experts are
    spread over `expert_parallel_size` ranks, each sharded over `moe_tensor_parallel_size`, and all
    data-parallel ranks step together. `redundant_experts`: replicas beside the model's own experts, over all ranks.
    `moe_backend`: aiter (AMD) starts a layer's experts with one call; triton with several.
    `placement` [layers][slots]: the expert in each slot, rank-major; empty: by `expert_map`, or by EPLB's global
    policy when there are redundant experts.
    """

    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    expert_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    strategy: str = "custom"
    expert_map: Literal["linear", "round_robin"] = "linear"
    redundant_experts: int = 0
    placement: tuple[tuple[int, ...], ...] = ()
    eplb: Eplb | None = None
    all2all_backend: AllToAll = "allgather_reducescatter"
    moe_backend: MoeBackend = "triton"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 0
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    async_scheduling: bool = True
    kv_cache_dtype: str = "auto"
    quantization: str = "none"
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    frontend: Frontend = "server"
    max_cudagraph_capture_size: int = 0

    @property
    def num_ranks(self) -> int:
        """Accelerators in use."""
        return self.tensor_parallel_size * self.data_parallel_size * self.pipeline_parallel_size

    @property
    def moe_tensor_parallel_size(self) -> int:
        """Ranks that share one expert."""
        ranks = self.tensor_parallel_size * (self.data_parallel_size if self.expert_parallel_size > 1 else 1)
        return ranks // self.expert_parallel_size

    @property
    def lockstep_ranks(self) -> int:
        """Data-parallel ranks that must step together (1 when replicas are independent)."""
        return self.data_parallel_size if self.expert_parallel_size > 1 else 1

    @property
    def num_engines(self) -> int:
        """Independent engines (servers) that share the load."""
        return self.data_parallel_size // self.lockstep_ranks


def engine_defaults(accelerator: Accelerator, frontend: Frontend) -> dict[str, int]:
    """vLLM's defaults of max_num_batched_tokens and max_num_seqs for a card and use.

    Source: vLLM `EngineArgs` default batch settings (v0.11 to 0.23): cards of 70 GiB and more other than the
    A100 get 8192 tokens behind a server and 16384 offline with 1024 sequences; others 2048 and 8192 with 256.
    """
    large = accelerator.hbm_bytes_visible >= 70 * 2**30 and not accelerator.name.startswith("a100")
    if large:
        return {"max_num_batched_tokens": 8192 if frontend == "server" else 16384, "max_num_seqs": 1024}
    return {"max_num_batched_tokens": 2048 if frontend == "server" else 8192, "max_num_seqs": 256}


def captured_sizes(max_num_seqs: int, max_cudagraph_capture_size: int = 0) -> tuple[int, ...]:
    """Batch sizes (tokens) for which vLLM captures a graph: 1, 2, 4, then by 8 to 255, then by 16.

    Source: vLLM `VllmConfig` default cudagraph_capture_sizes; where none is asked for (0) the largest is
    min(2 * max_num_seqs, 512).
    """
    limit = max_cudagraph_capture_size or min(2 * max_num_seqs, 512)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, limit + 1, 16)]
    return tuple(size for size in sizes if size <= limit)


def check_deployment(deployment: Deployment, model: Model, cluster: Cluster) -> Deployment:
    """Refuse deployments that the engine would refuse; returns it unchanged.

    Raises:
        InputError: naming the size, its value and the nearest sizes that work.
    """
    for field in ("tensor_parallel_size", "data_parallel_size", "expert_parallel_size", "pipeline_parallel_size"):
        if getattr(deployment, field) < 1:
            raise InputError(f"{field}: {getattr(deployment, field)} is out of range, must be at least 1")
    _check_ranks(deployment, model, cluster)
    _check_heads(deployment, model)
    _check_experts(deployment, model)
    _check_limits(deployment)
    if deployment.moe_backend == "aiter" and cluster.accelerator.vendor != "amd":
        raise InputError(f"moe_backend: aiter is AMD's, {cluster.accelerator.name} is not; take triton")
    return deployment


def _check_ranks(deployment: Deployment, model: Model, cluster: Cluster) -> None:
    if deployment.num_ranks != cluster.num_accelerators:
        sizes = f"tp {deployment.tensor_parallel_size} x dp {deployment.data_parallel_size}"
        sizes += f" x pp {deployment.pipeline_parallel_size} = {deployment.num_ranks}"
        raise InputError(f"gpus: {sizes} ranks must equal the {cluster.num_accelerators} accelerators of the cluster")
    if deployment.pipeline_parallel_size > model.num_layers:
        raise InputError(
            f"pipeline_parallel_size: {deployment.pipeline_parallel_size} exceeds the {model.num_layers} layers "
            f"of {model.name}"
        )


def _check_heads(deployment: Deployment, model: Model) -> None:
    heads, size = model.attention.num_heads, deployment.tensor_parallel_size
    if heads % size:
        raise InputError(
            f"tensor_parallel_size: {size} does not divide the {heads} attention heads of {model.name}; "
            f"sizes that do: {divisors(heads)}"
        )
    if isinstance(model.attention, GroupedQueryAttention):
        kv_heads = model.attention.num_kv_heads
        if max(kv_heads, size) % min(kv_heads, size):
            raise InputError(
                f"tensor_parallel_size: {size} neither divides nor is a multiple of the {kv_heads} key/value heads "
                f"of {model.name}"
            )


def _check_experts(deployment: Deployment, model: Model) -> None:
    size = deployment.expert_parallel_size
    if size == 1:
        if deployment.redundant_experts or deployment.placement or deployment.eplb:
            raise InputError("redundant_experts, placement and eplb need expert parallelism; give ep above 1")
        _check_expert_width(deployment, model)
        return
    if model.moe is None:
        raise InputError(f"expert_parallel_size: {size} asked for, but {model.name} has no routed experts")
    ranks = deployment.tensor_parallel_size * deployment.data_parallel_size
    if ranks % size:
        raise InputError(
            f"expert_parallel_size: {size} does not divide tp x dp = {ranks} ranks; vLLM uses {ranks}; "
            f"sizes that work: {divisors(ranks)}"
        )
    _check_redundant(deployment, model.moe.num_experts)
    if (model.moe.num_experts + deployment.redundant_experts) % size:
        raise InputError(
            f"expert_parallel_size: {size} does not divide the {model.moe.num_experts} experts of {model.name}; "
            f"sizes that do: {divisors(model.moe.num_experts)}"
        )
    _check_expert_width(deployment, model)


def _check_redundant(deployment: Deployment, experts: int) -> None:
    """Redundant experts fill the ranks evenly, at most one replica of an expert on a rank; a map has their slots."""
    extra, ranks = deployment.redundant_experts, deployment.expert_parallel_size
    if extra and not (0 < extra <= experts * (ranks - 1) and (experts + extra) % ranks == 0):
        raise InputError(
            f"redundant_experts: {extra} beside {experts} experts do not fill {ranks} ranks evenly; "
            f"the smallest that does is {-experts % ranks or ranks}, the most {experts * (ranks - 1)}"
        )
    if deployment.eplb is not None and min(deployment.eplb.window_size, deployment.eplb.step_interval) < 1:
        raise InputError("eplb: window_size and step_interval must be at least 1")
    for row in deployment.placement:
        if len(row) != experts + extra:
            raise InputError(f"placement: {len(row)} slots a layer, must be {experts} experts + {extra} redundant ones")


def _check_expert_width(deployment: Deployment, model: Model) -> None:
    shards = deployment.moe_tensor_parallel_size
    if model.moe is not None and model.moe.intermediate_size % shards:
        raise InputError(
            f"tensor_parallel_size: {shards} shards do not divide the expert width "
            f"{model.moe.intermediate_size} of {model.name}"
        )


def _check_limits(deployment: Deployment) -> None:
    for field in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
        if not 1 <= getattr(deployment, field) <= 10_000_000:
            raise InputError(f"{field}: {getattr(deployment, field)} is out of range, must be at least 1")
    if deployment.max_num_batched_tokens < deployment.max_num_seqs:
        raise InputError(
            f"max_num_batched_tokens: {deployment.max_num_batched_tokens} is below max_num_seqs = "
            f"{deployment.max_num_seqs}; every running sequence needs a token of the budget"
        )
    if not 0.05 <= deployment.gpu_memory_utilization <= 1:
        raise InputError(
            f"gpu_memory_utilization: {deployment.gpu_memory_utilization} is out of range, must be 0.05 to 1"
        )


def divisors(number: int) -> str:
    """The divisors of `number` as text, ascending."""
    return ", ".join(str(size) for size in range(1, number + 1) if number % size == 0)
