"""Microbenchmarks of collectives between ranks: all-reduce, all-gather, reduce-scatter, all-to-all even and skewed.

torchrun --nproc-per-node 8 -m hw_validation.micro_collectives --out collectives.jsonl

Runs on NCCL and RCCL, and on gloo where there is no GPU. One rank has nothing to measure: it says so and ends well.
Calls are launched one after the other by torch's own library; `--graphs` then repeats the small messages within a
captured graph, with vLLM's custom all-reduce too where vLLM can be imported. Over several nodes start it with
torchrun's --nnodes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from hw_validation.environment import read_environment
from hw_validation.marks import make_marks
from hw_validation.records import RecordLog, Setup, make_record
from moesim.errors import InputError

if TYPE_CHECKING:
    import torch

Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "custom_all_reduce"]
LAUNCHED: tuple[Operation, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
GRAPHED: tuple[Operation, ...] = ("custom_all_reduce", "all_reduce", "all_gather", "reduce_scatter")
SMALLEST, LARGEST, LARGEST_GRAPHED = 256, 512 * 2**20, 16 * 2**20
_CUSTOM_LIMIT = 8 * 2**20
_GRAPH_CALLS = 20
SKEWS = (0.0, 0.8, 1.6)
_TARGET_S = 0.05
_MAX_CALLS = 200


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark.

    `num_bytes` is the whole message of one rank: its buffer (all-reduce), all it receives (all-gather), all it gives
    (reduce-scatter), all it sends (all-to-all). `skew` is the Zipf exponent of the shares that every rank sends to
    rank 0, 1, ...: the same ranks are popular with all, as ranks with popular experts are. `ranks` take part.
    `graph`: calls within a replayed graph instead of launched ones.
    """

    operation: Operation
    num_bytes: int
    ranks: int
    skew: float = 0.0
    graph: bool = False

    @property
    def key(self) -> str:
        """Name of the case in a log."""
        skew = f"/zipf{self.skew:g}" if self.skew else ""
        graph = "/graph" if self.graph else ""
        return f"collective/{self.operation}/{self.ranks}ranks/{self.num_bytes}{skew}{graph}"


def list_cases(group_sizes: list[int], smallest: int = SMALLEST, largest: int = LARGEST) -> Iterator[Case]:
    """All cases, sizes growing fourfold; the largest is always there."""
    sizes = [smallest * 4**power for power in range(32) if smallest * 4**power < largest] + [largest]
    for ranks in group_sizes:
        for operation in LAUNCHED:
            for skew in SKEWS if operation == "all_to_all" else (0.0,):
                for num_bytes in sizes:
                    yield Case(operation=operation, num_bytes=num_bytes, ranks=ranks, skew=skew)


def list_graph_cases(group_sizes: list[int], smallest: int, largest: int) -> Iterator[Case]:
    """Cases within graphs: decode steps exchange small messages there. vLLM's own all-reduce comes first."""
    for ranks in group_sizes:
        for operation in GRAPHED:
            limit = _CUSTOM_LIMIT if operation == "custom_all_reduce" else LARGEST_GRAPHED + 1
            for power in range(32):
                if (num_bytes := smallest * 4**power) < min(limit, largest + 1):
                    yield Case(operation=operation, num_bytes=num_bytes, ranks=ranks, graph=True)


def split_sizes(elements: int, ranks: int, skew: float) -> list[int]:
    """Elements for each destination, in all `elements`, shares proportional to (place + 1) ** -skew."""
    weights = [(place + 1) ** -skew for place in range(ranks)]
    bounds = [round(elements * sum(weights[:place]) / sum(weights)) for place in range(ranks + 1)]
    return [late - early for early, late in itertools.pairwise(bounds)]


def bus_factor(case: Case) -> float:
    """Bytes that cross a rank's link for each byte of the message (convention of nccl-tests, even splits)."""
    return (2 if case.operation.endswith("all_reduce") else 1) * (case.ranks - 1) / case.ranks


