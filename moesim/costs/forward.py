"""Forwards of a masked-diffusion model: whole sequences through the network, many times."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.costs.attention import AttentionCoefficients, attention_coefficients
from moesim.costs.denoising import Program, program_of
from moesim.costs.experts import routed_experts
from moesim.costs.kernels import OperatorCost
from moesim.costs.layout import Layout
from moesim.costs.operators import gathered_operators, rank_operators, sampled_operators, token_grid, touching_all
from moesim.specs.scenario import DiffusionRun

FloatArray = NDArray[np.float64]
_SAMPLING_BYTES_PER_LOGIT = 36.0
"""Low-confidence remasking: bf16 logits read twice, fp64 softmax written and read, confidence gathered."""
_LOOP_KERNELS = 14.0
"""Kernels of one expert of a loop: five to find its tokens, gather, three products, activation, scaling, index-add."""


@dataclass(frozen=True, slots=True)
class ForwardShape:
    """Positions of one forward for one sequence: computed, of these in the text that is being written (masks and
    what became of them), visible to attention, and turned into logits.
    """

    computed: int
    written: int
    visible: int
    sampled: int


@dataclass(frozen=True, slots=True)
class ForwardTimes:
    """Forwards of one generation [forwards]: GPU and host seconds, and costs by operator (same shape).

    `in_turn`: the host waits for the GPU in every layer, so that neither works while the other does.
    """

    gpu_s: FloatArray
    host_s: FloatArray
    operators: dict[str, OperatorCost]
    in_turn: bool = False

    @property
    def seconds(self) -> FloatArray:
        """Forwards are launched one after the other; the slower of GPU and host decides, unless they take turns."""
        return self.gpu_s + self.host_s if self.in_turn else np.maximum(self.gpu_s, self.host_s)


def forward_shapes(run: DiffusionRun, prompt_tokens: int, block_causal: bool) -> list[ForwardShape]:
    """Every denoising forward in order.

    none: all positions are recomputed. prefix: the first forward of a block refreshes everything, later ones
    start at the block. dual: later ones compute the block alone. Block-causal models see only finished blocks
    and the present one, and with a cache compute the present block alone. Logits are those of the block, or (in the
    published code) of all that is computed and written.
    """
    logits = program_of(run).logits
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
        for index, computed in enumerate((first, *[later] * (per_block - 1))):
            written = computed if cached or (index and run.cache != "none") else computed - prompt_tokens
            sampled = run.block_len if logits == "block" else min(written, later)
            shapes.append(ForwardShape(computed, written, visible, sampled))
    return shapes


def forward_times(layout: Layout, run: DiffusionRun, shapes: list[ForwardShape], batch: int) -> ForwardTimes:
    """Cost of each forward for `batch` sequences on every rank (doubled by classifier-free guidance)."""
    copies = batch * (2 if run.cfg_scale > 0 else 1)
    computed = np.array([shape.computed for shape in shapes], dtype=float) * copies
    written = np.array([shape.written for shape in shapes], dtype=float) * copies
    sampled = np.array([shape.sampled for shape in shapes], dtype=float) * batch
    visible = np.array([shape.visible for shape in shapes], dtype=float)
    program = program_of(run)
    sizes, index = np.unique(computed, return_inverse=True)
    sized = rank_operators(layout, sizes) | gathered_operators(layout, sizes)
    operators = {name: _pick(cost, index) for name, cost in sized.items()}
    operators |= _experts(layout, run, computed, written, copies)
    rows = sampled * (copies / batch) if program.logits == "block" else computed
    operators["output head"] = sampled_operators(layout, rows)["output head"]
    operators["sampling"] = layout.rates.kernel(
        "elementwise",
        sampled * layout.model.vocab_size * _SAMPLING_BYTES_PER_LOGIT,
        0 * sampled,
        launches=program.sampling_kernels,
    )
    operators["attention"] = _attention(layout, computed, visible, copies)
    gpu = np.sum([cost.seconds for cost in operators.values()], axis=0)
    in_turn = _waits_for_sizes(layout, program)
    return ForwardTimes(gpu, np.full_like(gpu, host_seconds(layout, run)), operators, in_turn)


def _experts(
    layout: Layout, run: DiffusionRun, computed: FloatArray, written: FloatArray, copies: int
) -> dict[str, OperatorCost]:
    """Routed experts of forwards over `computed` tokens, `written` of them in the texts of `copies` sequences.

    Masks have one embedding, so that a text's positions are routed alike: n of them touch as many experts as
    n ** prompt_routing_exponent independent tokens do.
    """
    moe = layout.model.moe
    if not layout.model.num_moe_layers or moe is None:
        return {}
    exponent = min(layout.parameters["prompt_routing_exponent"], 1.0)
    alike = computed - written + copies * (written / copies) ** exponent
    ranks = layout.deployment.lockstep_ranks
    sizes = np.unique(np.concatenate((token_grid((), int(computed.max())), computed)))
    cost = routed_experts(layout, (sizes * ranks).astype(np.int64)).slowest
    at = np.searchsorted(sizes, computed)

    most = touching_all(layout, moe)

    def touched(values: FloatArray) -> FloatArray:
        fewer, all_of_them = (np.interp(np.minimum(tokens, most), sizes, values) for tokens in (alike, computed))
        return values[at] - all_of_them + fewer

    parts = {name: touched(getattr(cost, name)) for name in ("memory_s", "compute_s", "hbm_bytes")}
    cost = replace(_pick(cost, at), **parts)
    if run.expert_execution == "loop":
        kernels = _LOOP_KERNELS * moe.num_experts / layout.deployment.expert_parallel_size
        cost = replace(cost, launch_s=0 * alike + kernels * layout.parameters["kernel_s"], launches=kernels)
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


def _waits_for_sizes(layout: Layout, program: Program) -> bool:
    """Whether the host asks in every layer how many rows travel between the ranks that hold experts."""
    return layout.deployment.expert_parallel_size > 1 and program.exchange.waits > 0


def host_seconds(layout: Layout, run: DiffusionRun) -> float:
    """Host time of one forward: its calls from Python, where it is a graph those beside its replay.

    A Python loop over experts cannot be captured (it asks the GPU which tokens each expert got), nor can an exchange
    between ranks that asks how many rows travel: both always run eagerly.
    """
    model, parameters, program = layout.model, layout.parameters, program_of(run)
    looped = run.expert_execution == "loop" and model.moe is not None
    exchanges = _waits_for_sizes(layout, program)
    calls = program.step.weight
    if not layout.deployment.enforce_eager and not looped and not exchanges:
        return parameters["graph_replay_s"] + calls * parameters["host_eager_op_s"]
    calls += program.dense.weight * model.num_dense_layers
    if model.moe is not None:
        experts = model.moe.num_experts / layout.deployment.expert_parallel_size if looped else 1.0
        travelling = program.exchange.weight if exchanges else 0.0
        calls += model.num_moe_layers * (program.sparse.weight + program.expert.weight * experts + travelling)
    return calls * parameters["host_eager_op_s"]
