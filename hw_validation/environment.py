"""Which GPU, driver, host and software a measurement ran on: read from the machine, never assumed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from hw_validation.records import Environment

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CPU_INFO = Path("/proc/cpuinfo")
_QUERY = "driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,clocks.sm,clocks.mem"


def read_environment() -> Environment:
    """The present machine; GPU fields are "none" and 0 where torch sees no GPU."""
    import torch

    on_gpu = torch.cuda.is_available()
    return Environment(
        machine_start=machine_start(),
        gpu=torch.cuda.get_device_name() if on_gpu else "none",
        gpu_memory_bytes=torch.cuda.get_device_properties(0).total_memory if on_gpu else 0,
        driver=query_gpu().get("driver_version", "unknown"),
        cuda=torch.version.cuda or torch.version.hip or "none",
        torch=str(torch.__version__),
        python=platform.python_version(),
        kernel=platform.release(),
        cpu=_cpu_name(),
        cpu_cores=os.cpu_count() or 0,
    )


def machine_start() -> str:
    """The kernel's boot id, "unknown" where it has none: equal only within one start of a machine."""
    return _first_line(_BOOT_ID) or "unknown"


def query_gpu() -> dict[str, str]:
    """nvidia-smi's answers for the first GPU by its own field names; empty without nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    answers = done.stdout.splitlines()[0].split(",")
    return dict(zip(_QUERY.split(","), (answer.strip() for answer in answers), strict=False))


def measure_python_speed_ns(rounds: int = 5) -> float:
    """Nanoseconds a plain Python loop takes for one addition: how fast the host runs the engine's own code."""
    return median(_time_additions(200_000) for _ in range(rounds))


def probe_host() -> dict[str, float]:
    """How fast the host is right now: µs to launch a small kernel, ns for a Python addition (takes about 3 ms).

    Hosts change speed within minutes (a factor of 1.8 was seen), and steps above the largest graph follow them.
    """
    import torch

    values = {"host_addition_ns": _time_additions(20_000)}
    if torch.cuda.is_available():
        cell = torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(200):
            cell.add_(1.0)
        values["host_launch_us"] = 1e6 * (time.perf_counter() - begin) / 200
        torch.cuda.synchronize()
    return values


def software_versions() -> dict[str, str]:
    """Versions of the packages that decide speed; "absent" where one is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in ("vllm", "torch", "triton", "transformers", "flashinfer-python", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _time_additions(count: int) -> float:
    total = 0
    begin = time.perf_counter_ns()
    for number in range(count):
        total += number
    return (time.perf_counter_ns() - begin) / count


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip().splitlines()[0]
    except (OSError, IndexError):
        return ""


def _cpu_name() -> str:
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or sys.platform
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or sys.platform
