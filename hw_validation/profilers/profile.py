"""Profiles a workload with the tool asked for, or with torch.profiler where that tool's first call fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Literal

import msgspec

from hw_validation.profilers.passes import EXECUTABLES, Pass, ProfileOptions, Tool, passes, probe_passes
from moesim.errors import InputError

MANIFEST = "profile.json"
SCHEMA = "moesim.profile/1"
_PROBE_S = 300.0


class PassResult(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a tool: its command, exit code and the files it left."""

    name: str
    command: tuple[str, ...]
    exit_code: int
    files: tuple[str, ...]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked, which tool was used, why another one, and where the outputs are (beside the manifest)."""

    schema: Literal["moesim.profile/1"] = SCHEMA
    asked: Tool
    used: Tool
    reason: str
    workload: tuple[str, ...]
    passes: tuple[PassResult, ...]


def profile_workload(tool: Tool, workload: list[str], options: ProfileOptions) -> Manifest:
    """Profile a command and write `profile.json`.

    Raises:
        InputError: the tool is missing (it is named), the workload failed under it, or nothing can stand in.
    """
    require(tool)
    options.out.mkdir(parents=True, exist_ok=True)
    used, reason = tool, ""
    if tool != "torch":
        reason = first_call_error(tool, options)
        used = "torch" if reason else tool
    results = [_run(item, options.out) for item in passes(used, workload, options)]
    manifest = Manifest(asked=tool, used=used, reason=reason, workload=tuple(workload), passes=tuple(results))
    target = options.out / MANIFEST
    target.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    _check_results(results, target)
    return manifest


def require(tool: Tool) -> None:
    """Refuse a tool that is not on PATH. Raises InputError naming it."""
    if shutil.which(EXECUTABLES[tool]) is None:
        raise InputError(f"{tool}: {EXECUTABLES[tool]} is not on PATH; install it, or profile with torch")


def first_call_error(tool: Tool, options: ProfileOptions) -> str:
    """Why the tool does not work on this machine, from its calls over a single kernel; empty when it does.

    Counters are often closed to guests of a virtual machine (ncu: ERR_NVGPUCTRPERM); then the call fails, or it
    ends well and leaves no file.
    """
    folder = options.out / "first_call"
    folder.mkdir(parents=True, exist_ok=True)
    for item in probe_passes(tool, options, folder):
        try:
            done = subprocess.run(item.command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
        except subprocess.TimeoutExpired:
            return f"first call of {tool} ({item.name}) did not end within {_PROBE_S:.0f} s"
        text = done.stdout + done.stderr + _logs(folder)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        refused = next((line for line in lines if "ERR_NVGPUCTRPERM" in line), "")
        if done.returncode or refused:
            last = refused or (lines[-1] if lines else "no output")
            return f"first call of {tool} ({item.name}) ended with exit code {done.returncode}: {last}"
        if not found_files(folder, item.files):
            return f"first call of {tool} ({item.name}) left no output"
    return ""


def _logs(folder: Path) -> str:
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.csv"))
    return "".join(texts)


def _run(item: Pass, out: Path) -> PassResult:
    """Run one pass, its output in a log beside the results."""
    with (out / f"{item.name}.log").open("wb") as log:
        done = subprocess.run(item.command, stdout=log, stderr=subprocess.STDOUT, check=False)
    files = found_files(out, item.files)
    return PassResult(name=item.name, command=item.command, exit_code=done.returncode, files=tuple(files))


def found_files(out: Path, patterns: tuple[str, ...]) -> list[str]:
    """Files under `out` that match a pattern and are not empty, without those of the first call."""
    paths = (path for pattern in patterns for path in out.glob(pattern) if path.is_file() and path.stat().st_size)
    return sorted(str(path.relative_to(out)) for path in paths if "first_call" not in path.relative_to(out).parts)


def _check_results(results: list[PassResult], manifest: Path) -> None:
    for result in results:
        if result.exit_code or not result.files:
            state = f"exit code {result.exit_code}" if result.exit_code else "no output file"
            raise InputError(f"{result.command[0]}: pass {result.name} ended with {state}; see {manifest.parent}")
