"""A run as a timeline in the Chrome trace format, which Perfetto opens."""

from __future__ import annotations

import json
from typing import Any

from moesim.engine.serving import ServingRun


def to_perfetto(run: ServingRun) -> str:
    """JSON with one track per engine (segments of equal steps), counters, and one slice per request.

    Times are simulated; one segment holds all steps between two batch changes.
    """
    events: list[dict[str, Any]] = [_name(0, None, "engines"), _name(1, None, "requests")]
    for engine, log in enumerate(run.logs):
        events.append(_name(0, engine, f"engine {engine}"))
        for start_s, span_s, steps, decodes, prefill_tokens, waiting, *_ in log.segments:
            kind = f"prefill {prefill_tokens} + decode {decodes}" if prefill_tokens else f"decode {decodes} x {steps}"
            counts = {"steps": steps, "decodes": decodes, "prefill_tokens": prefill_tokens}
            events.append(_slice(0, engine, kind, start_s, span_s, counts))
            events.append(_counter(engine, start_s, decodes, waiting))
    for request in run.requests:
        events.extend(_request_events(request))
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, allow_nan=False)


def _request_events(request: Any) -> list[dict[str, Any]]:
    base = {"cat": "request", "id": request.index, "pid": 1, "tid": 0}
    tokens = {"input_tokens": request.input_tokens, "output_tokens": request.output_tokens}
    return [
        {**base, "ph": "b", "name": "wait and prefill", "ts": request.sent_s * 1e6, "args": tokens},
        {**base, "ph": "e", "name": "wait and prefill", "ts": request.first_token_s * 1e6},
        {**base, "ph": "b", "name": "decode", "ts": request.first_token_s * 1e6},
        {**base, "ph": "e", "name": "decode", "ts": request.last_token_s * 1e6},
    ]


def _slice(pid: int, tid: int, name: str, start_s: float, span_s: float, args: dict[str, int]) -> dict[str, Any]:
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": start_s * 1e6, "dur": span_s * 1e6, "args": args}


def _counter(engine: int, at_s: float, running: int, waiting: int) -> dict[str, Any]:
    args = {"running": running, "waiting": waiting}
    return {"ph": "C", "pid": 0, "name": f"sequences (engine {engine})", "ts": at_s * 1e6, "args": args}


def _name(pid: int, tid: int | None, name: str) -> dict[str, Any]:
    kind = "process_name" if tid is None else "thread_name"
    return {"ph": "M", "pid": pid, "tid": tid or 0, "name": kind, "args": {"name": name}}
