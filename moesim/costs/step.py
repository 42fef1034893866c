"""One engine step: operators summed per rank, the slowest rank, and the host beside the GPU.

`build_step_model` evaluates every operator once on a grid of step sizes; the simulation then only looks up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.attention import AttentionCoefficients, attention_coefficients
from moesim.costs.dense import (
    attention_projections,
    dense_mlp,
    head,
    norms_and_rotary,
    router,
    sampling,
    shared_expert,
    tensor_parallel_reduce,
)
from moesim.costs.exchange import expert_exchange, gathers_all
from moesim.costs.experts import routed_experts
from moesim.costs.kernels import OperatorCost, transfer
from moesim.costs.layout import Layout
from moesim.specs.deployment import captured_sizes
from moesim.specs.model import MixtureOfExperts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Numbers = Any  # a plain number, or an array of numbers
NOISE_STEPS = 4096
LONGEST_RUN_STEPS = 2048
"""Steps that a simulation advances at once at most."""
_BESIDE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class StepModel:
    """Look-up tables of one layout.

    `token_s[t]`: seconds of everything that depends on the `t` tokens of a rank; `routed_s[g]` and
    `routed_sd_s[g]`: routed experts, and the gathering of their tokens, for `g` tokens over the lockstep group, mean
    and spread of a whole step; `routed_memory_s[g]`: the part of it that reads weights;
    `head_s[r]`: head and sampling for `r` sampled rows; `padded[t]`: the captured size that `t` tokens run as
    (absent above the largest). `noise` [4096 + 2048]: standard normal draws, step `i` taking number
    `i % 4096`, the first ones again at the end, so that a run of steps is a slice (`noise_list`: the same);
    `known_steps`, `known_prefills` and `decode_tables` remember what the engine derived from these tables. The
    `_operators` tables
    hold the same costs by operator on the grids they were computed on.
    """

    layout: Layout
    attention: AttentionCoefficients
    token_s: list[float]
    routed_s: list[float]
    routed_sd_s: list[float]
    routed_memory_s: list[float]
    prompt_routing_exponent: float
    head_s: list[float]
    padded: list[int]
    noise: FloatArray
    noise_list: list[float]
    known_steps: dict[tuple[int, ...], object]
    known_prefills: dict[tuple[float, ...], float]
    decode_tables: dict[int, object]
    launches: float
    token_grid: IntArray
    token_operators: dict[str, OperatorCost]
    routed_operators: dict[str, OperatorCost]
    routed_mean_rank_s: FloatArray
    row_grid: IntArray
    row_operators: dict[str, OperatorCost]

    def run_size(self, tokens: int) -> int:
        """Tokens that a step really computes: padded to the next captured graph, if there is one."""
        return self.padded[tokens] if tokens < len(self.padded) else tokens

    def gpu_fixed_s(self, rank_tokens: int, group_tokens: int, rows: int, prompt_tokens: int = 0) -> float:
        """GPU seconds of a step apart from attention, for sizes that are already padded.

        `prompt_tokens` of the group's tokens belong to prompts, whose tokens are routed alike: they read the
        weights of fewer experts than as many independent tokens (see `alike`).
        """
        seconds = self.token_s[rank_tokens] + self.routed_s[group_tokens] + self.head_s[rows]
        if prompt_tokens:
            seconds += (
                self.routed_memory_s[self.alike(group_tokens, prompt_tokens)] - self.routed_memory_s[group_tokens]
            )
        return seconds

    def alike(self, group_tokens: int, prompt_tokens: int) -> int:
        """Independent tokens that touch as many experts as `group_tokens` with `prompt_tokens` of prompts do."""
        return group_tokens - prompt_tokens + round(prompt_tokens**self.prompt_routing_exponent)

    def host_s(self, tokens: int, sequences: int, has_prefill: bool) -> tuple[float, float]:
        """Host seconds of a step of `tokens` tokens: (scheduling and bookkeeping, launching)."""
        captured = tokens < len(self.padded)
        return host_seconds(self.layout, self.launches, captured, sequences, has_prefill)


def host_seconds(
    layout: Layout, launches: float, captured: Numbers, sequences: Numbers, prefill: Numbers
) -> tuple[Numbers, Numbers]:
    """Host seconds of a step: (scheduling and bookkeeping, launching); plain numbers or arrays of steps.

    `captured` and `prefill` are truth values. A decode step within the captured sizes is one replay; with prefill
    the graphs are cut at every attention (a model that is not compiled has none such). Above the captured sizes a
    compiled step runs layer by layer (the same time a layer in six models of 6 to 48 layers); in eager mode every one
    of `launches` kernels is launched.
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
    deployment = layout.deployment
    captured = graph_sizes(layout)
    grid = token_grid(captured, largest_tokens)
    tokens = grid.astype(float)
    rows = token_grid((), largest_rows)
    token_operators = rank_operators(layout, tokens)
    row_operators = sampled_operators(layout, rows.astype(float))
    gathered = gathered_operators(layout, tokens)
    routed = routed_experts(layout, grid * deployment.lockstep_ranks)
    layers = layout.model.num_moe_layers
    experts = routed.slowest.times(layers)
    dense = np.arange(largest_tokens + 1)
    group = np.arange(largest_tokens * deployment.lockstep_ranks + 1) / deployment.lockstep_ranks
    coefficients = attention_coefficients(layout)
    draws = np.clip(np.random.default_rng([layout.seed, 0x57E9]).standard_normal(NOISE_STEPS), -3, 3)
    noise = np.concatenate([draws, draws[:LONGEST_RUN_STEPS]])
    routed_operators = {"routed experts": experts, **gathered}
    all_costs = (*token_operators.values(), *row_operators.values(), *routed_operators.values())
    launches = sum(cost.launches for cost in all_costs)
    return StepModel(
        layout=layout,
        attention=coefficients,
        token_s=np.interp(dense, tokens, _total_s(token_operators)).tolist(),
        routed_s=np.interp(group, tokens, _total_s(routed_operators)).tolist(),
        routed_memory_s=np.interp(group, tokens, weights_s(layout, tokens, experts.memory_s)).tolist(),
        prompt_routing_exponent=min(layout.parameters["prompt_routing_exponent"], 1.0),
        routed_sd_s=np.interp(group, tokens, routed.deviation_s * np.sqrt(max(layers, 1))).tolist(),
        head_s=np.interp(np.arange(largest_rows + 1), rows, _total_s(row_operators)).tolist(),
        padded=_padding(captured, largest_tokens),
        noise=noise,
        noise_list=noise.tolist(),
        known_steps={},
        known_prefills={},
        decode_tables={},
        launches=launches + coefficients.launches,
        token_grid=grid,
        token_operators=token_operators,
        routed_operators=routed_operators,
        routed_mean_rank_s=routed.mean_rank_s * layers,
        row_grid=rows,
        row_operators=row_operators,
    )


