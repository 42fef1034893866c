"""DRAM bytes of decode and prefill steps, counted by Nsight Compute on a few layers of a model.

python -m hw_validation.step_counters --out counters.jsonl --models olmoe-1b-7b:2,mixtral-8x7b:2 --seconds 90

For each model this starts itself again under `ncu`: vLLM runs the steps between two profiler calls, and a marker
kernel before each step tells them apart in ncu's list. Kernels are launched one by one (eager mode, where small
operators are not fused: under 1 % of a step's bytes), caches are left as the step leaves them and clocks as they are.
Where ncu fails, its first words are printed and nothing is recorded.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from hw_validation.client import Client
from hw_validation.engine import EngineSettings, TracedEngine, prepare_engine, start_engine
from hw_validation.plan import WARM_STEPS, KernelsPoint
from hw_validation.records import RecordLog, Setup, make_record
from hw_validation.standby import go_line, wait_for_go
from moesim.errors import InputError

METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum")
BATCHES = (1, 8, 64, 256)
PREFILLS = (512,)
CONTEXT = 256
_MARKER = "spin_kernel"
_NAME_CHARS = 160
_EXIT_S = 8.0
_NCU_PLACES = ("/opt/nvidia/nsight-compute", "/usr/local/cuda/bin")


class Kernel(NamedTuple):
    """One kernel that ran: bytes read from and written to DRAM, and its time alone in microseconds."""

    name: str
    read_bytes: float
    written_bytes: float
    time_us: float


def read_ncu(lines: Iterable[str]) -> list[Kernel]:
    """The kernels in `ncu --csv --page raw --print-units base` output, in the order in which they ran.

    Raises:
        InputError: no table, or a metric that is missing from it.
    """
    table = [line for line in lines if line.startswith('"')]
    rows = list(csv.DictReader(table))
    if len(rows) < 2:
        raise InputError("ncu listed no kernels")
    missing = [name for name in ("Kernel Name", *METRICS) if name not in rows[0]]
    if missing:
        raise InputError(f"ncu's table lacks {', '.join(missing)}")
    read, written, time_ns = METRICS
    if rows[0][time_ns] not in ("ns", "nsecond") or rows[0][read] not in ("byte", "bytes"):
        raise InputError(f"ncu's units are {rows[0][read]} and {rows[0][time_ns]}, expected byte and ns")
    return [
        Kernel(row["Kernel Name"][:_NAME_CHARS], _number(row[read]), _number(row[written]), _number(row[time_ns]) / 1e3)
        for row in rows[1:]
    ]


def split_steps(kernels: Iterable[Kernel]) -> list[list[Kernel]]:
    """The kernels after each marker kernel, the markers left out."""
    steps: list[list[Kernel]] = []
    for kernel in kernels:
        if _MARKER in kernel.name:
            steps.append([])
        elif steps:
            steps[-1].append(kernel)
    return steps


def sum_step(step: list[Kernel]) -> dict[str, float | None]:
    """Totals of one step."""
    return {
        "kernels_per_step": float(len(step)),
        "dram_read_bytes": sum(kernel.read_bytes for kernel in step),
        "dram_written_bytes": sum(kernel.written_bytes for kernel in step),
        "kernel_sum_us": sum(kernel.time_us for kernel in step),
    }


def counted_points() -> list[KernelsPoint]:
    """The steps that are counted, in their order."""
    decodes = [KernelsPoint(batch_size=batch, context_len=CONTEXT) for batch in BATCHES]
    return decodes + [KernelsPoint(batch_size=0, context_len=0, prefill_tokens=tokens) for tokens in PREFILLS]


def run_steps(engine: TracedEngine, points: list[KernelsPoint]) -> Iterator[KernelsPoint]:
    """Run each point's step between a marker and the next; yields the points that ran."""
    for point in points:
        client = Client(engine, time.perf_counter() + 1e6)
        if point.prefill_tokens:
            client.send(point.prefill_tokens, 1)
            client.finish()
            client.send(point.prefill_tokens, 1)
            _counted(client.finish)
        else:
            sent = [client.send(point.context_len, 64 + point.batch_size) for _ in range(point.batch_size)]
            while any(not answer.tokens_s for answer in client.pending.values()):
                client.step()
            for _ in range(WARM_STEPS):
                client.step()
            engine.drain()
            _counted(client.step)
            client.abort(sent)
        engine.drain()
        yield point


