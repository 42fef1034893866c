"""Routes tokens inside a running vLLM by a stated popularity of the experts, and counts where tokens went.

vLLM 0.23 needs help with routers of its own, too, where the number of experts is no multiple of 8: the compiler pads
the rows of their scores (60 experts: 64 numbers apart), the kernel that chooses experts takes rows to be packed, and
so reads each token's scores from a wrong place (vLLM issue 56900). Tokens then spread evenly whatever a router says.
Both classes here hand packed scores on.

A router's own scores are replaced, on the GPU and just before vLLM takes the best, by `log(share) + Gumbel noise`:
the best k are then k different experts drawn with these shares, for every token anew and whatever the weights are.
Shares, the switch between forced and own scores, and the counts are tensors that captured graphs read and write, so
all of them can be changed between points.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.errors import InputError
from moesim.routing.imbalance import gini, max_over_mean

if TYPE_CHECKING:
    import torch

_COUNTED_TOKENS = 512
"""Tokens of each step that are counted, evenly spaced; to add up a long prompt's would take longer than to route it."""
_ZIPF = re.compile(r"zipf:(\d+(?:\.\d+)?)")
_STRIDE = 7
_LEAST = 1e-20


class ForcedRouting:
    """The forced shares of one engine's experts and the tokens that each layer's experts got.

    Tensors are made at the first routing, on the GPU where that happens: before vLLM captures graphs.
    """

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self.strides: set[tuple[int, ...]] = set()
        self._layers: dict[int, int] = {}
        self._log_shares: torch.Tensor | None = None
        self._is_forced: torch.Tensor | None = None
        self._ones: torch.Tensor | None = None
        self._counts: list[torch.Tensor] = []

    def scores(self, own: torch.Tensor) -> torch.Tensor:
        """What to choose experts by, in place of the router's `own` scores [tokens, experts]."""
        import torch

        self.strides.add(tuple(own.stride()))
        if self._log_shares is None:
            self._log_shares = torch.zeros(self.num_experts, device=own.device)
            self._is_forced = torch.zeros((), dtype=torch.bool, device=own.device)
            self._ones = torch.ones(1, dtype=torch.int64, device=own.device)
        assert self._is_forced is not None
        waits = torch.empty(own.shape, device=own.device).exponential_().clamp_min_(_LEAST).log_()
        return torch.where(self._is_forced, self._log_shares - waits, own)

    def count(self, router: object, ids: torch.Tensor) -> None:
        """Add the experts `ids` [tokens, top_k] that `router` chose to its layer's counts."""
        import torch

        layer = self._layers.setdefault(id(router), len(self._layers))
        if layer == len(self._counts):
            self._counts.append(torch.zeros(self.num_experts, dtype=torch.int64, device=ids.device))
        assert self._ones is not None
        chosen = ids[:: max(1, ids.shape[0] // _COUNTED_TOKENS)].reshape(-1)
        self._counts[layer].index_add_(0, chosen, self._ones.expand(chosen.shape[0]))

    def force(self, routing: str, popular_first: bool = False) -> None:
        """Route by `routing` from now on: "uniform", "zipf:EXPONENT", or "" for the routers' own scores.

        `popular_first` gives the popular experts the lowest numbers, which the first expert-parallel ranks hold.
        """
        import torch

        shares = expert_shares(routing or "uniform", self.num_experts, popular_first)
        assert self._log_shares is not None and self._is_forced is not None, "nothing was routed yet"
        with torch.inference_mode():
            self._log_shares.copy_(torch.tensor(shares).log())
            self._is_forced.fill_(bool(routing))

    def reset(self) -> None:
        """Forget the counts."""
        import torch

        with torch.inference_mode():
            for counts in self._counts:
                counts.zero_()

    def counts(self) -> list[list[int]]:
        """The counted tokens by layer and expert since the last reset."""
        return [counts.tolist() for counts in self._counts]


class PackedScores:
    """Leaves routers their choice, but packs the rows of scores that are padded."""

    def __init__(self) -> None:
        self.strides: set[tuple[int, ...]] = set()

    def scores(self, own: torch.Tensor) -> torch.Tensor:
        """The router's `own` scores [tokens, experts], packed; their strides are kept."""
        self.strides.add(tuple(own.stride()))
        return own.contiguous()

    def count(self, router: object, ids: torch.Tensor) -> None:
        """Nothing is counted."""


def expert_shares(routing: str, num_experts: int, popular_first: bool = False) -> list[float]:
    """The share of each expert in the first choice of a token.

    Popular experts are spread over the numbering unless `popular_first`.

    Raises:
        InputError: neither "uniform" nor "zipf:EXPONENT".
    """
    match = _ZIPF.fullmatch(routing)
    if match is None and routing != "uniform":
        raise InputError(f"routing: unknown {routing!r}; uniform or zipf:EXPONENT can be forced")
    exponent = float(match[1]) if match else 0.0
    stride = 1 if popular_first else _stride(num_experts)
    weights = [0.0] * num_experts
    for rank in range(num_experts):
        weights[rank * stride % num_experts] = (1 + rank) ** -exponent
    total = sum(weights)
    return [weight / total for weight in weights]


def _stride(num_experts: int) -> int:
    """Steps of this length visit every expert once."""
    return next(stride for stride in range(_STRIDE, _STRIDE + num_experts + 1) if math.gcd(stride, num_experts) == 1)


def install(routing: ForcedRouting | PackedScores) -> None:
    """Put `routing` into vLLM's ordinary router class; call it before an engine is made.

    Raises:
        InputError: this vLLM has no such class.
    """
    try:
        from vllm.model_executor.layers.fused_moe.router.fused_topk_router import FusedTopKRouter
    except ImportError:
        raise InputError("routing cannot be forced: this vLLM has no FusedTopKRouter") from None
    wrap(FusedTopKRouter, routing)


def wrap(router_class: Any, routing: ForcedRouting | PackedScores) -> None:
    """Let `routing` change the scores that `router_class._compute_routing` is given, and count what it returns."""
    original = router_class._compute_routing

    def compute(router: Any, hidden_states: Any, router_logits: Any, *rest: Any, **words: Any) -> Any:
        weights, ids = original(router, hidden_states, routing.scores(router_logits), *rest, **words)
        routing.count(router, ids)
        return weights, ids

    router_class._compute_routing = compute


def summarize_counts(by_rank: list[list[list[int]]], expert_ranks: int) -> dict[str, float | None]:
    """Imbalance of the tokens counted on all processes ([process][layer][expert]), mean over the layers.

    The most loaded expert over the mean, the Gini index, and with several expert-parallel ranks, each of which holds
    a run of neighbouring experts, the most loaded rank over the mean.
    """
    counts = np.array(by_rank, dtype=float)
    if not counts.sum():
        return {}
    loads = counts.sum(axis=0)
    loads = loads[loads.sum(axis=1) > 0]
    values: dict[str, float | None] = {
        "routed_max_over_mean": float(max_over_mean(loads).mean()),
        "routed_gini": float(gini(loads).mean()),
        "routed_experts_mean": float((loads > 0).sum(axis=1).mean()),
    }
    if expert_ranks > 1:
        held = np.add.reduceat(loads, np.arange(0, loads.shape[1], -(-loads.shape[1] // expert_ranks)), axis=1)
        values["routed_rank_max_over_mean"] = float((held.max(axis=1) * expert_ranks / loads.sum(axis=1)).mean())
    return values
