"""Requests in and tokens out of a running engine, timed where the client would see them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from hw_validation.peers import ALONE, Peers
from hw_validation.step_trace import StepRow

_STEPS_BETWEEN_LOOKS = 8


class BudgetSpentError(Exception):
    """The time given to a sweep is over; what was measured is on disk."""


class Engine(Protocol):
    """What a sweep needs of a running engine (`hw_validation.engine.TracedEngine`)."""

    vocab_size: int

    @property
    def busy(self) -> bool:
        """Whether any request is unanswered."""
        ...

    def add(self, request_id: str, prompt: list[int], num_tokens: int, temperature: float) -> None:
        """Queue a request."""
        ...

    def step(self) -> list[tuple[str, int, bool]]:
        """Run one step: (request id, new tokens, finished)."""
        ...

    def abort(self, request_ids: list[str]) -> None:
        """Drop requests."""
        ...

    def drain(self) -> list[StepRow]:
        """Rows of the steps since the last call."""
        ...


@dataclass(slots=True)
class Answer:
    """One request's life in seconds of the host's clock: sent, and the arrival of each token."""

    sent_s: float
    tokens_s: list[float] = field(default_factory=list)

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return 1e3 * (self.tokens_s[0] - self.sent_s)

    @property
    def e2e_ms(self) -> float:
        """Time to the last token."""
        return 1e3 * (self.tokens_s[-1] - self.sent_s)

    @property
    def tpot_ms(self) -> float | None:
        """Mean time between tokens; None for a single token."""
        gaps = len(self.tokens_s) - 1
        return 1e3 * (self.tokens_s[-1] - self.tokens_s[0]) / gaps if gaps else None

    @property
    def gaps_ms(self) -> list[float]:
        """Times between neighbouring tokens."""
        return [1e3 * (late - early) for early, late in zip(self.tokens_s, self.tokens_s[1:], strict=False)]


class Client:
    """Sends random prompts to `engine` and notes when their tokens arrive.

    `deadline_s` is a time of `time.perf_counter` after which `step` aborts all requests and raises
    BudgetSpentError. With `peers`, whose engines step together, the first process looks at its clock every
    few steps and all of them stop at that step.
    """

    def __init__(self, engine: Engine, deadline_s: float, seed: int = 0, peers: Peers = ALONE) -> None:
        self.engine = engine
        self.deadline_s = deadline_s
        self.pending: dict[str, Answer] = {}
        self.submit_s = 0.0
        self.peers = peers
        self._steps = 0
        self._random = random.Random(seed + peers.replica)
        self._prompts: dict[int, list[list[int]]] = {}
        self._count = 0

    def prepare(self, count: int, input_len: int) -> None:
        """Draw prompts ahead, so that sending them takes no time of the engine's."""
        self._prompts.setdefault(input_len, []).extend(self._draw(input_len) for _ in range(count))

    def send(self, input_len: int, output_len: int, temperature: float = 1.0) -> str:
        """Send a random prompt of `input_len` tokens; returns the request's id."""
        request_id = f"r{self._count}"
        self._count += 1
        ready = self._prompts.get(input_len)
        prompt = ready.pop() if ready else self._draw(input_len)
        begin = time.perf_counter()
        self.engine.add(request_id, prompt, output_len, temperature)
        self.submit_s += time.perf_counter() - begin
        self.pending[request_id] = Answer(begin)
        return request_id

    def _draw(self, input_len: int) -> list[int]:
        return self._random.choices(range(self.engine.vocab_size), k=input_len)

    def step(self) -> list[Answer]:
        """One engine step; the answers that it completed."""
        if self._is_over():
            self.abort()
            raise BudgetSpentError
        tokens = self.engine.step()
        now = time.perf_counter()
        done: list[Answer] = []
        for request_id, count, finished in tokens:
            answer = self.pending.get(request_id)
            if answer is None:
                continue
            answer.tokens_s.extend([now] * count)
            if finished:
                done.append(self.pending.pop(request_id))
        return done

    def _is_over(self) -> bool:
        looks = self.peers.size == 1 or self._steps % _STEPS_BETWEEN_LOOKS == 0
        self._steps += 1
        return looks and self.peers.agree(time.perf_counter() > self.deadline_s)

    def finish(self) -> list[Answer]:
        """Step until every request is answered."""
        done: list[Answer] = []
        while self.engine.busy:
            done.extend(self.step())
        return done

    def abort(self, request_ids: Iterable[str] | None = None) -> None:
        """Drop the given requests, or all."""
        dropped = list(self.pending if request_ids is None else request_ids)
        for request_id in dropped:
            self.pending.pop(request_id, None)
        self.engine.abort(dropped)
