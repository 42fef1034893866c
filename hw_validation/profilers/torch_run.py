"""Runs a Python command under torch.profiler and writes a trace (kineto JSON, gzip).

python -m hw_validation.profilers.torch_run --out trace.json.gz -- python -m hw_validation.vllm_sweep ...

The command runs in this process, so that its GPU work is seen: keep vLLM in one process
(VLLM_ENABLE_V1_MULTIPROCESSING=0). Traces grow with the work; profile a few steps, not a campaign.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import NoReturn

from moesim.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run and trace; the exit code is the command's."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        target, command = _parse(words)
        return trace(command, target)
    except InputError as error:
        print(f"torch_run: {error}", file=sys.stderr)
        return 2


def trace(command: list[str], target: Path) -> int:
    """Run a Python command in this process under the profiler; its exit code."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        code = run_python(command)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(target))
    return code


def run_python(command: list[str]) -> int:
    """Run "python FILE ARGUMENTS" or "python -m MODULE ARGUMENTS" in this process; its exit code.

    os._exit, with which some programs end, is an ordinary end here: the trace must still be written.
    """
    words = command[1:] if Path(command[0]).name.startswith("python") else command
    module = words[0] == "-m"
    saved, sys.argv = sys.argv, words[1:] if module else words
    hard_exit, os._exit = os._exit, _exit
    try:
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os._exit, sys.argv = hard_exit, saved
    return 0


def _exit(code: int) -> NoReturn:
    raise SystemExit(code)


def _parse(words: list[str]) -> tuple[Path, list[str]]:
    if len(words) < 4 or words[0] != "--out" or words[2] != "--":
        raise InputError("usage: --out FILE.json.gz -- python SCRIPT_OR_-m_MODULE ARGUMENTS")
    command = words[3:]
    python = Path(command[0]).name.startswith("python")
    body = command[1:] if python else command
    if not body or (body[0] == "-m" and len(body) < 2) or not (body[0] == "-m" or body[0].endswith(".py")):
        raise InputError(f"{' '.join(command)!r} is no Python script or module; torch.profiler traces Python commands")
    return Path(words[1]), command


if __name__ == "__main__":
    sys.exit(main())
