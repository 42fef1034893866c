"""Every operator of one layout, evaluated on a grid of step sizes."""

from __future__ import annotations

from collections.abc import Callable
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
from moesim.costs.experts import RoutedCost, routed_experts
from moesim.costs.kernels import OperatorCost, nothing, transfer
from moesim.costs.layout import Layout
from moesim.specs.deployment import captured_sizes
from moesim.specs.model import MixtureOfExperts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Take = Callable[[str, Callable[[], Any]], Any]
_BESIDE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class StepOperators:
    """Costs summed over layers, by operator's name.

    `token` [token_grid]: what depends on a rank's tokens; `routed` [token_grid]: routed experts, and the gathering of
    their tokens, by the mean rank's tokens; `row` [row_grid]: head and sampling by sampled rows.
    `token_s`, `routed_s`, `row_s`: their seconds together. `weights_s` [token_grid]: time of the routed experts for
    reading weights. `routed_deviation_s` [token_grid]: spread of the routed experts of a whole step. `padded[t]`: the
    captured size that `t` tokens run as (absent above the largest).
    """

    layout: Layout
    attention: AttentionCoefficients
    padded: list[int]
    token_grid: IntArray
    token: dict[str, OperatorCost]
    token_s: FloatArray
    routed: dict[str, OperatorCost]
    routed_s: FloatArray
    routed_deviation_s: FloatArray
    weights_s: FloatArray
    row_grid: IntArray
    row: dict[str, OperatorCost]
    row_s: FloatArray

    @property
    def launches(self) -> float:
        """Kernels that a step without graphs launches."""
        costs = (*self.token.values(), *self.row.values(), *self.routed.values())
        return sum(cost.launches for cost in costs) + self.attention.launches

    @property
    def group_grid(self) -> IntArray:
        """Tokens of all ranks that step together, at each point of the grid."""
        return self.token_grid * self.layout.deployment.lockstep_ranks

    def run_size(self, tokens: int) -> int:
        """Tokens that a step really computes: padded to the next captured graph, if there is one."""
        return self.padded[tokens] if tokens < len(self.padded) else tokens


def evaluate(_: str, make: Callable[[], Any]) -> Any:
    """The `Take` that knows nothing."""
    return make()


def step_operators(layout: Layout, largest_tokens: int, largest_rows: int, take: Take = evaluate) -> StepOperators:
    """Operators for steps of up to `largest_tokens` tokens a rank and `largest_rows` sampled rows.

    `take`: gives an operator by its name and its maker; one that knows it already need not call the maker.
    """
    captured = graph_sizes(layout)
    grid, rows = token_grid(captured, largest_tokens), token_grid((), largest_rows)
    tokens = grid.astype(float)
    layers = layout.model.num_moe_layers
    experts: RoutedCost = take(
        "routed experts", lambda: routed_experts(layout, grid * layout.deployment.lockstep_ranks)
    )
    slowest = experts.slowest.times(layers)
    token = rank_operators(layout, tokens, take)
    routed = {"routed experts": slowest, **gathered_operators(layout, tokens, take)}
    row = sampled_operators(layout, rows.astype(float), take)
    return StepOperators(
        layout=layout,
        attention=take("attention", lambda: attention_coefficients(layout)),
        padded=_padding(captured, largest_tokens),
        token_grid=grid,
        token=token,
        token_s=_total_s(token),
        routed=routed,
        routed_s=_total_s(routed),
        routed_deviation_s=experts.deviation_s * np.sqrt(max(layers, 1)),
        weights_s=_weights_s(layout, tokens, slowest.memory_s),
        row_grid=rows,
        row=row,
        row_s=_total_s(row),
    )


def _total_s(operators: dict[str, OperatorCost]) -> FloatArray:
    return reduce(np.add, (cost.seconds for cost in operators.values()))


def _weights_s(layout: Layout, tokens: FloatArray, memory_s: FloatArray) -> FloatArray:
    """Time for reading weights, which stops growing when every expert has five tokens on average.

    What grows beyond is the traffic of activations, which does not depend on how alike tokens are.
    """
    moe = layout.model.moe
    if moe is None:
        return memory_s
    return np.minimum(memory_s, np.interp(touching_all(layout, moe), tokens, memory_s))


