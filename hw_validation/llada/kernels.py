"""Triton kernels of a forward's small and grouped operators; `fused.py` launches them.

Rows of the grouped products are sorted by expert through an index (`order`), so no token is ever copied: the first
product gathers its rows, the second scatters them back, already weighted. Programs that share an expert's columns
run next to each other, so its weights leave memory once.
"""

# ruff: noqa: N803 - Triton names compile-time constants in capitals and takes no structures
# pyright: basic, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_kernel(hidden, weight, out, size, eps, BLOCK: tl.constexpr):
    """One row over its root mean square, times `weight`: sums in float32, rounded once at the end."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    used = column < size
    values = tl.load(hidden + row * size + column, mask=used, other=0.0).to(tl.float32)
    weights = tl.load(weight + column, mask=used, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / size + eps)
    tl.store(out + row * size + column, (values * scale * weights).to(out.dtype.element_ty), mask=used)


@triton.jit
def rotate_kernel(
    qkv,
    table,
    norm,
    span,
    row_size,
    heads,
    kv_heads,
    eps,
    HAS_NORM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Normalise by head and rotate the queries and keys of one token, in place."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    lane = tl.arange(0, HALF)
    used = (head < heads + kv_heads)[:, None]
    low_at = qkv + token * row_size + head[:, None] * (2 * HALF) + lane[None, :]
    low = tl.load(low_at, mask=used, other=0.0).to(tl.float32)
    high = tl.load(low_at + HALF, mask=used, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + eps)[:, None]
        weight_at = norm + tl.where(head < heads, 0, 2 * HALF)[:, None] + lane[None, :]
        low = low * scale * tl.load(weight_at).to(tl.float32)
        high = high * scale * tl.load(weight_at + HALF).to(tl.float32)
    angle_at = table + (token % span) * (2 * HALF) + lane
    cosine = tl.load(angle_at)[None, :]
    sine = tl.load(angle_at + HALF)[None, :]
    tl.store(low_at, (low * cosine - high * sine).to(qkv.dtype.element_ty), mask=used)
    tl.store(low_at + HALF, (high * cosine + low * sine).to(qkv.dtype.element_ty), mask=used)


@triton.jit
def swiglu_kernel(gate_up, out, width, BLOCK: tl.constexpr):
    """silu(gate) * up of a stretch of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=used, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=used, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=used)


@triton.jit
def route_kernel(
    logits, weights, ids, num_experts, TOP_K: tl.constexpr, RENORMALIZE: tl.constexpr, EXPERTS: tl.constexpr
):
    """Softmax over one token's experts and its most probable ones, greatest first."""
    token = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    values = tl.load(logits + token * num_experts + expert, mask=expert < num_experts, other=-float("inf"))
    values = values.to(tl.float32)
    left = tl.exp(values - tl.max(values, 0))
    total = tl.sum(left, 0)
    if RENORMALIZE:
        ranked = left
        total = 0.0
        for _ in range(TOP_K):
            total += tl.max(ranked, 0)
            ranked = tl.where(expert == tl.argmax(ranked, 0), -1.0, ranked)
    for slot in range(TOP_K):
        best = tl.argmax(left, 0)
        probability = tl.max(left, 0) / total
        tl.store(weights + token * TOP_K + slot, probability.to(weights.dtype.element_ty))
        tl.store(ids + token * TOP_K + slot, best)
        left = tl.where(expert == best, -1.0, left)


@triton.jit(do_not_specialize=["count"])
def sort_kernel(ids, order, starts, count, CHUNK: tl.constexpr):
    """Indices of one expert's entries of `ids` [count], written to its stretch of `order`; and where that starts.

    The program after the last expert only writes the end of the last stretch. `count` is no constant: where tokens
    come from other ranks it differs in nearly every layer, and each constant would be compiled for.
    """
    expert = tl.program_id(0)
    lane = tl.arange(0, CHUNK)
    before = tl.zeros([CHUNK], tl.int32)
    for first in range(0, count, CHUNK):
        chosen = tl.load(ids + first + lane, mask=first + lane < count, other=2147483647)
        before += (chosen < expert).to(tl.int32)
    place = tl.sum(before, 0)
    tl.store(starts + expert, place)
    for first in range(0, count, CHUNK):
        chosen = tl.load(ids + first + lane, mask=first + lane < count, other=2147483647)
        mine = (chosen == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(mine, 0) - 1, first + lane, mask=mine == 1)
        place += tl.sum(mine, 0)


