"""Matrix products, routed experts and attention, each timed alone on the GPU."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hw_validation.micro_cases import AttentionCase, ExpertsCase, GemmCase, draw_experts
from hw_validation.micro_timing import time_gpu_us

if TYPE_CHECKING:
    import torch

_CACHE_BYTES = 256_000_000
_PAGE_TOKENS = 16
_DRAWS = 6

Values = dict[str, float | None]


def measure_gemm(case: GemmCase) -> Values:
    """One bfloat16 product through torch, weights rotating so that none is found in the cache."""
    import torch

    weight_bytes = 2 * case.out_features * case.in_features
    copies = max(2, min(16, math.ceil(_CACHE_BYTES / weight_bytes)))
    rows = _random(case.rows, case.in_features)
    weights = [_random(case.out_features, case.in_features) for _ in range(copies)]
    latency_us = time_gpu_us([partial(torch.nn.functional.linear, rows, weight) for weight in weights])
    flops = 2.0 * case.rows * case.out_features * case.in_features
    moved = weight_bytes + 2.0 * case.rows * (case.out_features + case.in_features)
    return {"latency_us": latency_us, "flops_per_s": 1e6 * flops / latency_us, "bytes_per_s": 1e6 * moved / latency_us}


class ExpertsBench:
    """Times vLLM's fused experts; keeps one model's weights on the GPU between cases."""

    def __init__(self) -> None:
        self._shape: tuple[int, int, int] | None = None
        self._weights: tuple[torch.Tensor, torch.Tensor] | None = None

    def measure(self, case: ExpertsCase) -> Values:
        """Median latency over several draws of experts, and how the tokens fell."""
        import torch
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

        up, down = self._get_weights(case)
        hidden = _random(case.tokens, case.hidden_size)
        shares = torch.full((case.tokens, case.top_k), 1.0 / case.top_k, device="cuda")
        draws = [draw_experts(case, seed) for seed in range(_DRAWS if case.tokens <= 1024 else 2)]
        ids = [torch.from_numpy(draw).to(device="cuda", dtype=torch.int32) for draw in draws]
        calls = [partial(fused_experts, hidden, up, down, shares, chosen) for chosen in ids]
        return {"latency_us": time_gpu_us(calls)} | describe_draws(draws)

    def _get_weights(self, case: ExpertsCase) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        shape = (case.num_experts, case.intermediate_size, case.hidden_size)
        if self._weights is None or shape != self._shape:
            self._weights = None
            torch.cuda.empty_cache()
            experts, width, hidden = shape
            self._weights = (_random(experts, 2 * width, hidden), _random(experts, hidden, width))
            self._shape = shape
        return self._weights


def describe_draws(draws: list[NDArray[np.int64]]) -> Values:
    """Means over draws ([tokens, top_k] each): distinct experts touched, and tokens of the most loaded expert."""
    loads = [np.bincount(draw.ravel()) for draw in draws]
    return {
        "distinct_experts_mean": float(np.mean([np.count_nonzero(load) for load in loads])),
        "max_expert_tokens_mean": float(np.mean([load.max() for load in loads])),
    }


def measure_attention(case: AttentionCase) -> Values:
    """Causal attention through vLLM's FlashAttention over a paged bfloat16 cache with scattered pages."""
    import torch
    from vllm.vllm_flash_attn import flash_attn_varlen_func, is_fa_version_supported

    pages = math.ceil(case.context / _PAGE_TOKENS)
    cache = (case.batch * pages, _PAGE_TOKENS, case.num_kv_heads, case.head_dim)
    query = _random(case.batch * case.new_tokens, case.num_heads, case.head_dim)
    starts = torch.arange(case.batch + 1, dtype=torch.int32, device="cuda") * case.new_tokens
    call = partial(
        flash_attn_varlen_func,
        query,
        _random(*cache),
        _random(*cache),
        max_seqlen_q=case.new_tokens,
        cu_seqlens_q=starts,
        max_seqlen_k=case.context,
        seqused_k=torch.full((case.batch,), case.context, dtype=torch.int32, device="cuda"),
        causal=True,
        block_table=torch.randperm(case.batch * pages, device="cuda").to(torch.int32).view(case.batch, pages),
        fa_version=3 if is_fa_version_supported(3) else 2,
    )
    latency_us = time_gpu_us([call])
    cached_bytes = 4.0 * case.batch * case.context * case.num_kv_heads * case.head_dim
    return {"latency_us": latency_us, "cache_bytes_per_s": 1e6 * cached_bytes / latency_us}


def measure_copy(num_bytes: int) -> Values:
    """A device-to-device copy; bytes read and written are both counted."""
    import torch

    pairs = max(1, min(8, math.ceil(_CACHE_BYTES / num_bytes)))
    source = [torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device="cuda") for _ in range(pairs)]
    target = [torch.empty_like(tensor) for tensor in source]
    latency_us = time_gpu_us([partial(into.copy_, tensor) for into, tensor in zip(target, source, strict=True)])
    return {"latency_us": latency_us, "bytes_per_s": 2e6 * num_bytes / latency_us}


def _random(*shape: int) -> torch.Tensor:
    import torch

    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")
