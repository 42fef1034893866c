"""Measure one model on vLLM in this process: decode, prefill and mixed steps, closed and open loops.

python -m hw_validation.vllm_sweep --model olmoe-1b-7b --out olmoe.jsonl --budget-s 240

Each point is on disk as soon as it is measured; started again with the same file, points that it holds are
skipped. `--budget-s` counts from the start of the process, the engine's own start included. With `--standby` the
process imports everything, waits for a line `go UNTIL` on standard input and counts from there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from hw_validation.client import BudgetSpentError, Client
from hw_validation.engine import EngineSettings, TracedEngine, prepare_engine, start_engine
from hw_validation.environment import probe_host
from hw_validation.forced_routing import summarize_counts
from hw_validation.loops import run_closed_loop, run_open_loop
from hw_validation.peers import ALONE, Peers
from hw_validation.plan import (
    SECTIONS,
    ClosedLoopPoint,
    DecodePoint,
    KernelsPoint,
    MixedPoint,
    OpenLoopPoint,
    Point,
    PrefillPoint,
    plan_points,
)
from hw_validation.records import KeysOnly, Kind, Log, Record, RecordLog, make_record
from hw_validation.routing_counts import summarize_routing
from hw_validation.standby import wait_for_go
from hw_validation.step_kernels import measure_kernels
from hw_validation.step_sweeps import Measured, measure_decode, measure_mixed, measure_prefill
from hw_validation.step_trace import to_columns
from moesim.errors import InputError

_KINDS: dict[type, Kind] = {
    DecodePoint: "decode_step",
    PrefillPoint: "prefill_step",
    MixedPoint: "mixed_step",
    ClosedLoopPoint: "closed_loop",
    OpenLoopPoint: "open_loop",
    KernelsPoint: "step_kernels",
}
_REFERENCE_CONCURRENCY = 64
_OF_A_RANK = {"gpu_median_ms", "forward_median_ms", "period_median_ms", "launch_median_ms", "wait_median_ms"}
_EXIT_S = 4.0
_MAX_FAILURES = 2
_SHOWN = {"gpu_median_ms", "period_median_ms", "ttft_median_ms", "tpot_median_ms", "requests_per_s", "kernel_busy_us"}


class Sweep:
    """Measures points on a running engine into a log until the deadline.

    `peers` run the same points at the same time, each on its engine; only the first one's log is kept.
    """

    def __init__(self, engine: TracedEngine, log: Log, deadline_s: float, peers: Peers = ALONE) -> None:
        self.engine = engine
        self.log = log
        self.deadline_s = deadline_s
        self.peers = peers
        self._routers = (0.0, False)
        self._requests_per_s = 0.0

    def run(self, points: list[Point]) -> bool:
        """Measure what the log does not hold yet. False when time ran out before the last point.

        A point that fails is told and passed over, after two of a kind the rest of its kind too; the engine is
        taken for broken, and the error raised, when a second kind fails like this.
        """
        failures: Counter[Kind] = Counter()
        for point in points:
            kind, key = _KINDS[type(point)], self._key(point)
            if key in self.log or failures[kind] >= _MAX_FAILURES:
                continue
            client = Client(self.engine, self.deadline_s, peers=self.peers)
            try:
                self._measure(client, point, key)
            except BudgetSpentError:
                return False
            except Exception:
                failures[kind] += 1
                if sum(count >= _MAX_FAILURES for count in failures.values()) > 1:
                    raise
                print(f"{key}: failed\n{traceback.format_exc()}", file=sys.stderr, flush=True)
                client.abort()
        return True

    def _key(self, point: Point) -> str:
        setup = self.engine.setup
        mode = "eager" if setup.flags["enforce_eager"] else "graphs"
        mode += "+routing" if setup.flags.get("returns_routed_experts") else ""
        if "forced_routing" in setup.flags:
            mode += "+forced" if setup.flags["forced_routing"] else "+packed"
        mode += _parallel_mode(setup.flags) if self.peers.size > 1 else ""
        return f"{setup.model}/{setup.num_layers}layers/{mode}/{point.key}"

    def _measure(self, client: Client, point: Point, key: str) -> None:
        described: dict[str, Any] = msgspec.to_builtins(point)
        content: dict[str, Any]
        loads = self._set_routing(point) | probe_host()
        if isinstance(point, KernelsPoint):
            values, kernels = measure_kernels(client, point)
            content = {"values": values | loads, "tables": {"kernels": kernels}}
        else:
            measured = self._dispatch(client, point)
            if measured is None:
                return
            content = {"values": measured.values | loads, "steps": to_columns(measured.rows)}
            if self.peers.size > 1:
                content["tables"] = {"ranks": self._by_rank(measured.values)}
            routed = self.engine.take_routed()
            if routed and isinstance(point, DecodePoint):
                routing = summarize_routing(routed, point.num_steps, self.engine.num_experts)
                content["values"] |= routing.values
                content["tables"] = content.get("tables", {}) | {"routing_by_layer": routing.rows}
        self._add_counts(content)
        record = make_record(_KINDS[type(point)], key, self.engine.setup, described, **content)
        self.log.append(record)
        if self.peers.rank == 0:
            _report(record)

    def _set_routing(self, point: Point) -> dict[str, float]:
        """Route as the point says; the load figures of redrawn routers."""
        forced, routing = self.engine.forced, getattr(point, "routing", msgspec.UNSET)
        if forced:
            forced.force(routing or "", getattr(point, "router_falling", False))
            forced.reset()
        if routing:
            return self._set_routers(0.0, False)
        return self._set_routers(getattr(point, "router_spread", 0.0), getattr(point, "router_falling", False))

    def _add_counts(self, content: dict[str, Any]) -> None:
        """The tokens that each expert got in the point's steps, if the engine counts them."""
        if self.engine.forced is None:
            return
        by_rank = self.peers.all(self.engine.forced.counts())
        content["values"] |= summarize_counts(by_rank, self.engine.expert_ranks)
        rows = [[rank, layer, *counts] for rank, layers in enumerate(by_rank) for layer, counts in enumerate(layers)]
        content["tables"] = content.get("tables", {}) | {"expert_counts": rows}

    def _set_routers(self, spread: float, falling: bool) -> dict[str, float]:
        if (spread, falling) == self._routers == (0.0, False):
            return {}
        self._routers = (spread, falling)
        return self.engine.draw_routers(spread, falling)

    def _by_rank(self, values: dict[str, float | None]) -> list[dict[str, float | None]]:
        """What each rank saw of its own steps."""
        return self.peers.all({name: value for name, value in values.items() if name in _OF_A_RANK})

    def _dispatch(self, client: Client, point: Point) -> Measured | None:
        match point:
            case DecodePoint():
                return measure_decode(client, point, self.engine.limits)
            case PrefillPoint():
                return measure_prefill(client, point)
            case MixedPoint():
                return measure_mixed(client, point)
            case ClosedLoopPoint() if point.concurrency % self.peers.replicas == 0:
                measured = run_closed_loop(client, point)
                if point.concurrency == _REFERENCE_CONCURRENCY and not self._requests_per_s:
                    self._requests_per_s = measured.values["requests_per_s"] or 0.0
                return measured
            case OpenLoopPoint() if self._requests_per_s and self.peers.size == 1:
                return run_open_loop(client, point, point.load * self._requests_per_s)
            case _:
                return None


