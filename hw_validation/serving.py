"""Measure closed loops against a real server: `vllm serve`, and the client of `vllm bench serve` beside it.

python -m hw_validation.serving --model olmoe-1b-7b --out serving.jsonl --budget-s 240

The client is vLLM's own, imported once and called for each point. What the server adds to an engine in this process
(HTTP, tokenizer, serialisation between processes) is the difference to `hw_validation.vllm_sweep`'s closed loops.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hw_validation.dummy_models import write_model_folder
from hw_validation.dummy_server import call_workers, running_server, served_models
from hw_validation.dummy_tokenizer import write_tokenizer
from hw_validation.environment import read_environment, software_versions
from hw_validation.plan import ClosedLoopPoint
from hw_validation.records import RecordLog, Setup, make_record
from hw_validation.standby import wait_for_go
from hw_validation.summaries import summarize
from moesim.errors import InputError
from moesim.specs.catalog import get_model
from moesim.specs.model import Model

CONCURRENCIES = (1, 4, 16, 64, 256)
MIXES = ((256, 128), (1024, 64))
WARM_UP = ((16, 64), (4, 1024), (256, 256))
_PORT = 8011
_MAX_LEN = 4096
_MAX_SEQS = 256
_EXIT_S = 6.0
_EXTENSION = "hw_validation.serving_worker.WorkerExtension"

Bench = Callable[[Sequence[str]], Mapping[str, Any]]


def points(waves: int = 4) -> Iterator[ClosedLoopPoint]:
    """All closed loops, the mixes in turn at each concurrency."""
    for concurrency in CONCURRENCIES:
        for input_len, output_len in MIXES:
            count = max(4, concurrency * (waves if concurrency <= 64 else 2))
            yield ClosedLoopPoint(
                concurrency=concurrency, input_len=input_len, output_len=output_len, num_requests=count
            )


def client_words(address: str, folder: Path, point: ClosedLoopPoint, seed: int) -> list[str]:
    """Arguments of vLLM's benchmark client for one point."""
    options = {
        "backend": "openai",
        "base-url": address,
        "endpoint": "/v1/completions",
        "model": str(folder),
        "dataset-name": "random",
        "random-input-len": point.input_len,
        "random-output-len": point.output_len,
        "num-prompts": point.num_requests,
        "max-concurrency": point.concurrency,
        "seed": seed,
        "temperature": 1.0,
        "ready-check-timeout-sec": 0,
    }
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [*words, "--ignore-eos", "--disable-tqdm", "--save-detailed"]


def summarize_client(result: Mapping[str, Any], point: ClosedLoopPoint) -> dict[str, float | None]:
    """The client's figures under this project's names.

    Raises:
        InputError: requests that failed or answers of another length, which would make every figure wrong.
    """
    lengths = [int(length) for length in result["output_lens"]]
    if result["completed"] != point.num_requests or set(lengths) != {point.output_len}:
        raise InputError(f"{result['completed']} of {point.num_requests} requests answered, lengths {set(lengths)}")
    if set(result["input_lens"]) != {point.input_len}:
        raise InputError(f"prompts have {set(result['input_lens'])} tokens, asked were {point.input_len}")
    ttfts = [1e3 * float(seconds) for seconds in result["ttfts"]]
    gaps = [[1e3 * float(gap) for gap in gaps] for gaps in result["itls"]]
    whole = [first + sum(rest) for first, rest in zip(ttfts, gaps, strict=True)]
    per_token = [sum(rest) / (point.output_len - 1) for rest in gaps]
    duration_s = float(result["duration"])
    values: dict[str, float | None] = {
        "num_requests": float(point.num_requests),
        "duration_s": duration_s,
        "requests_per_s": point.num_requests / duration_s,
        "output_tokens_per_s": sum(lengths) / duration_s,
        "total_tokens_per_s": (sum(lengths) + point.num_requests * point.input_len) / duration_s,
        "chunks_per_request": sum(map(len, gaps)) / len(gaps) + 1,
    }
    values |= summarize("ttft", "ms", ttfts) | summarize("tpot", "ms", per_token)
    values |= summarize("itl", "ms", [gap for rest in gaps for gap in rest]) | summarize("e2e", "ms", whole)
    return values