def weights_s(layout: Layout, tokens: FloatArray, memory_s: FloatArray) -> FloatArray:
    """Time of the routed experts for reading weights: it stops growing when every expert has five tokens on average.

    What grows beyond is the traffic of activations, which does not depend on how alike tokens are.
    """
    moe = layout.model.moe
    if moe is None:
        return memory_s
    return np.minimum(memory_s, np.interp(touching_all(layout, moe), tokens, memory_s))


def touching_all(layout: Layout, moe: MixtureOfExperts) -> float:
    """Tokens of a rank with which every expert has five tokens on average: more touch no more experts."""
    return 5 * moe.num_experts / moe.top_k / layout.deployment.lockstep_ranks


def graph_sizes(layout: Layout) -> tuple[int, ...]:
    """Captured batch sizes of a deployment; none in eager mode."""
    deployment = layout.deployment
    if deployment.enforce_eager:
        return ()
    return captured_sizes(deployment.max_num_seqs, deployment.max_cudagraph_capture_size)


def token_grid(captured: tuple[int, ...], largest: int) -> IntArray:
    """Step sizes at which operators are evaluated: all small ones, the captured ones, then 9 % apart."""
    sizes = {*range(1, min(largest, 16) + 1), *(size for size in captured if size <= largest), largest}
    size = 16.0
    while size < largest:
        sizes.add(round(size))
        size = max(size * 1.09, size + 1)
    return np.array(sorted(sizes), dtype=np.int64)


