"""A `vllm serve` process on dummy weights: started, waited for, asked, stopped with everything it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moesim.errors import InputError

_POLL_S = 0.3
_STOP_S = 10.0


@contextmanager
def running_server(folder: Path, port: int, words: Sequence[str], deadline_s: float, log: Path) -> Iterator[str]:
    """Start `vllm serve FOLDER` and yield its address once it answers; stop its process group on leaving.

    `deadline_s` is a time of `time.perf_counter` by which it must be ready.

    Raises:
        InputError: the server ended or was not ready in time; the message shows the end of its log.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--port", str(port), *words]
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command, env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, address, deadline_s, log)
        yield address
    finally:
        _stop_group(process)


def call_workers(address: str, method: str, *arguments: str) -> list[Any]:
    """What each worker's `method` returned (JSON text is decoded)."""
    body = json.dumps({"method": method, "args": list(arguments)}).encode()
    request = urllib.request.Request(
        f"{address}/collective_rpc", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        results: list[Any] = json.loads(answer.read())["results"]
    return [json.loads(result) if isinstance(result, str) else result for result in results]


def served_models(address: str) -> list[str]:
    """The names that the server answers to."""
    with urllib.request.urlopen(f"{address}/v1/models", timeout=30) as answer:
        return [model["id"] for model in json.loads(answer.read())["data"]]


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, deadline_s: float, log: Path) -> None:
    while time.perf_counter() < deadline_s:
        if process.poll() is not None:
            raise InputError(f"the server ended with exit code {process.returncode}: {_tail(log)}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_S)
    raise InputError(f"the server was not ready in time: {_tail(log)}")


def _tail(log: Path, characters: int = 1500) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-characters:].strip()


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=_STOP_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()
