"""Offline batches: `vllm.LLM` in a process of its own, which probes itself and appends the records.

python -m hw_validation.server.offline JOB.json
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from hw_validation.experiment.runs import PlannedRun, Server
from hw_validation.experiment.warm_up import WARM_UP_TOKENS, warm_up_batches
from hw_validation.machine.sampler import GpuSampler, choose_reader
from hw_validation.records import Environment, RecordLog, make_record
from hw_validation.server.bench import BenchmarkError
from hw_validation.server.expert_counts import count_experts, load_statistics
from hw_validation.server.options import RunOptions
from hw_validation.server.probe import MISSING, Facts, ServerMismatchError, check_facts, collect
from hw_validation.server.process import supervised, tail
from hw_validation.server.setup import make_setup
from hw_validation.server.variables import server_variables
from hw_validation.summaries import summarize
from moesim.errors import InputError
from moesim.scenarios import make_scenario, make_workload

_MISMATCH = 4


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is told."""

    server: Server
    runs: list[PlannedRun]
    log: str
    folder: str
    machine: Environment
    period_s: float


def measure_offline(
    server: Server, runs: list[PlannedRun], log: Path, folder: Path, options: RunOptions, machine: Environment
) -> list[str]:
    """Measure all runs in one process with one engine; the reasons of those that failed.

    Raises:
        ServerMismatchError: the engine resolved to other settings than planned.
    """
    job = Job(
        server=server,
        runs=runs,
        log=str(log),
        folder=str(folder),
        machine=machine,
        period_s=options.sample_period_s,
    )
    options.work_dir.mkdir(parents=True, exist_ok=True)
    path, output = options.work_dir / "offline.json", options.work_dir / "offline.log"
    path.write_bytes(msgspec.json.encode(job))
    command = [sys.executable, "-m", "hw_validation.server.offline", str(path)]
    with supervised(command, server_variables(server), output) as process:
        code = process.wait()
    if code == _MISMATCH:
        raise ServerMismatchError(tail(output).rsplit("mismatch: ", 1)[-1])
    if code == 0:
        return []
    known = RecordLog(log)
    reason = f"the offline engine ended with exit code {code}: {tail(output)}"
    print(f"{server.name}: {reason}", file=sys.stderr, flush=True)
    return [f"{run.key}: {reason}" for run in runs if run.key not in known]


