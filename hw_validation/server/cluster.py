"""The processes of one planned server: replicas beside each other, or ranks over several nodes."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path

from hw_validation.experiment.runs import Server
from hw_validation.server.flags import replica_gpus, serve_command
from hw_validation.server.options import RunOptions
from hw_validation.server.process import (
    LaunchedServer,
    RunningServer,
    free_port,
    launch,
    supervised,
    wait_until_ready,
)
from hw_validation.server.variables import server_variables
from moesim.errors import InputError


def count_answering(server: Server) -> int:
    """How many servers answer requests: one for each replica, the first node's alone over several nodes."""
    return 1 if server.nodes > 1 else server.deployment.num_engines


def start_all(stack: ExitStack, server: Server, folder: Path, options: RunOptions) -> list[RunningServer]:
    """Start every process of `server`; they stop when `stack` closes. One answering server for each replica.

    Raises:
        InputError: too few hosts, or replicas over several nodes.
        ServerStartError: a server did not become ready.
    """
    if server.nodes > 1:
        return [_start_over_nodes(stack, server, folder, options)]
    replicas, size = count_answering(server), replica_gpus(server)
    launched: list[LaunchedServer] = []
    for replica in range(replicas):
        devices = range(replica * size, (replica + 1) * size) if replicas > 1 else None
        port = free_port()
        log = options.work_dir / f"server-{replica}.log"
        command, variables = serve_command(server, folder, port), server_variables(server, devices)
        launched.append(launch(stack, command, variables, port, log))
    return [wait_until_ready(item, options.start_timeout_s) for item in launched]


def _start_over_nodes(stack: ExitStack, server: Server, folder: Path, options: RunOptions) -> RunningServer:
    """The first node answers; the others are started through ssh from the same folder (shared file system)."""
    if server.deployment.num_engines > 1:
        raise InputError(f"{server.name}: independent replicas are measured on one node at a time; set nodes: 1")
    if len(options.hosts) != server.nodes - 1:
        raise InputError(
            f"--hosts: {len(options.hosts)} given, {server.name} needs {server.nodes - 1} beside this machine"
        )
    port, variables = free_port(), server_variables(server)
    for node, host in enumerate(options.hosts, start=1):
        remote = serve_command(server, folder, port, node, options.address)
        command = remote_command(host, remote, variables)
        stack.enter_context(supervised(command, {}, options.work_dir / f"node-{node}.log"))
    command = serve_command(server, folder, port, 0, options.address)
    log = options.work_dir / "server-0.log"
    return wait_until_ready(launch(stack, command, variables, port, log), options.start_timeout_s)


def remote_command(host: str, command: list[str], variables: dict[str, str]) -> list[str]:
    """`command` on `host` with its variables; -tt gives it a terminal, so that it ends when ssh does."""
    words = ["env", *(f"{name}={value}" for name, value in variables.items()), *command]
    inner = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(words)}"
    return ["ssh", "-tt", "-o", "BatchMode=yes", host, inner]
