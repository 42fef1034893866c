"""One engine step: the slowest rank's operators, and the host beside the GPU.

`build_step_model` makes look-up tables of the operators of a layout; the simulation then only looks up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.attention import AttentionCoefficients
from moesim.costs.layout import Layout
from moesim.costs.operators import StepOperators, step_operators

FloatArray = NDArray[np.float64]
Numbers = Any  # a plain number, or an array of numbers
NOISE_STEPS = 4096
LONGEST_RUN_STEPS = 2048
"""Steps that a simulation advances at once at most."""


@dataclass(frozen=True, slots=True)
class StepModel:
    """Look-up tables of one layout, made of its `operators`.

    `token_s[t]`: seconds of everything that depends on the `t` tokens of a rank; `routed_s[g]` and
    `routed_sd_s[g]`: routed experts, and the gathering of their tokens, for `g` tokens over the lockstep group, mean
    and spread of a whole step; `routed_memory_s[g]`: the part of it that reads weights;
    `head_s[r]`: head and sampling for `r` sampled rows.
    `noise` [4096 + 2048]: standard normal draws, step `i` taking number `i % 4096`, the first ones again at the end, so
    that a run of steps is a slice (`noise_list`: the same); `known_steps`, `known_prefills` and `decode_tables`
    remember what the engine derived from these tables.
    """

    layout: Layout
    attention: AttentionCoefficients
    operators: StepOperators
    token_s: list[float]
    routed_s: list[float]
    routed_sd_s: list[float]
    routed_memory_s: list[float]
    head_s: list[float]
    launches: float
    noise: FloatArray
    noise_list: list[float]
    known_steps: dict[tuple[int, ...], object]
    known_prefills: dict[tuple[float, ...], float]
    decode_tables: dict[int, object]

    def gpu_fixed_s(self, rank_tokens: int, group_tokens: int, rows: int, prompt_tokens: int = 0) -> float:
        """GPU seconds of a step apart from attention, for sizes that are already padded.

        `prompt_tokens` of the group's tokens belong to prompts, whose tokens are routed alike: they read the
        weights of fewer experts than as many independent tokens (see `alike`).
        """
        seconds = self.token_s[rank_tokens] + self.routed_s[group_tokens] + self.head_s[rows]
        if prompt_tokens:
            seconds += (
                self.routed_memory_s[int(alike(self.layout, group_tokens, prompt_tokens))]
                - self.routed_memory_s[group_tokens]
            )
        return seconds

    def host_s(self, tokens: int, sequences: int, has_prefill: bool) -> tuple[float, float]:
        """Host seconds of a step of `tokens` tokens: (scheduling and bookkeeping, launching)."""
        captured = tokens < len(self.operators.padded)
        return host_seconds(self.layout, self.launches, captured, sequences, has_prefill)


def alike(layout: Layout, group_tokens: Numbers, prompt_tokens: Numbers) -> Numbers:
    """Independent tokens that touch as many experts as `group_tokens` with `prompt_tokens` of prompts do."""
    exponent = min(layout.parameters["prompt_routing_exponent"], 1.0)
    return group_tokens - prompt_tokens + np.rint(prompt_tokens**exponent)


def host_seconds(
    layout: Layout, launches: float, captured: Numbers, sequences: Numbers, prefill: Numbers
) -> tuple[Numbers, Numbers]:
    """Host seconds of a step: (scheduling and bookkeeping, launching); plain numbers or arrays of steps.

    `captured` and `prefill` are truth values. A decode step within the captured sizes is one replay; with prefill
    the graphs are cut at every attention (a model that is not compiled has none such). Above the captured sizes a
    compiled step runs layer by layer (the same time a layer in six models of 6 to 48 layers), and longer where tokens
    are exchanged between data-parallel ranks; in eager mode every one of `launches` kernels is launched.
    With more than one sequence the server's output handling competes with the engine's loop for the host
    (measured: 3 to 7 % of eager steps, independent of how many more there are).
    """
    parameters, layers = layout.parameters, layout.model.num_layers
    serial = parameters["host_step_s"] + parameters["host_sequence_s"] * sequences
    serial = serial + parameters["host_concurrent_s"] * (sequences > 1)
    if layout.deployment.lockstep_ranks > 1:
        serial = serial + parameters["host_lockstep_s"]
    replay = parameters["graph_replay_s"] + prefill * layers * parameters["host_piece_s"]
    one_by_one = replay * 0 + launches * parameters["host_launch_s"]
    if layout.deployment.enforce_eager:
        return serial, one_by_one
    if not layout.model.compiled:
        whole = captured * (1 - prefill)
        return serial, whole * replay + (1 - whole) * one_by_one
    layered = parameters["host_uncaptured_s"] + layers * parameters["host_layer_s"]
    if layout.deployment.lockstep_ranks > 1:
        layered = layered + layout.model.num_moe_layers * parameters["host_exchange_s"]
    return serial, captured * replay + (1 - captured) * layered


def step_seconds(layout: Layout, host: tuple[float, float], gpu_s: float) -> float:
    """Seconds of a step from host and GPU time.

    With asynchronous scheduling all host work runs beside the GPU; without it scheduling comes first and only
    launching overlaps.
    """
    serial, launch = host
    if layout.deployment.async_scheduling:
        return max(gpu_s, serial + launch)
    return serial + max(gpu_s, launch)


def build_step_model(layout: Layout, largest_tokens: int, largest_rows: int) -> StepModel:
    """Tables for steps of up to `largest_tokens` tokens a rank and `largest_rows` sampled rows."""
    operators = step_operators(layout, largest_tokens, largest_rows)
    ranks, grid, rows = layout.deployment.lockstep_ranks, operators.token_grid, operators.row_grid
    dense = np.arange(largest_tokens + 1)
    group = np.arange(largest_tokens * ranks + 1) / ranks
    draws = np.clip(np.random.default_rng([layout.seed, 0x57E9]).standard_normal(NOISE_STEPS), -3, 3)
    noise = np.concatenate([draws, draws[:LONGEST_RUN_STEPS]])
    return StepModel(
        layout=layout,
        attention=operators.attention,
        operators=operators,
        token_s=np.interp(dense, grid, operators.token_s).tolist(),
        routed_s=np.interp(group, grid, operators.routed_s).tolist(),
        routed_memory_s=np.interp(group, grid, operators.weights_s).tolist(),
        routed_sd_s=np.interp(group, grid, operators.routed_deviation_s).tolist(),
        head_s=np.interp(np.arange(largest_rows + 1), rows, operators.row_s).tolist(),
        launches=operators.launches,
        noise=noise,
        noise_list=noise.tolist(),
        known_steps={},
        known_prefills={},
        decode_tables={},
    )
