"""`vllm bench serve` against a running server: its arguments, one client process for many runs, and its results."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from hw_validation.experiment.runs import PlannedRun
from hw_validation.server.process import installed, tail
from moesim.errors import InputError
from moesim.scenarios import make_workload


class BenchmarkError(InputError):
    """The benchmark client failed or its result is not usable."""


def bench_arguments(run: PlannedRun, folder: Path, base_url: str, replicas: int = 1, replica: int = 0) -> list[str]:
    """Arguments of `vllm bench serve` for a run, or for one replica's share of it."""
    request = run.request
    prompts = _share(_num_prompts(run), replicas, replica)
    arguments = ["--backend", "vllm", "--base-url", base_url, "--endpoint", "/v1/completions"]
    arguments += ["--model", run.server.model.huggingface_id, "--tokenizer", str(folder)]
    arguments += ["--dataset-name", "random", "--random-input-len", str(request.input_len - request.shared_prefix_len)]
    arguments += ["--random-output-len", str(request.output_len), "--random-range-ratio", f"{request.range_ratio:g}"]
    if request.shared_prefix_len:
        arguments += ["--random-prefix-len", str(request.shared_prefix_len)]
    arguments += ["--num-prompts", str(prompts), "--seed", str(run.seed * replicas + replica)]
    if request.request_rate is not None:
        rate = request.request_rate / replicas
        arguments += ["--request-rate", f"{rate:g}", "--burstiness", f"{request.burstiness:g}"]
    else:
        arguments += ["--max-concurrency", str(_share(_concurrency(run), replicas, replica))]
    arguments += ["--ignore-eos", "--temperature", "1.0", "--save-detailed", "--disable-tqdm"]
    arguments += ["--ready-check-timeout-sec", "0"]
    return [*arguments, "--percentile-metrics", "ttft,tpot,itl,e2el"]


def warm_up_arguments(run: PlannedRun, folder: Path, base_url: str, batch: int, tokens: int) -> list[str]:
    """Arguments of one wave of `batch` prompts at once, with prompts that no measured run has."""
    arguments = ["--backend", "vllm", "--base-url", base_url, "--endpoint", "/v1/completions"]
    arguments += ["--model", run.server.model.huggingface_id, "--tokenizer", str(folder)]
    arguments += ["--dataset-name", "random", "--random-input-len", str(run.request.input_len)]
    arguments += ["--random-output-len", str(tokens), "--num-prompts", str(batch), "--seed", str(900_000 + batch)]
    return [*arguments, "--ignore-eos", "--temperature", "1.0", "--disable-tqdm"]


def bench_command(arguments: list[str], result: Path) -> list[str]:
    """The command line of a client that writes its result to `result`."""
    names = ["--save-result", "--result-dir", str(result.parent), "--result-filename", result.name]
    return ["vllm", "bench", "serve", *arguments, *names]


class BenchClient:
    """Runs the client with one set of arguments after the other.

    A process that has imported `vllm.benchmarks` once serves all calls, because a start costs about 25 s (begun when
    this object is made, waited for at the first call); where vLLM cannot be imported by this Python, every call is a
    command `vllm bench serve`. `kind` says which.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "client.log"
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            words = [sys.executable, "-m", "hw_validation.server.client_worker"]
            self._worker = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

    @cached_property
    def kind(self) -> str:
        """`library` or `command`; waits until the process has told."""
        return "library" if self._read_line().get("ready") else "command"

    def __enter__(self) -> BenchClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._worker.stdin is not None:
            self._worker.stdin.close()
        try:
            self._worker.wait(5)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()
        if self._worker.stdout is not None:
            self._worker.stdout.close()

    def run(self, arguments: list[str]) -> dict[str, Any]:
        """The client's result document. Raises BenchmarkError."""
        self._count += 1
        if self.kind == "library":
            return self._call(arguments)
        result = self._folder / f"result-{self._count}.json"
        return run_command(arguments, result, self._log)

    def _call(self, arguments: list[str]) -> dict[str, Any]:
        assert self._worker.stdin is not None
        try:
            self._worker.stdin.write(json.dumps(arguments).encode() + b"\n")
            self._worker.stdin.flush()
        except OSError:
            raise BenchmarkError(f"the benchmark client ended: {tail(self._log)}") from None
        answer = self._read_line()
        if "error" in answer:
            raise BenchmarkError(f"the benchmark client failed: {answer['error']}")
        return answer["result"]

    def _read_line(self) -> dict[str, Any]:
        assert self._worker.stdout is not None
        line = self._worker.stdout.readline()
        if not line:
            return {"error": f"it ended; {tail(self._log)}"}
        return json.loads(line)


def run_command(arguments: list[str], result: Path, log: Path) -> dict[str, Any]:
    """One `vllm bench serve`; its result document. Raises BenchmarkError."""
    result.unlink(missing_ok=True)
    try:
        with log.open("ab") as output:
            done = subprocess.run(
                installed(bench_command(arguments, result)), stdout=output, stderr=output, check=False
            )
    except FileNotFoundError:
        raise BenchmarkError("vllm: command not found; install vLLM, or put it on PATH") from None
    if done.returncode or not result.is_file():
        raise BenchmarkError(f"vllm bench serve ended with exit code {done.returncode}: {tail(log)}")
    return json.loads(result.read_text(encoding="utf-8"))


def _concurrency(run: PlannedRun) -> int:
    return run.request.concurrency or (1 if run.server.model.is_diffusion else 16)


def _num_prompts(run: PlannedRun) -> int:
    """Requests of the run, with the simulator's default."""
    return make_workload(run.request, run.server.model).num_prompts


def _share(total: int, parts: int, part: int) -> int:
    """The part's share of a total that is spread evenly, at least 1."""
    return max(1, total // parts + (part < total % parts))