def _padding(captured: tuple[int, ...], largest_tokens: int) -> list[int]:
    """Captured size that each token count runs as; index 0 is an idle rank's dummy batch of one token."""
    if not captured:
        return []
    top = min(captured[-1], largest_tokens)
    sizes = np.array([size for size in captured if size <= top] or [top])
    wanted = np.arange(min(int(sizes[-1]), largest_tokens) + 1)
    return sizes[np.searchsorted(sizes, np.maximum(wanted, 1))].tolist()


def rank_operators(layout: Layout, tokens: FloatArray) -> dict[str, OperatorCost]:
    """All operators that depend on a rank's tokens [steps], summed over layers."""
    model = layout.model
    layers, moe_layers, dense_layers = model.num_layers, model.num_moe_layers, model.num_dense_layers
    slowdown = layout.parameters["collective_slowdown"]
    costs = {
        "attention projections": attention_projections(layout, tokens).times(layers),
        "norms and rotary": norms_and_rotary(layout, tokens).times(layers),
        "tensor-parallel all-reduce": tensor_parallel_reduce(layout, tokens).times(2 * layers).slowed(slowdown),
    }
    if dense_layers:
        costs["dense mlp"] = dense_mlp(layout, tokens).times(dense_layers)
    if moe_layers:
        costs["router"] = router(layout, tokens).times(moe_layers)
        costs["shared experts"] = shared_expert(layout, tokens).times(moe_layers).slowed(_exposed(layout, tokens))
        if not gathers_all(layout):
            costs["expert exchange"] = exchange_of(layout, tokens)
    if layout.deployment.pipeline_parallel_size > 1:
        costs["pipeline transfer"] = _pipeline_transfer(layout, tokens)
    return costs


def exchange_of(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """Dispatch and combine of all layers, at `tokens` [steps] of a rank."""
    exchange = expert_exchange(layout, tokens).times(layout.model.num_moe_layers)
    return exchange.slowed(layout.parameters["collective_slowdown"])


def gathered_operators(layout: Layout, tokens: FloatArray) -> dict[str, OperatorCost]:
    """Operators beside the routed experts that depend on the mean rank's tokens [steps]."""
    if layout.model.num_moe_layers and gathers_all(layout):
        return {"expert exchange": exchange_of(layout, tokens)}
    return {}


def _exposed(layout: Layout, tokens: FloatArray) -> FloatArray:
    """Share of the shared experts' time that is not hidden [steps]: on CUDA, steps of up to 256 tokens run them on a
    second stream beside the routed ones (vLLM's SharedExperts and its VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD).
    """
    beside = (tokens <= _BESIDE_TOKENS) & (layout.cluster.accelerator.vendor == "nvidia")
    return np.where(beside, min(layout.parameters["shared_expert_exposed"], 1.0), 1.0)


def sampled_operators(layout: Layout, rows: FloatArray) -> dict[str, OperatorCost]:
    """Operators on the sampled rows [steps]."""
    return {"output head": head(layout, rows), "sampling": sampling(layout, rows)}


def _pipeline_transfer(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """Hidden states sent from stage to stage; stages on other nodes go through the network adapter."""
    stages = layout.deployment.pipeline_parallel_size
    group = layout.tp_group
    message = tokens * layout.model.hidden_size * 2.0
    crosses = layout.cluster.num_nodes > 1
    rate = group.nic_bytes_per_s if crosses else group.exchange_bytes_per_s
    latency = group.nic_latency_s if crosses else group.exchange_latency_s
    return transfer((stages - 1) * (latency + message / rate), launches=2.0 * (stages - 1))


def _total_s(operators: dict[str, OperatorCost]) -> FloatArray:
    return reduce(np.add, (cost.seconds for cost in operators.values()))
