"""Tokens between data-parallel ranks around the routed experts: dispatch and combine of one layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.costs.experts import rank_loads
from moesim.costs.kernels import OperatorCost, nothing, transfer
from moesim.costs.layout import Layout
from moesim.network.collectives import engine_all_gather_s
from moesim.network.deepep import Exchange, high_throughput_s, low_latency_s
from moesim.placement.deployed import expert_layout
from moesim.specs.model import MixtureOfExperts

FloatArray = NDArray[np.float64]
_ACTIVATION_BYTES = 2.0
_DEEPEP_UNITS = 20.0
"""Compute units that vLLM gives to high-throughput DeepEP kernels."""


def expert_exchange(layout: Layout, tokens: FloatArray) -> OperatorCost:
    """Dispatch and combine between data-parallel ranks for `tokens` [steps] tokens on each rank.

    allgather_reducescatter: every rank receives every token (vLLM's default), so that the mean rank's tokens count
    (`gathers_all`); with DeepEP those of the fullest. deepep_high_throughput: a token
    goes once to each rank that holds one of its experts, and once over the network to each other node.
    deepep_low_latency: one copy per expert. DeepEP dispatches fp8 when the experts are fp8, and combines in bf16.
    """
    lockstep = layout.deployment.lockstep_ranks
    moe = layout.model.moe
    if moe is None or lockstep == 1:
        return nothing(tokens)
    if gathers_all(layout):
        gathered = tokens * lockstep * layout.model.hidden_size * _ACTIVATION_BYTES
        beside = gathered * layout.parameters["exchange_byte_s"]
        return transfer(2 * engine_all_gather_s(layout.dp_group, layout.parameters, gathered) + beside, launches=2.0)
    accelerator, constants = layout.cluster.accelerator, layout.parameters
    sent = _sent(layout, moe, tokens)
    if layout.deployment.all2all_backend == "deepep_low_latency":
        seconds = sum(low_latency_s(accelerator, constants, sent, combine) for combine in (False, True))
    else:
        seconds = sum(
            high_throughput_s(accelerator, constants, sent, combine, _DEEPEP_UNITS) for combine in (False, True)
        )
    return transfer(np.asarray(seconds), launches=4.0)


def gathers_all(layout: Layout) -> bool:
    """Whether the exchange depends on the tokens of all ranks together, however they are spread."""
    return layout.deployment.all2all_backend == "allgather_reducescatter"


def _sent(layout: Layout, moe: MixtureOfExperts, tokens: FloatArray) -> Exchange:
    """What each rank of the expert-parallel group sends."""
    ranks = layout.deployment.expert_parallel_size
    placed = expert_layout(layout.deployment)
    loads = rank_loads(moe, layout.routing, layout.model.num_moe_layers, layout.seed, (1,), placed)
    return Exchange(
        tokens=tokens,
        hidden=float(layout.model.hidden_size),
        top_k=float(moe.top_k),
        experts=float(moe.num_experts),
        destinations=loads.destinations * ranks / max(ranks - 1, 1),
        local_size=layout.ep_group.local_size,
        num_nodes=layout.ep_group.num_nodes,
        dispatch_bytes=1.0 if layout.expert_dtype.compute == "fp8" else _ACTIVATION_BYTES,
    )
