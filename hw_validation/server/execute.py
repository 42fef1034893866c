"""Measures planned runs into a log: one record a run, resumable, and only from servers that match the plan."""

from __future__ import annotations

import fcntl
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from hw_validation.dummy_server import call_workers
from hw_validation.experiment.runs import PlannedRun, Server, group_by_server
from hw_validation.experiment.warm_up import WARM_UP_TOKENS, warm_up_batches
from hw_validation.machine import amd, nvidia
from hw_validation.machine.gpus import Gpu, is_planned
from hw_validation.machine.sampler import GpuSampler, choose_reader
from hw_validation.records import Environment, Kind, Record, RecordLog, make_record
from hw_validation.server.bench import BenchClient, BenchmarkError, bench_arguments, warm_up_arguments
from hw_validation.server.cluster import count_answering, start_all
from hw_validation.server.counters import difference, read_counters
from hw_validation.server.diffusion import measure_diffusion
from hw_validation.server.offline import measure_offline
from hw_validation.server.options import Outcome, RunOptions
from hw_validation.server.prepare import prepare_folder
from hw_validation.server.probe import Facts, check_facts, post, read_facts
from hw_validation.server.process import RunningServer, ServerStartError
from hw_validation.server.results import check_lengths, requests_table, summarize_results
from hw_validation.server.setup import make_setup, read_machine
from moesim.errors import InputError
from moesim.scenarios import make_scenario

_MAX_FAILURES = 2


def measure_runs(runs: list[PlannedRun], log_path: Path, options: RunOptions) -> Outcome:
    """Measure what the log does not hold yet, server by server.

    A run that fails is told and passed over; after two in a row the rest of its server's runs too.

    Raises:
        ServerMismatchError: a server is not the planned one. Nothing of it is recorded.
        InputError: a snapshot is missing, or the site lacks what the plan needs.
    """
    check_hardware(runs, nvidia.list_gpus() or amd.list_gpus())
    with only_writer(log_path):
        return _measure_all(runs, log_path, options)


def _measure_all(runs: list[PlannedRun], log_path: Path, options: RunOptions) -> Outcome:
    log = RecordLog(log_path)
    resumed = sum(run.key in log for run in runs)
    failed: list[str] = []
    machine = read_machine()
    for server, members in group_by_server(runs):
        pending = [run for run in members if run.key not in log]
        if not pending or time.monotonic() > options.stop_s:
            continue
        failed += _measure_group(server, pending, log, options, machine)
        log = RecordLog(log_path)
    done = sum(run.key in log for run in runs)
    return Outcome(
        recorded=done - resumed, resumed=resumed, failed=tuple(failed), complete=done == len(runs) and not failed
    )


@contextmanager
def only_writer(log_path: Path) -> Generator[None, None, None]:
    """Hold the log for this process; the system lets go of it when the process ends, however it ends.

    Raises:
        InputError: another process measures into it, or its folder cannot be written.
    """
    path = log_path.with_name(log_path.name + ".lock")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(path.open("w", encoding="utf-8"))
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{log_path}: another run measures into it; wait for it, or give another --out") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        yield


def _measure_group(
    server: Server, runs: list[PlannedRun], log: RecordLog, options: RunOptions, machine: Environment
) -> list[str]:
    """Measure one server's runs; the reasons of those that failed."""
    if server.model.is_diffusion:
        return measure_diffusion(runs, log, options, machine)
    folder = prepare_folder(server, options.models_dir)
    if server.deployment.frontend == "offline":
        return measure_offline(server, runs, log.path, folder, options, machine)
    try:
        with ExitStack() as stack:
            clients = [
                stack.enter_context(BenchClient(options.work_dir / f"client-{place}"))
                for place in range(count_answering(server))
            ]
            running = start_all(stack, server, folder, options)
            return ServedRuns(server, running, clients, folder, log, options, machine).measure(runs)
    except ServerStartError as error:
        _tell(f"{server.name}: {error}")
        return [f"{run.key}: {error}" for run in runs]


