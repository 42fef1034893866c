"""Attention of one new token per sequence: KV heads are spread over the chip and stream the cache.

A unit of work is one KV head of one sequence (for MLA: a block of query heads that share the latent cache). With
fewer units than compute units the cache is split along the context; with more, they take turns.
Left out: unequal context lengths inside a batch (the mean counts; the split kernels balance them), and the cache
found in L2 by benchmarks that repeat one layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.costs.arithmetic import ARRAYS, FLOATS, Arithmetic, Numeric
from moesim.specs.hardware import Accelerator, peak_rate
from moesim.specs.parameters import Constants

_PACKED_ROWS = 64.0
"""Query heads of one group that share a tile."""
_PREPARED_SEQUENCES = 992.0
"""Above this batch FlashAttention-3 drops its scheduling kernel, whose time grows with the batch."""
FULL_CONTEXT = float(1 << 40)
_CORNER = 4.0


@dataclass(frozen=True, slots=True)
class DecodeKernel:
    """Decode attention of one layer on one rank; fields are numbers, or arrays with one entry a measured row.

    `heads`: units of work a sequence; `token_bytes`: cached bytes of a token over all of them.
    `chip_token_s`: seconds per cached token with the whole chip at work, `unit_token_s`: of one head on one
    compute unit. `tile_s`: a unit's prologue, first block and epilogue.
    """

    compute_units: float
    heads: Numeric
    token_bytes: Numeric
    start_s: Numeric
    tile_s: Numeric
    chip_token_s: Numeric
    unit_token_s: Numeric
    split_tokens: float
    max_splits: Numeric
    combine_s: float
    regroup_s: Numeric
    sequence_s: float
    exposed: float
    window: Numeric
    window_tile: float


@dataclass(frozen=True, slots=True)
class DecodeLine:
    """Decode attention of one layer for a fixed number of sequences, as a function of their cached tokens in all.

    t = start + combine (1 - 1/splits) + max(tiles, stream) + exposed min(tiles, stream), with
    stream = tokens max(chip, unit / splits) and splits = tokens / split_tokens, at least 1 and at most max_splits.
    """

    start_s: Numeric
    tiles_s: Numeric
    chip_s: Numeric
    unit_s: Numeric
    split_tokens: Numeric
    max_splits: Numeric
    combine_s: float
    exposed: float
    window_tokens: Numeric
    window_tile: float

    def seconds(self, cached: Numeric, arithmetic: Arithmetic = FLOATS) -> Numeric:
        """Seconds at `cached` tokens of the whole batch (arrays with `ARRAYS`)."""
        least, most, _ = arithmetic
        slides = cached > self.window_tokens
        tokens = least(cached, self.window_tokens)
        tiles = self.tiles_s * (1 + slides * self.window_tile)
        splits = least(most(tokens / self.split_tokens, 1.0), self.max_splits)
        stream = tokens * most(self.chip_s, self.unit_s / splits)
        fixed = self.start_s + self.combine_s * (1 - 1 / splits)
        return fixed + most(tiles, stream) + self.exposed * least(tiles, stream)


def decode_line(kernel: DecodeKernel, sequences: Numeric, arithmetic: Arithmetic = FLOATS) -> DecodeLine:
    """The kernel at a batch of `sequences`."""
    least, most, _ = arithmetic
    units = sequences * kernel.heads
    rounds = most(units / kernel.compute_units, 1.0)
    prepared = sequences * kernel.sequence_s * (sequences <= _PREPARED_SEQUENCES)
    return DecodeLine(
        start_s=kernel.start_s + prepared + kernel.regroup_s * (sequences > 1),
        tiles_s=kernel.tile_s * rounds,
        chip_s=kernel.chip_token_s,
        unit_s=kernel.unit_token_s * rounds / sequences,
        split_tokens=sequences * kernel.split_tokens,
        max_splits=most(least(kernel.compute_units / units, kernel.max_splits), 1.0),
        combine_s=kernel.combine_s,
        exposed=kernel.exposed,
        window_tokens=sequences * kernel.window,
        window_tile=kernel.window_tile,
    )


def grouped_query_kernel(
    accelerator: Accelerator,
    constants: Constants,
    heads: Numeric,
    kv_heads: Numeric,
    head_dim: Numeric,
    kv_bytes: Numeric,
    window: Numeric = FULL_CONTEXT,
) -> DecodeKernel:
    """FlashAttention decode (grouped query heads share a tile). `kv_bytes`: of one cached value.

    One-byte caches are converted on the way, at a rate of the compute units that can lie below the memory's (H100
    and H200 convert alike), and start later. Kernels that split only grouped heads (FlashAttention-2) have
    `decode_ungrouped_splits` = 1, and regroup the queries of a batch with two copies.
    """
    group = heads / kv_heads
    one_byte = kv_bytes < 2
    units = kv_heads * np.ceil(group / _PACKED_ROWS)
    token_bytes = 2.0 * kv_heads * head_dim * kv_bytes
    start = _ratio(one_byte, constants["attention_fp8_start"])
    convert = peak_rate(accelerator, "bf16") / constants["decode_fp8_flops"]
    limit = np.where(one_byte, convert, np.inf)
    peak = accelerator.hbm_bandwidth_bytes_per_s
    chip_rate = np.minimum(peak * constants["attention_hbm_efficiency"], limit)
    unit_rate = np.minimum(peak * constants["decode_unit_share"], limit) / accelerator.num_compute_units
    return DecodeKernel(
        compute_units=float(accelerator.num_compute_units),
        heads=units,
        token_bytes=token_bytes,
        start_s=constants["decode_start_s"] * start,
        tile_s=constants["decode_tile_s"] * start * (head_dim / 128.0) ** constants["decode_dim_exponent"],
        chip_token_s=token_bytes / chip_rate,
        unit_token_s=token_bytes / kv_heads / unit_rate,
        split_tokens=constants["decode_split_tokens"],
        max_splits=np.where(group > 1, constants["decode_max_splits"], constants["decode_ungrouped_splits"]) * 1.0,
        combine_s=constants["decode_combine_s"],
        regroup_s=constants["decode_regroup_s"] * (group > 1) * (kv_heads > 1),
        sequence_s=constants["decode_sequence_s"],
        exposed=constants["decode_exposed"],
        window=window,
        window_tile=constants["decode_window_tile"],
    )


def latent_kernel(
    accelerator: Accelerator,
    constants: Constants,
    heads: Numeric,
    latent: float,
    rope: float,
    kv_bytes: Numeric,
) -> DecodeKernel:
    """MLA decode in the latent space: blocks of `mla_head_rows` query heads read the shared latent cache.

    FLOPs per cached token and head: 2 (2 latent + rope), with heads padded to whole blocks. A one-byte cache
    keeps the rope part in bf16 and a scale per 128 values.
    """
    one_byte = kv_bytes < 2
    blocks = np.ceil(heads / constants["mla_head_rows"])
    row_bytes = np.where(one_byte, latent + 4 * latent / 128 + 2 * rope, (latent + rope) * 2.0)
    rate = peak_rate(accelerator, "bf16") * constants["mla_decode_compute_efficiency"]
    rate = rate * _ratio(one_byte, constants["mla_fp8_compute"])
    arithmetic = 2.0 * (2 * latent + rope) * blocks * constants["mla_head_rows"] / rate
    memory = row_bytes / (accelerator.hbm_bandwidth_bytes_per_s * constants["mla_hbm_efficiency"])
    unit_rate = accelerator.hbm_bandwidth_bytes_per_s * constants["mla_unit_share"] / accelerator.num_compute_units
    return DecodeKernel(
        compute_units=float(accelerator.num_compute_units),
        heads=blocks,
        token_bytes=row_bytes,
        start_s=constants["mla_start_s"],
        tile_s=constants["mla_tile_s"],
        chip_token_s=(memory**_CORNER + arithmetic**_CORNER) ** (1 / _CORNER),
        unit_token_s=row_bytes / unit_rate,
        split_tokens=constants["decode_split_tokens"],
        max_splits=constants["mla_max_splits"],
        combine_s=constants["decode_combine_s"],
        regroup_s=0.0,
        sequence_s=0.0,
        exposed=1.0,
        window=FULL_CONTEXT,
        window_tile=0.0,
    )


def decode_seconds(kernel: DecodeKernel, sequences: Numeric, cached: Numeric) -> Numeric:
    """Seconds of measured rows: arrays of batch sizes and of cached tokens of the whole batch."""
    return decode_line(kernel, sequences, ARRAYS).seconds(cached, ARRAYS)


def _ratio(applies: Numeric, ratio: float) -> Numeric:
    return np.where(applies, ratio, 1.0)
