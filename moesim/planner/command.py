"""The command that starts the recommended server."""

from __future__ import annotations

import json

from moesim.specs.deployment import Deployment, Eplb
from moesim.specs.model import Model


def server_command(model: Model, deployment: Deployment, sequence_tokens: int) -> str:
    """A ready-to-run command: `vllm serve` with the deployment's sizes, or the diffusion engine's.

    Independent replicas (data parallel without expert parallel) are separate servers, one per accelerator
    group, on consecutive ports; a load balancer in front of them is the user's own.
    """
    if model.is_diffusion:
        return _diffusion_command(model, deployment)
    flags = [f"--max-num-seqs {deployment.max_num_seqs}"]
    if deployment.tensor_parallel_size > 1:
        flags.insert(0, f"--tensor-parallel-size {deployment.tensor_parallel_size}")
    if deployment.pipeline_parallel_size > 1:
        flags.append(f"--pipeline-parallel-size {deployment.pipeline_parallel_size}")
    if deployment.expert_parallel_size > 1:
        if deployment.data_parallel_size > 1:
            flags.append(f"--data-parallel-size {deployment.data_parallel_size}")
            flags.append(f"--all2all-backend {deployment.all2all_backend}")
        flags.append("--enable-expert-parallel")
        flags += _balancing_flags(deployment)
    limit = deployment.max_model_len or sequence_tokens
    flags.append(f"--max-model-len {limit}")
    flags.append(f"--max-num-batched-tokens {deployment.max_num_batched_tokens}")
    if deployment.enforce_eager:
        flags.append("--enforce-eager")
    if deployment.kv_cache_dtype != "auto":
        flags.append(f"--kv-cache-dtype {deployment.kv_cache_dtype}")
    if deployment.quantization != "none":
        flags.append(f"--quantization {deployment.quantization}")
    environment = "VLLM_ROCM_USE_AITER=1 " if deployment.moe_backend == "aiter" else ""
    serve = f"{environment}vllm serve {model.huggingface_id} {' '.join(flags)}"
    return _replicated(serve, deployment) if deployment.num_engines > 1 else serve


def _balancing_flags(deployment: Deployment) -> list[str]:
    """vLLM places experts from loads it counts itself: redundant experts and the rhythm can be asked for, no map."""
    if deployment.eplb is None and not deployment.redundant_experts:
        return [] if deployment.expert_map == "linear" else [f"--expert-placement-strategy {deployment.expert_map}"]
    rhythm = deployment.eplb or Eplb()
    config = {
        "window_size": rhythm.window_size,
        "step_interval": rhythm.step_interval,
        "num_redundant_experts": deployment.redundant_experts,
        "use_async": rhythm.use_async,
    }
    return ["--enable-eplb", f"--eplb-config '{json.dumps(config)}'"]


def _replicated(serve: str, deployment: Deployment) -> str:
    """One server per replica in a shell loop; CUDA_VISIBLE_DEVICES is read by ROCm builds as well."""
    size = deployment.tensor_parallel_size * deployment.pipeline_parallel_size
    devices = f"$(seq -s, $((i*{size})) $((i*{size}+{size - 1})))" if size > 1 else "$i"
    return (
        f"for i in $(seq 0 {deployment.num_engines - 1}); do "
        f"CUDA_VISIBLE_DEVICES={devices} {serve} --port $((8000+i)) & done; wait"
    )


def _diffusion_command(model: Model, deployment: Deployment) -> str:
    ranks = deployment.num_ranks
    launcher = f"torchrun --nproc-per-node {ranks} " if ranks > 1 else "python "
    sizes = f"--tp {deployment.tensor_parallel_size} --ep {deployment.expert_parallel_size}"
    return f"{launcher}-m hw_validation.llada --model {model.name} --batch {deployment.max_num_seqs} {sizes}"
