"""`moesim simulate`: one deployment under one load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli import options as o

if TYPE_CHECKING:
    from moesim.metrics.result import SimulationResult
    from moesim.specs.scenario import Scenario


def simulate(
    model: o.ModelName = "",
    hardware: o.HardwareName = "",
    gpus: o.Gpus = None,
    nodes: o.Nodes = None,
    tp: o.Tp = None,
    dp: o.Dp = None,
    ep: o.Ep = None,
    pp: o.Pp = 1,
    expert_map: o.ExpertMap = "linear",
    redundant_experts: o.RedundantExperts = None,
    placement: o.PlacementFile = None,
    enable_eplb: o.EnableEplb = False,
    eplb_window: o.EplbWindow = 1000,
    eplb_interval: o.EplbInterval = 3000,
    eplb_sync: o.EplbSync = False,
    drift_steps: o.DriftSteps = 0,
    all2all_backend: o.AllToAllName = "allgather_reducescatter",
    moe_backend: o.MoeBackendName = "triton",
    input_len: o.InputLen = 512,
    output_len: o.OutputLen = 128,
    range_ratio: o.RangeRatio = 0.0,
    concurrency: o.Concurrency = None,
    request_rate: o.RequestRate = None,
    burstiness: o.Burstiness = 1.0,
    trace: o.TraceFile = None,
    num_prompts: o.NumPrompts = None,
    shared_prefix_len: o.SharedPrefix = 0,
    cached_prefix_len: o.CachedPrefix = 0,
    routing: o.RoutingText = "uniform",
    seed: o.Seed = 0,
    parameters: o.ParameterFile = None,
    frontend: o.FrontendName = None,
    max_num_seqs: o.MaxNumSeqs = None,
    max_num_batched_tokens: o.MaxBatchedTokens = None,
    max_model_len: o.MaxModelLen = None,
    enforce_eager: o.EnforceEager = False,
    enable_prefix_caching: o.PrefixCaching = True,
    enable_chunked_prefill: o.ChunkedPrefill = True,
    async_scheduling: o.AsyncScheduling = True,
    kv_cache_dtype: o.KvDtype = "auto",
    quantization: o.Quantization = None,
    gpu_memory_utilization: o.MemoryUtilization = 0.9,
    generation_len: o.GenerationLen = None,
    steps: o.Steps = None,
    block_len: o.BlockLen = None,
    cfg_scale: o.CfgScale = 0.0,
    cache: o.CacheName = None,
    expert_execution: o.ExpertExecution = "grouped",
    perfetto: Annotated[
        str | None, typer.Option("--perfetto", help="Write a timeline for ui.perfetto.dev to this file.")
    ] = None,
    as_json: o.AsJson = False,
    csv: o.CsvFile = None,
) -> None:
    """Predict latency, throughput, memory and utilisation of one deployment under one load.

    Give one of --concurrency (clients that wait for their answers), --request-rate (arrivals, whoever waits) or
    --trace; without any, 16 clients. Sizes that are not given follow from --gpus: tensor parallelism takes them all.
    Data-parallel replicas are independent servers unless --ep spreads the experts over them.

    Example: moesim simulate --model mixtral-8x7b --hardware h200 --gpus 8 --concurrency 64
    """
    words = {name: value for name, value in locals().items() if name not in _NOT_WORDS}
    _run_one(words, perfetto, as_json, csv)


_NOT_WORDS = {"perfetto", "as_json", "csv"}


def _run_one(words: dict[str, Any], perfetto: str | None, as_json: bool, csv: str | None) -> None:
    from moesim.cli.output import deliver
    from moesim.metrics.row import result_row
    from moesim.simulation import simulate_scenario, simulate_with_trace
    from moesim.words import to_scenario

    scenario = to_scenario(words)
    result = simulate_scenario(scenario) if perfetto is None else _traced(scenario, perfetto, simulate_with_trace)
    deliver([result_row(scenario, result)], result.to_dict, lambda: show_result(scenario, result), as_json, csv)


def _traced(scenario: Scenario, path: str, simulate_with_trace: Any) -> SimulationResult:
    from pathlib import Path

    from moesim.cli.output import stderr, write_atomic
    from moesim.errors import InputError
    from moesim.metrics.perfetto import to_perfetto

    if scenario.model.is_diffusion:
        raise InputError(f"perfetto: no timeline is written for masked-diffusion models ({scenario.model.name})")
    result, run = simulate_with_trace(scenario)
    write_atomic(Path(path), to_perfetto(run))
    stderr().print(f"timeline written to {path}; open it at ui.perfetto.dev")
    return result


def show_result(scenario: Scenario, result: SimulationResult) -> None:
    """Tables for people."""
    from moesim.cli.output import print_table, stdout

    deployment, cluster = scenario.deployment, scenario.cluster
    sizes = f"tp {deployment.tensor_parallel_size}, dp {deployment.data_parallel_size}"
    sizes += f", ep {deployment.expert_parallel_size}, pp {deployment.pipeline_parallel_size}"
    title = f"{scenario.model.name} on {cluster.num_accelerators} x {cluster.accelerator.name} ({sizes})"
    print_table(title, _rate_rows(result))
    print_table("Latency", _latency_rows(result), _latency_note(result))
    total = result.breakdown.total_s or 1.0
    ordered = sorted(result.breakdown.operators.items(), key=lambda item: -item[1])
    rows = [{"operator": name, "seconds": value, "share": f"{value / total:.1%}"} for name, value in ordered]
    print_table(f"Where the time goes (limited by {result.breakdown.limited_by})", rows)
    state = "calibrated" if result.calibrated else "uncalibrated: data-sheet priors, wide intervals"
    stdout().print(f"Parameter set {result.parameter_set} ({state}); seed {result.seed}; digest {result.digest[:12]}")


def _rate_rows(result: SimulationResult) -> list[dict[str, Any]]:
    low, high = result.interval_90.get("output_tokens_per_s", (None, None))
    use, memory = result.utilization, result.memory
    values: list[tuple[str, Any]] = [
        ("output tokens/s", result.output_tokens_per_s),
        ("  90 % interval", f"{low:,.0f} to {high:,.0f}" if low is not None and high is not None else None),
        ("output tokens/s per GPU", result.output_tokens_per_s_per_gpu),
        ("total tokens/s (with prompts)", result.total_tokens_per_s),
        ("requests/s", result.requests_per_s),
        ("sequences in flight (mean)", result.mean_running),
        ("GPU busy", f"{use.gpu_busy:.0%}"),
        ("HBM bandwidth used", f"{use.hbm_bandwidth:.0%}"),
        ("bf16 FLOPs used", f"{use.flops:.1%}"),
        ("time in collectives", f"{use.network_time:.0%}"),
        ("weights per GPU", f"{memory.weights_bytes / 1e9:.1f} GB"),
        ("KV pool per GPU", f"{memory.kv_pool_bytes / 1e9:.1f} GB = {memory.kv_tokens:,} tokens"),
        ("peak KV use", f"{result.peak_kv_share:.0%}"),
        ("preemptions", result.preemptions),
    ]
    if result.imbalance is not None:
        load = result.imbalance
        values.append(("experts touched per layer and step", load.distinct_experts))
        values.append(("expert load max/mean, Gini", f"{load.max_over_mean:.2f}, {load.gini:.2f}"))
    return [{"quantity": name, "value": value} for name, value in values]


def _latency_rows(result: SimulationResult) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        value = getattr(result, name)
        if value is not None:
            low, high = result.interval_90.get(name, (None, None))
            bounds = f"{low:,.1f} to {high:,.1f}" if low is not None and high is not None else None
            rows.append({"ms": name.removesuffix("_ms").upper(), **value.as_dict(), "mean_90": bounds})
    return rows


def _latency_note(result: SimulationResult) -> str:
    if result.decoding == "masked_diffusion":
        return "TTFT: time to the first finished block. TPOT: ms per emitted token after it."
    return ""
