"""Closed and open loops of requests against an engine in this process."""

from __future__ import annotations

import random
import time

from hw_validation.client import Answer, Client
from hw_validation.plan import ClosedLoopPoint, OpenLoopPoint
from hw_validation.step_sweeps import Measured
from hw_validation.summaries import summarize


def run_closed_loop(client: Client, point: ClosedLoopPoint) -> Measured:
    """`concurrency` clients; each sends its next request as soon as its last one is answered.

    Data-parallel replicas share clients and requests evenly; the summary is of all, the steps are this replica's.
    """
    requests, clients = (count // client.peers.replicas for count in (point.num_requests, point.concurrency))
    client.prepare(requests, point.input_len)
    client.submit_s = 0.0
    begin = time.perf_counter()
    for _ in range(min(clients, requests)):
        client.send(point.input_len, point.output_len)
    left = requests - clients
    answers: list[Answer] = []
    while len(answers) < requests:
        for answer in client.step():
            answers.append(answer)
            if left > 0:
                client.send(point.input_len, point.output_len)
                left -= 1
    values = _summarize_loop(client, answers, begin, point.input_len)
    return Measured(values, client.engine.drain())


def run_open_loop(client: Client, point: OpenLoopPoint, requests_per_s: float, seed: int = 0) -> Measured:
    """Requests arrive as a Poisson process of `requests_per_s`, whether or not earlier ones are answered."""
    client.prepare(point.num_requests, point.input_len)
    client.submit_s = 0.0
    draw = random.Random(seed)
    begin = due = time.perf_counter()
    left = point.num_requests
    answers: list[Answer] = []
    while len(answers) < point.num_requests:
        while left and time.perf_counter() >= due:
            client.send(point.input_len, point.output_len)
            due += draw.expovariate(requests_per_s)
            left -= 1
        if client.pending:
            answers.extend(client.step())
        elif left:
            time.sleep(max(0.0, min(due - time.perf_counter(), client.deadline_s - time.perf_counter())))
            answers.extend(client.step() if time.perf_counter() > client.deadline_s else ())
    values = _summarize_loop(client, answers, begin, point.input_len) | {"offered_requests_per_s": requests_per_s}
    return Measured(values, client.engine.drain())


def _summarize_loop(client: Client, answers: list[Answer], begin_s: float, input_len: int) -> dict[str, float | None]:
    submit_mean_ms = 1e3 * client.submit_s / len(answers)
    replicas = client.peers.one_per_replica((begin_s, answers))
    answers = [answer for _, each in replicas for answer in each]
    duration_s = max(answer.tokens_s[-1] for answer in answers) - min(begin for begin, _ in replicas)
    tokens = sum(len(answer.tokens_s) for answer in answers)
    values: dict[str, float | None] = {
        "num_requests": float(len(answers)),
        "duration_s": duration_s,
        "requests_per_s": len(answers) / duration_s,
        "output_tokens_per_s": tokens / duration_s,
        "total_tokens_per_s": (tokens + len(answers) * input_len) / duration_s,
        "submit_mean_ms": submit_mean_ms,
    }
    values |= summarize("ttft", "ms", [answer.ttft_ms for answer in answers])
    values |= summarize("tpot", "ms", [answer.tpot_ms for answer in answers])
    values |= summarize("itl", "ms", [gap for answer in answers for gap in answer.gaps_ms])
    values |= summarize("e2e", "ms", [answer.e2e_ms for answer in answers])
    return values
