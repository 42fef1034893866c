"""A stand-in for the package `vllm`: an LLM that answers at once, and resolves its settings as it is told.

Variable FAKE_RESOLVED: JSON merged over what the engine says it resolved to.
"""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

__version__ = "0.99.fake"
LAYERS, EXPERTS, TOP_K = 16, 64, 8


class SamplingParams:
    def __init__(self, **words: Any) -> None:
        self.max_tokens = words["max_tokens"]


class LLM:
    def __init__(self, **words: Any) -> None:
        resolved = {
            "data_parallel_size": 1,
            "enable_eplb": False,
            "expert_placement_strategy": "linear",
            "cudagraph_mode": SimpleNamespace(value=0 if words["enforce_eager"] else (2, 1)),
            "cudagraph_capture_sizes": [1, 2],
            **words,
            **json.loads(os.environ.get("FAKE_RESOLVED", "{}")),
        }
        part = SimpleNamespace(**resolved)
        names = ("parallel", "model", "scheduler", "cache", "load", "compilation")
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(**{f"{name}_config": part for name in names}))
        self._routed = words.get("enable_return_routed_experts", False)
        self._draw = np.random.default_rng(0)

    def reset_prefix_cache(self) -> None:
        pass

    def generate(self, prompts: list[dict[str, list[int]]], params: SamplingParams, use_tqdm: bool) -> list[Any]:  # noqa: ARG002
        time.sleep(0.05)
        return [self._answer(len(prompt["prompt_token_ids"]), params.max_tokens) for prompt in prompts]

    def _answer(self, prompt: int, tokens: int) -> Any:
        shape = (prompt + tokens - 1, LAYERS, TOP_K)
        routed = self._draw.integers(0, EXPERTS, shape) if self._routed else None
        output = SimpleNamespace(token_ids=list(range(tokens)), routed_experts=routed)
        metrics = SimpleNamespace(
            first_token_latency=0.02, first_token_ts=10.0, last_token_ts=10.0 + 0.004 * (tokens - 1)
        )
        return SimpleNamespace(outputs=[output], metrics=metrics)