def main(arguments: list[str] | None = None) -> int:
    """Run the sweep that the command line asks for. Exit code 3 when the budget ended it early."""
    begin = time.perf_counter()
    options = _parser().parse_args(arguments)
    settings = _engine_settings(options)
    try:
        if options.standby:
            prepare_engine(settings, options.folder)
            print(f"{settings.model}: prepared after {time.perf_counter() - begin:.0f} s", flush=True)
            granted_s = wait_for_go()
            if granted_s is None:
                return 3
            begin, options.budget_s = time.perf_counter(), granted_s
        engine = start_engine(settings, options.folder)
        peers = engine.peers
        log = _open_log(options.out, peers)
        print(f"{settings.model}: ready after {engine.start_s:.0f} s; {engine.limits}", flush=True)
        contexts = [int(length) for length in options.contexts.split(",")]
        points = plan_points(options.sections.split(","), contexts, engine.limits)
        complete = Sweep(engine, log, begin + options.budget_s - _EXIT_S, peers).run(points)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{settings.model}: {len(log.keys)} records after {time.perf_counter() - begin:.0f} s", flush=True)
    return 0 if complete else 3


def _parallel_mode(flags: dict[str, Any]) -> str:
    sizes = f"+tp{flags['tensor_parallel_size']}dp{flags['data_parallel_size']}ep{flags['expert_parallel_size']}"
    return sizes + ("" if flags["custom_all_reduce"] else "+nccl") + ("+eplb" if flags["enable_eplb"] else "")