def make_call(case: Case, rank: int, device: torch.device, group: Any) -> Callable[[], object]:
    """A function that runs the case once on this rank of `group`, on buffers made here."""
    import torch
    import torch.distributed as dist

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ranks = case.ranks
    elements = max(ranks, case.num_bytes // dtype.itemsize)
    elements -= elements % ranks
    whole, part = (torch.ones(size, dtype=dtype, device=device) for size in (elements, elements // ranks))
    match case.operation:
        case "all_reduce":
            return lambda: dist.all_reduce(whole, group=group)
        case "all_gather":
            return lambda: dist.all_gather_into_tensor(whole, part, group=group)
        case "reduce_scatter":
            return lambda: dist.reduce_scatter_tensor(part, whole, group=group)
        case "all_to_all":
            sends = split_sizes(elements, ranks, case.skew)
            received = torch.empty(sends[rank] * ranks, dtype=dtype, device=device)
            takes = [sends[rank]] * ranks
            return lambda: dist.all_to_all_single(received, whole, takes, sends, group=group)
        case "custom_all_reduce":
            custom = _custom_all_reduce(ranks, device)
            return lambda: custom.custom_all_reduce(whole)


@cache
def _custom_all_reduce(ranks: int, device: torch.device) -> Any:
    """vLLM's all-reduce for small messages between GPUs of a node. Raises RuntimeError where it cannot be had."""
    import torch.distributed as dist

    try:
        from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce
    except ImportError as error:
        raise RuntimeError(f"vLLM cannot be imported ({error})") from None
    custom = CustomAllreduce(dist.new_group(list(range(ranks)), backend="gloo", use_local_synchronization=True), device)
    if custom.disabled:
        raise RuntimeError("vLLM's custom all-reduce is disabled between these GPUs")
    return custom


def _in_graph(case: Case, call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A function that replays `_GRAPH_CALLS` calls as one graph."""
    import torch

    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    custom = case.operation == "custom_all_reduce"
    registered = _custom_all_reduce(case.ranks, device).capture() if custom else contextlib.nullcontext()
    # Thread-local: NCCL's watchdog asks for events meanwhile, which a global capture forbids.
    with registered, torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(_GRAPH_CALLS):
            call()
    return graph.replay


def measure(case: Case, device: torch.device, group: Any) -> dict[str, float | None]:
    """Microseconds a call on the slowest and fastest rank, and the bandwidth that follows from the slowest."""
    import torch
    import torch.distributed as dist

    call = make_call(case, dist.get_rank(group), device, group)
    if case.graph:
        if device.type != "cuda":
            raise RuntimeError("graphs need a GPU")
        call = _in_graph(case, call, device)
    marks = make_marks()
    calls = _agree_on_calls(_time_s(call, 3, marks), device, group)
    mine_us = 1e6 * min(_time_s(call, calls, marks) for _ in range(3)) / (_GRAPH_CALLS if case.graph else 1)
    extremes = torch.tensor([mine_us, -mine_us], dtype=torch.float32, device=device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
    slowest_us, fastest_us = float(extremes[0]), -float(extremes[1])
    rate = case.num_bytes / (slowest_us * 1e-6)
    return {
        "time_us": slowest_us,
        "fastest_rank_us": fastest_us,
        "algorithm_bytes_per_s": rate,
        "bus_bytes_per_s": rate * bus_factor(case),
        "calls": float(calls),
    }


def _time_s(call: Callable[[], object], calls: int, marks: Any) -> float:
    """Seconds a call, after two that warm up."""
    for _ in range(2):
        call()
    marks.wait()
    begin = marks.mark()
    for _ in range(calls):
        call()
    end = marks.mark()
    marks.wait()
    return marks.elapsed_ms(begin, end) / 1e3 / calls


def _agree_on_calls(once_s: float, device: torch.device, group: Any) -> int:
    """How often to repeat: the same number on all ranks, or they would wait for each other for ever."""
    import torch
    import torch.distributed as dist

    calls = torch.tensor([min(_MAX_CALLS, max(3, int(_TARGET_S / max(once_s, 1e-7))))], device=device)
    dist.all_reduce(calls, op=dist.ReduceOp.MIN, group=group)
    return int(calls[0])


def run_cases(cases: Sequence[Case], log: RecordLog | None, setup: Setup, device: torch.device) -> None:
    """Measure all cases that rank 0's log lacks; rank 0 records. Ranks outside a case's group wait for the next.

    A case that the backend does not offer is told and passed over by all its ranks.
    """
    import torch.distributed as dist

    rank, groups = dist.get_rank(), {}
    known = [sorted(log.keys) if log is not None else None]
    dist.broadcast_object_list(known, src=0)
    done = set(known[0] or ())
    for case in cases:
        if case.key in done:
            continue
        if case.ranks not in groups:
            groups[case.ranks] = dist.new_group(list(range(case.ranks)))
        if rank < case.ranks:
            try:
                values = measure(case, device, groups[case.ranks])
            except (RuntimeError, NotImplementedError) as error:
                if rank == 0:
                    print(f"{case.key}: left out: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
                continue
            if log is not None:
                point = msgspec.to_builtins(case)
                log.append(make_record("microbenchmark", case.key, setup, point, values=values))
                print(f"{case.key}: {values['time_us']:.4g} us", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Join the other ranks and run the cases that the command line asks for."""
    options = _parser().parse_args(arguments)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        print("one rank: collectives need two or more (torchrun --nproc-per-node N); nothing measured", file=sys.stderr)
        return 0
    import torch.distributed as dist

    device = _join()
    try:
        sizes = [int(size) for size in options.group_sizes.split(",")] if options.group_sizes else [world]
        if not all(2 <= size <= world for size in sizes):
            raise InputError(f"--group-sizes: {options.group_sizes} must be 2 to the {world} ranks")
        log = RecordLog(options.out) if dist.get_rank() == 0 else None
        bounds = (options.min_bytes, options.max_bytes)
        cases = [*list_cases(sizes, *bounds), *(list_graph_cases(sizes, *bounds) if options.graphs else ())]
        run_cases(cases, log, _describe(), device)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        dist.destroy_process_group()
    return 0


def _join() -> torch.device:
    """Join the ranks that torchrun started; each local rank has a GPU of its own, or all use the CPU."""
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
        return device
    dist.init_process_group("gloo")
    return torch.device("cpu")


def _describe() -> Setup:
    """Machine, library and where the ranks are."""
    import torch
    import torch.distributed as dist

    backend = dist.get_backend()
    versions = torch.cuda.nccl.version() if backend == "nccl" else ()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    flags = {
        "ranks": dist.get_world_size(),
        "ranks_per_node": local,
        "nodes": dist.get_world_size() // local,
        "environment_variables": {name: os.environ[name] for name in sorted(os.environ) if name.startswith("NCCL_")},
    }
    name = "rccl" if backend == "nccl" and torch.version.hip else backend
    version = ".".join(str(part) for part in versions)
    return Setup(
        model="none",
        num_layers=0,
        weights="none",
        engine=name,
        engine_version=version,
        environment=read_environment(),
        flags=flags,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hw_validation.micro_collectives", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file of records, resumed when it exists")
    parser.add_argument("--group-sizes", default="", help="ranks that take part, such as 2,4,8 (all)")
    parser.add_argument("--min-bytes", type=int, default=SMALLEST, help="smallest message (256)")
    parser.add_argument("--max-bytes", type=int, default=LARGEST, help="largest message (512 MiB)")
    parser.add_argument("--graphs", action="store_true", help="small messages within captured graphs as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
