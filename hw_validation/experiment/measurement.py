"""The `measurement` section of an experiment file: what a run on hardware needs beyond the simulator's words."""

from __future__ import annotations

from typing import Literal

import msgspec

from hw_validation.server.routing import strategy_names
from moesim.errors import InputError, nearest
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
    that `hw_validation.server.routing` registers (zipf_0.8, ...); from_routing takes the one that a run's own
    `routing` names (uniform, zipf:0.8).
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


FROM_ROUTING = "from_routing"


def routing_strategy(measurement: Measurement, routing: str) -> str:
    """The routing simulation of a run; empty for the model's own routing. Raises InputError for one vLLM lacks."""
    if measurement.routing_strategy != FROM_ROUTING:
        return measurement.routing_strategy
    name = "uniform_random" if routing == "uniform" else routing.replace(":", "_")
    if name not in strategy_names():
        raise InputError(f"routing {routing}: cannot be forced in vLLM; {nearest(name, strategy_names())}")
    return name


def read_measurement(experiment: Experiment) -> Measurement:
    """The checked `measurement` section. Raises InputError naming file and field."""
    where = f"{experiment.source or experiment.name}: measurement"
    measurement = convert(experiment.measurement, Measurement, where)
    if measurement.repeats < 1:
        raise InputError(f"{where}: repeats is {measurement.repeats}, must be at least 1")
    known = ("", FROM_ROUTING, *strategy_names())
    if measurement.routing_strategy not in known:
        raise InputError(
            f"{where}: routing_strategy {measurement.routing_strategy!r} is unknown; "
            f"{nearest(measurement.routing_strategy, known[1:])}"
        )
    if measurement.num_layers is not None and measurement.load_format != "dummy":
        raise InputError(f"{where}: num_layers {measurement.num_layers} needs load_format: dummy")
    return measurement
