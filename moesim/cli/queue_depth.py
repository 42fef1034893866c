"""`moesim queue-depth`: sequences in flight, tokens in a step, tokens per expert, told apart."""

from __future__ import annotations

from typing import Any

from moesim.cli import options as o


def queue_depth(
    model: o.ModelName = "",
    hardware: o.HardwareName = "",
    gpus: o.Gpus = None,
    nodes: o.Nodes = None,
    tp: o.Tp = None,
    dp: o.Dp = None,
    ep: o.Ep = None,
    expert_map: o.ExpertMap = "linear",
    redundant_experts: o.RedundantExperts = None,
    placement: o.PlacementFile = None,
    all2all_backend: o.AllToAllName = "allgather_reducescatter",
    input_len: o.InputLen = 512,
    output_len: o.OutputLen = 128,
    routing: o.RoutingText = "uniform",
    seed: o.Seed = 0,
    parameters: o.ParameterFile = None,
    enforce_eager: o.EnforceEager = False,
    quantization: o.Quantization = None,
    max_num_seqs: o.MaxNumSeqs = None,
    as_json: o.AsJson = False,
    csv: o.CsvFile = None,
) -> None:
    """How deep the queue must be before experts are bound by arithmetic, and what a step takes there.

    Example: moesim queue-depth --model deepseek-v3 --hardware h200 --gpus 16 --tp 1 --dp 16 --ep 16 --routing zipf:0.5
    """
    words = {name: value for name, value in locals().items() if name not in {"as_json", "csv"}}
    from moesim.cli.output import print_json, write_csv
    from moesim.planner.queue_depth import queue_depth_report
    from moesim.words import to_scenario

    report = queue_depth_report(to_scenario(words)).to_dict()
    if csv:
        write_csv(csv, [_flat(row) for row in report["depths"]])
    elif as_json:
        print_json(report)
    else:
        _show(report)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    spread = {f"tokens_per_expert_{name}": value for name, value in row["tokens_per_expert"].items()}
    return {**{name: value for name, value in row.items() if name != "tokens_per_expert"}, **spread}


def _show(report: dict[str, Any]) -> None:
    from moesim.cli.output import print_table, stdout

    names = {
        "sequences_per_rank": "sequences a rank",
        "tokens_per_group_step": "tokens a step, all ranks",
        "step_ms": "step ms",
        "step_with_dual_batch_overlap_ms": "with overlap ms",
        "routed_experts_ms": "experts ms",
        "expert_exchange_ms": "exchange ms",
        "experts_memory_share": "experts wait for memory",
        "output_tokens_per_s": "tokens/s",
    }
    rows: list[dict[str, Any]] = []
    for row in report["depths"]:
        spread = row["tokens_per_expert"]
        per_expert = f"{spread['mean']:.1f} ({spread['p10']:.0f} to {spread['p90']:.0f})"
        shown = {label: row[name] for name, label in names.items()}
        rows.append({**shown, "tokens an expert": per_expert, "idle experts": spread["idle_experts"]})
    note = "Tokens an expert: mean (p10 to p90). Overlap: two half batches, exchange behind the other half."
    print_table(f"Queue depth of {report['model']} on {report['hardware']}", rows, note)
    print_table("Experts bound by memory until", report["memory_bound_until"])
    pays = report["dual_batch_overlap_pays_from_sequences_per_rank"]
    stdout().print(
        f"Dual-batch overlap pays from {pays} sequences a rank." if pays else "Dual-batch overlap never pays here."
    )