def rank_operators(layout: Layout, tokens: FloatArray, take: Take = evaluate) -> dict[str, OperatorCost]:
    """All operators that depend on a rank's tokens [steps], summed over layers."""
    model = layout.model
    layers, moe_layers, dense_layers = model.num_layers, model.num_moe_layers, model.num_dense_layers
    makers: dict[str, Callable[[], OperatorCost]] = {
        "attention projections": lambda: attention_projections(layout, tokens).times(layers),
        "norms and rotary": lambda: norms_and_rotary(layout, tokens).times(layers),
        "tensor-parallel all-reduce": lambda: _reduce_of(layout, tokens),
    }
    if dense_layers:
        makers["dense mlp"] = lambda: dense_mlp(layout, tokens).times(dense_layers)
    if moe_layers:
        makers["router"] = lambda: router(layout, tokens).times(moe_layers)
        makers["shared experts"] = lambda: (
            shared_expert(layout, tokens).times(moe_layers).slowed(_exposed(layout, tokens))
        )
        if not gathers_all(layout):
            makers["expert exchange"] = lambda: exchange_of(layout, tokens)
    if layout.deployment.pipeline_parallel_size > 1:
        makers["pipeline transfer"] = lambda: _pipeline_transfer(layout, tokens)
    return {name: take(name, make) for name, make in makers.items()}


def _reduce_of(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """All-reduces of all layers: one after attention, one after the feed-forward block."""
    if layout.tp == 1:
        return nothing(tokens)
    calls = 2 * layout.model.num_layers
    moving = tensor_parallel_reduce(layout, tokens).times(calls).slowed(layout.parameters["collective_slowdown"])
    return moving + _meeting(layout, tokens, calls)


def _meeting(layout: Layout, tokens: FloatArray, calls: int) -> OperatorCost:
    """What ranks with equal work wait for each other in `calls` collectives: their kernels never end together."""
    return transfer(np.full_like(tokens, calls * layout.parameters["collective_skew_s"]), launches=0.0)


def exchange_of(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """Dispatch and combine of all layers, at `tokens` [steps] of a rank."""
    if layout.deployment.lockstep_ranks == 1:
        return nothing(tokens)
    layers = layout.model.num_moe_layers
    moving = expert_exchange(layout, tokens).times(layers).slowed(layout.parameters["collective_slowdown"])
    return moving + _meeting(layout, tokens, 2 * layers)


def gathered_operators(layout: Layout, tokens: FloatArray, take: Take = evaluate) -> dict[str, OperatorCost]:
    """Operators beside the routed experts that depend on the mean rank's tokens [steps]."""
    if layout.model.num_moe_layers and gathers_all(layout):
        return {"expert exchange": take("expert exchange", lambda: exchange_of(layout, tokens))}
    return {}


def sampled_operators(layout: Layout, rows: FloatArray, take: Take = evaluate) -> dict[str, OperatorCost]:
    """Operators on the sampled rows [steps]."""
    return {
        "output head": take("output head", lambda: head(layout, rows)),
        "sampling": take("sampling", lambda: sampling(layout, rows)),
    }


def _exposed(layout: Layout, tokens: FloatArray) -> FloatArray:
    """Share of the shared experts' time that is not hidden [steps]: on CUDA, steps of up to 256 tokens run them on a
    second stream beside the routed ones (vLLM's SharedExperts and its VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD).
    """
    beside = (tokens <= _BESIDE_TOKENS) & (layout.cluster.accelerator.vendor == "nvidia")
    return np.where(beside, min(layout.parameters["shared_expert_exposed"], 1.0), 1.0)


def _pipeline_transfer(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """Hidden states sent from stage to stage; stages on other nodes go through the network adapter."""
    stages = layout.deployment.pipeline_parallel_size
    group = layout.tp_group
    message = tokens * layout.model.hidden_size * 2.0
    crosses = layout.cluster.num_nodes > 1
    rate = group.nic_bytes_per_s if crosses else group.exchange_bytes_per_s
    latency = group.nic_latency_s if crosses else group.exchange_latency_s
    return transfer((stages - 1) * (latency + message / rate), launches=2.0 * (stages - 1))


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
