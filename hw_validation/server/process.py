"""A server's life: started in its own process group, waited for, and stopped whatever happens."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from moesim.errors import InputError

_POLL_S = 0.1
_TAIL_LINES = 5
_STOP_S = 20.0


class ServerStartError(InputError):
    """A server that did not become ready; the message ends with the last lines of its log."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers at `base_url`; `start_s` is the time it took to become ready."""

    base_url: str
    start_s: float
    log: Path


@dataclass(frozen=True, slots=True)
class LaunchedServer:
    """A server process that may not answer yet; `begin_s` is its start by `time.perf_counter`."""

    base_url: str
    begin_s: float
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(stack: ExitStack, command: list[str], variables: dict[str, str], port: int, log: Path) -> LaunchedServer:
    """Start a server that will listen at `port`; it is stopped when `stack` closes, by whatever way.

    Raises:
        ServerStartError: another server answers at the port.
    """
    base_url = f"http://127.0.0.1:{port}"
    if answers(base_url):
        raise ServerStartError(f"port {port}: another server answers there; stop it or choose another port")
    begin_s = time.perf_counter()
    process = stack.enter_context(supervised(command, variables, log))
    return LaunchedServer(base_url=base_url, begin_s=begin_s, process=process, log=log)


@contextmanager
def supervised(
    command: list[str], variables: dict[str, str], log: Path
) -> Generator[subprocess.Popen[bytes], None, None]:
    """Run `command` under the supervisor, its output in `log`; the group is stopped when the block is left."""
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "hw_validation.server.supervise", "--", *installed(command)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=output, stderr=output, env=os.environ | variables, cwd=Path.cwd()
        )
    try:
        yield process
    finally:
        _stop(process)


def installed(command: list[str]) -> list[str]:
    """The command; `vllm` as a module of this Python where it is importable but not on PATH."""
    if command[0] != "vllm" or shutil.which("vllm") or find_spec("vllm") is None:
        return command
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", *command[1:]]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Close the supervisor's input, which stops the group; insist when it does not end."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(_STOP_S)


def wait_until_ready(server: LaunchedServer, timeout_s: float) -> RunningServer:
    """Return when /health answers. Raises ServerStartError when the process ended or `timeout_s` passed."""
    while not answers(server.base_url):
        code = server.process.poll()
        if code is not None:
            raise ServerStartError(f"the server ended with exit code {code} before it was ready: {tail(server.log)}")
        if time.perf_counter() - server.begin_s > timeout_s:
            raise ServerStartError(f"the server was not ready after {timeout_s:.0f} s: {tail(server.log)}")
        time.sleep(_POLL_S)
    return RunningServer(base_url=server.base_url, start_s=time.perf_counter() - server.begin_s, log=server.log)


def answers(base_url: str) -> bool:
    """Whether a server answers /health."""
    try:
        with urlopen(f"{base_url}/health", timeout=5):
            return True
    except (URLError, OSError):
        return False


def tail(log: Path) -> str:
    """The last lines of a log, in one line."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"no log at {log}"
    return " | ".join(line.strip() for line in lines[-_TAIL_LINES:] if line.strip()) or f"{log} is empty"
