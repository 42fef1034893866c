"""Skewed routing inside vLLM: Zipf strategies for its routing simulator, registered as a vLLM plugin.

vLLM loads the entry point `vllm.general_plugins` in every process, workers included, so that
VLLM_MOE_ROUTING_SIMULATION_STRATEGY=zipf_1.2 works with `vllm serve`. Every layer gets the same popular experts
(the simulator is not told the layer), spread over the numbering so that a linear expert map does not pile them all
on one rank; weights are equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EXPONENTS = (0.4, 0.8, 1.2, 1.6)
BUILT_IN = ("uniform_random", "normal_routing")
_STRIDE = 7


def strategy_names() -> tuple[str, ...]:
    """Names that `routing_strategy` may have."""
    return (*BUILT_IN, *(f"zipf_{exponent:g}" for exponent in EXPONENTS))


def register() -> None:
    """Make the Zipf strategies known to vLLM; without a simulator in this version, say so and go on."""
    simulator = _find_simulator()
    if simulator is None:
        print("moesim: this vLLM has no routing simulator; skew cannot be forced", flush=True)
        return
    for exponent in EXPONENTS:
        simulator.register_strategy(f"zipf_{exponent:g}", ZipfRouting(exponent))


class ZipfRouting:
    """Distinct top-k experts drawn with probability proportional to rank ** -exponent.

    `route_tokens` is what vLLM calls; drawing is by the Gumbel trick, which keeps every step on the GPU and works
    inside captured graphs.
    """

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def route_tokens(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        top_k: int,
        indices_type: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and expert ids [num_tokens, top_k] for `router_logits` [num_tokens, num_experts]."""
        import torch

        tokens, experts = router_logits.shape
        device = hidden_states.device
        ranks = 1 + (torch.arange(experts, device=device) * _coprime(experts)) % experts
        noise = torch.empty(tokens, experts, device=device).exponential_().clamp_min_(1e-20).log_()
        scores = -self.exponent * ranks.to(torch.float32).log() - noise
        ids = scores.topk(top_k, dim=-1).indices
        weights = torch.full((tokens, top_k), 1.0 / top_k, device=device)
        return weights, ids.to(torch.int64 if indices_type is None else indices_type)


def _coprime(experts: int) -> int:
    """A stride that visits every expert once."""
    from math import gcd

    return next(stride for stride in range(_STRIDE, _STRIDE + experts + 1) if gcd(stride, experts) == 1)


def _find_simulator() -> Any:
    places = (
        "vllm.model_executor.layers.fused_moe.router.routing_simulator_router",
        "vllm.model_executor.layers.fused_moe.routing_simulator",
    )
    from importlib import import_module

    for place in places:
        try:
            return import_module(place).RoutingSimulator
        except (ImportError, AttributeError):
            continue
    return None