class ServedRuns:
    """The runs of one started server. Each batch size is warmed once, before the first run that reaches it."""

    def __init__(
        self,
        server: Server,
        running: list[RunningServer],
        clients: list[BenchClient],
        folder: Path,
        log: RecordLog,
        options: RunOptions,
        machine: Environment,
    ) -> None:
        self._server, self._running, self._clients = server, running, clients
        self._folder, self._log, self._options, self._machine = folder, log, options, machine
        self._warmed: set[tuple[int, int]] = set()
        self._source, self._reader = choose_reader()
        self._loads: dict[str, float] = {}

    def measure(self, runs: list[PlannedRun]) -> list[str]:
        """Measure and record each run; the reasons of those that failed."""
        self._probe()
        self._loads = self._condition_weights()
        failed: list[str] = []
        in_a_row = 0
        for run in runs:
            if time.monotonic() > self._options.stop_s or in_a_row >= _MAX_FAILURES:
                break
            try:
                record = self._measure_one(run)
            except BenchmarkError as error:
                _tell(f"{run.key}: failed: {error}")
                failed.append(f"{run.key}: {error}")
                in_a_row += 1
                continue
            self._log.append(record)
            in_a_row = 0
            _report(record)
        return failed

    def _measure_one(self, run: PlannedRun) -> Record:
        facts = self._probe()
        self._warm_up(run)
        if self._server.deployment.enable_prefix_caching:
            for server in self._running:
                post(f"{server.base_url}/reset_prefix_cache")
        before = [read_counters(server.base_url) for server in self._running]
        with GpuSampler(self._reader, self._options.sample_period_s) as sampler:
            results = self._drive(run)
        after = [read_counters(server.base_url) for server in self._running]
        self._probe()
        request = run.request
        values = summarize_results(results)
        check_lengths(results, request.input_len, request.output_len, request.range_ratio)
        values |= difference(before, after) | sampler.values()
        values["server_start_s"] = max(server.start_s for server in self._running)
        extra: dict[str, Any] = {"client": self._clients[0].kind, "gpu_samples_from": self._source, **self._loads}
        setup = make_setup(self._server, self._machine, facts, extra)
        tables = requests_table(results) | _table(sampler.table())
        return make_record(kind_of(run), run.key, setup, describe_point(run), values=values, tables=tables)

    def _probe(self) -> Facts:
        """The servers' facts, each held against the plan; those of the first are recorded."""
        facts = [read_facts(server.base_url) for server in self._running]
        for found, server in zip(facts, self._running, strict=True):
            check_facts(self._server, found, server.base_url)
        return facts[0]

    def _condition_weights(self) -> dict[str, float]:
        """Make random weights route as trained ones do; the load figures that follow, of the first server."""
        model = self._server.model
        if self._server.measurement.load_format != "dummy" or model.moe is None:
            return {}
        try:
            found = [
                call_workers(server.base_url, "condition_dummy_weights", str(model.moe.top_k))
                for server in self._running
            ]
        except (OSError, ValueError, KeyError) as error:
            raise ServerStartError(f"{self._server.name}: its random weights cannot be conditioned ({error})") from None
        return found[0][0]

    def _warm_up(self, run: PlannedRun) -> None:
        for batch in warm_up_batches(make_scenario(run.request)):
            shape = (batch, run.request.input_len)
            if shape in self._warmed:
                continue
            share = max(1, batch // len(self._running))
            for server, client in zip(self._running, self._clients, strict=True):
                client.run(warm_up_arguments(run, self._folder, server.base_url, share, WARM_UP_TOKENS))
            self._warmed.add(shape)

    def _drive(self, run: PlannedRun) -> list[dict[str, Any]]:
        """All replicas' clients at once, each with its share of the load."""
        count = len(self._running)
        with ThreadPoolExecutor(count) as pool:
            calls = [
                pool.submit(client.run, bench_arguments(run, self._folder, server.base_url, count, place))
                for place, (server, client) in enumerate(zip(self._running, self._clients, strict=True))
            ]
            return [call.result() for call in calls]


def check_hardware(runs: list[PlannedRun], gpus: list[Gpu]) -> None:
    """Refuse runs that were planned for other GPUs than this machine's, or for more of them.

    Raises:
        InputError: naming both.
    """
    if not gpus:
        raise InputError("hardware: no GPU is visible (neither nvidia-smi, amd-smi nor rocm-smi shows one)")
    for run in runs:
        server = run.server
        if not is_planned(gpus[0].name, server.hardware):
            raise InputError(
                f"hardware: {run.key} was planned for {server.hardware}, this machine has {gpus[0].name}; "
                f"choose its runs with --hardware"
            )
        if server.gpus // server.nodes > len(gpus):
            raise InputError(
                f"gpus: {run.key} needs {server.gpus // server.nodes} GPUs a node, this machine has {len(gpus)}"
            )


def kind_of(run: PlannedRun) -> Kind:
    """Closed loop unless requests arrive at a rate; an offline batch is a closed loop that holds all its prompts."""
    rate = run.request.request_rate
    return "closed_loop" if rate is None or rate == float("inf") else "open_loop"


def describe_point(run: PlannedRun) -> dict[str, Any]:
    """What was asked: the request's words, the repeat and the seed of the prompts."""
    words = msgspec.to_builtins(run.request)
    return {**words, "repeat": run.repeat, "prompt_seed": run.seed}


def _table(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """GPU samples as columns of a record's tables; none without samples."""
    return {f"gpu_{name}": values for name, values in columns.items()} if columns["t_s"] else {}


def _report(record: Record) -> None:
    shown = ("output_tokens_per_s", "ttft_median_ms", "tpot_median_ms", "gpu_power_mean_w")
    values = " ".join(f"{name}={record.values[name]:.4g}" for name in shown if record.values.get(name) is not None)
    _tell(f"{record.key}: {values}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