@triton.jit
def find_tile(starts, tile, num_experts, BLOCK_M: tl.constexpr, EXPERTS: tl.constexpr):
    """The expert of row tile `tile`, its first row and the row after the expert's last; rows are sorted by expert.

    Tiles beyond the last have first row = last row = 0.
    """
    expert = tl.arange(0, EXPERTS)
    known = expert < num_experts
    start = tl.load(starts + expert, mask=known, other=0)
    stop = tl.load(starts + expert + 1, mask=known, other=0)
    tiles = (stop - start + BLOCK_M - 1) // BLOCK_M
    upto = tl.cumsum(tiles, 0)
    owner = tl.sum((upto <= tile).to(tl.int32), 0)
    mine = expert == owner
    skipped = tile - tl.sum(tl.where(mine, upto - tiles, 0), 0)
    last = tl.sum(tl.where(mine, stop, 0), 0)
    first = tl.sum(tl.where(mine, start, 0), 0) + tl.where(last > 0, skipped * BLOCK_M, 0)
    return owner, first, last


@triton.jit
def gate_up_kernel(
    hidden,
    matrices,
    inner,
    order,
    starts,
    top_k,
    num_experts,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """A tile of silu(x Wg) * (x Wu) for rows of one expert: `inner` [rows, WIDTH] in sorted order."""
    owner, first, last = find_tile(starts, tl.program_id(0), num_experts, BLOCK_M, EXPERTS)
    if first >= last:
        return
    row = first + tl.arange(0, BLOCK_M)
    valid = row < last
    token = tl.load(order + row, mask=valid, other=0) // top_k
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_K)
    row_at = hidden + token[:, None].to(tl.int64) * DEPTH + lane[None, :]
    gate_at = matrices + owner.to(tl.int64) * 2 * WIDTH * DEPTH + column[None, :] * DEPTH + lane[:, None]
    up_at = gate_at + WIDTH * DEPTH
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in range(0, DEPTH, BLOCK_K):
        rows = tl.load(row_at, mask=valid[:, None], other=0.0)
        gate = tl.dot(rows, tl.load(gate_at), gate)
        up = tl.dot(rows, tl.load(up_at), up)
        row_at += BLOCK_K
        gate_at += BLOCK_K
        up_at += BLOCK_K
    result = gate * tl.sigmoid(gate) * up
    out_at = inner + row[:, None].to(tl.int64) * WIDTH + column[None, :]
    tl.store(out_at, result.to(inner.dtype.element_ty), mask=valid[:, None])


@triton.jit
def down_kernel(
    inner,
    matrices,
    weights,
    slots,
    order,
    starts,
    num_experts,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """A tile of weight * (y Wd) for rows of one expert, stored at `slots` [tokens * top_k, WIDTH] in token order."""
    owner, first, last = find_tile(starts, tl.program_id(0), num_experts, BLOCK_M, EXPERTS)
    if first >= last:
        return
    row = first + tl.arange(0, BLOCK_M)
    valid = row < last
    slot = tl.load(order + row, mask=valid, other=0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_K)
    row_at = inner + row[:, None].to(tl.int64) * DEPTH + lane[None, :]
    matrix_at = matrices + owner.to(tl.int64) * WIDTH * DEPTH + column[None, :] * DEPTH + lane[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in range(0, DEPTH, BLOCK_K):
        rows = tl.load(row_at, mask=valid[:, None], other=0.0)
        total = tl.dot(rows, tl.load(matrix_at), total)
        row_at += BLOCK_K
        matrix_at += BLOCK_K
    total *= tl.load(weights + slot, mask=valid, other=0.0).to(tl.float32)[:, None]
    out_at = slots + slot[:, None].to(tl.int64) * WIDTH + column[None, :]
    tl.store(out_at, total.to(slots.dtype.element_ty), mask=valid[:, None])


@triton.jit
def combine_kernel(residual, summands, size, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Add a token's COUNT summands to a stretch of its residual row, in place."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = column < size
    total = tl.load(residual + token * size + column, mask=used, other=0.0).to(tl.float32)
    for summand in tl.static_range(COUNT):
        value = tl.load(summands + (token * COUNT + summand) * size + column, mask=used, other=0.0)
        total += value.to(tl.float32)
    tl.store(residual + token * size + column, total.to(residual.dtype.element_ty), mask=used)
