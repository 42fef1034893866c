"""An engine without a GPU: reads all prompts in the step they arrive in, one token a request and step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hw_validation.forced_routing import ForcedRouting
from hw_validation.plan import Limits
from hw_validation.records import Environment, Setup
from hw_validation.step_trace import StepRow

ENVIRONMENT = Environment(
    machine_start="boot-1",
    gpu="fake",
    gpu_memory_bytes=1,
    driver="0",
    cuda="none",
    torch="0",
    python="3.11",
    kernel="0",
    cpu="fake",
    cpu_cores=1,
)
SETUP = Setup(
    model="fake",
    num_layers=2,
    weights="dummy",
    engine="fake",
    engine_version="0",
    environment=ENVIRONMENT,
    flags={"enforce_eager": True},
)
LIMITS = Limits(kv_cache_tokens=100_000, max_num_seqs=256, max_num_batched_tokens=16384, max_model_len=4096)


def row(prefill: int = 0, prefills: int = 0, decodes: int = 0, context: int = 0) -> StepRow:
    return StepRow(
        prefill_tokens=prefill,
        num_prefills=prefills,
        prefill_pairs=prefill * prefill,
        decodes=decodes,
        context_tokens=context,
        padded_tokens=None,
        graph_mode=None,
        gpu_ms=1.0,
        forward_ms=0.9,
        period_ms=1.0,
        schedule_ms=0.1,
        launch_ms=0.2,
        wait_ms=None,
    )


@dataclass
class FakeEngine:
    vocab_size: int = 100
    limits: Limits = LIMITS
    setup: Setup = SETUP
    fail_at_batch: int | None = None
    spreads: list[float] = field(default_factory=list)
    temperatures: set[float] = field(default_factory=set)
    most_running: int = 0
    num_experts: int = 8
    routes: bool = False
    forced: ForcedRouting | None = None
    expert_ranks: int = 1
    _routed: list[NDArray[np.int64]] = field(default_factory=list)
    _prompts: dict[str, int] = field(default_factory=dict)
    _left: dict[str, int] = field(default_factory=dict)
    _rows: list[StepRow] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        return bool(self._left)

    def add(self, request_id: str, prompt: list[int], num_tokens: int, temperature: float) -> None:
        self.temperatures.add(temperature)
        if self.routes:
            self._routed.append(np.full((len(prompt) + num_tokens - 1, 2, 1), len(self._routed) % self.num_experts))
        self._prompts[request_id] = len(prompt)
        self._left[request_id] = num_tokens

    def step(self) -> list[tuple[str, int, bool]]:
        if len(self._left) == self.fail_at_batch:
            raise RuntimeError("the fake engine was told to fail")
        prefills = [self._prompts[key] for key in self._left if key in self._prompts]
        decodes = len(self._left) - len(prefills)
        self.most_running = max(self.most_running, len(self._left))
        self._rows.append(row(sum(prefills), len(prefills), decodes, 10 * decodes))
        self._prompts.clear()
        self._left = {key: left - 1 for key, left in self._left.items()}
        tokens = [(key, 1, left == 0) for key, left in self._left.items()]
        self._left = {key: left for key, left in self._left.items() if left}
        return tokens

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._left.pop(request_id, None)
            self._prompts.pop(request_id, None)

    def drain(self) -> list[StepRow]:
        rows, self._rows = self._rows, []
        return rows

    def take_routed(self) -> list[NDArray[np.int64]]:
        taken, self._routed = self._routed, []
        return taken

    def draw_routers(self, spread: float, falling: bool = False) -> dict[str, float]:
        self.spreads.append(-spread if falling else spread)
        return {"expert_load_gini": spread}
