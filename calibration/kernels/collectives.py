"""Measured collectives and DeepEP exchanges against the formulas of `moesim.network`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import comb

import numpy as np
from numpy.typing import NDArray

from calibration.kernels.families import Family
from calibration.kernels.tables import KernelTable
from moesim.network.collectives import Group, all_gather_s, all_reduce_s, all_to_all_s, library_all_reduce_s, node_group
from moesim.network.deepep import Exchange, high_throughput_s, low_latency_s

FloatArray = NDArray[np.float64]
_EAGER_COPY_BYTES = 2.0
_DEEPEP_RANKS = 8

LIBRARY_START = {
    "ring_ll_s": 4.5e-6,
    "ring_ll_hop_s": 0.9e-6,
    "ring_ll_efficiency": 0.01,
    "ring_ll128_s": 6e-6,
    "ring_ll128_hop_s": 1e-6,
    "ring_ll128_efficiency": 0.33,
    "ring_simple_s": 2e-5,
    "ring_simple_hop_s": 1e-6,
    "ring_simple_efficiency": 0.78,
    "ring_copy_efficiency": 0.6,
    "exchange_ll_s": 6.5e-6,
    "exchange_ll_hop_s": 0.2e-6,
    "exchange_ll_efficiency": 0.05,
    "exchange_simple_s": 1.3e-5,
    "exchange_simple_hop_s": 0.3e-6,
    "exchange_simple_efficiency": 0.68,
    "exchange_copy_efficiency": 3.0,
}
SWITCH_START = {"switch_reduce_s": 9e-5, "switch_reduce_efficiency": 1.05}
PEER_START = {
    "one_shot_s": 4.5e-6,
    "one_shot_hop_s": 0.06e-6,
    "one_shot_efficiency": 0.6,
    "two_shot_s": 8e-6,
    "two_shot_hop_s": 0.1e-6,
    "two_shot_efficiency": 0.68,
}
EAGER_START = {"collective_eager_s": 2.5e-5, "collective_copy_efficiency": 0.85}
_NIC = {"nic_latency_s": 1e-5, "nic_efficiency": 0.95}
_LARGE_START = {name: value for name, value in LIBRARY_START.items() if name.startswith("ring_simple")} | SWITCH_START
"""The library's constants that messages too large for peer kernels show."""


