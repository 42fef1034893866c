"""What moving bytes between accelerators costs: latency plus bytes over achieved bandwidth (alpha-beta).

Every function takes the message in bytes (scalar or array) and returns seconds of the same shape.
Left out: contention between collectives that run at the same time, and protocol switches with message size
(one latency and one bandwidth per collective; measured tables show up to 2x between the two regimes).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.specs.hardware import Cluster, Fabric
from moesim.specs.parameters import ParameterSet

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that communicate: `local_size` in each of `num_nodes` nodes, with achieved link figures.

    `bus_bytes_per_s` per rank and direction within the node, `nic_bytes_per_s` per rank between nodes.
    """

    local_size: int
    num_nodes: int
    reduce_latency_s: float
    reduce_bytes_per_s: float
    exchange_latency_s: float
    exchange_bytes_per_s: float
    nic_latency_s: float
    nic_bytes_per_s: float

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return self.local_size * self.num_nodes


def fabric_bandwidth(fabric: Fabric, group_size: int) -> float:
    """Peak bytes/s per rank and direction inside a group of one node.

    A switch gives the whole port to any group; on a full mesh only the links to the group's own members help
    (two MI300X share one of seven links).
    """
    if fabric.kind == "mesh":
        return min(fabric.bandwidth_bytes_per_s, fabric.link_bandwidth_bytes_per_s * max(group_size - 1, 1))
    return fabric.bandwidth_bytes_per_s


def make_group(cluster: Cluster, parameters: ParameterSet, size: int, stride: int = 1) -> Group:
    """The group of `size` ranks that are `stride` apart in rank order (ranks fill one node after the other)."""
    per_node = cluster.accelerators_per_node
    local = max(1, min(size, per_node // stride))
    while size % local:
        local -= 1
    peak = fabric_bandwidth(cluster.accelerator.fabric, local)
    return Group(
        local_size=local,
        num_nodes=size // local,
        reduce_latency_s=parameters["allreduce_latency_s"],
        reduce_bytes_per_s=peak * parameters["allreduce_bus_efficiency"],
        exchange_latency_s=parameters["alltoall_latency_s"],
        exchange_bytes_per_s=peak * parameters["alltoall_bus_efficiency"],
        nic_latency_s=parameters["nic_latency_s"],
        nic_bytes_per_s=cluster.accelerator.nic.bandwidth_bytes_per_s * parameters["nic_efficiency"],
    )


def all_reduce_s(group: Group, message_bytes: FloatArray) -> FloatArray:
    """Sum a message of `message_bytes` over the group, every rank receiving the result.

    Within a node each rank moves 2 (n - 1) / n of the message. Over nodes: reduce-scatter inside, all-reduce
    of each rank's share over its own NIC, all-gather inside.
    """
    if group.size == 1:
        return np.zeros_like(message_bytes, dtype=float)
    local, nodes = group.local_size, group.num_nodes
    seconds = np.zeros_like(message_bytes, dtype=float)
    if local > 1:
        seconds = group.reduce_latency_s + 2 * (local - 1) / local * message_bytes / group.reduce_bytes_per_s
    if nodes > 1:
        share = message_bytes / local
        steps = 2 * np.ceil(np.log2(nodes))
        seconds = seconds + steps * group.nic_latency_s + 2 * (nodes - 1) / nodes * share / group.nic_bytes_per_s
    return seconds


def all_gather_s(group: Group, gathered_bytes: FloatArray) -> FloatArray:
    """Give every rank the `gathered_bytes` that lie spread over the group (reduce-scatter costs the same)."""
    if group.size == 1:
        return np.zeros_like(gathered_bytes, dtype=float)
    local, nodes = group.local_size, group.num_nodes
    seconds = np.zeros_like(gathered_bytes, dtype=float)
    if local > 1:
        seconds = group.exchange_latency_s + (local - 1) / local * gathered_bytes / group.exchange_bytes_per_s
    if nodes > 1:
        crossing = gathered_bytes * (nodes - 1) / nodes / local
        seconds = seconds + np.ceil(np.log2(nodes)) * group.nic_latency_s + crossing / group.nic_bytes_per_s
    return seconds


def all_to_all_s(group: Group, local_bytes: FloatArray, remote_bytes: FloatArray) -> FloatArray:
    """Send `local_bytes` to ranks of the same node and `remote_bytes` to other nodes, per rank; legs overlap."""
    if group.size == 1:
        return np.zeros_like(local_bytes, dtype=float)
    inside = group.exchange_latency_s + local_bytes / group.exchange_bytes_per_s
    if group.num_nodes == 1:
        return inside
    return np.maximum(inside, group.nic_latency_s + remote_bytes / group.nic_bytes_per_s)