def _counted(work: Any) -> None:
    """Run `work` under the profiler, after a marker kernel."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    torch.cuda._sleep(1000)
    work()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def main(arguments: list[str] | None = None) -> int:
    """Count what the command line asks for; exit code 2 when no model could be counted."""
    options = _parser().parse_args(arguments)
    if options.child:
        return _child(options)
    log, models = RecordLog(options.out), options.models.split(",")
    first = _start(models[0], log, options.ncu)
    granted_s = wait_for_go() if options.standby else options.seconds
    if granted_s is None:
        _interrupt(first)
        return 3
    deadline_s = time.perf_counter() + granted_s
    for place, model in enumerate(models):
        share_s = (deadline_s - time.perf_counter()) / (len(models) - place)
        try:
            _count_model(model, log, share_s - _EXIT_S, _start(model, log, options.ncu) if place else first)
        except (InputError, subprocess.SubprocessError, OSError) as error:
            print(f"{model}: failed: {error}", file=sys.stderr, flush=True)
    print(f"{len(log.keys)} records after {time.perf_counter() - deadline_s + granted_s:.0f} s", flush=True)
    return 0 if log.keys else 2


def _start(model: str, log: RecordLog, ncu: str | None) -> subprocess.Popen[bytes]:
    """Start the counted process of `model` under ncu; it prepares and waits to be told to go on."""
    told, listed = _paths(model, log)
    options = ["--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none", "--cache-control", "none"]
    options += ["--profile-from-start", "off", "--target-processes", "application-only", "--replay-mode", "kernel"]
    options += ["--graph-profiling", "node", "--metrics", ",".join(METRICS), "--log-file", str(listed)]
    child = [sys.executable, "-m", "hw_validation.step_counters", "--child", "--models", model, "--out", str(told)]
    return subprocess.Popen([ncu or find_ncu(), *options, *child], stdin=subprocess.PIPE, start_new_session=True)


def _paths(model: str, log: RecordLog) -> tuple[Path, Path]:
    """What the counted process tells, and ncu's table."""
    name = model.partition(":")[0]
    return log.path.with_suffix(f".{name}.json"), log.path.with_suffix(f".{name}.csv")


def _interrupt(process: subprocess.Popen[bytes]) -> int:
    """End ncu so that it still writes its table; returns the exit code."""
    for sign, seconds in ((signal.SIGINT, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, sign)
            return process.wait(timeout=seconds)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    return process.wait()


def _count_model(model: str, log: RecordLog, seconds: float, process: subprocess.Popen[bytes]) -> None:
    """Let the waiting process of `model` go, for at most `seconds`, and record what ncu listed."""
    told, listed = _paths(model, log)
    try:
        process.communicate(go_line(seconds).encode(), timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        code = _interrupt(process)
    if not told.exists() or not listed.exists():
        raise InputError(f"ncu ended with exit code {code} and left no table")
    ran = msgspec.json.decode(told.read_bytes(), type=_Told)
    with listed.open(encoding="utf-8", errors="replace") as lines:
        text = lines.read().splitlines()
    try:
        steps = split_steps(read_ncu(text))
    except InputError as error:
        raise InputError(f"{error} (exit code {code}): {' | '.join(text[:6])[:600]}") from None
    for point, step in zip(ran.points, steps, strict=False):
        key = f"{ran.setup.model}/{ran.setup.num_layers}layers/eager/counters/{point.key}"
        content: dict[str, Any] = {"values": sum_step(step), "tables": {"kernels": [list(kernel) for kernel in step]}}
        log.append(make_record("step_counters", key, ran.setup, msgspec.to_builtins(point), **content))
        print(f"{key}: {content['values']}", flush=True)


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the counted process tells: its setup and the steps that it ran."""

    setup: Setup
    points: list[KernelsPoint]


def _child(options: argparse.Namespace) -> int:
    name, _, layers = options.models.partition(":")
    settings = EngineSettings(
        model=name,
        num_layers=int(layers) if layers else None,
        enforce_eager=True,
        gpu_memory_utilization=0.6,
        max_num_batched_tokens=8192,
        async_scheduling=False,
    )
    prepare_engine(settings, Path(options.folder))
    print(f"{name}: prepared", flush=True)
    if wait_for_go() is None:
        return 3
    engine = start_engine(settings, Path(options.folder))
    print(f"{name}: ready after {engine.start_s:.0f} s", flush=True)
    ran: list[KernelsPoint] = []
    for point in run_steps(engine, counted_points()):
        ran.append(point)
        options.out.write_bytes(msgspec.json.encode(_Told(setup=engine.setup, points=ran)))
    return 0


def find_ncu() -> str:
    """Where `ncu` is. Raises InputError."""
    found = shutil.which("ncu")
    if found:
        return found
    for place in _NCU_PLACES:
        for path in sorted(Path(place).glob("**/ncu"), reverse=True):
            if path.is_file():
                return str(path)
    raise InputError("ncu (Nsight Compute) is not installed, or not on the PATH")


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="olmoe-1b-7b:2,mixtral-8x7b:2", help="NAME:LAYERS, separated by commas")
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file of records")
    parser.add_argument("--seconds", type=float, default=180.0, help="what all models together may take")
    parser.add_argument("--ncu", help="the ncu program (found on the PATH)")
    parser.add_argument("--folder", default="/tmp/moesim-models", help="where config.json folders are written")
    parser.add_argument("--standby", action="store_true", help="prepare, then wait for `go UNTIL` on standard input")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
