"""Attention of a whole layout: the kernels of one layer, summed over full and sliding layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.costs.arithmetic import ARRAYS, FLOATS, Arithmetic, Numeric, in_floats
from moesim.costs.decode_attention import (
    FULL_CONTEXT,
    DecodeKernel,
    DecodeLine,
    decode_line,
    grouped_query_kernel,
    latent_kernel,
)
from moesim.costs.layout import Layout
from moesim.costs.prefill_attention import PrefillKernel, flash_kernel, latent_prefill_kernel, prefill_seconds
from moesim.placement.memory import kv_heads_per_rank
from moesim.specs.hardware import peak_rate
from moesim.specs.model import GroupedQueryAttention, MultiHeadLatentAttention

FloatArray = NDArray[np.float64]
Lines = tuple[tuple[float, DecodeLine], ...]


@dataclass(frozen=True, slots=True)
class LayerKernels:
    """Equal layers and their kernels; `layers` times the engine's slowdown against a benchmark's loop."""

    layers: float
    decode: DecodeKernel
    prefill: PrefillKernel


@dataclass(frozen=True, slots=True)
class AttentionCoefficients:
    """Attention over all layers on one rank.

    `decode_full_s`: seconds per cached token of a large batch, `pair_full_s`: per attended (query, key) pair of
    long chunks, both where nothing else limits. `window`: of the sliding layers (huge without). `decode_flops`
    and `kv_token_bytes` per cached token, `pair_flops` per pair. `memory_share` of the decode time waits for HBM.
    """

    kernels: tuple[LayerKernels, ...]
    window: float
    decode_full_s: float
    pair_full_s: float
    decode_flops: float
    pair_flops: float
    kv_token_bytes: float
    memory_share: float
    launches: float
    lines: dict[float, Lines] = field(default_factory=dict[float, Lines], compare=False, repr=False)

    def decode_lines(self, sequences: float) -> Lines:
        """Decode attention of a batch as functions of its cached tokens, with their numbers of layers."""
        known = self.lines.get(sequences)
        if known is None:
            known = tuple((kernel.layers, decode_line(kernel.decode, sequences)) for kernel in self.kernels)
            self.lines[sequences] = known
        return known

    def decode_s(self, sequences: float, context: float) -> float:
        """Seconds of decode attention of `sequences` sequences with `context` cached tokens in all."""
        if sequences == 0:
            return 0.0
        return sum(layers * line.seconds(context) for layers, line in self.decode_lines(sequences))

    def decode_steps_s(self, sequences: float, context: FloatArray) -> FloatArray:
        """The same at each of `context` [steps]."""
        seconds = np.zeros_like(context)
        for layers, line in self.decode_lines(sequences):
            seconds += layers * line.seconds(context, ARRAYS)
        return seconds

    def decode_rows_s(self, sequences: FloatArray, context: FloatArray) -> FloatArray:
        """The same for many steps [steps], each with its own batch of at least one sequence."""
        lines = ((kernel.layers, decode_line(kernel.decode, sequences, ARRAYS)) for kernel in self.kernels)
        return sum((layers * line.seconds(context, ARRAYS) for layers, line in lines), np.zeros_like(context))

    def prefill_s(self, chunks: float, tokens: float, pairs: float, window_pairs: float, kv_tokens: float) -> float:
        """Seconds of prefill attention of `chunks` chunks of together `tokens` new tokens.

        They attend `pairs` pairs (`window_pairs` in sliding layers) among `kv_tokens` visible keys.
        """
        if chunks == 0:
            return 0.0
        return self._prefill(chunks, tokens, pairs, window_pairs, kv_tokens, FLOATS)

    def prefill_rows_s(self, rows: FloatArray) -> FloatArray:
        """The same for many steps: `rows` [steps, 5] are the arguments of `prefill_s` in their order."""
        chunks, tokens, pairs, window_pairs, kv_tokens = rows.T
        return self._prefill(chunks, tokens, pairs, window_pairs, kv_tokens, ARRAYS)

    def forward_s(self, sequences: float, computed: FloatArray, visible: FloatArray) -> FloatArray:
        """Bidirectional attention of `sequences` sequences: `computed` positions each see all `visible` ones [steps].

        Nothing is written to a paged cache.
        """
        tokens, keys = sequences * computed, sequences * visible
        seconds = self._prefill(sequences, tokens, tokens * visible, tokens * visible, keys, ARRAYS)
        return seconds - tokens * sum(kernel.layers * kernel.prefill.write_token_s for kernel in self.kernels)

    def _prefill(
        self, chunks: Numeric, tokens: Numeric, pairs: Numeric, window_pairs: Numeric, keys: Numeric, kind: Arithmetic
    ) -> Numeric:
        return sum(
            kernel.layers
            * prefill_seconds(
                kernel.prefill,
                chunks,
                tokens,
                pairs if kernel.prefill.window >= FULL_CONTEXT else window_pairs,
                keys,
                kind,
            )
            for kernel in self.kernels
        )


def attention_coefficients(layout: Layout) -> AttentionCoefficients:
    """Coefficients of a layout.

    Grouped-query: a cached token costs its keys and values once for all query heads of the group. MLA decode
    attends in the latent space (every rank reads the whole latent cache), prefill expands to full heads.
    """
    attention = layout.model.attention
    heads = attention.num_heads / layout.tp
    layers = float(layout.model.num_layers)
    slowdown = layout.parameters["attention_slowdown"]
    if isinstance(attention, MultiHeadLatentAttention):
        kernels = (_latent_layers(layout, attention, heads, layers * slowdown),)
        window = FULL_CONTEXT
    else:
        kernels, window = _grouped_layers(layout, attention, heads, slowdown)
    bytes_per_token, decode_flops, pair_flops = _per_layer(layout)
    memory = bytes_per_token / (
        layout.cluster.accelerator.hbm_bandwidth_bytes_per_s * layout.parameters["attention_hbm_efficiency"]
    )
    arithmetic = decode_flops / peak_rate(layout.cluster.accelerator, "bf16")
    full = [kernel for kernel in kernels if kernel.decode.window >= FULL_CONTEXT]
    return AttentionCoefficients(
        kernels=kernels,
        window=window,
        decode_full_s=sum(kernel.layers * kernel.decode.chip_token_s for kernel in full),
        pair_full_s=sum(k.layers * k.prefill.heads * k.prefill.pair_s / k.prefill.compute_units for k in full),
        decode_flops=decode_flops * layers,
        pair_flops=pair_flops * sum(kernel.layers for kernel in full),
        kv_token_bytes=bytes_per_token * layers,
        memory_share=memory / (memory + arithmetic),
        launches=layers * 2.0,
    )


def _grouped_layers(
    layout: Layout, attention: GroupedQueryAttention, heads: float, slowdown: float
) -> tuple[tuple[LayerKernels, ...], float]:
    kv_heads = kv_heads_per_rank(attention, layout.tp)
    sliding = float(attention.sliding_window_layers) if attention.sliding_window else 0.0
    window = float(attention.sliding_window) if sliding and attention.sliding_window else FULL_CONTEXT
    accelerator, constants = layout.cluster.accelerator, layout.parameters
    found: list[LayerKernels] = []
    full = float(layout.model.num_layers) - sliding
    for count, reach in ((full * slowdown, FULL_CONTEXT), (sliding * slowdown, window)):
        if count:
            shape = (heads, float(kv_heads), float(attention.head_dim), layout.kv_bytes, reach)
            decode = in_floats(grouped_query_kernel(accelerator, constants, *shape))
            found.append(LayerKernels(count, decode, in_floats(flash_kernel(accelerator, constants, *shape))))
    return tuple(found), window


def _latent_layers(layout: Layout, attention: MultiHeadLatentAttention, heads: float, layers: float) -> LayerKernels:
    accelerator, constants = layout.cluster.accelerator, layout.parameters
    latent, rope = float(attention.kv_lora_rank), float(attention.qk_rope_head_dim)
    decode = latent_kernel(accelerator, constants, heads, latent, rope, layout.kv_bytes)
    width, value = float(attention.qk_nope_head_dim) + rope, float(attention.v_head_dim)
    prefill = latent_prefill_kernel(accelerator, constants, heads, width, value)
    return LayerKernels(layers, in_floats(decode), in_floats(prefill))


def _per_layer(layout: Layout) -> tuple[float, float, float]:
    """Bytes and FLOPs per cached token at decode, FLOPs per pair at prefill; one layer, one rank."""
    attention = layout.model.attention
    heads = attention.num_heads / layout.tp
    if isinstance(attention, MultiHeadLatentAttention):
        latent, rope = attention.kv_lora_rank, attention.qk_rope_head_dim
        pair = 2.0 * heads * (attention.qk_nope_head_dim + rope + attention.v_head_dim)
        return (latent + rope) * layout.kv_bytes, 2.0 * heads * (2 * latent + rope), pair
    flops = 4.0 * heads * attention.head_dim
    return 2.0 * kv_heads_per_rank(attention, layout.tp) * attention.head_dim * layout.kv_bytes, flops, flops
