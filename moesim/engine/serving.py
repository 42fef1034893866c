"""Autoregressive serving: clients, frontends and lockstep groups in one simpy environment."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import simpy

from moesim.costs.layout import make_layout
from moesim.costs.step import StepModel, build_step_model
from moesim.engine.frontend import Frontend
from moesim.engine.group import LockstepGroup, StepLog
from moesim.engine.rebalancing import Rebalancing, make_course
from moesim.engine.requests import Request, RequestTable, make_requests
from moesim.engine.scheduler import Scheduler
from moesim.errors import InputError
from moesim.placement.fit import require_fit
from moesim.placement.memory import MemoryPlan
from moesim.specs.scenario import Scenario
from moesim.specs.workload import ClosedLoop


@dataclass(frozen=True, slots=True)
class ServingRun:
    """Everything a simulation produced: requests in order, the groups' logs, counts and memory."""

    requests: list[Request]
    logs: list[StepLog]
    model: StepModel
    memory: MemoryPlan
    preemptions: int
    peak_kv_blocks: int
    total_kv_blocks: int
    elapsed_s: float
    rebalancing: list[Rebalancing] = field(default_factory=list[Rebalancing])


def run_serving(
    scenario: Scenario, macro_steps: bool = True, trace: bool = False, model: StepModel | None = None
) -> ServingRun:
    """Simulate the scenario until its last request has its last token.

    Args:
        macro_steps: advance all steps between two batch changes at once (same answer as step by step).
        trace: keep every segment for a timeline.
        model: step tables of an earlier run of the same scenario.

    Raises:
        InputError: the model does not fit, or a request is longer than the engine admits.
    """
    table = make_requests(scenario.workload, np.random.default_rng([scenario.seed, 0xA221]))
    memory = require_fit(scenario.model, scenario.deployment, scenario.cluster, table.longest)
    _check_lengths(scenario, table)
    model = model or step_model_for(scenario, table)
    with paused_collector():
        return _Simulation(scenario, table, model, memory, macro_steps, trace).run()


@contextmanager
def paused_collector() -> Generator[None]:
    """No cyclic garbage collection inside: its passes over the live requests cost a quarter of the time.

    A search holds it over all its runs (about 1 MB a run lives on until its end).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def step_model_for(scenario: Scenario, table: RequestTable) -> StepModel:
    """Step tables large enough for the scenario's batches."""
    deployment = scenario.deployment
    layout = make_layout(
        scenario.model, deployment, scenario.cluster, scenario.parameters, scenario.routing, scenario.seed
    )
    rows = min(deployment.max_num_seqs, len(table))
    tokens = min(deployment.max_num_batched_tokens, int(table.input_tokens.sum()) + rows)
    largest_padded = max(rows, 1)
    return build_step_model(layout, max(tokens, 2 * largest_padded, 16), largest_padded)


def _check_lengths(scenario: Scenario, table: RequestTable) -> None:
    deployment, limit = scenario.deployment, scenario.deployment.max_model_len
    if limit and table.longest > limit:
        raise InputError(f"max_model_len: {limit} is below the longest request's {table.longest} tokens")
    context = scenario.model.max_position_embeddings
    if context and table.longest > context:
        raise InputError(
            f"input_len + output_len: {table.longest} tokens exceed the {context} positions of {scenario.model.name}"
        )
    if not deployment.enable_chunked_prefill and table.longest > deployment.max_num_batched_tokens:
        raise InputError(
            f"max_num_batched_tokens: {deployment.max_num_batched_tokens} is below the longest request's "
            f"{table.longest} tokens, which chunked prefill would allow"
        )


class _Simulation:
    def __init__(
        self,
        scenario: Scenario,
        table: RequestTable,
        model: StepModel,
        memory: MemoryPlan,
        macro_steps: bool,
        trace: bool,
    ) -> None:
        deployment, parameters = scenario.deployment, scenario.parameters
        served = deployment.frontend == "server"
        self._env = simpy.Environment()
        self._table = table
        self._model = model
        self._memory = memory
        request_s = parameters["server_request_s"] if served else 0.0
        token_s = parameters["server_token_s"] if served else 0.0
        self._response_s = parameters["server_response_s"] if served else 0.0
        self._arrival = scenario.workload.arrival
        self._closed_loop = isinstance(self._arrival, ClosedLoop)
        self._requests = table.requests()
        self._next = 0
        window = int(min(model.attention.window, 1 << 40))
        self._groups = [
            LockstepGroup(
                self._env,
                model,
                [Scheduler(deployment, memory.kv_tokens, window) for _ in range(deployment.lockstep_ranks)],
                (self._started, self._finished),
                macro_steps,
                trace,
                make_course(model.layout, len(model.routed_s) - 1),
            )
            for _ in range(deployment.num_engines)
        ]
        self._frontends = [Frontend(self._env, request_s, token_s, group.expect) for group in self._groups]
        self._sent = [0] * len(self._groups)

    def run(self) -> ServingRun:
        if isinstance(self._arrival, ClosedLoop):
            for _ in range(min(self._arrival.concurrency, len(self._requests))):
                self._send_next(0.0)
        elif len(self._groups) == 1:
            for at_s in self._table.arrival_s.tolist():
                self._send_next(at_s)
        else:
            self._env.process(self._arrivals())
        self._env.run()
        return self._ended()

    def _ended(self) -> ServingRun:
        """What the run leaves; groups and frontends, which know each other, are let go at once."""
        groups = self._groups[:]
        self._groups.clear()
        self._frontends.clear()
        schedulers = [rank for group in groups for rank in group.ranks]
        return ServingRun(
            requests=self._requests,
            logs=[group.log for group in groups],
            model=self._model,
            memory=self._memory,
            preemptions=sum(rank.preemptions for rank in schedulers),
            peak_kv_blocks=max(rank.pool.total - rank.pool.lowest_free for rank in schedulers),
            total_kv_blocks=schedulers[0].pool.total,
            elapsed_s=max(request.last_token_s for request in self._requests) - self._requests[0].sent_s,
            rebalancing=[group.course.log for group in groups if group.course is not None],
        )

    def _arrivals(self):
        for at_s in self._table.arrival_s.tolist():
            delay = at_s - self._env.now
            if delay > 0:
                yield self._env.timeout(delay)
            self._send_next(at_s)

    def _send_next(self, at_s: float) -> None:
        """Send the next request to the engine with the fewest requests."""
        request = self._requests[self._next]
        self._next += 1
        engine = self._emptiest() if len(self._groups) > 1 else 0
        self._sent[engine] += 1
        request.sent_s = at_s
        request.engine = engine
        self._frontends[engine].receive(request)

    def _emptiest(self) -> int:
        return min(range(len(self._groups)), key=lambda index: (self._sent[index], self._frontends[index].busy_until_s))

    def _started(self, request: Request, now: float) -> None:
        if request.first_token_s < 0:
            request.first_token_s = now + self._response_s
        elif request.stalled_s >= 0:
            log = self._groups[request.engine].log
            log.durations.append(now - request.stalled_s)
            log.served.fromlist([1, 1])
            request.stalled_s = -1.0

    def _finished(self, request: Request, now: float) -> None:
        request.last_token_s = now + self._response_s
        self._sent[request.engine] -= 1
        if self._closed_loop and self._next < len(self._requests):
            self._send_next(request.last_token_s)
