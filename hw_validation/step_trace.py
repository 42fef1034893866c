"""One row an engine step: what was in the batch, and what it cost on the GPU and on the host.

The engine's own methods are wrapped on the live objects (vLLM's V1 scheduler and model runner), so the engine
runs as it always does. The batch is read afterwards: during a step only marks and host times are taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hw_validation.marks import Marks


class Batch(NamedTuple):
    """What a step works on.

    `context_tokens`: tokens attended by the decodes together, their new ones included. `prefill_pairs`: pairs
    of a new prompt token and a token that it attends to.
    """

    prefill_tokens: int
    num_prefills: int
    prefill_pairs: int
    decodes: int
    context_tokens: int


class StepRow(NamedTuple):
    """One engine step. `None` where the engine does not offer it.

    `gpu_ms`: from the launch reaching an idle GPU (or the end of the step before) to the sampled tokens.
    `forward_ms`: the part in the model's layers. `period_ms`: from the end of the step before to this end.
    `launch_ms`: the host preparing inputs, launching and sampling. `wait_ms`: the host waiting for the tokens.
    `padded_tokens`, `graph_mode`: size and kind of the captured graph that ran (NONE: kernels launched one by one).
    """

    prefill_tokens: int
    num_prefills: int
    prefill_pairs: int
    decodes: int
    context_tokens: int
    padded_tokens: int | None
    graph_mode: str | None
    gpu_ms: float
    forward_ms: float | None
    period_ms: float | None
    schedule_ms: float
    launch_ms: float
    wait_ms: float | None


@dataclass(slots=True)
class _Step:
    scheduled: Any
    schedule_ms: float
    begin: Any
    end: Any = None
    forward: list[Any] = field(default_factory=list)
    padded_tokens: int | None = None
    graph_mode: str | None = None
    launch_ms: float = 0.0
    wait_ms: float | None = None


class StepTracer:
    """Collects a `StepRow` for every step of the engine whose `scheduler` and model `runner` it is given."""

    def __init__(self, scheduler: Any, runner: Any, marks: Marks) -> None:
        self._marks = marks
        self._steps: list[_Step] = []
        self._open: _Step | None = None
        self._schedule_ms = 0.0
        self._prompt_lens: dict[str, int] = {}
        self._last_end: Any = None
        scheduler.schedule = self._timed_schedule(scheduler.schedule)
        runner.execute_model = self._traced_execute(runner.execute_model)
        runner.sample_tokens = self._traced_sample(runner.sample_tokens)
        for name, wrap in (
            ("_model_forward", self._marked_forward),
            ("_determine_batch_execution_and_padding", self._noted_padding),
        ):
            if hasattr(runner, name):
                setattr(runner, name, wrap(getattr(runner, name)))

    def drain(self) -> list[StepRow]:
        """The rows since the last call, in order; waits for the GPU."""
        self._marks.wait()
        finished = [step for step in self._steps if step.end is not None]
        self._steps = []
        return [self._row(step) for step in finished]

    def _row(self, step: _Step) -> StepRow:
        elapsed, last = self._marks.elapsed_ms, self._last_end
        self._last_end = step.end
        return StepRow(
            *read_batch(step.scheduled, self._prompt_lens),
            padded_tokens=step.padded_tokens,
            graph_mode=step.graph_mode,
            gpu_ms=elapsed(step.begin, step.end),
            forward_ms=elapsed(*step.forward) if len(step.forward) == 2 else None,
            period_ms=None if last is None else elapsed(last, step.end),
            schedule_ms=step.schedule_ms,
            launch_ms=step.launch_ms,
            wait_ms=step.wait_ms,
        )

    def _timed_schedule(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def schedule(*args: Any, **words: Any) -> Any:
            begin = time.perf_counter()
            scheduled = original(*args, **words)
            self._schedule_ms = 1e3 * (time.perf_counter() - begin)
            return scheduled

        return schedule

    def _traced_execute(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def execute_model(scheduled: Any, *args: Any, **words: Any) -> Any:
            if not scheduled.total_num_scheduled_tokens:
                return original(scheduled, *args, **words)
            begin = time.perf_counter()
            step = self._open = _Step(scheduled, self._schedule_ms, self._marks.mark())
            self._steps.append(step)
            result = original(scheduled, *args, **words)
            step.launch_ms = 1e3 * (time.perf_counter() - begin)
            return result

        return execute_model

    def _traced_sample(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def sample_tokens(*args: Any, **words: Any) -> Any:
            step, self._open = self._open, None
            begin = time.perf_counter()
            result = original(*args, **words)
            if step is not None:
                step.end = self._marks.mark()
                step.launch_ms += 1e3 * (time.perf_counter() - begin)
                _time_wait(result, step)
            return result

        return sample_tokens

    def _marked_forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **words: Any) -> Any:
            begin = self._marks.mark()
            result = original(*args, **words)
            if self._open is not None:
                self._open.forward = [begin, self._marks.mark()]
            return result

        return forward

    def _noted_padding(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def decide(*args: Any, **words: Any) -> Any:
            result = original(*args, **words)
            if self._open is not None:
                self._open.graph_mode = getattr(result[0], "name", str(result[0]))
                self._open.padded_tokens = getattr(result[1], "num_tokens", None)
            return result

        return decide


def read_batch(scheduled: Any, prompt_lens: dict[str, int]) -> Batch:
    """The batch of a vLLM SchedulerOutput.

    `prompt_lens` maps request ids to prompt tokens; new requests are added to it and finished ones removed.
    """
    for request_id in scheduled.finished_req_ids:
        prompt_lens.pop(request_id, None)
    computed: dict[str, int] = {}
    for request in scheduled.scheduled_new_reqs:
        prompt_lens[request.req_id] = len(request.prompt_token_ids)
        computed[request.req_id] = request.num_computed_tokens
    cached = scheduled.scheduled_cached_reqs
    computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    return _count(scheduled.num_scheduled_tokens, computed, prompt_lens)


def _count(scheduled: Mapping[str, int], computed: Mapping[str, int], prompt_lens: Mapping[str, int]) -> Batch:
    prefill_tokens = num_prefills = prefill_pairs = decodes = context_tokens = 0
    for request_id, new in scheduled.items():
        done = computed[request_id]
        if done >= prompt_lens.get(request_id, 0):
            decodes += 1
            context_tokens += done + new
        else:
            num_prefills += 1
            prefill_tokens += new
            prefill_pairs += new * done + new * (new + 1) // 2
    return Batch(prefill_tokens, num_prefills, prefill_pairs, decodes, context_tokens)


def _time_wait(result: Any, step: _Step) -> None:
    """Time the blocking fetch of an asynchronous output."""
    fetch = getattr(result, "get_output", None)
    if fetch is None:
        return

    def get_output() -> Any:
        begin = time.perf_counter()
        output = fetch()
        step.wait_ms = 1e3 * (time.perf_counter() - begin)
        return output

    result.get_output = get_output


def to_columns(rows: list[StepRow]) -> dict[str, list[Any]]:
    """One list a column, times rounded to 0.1 µs; columns without any value are left out."""
    columns: dict[str, list[Any]] = {}
    for name, column in zip(StepRow._fields, zip(*rows, strict=True), strict=False):
        values = [round(value, 4) if isinstance(value, float) else value for value in column]
        if any(value is not None for value in values):
            columns[name] = values
    return columns
