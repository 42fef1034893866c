"""The `measurement` section of an experiment file: what a run on hardware needs beyond the simulator's words."""

from __future__ import annotations

from typing import Literal

import msgspec

from moesim.errors import InputError
from moesim.experiments import Experiment
from moesim.specs.loading import convert

LoadFormat = Literal["auto", "dummy"]


class Eplb(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """vLLM's expert balancing (`--enable-eplb`); field names are those of its `EPLBConfig`."""

    num_redundant_experts: int = 0
    window_size: int = 1000
    step_interval: int = 3000
    use_async: bool = True


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the runs of an experiment are measured.

    `engine`: vllm (a server, or `vllm.LLM` where a run's frontend is offline; LLaDA models use the project's
    own engine), or none (nothing is measured, `commands` say what is done with earlier results).
    `load_format` dummy fills the real architecture with random weights; records say so.
    `num_layers` builds that many of the layers (dummy weights only).
    `routing_strategy` is the name of a vLLM routing simulation: uniform_random, normal_routing, or the ones
    that `hw_validation.server.routing` registers (zipf_0.8, ...).
    `repeats` measures every run that often, each with its own seed of prompts.
    `environment` adds environment variables to the server's; `serve_flags` adds flags to its command.
    `commands` are shell lines to be run by hand, before or after, for what is no run of a server.
    """

    engine: Literal["vllm", "none"] = "vllm"
    load_format: LoadFormat = "auto"
    num_layers: int | None = None
    revision: str = "main"
    repeats: int = 1
    routing_strategy: str = ""
    return_routed_experts: bool = False
    eplb: Eplb | None = None
    attention_backend: str = ""
    environment: dict[str, str] = {}
    serve_flags: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


def read_measurement(experiment: Experiment) -> Measurement:
    """The checked `measurement` section. Raises InputError naming file and field."""
    where = f"{experiment.source or experiment.name}: measurement"
    measurement = convert(experiment.measurement, Measurement, where)
    if measurement.repeats < 1:
        raise InputError(f"{where}: repeats is {measurement.repeats}, must be at least 1")
    if measurement.num_layers is not None and measurement.load_format != "dummy":
        raise InputError(f"{where}: num_layers {measurement.num_layers} needs load_format: dummy")
    return measurement
