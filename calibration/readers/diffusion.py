"""LLaDA runs of an eager Python loop, one prompt at a time (columns of seed_measurements/diffusion.csv)."""

from __future__ import annotations

from calibration.readers.table import Row
from calibration.runs import MeasuredRun
from moesim.scenarios import Request

METRICS = ("output_tok_per_s", "prompt_mean_ms")
_PROMPT_TOKENS = 60
"""Prompts are short questions of about 60 tokens; their exact lengths were not recorded."""


def read_row(row: Row) -> MeasuredRun | str:
    """A row as a measured run: eager, every expert called on its own, every position recomputed."""
    request = Request(
        model=row.text("model"),
        hardware=row.text("gpu_model"),
        gpus=row.integer("gpus_used"),
        input_len=_PROMPT_TOKENS,
        generation_len=row.integer("gen_tokens"),
        steps=row.integer("steps"),
        block_len=row.integer("block_tokens"),
        cfg_scale=row.number("cfg_scale"),
        cache="none",
        expert_execution="loop",
        enforce_eager=True,
        concurrency=1,
        num_prompts=row.integer("num_prompts"),
        max_num_seqs=1,
        engine_version="reference",
    )
    return MeasuredRun(id=row.identity, engine="llada", request=request, measured=row.measured(METRICS))