def predict_library(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    """NCCL rows; `message_size` counts elements."""
    wide = table.text("nccl_dtype") == "half"
    message = table.number("message_size") * np.where(wide, 2.0, 1.0)
    operation = table.text("op_name")
    seconds = np.empty(len(table))
    for mask, group in _groups(table, constants):
        for name, predict in _LIBRARY.items():
            rows = mask & (operation == name)
            if name == "all_reduce":
                seconds[rows & wide] = library_all_reduce_s(group, message[rows & wide])
                seconds[rows & ~wide] = library_all_reduce_s(group, message[rows & ~wide], reducing=False)
            else:
                seconds[rows] = predict(group, message[rows])
    return seconds


def _exchange(group: Group, message: FloatArray) -> FloatArray:
    leaving = message * (group.size - 1) / group.size
    return all_to_all_s(group, leaving, np.zeros_like(message))


_LIBRARY: dict[str, Callable[[Group, FloatArray], FloatArray]] = {
    "all_reduce": library_all_reduce_s,
    "all_gather": all_gather_s,
    "reduce_scatter": all_gather_s,
    "alltoall": _exchange,
}


def predict_peer(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
    """vLLM all-reduce rows in a graph, or eager: the host's floor shows and the message is copied first."""
    message = table.number("message_size") * 2.0
    seconds = np.empty(len(table))
    for mask, group in _groups(table, constants):
        seconds[mask] = all_reduce_s(group, message[mask])
    bandwidth = table.accelerator.hbm_bandwidth_bytes_per_s * constants["collective_copy_efficiency"]
    eager = np.maximum(seconds + _EAGER_COPY_BYTES * message / bandwidth, constants["collective_eager_s"])
    return np.where(table.text("backend") == "vllm_eager", eager, seconds)


def _groups(table: KernelTable, constants: Mapping[str, float]) -> list[tuple[NDArray[np.bool_], Group]]:
    sizes = table.number("num_gpus")
    return [(sizes == size, node_group(table.accelerator, constants, int(size))) for size in np.unique(sizes)]


def _exchanged(table: KernelTable, nodes: int) -> Exchange:
    top_k, experts = table.number("num_topk"), table.number("num_experts")
    ranks = _DEEPEP_RANKS * nodes
    return Exchange(
        tokens=table.number("num_token"),
        hidden=table.number("hidden_size"),
        top_k=top_k,
        experts=experts,
        destinations=np.array([destinations(int(k), int(e), ranks) for k, e in zip(top_k, experts, strict=True)]),
        local_size=_DEEPEP_RANKS,
        num_nodes=nodes,
    )


def destinations(top_k: int, experts: int, ranks: int) -> float:
    """Ranks among `ranks` that hold one of a token's `top_k` distinct, equally likely experts."""
    return ranks * (1 - comb(experts - experts // ranks, top_k) / comb(experts, top_k))


def _by_nodes(table: KernelTable, predict: Callable[[KernelTable, Exchange], FloatArray]) -> FloatArray:
    nodes = table.number("node_num")
    seconds = np.empty(len(table))
    for count in np.unique(nodes):
        rows = table.where(nodes == count)
        seconds[nodes == count] = predict(rows, _exchanged(rows, int(count)))
    return seconds


def _low_latency(combine: bool) -> Callable[[KernelTable, Mapping[str, float]], FloatArray]:
    def predict(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
        return _by_nodes(table, lambda rows, sent: low_latency_s(rows.accelerator, constants, sent, combine))

    return predict


def _high_throughput(combine: bool) -> Callable[[KernelTable, Mapping[str, float]], FloatArray]:
    units = "combine_sms" if combine else "dispatch_sms"

    def predict(table: KernelTable, constants: Mapping[str, float]) -> FloatArray:
        return _by_nodes(
            table, lambda rows, sent: high_throughput_s(rows.accelerator, constants, sent, combine, rows.number(units))
        )

    return predict


predict_ll_dispatch, predict_ll_combine = _low_latency(combine=False), _low_latency(combine=True)
predict_ht_dispatch, predict_ht_combine = _high_throughput(combine=False), _high_throughput(combine=True)

_COLLECTIVE = ("op_name", "num_gpus", "message_size")
_EXCHANGED = ("node_num", "hidden_size", "num_token", "num_topk", "num_experts")
LIBRARY = Family("NCCL", predict_library, LIBRARY_START, _COLLECTIVE, held={**SWITCH_START, **PEER_START, **_NIC})
SWITCHED_LIBRARY = Family(
    "NCCL with reducing switch",
    predict_library,
    {**LIBRARY_START, **SWITCH_START},
    _COLLECTIVE,
    held={**PEER_START, **_NIC},
)
PEER = Family(
    "vLLM all-reduce",
    predict_peer,
    {**PEER_START, **EAGER_START, **_LARGE_START},
    _COLLECTIVE,
    held={**LIBRARY_START, **_NIC},
)
LL_DISPATCH = Family(
    "DeepEP low-latency dispatch",
    predict_ll_dispatch,
    {
        "deepep_ll_dispatch_s": 8e-6,
        "deepep_ll_dispatch_expert_s": 1.3e-8,
        "deepep_ll_dispatch_efficiency": 0.66,
        "deepep_ll_token_s": 3e-6,
    },
    _EXCHANGED,
    held=_NIC,
    measured="dispatch_avg_t_us",
)
LL_COMBINE = Family(
    "DeepEP low-latency combine",
    predict_ll_combine,
    {"deepep_ll_combine_s": 9e-6, "deepep_ll_combine_expert_s": 5e-9, "deepep_ll_combine_efficiency": 0.57},
    _EXCHANGED,
    held={**_NIC, "deepep_ll_token_s": 3e-6},
    measured="combine_avg_t_us",
)
HT_DISPATCH = Family(
    "DeepEP high-throughput dispatch",
    predict_ht_dispatch,
    {
        "deepep_ht_dispatch_s": 2.6e-5,
        "deepep_ht_dispatch_token_s": 5e-7,
        "deepep_ht_dispatch_unit_share": 8.0,
        "deepep_ht_dispatch_efficiency": 0.72,
    },
    _EXCHANGED,
    held=_NIC,
    measured="dispatch_transmit_us",
)
HT_COMBINE = Family(
    "DeepEP high-throughput combine",
    predict_ht_combine,
    {
        "deepep_ht_combine_s": 2.5e-5,
        "deepep_ht_combine_width_s": 2e-5,
        "deepep_ht_combine_token_s": 1.5e-7,
        "deepep_ht_combine_unit_share": 8.0,
        "deepep_ht_combine_row_share": 0.25,
        "deepep_ht_combine_efficiency": 0.72,
    },
    _EXCHANGED,
    held=_NIC,
    measured="combine_transmit_us",
)