def _open_log(path: Path, peers: Peers) -> Log:
    """The log of the first process; the others know what it held."""
    log = RecordLog(path) if peers.rank == 0 else None
    keys = peers.first(log.keys if log else set[str]())
    return log or KeysOnly(keys)


def _engine_settings(options: argparse.Namespace) -> EngineSettings:
    if "forced" in options.sections and not options.force_routing:
        options.force_routing = True  # such points mean nothing otherwise
    given = {name: value for name, value in vars(options).items() if name in EngineSettings.__struct_fields__}
    sizes = tuple(int(size) for size in options.capture_sizes.split(",") if size)
    return msgspec.convert(given | {"capture_sizes": sizes}, EngineSettings)


def _report(record: Record) -> None:
    values = " ".join(f"{name}={value:.4g}" for name, value in record.values.items() if name in _SHOWN and value)
    print(f"{record.key}: {values}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hw_validation.vllm_sweep", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", required=True, help="name in configs/models, or a model file")
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file of records, resumed when it exists")
    parser.add_argument("--budget-s", type=float, default=600.0, help="seconds from process start to a clean stop")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which points, in which order")
    parser.add_argument("--contexts", default="256,2048", help="tokens of context of the decode sweeps")
    parser.add_argument("--num-layers", type=int, help="build this many of the layers (all)")
    parser.add_argument("--bf16", action="store_true", help="leave a native 8-bit format out")
    parser.add_argument("--enforce-eager", action="store_true", help="no compilation, no captured graphs")
    parser.add_argument("--max-model-len", type=int, default=4096, help="tokens of the longest sequence")
    parser.add_argument("--max-num-seqs", type=int, default=256, help="sequences in a step")
    parser.add_argument("--max-num-batched-tokens", type=int, help="tokens in a step (the engine's default)")
    parser.add_argument(
        "--capture-sizes", default="", help="captured graphs, separated by commas (the engine's default)"
    )
    parser.add_argument("--return-routed-experts", action="store_true", help="count the experts that tokens went to")
    parser.add_argument("--force-routing", action="store_true", help="let points force routing; count experts' tokens")
    parser.add_argument("--pack-scores", action="store_true", help="routers of 60 experts as they are meant to be")
    parser.add_argument("--standby", action="store_true", help="prepare, then wait for `go UNTIL` on standard input")
    folder = Path(tempfile.gettempdir()) / "moesim-models"
    parser.add_argument("--folder", type=Path, default=folder, help="where config.json folders are written")
    parser.add_argument("--max-captured-tokens", type=int, help="largest captured graph (the engine's default)")
    parser.add_argument("--attention-backend", help="attention kernels, such as TRITON_MLA (the engine's default)")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.92, help="share of the memory to use")
    _add_parallel(parser)
    return parser


def _add_parallel(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several GPUs (one process each: python -m hw_validation.ranks, or torchrun)")
    group.add_argument("--tensor-parallel-size", type=int, default=1, help="ranks that share every layer")
    group.add_argument("--data-parallel-size", type=int, default=1, help="replicas with requests of their own")
    group.add_argument("--enable-expert-parallel", action="store_true", help="whole experts, spread over all ranks")
    group.add_argument("--disable-custom-all-reduce", action="store_true", help="NCCL for small messages too")
    group.add_argument("--eplb-interval", type=int, default=0, help="steps between moves of experts (0: none)")
    group.add_argument("--num-redundant-experts", type=int, default=0, help="copies of popular experts")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # every record is on disk, and the engine's own teardown takes seconds of GPU time
