from __future__ import annotations

import time

import pytest

from hw_validation.client import BudgetSpentError, Client
from hw_validation.loops import run_closed_loop, run_open_loop
from hw_validation.plan import ClosedLoopPoint, OpenLoopPoint
from tests.hw_validation.fakes import FakeEngine


def client(engine: FakeEngine, seconds: float = 60.0) -> Client:
    return Client(engine, time.perf_counter() + seconds)


def test_closed_loop_never_exceeds_its_concurrency() -> None:
    engine = FakeEngine()
    point = ClosedLoopPoint(concurrency=4, input_len=8, output_len=5, num_requests=13)
    values, rows = run_closed_loop(client(engine), point)
    assert engine.most_running == 4
    assert values["num_requests"] == 13
    assert values["output_tokens_per_s"] == pytest.approx(5 * values["requests_per_s"])
    assert values["total_tokens_per_s"] == pytest.approx(13 * values["requests_per_s"])
    assert sum(row.num_prefills for row in rows) == 13


def test_closed_loop_sends_each_successor_in_the_next_step() -> None:
    point = ClosedLoopPoint(concurrency=2, input_len=8, output_len=3, num_requests=6)
    _, rows = run_closed_loop(client(FakeEngine()), point)
    assert [row.num_prefills for row in rows] == [2, 0, 0] * 3


def test_open_loop_answers_all_requests_at_about_the_offered_rate() -> None:
    point = OpenLoopPoint(load=0.5, input_len=8, output_len=2, num_requests=40)
    values, _ = run_open_loop(client(FakeEngine()), point, requests_per_s=400.0)
    assert values["num_requests"] == 40
    assert values["offered_requests_per_s"] == 400.0
    duration_s = values["duration_s"]
    assert duration_s is not None
    assert 0.03 < duration_s < 1.0


def test_open_loop_stops_at_the_deadline_while_idle() -> None:
    point = OpenLoopPoint(load=0.5, input_len=8, output_len=2, num_requests=40)
    begin = time.perf_counter()
    with pytest.raises(BudgetSpentError):
        run_open_loop(client(FakeEngine(), seconds=0.05), point, requests_per_s=0.01)
    assert time.perf_counter() - begin < 2.0


def test_one_token_answers_have_no_time_between_tokens() -> None:
    point = ClosedLoopPoint(concurrency=1, input_len=8, output_len=1, num_requests=2)
    values, _ = run_closed_loop(client(FakeEngine()), point)
    assert "tpot_mean_ms" not in values
    assert "ttft_mean_ms" in values
