"""Attention over cached tokens: decode streams the KV cache, prefill computes the pairs.

Both are linear in what grows (cached tokens, attended pairs), so their coefficients are computed once.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.costs.layout import Layout
from moesim.placement.memory import kv_heads_per_rank
from moesim.specs.model import GroupedQueryAttention, MultiHeadLatentAttention


@dataclass(frozen=True, slots=True)
class AttentionCoefficients:
    """Seconds of attention over all layers on one rank.

    decode: `start_s` per step, `decode_full_s` per cached token in full layers, `decode_window_s` per cached
    token within the window of sliding layers. prefill: `pair_full_s`/`pair_window_s` per attended
    (query, key) pair, `prefill_kv_s` per cached token read. `decode_bytes`/`decode_flops` per cached token,
    `pair_flops` per pair. `memory_share` of the decode time waits for HBM.
    """

    start_s: float
    decode_full_s: float
    decode_window_s: float
    window: float
    pair_full_s: float
    pair_window_s: float
    prefill_kv_s: float
    decode_bytes: float
    decode_flops: float
    pair_flops: float
    kv_token_bytes: float
    memory_share: float
    launches: float

    def decode_s(self, sequences: float, context: float) -> float:
        """Decode attention of `sequences` sequences with `context` cached tokens in all."""
        if sequences == 0:
            return 0.0
        seconds = self.start_s + self.decode_full_s * context
        if self.decode_window_s:
            seconds += self.decode_window_s * min(context, sequences * self.window)
        return seconds

    def prefill_s(self, chunks: float, pairs: float, pairs_window: float, kv_tokens: float) -> float:
        """Prefill attention of `chunks` chunks with so many attended pairs, reading `kv_tokens` cached tokens."""
        if chunks == 0:
            return 0.0
        arithmetic = self.pair_full_s * pairs + self.pair_window_s * pairs_window
        return self.start_s + max(arithmetic, self.prefill_kv_s * kv_tokens)


def attention_coefficients(layout: Layout) -> AttentionCoefficients:
    """Coefficients of a layout.

    Grouped-query: a cached token costs its keys and values once for all query heads of the group. MLA decode
    attends in the latent space (every rank reads the whole latent cache; FLOPs per cached token are
    2 heads (2 kv_lora_rank + rope)), prefill expands to full heads. Left out: split-KV reduction and low
    occupancy at small batches (up to 2x of a term that is then small).
    """
    attention = layout.model.attention
    bytes_per_token, decode_flops, pair_flops = _per_layer(layout)
    rates, p = layout.rates, layout.parameters["roofline_sharpness"]
    memory = bytes_per_token / rates.bytes_per_s("attention")
    arithmetic = decode_flops / rates.flops_per_s("attention", "bf16")
    decode = (memory**p + arithmetic**p) ** (1 / p)
    layers = float(layout.model.num_layers)
    windowed = float(attention.sliding_window_layers) if isinstance(attention, GroupedQueryAttention) else 0.0
    full = layers - windowed
    pair = pair_flops / rates.flops_per_s("attention", "bf16")
    launches = layers * 2.0
    return AttentionCoefficients(
        start_s=layers * 2.0 * layout.parameters["kernel_s"],
        decode_full_s=decode * full,
        decode_window_s=decode * windowed,
        window=float(_window(layout)),
        pair_full_s=pair * full,
        pair_window_s=pair * windowed,
        prefill_kv_s=memory * layers,
        decode_bytes=bytes_per_token * full,
        decode_flops=decode_flops * full,
        pair_flops=pair_flops * full,
        kv_token_bytes=bytes_per_token * layers,
        memory_share=memory**p / (memory**p + arithmetic**p),
        launches=launches,
    )


def _window(layout: Layout) -> int:
    attention = layout.model.attention
    if isinstance(attention, GroupedQueryAttention) and attention.sliding_window:
        return attention.sliding_window
    return 1 << 40


def _per_layer(layout: Layout) -> tuple[float, float, float]:
    """Bytes and FLOPs per cached token at decode, FLOPs per pair at prefill; one layer, one rank."""
    attention = layout.model.attention
    if isinstance(attention, MultiHeadLatentAttention):
        heads = attention.num_heads / layout.tp
        latent, rope = attention.kv_lora_rank, attention.qk_rope_head_dim
        pair = 2.0 * heads * (attention.qk_nope_head_dim + rope + attention.v_head_dim)
        return (latent + rope) * layout.kv_bytes, 2.0 * heads * (2 * latent + rope), pair
    heads = attention.num_heads / layout.tp
    kv_heads = kv_heads_per_rank(attention, layout.tp)
    flops = 4.0 * heads * attention.head_dim
    return 2.0 * kv_heads * attention.head_dim * layout.kv_bytes, flops, flops
