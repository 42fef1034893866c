"""Closed-loop runs of the vLLM benchmark client (columns of seed_measurements/serving.csv)."""

from __future__ import annotations

from calibration.readers.table import Row
from calibration.runs import MeasuredRun
from moesim.scenarios import Request

METRICS = ("output_tok_per_s", "itl_p50_ms", "tpot_p50_ms", "ttft_p50_ms")
_ROUTING = {"mixtral": "zipf:0.5", "qwen": "zipf:0.6", "olmoe": "zipf:0.6"}
"""Random-token prompts and their greedy answers favour some experts. How fast decode time grows with the batch in the
captured sessions (2 to 32 sequences) tells how much; even routing errs by 4 % there, these exponents by 2.5 %."""
_SHORTER = {512: 128, 1024: 512, 2048: 512}
"""Prompt length whose tokens a longer workload repeats at its start, where a shorter one ran before it."""


def read_row(row: Row) -> MeasuredRun | str:
    """A row as a measured run, or the reason it cannot be predicted."""
    if "precision_unknown_not_bf16" in row.text("flags"):
        return "weight precision unknown: 93 GB of bf16 weights cannot be on one 80 GB card"
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
        concurrency=row.integer("max_concurrency"),
        num_prompts=row.integer("num_prompts"),
        cached_prefix_len=_cached(row.text("prefix_cache"), tokens),
        enforce_eager=row.text("exec_mode") == "eager",
        routing=next((routing for name, routing in _ROUTING.items() if name in row.text("model")), "uniform"),
    )
    flags = tuple(part for part in row.text("flags").split(";") if part)
    session = row.text("session")
    return MeasuredRun(
        id=row.identity,
        engine="vllm",
        request=request,
        measured=row.measured(METRICS),
        flags=flags,
        configuration=f"{session}/concurrency {row.text('max_concurrency')}",
        series=session,
        site=_site(session),
    )


_MACHINES = ("a80x2", "a80x1", "a40x4", "a40x1")
_SINGLE = ("a40x1",)


def _site(session: str) -> str:
    """The machine of a session: sessions on as many cards of a kind share it, single 40 GB cards do not.

    OLMoE and Qwen on one A100-40GB ran on different hosts (the README of the data; launch times differ).
    """
    model, _, rest = session.partition("-")
    machine = next((name for name in _MACHINES if rest.startswith(name)), "")
    return f"{machine}-{model}" if machine in _SINGLE else machine


def _cached(state: str, tokens: int) -> int:
    """Prompt tokens that an earlier run with the same seed left in the prefix cache."""
    if state == "warm":
        return tokens
    return min(_SHORTER.get(tokens, 0), tokens) if state == "partly_warm" else 0
