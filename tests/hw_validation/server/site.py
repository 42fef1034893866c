"""A machine for tests: fake `vllm` and `nvidia-smi` on PATH, an experiment file, and the command `moesim-hw`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from hw_validation.command.main import main

FAKE = Path(__file__).with_name("fake_vllm.py")
ROOT = Path(__file__).parents[3]
SMI = """#!/bin/sh
case "$1" in
  *driver_version*) for i in 0 1; do
    echo "$i, NVIDIA H200, 570.1, 143771, 700.00, 1980, 3201, GPU-$i, 0000:0$i"; done ;;
  *utilization*) for i in 0 1; do echo "$i, 97, 40, 120000, 650.5, 1755, 55"; done ;;
esac
"""
INTERRUPTIBLE = """
import signal
from hw_validation.command.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
EXPERIMENT: dict[str, Any] = {
    "name": "tiny",
    "description": "three runs on one server, one on another",
    "base": {
        "model": "olmoe-1b-7b",
        "hardware": "h200",
        "gpus": 1,
        "input_len": 64,
        "output_len": 8,
        "num_prompts": 8,
    },
    "runs": [{"concurrency": 1}, {"concurrency": 2}, {"concurrency": 4}, {"concurrency": 2, "enforce_eager": True}],
    "measurement": {"load_format": "dummy"},
}


@dataclass
class Site:
    folder: Path
    experiment: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(EXPERIMENT)))
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        binaries = self.folder / "bin"
        binaries.mkdir(parents=True)
        (binaries / "vllm").write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
        (binaries / "nvidia-smi").write_text(SMI)
        for path in binaries.iterdir():
            path.chmod(0o755)

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "FAKE_DIR": str(self.folder), "PYTHONPATH": str(ROOT)} | self.variables

    def arguments(self, *words: str) -> list[str]:
        path = self.folder / "tiny.json"
        path.write_text(json.dumps(self.experiment))
        folders = ["--models-dir", str(self.folder / "models"), "--work-dir", str(self.folder / "work")]
        return ["run", str(path), "--out", str(self.log), *folders, *words]

    def run(self, *words: str) -> tuple[int, str]:
        """Exit code and output of the command, called in this process (its servers are processes all the same)."""
        output = io.StringIO()
        with (
            patch.dict(os.environ, self.environment),
            patch.object(sys, "argv", ["moesim-hw", *self.arguments(*words)]),
            chdir(self.folder),
            redirect_stdout(output),
            redirect_stderr(output),
            pytest.raises(SystemExit) as ended,
        ):
            main()
        return int(ended.value.code or 0), output.getvalue()

    def start(self, *words: str) -> subprocess.Popen[str]:
        """The command as a process, for tests that stop it.

        It can be interrupted even where these tests run in the background of a shell, which ignores SIGINT.
        """
        command = [sys.executable, "-c", INTERRUPTIBLE, *self.arguments(*words)]
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def records(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines]

    def calls(self, what: str) -> list[str]:
        path = self.folder / "calls.txt"
        return [line for line in path.read_text().splitlines() if line.startswith(what)] if path.exists() else []

    def release(self) -> None:
        """Let a held benchmark end."""
        (self.folder / "release").touch()

    def pids(self) -> list[int]:
        path = self.folder / "pids.txt"
        return [int(word) for word in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Whether the condition became true in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
