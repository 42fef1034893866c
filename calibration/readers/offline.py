"""Offline vLLM batches of identical prompts (columns of seed_measurements/offline_batch.csv)."""

from __future__ import annotations

from calibration.readers.table import Row
from calibration.runs import MeasuredRun
from moesim.scenarios import Request

METRICS = ("output_tok_per_s", "elapsed_s")


def read_row(row: Row) -> MeasuredRun | str:
    """A row as a measured run. Identical prompts choose identical experts and find their prefix cached."""
    flags = tuple(part for part in row.text("flags").split(";") if part)
    tokens = row.integer("input_tokens")
    request = Request(
        model=row.text("model"),
        hardware=row.text("gpu_model"),
        gpus=row.integer("gpus_used"),
        tp=row.integer("tp"),
        dp=row.integer("dp"),
        ep=row.integer("ep"),
        input_len=tokens,
        output_len=row.integer("output_tokens"),
        request_rate=float("inf"),
        num_prompts=row.integer("num_prompts"),
        cached_prefix_len=tokens if "prefix_cached" in flags else 0,
        routing="identical" if "identical_prompts" in flags else "uniform",
        enforce_eager=row.text("exec_mode") == "eager",
        moe_backend="aiter" if row.text("moe_backend").upper().startswith("AITER") else "triton",
        frontend="offline",
    )
    return MeasuredRun(id=row.identity, engine="vllm", request=request, measured=row.measured(METRICS), flags=flags)
