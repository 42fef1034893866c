"""What a run leaves behind: one JSON document of self-contained records, rewritten after every run."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hw_validation.environment import machine_start
from hw_validation.llada.config import Architecture, InputError
from hw_validation.llada.distributed import Parallel
from hw_validation.llada.floor import Ceilings, Floor, count_parameters
from hw_validation.llada.loads import LoadSummary
from hw_validation.llada.settings import RunSettings
from hw_validation.llada.timing import Timings
from hw_validation.step_kernels import KernelTable

SCHEMA = "moesim.llada/1"


@dataclass(frozen=True, slots=True)
class Repeat:
    """One timed generation of a run: its times, forwards, and a digest of the text [batch, generation_len]."""

    timings: Timings
    forwards: int
    tokens_sha256: str

    def as_dict(self) -> dict[str, Any]:
        """The repeat as JSON values; times in milliseconds."""
        times = self.timings
        return {
            "total_ms": times.total_ms,
            "forward_ms": sum(times.forward_ms),
            "sampling_ms": sum(times.sampling_ms),
            "forwards": self.forwards,
            "forward_step_ms_median": median(times.forward_ms),
            "forward_step_ms_max": max(times.forward_ms),
            "sampling_step_ms_median": median(times.sampling_ms),
            "tokens_sha256": self.tokens_sha256,
        }


def digest(tokens: Tensor) -> str:
    """sha256 of the text's token ids [batch, generation_len], to tell whether two runs wrote the same."""
    return hashlib.sha256(tokens.to(torch.int64).cpu().numpy().tobytes()).hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and device of this process."""
    values: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "machine_start": machine_start(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        values["device"] = properties.name
        values["device_memory_bytes"] = properties.total_memory
        values["multiprocessors"] = properties.multi_processor_count
    return values


def measured(settings: RunSettings, repeats: list[Repeat], replicas: int) -> dict[str, float]:
    """Medians over repeats; a prompt's times are those of its batch, in milliseconds."""
    total = median(repeat.timings.total_ms for repeat in repeats)
    forward = median(sum(repeat.timings.forward_ms) for repeat in repeats)
    sampling = median(sum(repeat.timings.sampling_ms) for repeat in repeats)
    steps = [time for repeat in repeats for time in repeat.timings.forward_ms]
    draws = [time for repeat in repeats for time in repeat.timings.sampling_ms]
    return {
        "output_tok_per_s": replicas * settings.batch * settings.generation_len / total * 1e3,
        "prompt_mean_ms": total,
        "forward_mean_ms": forward,
        "sampling_mean_ms": sampling,
        "forwards": median(repeat.forwards for repeat in repeats),
        "forward_step_ms": median(steps),
        "sampling_step_ms": median(draws),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything known about one finished run."""

    architecture: Architecture
    full_layers: int
    settings: RunSettings
    parallel: Parallel
    dtype: str
    weights: str
    seed: int
    operators: str
    tiles: dict[str, Any]
    repeats: list[Repeat]
    floor: Floor
    ceilings: Ceilings
    loads: LoadSummary | None
    environment: dict[str, Any]
    peak_memory_bytes: int
    kernels: KernelTable | None = None

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values. `floor_share` is the full forward's floor over the median forward."""
        values = measured(self.settings, self.repeats, self.parallel.replicas)
        floor_ms = self.floor.milliseconds(self.ceilings)
        return {
            "model": self.architecture.name,
            "architecture": asdict(self.architecture),
            "layers_reduced_from": self.full_layers if self.full_layers > self.architecture.num_layers else None,
            "parameters": count_parameters(self.architecture),
            "weights": self.weights,
            "dtype": self.dtype,
            "seed": self.seed,
            "settings": self.settings.as_dict(),
            "parallel": {"ranks": self.parallel.world, "tp": self.parallel.tp, "ep": self.parallel.ep},
            "operators": self.operators,
            "tiles": self.tiles,
            "environment": self.environment,
            "peak_memory_bytes": self.peak_memory_bytes,
            "measured": values,
            "repeats": [repeat.as_dict() for repeat in self.repeats],
            "floor": {**asdict(self.floor), **asdict(self.ceilings), "milliseconds": floor_ms},
            "floor_share": floor_ms / values["forward_step_ms"],
            "expert_loads": asdict(self.loads) if self.loads else None,
            "kernels": self.kernels.values | {"rows": self.kernels.rows} if self.kernels else None,
        }


def describe(run: Run) -> str:
    """The run in one line for a person."""
    settings, values = run.settings, measured(run.settings, run.repeats, run.parallel.replicas)
    execution = "graph" if settings.graphs else "eager"
    share = run.floor.milliseconds(run.ceilings) / values["forward_step_ms"]
    return (
        f"{run.architecture.name} batch {settings.batch} gen {settings.generation_len} steps {settings.steps} "
        f"cache {settings.cache} {run.operators} {execution}: {values['output_tok_per_s']:.1f} tok/s, forward "
        f"{values['forward_step_ms']:.3f} ms ({share:.0%} of floor), sampling {values['sampling_step_ms']:.3f} ms"
    )


def check_target(path: Path) -> None:
    """Refuse a JSON path that cannot be written, before anything is measured."""
    if not path.parent.is_dir():
        raise InputError(f"json: the folder of {path} does not exist")
    if path.is_dir():
        raise InputError(f"json: {path} is a folder")


def write(path: Path, runs: list[Run]) -> None:
    """Write all runs so far; the file is replaced in one step, so that a crash loses nothing."""
    document = {"schema": SCHEMA, "records": [run.as_dict() for run in runs]}
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)


def _triton_version() -> str | None:
    if find_spec("triton") is None:
        return None
    import triton

    return triton.__version__
