"""The runs of an experiment, grouped by the server that they share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from hw_validation.experiment.measurement import Measurement, read_measurement, routing_strategy
from hw_validation.experiment.scenario import planned_scenario
from moesim.errors import InputError
from moesim.experiments import Experiment
from moesim.scenarios import Request
from moesim.specs.deployment import Deployment
from moesim.specs.model import Model
from moesim.specs.scenario import Scenario
from moesim.specs.workload import ClosedLoop, Trace

_NO_LOAD_WORDS = frozenset(
    {"hardware", "model", "gpus", "nodes", "tp", "dp", "ep", "pp", "parameters", "engine", "engine_version", "site"}
)
"""Words that say nothing of the load: the server's identity covers them, or they choose the simulator's constants."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One engine as it is started: the words of a request that decide it, and the measurement's own."""

    model: Model
    deployment: Deployment
    hardware: str
    vendor: str
    gpus: int
    nodes: int
    measurement: Measurement

    @property
    def weights(self) -> str:
        """What a record says of the weights."""
        return "dummy" if self.measurement.load_format == "dummy" else "real"

    @property
    def num_layers(self) -> int:
        """Layers that are built: `model` has as many."""
        return self.model.num_layers

    @property
    def name(self) -> str:
        """Model, sizes and mode, for people; `key` of a run adds a digest of everything."""
        size = self.deployment
        name = f"{self.model.name}/tp{size.tensor_parallel_size}dp{size.data_parallel_size}"
        name += f"ep{size.expert_parallel_size}pp{size.pipeline_parallel_size}"
        return f"{name}/{size.frontend}/{'eager' if size.enforce_eager else 'graphs'}"


class PlannedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement: a load on a server. `key` is the same for the same settings, so that runs resume."""

    key: str
    server: Server
    request: Request
    repeat: int

    @property
    def seed(self) -> int:
        """Seed of the prompts: each repeat draws its own."""
        return self.request.seed + self.repeat


class SkippedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the file that cannot be measured, and why."""

    name: str
    reason: str


def list_runs(experiment: Experiment) -> Iterator[PlannedRun | SkippedRun]:
    """All runs of an experiment in the order of the file, with those that cannot be measured.

    Raises:
        InputError: the `measurement` section is wrong.
    """
    measurement = read_measurement(experiment)
    if measurement.engine == "none":
        return
    for request in experiment.requests():
        name = _name(request)
        try:
            scenario = planned_scenario(request, measurement)
            strategy = routing_strategy(measurement, request.routing)
        except InputError as error:
            yield SkippedRun(name=name, reason=str(error))
            continue
        reason = _unmeasurable(scenario, request, measurement)
        if reason:
            yield SkippedRun(name=name, reason=reason)
            continue
        server = make_server(scenario, msgspec.structs.replace(measurement, routing_strategy=strategy))
        for repeat in range(measurement.repeats):
            yield PlannedRun(key=_key(server, request, repeat), server=server, request=request, repeat=repeat)


def make_server(scenario: Scenario, measurement: Measurement) -> Server:
    """The engine that a scenario needs. An offline batch or a diffusion run is an engine of its own."""
    return Server(
        model=scenario.model,
        deployment=_with_length(scenario),
        hardware=scenario.cluster.accelerator.name,
        vendor=scenario.cluster.accelerator.vendor,
        gpus=scenario.cluster.num_accelerators,
        nodes=scenario.cluster.num_nodes,
        measurement=measurement,
    )


def group_by_server(runs: list[PlannedRun]) -> list[tuple[Server, list[PlannedRun]]]:
    """Runs by the server they share, in order of first appearance; each server is then started once."""
    groups: dict[bytes, tuple[Server, list[PlannedRun]]] = {}
    for run in runs:
        identity = msgspec.json.encode(run.server, order="sorted")
        groups.setdefault(identity, (run.server, []))[1].append(run)
    return list(groups.values())


def _with_length(scenario: Scenario) -> Deployment:
    """The deployment with a context limit: the file's, or else the model's own."""
    deployment = scenario.deployment
    limit = deployment.max_model_len or scenario.model.max_position_embeddings
    return msgspec.structs.replace(deployment, max_model_len=limit)


def _unmeasurable(scenario: Scenario, request: Request, measurement: Measurement) -> str:
    """Why a run cannot be set up on hardware; empty when it can."""
    deployment, workload, autoregressive = scenario.deployment, scenario.workload, not scenario.model.is_diffusion
    offline = deployment.frontend == "offline"
    ranks = deployment.tensor_parallel_size * deployment.data_parallel_size
    reasons = {
        f"engine {request.engine}: the runner starts vLLM, or its own loop for masked diffusion": (
            request.engine not in (None, "vllm" if autoregressive else "llada")
        ),
        f"quantization {deployment.quantization}: only a checkpoint can have it; vLLM makes fp8 by itself": (
            deployment.quantization not in ("none", "fp8")
        ),
        "trace: arrivals of a trace are not replayed by the benchmark client": isinstance(workload.arrival, Trace),
        "cached_prefix_len: a warm cache is not set up; use shared_prefix_len": request.cached_prefix_len > 0,
        f"routing {request.routing}: set measurement.routing_strategy, the engine must be told to route so": (
            request.routing != "uniform" and not measurement.routing_strategy
        ),
        f"concurrency: an offline batch holds its {workload.num_prompts} prompts at once; set concurrency to them": (
            offline
            and autoregressive
            and isinstance(workload.arrival, ClosedLoop)
            and workload.arrival.concurrency < workload.num_prompts
        ),
        f"dp: {deployment.data_parallel_size} replicas need a server; offline runs have one engine": (
            offline and autoregressive and deployment.data_parallel_size > 1
        ),
        "measurement.return_routed_experts: experts come back in offline runs only; set frontend: offline": (
            measurement.return_routed_experts and not offline
        ),
        f"ep: {request.ep} is not vLLM's tp x dp = {ranks}; it has no other expert-parallel size": (
            deployment.expert_parallel_size not in (1, ranks)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _name(request: Request) -> str:
    words = msgspec.structs.asdict(request)
    defaults = msgspec.structs.asdict(Request(model="", hardware=""))
    return " ".join(f"{name}={value}" for name, value in words.items() if value != defaults[name])


def _key(server: Server, request: Request, repeat: int) -> str:
    load = {name: value for name, value in msgspec.to_builtins(request).items() if name not in _NO_LOAD_WORDS}
    identity = msgspec.json.encode([msgspec.to_builtins(server), load, repeat], order="sorted")
    digest = hashlib.sha256(identity).hexdigest()[:12]
    arrival = f"c{request.concurrency}" if request.concurrency else f"r{request.request_rate or 0:g}"
    return f"{server.name}/{arrival}/{request.input_len}in{request.output_len}out/{repeat}/{digest}"
