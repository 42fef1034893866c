"""Environment variables of the server process: what the plan forces, and what AMD cards need to run fast kernels."""

from __future__ import annotations

from hw_validation.experiment.runs import Server

AMD_VARIABLES = {
    "HIP_FORCE_DEV_KERNARG": "1",
    "SAFETENSORS_FAST_GPU": "1",
    "TORCH_BLAS_PREFER_HIPBLASLT": "1",
    "NCCL_MIN_NCHANNELS": "112",
    "VLLM_ROCM_USE_AITER": "1",
    "VLLM_ROCM_USE_AITER_LINEAR": "1",
    "VLLM_ROCM_USE_AITER_MOE": "1",
    "VLLM_ROCM_USE_AITER_RMSNORM": "1",
    "VLLM_ROCM_USE_AITER_MHA": "1",
    "VLLM_ROCM_USE_AITER_MLA": "1",
    "VLLM_USE_TRITON_FLASH_ATTN": "0",
}
"""What AMD's guide to vLLM on Instinct cards sets (ROCm 7.2 documentation, "vLLM V1 performance optimization"):
kernel arguments in device memory, matrix products through hipBLASLt, more RCCL channels, and AITER's kernels for
linear layers, experts, norms and attention. The last one chooses Composable Kernel flash attention before vLLM 0.11;
later versions take it with AITER's attention and do not read the variable."""

SHARED_VARIABLES = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_RANDOMIZE_DP_DUMMY_INPUTS": "1",
}
"""Development mode opens /server_info and /reset_prefix_cache, without which a server cannot be probed. Idle
data-parallel ranks run random tokens instead of one repeated token, which would all go to the same experts."""


def server_variables(server: Server, devices: range | None = None) -> dict[str, str]:
    """Variables to add to the server's environment; `devices` limits it to these GPUs.

    What the experiment file sets wins over what is set here.
    """
    variables = dict(SHARED_VARIABLES)
    if server.vendor == "amd":
        variables |= AMD_VARIABLES
    if server.measurement.routing_strategy:
        variables["VLLM_MOE_ROUTING_SIMULATION_STRATEGY"] = server.measurement.routing_strategy
    if devices is not None:
        name = "HIP_VISIBLE_DEVICES" if server.vendor == "amd" else "CUDA_VISIBLE_DEVICES"
        variables[name] = ",".join(str(device) for device in devices)
    return variables | server.measurement.environment
