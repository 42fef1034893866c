"""DeepEP's exchanges of tokens between expert-parallel ranks: low latency (decode) and high throughput (prefill).

A dispatch sends rows of hidden values in fp8 with scales (measured) or in bf16, a combine returns bf16 rows.
Left out: skew of the routing between ranks (the mean rank counts), and the notify kernel of high-throughput
dispatches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.specs.hardware import Accelerator
from moesim.specs.parameters import Constants

FloatArray = NDArray[np.float64]
_WIDTH = 7168.0
_CORNER = 4.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """What every rank sends: fields are numbers, or arrays with one entry a step or measured row.

    `destinations`: distinct ranks, its own among them, that a token goes to on average; `local_size` ranks in
    each of `num_nodes` nodes; `dispatch_bytes` of one dispatched value.
    """

    tokens: FloatArray
    hidden: FloatArray | float
    top_k: FloatArray | float
    experts: FloatArray | float
    destinations: FloatArray | float
    local_size: int
    num_nodes: int
    dispatch_bytes: float = 1.0


def low_latency_s(accelerator: Accelerator, constants: Constants, sent: Exchange, combine: bool) -> FloatArray:
    """One low-latency dispatch or combine: a copy of the token for each of its experts, straight to its rank.

    t = base + experts x expert + max(NVLink, compute units, NIC). One compute unit serves one or more experts, so
    few experts use few units. Between nodes the share of copies that leave the node passes the adapter.
    """
    leg = "combine" if combine else "dispatch"
    scales = sent.hidden * 4 / 128 if sent.dispatch_bytes < 2 else 0.0
    width = 2.0 * sent.hidden if combine else sent.hidden * sent.dispatch_bytes + scales + 16
    moved = sent.tokens * sent.top_k * width
    local = moved / sent.num_nodes
    link = local / (accelerator.fabric.bandwidth_bytes_per_s * constants[f"deepep_ll_{leg}_efficiency"])
    groups = np.ceil(sent.experts / accelerator.num_compute_units)
    units = np.ceil(sent.experts / groups)
    issue = sent.tokens * sent.hidden / _WIDTH * constants["deepep_ll_token_s"] / units
    issue = np.zeros_like(issue) if combine else issue
    nic = (moved - local) / (accelerator.nic.bandwidth_bytes_per_s * constants["nic_efficiency"])
    base = constants[f"deepep_ll_{leg}_s"] + sent.experts * constants[f"deepep_ll_{leg}_expert_s"]
    return base + np.maximum(np.maximum(link, issue), nic) + (sent.num_nodes > 1) * constants["nic_latency_s"]


def high_throughput_s(
    accelerator: Accelerator,
    constants: Constants,
    sent: Exchange,
    combine: bool,
    communication_units: FloatArray | float,
) -> FloatArray:
    """One high-throughput dispatch or combine on `communication_units` compute units.

    A token goes once to each rank that holds one of its experts, and once to each other node. A unit spends time
    on a token and on the bytes of its copies, in a combine also on the summed row; all together cannot exceed the
    links.
    """
    leg = "combine" if combine else "dispatch"
    element = 2.0 if combine else sent.dispatch_bytes

    def constant(name: str) -> float:
        return constants[f"deepep_ht_{leg}_{name}"]

    copies = sent.destinations * sent.hidden * element
    rank_bytes = accelerator.fabric.bandwidth_bytes_per_s * constant("unit_share") / accelerator.num_compute_units
    each = constant("token_s") + copies / rank_bytes
    base = constant("s")
    if combine:
        row_bytes = accelerator.hbm_bandwidth_bytes_per_s * constant("row_share") / accelerator.num_compute_units
        each = each + sent.hidden * element / row_bytes
        base = base + sent.hidden / _WIDTH * constant("width_s")
    unit = sent.tokens / communication_units * each
    remote = (sent.local_size * sent.num_nodes - 1) / (sent.local_size * sent.num_nodes)
    link = sent.tokens * copies * remote / (accelerator.fabric.bandwidth_bytes_per_s * constant("efficiency"))
    nodes = (sent.num_nodes - 1) * (1 - (1 - 1 / sent.num_nodes) ** sent.top_k)
    adapter = accelerator.nic.bandwidth_bytes_per_s * constants["nic_efficiency"]
    nic = sent.tokens * nodes * sent.hidden * element / adapter
    busy = (unit**_CORNER + link**_CORNER + nic**_CORNER) ** (1 / _CORNER)
    return base + busy + (sent.num_nodes > 1) * constants["nic_latency_s"]
