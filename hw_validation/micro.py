"""Microbenchmarks of one GPU and its host: launches, graphs, copies, matrix products, attention, routed experts.

python -m hw_validation.micro --models olmoe-1b-7b,mixtral-8x7b --out micro.jsonl --budget-s 100

Attention and routed experts run vLLM's kernels and are left out, with a word, where vLLM is not installed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from hw_validation.environment import measure_python_speed_ns, query_gpu, read_environment, software_versions
from hw_validation.micro_cases import attention_cases, experts_cases, gemm_cases
from hw_validation.micro_operators import ExpertsBench, Values, measure_attention, measure_copy, measure_gemm
from hw_validation.micro_timing import time_graph_us, time_launches_us
from hw_validation.records import Environment, Kind, RecordLog, Setup, make_record
from moesim.errors import InputError
from moesim.specs.catalog import get_model
from moesim.specs.model import Model

_COPY_BYTES = (1 << 20, 1 << 24, 1 << 28, 1 << 32)
_GRAPH_KERNELS = (1, 10, 100, 1000)


class Task(NamedTuple):
    """One benchmark: `measure` returns its values; `engine` names the library whose kernel it times."""

    key: str
    model: str
    engine: str
    point: dict[str, Any]
    measure: Callable[[], Values]


def list_tasks(models: list[Model], with_vllm: bool) -> Iterator[Task]:
    """All benchmarks: the host first, then what no published table of kernels has, then matrix products."""
    yield from _host_tasks()
    for size in _COPY_BYTES:
        yield Task(
            f"copy/{size}", "none", "torch", {"operation": "copy", "num_bytes": size}, partial(measure_copy, size)
        )
    if with_vllm:
        yield from _vllm_tasks(models)
    for model in models:
        for case in gemm_cases(model):
            yield Task(case.key, model.name, "torch", _describe(case, "gemm"), partial(measure_gemm, case))


def _vllm_tasks(models: list[Model]) -> Iterator[Task]:
    for case in attention_cases(models):
        yield Task(case.key, "none", "vllm", _describe(case, "attention"), partial(measure_attention, case))
    bench = ExpertsBench()
    for model in models:
        for case in experts_cases(model):
            yield Task(case.key, model.name, "vllm", _describe(case, "experts"), partial(bench.measure, case))


def _host_tasks() -> Iterator[Task]:
    yield Task("launch/torch", "none", "torch", {"operation": "launch_torch_add"}, _measure_torch_launch)
    yield Task("launch/empty", "none", "torch", {"operation": "launch_empty_kernel"}, _measure_empty_launch)
    for kernels in _GRAPH_KERNELS:
        point = {"operation": "graph_replay", "kernels": kernels}
        yield Task(f"graph/{kernels}", "none", "torch", point, partial(time_graph_us, kernels))
    yield Task("python", "none", "python", {"operation": "python_addition"}, _measure_python)


def run_tasks(tasks: Iterator[Task], log: RecordLog, environment: Environment, deadline_s: float) -> bool:
    """Measure what `log` does not hold yet. False when time ran out first.

    A task that fails is told and passed over.
    """
    versions = software_versions()
    for task in tasks:
        if task.key in log:
            continue
        if time.perf_counter() > deadline_s:
            return False
        try:
            values = task.measure()
        except Exception as error:
            print(f"{task.key}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        setup = Setup(
            model=task.model,
            num_layers=1,
            weights="none",
            engine=task.engine,
            engine_version=versions.get(task.engine, environment.python),
            environment=environment,
        )
        kind: Kind = "microbenchmark"
        log.append(make_record(kind, task.key, setup, task.point, values=values))
    return True


def write_environment(log: RecordLog, environment: Environment) -> None:
    """Record the machine, its software and its clocks, once for a machine start."""
    key = f"environment/{environment.machine_start}"
    if key in log:
        return
    setup = Setup(model="none", num_layers=0, weights="none", engine="none", engine_version="", environment=environment)
    gpu, versions = query_gpu(), software_versions()
    content = {"values": {}, "tables": {"nvidia_smi": list(gpu.items()), "versions": list(versions.items())}}
    log.append(make_record("environment", key, setup, {}, **content))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that the command line asks for. Exit code 3 when the budget ended them early."""
    begin = time.perf_counter()
    options = _parser().parse_args(arguments)
    try:
        import torch

        if not torch.cuda.is_available():
            raise InputError("torch sees no GPU; the microbenchmarks need one")
        models = [get_model(name) for name in options.models.split(",")]
        log, environment = RecordLog(options.out), read_environment()
        write_environment(log, environment)
        with_vllm = software_versions()["vllm"] != "absent"
        if not with_vllm:
            print("vLLM is not installed: attention and routed experts are left out", file=sys.stderr)
        complete = run_tasks(list_tasks(models, with_vllm), log, environment, begin + options.budget_s)
    except (InputError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(log.keys)} records after {time.perf_counter() - begin:.0f} s", flush=True)
    return 0 if complete else 3


def _describe(case: msgspec.Struct, operation: str) -> dict[str, Any]:
    return {"operation": operation, "dtype": "bfloat16"} | msgspec.to_builtins(case)


def _measure_torch_launch() -> Values:
    import torch

    cell = torch.zeros(1, device="cuda")
    return {"launch_us": time_launches_us(lambda: cell.add_(1.0))}


def _measure_empty_launch() -> Values:
    import torch

    return {"launch_us": time_launches_us(lambda: torch.cuda._sleep(0))}


def _measure_python() -> Values:
    return {"addition_ns": measure_python_speed_ns()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hw_validation.micro", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--models", required=True, help="names in configs/models, separated by commas")
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file of records, resumed when it exists")
    parser.add_argument("--budget-s", type=float, default=300.0, help="seconds from process start to a clean stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
