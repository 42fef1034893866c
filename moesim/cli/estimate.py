"""`moesim estimate`: one step or one steady state in closed form."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moesim.cli import options as o


def estimate(
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
    all2all_backend: o.AllToAllName = "allgather_reducescatter",
    moe_backend: o.MoeBackendName = "triton",
    batch: Annotated[int, typer.Option(help="Sequences decoding at once on each data-parallel rank.")] = 16,
    input_len: o.InputLen = 512,
    output_len: o.OutputLen = 128,
    routing: o.RoutingText = "uniform",
    seed: o.Seed = 0,
    parameters: o.ParameterFile = None,
    enforce_eager: o.EnforceEager = False,
    async_scheduling: o.AsyncScheduling = True,
    kv_cache_dtype: o.KvDtype = "auto",
    quantization: o.Quantization = None,
    max_num_seqs: o.MaxNumSeqs = None,
    max_num_batched_tokens: o.MaxBatchedTokens = None,
    gpu_memory_utilization: o.MemoryUtilization = 0.9,
    as_json: o.AsJson = False,
    csv: o.CsvFile = None,
) -> None:
    """Break one decode step and one prompt down by operator, say what limits them, and give the memory plan.

    No simulation: no queueing, every rank busy with --batch sequences.

    Example: moesim estimate --model dbrx --hardware h200 --gpus 4
    """
    words = {name: value for name, value in locals().items() if name not in {"batch", "as_json", "csv"}}
    from moesim.cli.output import deliver
    from moesim.planner.steady_state import steady_state
    from moesim.words import to_scenario

    answer = steady_state(to_scenario(words), batch)
    deliver(answer.rows(), answer.to_dict, lambda: _show(answer), as_json, csv)


def _show(answer: Any) -> None:
    from moesim.cli.output import print_table, stdout

    print_table(answer.title, answer.rows(), "Slowest rank. prefill: one whole prompt (or the first chunk).")
    document = answer.to_dict()
    summary = [{"quantity": name, "value": document[name]} for name in _SUMMARY]
    summary += [{"quantity": f"memory {name}", "value": value} for name, value in document["memory"].items()]
    print_table("Steady state", summary)
    stdout().print(f"Parameter set {document['parameter_set']['name']}")


_SUMMARY = (
    "decode_step_ms",
    "prefill_step_ms",
    "tpot_ms",
    "output_tokens_per_s",
    "decode_limited_by",
    "prefill_limited_by",
    "expert_imbalance_ms",
)
