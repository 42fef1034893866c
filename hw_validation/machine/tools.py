"""Command-line tools of the machine: found, run, and named when absent."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

PURPOSES = {
    "nvidia-smi": "NVIDIA GPUs, clocks and links",
    "amd-smi": "AMD GPUs, clocks and links",
    "rocm-smi": "AMD GPUs before amd-smi",
    "vllm": "servers and the benchmark client",
    "torchrun": "collectives and distributed LLaDA",
    "rocprofv3": "AMD kernel traces and counters",
    "nsys": "NVIDIA timelines",
    "ncu": "NVIDIA counters",
    "ibv_devinfo": "InfiniBand and RoCE cards",
    "numactl": "binding to the GPU's NUMA node",
}


def run_tool(command: list[str], timeout_s: float = 30.0) -> str:
    """The tool's output; empty when it is absent or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout


def run_json(command: list[str], timeout_s: float = 30.0) -> Any:
    """The tool's JSON output (warnings around it are passed over); None without one."""
    text = run_tool(command, timeout_s)
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    ends = max(text.rfind("}"), text.rfind("]"))
    if not starts:
        return None
    try:
        return json.loads(text[min(starts) : ends + 1])
    except json.JSONDecodeError:
        return None


def find_tools() -> dict[str, str | None]:
    """Path of each tool in PURPOSES, None where it is absent."""
    return {name: shutil.which(name) for name in PURPOSES}


def describe_missing(found: dict[str, str | None]) -> list[str]:
    """One line for each absent tool, with what it would have been used for."""
    return [f"{name}: not found ({PURPOSES[name]})" for name, path in found.items() if path is None]
