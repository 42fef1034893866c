"""The command line of `vllm serve` for a planned server. Flag names as in vLLM 0.11 to 0.23."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hw_validation.experiment.runs import Server
from moesim.errors import InputError
from moesim.specs.deployment import Deployment

RPC_PORT = 13345
EXTENSION = "hw_validation.serving_worker.WorkerExtension"
"""Lets the runner make random weights route as trained ones do (`hw_validation.dummy_weights`)."""
DEFAULT_CAPTURE = Deployment().max_cudagraph_capture_size


def serve_command(server: Server, folder: Path, port: int, node: int = 0, address: str = "127.0.0.1") -> list[str]:
    """The command that starts the engine on `node`. Nodes above 0 hold data-parallel ranks and answer no requests.

    `address` is the first node's, where ranks meet; it is used with more than one node only.

    Raises:
        InputError: a replica that is larger than a node.
    """
    command = ["vllm", "serve", str(folder), "--served-model-name", server.model.huggingface_id]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += [*_parallel(server), *_nodes(server, node, address), *_engine(server), *_experts(server)]
    return [*command, *server.measurement.serve_flags]


def replica_gpus(server: Server) -> int:
    """GPUs of one independent engine: all of them, unless replicas share nothing."""
    return server.gpus // server.deployment.num_engines


def _parallel(server: Server) -> list[str]:
    size = server.deployment
    flags = ["--tensor-parallel-size", str(size.tensor_parallel_size)]
    if size.pipeline_parallel_size > 1:
        flags += ["--pipeline-parallel-size", str(size.pipeline_parallel_size)]
    if size.lockstep_ranks > 1:
        flags += ["--data-parallel-size", str(size.lockstep_ranks)]
    return flags


def _nodes(server: Server, node: int, address: str) -> list[str]:
    if server.nodes == 1 or server.deployment.num_engines > 1:
        return []
    size, per_node = server.deployment, server.gpus // server.nodes
    local, rest = divmod(per_node, size.tensor_parallel_size * size.pipeline_parallel_size)
    if rest or not local:
        raise InputError(
            f"tp {size.tensor_parallel_size} x pp {size.pipeline_parallel_size} does not fit the {per_node} GPUs of a "
            f"node; the runner spreads data-parallel ranks over nodes, not one rank over two nodes"
        )
    flags = ["--data-parallel-size-local", str(local), "--data-parallel-address", address]
    flags += ["--data-parallel-rpc-port", str(RPC_PORT)]
    return flags if node == 0 else [*flags, "--headless", "--data-parallel-start-rank", str(local * node)]


def _engine(server: Server) -> list[str]:
    deployment, measurement = server.deployment, server.measurement
    flags = ["--max-num-seqs", str(deployment.max_num_seqs)]
    flags += ["--max-num-batched-tokens", str(deployment.max_num_batched_tokens)]
    flags += ["--max-model-len", str(deployment.max_model_len)]
    flags += ["--gpu-memory-utilization", f"{deployment.gpu_memory_utilization:g}"]
    flags += ["--kv-cache-dtype", deployment.kv_cache_dtype]
    if deployment.quantization != "none":
        flags += ["--quantization", deployment.quantization]
    flags.append(_switch("enable-prefix-caching", deployment.enable_prefix_caching))
    flags.append(_switch("enable-chunked-prefill", deployment.enable_chunked_prefill))
    flags.append(_switch("async-scheduling", deployment.async_scheduling))
    if deployment.enforce_eager:
        flags.append("--enforce-eager")
    if deployment.max_cudagraph_capture_size != DEFAULT_CAPTURE:
        flags += ["--max-cudagraph-capture-size", str(deployment.max_cudagraph_capture_size)]
    if measurement.load_format == "dummy":
        flags += ["--load-format", "dummy", "--worker-extension-cls", EXTENSION]
    if measurement.attention_backend:
        flags += ["--attention-backend", measurement.attention_backend]
    return flags


def _experts(server: Server) -> list[str]:
    deployment, measurement = server.deployment, server.measurement
    flags: list[str] = []
    if deployment.expert_parallel_size > 1:
        flags += ["--enable-expert-parallel", "--expert-placement-strategy", deployment.expert_map]
        if deployment.data_parallel_size > 1:
            flags += ["--all2all-backend", deployment.all2all_backend]
    if measurement.eplb is not None:
        if deployment.expert_parallel_size == 1:
            raise InputError(f"measurement.eplb: {server.name} spreads no experts; set ep, or leave eplb out")
        flags += ["--enable-eplb", "--eplb-config", msgspec.json.encode(measurement.eplb).decode()]
    if measurement.return_routed_experts:
        flags.append("--enable-return-routed-experts")
    return flags


def _switch(name: str, on: bool) -> str:
    return f"--{name}" if on else f"--no-{name}"
