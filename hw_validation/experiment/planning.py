"""The plan of an experiment: servers, their commands, their runs and what they cost."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from hw_validation.experiment.cost import CostRates, ServerCost, server_cost
from hw_validation.experiment.measurement import read_measurement
from hw_validation.experiment.paths import model_folder
from hw_validation.experiment.runs import PlannedRun, Server, SkippedRun, group_by_server, list_runs
from hw_validation.records import read_records
from hw_validation.server.bench import bench_arguments, bench_command
from hw_validation.server.diffusion import diffusion_command
from hw_validation.server.flags import replica_gpus, serve_command
from hw_validation.server.variables import server_variables
from moesim.experiments import Experiment

FIRST_PORT = 8000


class PlannedServer(msgspec.Struct, frozen=True, kw_only=True):
    """One server (or engine process) of a plan with its runs."""

    name: str
    hardware: str
    gpus: int
    keys: tuple[str, ...]
    commands: tuple[str, ...]
    cost: ServerCost | None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an experiment would do. Costs are None where they were not predicted."""

    name: str
    description: str
    feeds: str
    servers: tuple[PlannedServer, ...]
    skipped: tuple[SkippedRun, ...]
    done: int
    commands: tuple[str, ...]

    @property
    def num_runs(self) -> int:
        """Runs still to be measured."""
        return sum(len(server.keys) for server in self.servers)

    @property
    def gpu_minutes(self) -> float | None:
        """Predicted GPU time of all runs."""
        return self._total("gpu_minutes")

    @property
    def wall_minutes(self) -> float | None:
        """Predicted time from the first start to the last stop."""
        seconds = self._total("wall_s")
        return None if seconds is None else seconds / 60

    def _total(self, name: str) -> float | None:
        costs = [server.cost for server in self.servers]
        return None if None in costs else sum(getattr(cost, name) for cost in costs)

    def rows(self) -> list[dict[str, Any]]:
        """One row a server."""
        return [
            {
                "server": server.name,
                "hardware": server.hardware,
                "gpus": server.gpus,
                "runs": len(server.keys),
                "start_s": server.cost.start_s if server.cost else None,
                "minutes": server.cost.wall_s / 60 if server.cost else None,
                "gpu_minutes": server.cost.gpu_minutes if server.cost else None,
            }
            for server in self.servers
        ]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        totals = {"num_runs": self.num_runs, "gpu_minutes": self.gpu_minutes, "wall_minutes": self.wall_minutes}
        return {**msgspec.to_builtins(self), **totals}


def make_plan(
    experiment: Experiment,
    models_dir: Path,
    log: Path | None = None,
    rates: CostRates | None = None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
    hardware: str = "",
) -> Plan:
    """Plan an experiment, or its runs for one accelerator; runs that `log` holds are done.

    Without `rates` no cost is predicted.

    Raises:
        InputError: a wrong experiment file or log.
    """
    listed = list(list_runs(experiment))
    skipped = tuple(item for item in listed if isinstance(item, SkippedRun))
    runs = [item for item in listed if isinstance(item, PlannedRun) and hardware in ("", item.server.hardware)]
    done = {record.key for record in read_records(log)} if log is not None and log.exists() else set[str]()
    pending = [run for run in runs if run.key not in done]
    count = iter(range(len(pending)))
    servers = tuple(
        PlannedServer(
            name=server.name,
            hardware=server.hardware,
            gpus=server.gpus,
            keys=tuple(run.key for run in members),
            commands=tuple(server_commands(server, members, models_dir)),
            cost=server_cost(server, members, rates, lambda key: progress(next(count, 0), len(pending), key))
            if rates
            else None,
        )
        for server, members in group_by_server(pending)
    )
    return Plan(
        name=experiment.name,
        description=experiment.description,
        feeds=experiment.feeds,
        servers=servers,
        skipped=skipped,
        done=len(runs) - len(pending),
        commands=read_measurement(experiment).commands,
    )


def server_commands(server: Server, runs: list[PlannedRun], models_dir: Path) -> list[str]:
    """The shell lines of a server and its runs, as the runner would execute them (it chooses free ports)."""
    folder = model_folder(server, models_dir)
    if server.model.is_diffusion:
        return [shell_line(diffusion_command(run, models_dir, Path("llada.json")), {}) for run in runs]
    if server.deployment.frontend == "offline":
        return [shell_line(["python", "-m", "hw_validation.server.offline", "offline.json"], server_variables(server))]
    lines: list[str] = []
    replicas, size = server.deployment.num_engines, replica_gpus(server)
    for node in range(server.nodes):
        for replica in range(replicas):
            devices = range(replica * size, (replica + 1) * size) if replicas > 1 else None
            command = serve_command(server, folder, FIRST_PORT + replica, node, "NODE_0")
            lines.append(shell_line(command, server_variables(server, devices)))
    for run in runs:
        for replica in range(replicas):
            base_url = f"http://127.0.0.1:{FIRST_PORT + replica}"
            arguments = bench_arguments(run, folder, base_url, replicas, replica)
            lines.append(shell_line(bench_command(arguments, Path("results/result.json")), {}))
    return lines


def shell_line(command: list[str], variables: dict[str, str]) -> str:
    """A command with its variables, quoted for a shell."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), shlex.join(command)])
