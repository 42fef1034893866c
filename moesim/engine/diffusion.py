"""Masked-diffusion decoding: static batches, blocks of denoising forwards."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.costs.forward import ForwardTimes, forward_shapes, forward_times
from moesim.costs.layout import Layout, make_layout
from moesim.engine.requests import Request, make_requests
from moesim.errors import InputError
from moesim.placement.fit import require_fit
from moesim.placement.memory import MemoryPlan
from moesim.specs.scenario import DiffusionRun, Scenario
from moesim.specs.workload import ClosedLoop

FloatArray = NDArray[np.float64]


@dataclass(slots=True)
class DiffusionRunLog:
    """What a diffusion simulation produced. `batches`: (start s, sequences, prompt tokens, engine)."""

    scenario: Scenario
    layout: Layout
    memory: MemoryPlan
    requests: list[Request]
    batches: list[tuple[float, int, int, int]] = field(default_factory=list[tuple[float, int, int, int]])
    generations: dict[tuple[int, int], ForwardTimes] = field(default_factory=dict[tuple[int, int], ForwardTimes])
    elapsed_s: float = 0.0

    @property
    def settings(self) -> DiffusionRun:
        """How the model decodes: as asked, or by its defaults."""
        return diffusion_settings(self.scenario)

    def generation(self, sequences: int, prompt_tokens: int) -> ForwardTimes:
        """All forwards of a batch of `sequences` over the engine, spread evenly over its lockstep ranks."""
        key = (-(-sequences // self.layout.deployment.lockstep_ranks), prompt_tokens)
        if key not in self.generations:
            causal = self.scenario.model.diffusion is not None and self.scenario.model.diffusion.block_causal
            shapes = forward_shapes(self.settings, prompt_tokens, causal)
            self.generations[key] = forward_times(self.layout, self.settings, shapes, key[0])
        return self.generations[key]


def diffusion_settings(scenario: Scenario) -> DiffusionRun:
    """The scenario's decoding settings, or the model's own defaults."""
    if scenario.diffusion is not None:
        return scenario.diffusion
    defaults = scenario.model.diffusion
    if defaults is None:
        raise InputError(f"{scenario.model.name} is no masked-diffusion model")
    return DiffusionRun(generation_len=defaults.generation_len, steps=defaults.steps, block_len=defaults.block_len)


def run_diffusion(scenario: Scenario) -> DiffusionRunLog:
    """Simulate static batches of up to max_num_seqs sequences a rank until every request is done.

    A batch starts when the engine is free and requests wait; all its sequences finish together (prompts are
    padded to the longest). Left out: early stopping at an end-of-text token.

    Raises:
        InputError: the model and one batch do not fit.
    """
    table = make_requests(scenario.workload, np.random.default_rng([scenario.seed, 0xA221]))
    settings = diffusion_settings(scenario)
    longest = int(table.input_tokens.max()) + settings.generation_len
    context = scenario.model.max_position_embeddings
    if context and longest > context:
        raise InputError(f"prompt + generation_len: {longest} tokens exceed the {context} positions of the model")
    memory = require_fit(scenario.model, scenario.deployment, scenario.cluster, longest)
    layout = make_layout(
        scenario.model,
        scenario.deployment,
        scenario.cluster,
        scenario.parameters,
        scenario.routing,
        scenario.seed,
    )
    log = DiffusionRunLog(scenario, layout, memory, table.requests())
    return _Simulation(log, table.arrival_s).run()


class _Simulation:
    def __init__(self, log: DiffusionRunLog, arrival_s: FloatArray) -> None:
        deployment = log.scenario.deployment
        self._log = log
        self._arrival_s = arrival_s
        self._arrival = log.scenario.workload.arrival
        self._env = simpy.Environment()
        self._queues: list[deque[Request]] = [deque() for _ in range(deployment.num_engines)]
        self._in_flight = [0] * deployment.num_engines
        self._wake = [self._env.event() for _ in self._queues]
        self._capacity = deployment.max_num_seqs * deployment.lockstep_ranks
        self._next = 0

    def run(self) -> DiffusionRunLog:
        for engine in range(len(self._queues)):
            self._env.process(self._serve(engine))
        if isinstance(self._arrival, ClosedLoop):
            for _ in range(min(self._arrival.concurrency, len(self._log.requests))):
                self._send_next()
        else:
            self._env.process(self._arrivals())
        self._env.run()
        requests = self._log.requests
        self._log.elapsed_s = max(request.last_token_s for request in requests) - requests[0].sent_s
        return self._log

    def _arrivals(self):
        for at_s in self._arrival_s.tolist():
            if at_s > self._env.now:
                yield self._env.timeout(at_s - self._env.now)
            self._send_next()

    def _send_next(self) -> None:
        request = self._log.requests[self._next]
        self._next += 1
        request.sent_s = self._env.now
        engine = min(range(len(self._queues)), key=lambda index: self._in_flight[index])
        self._in_flight[engine] += 1
        self._queues[engine].append(request)
        if not self._wake[engine].triggered:
            self._wake[engine].succeed()

    def _serve(self, engine: int):
        queue = self._queues[engine]
        while True:
            if not queue:
                self._wake[engine] = self._env.event()
                yield self._wake[engine]
            yield self._env.timeout(0)  # let everyone who arrives at this instant join the batch
            batch = [queue.popleft() for _ in range(min(len(queue), self._capacity))]
            prompt = max(request.input_tokens for request in batch)
            ends = self._env.now + np.cumsum(self._log.generation(len(batch), prompt).seconds)
            self._log.batches.append((self._env.now, len(batch), prompt, engine))
            yield self._env.timeout(float(ends[-1]) - self._env.now)
            self._finish(batch, ends, engine)

    def _finish(self, batch: list[Request], ends: FloatArray, engine: int) -> None:
        settings = self._log.settings
        per_block = settings.steps * settings.block_len // settings.generation_len
        self._in_flight[engine] -= len(batch)
        for request in batch:
            request.first_token_s = float(ends[per_block - 1])
            request.last_token_s = float(ends[-1])
            request.emitted = settings.generation_len
        if isinstance(self._arrival, ClosedLoop):
            for _ in range(min(len(batch), len(self._log.requests) - self._next)):
                self._send_next()