def engine_words(server: Server, folder: str) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for the plan. Raises InputError for data parallelism, which needs a server."""
    deployment, measurement = server.deployment, server.measurement
    if deployment.data_parallel_size > 1:
        raise InputError(f"dp: {deployment.data_parallel_size} needs a server; offline runs have one engine")
    words: dict[str, Any] = {
        "model": folder,
        "tensor_parallel_size": deployment.tensor_parallel_size,
        "pipeline_parallel_size": deployment.pipeline_parallel_size,
        "enable_expert_parallel": deployment.expert_parallel_size > 1,
        "max_num_seqs": deployment.max_num_seqs,
        "max_num_batched_tokens": deployment.max_num_batched_tokens,
        "max_model_len": deployment.max_model_len,
        "enforce_eager": deployment.enforce_eager,
        "enable_prefix_caching": deployment.enable_prefix_caching,
        "enable_chunked_prefill": deployment.enable_chunked_prefill,
        "async_scheduling": deployment.async_scheduling,
        "kv_cache_dtype": deployment.kv_cache_dtype,
        "gpu_memory_utilization": deployment.gpu_memory_utilization,
        "load_format": measurement.load_format,
        "skip_tokenizer_init": True,
        "disable_log_stats": False,
    }
    if deployment.expert_parallel_size > 1:
        words["expert_placement_strategy"] = deployment.expert_map
    if deployment.quantization != "none":
        words["quantization"] = deployment.quantization
    if measurement.return_routed_experts:
        words["enable_return_routed_experts"] = True
    return words


def main(arguments: list[str] | None = None) -> int:
    """Measure the job of the given file."""
    path = Path((sys.argv[1:] if arguments is None else arguments)[0])
    job = msgspec.json.decode(path.read_bytes(), type=Job)
    try:
        _measure(job)
    except ServerMismatchError as error:
        print(f"mismatch: {error}", flush=True)
        return _MISMATCH
    return 0


def _measure(job: Job) -> None:
    try:
        import vllm
    except ImportError as error:
        raise InputError(f"vLLM cannot be imported ({error}); install moesim[hw] on the GPU machine") from None
    engine = vllm.LLM(**engine_words(job.server, job.folder))
    facts = engine_facts(engine.llm_engine.vllm_config, vllm.__version__)
    check_facts(job.server, facts, "the offline engine")
    log, (source, reader) = RecordLog(Path(job.log)), choose_reader()
    for run in job.runs:
        prompts = draw_prompts(run)
        for batch in warm_up_batches(make_scenario(run.request)):
            _generate(engine, prompts[:batch], WARM_UP_TOKENS)
        engine.reset_prefix_cache()
        with GpuSampler(reader, job.period_s) as sampler:
            outputs, duration_s = _generate(engine, prompts, run.request.output_len)
        values = summarize_outputs(outputs, prompts, duration_s) | sampler.values()
        tables: dict[str, list[Any]] = {}
        if run.server.measurement.return_routed_experts:
            counts = count_experts([out.outputs[0].routed_experts for out in outputs], run.server.model)
            tables["expert_counts"] = counts
            values |= load_statistics(counts)
        setup = make_setup(job.server, job.machine, facts, {"gpu_samples_from": source})
        point = msgspec.to_builtins(run.request) | {"repeat": run.repeat, "prompt_seed": run.seed}
        log.append(make_record("closed_loop", run.key, setup, point, values=values, tables=tables))
        print(f"{run.key}: output_tokens_per_s={values['output_tokens_per_s']:.4g}", flush=True)


def engine_facts(config: Any, version: str) -> Facts:
    """The facts of an engine in this process, under the same names as a server's."""
    values = collect(lambda part, name: getattr(getattr(config, part, None), name, MISSING))
    plain = {name: value if isinstance(value, bool | int | list) else str(value) for name, value in values.items()}
    plain["routing_strategy"] = os.environ.get("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "")
    return Facts(version=version, values=plain)


def draw_prompts(run: PlannedRun) -> list[list[int]]:
    """Random prompts of token ids; the first `shared_prefix_len` tokens are the same in all."""
    draw, request = random.Random(run.seed), run.request
    vocabulary = range(run.server.model.vocab_size)
    prefix = draw.choices(vocabulary, k=request.shared_prefix_len)
    spread = int(request.input_len * request.range_ratio)
    count = make_workload(request, run.server.model).num_prompts
    lengths = [request.input_len + (draw.randint(-spread, spread) if spread else 0) for _ in range(count)]
    return [prefix + draw.choices(vocabulary, k=max(1, length - len(prefix))) for length in lengths]


def _generate(engine: Any, prompts: list[list[int]], tokens: int) -> tuple[list[Any], float]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    begin = time.perf_counter()
    outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return outputs, time.perf_counter() - begin


def summarize_outputs(outputs: list[Any], prompts: list[list[int]], duration_s: float) -> dict[str, float | None]:
    """Values of an offline batch. Times of requests are left out where the engine kept no statistics."""
    tokens = [len(output.outputs[0].token_ids) for output in outputs]
    if not outputs or min(tokens) == 0:
        raise BenchmarkError("the offline engine answered a request with no token")
    values: dict[str, float | None] = {
        "num_requests": float(len(outputs)),
        "duration_s": duration_s,
        "requests_per_s": len(outputs) / duration_s,
        "output_tokens_per_s": sum(tokens) / duration_s,
        "total_tokens_per_s": (sum(tokens) + sum(map(len, prompts))) / duration_s,
    }
    kept = [(output.metrics, count) for output, count in zip(outputs, tokens, strict=True) if output.metrics]
    values |= summarize("ttft", "ms", [1e3 * metrics.first_token_latency for metrics, _ in kept])
    gaps = [1e3 * (m.last_token_ts - m.first_token_ts) / (count - 1) if count > 1 else None for m, count in kept]
    return values | summarize("tpot", "ms", gaps)


if __name__ == "__main__":
    sys.exit(main())
