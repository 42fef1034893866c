"""Ranks in lockstep: one event per change of the batch, however many steps lie between two changes."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.costs.attention import AttentionCoefficients
from moesim.costs.step import StepModel
from moesim.engine.durations import SegmentTimes, segment_times
from moesim.engine.rebalancing import Course, Shift
from moesim.engine.requests import Request
from moesim.engine.scheduler import Scheduler, StepPlan

FloatArray = NDArray[np.float64]
Moment = Callable[[Request, float], None]


class Segment(NamedTuple):
    """`steps` equal steps between two changes of the batch.

    `decodes` and `prefill_tokens` over the group; `waiting`: requests not yet started, `queued`: those and the
    ones being prefilled. The rest describes the rank with the longest attention: sizes as run (see
    `moesim.engine.durations.Sizes`), sequences, mean cached tokens of its decodes, and its chunks.
    """

    start_s: float
    span_s: float
    steps: int
    decodes: int
    prefill_tokens: int
    waiting: int
    queued: int
    sizes: tuple[int, int, int]
    rank_decodes: int
    rank_context: float
    chunks: int
    chunk_tokens: int
    pairs: float
    window_pairs: float
    kv_tokens: float


@dataclass(slots=True)
class StepLog:
    """What a group did, summed: the raw material of every metric.

    `durations`: seconds of each step that served decodes; `served`: (sequences that got a token, steps) of every run
    of those steps.
    `by_size`: steps by (tokens of the fullest rank, tokens of the group, sampled rows), sizes as run.
    `decode_rows`: (sequences, mean cached tokens of a step, steps) of every run of decode steps of a rank.
    `prefill_rows`: (chunks, new tokens, pairs, pairs within the window, visible keys) of every rank's prefill.
    """

    durations: array[float] = field(default_factory=lambda: array("d"))
    served: array[int] = field(default_factory=lambda: array("q"))
    by_size: dict[tuple[int, int, int], int] = field(default_factory=dict[tuple[int, int, int], int])
    steps: int = 0
    busy_s: float = 0.0
    sequence_s: float = 0.0
    decode_rows: array[float] = field(default_factory=lambda: array("d"))
    prefill_rows: array[float] = field(default_factory=lambda: array("d"))
    segments: list[Segment] = field(default_factory=list[Segment])

    def decodes(self) -> FloatArray:
        """`decode_rows` as an array [rows, 3]."""
        return np.frombuffer(self.decode_rows).reshape(-1, 3)

    def prefills(self) -> FloatArray:
        """`prefill_rows` as an array [rows, 5]."""
        return np.frombuffer(self.prefill_rows).reshape(-1, 5)

    def attention_s(self, attention: AttentionCoefficients) -> float:
        """Seconds of attention, summed over steps and ranks (at the mean context of each run of steps)."""
        rows, chunks = self.decodes(), self.prefills()
        seconds = float(attention.prefill_rows_s(chunks).sum()) if len(chunks) else 0.0
        return seconds + float(attention.decode_rows_s(rows[:, 0], rows[:, 1]) @ rows[:, 2])


class LockstepGroup:
    """Data-parallel ranks that step together (one rank when replicas are independent)."""

    def __init__(
        self,
        env: simpy.Environment,
        model: StepModel,
        ranks: list[Scheduler],
        moments: tuple[Moment, Moment],
        macro_steps: bool,
        trace: bool,
        course: Course | None = None,
    ) -> None:
        self.course = course
        self._shift: Shift | None = None
        self._last_step_s = 0.0
        self.ranks = ranks
        self.log = StepLog()
        self._env = env
        self._model = model
        self._on_started, self._on_finished = moments
        self._macro = macro_steps
        self._trace = trace
        self._step = 0
        self._end_s = 0.0
        self._armed: simpy.Event | None = None
        self._plans: list[StepPlan | None] = []
        self._times: SegmentTimes | None = None
        self._steps = 0
        self._expected: deque[Request] = deque()
        self._fresh = False
        deployment = model.layout.deployment
        self._offline = deployment.frontend == "offline"
        self._in_process = deployment.async_scheduling and deployment.num_ranks == deployment.num_engines

    @property
    def load(self) -> int:
        """Load-balancing score of the whole group."""
        return sum(rank.load for rank in self.ranks)

    def expect(self, request: Request) -> None:
        """Tell the group that a request reaches it at `request.ready_s` (never before one announced earlier).

        An idle group wakes then; a running segment is cut where the request can join.
        """
        self._expected.append(request)
        times = self._times
        if times is None:
            if len(self._expected) == 1:
                self._wake_at(request.ready_s)
        elif request.ready_s < self._end_s:
            steps = self._steps
            self._take_expected(times)
            if self._steps != steps:
                self._arm()

    def _wake_at(self, at_s: float) -> None:
        event = self._env.timeout(max(at_s - self._env.now, 0.0))
        event.callbacks.append(self._wake)  # pyright: ignore[reportOptionalMemberAccess]

    def _wake(self, _: simpy.Event) -> None:
        """Start on all requests that have come while the group was idle."""
        now = self._expected[0].ready_s
        expected, alone = self._expected, self.ranks[0] if len(self.ranks) == 1 else None
        while expected and expected[0].ready_s <= now:
            (alone or self._least_loaded()).submit(expected.popleft(), busy=False)
        self._fresh = True
        self._begin(now)
        self._run_on()

    def _least_loaded(self) -> Scheduler:
        return min(self.ranks, key=lambda item: item.load)

    def _take_expected(self, times: SegmentTimes) -> None:
        """Queue the requests that come while the segment runs; it ends early where one of them can join."""
        expected, alone = self._expected, self.ranks[0] if len(self.ranks) == 1 else None
        while expected and expected[0].ready_s < self._end_s:
            request = expected.popleft()
            rank = alone or self._least_loaded()
            rank.submit(request, busy=True)
            ended = times.ended_by(request.ready_s, self._steps) if self._steps > 1 else 0
            request.ready_step += ended
            if self._in_process and self._still_launching(times, ended, request.ready_s):
                request.ready_step -= 1
            steps = request.ready_step - self._step
            if steps < self._steps and rank.slots_once_released() > 0:
                self._steps = steps
                self._end_s = times.end_s(steps)

    def _still_launching(self, times: SegmentTimes, ended: int, at_s: float) -> bool:
        """Whether the step after the running one is not fixed yet at `at_s`.

        An engine that launches kernels in its own process (one GPU) fixes the next step when it has launched the
        running one: at once while the GPU is behind, only at its end where the host decides. Engines with worker
        processes fix it when the running step starts. An offline caller in the same process hands over its next
        request before that.
        """
        if self._offline and ended == 0 and at_s <= times.start_s:
            return True
        if times.host_bound(ended):
            return True
        return self._fresh and ended == 0 and at_s < times.start_s + times.host_s

    def _delivery_delay_s(self, times: SegmentTimes, last: int) -> float:
        """How long after the end of a step its tokens leave an engine that launches in its own process.

        With one step in flight the results of a step are read after the next one is launched (measured: the time
        to first token of eager runs on one GPU is two steps, on two GPUs one).
        """
        rank = self.ranks[0]
        if not rank.decodes:
            return 0.0
        if not ((self._fresh and last == 0) or times.host_bound(last)):
            return 0.0
        next_s = sum(self._model.host_s(rank.decodes, rank.decodes, False))
        return max(0.0, next_s - max(0.0, times.durations[last] - times.host_s))

    def _run_on(self) -> None:
        """Go on from segment to segment as long as nothing else happens before a segment's end.

        Step by step every end is an event, so that the comparison of both ways covers this loop too.
        """
        while (times := self._times) is not None:
            if not self._macro or self._env.peek() <= self._end_s:
                self._arm()
                return
            self._end_segment(times)

    def _arm(self) -> None:
        """Schedule the end of the running segment; an end armed earlier becomes void."""
        delay = self._end_s - self._env.now
        self._armed = event = self._env.timeout(delay if delay > 0 else 0.0)
        event.callbacks.append(self._on_end)  # pyright: ignore[reportOptionalMemberAccess]

    def _begin(self, now: float) -> None:
        plans: list[StepPlan | None] = []
        steps = tokens = 0
        for rank in self.ranks:
            plan = rank.plan()
            plans.append(plan)
            if rank.preempted:
                _note_preemptions(rank, now)
            if plan is not None:
                steps = plan.steps if not steps or plan.steps < steps else steps
                tokens += plan.tokens
        if not steps:
            self._times = None
            if self._expected:
                self._wake_at(self._expected[0].ready_s)
            return
        if not tokens:
            self._skip_step()
            self._begin(now)
            return
        self._plans = plans
        self._steps = steps if self._macro else 1
        if self.course is not None:
            self._shift = self.course.advance(self._step, tokens, self._last_step_s)
            self._steps = min(self._steps, self._shift.steps)
        start_s = now + self._scheduling_s(plans) if self._fresh else now
        self._times = times = segment_times(self._model, plans, self._steps, self._step, start_s, self._shift)
        self._end_s = times.end_s(self._steps)
        if self._expected and self._expected[0].ready_s < self._end_s:
            self._take_expected(times)

    def _scheduling_s(self, plans: Sequence[StepPlan | None]) -> float:
        """How long an idle engine schedules and prepares before it launches anything: no step hides it.

        Without asynchronous scheduling every step counts that time itself.
        """
        if not self._model.layout.deployment.async_scheduling:
            return 0.0
        sequences = max(plan.decodes + len(plan.chunks) for plan in plans if plan is not None)
        return self._model.host_s(sequences, sequences, True)[0]

    def _skip_step(self) -> None:
        """Everyone waits only for a step that was fixed earlier; with nothing running it takes no time."""
        self._step += 1
        for rank in self.ranks:
            rank.step += 1

    def _on_end(self, event: simpy.Event) -> None:
        if event is self._armed and self._times is not None:
            self._end_segment(self._times)
            self._run_on()

    def _end_segment(self, times: SegmentTimes) -> None:
        """Account for the running segment, tell of requests that started or finished in it, and begin the next."""
        steps, now = self._steps, self._end_s
        self._record(times, steps)
        self._step += steps
        started, finished = self._complete(steps)
        if started or finished:
            told = now + self._delivery_delay_s(times, steps - 1) if self._in_process else now
            for request in started:
                self._on_started(request, told)
            for request in finished:
                self._on_finished(request, told)
        self._fresh = False
        self._begin(now)

    def _complete(self, steps: int) -> tuple[list[Request], list[Request]]:
        """Account for `steps` steps on every rank; returns (requests that got their first token, finished ones)."""
        alone = self._plans[0] if len(self._plans) == 1 else None
        if alone is not None:
            return self.ranks[0].complete(alone, steps)
        started: list[Request] = []
        finished: list[Request] = []
        for rank, plan in zip(self.ranks, self._plans, strict=True):
            if plan is None:
                rank.step += steps
                continue
            begun, done = rank.complete(plan, steps)
            started += begun
            finished += done
        return started, finished

    def _record(self, times: SegmentTimes, steps: int) -> None:
        log = self.log
        span = self._end_s - times.start_s
        log.steps += steps
        log.busy_s += span
        log.by_size[times.sizes] = log.by_size.get(times.sizes, 0) + steps
        if self.course is not None and self._shift is not None:
            self.course.record(self._shift, self._step, times.sizes[1], steps)
            self._last_step_s = float(times.durations[steps - 1])
        decodes = 0
        for plan in self._plans:
            if plan is None:
                continue
            sequences = plan.decodes
            if sequences:
                decodes += sequences
                log.decode_rows.fromlist([sequences, plan.context + sequences * (steps - 1) * 0.5, steps])
            if plan.chunks:
                new = plan.tokens - sequences
                log.prefill_rows.fromlist([len(plan.chunks), new, plan.pairs, plan.window_pairs, plan.kv_tokens])
        if decodes:
            times.append_durations(log.durations, steps)
            log.served.fromlist([decodes, steps])
            log.sequence_s += span * decodes
        if self._trace:
            self._record_segment(times.start_s, span, steps, decodes)

    def _record_segment(self, start_s: float, span: float, steps: int, decodes: int) -> None:
        plans = [plan for plan in self._plans if plan is not None]
        tokens = sum([plan.tokens for plan in plans])
        waiting = sum([len(rank.waiting) for rank in self.ranks])
        busiest = plans[0] if len(plans) == 1 else max(plans, key=lambda plan: (plan.pairs, plan.context))
        self.log.segments.append(
            Segment(
                start_s=start_s,
                span_s=span,
                steps=steps,
                decodes=decodes,
                prefill_tokens=tokens - decodes,
                waiting=waiting,
                queued=waiting + sum([len(rank.prefilling) for rank in self.ranks]),
                sizes=self._times.sizes if self._times else (0, 0, 0),
                rank_decodes=busiest.decodes,
                rank_context=busiest.context + busiest.decodes * (steps - 1) * 0.5,
                chunks=len(busiest.chunks),
                chunk_tokens=busiest.tokens - busiest.decodes,
                pairs=busiest.pairs,
                window_pairs=busiest.window_pairs,
                kv_tokens=busiest.kv_tokens,
            )
        )


def _note_preemptions(rank: Scheduler, now: float) -> None:
    for request in rank.preempted:
        if request.emitted and request.stalled_s < 0:
            request.stalled_s = now
    rank.preempted.clear()


def flatten(logs: Sequence[StepLog]) -> tuple[FloatArray, FloatArray]:
    """(seconds, tokens) of every inter-token gap over all groups; weights are the sequences served."""
    durations = np.concatenate([np.frombuffer(log.durations) for log in logs])
    served = np.concatenate([np.frombuffer(log.served, dtype=np.int64) for log in logs]).reshape(-1, 2)
    return durations, np.repeat(served[:, 0], served[:, 1]).astype(float)
