"""What an experiment costs in GPU minutes: the simulator's own prediction of every run, plus starts and warm-ups."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from hw_validation.experiment.runs import PlannedRun, Server
from hw_validation.experiment.scenario import planned_scenario
from hw_validation.experiment.warm_up import WARM_UP_TOKENS, warm_up_batches
from moesim.simulation import simulate_scenario
from moesim.specs.model import weight_bytes
from moesim.specs.scenario import Scenario
from moesim.specs.workload import AllAtOnce


class CostRates(msgspec.Struct, frozen=True, kw_only=True):
    """What no simulation knows: how fast this site starts servers.

    `start_s`: import, compilation, graph capture. vLLM 0.23 on an H200 with random weights was ready after 80 to
    130 s over six models, hence 105. `load_bytes_per_s`: reading a checkpoint, per server (a local NVMe disk
    reads 2 to 7 GB/s, network storage less). `client_s`: between two runs of one server.
    """

    start_s: float = 105.0
    load_bytes_per_s: float = 2e9
    client_s: float = 5.0


class RunCost(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted seconds of one run: the measured part, and the warm-up before it."""

    run_s: float
    warm_up_s: float


class ServerCost(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted cost of a server with its runs. `gpu_minutes` counts all its GPUs from start to stop."""

    start_s: float
    runs: tuple[RunCost, ...]
    gpus: int
    client_s: float

    @property
    def wall_s(self) -> float:
        """Seconds from start to stop."""
        return self.start_s + sum(run.run_s + run.warm_up_s + self.client_s for run in self.runs)

    @property
    def gpu_minutes(self) -> float:
        """Minutes of GPU time."""
        return self.gpus * self.wall_s / 60


def server_cost(
    server: Server, runs: list[PlannedRun], rates: CostRates, tick: Callable[[str], None] = lambda _: None
) -> ServerCost:
    """Predict the cost of one server's runs; `tick` is called with each run's key. Repeats are predicted once."""
    known: dict[bytes, RunCost] = {}
    costs: list[RunCost] = []
    warmed: set[int] = set()
    for run in runs:
        tick(run.key)
        identity = msgspec.json.encode(run.request)
        if identity not in known:
            known[identity] = run_cost(run, warmed)
        costs.append(known[identity])
    return ServerCost(
        start_s=start_seconds(server, rates), runs=tuple(costs), gpus=server.gpus, client_s=rates.client_s
    )


def run_cost(run: PlannedRun, warmed: set[int]) -> RunCost:
    """Predict a run and the warm-up waves of batch sizes that `warmed` lacks; the set is extended."""
    scenario = planned_scenario(run.request, run.server.measurement)
    run_s = simulate_scenario(scenario, intervals=False).duration_s
    if scenario.model.is_diffusion:
        return RunCost(run_s=run_s, warm_up_s=run_s)
    sizes = [size for size in warm_up_batches(scenario) if size not in warmed]
    warmed.update(sizes)
    waves = (simulate_scenario(_wave(scenario, size), intervals=False).duration_s for size in sizes)
    return RunCost(run_s=run_s, warm_up_s=sum(waves))


def start_seconds(server: Server, rates: CostRates) -> float:
    """Seconds until a server is ready; random weights are not read."""
    if server.measurement.load_format == "dummy":
        return rates.start_s
    return rates.start_s + weight_bytes(server.model) / rates.load_bytes_per_s


def _wave(scenario: Scenario, batch: int) -> Scenario:
    workload = msgspec.structs.replace(
        scenario.workload, arrival=AllAtOnce(), num_prompts=batch, output_tokens=WARM_UP_TOKENS
    )
    return msgspec.structs.replace(scenario, workload=workload)
