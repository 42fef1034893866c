"""Forwards of a masked-diffusion model: whole sequences through the network, many times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.costs.attention import AttentionCoefficients, attention_coefficients
from moesim.costs.experts import routed_experts
from moesim.costs.kernels import OperatorCost
from moesim.costs.layout import Layout
from moesim.costs.step import rank_operators, sampled_operators
from moesim.specs.scenario import DiffusionRun

FloatArray = NDArray[np.float64]
_EAGER_OPS_PER_LAYER = 45.0
"""PyTorch operations of one transformer layer in reference code (norms in fp32, rotary, attention, MLP)."""
_EAGER_OPS_ROUTING = 12.0
"""Router softmax, top-k, one-hot mask and its permutation."""
_EAGER_OPS_PER_EXPERT = 15.0
"""Per expert of a Python loop: mask look-up, gather, three products, activation, scaling, index-add."""
_SAMPLING_BYTES_PER_LOGIT = 36.0
"""Low-confidence remasking: bf16 logits read twice, fp64 softmax written and read, confidence gathered."""


@dataclass(frozen=True, slots=True)
class ForwardShape:
    """Positions of one forward for one sequence: computed, visible to attention, and sampled."""

    computed: int
    visible: int
    sampled: int


@dataclass(frozen=True, slots=True)
class ForwardTimes:
    """Forwards of one generation [forwards]: GPU and host seconds, and costs by operator (same shape)."""

    gpu_s: FloatArray
    host_s: FloatArray
    operators: dict[str, OperatorCost]

    @property
    def seconds(self) -> FloatArray:
        """Forwards are launched one after the other; the slower of GPU and host decides."""
        return np.maximum(self.gpu_s, self.host_s)


def forward_shapes(run: DiffusionRun, prompt_tokens: int, block_causal: bool) -> list[ForwardShape]:
    """Every denoising forward in order.

    none: all positions are recomputed. prefix: the first forward of a block refreshes everything, later ones
    start at the block. dual: later ones compute the block alone. Block-causal models see only finished blocks
    and the present one, and with a cache compute the present block alone.
    """
    blocks = run.generation_len // run.block_len
    per_block = run.steps // blocks
    whole = prompt_tokens + run.generation_len
    shapes: list[ForwardShape] = []
    for block in range(blocks):
        start = prompt_tokens + block * run.block_len
        visible = start + run.block_len if block_causal else whole
        later = {"none": visible, "prefix": visible - start, "dual": run.block_len}[run.cache]
        cached = block_causal and run.cache != "none" and block > 0
        first = 2 * run.block_len if cached else visible
        sampled = visible - prompt_tokens if run.cache == "none" else min(later, run.generation_len)
        shapes.append(ForwardShape(first, visible, sampled))
        shapes.extend(ForwardShape(later, visible, sampled) for _ in range(per_block - 1))
    return shapes


def forward_times(layout: Layout, run: DiffusionRun, shapes: list[ForwardShape], batch: int) -> ForwardTimes:
    """Cost of each forward for `batch` sequences on every rank (doubled by classifier-free guidance)."""
    copies = batch * (2 if run.cfg_scale > 0 else 1)
    computed = np.array([shape.computed for shape in shapes], dtype=float) * copies
    sampled = np.array([shape.sampled for shape in shapes], dtype=float) * batch
    visible = np.array([shape.visible for shape in shapes], dtype=float)
    sizes, index = np.unique(computed, return_inverse=True)
    operators = {**rank_operators(layout, sizes), **_experts(layout, run, sizes)}
    operators = {name: _pick(cost, index) for name, cost in operators.items()}
    operators["output head"] = sampled_operators(layout, computed)["output head"]
    operators["sampling"] = layout.rates.kernel(
        "elementwise", sampled * layout.model.vocab_size * _SAMPLING_BYTES_PER_LOGIT, 0 * sampled, launches=12.0
    )
    operators["attention"] = _attention(layout, computed, visible, copies)
    gpu = np.sum([cost.seconds for cost in operators.values()], axis=0)
    return ForwardTimes(gpu, np.full_like(gpu, host_seconds(layout, run)), operators)


def _experts(layout: Layout, run: DiffusionRun, tokens: FloatArray) -> dict[str, OperatorCost]:
    if not layout.model.num_moe_layers or layout.model.moe is None:
        return {}
    group = (tokens * layout.deployment.lockstep_ranks).astype(np.int64)
    cost = routed_experts(layout, group).slowest
    if run.expert_execution == "loop":
        kernels = _EAGER_OPS_PER_EXPERT * layout.model.moe.num_experts / layout.deployment.expert_parallel_size
        launch = np.full_like(tokens, kernels * layout.parameters["kernel_s"])
        cost = OperatorCost(cost.memory_s, cost.compute_s, cost.network_s, launch, cost.hbm_bytes, cost.flops, kernels)
    return {"routed experts": cost.times(layout.model.num_moe_layers)}


def _attention(layout: Layout, computed: FloatArray, visible: FloatArray, copies: int) -> OperatorCost:
    """Bidirectional attention: every computed position sees every visible one."""
    coefficients: AttentionCoefficients = attention_coefficients(layout)
    sequences = float(copies)
    seconds = coefficients.forward_s(sequences, computed / sequences, visible)
    pairs = computed * visible
    arithmetic = np.minimum(coefficients.pair_full_s * pairs, seconds)
    zero = np.zeros_like(computed)
    return OperatorCost(
        zero,
        arithmetic,
        zero,
        seconds - arithmetic,
        visible * copies * coefficients.kv_token_bytes,
        pairs * coefficients.pair_flops,
        coefficients.launches,
    )


def _pick(cost: OperatorCost, index: NDArray[np.int64]) -> OperatorCost:
    arrays = (cost.memory_s, cost.compute_s, cost.network_s, cost.launch_s, cost.hbm_bytes, cost.flops)
    return OperatorCost(*(array[index] for array in arrays), launches=cost.launches)


def host_seconds(layout: Layout, run: DiffusionRun) -> float:
    """Host time of one forward: a graph replay, or every PyTorch operation of an eager loop.

    A Python loop over experts cannot be captured (it asks the GPU which tokens each expert got), so `loop`
    always runs eagerly.
    """
    model, parameters = layout.model, layout.parameters
    looped = run.expert_execution == "loop" and model.moe is not None
    if not layout.deployment.enforce_eager and not looped:
        return parameters["graph_replay_s"]
    operations = _EAGER_OPS_PER_LAYER * model.num_layers
    if model.moe is not None:
        experts = model.moe.num_experts / layout.deployment.expert_parallel_size if looped else 1.0
        operations += model.num_moe_layers * (_EAGER_OPS_ROUTING + _EAGER_OPS_PER_EXPERT * experts)
    return operations * parameters["host_eager_op_s"]