def measure(bench: Bench, address: str, folder: Path, log: RecordLog, setup: Setup, deadline_s: float) -> bool:
    """Warm up, then measure every point that the log lacks. False when time ran out first."""
    for seed, (concurrency, input_len) in enumerate(WARM_UP):
        warm = ClosedLoopPoint(concurrency=concurrency, input_len=input_len, output_len=8, num_requests=concurrency)
        bench(client_words(address, folder, warm, 1000 + seed))
    for seed, point in enumerate(points()):
        key = f"{setup.model}/{setup.num_layers}layers/server/{point.key}"
        if key in log:
            continue
        if time.perf_counter() > deadline_s:
            return False
        result = bench(client_words(address, folder, point, seed))
        described: dict[str, Any] = msgspec.to_builtins(point)
        content: dict[str, Any] = {"values": summarize_client(result, point), "tables": requests_table(result)}
        log.append(make_record("closed_loop", key, setup, described, **content))
        print(
            f"{key}: ttft {content['values']['ttft_median_ms']} tpot {content['values']['tpot_median_ms']}", flush=True
        )
    return True


def requests_table(result: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Each request's sending time (s, from the first) and time to first token (ms)."""
    begin = min(result["start_times"])
    return {
        "sent_s": [round(float(sent - begin), 5) for sent in result["start_times"]],
        "ttft_ms": [round(1e3 * float(seconds), 3) for seconds in result["ttfts"]],
    }


def load_bench() -> Bench:
    """vLLM's benchmark client as a function of its arguments.

    Raises:
        InputError: vLLM is not installed.
    """
    try:
        from vllm.benchmarks.serve import add_cli_args, main
    except ImportError as error:
        raise InputError(f"vLLM cannot be imported ({error}); install moesim[hw] on the GPU machine") from None
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    return lambda words: main(parser.parse_args(list(words)))


def server_words() -> list[str]:
    """Arguments of the server, the same limits as the in-process engine's where the server's defaults differ."""
    return [
        "--load-format=dummy",
        "--dtype=bfloat16",
        "--no-enable-prefix-caching",
        f"--max-model-len={_MAX_LEN}",
        f"--max-num-seqs={_MAX_SEQS}",
        "--gpu-memory-utilization=0.92",
        f"--worker-extension-cls={_EXTENSION}",
        "--disable-uvicorn-access-log",
    ]


def describe(model: Model, flags: dict[str, Any]) -> Setup:
    """What runs: the model whole, on a server."""
    return Setup(
        model=model.name,
        num_layers=model.num_layers,
        weights="dummy",
        engine="vllm",
        engine_version=software_versions()["vllm"],
        environment=read_environment(),
        flags=flags,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the session that the command line asks for. Exit code 3 when the budget ended it early."""
    begin = time.perf_counter()
    options = _parser().parse_args(arguments)
    try:
        model = get_model(options.model)
        folder = write_model_folder(model, options.folder / f"{model.name}-served")
        write_tokenizer(folder, model.vocab_size)
        bench = load_bench()
        print(f"{model.name}: prepared after {time.perf_counter() - begin:.0f} s", flush=True)
        if options.standby:
            granted_s = wait_for_go()
            if granted_s is None:
                return 3
            begin, options.budget_s = time.perf_counter(), granted_s
        complete = _session(bench, model, folder, options, begin + options.budget_s - _EXIT_S)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if complete else 3


def _session(bench: Bench, model: Model, folder: Path, options: argparse.Namespace, deadline_s: float) -> bool:
    begin, log = time.perf_counter(), RecordLog(options.out)
    server_log = options.out.with_suffix(".server.log")
    with running_server(folder, _PORT, server_words(), deadline_s, server_log) as address:
        start_s = time.perf_counter() - begin
        print(f"{model.name}: ready after {start_s:.0f} s", flush=True)
        if served_models(address) != [str(folder)]:
            raise InputError(f"the server on port {_PORT} serves {served_models(address)}, not {folder}")
        loads = call_workers(address, "condition_dummy_weights", str(model.moe.top_k if model.moe else 0))[0]
        flags: dict[str, Any] = {"frontend": "server", "enforce_eager": False, "arguments": server_words()}
        flags |= {"start_s": start_s, "max_num_seqs": _MAX_SEQS, "max_model_len": _MAX_LEN} | loads
        complete = measure(bench, address, folder, log, describe(model, flags), deadline_s)
    print(f"{model.name}: {len(log.keys)} records after {time.perf_counter() - begin:.0f} s", flush=True)
    return complete


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="name in configs/models")
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file of records, resumed when it exists")
    parser.add_argument("--budget-s", type=float, default=300.0, help="seconds from process start to a clean stop")
    parser.add_argument("--standby", action="store_true", help="prepare, then wait for `go UNTIL` on standard input")
    folder = Path(tempfile.gettempdir()) / "moesim-models"
    parser.add_argument("--folder", type=Path, default=folder, help="where the model folder is written")
    return parser


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
