"""Decode, prefill and mixed steps measured one point at a time."""

from __future__ import annotations

from typing import NamedTuple

from hw_validation.client import Answer, Client
from hw_validation.plan import WARM_STEPS, DecodePoint, Limits, MixedPoint, PrefillPoint, decode_tokens
from hw_validation.step_trace import StepRow
from hw_validation.summaries import summarize
from moesim.errors import InputError

_MIXED_GAP = 4
_TIMES = ("gpu", "forward", "period", "schedule", "launch", "wait")
_PREFILL_TIMES = tuple(name for name in _TIMES if name != "period")


class Measured(NamedTuple):
    """What came out of a point: summary values, and every step that ran for it."""

    values: dict[str, float | None]
    rows: list[StepRow]


def measure_decode(client: Client, point: DecodePoint, limits: Limits) -> Measured:
    """Steps in which exactly `batch_size` sequences decode, less the first few."""
    tokens = decode_tokens(point, limits)
    for _ in range(point.batch_size):
        client.send(point.context_len, tokens, point.temperature)
    client.finish()
    rows = client.engine.drain()
    together = [row for row in rows if row.decodes == point.batch_size and not row.prefill_tokens]
    return Measured(summarize_steps(together[WARM_STEPS:]), rows)


def measure_prefill(client: Client, point: PrefillPoint) -> Measured:
    """Steps that read the prompts whole, in an engine that was idle; the first repeat (which compiles) is left out."""
    answers: list[Answer] = []
    rows: list[StepRow] = []
    for repeat in range(point.repeats + 1):
        for _ in range(point.num_prompts):
            client.send(point.prompt_len, 1)
        done = client.finish()
        drained = client.engine.drain()
        if repeat:
            answers.extend(done)
            rows.extend(drained)
    whole = [row for row in rows if row.prefill_tokens == point.num_prompts * point.prompt_len]
    values = summarize_steps(whole, _PREFILL_TIMES) | summarize("ttft", "ms", [answer.ttft_ms for answer in answers])
    return Measured(values, rows)


def measure_mixed(client: Client, point: MixedPoint) -> Measured:
    """Steps in which a whole prompt joins `batch_size` decodes; the first (which compiles) is left out."""
    tokens = (point.repeats + 2) * _MIXED_GAP + WARM_STEPS + point.batch_size + 8
    decoding = [client.send(point.context_len, tokens) for _ in range(point.batch_size)]
    while any(not answer.tokens_s for answer in client.pending.values()):
        client.step()
    for _ in range(point.repeats + 1):
        client.send(point.prefill_tokens, 1)
        for _ in range(_MIXED_GAP):
            client.step()
    client.abort([request_id for request_id in decoding if request_id in client.pending])
    client.finish()
    rows = client.engine.drain()
    mixed = [row for row in rows if row.prefill_tokens == point.prefill_tokens and row.decodes == point.batch_size]
    return Measured(summarize_steps(mixed[1:]), rows)


def summarize_steps(rows: list[StepRow], times: tuple[str, ...] = _TIMES) -> dict[str, float | None]:
    """Statistics of the steps' `times` and the mean of what was in them. Raises InputError when there are none."""
    if not rows:
        raise InputError("no step had the batch that was asked for")
    values: dict[str, float | None] = {"num_steps": float(len(rows))}
    for name in times:
        values |= summarize(name, "ms", [getattr(row, f"{name}_ms") for row in rows])
    for name in ("prefill_tokens", "decodes", "context_tokens", "prefill_pairs"):
        values[f"{name}_mean"] = sum(getattr(row, name) for row in rows) / len(rows)
    padded = [row.padded_tokens for row in rows if row.padded_tokens is not None]
    values["padded_tokens_mean"] = sum(padded) / len(padded) if padded else None
    return values
