"""Continuous batching of one data-parallel rank, by the rules of vLLM V1.

Running requests come first (one token for each decode, the next chunk for each unfinished prompt), then
waiting ones in order while the token budget, the sequence limit and the KV blocks last. When blocks run out
the youngest running request is put back to wait and recomputed later.
Between two changes of the batch a decode batch only grows older, so `plan` says for how many steps that holds.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from moesim.costs.step import LONGEST_RUN_STEPS
from moesim.engine.kv_cache import BlockPool
from moesim.engine.requests import Request
from moesim.specs.deployment import Deployment


@dataclass(slots=True)
class StepPlan:
    """What a rank does next: `steps` equal decode steps, or one step with prefill chunks.

    `decodes` sequences with `context` cached tokens in all at the first step; `chunks` are (request, new
    tokens); `pairs`, `window_pairs` and `kv_tokens` sum over the chunks; `rows` sequences are sampled.
    """

    steps: int
    decodes: int
    context: int
    tokens: int
    rows: int
    chunks: Sequence[tuple[Request, int]] = ()
    pairs: float = 0.0
    window_pairs: float = 0.0
    kv_tokens: float = 0.0


class Scheduler:
    """State of one rank. Steps are counted by the group, so that finish steps are known in advance."""

    __slots__ = (
        "_ages",
        "_caching",
        "_finishing",
        "_held",
        "_limit",
        "_lookahead",
        "_released",
        "_window",
        "budget",
        "chunked",
        "context",
        "decodes",
        "phase",
        "pool",
        "preempted",
        "preemptions",
        "prefilling",
        "running",
        "step",
        "waiting",
    )

    def __init__(self, deployment: Deployment, kv_tokens: int, window: int) -> None:
        self.pool = BlockPool(kv_tokens // deployment.block_size, deployment.block_size)
        self.budget = deployment.max_num_batched_tokens
        self.chunked = deployment.enable_chunked_prefill
        self.waiting: deque[Request] = deque()
        self.running: dict[Request, None] = {}
        self.prefilling: list[Request] = []
        self.decodes = 0
        self.context = 0
        self.step = 0
        self.preemptions = 0
        self.preempted: list[Request] = []
        self.phase = [0] * deployment.block_size
        self._caching = deployment.enable_prefix_caching
        self._limit = deployment.max_num_seqs
        self._lookahead = 1 if deployment.async_scheduling else 0
        self._finishing: list[tuple[int, int, Request]] = []
        self._released: list[tuple[int, list[Request]]] = []
        self._held = 0
        self._ages = 0
        self._window = window

    @property
    def load(self) -> int:
        """vLLM's load-balancing score: a waiting request weighs four running ones."""
        return 4 * len(self.waiting) + len(self.running)

    @property
    def idle(self) -> bool:
        """Nothing to run and nothing waiting."""
        return not self.running and not self.waiting

    def submit(self, request: Request, busy: bool) -> None:
        """Queue a request; while a step runs (and with asynchronous scheduling one more is fixed) it waits."""
        request.ready_step = self.step + (1 + self._lookahead if busy else 0)
        self.waiting.append(request)

    def slots(self) -> int:
        """Sequences that may still be admitted now (finished ones hold their slot until they are released)."""
        return self._limit - len(self.running) - self._held

    def slots_once_released(self) -> int:
        """As `slots`, at a later step: finished requests hold theirs for one step at most."""
        return self._limit - len(self.running)

    def plan(self) -> StepPlan | None:
        """The next step or run of equal steps; None when there is nothing to do."""
        if self._released and self._released[0][0] <= self.step:
            self._free_released()
        if self.decodes > self.pool.free:
            self._make_room()
        if self.prefilling or self.waiting:
            budget = self.budget - self.decodes
            chunks = self._continue_prefills(budget) if self.prefilling else []
            if self.waiting:
                self._admit(chunks, budget - sum([new for _, new in chunks]) if chunks else budget)
            if chunks:
                return self._mixed(chunks)
        if not self.decodes:
            return self._wait_plan()
        steps = self._equal_steps()
        return StepPlan(steps, self.decodes, self.context, self.decodes, self.decodes)

    def _wait_plan(self) -> StepPlan | None:
        """Only requests that a fixed step made too late, or slots and blocks not yet released: one empty step."""
        return StepPlan(1, 0, 0, 0, 0) if self.waiting or self.prefilling else None

    def _equal_steps(self) -> int:
        """Steps until something can change: a finish, a request that may join, or blocks that run out.

        A release of finished requests ends the run only when somebody waits for what it frees.
        """
        steps = min(self._next_finish() - self.step, LONGEST_RUN_STEPS)
        if self._released and (self.waiting or self.prefilling):
            steps = min(steps, self._released[0][0] - self.step)
        if self.waiting and self.slots() > 0:
            later = self.waiting[0].ready_step - self.step
            if later > 0:
                steps = min(steps, later)
        if self.decodes * (steps // self.pool.block_size + 1) > self.pool.free:
            steps = self._steps_with_blocks(steps)
        return max(steps, 1)

    def _steps_with_blocks(self, steps: int) -> int:
        """At most `steps`, as far as the free blocks last; a release in between is waited for."""
        if self._blocks_for_steps(steps) <= self.pool.free:
            return steps
        if self._released:
            steps = min(steps, self._released[0][0] - self.step)
        return self._steps_within(self.pool.free, steps)

    def _next_finish(self) -> int:
        heap = self._finishing
        while heap[0][2].finish_step != heap[0][0] or heap[0][2] not in self.running:
            heapq.heappop(heap)
        return heap[0][0]

    def _blocks_for_steps(self, steps: int) -> int:
        """New blocks that `steps` decode steps from now need."""
        phase = self.phase
        whole, rest = divmod(steps, len(phase))
        last = -self.step % len(phase)
        first = last + 1 - rest
        if first >= 0:
            return whole * self.decodes + sum(phase[first : last + 1])
        return whole * self.decodes + sum(phase[: last + 1]) + sum(phase[first:])

    def _steps_within(self, free: int, most: int) -> int:
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self._blocks_for_steps(middle) <= free:
                low = middle
            else:
                high = middle - 1
        return low

    def _make_room(self) -> None:
        """Preempt the youngest running requests until every decode has a block for its next token."""
        while self.decodes and self._blocks_for_steps(1) > self.pool.free:
            self._preempt(next(reversed(self.running)))

    def _preempt(self, request: Request) -> None:
        self.preemptions += 1
        del self.running[request]
        if request in self.prefilling:
            self.prefilling.remove(request)
        else:
            self._leave_decode(request)
        request.emitted = self._emitted(request)
        self.pool.release(request)
        request.target = request.input_tokens + request.emitted
        request.computed = 0
        request.finish_step = request.decode_from = -1
        self.waiting.appendleft(request)
        self.preempted.append(request)

    def _emitted(self, request: Request) -> int:
        return request.emitted if request.decode_from < 0 else request.emitted + self.step - request.decode_from

    def _leave_decode(self, request: Request) -> None:
        cached = request.target + self.step - request.decode_from
        block_size = self.pool.block_size
        self.decodes -= 1
        self.context -= cached
        self.phase[(cached - self.step) % block_size] -= 1
        request.blocks = -(-cached // block_size) - request.shared_blocks

    def _continue_prefills(self, budget: int) -> list[tuple[Request, int]]:
        chunks: list[tuple[Request, int]] = []
        for request in list(self.prefilling):
            new = min(request.target - request.computed, budget)
            if new <= 0 or request not in self.running:
                continue
            if not self._reserve(request, request.computed + new, preempt=True):
                continue
            chunks.append((request, new))
            budget -= new
        return [(request, new) for request, new in chunks if request in self.running]

    def _reserve(self, request: Request, tokens: int, preempt: bool) -> bool:
        """Give a request blocks for `tokens` tokens beside what the decodes of this step need."""
        wanted = self.pool.blocks_for(tokens) - request.shared_blocks - request.blocks
        while wanted > self.pool.free - self._decode_need():
            youngest = next(reversed(self.running), None)
            if not preempt or youngest is None or youngest is request:
                return False
            self._preempt(youngest)
        self.pool.take(max(wanted, 0))
        request.blocks += max(wanted, 0)
        return True

    def _decode_need(self) -> int:
        """New blocks that the next decode step needs."""
        return self.phase[-self.step % self.pool.block_size]

    def _admit(self, chunks: list[tuple[Request, int]], budget: int) -> None:
        slots, preempted, reserved = self.slots(), self.preemptions, self._decode_need()
        waiting, step = self.waiting, self.step
        while waiting and budget > 0 and slots > 0 and self.preemptions == preempted:
            request = waiting[0]
            if request.ready_step > step or not self._start(request, budget, chunks, reserved):
                return
            budget -= chunks[-1][1]
            slots -= 1

    def _start(self, request: Request, budget: int, chunks: list[tuple[Request, int]], reserved: int) -> bool:
        """Admit a request if the budget and the blocks beside those `reserved` for decodes allow it."""
        pool, hit, cached = self.pool, 0, 0
        if self._caching and (request.prefix_id >= 0 or request.warm_tokens):
            hit = pool.cached_blocks(request)
            cached = max(hit, self._warm_blocks(request)) * pool.block_size
        left = request.target - cached
        new = left if left < budget else budget
        if new < left and not self.chunked:
            return False
        own = -(-(cached + new) // pool.block_size) - hit
        if own + (pool.cost_of_sharing(request) if hit else 0) > pool.free - reserved:
            return False
        if hit:
            pool.share(request, hit)
        pool.take(own)
        request.blocks = own
        request.computed = cached
        self.waiting.popleft()
        self.running[request] = None
        self.prefilling.append(request)
        chunks.append((request, new))
        return True

    def _warm_blocks(self, request: Request) -> int:
        """Blocks computed before this run began; all but the last token may come from the cache."""
        return min(request.warm_tokens, request.target - 1) // self.pool.block_size

    def _mixed(self, chunks: list[tuple[Request, int]]) -> StepPlan:
        tokens = rows = self.decodes
        window = float(self._window)
        pairs = window_pairs = kv_tokens = 0.0
        for request, new in chunks:
            start = request.computed
            seen = start + new
            all_pairs = new * start + new * (new + 1) / 2
            pairs += all_pairs
            window_pairs += min(all_pairs, new * window)
            kv_tokens += seen
            tokens += new
            rows += seen == request.target
        return StepPlan(1, self.decodes, self.context, tokens, rows, chunks, pairs, window_pairs, kv_tokens)

    def complete(self, plan: StepPlan, steps: int) -> tuple[list[Request], list[Request]]:
        """Account for `steps` finished steps; returns (requests whose prefill ended, requests that finished)."""
        if self._released:
            before = self._released[0][0] - self.step
            if 0 < before < steps:
                self._advance(before)
                self._free_released()
                steps -= before
        self._advance(steps)
        started = self._finish_chunks(plan.chunks) if plan.chunks else []
        finishing = self._finishing
        return started, self._finished() if finishing and finishing[0][0] <= self.step else []

    def _advance(self, steps: int) -> None:
        if self.decodes:
            blocks = self._decode_need() if steps == 1 else self._blocks_for_steps(steps)
            if blocks:
                self.pool.take(blocks)
            self.context += self.decodes * steps
        self.step += steps

    def _finish_chunks(self, chunks: Sequence[tuple[Request, int]]) -> list[Request]:
        started: list[Request] = []
        for request, new in chunks:
            computed = request.computed = request.computed + new
            if computed == request.target:
                self.prefilling.remove(request)
                if self._caching and request.prefix_id >= 0:
                    self.pool.publish(request)
                self._enter_decode(request)
                started.append(request)
        return started

    def _enter_decode(self, request: Request) -> None:
        step, target = self.step, request.target
        emitted = request.emitted = request.emitted + 1
        request.decode_from = step
        request.finish_step = finish_step = step + request.output_tokens - emitted
        self._ages += 1
        heapq.heappush(self._finishing, (finish_step, self._ages, request))
        self.decodes += 1
        self.context += target
        self.phase[(target - step) % self.pool.block_size] += 1

    def _finished(self) -> list[Request]:
        heap, done = self._finishing, []
        while heap and heap[0][0] <= self.step:
            finish, _, request = heapq.heappop(heap)
            if request.finish_step == finish and request in self.running:
                self._leave_decode(request)
                del self.running[request]
                request.emitted = request.output_tokens
                done.append(request)
        if done:
            self._released.append((self.step + self._lookahead, done))
            self._held += len(done)
        return done

    def _free_released(self) -> None:
        """Free slots and blocks of finished requests once the scheduler has seen their last token."""
        while self._released and self._released[0][0] <= self.step:
            done = self._released.pop(0)[1]
            self._held -= len(done)
            for request in done:
                self.pool.release(request)
