"""Who measured: machine, engine and its resolved settings, as a record's `setup`. Read, never assumed."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from hw_validation.environment import machine_start
from hw_validation.experiment.runs import Server
from hw_validation.machine import amd, nvidia
from hw_validation.machine.report import cpu_name
from hw_validation.records import Environment, Setup
from hw_validation.server.probe import Facts


def read_machine() -> Environment:
    """The machine without touching its GPUs: a process that opens one takes memory which the server would miss."""
    gpus = nvidia.list_gpus() or amd.list_gpus()
    torch_version = _version("torch")
    return Environment(
        machine_start=machine_start(),
        gpu=gpus[0].name if gpus else "none",
        gpu_memory_bytes=int(gpus[0].memory_bytes or 0) if gpus else 0,
        driver=gpus[0].driver if gpus else "unknown",
        cuda=torch_version.partition("+")[2] or "unknown",
        torch=torch_version,
        python=platform.python_version(),
        kernel=platform.release(),
        cpu=cpu_name(),
        cpu_cores=os.cpu_count() or 0,
    )


def make_setup(server: Server, machine: Environment, facts: Facts, extra: dict[str, Any]) -> Setup:
    """A record's setup: the probed facts of the engine, and what was asked for beyond them."""
    flags = facts.values | {
        "hardware": server.hardware,
        "gpus": server.gpus,
        "nodes": server.nodes,
        "replicas": server.deployment.num_engines,
        "frontend": server.deployment.frontend,
        "eplb": msgspec.to_builtins(server.measurement.eplb),
        **extra,
    }
    return Setup(
        model=server.model.name,
        num_layers=server.num_layers,
        weights="dummy" if server.measurement.load_format == "dummy" else "real",
        engine="vllm",
        engine_version=facts.version,
        environment=machine,
        flags=flags,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
