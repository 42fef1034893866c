from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hw_validation.marks import HostMarks
from hw_validation.step_trace import StepTracer, read_batch, to_columns


def scheduled(new: dict[str, int], cached: dict[str, int], tokens: dict[str, int], done: set[str] | None = None) -> Any:
    """A SchedulerOutput: new requests with prompt lengths, cached ones with computed tokens, tokens to run."""
    return SimpleNamespace(
        finished_req_ids=done or set(),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=key, prompt_token_ids=[0] * length, num_computed_tokens=0)
            for key, length in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(cached), num_computed_tokens=list(cached.values())),
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
    )


class Output:
    def get_output(self) -> str:
        return "tokens"


class Runner:
    def execute_model(self, output: Any) -> None:
        if output.total_num_scheduled_tokens:
            self._determine_batch_execution_and_padding()
            self._model_forward()

    def _determine_batch_execution_and_padding(self) -> tuple[Any, Any]:
        return SimpleNamespace(name="FULL"), SimpleNamespace(num_tokens=8)

    def _model_forward(self) -> str:
        return "hidden"

    def sample_tokens(self, _: Any) -> Output:
        return Output()


def test_batches_tell_prefill_chunks_from_decodes() -> None:
    lens: dict[str, int] = {}
    first = read_batch(scheduled({"a": 4, "b": 10}, {}, {"a": 4, "b": 6}), lens)
    assert first == (10, 2, 10 + 21, 0, 0)
    second = read_batch(scheduled({}, {"a": 4, "b": 6}, {"a": 1, "b": 4}), lens)
    assert second == (4, 1, 4 * 6 + 10, 1, 5)
    third = read_batch(scheduled({}, {"b": 10}, {"b": 1}, done={"a"}), lens)
    assert third == (0, 0, 0, 1, 11)
    assert lens == {"b": 10}


def test_tracer_times_every_step_that_ran() -> None:
    scheduler = SimpleNamespace(schedule=lambda: scheduled({"a": 4}, {}, {"a": 4}))
    runner = Runner()
    tracer = StepTracer(scheduler, runner, HostMarks())
    for _ in range(2):
        runner.execute_model(scheduler.schedule())
        assert runner.sample_tokens(None).get_output() == "tokens"
    rows = tracer.drain()
    assert [row.prefill_tokens for row in rows] == [4, 4]
    assert [row.graph_mode for row in rows] == ["FULL", "FULL"]
    assert [row.padded_tokens for row in rows] == [8, 8]
    assert rows[0].period_ms is None
    assert rows[1].period_ms is not None
    assert rows[1].period_ms >= rows[1].gpu_ms >= (rows[1].forward_ms or 0.0) >= 0.0
    assert all(row.wait_ms is not None and row.launch_ms >= 0.0 for row in rows)
    assert tracer.drain() == []


def test_empty_steps_leave_no_row() -> None:
    scheduler = SimpleNamespace(schedule=lambda: scheduled({}, {}, {}))
    runner = Runner()
    tracer = StepTracer(scheduler, runner, HostMarks())
    runner.execute_model(scheduler.schedule())
    assert tracer.drain() == []


def test_columns_drop_what_the_engine_does_not_offer() -> None:
    scheduler = SimpleNamespace(schedule=lambda: scheduled({"a": 4}, {}, {"a": 4}))
    runner = SimpleNamespace(execute_model=lambda _: None, sample_tokens=lambda _: None)
    tracer = StepTracer(scheduler, runner, HostMarks())
    runner.execute_model(scheduler.schedule())
    runner.sample_tokens(None)
    columns = to_columns(tracer.drain())
    assert columns["prefill_tokens"] == [4]
    assert "wait_ms" not in columns
    assert "graph_mode" not in columns
