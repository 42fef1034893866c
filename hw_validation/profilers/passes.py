"""The command lines of the profilers, one or more passes each over the same workload."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import msgspec

Tool = Literal["torch", "rocprofv3", "nsys", "ncu"]
RocprofFormat = Literal["csv", "rocpd"]
EXECUTABLES: dict[str, str] = {"torch": sys.executable, "rocprofv3": "rocprofv3", "nsys": "nsys", "ncu": "ncu"}

NCU_METRICS = (
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed_pipe_tensor.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "gpu__time_duration.sum",
)
"""HBM traffic, how busy memory and compute units were, tensor instructions, occupancy, and the kernel's time."""

ROCPROF_COUNTERS = (
    ("TCC_EA0_RDREQ_sum", "TCC_EA0_RDREQ_32B_sum", "TCC_BUBBLE_sum"),
    ("TCC_EA0_WRREQ_sum", "TCC_EA0_WRREQ_64B_sum", "TCC_HIT_sum", "TCC_MISS_sum"),
    (
        "SQ_INSTS_VALU_MFMA_MOPS_BF16",
        "SQ_INSTS_VALU_MFMA_MOPS_F8",
        "SQ_VALU_MFMA_BUSY_CYCLES",
        "SQ_WAVE_CYCLES",
        "GRBM_GUI_ACTIVE",
    ),
)
"""Counters of one pass each (gfx942 names): a block has few counters, so what does not fit together runs again.
Requests of the L2 (TCC) to memory by size give HBM bytes: 64 B a read request, less for the 32 B ones, more for the
128 B ones that TCC_BUBBLE counts; MFMA counters give matrix operations (512 a count) and busy cycles, wave cycles
the occupancy. MI200 calls the memory side TCC_EA and has no 128 B reads: name its counters with `counters`."""


class ProfileOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where outputs go and how much is taken.

    `counters`: for rocprofv3, those of each pass. `launch_skip`, `launch_count`: kernels for ncu (0: all).
    """

    out: Path
    rocprof_format: RocprofFormat = "csv"
    counters: tuple[tuple[str, ...], ...] = ROCPROF_COUNTERS
    launch_skip: int = 0
    launch_count: int = 0


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """One call: `files` are glob patterns, under the output folder, of what it leaves."""

    name: str
    command: tuple[str, ...]
    files: tuple[str, ...]


def passes(tool: Tool, workload: list[str], options: ProfileOptions) -> list[Pass]:
    """The calls that profile `workload` (a command) with `tool`."""
    builders = {"torch": _torch, "rocprofv3": _rocprofv3, "nsys": _nsys, "ncu": _ncu}
    return builders[tool](workload, options)


def probe_passes(tool: Tool, options: ProfileOptions, folder: Path) -> list[Pass]:
    """The tool's calls over a single kernel: they show whether it works here before the workload is spent."""
    kernel = [sys.executable, "-c", "import torch; torch.ones(64, device='cuda').add_(1).sum().item()"]
    return passes(tool, kernel, msgspec.structs.replace(options, out=folder, launch_skip=0, launch_count=1))


def _torch(workload: list[str], options: ProfileOptions) -> list[Pass]:
    trace = options.out / "torch_trace.json.gz"
    command = [sys.executable, "-m", "hw_validation.profilers.torch_run", "--out", str(trace), "--", *workload]
    return [Pass(name="trace", command=tuple(command), files=("torch_trace*.json.gz",))]


def _nsys(workload: list[str], options: ProfileOptions) -> list[Pass]:
    report = options.out / "nsys"
    profile = ["nsys", "profile", "--trace=cuda,nvtx", "--sample=none", "--cpuctxsw=none"]
    profile += ["--cuda-graph-trace=node", "--force-overwrite=true", "--output", str(report), *workload]
    export = ["nsys", "export", "--type=sqlite", "--force-overwrite=true"]
    export += [f"--output={report}.sqlite", f"{report}.nsys-rep"]
    return [
        Pass(name="profile", command=tuple(profile), files=("nsys.nsys-rep",)),
        Pass(name="export", command=tuple(export), files=("nsys.sqlite",)),
    ]


def _ncu(workload: list[str], options: ProfileOptions) -> list[Pass]:
    command = ["ncu", "--clock-control", "none", "--metrics", ",".join(NCU_METRICS), "--target-processes", "all"]
    command += ["--graph-profiling", "node", "--csv", "--page", "raw", "--log-file", str(options.out / "ncu.csv")]
    if options.launch_skip:
        command += ["--launch-skip", str(options.launch_skip)]
    if options.launch_count:
        command += ["--launch-count", str(options.launch_count)]
    return [Pass(name="counters", command=(*command, *workload), files=("ncu.csv",))]


def _rocprofv3(workload: list[str], options: ProfileOptions) -> list[Pass]:
    kind = "db" if options.rocprof_format == "rocpd" else "csv"

    def call(name: str, what: list[str]) -> Pass:
        command = ["rocprofv3", *what, "--output-format", options.rocprof_format]
        command += ["--output-directory", str(options.out), "--output-file", name, "--", *workload]
        return Pass(name=name, command=tuple(command), files=(f"**/{name}*.{kind}",))

    counters = [call(f"counters{place}", ["--pmc", *group]) for place, group in enumerate(options.counters)]
    return [call("trace", ["--kernel-trace", "--memory-copy-trace"]), *counters]
