"""The report of `moesim-hw env`: everything about the machine that decides how fast it is, and what is missing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import msgspec

from hw_validation.environment import measure_python_speed_ns, software_versions
from hw_validation.machine import amd, nvidia
from hw_validation.machine.tools import describe_missing, find_tools, run_tool

SCHEMA = "moesim.environment/1"
_ROCM_VERSION = Path("/opt/rocm/.info/version")
_VARIABLES = ("VLLM_", "NCCL_", "RCCL_", "HIP_", "CUDA_VISIBLE", "ROCR_", "HSA_", "TORCH_")
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def machine_report() -> dict[str, Any]:
    """GPUs, links, software and tools of this machine, as JSON values."""
    found = find_tools()
    gpus = nvidia.list_gpus() + amd.list_gpus()
    return {
        "schema": SCHEMA,
        "host": {
            "cpu": cpu_name(),
            "cpu_cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "python_addition_ns": measure_python_speed_ns(),
        },
        "gpus": [msgspec.to_builtins(gpu) for gpu in gpus],
        "topology": nvidia.topology() or amd.topology(),
        "versions": software_versions() | _system_versions(),
        "network_cards": _network_cards(),
        "variables": _variables(),
        "tools": {name: path for name, path in found.items() if path},
        "missing": describe_missing(found),
    }


def _system_versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    if _ROCM_VERSION.is_file():
        versions["rocm"] = _ROCM_VERSION.read_text(encoding="utf-8").strip()
    nvcc = run_tool(["nvcc", "--version"]).strip().splitlines()
    if nvcc:
        versions["cuda_toolkit"] = nvcc[-1]
    try:
        import torch
    except ImportError:
        return versions
    collectives = getattr(torch.cuda, "nccl", None)
    if torch.cuda.is_available() and collectives is not None:
        versions["nccl"] = ".".join(str(part) for part in collectives.version())
    return versions


def _network_cards() -> list[str]:
    folder = Path("/sys/class/infiniband")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _variables() -> dict[str, str]:
    """Variables that steer GPU software; never one that could hold a secret."""
    kept = (name for name in sorted(os.environ) if name.startswith(_VARIABLES))
    return {name: os.environ[name] for name in kept if not any(word in name for word in _SECRET)}


def cpu_name() -> str:
    """The host processor as the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
