"""What moving bytes between accelerators costs, by collective, group and fabric.

Every function takes the message in bytes (scalar or array) and returns seconds of the same shape. Left out:
contention between collectives that run at the same time; over nodes one latency and one bandwidth a message.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.network.protocols import PeerReduce, Protocol, Transport, soft_least
from moesim.specs.hardware import Accelerator, Cluster, Fabric
from moesim.specs.parameters import Constants

FloatArray = NDArray[np.float64]
_PEER_LIMIT_BYTES = 8 * 2**20
_PEER_SIZES = (2, 4, 6, 8)
_REDUCING_SWITCH_BYTES_PER_S = 450e9
"""NVSwitch adds in flight from the generation of this port speed on; NCCL uses it in groups of more than four."""


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that communicate: `local_size` in each of `num_nodes` nodes, with what carries their messages.

    `ring`: all-reduce, all-gather, reduce-scatter; `exchange`: all-to-all; `peer`: all-reduce of small messages
    (none where a kernel over peer memory cannot run); `switch`: all-reduce inside the switch (none without one).
    `nic_bytes_per_s` per rank between nodes.
    """

    local_size: int
    num_nodes: int
    ring: Transport
    exchange: Transport
    peer: PeerReduce | None
    switch: Protocol | None
    nic_latency_s: float
    nic_bytes_per_s: float

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return self.local_size * self.num_nodes

    @property
    def exchange_latency_s(self) -> float:
        """Seconds of a small point-to-point message within the node."""
        return self.exchange.protocols[0].base_s

    @property
    def exchange_bytes_per_s(self) -> float:
        """Bandwidth of a large point-to-point message within the node."""
        return self.exchange.protocols[-1].bytes_per_s


def fabric_bandwidth(fabric: Fabric, group_size: int) -> float:
    """Peak bytes/s per rank and direction inside a group of one node.

    A switch gives the whole port to any group; on a full mesh only the links to the group's own members help
    (two MI300X share one of seven links).
    """
    if fabric.kind == "mesh":
        return min(fabric.bandwidth_bytes_per_s, fabric.link_bandwidth_bytes_per_s * max(group_size - 1, 1))
    return fabric.bandwidth_bytes_per_s


def has_reducing_switch(fabric: Fabric) -> bool:
    """Whether the switch adds messages in flight."""
    return fabric.kind == "switch" and fabric.bandwidth_bytes_per_s >= _REDUCING_SWITCH_BYTES_PER_S


def make_group(cluster: Cluster, parameters: Constants, size: int, stride: int = 1) -> Group:
    """The group of `size` ranks that are `stride` apart in rank order (ranks fill one node after the other)."""
    per_node = cluster.accelerators_per_node
    local = max(1, min(size, per_node // stride))
    while size % local:
        local -= 1
    return node_group(cluster.accelerator, parameters, local, size // local)


def node_group(accelerator: Accelerator, constants: Constants, local_size: int, num_nodes: int = 1) -> Group:
    """The group of `local_size` ranks in each of `num_nodes` nodes."""
    peak = fabric_bandwidth(accelerator.fabric, local_size)
    one_node = num_nodes == 1 and local_size in _PEER_SIZES and accelerator.fabric.kind != "pcie"
    return Group(
        local_size=local_size,
        num_nodes=num_nodes,
        ring=Transport(
            tuple(_protocol(constants, f"ring_{kind}", peak) for kind in ("ll", "ll128", "simple")),
            accelerator.fabric.bandwidth_bytes_per_s * constants["ring_copy_efficiency"],
        ),
        exchange=Transport(
            tuple(_protocol(constants, f"exchange_{kind}", peak) for kind in ("ll", "simple")),
            accelerator.fabric.bandwidth_bytes_per_s * constants["exchange_copy_efficiency"],
        ),
        peer=_peer_reduce(constants, peak) if one_node else None,
        switch=_reducing_switch(accelerator.fabric, constants, local_size, peak),
        nic_latency_s=constants["nic_latency_s"],
        nic_bytes_per_s=accelerator.nic.bandwidth_bytes_per_s * constants["nic_efficiency"],
    )


def _protocol(constants: Constants, name: str, peak: float) -> Protocol:
    return Protocol(constants[f"{name}_s"], constants[f"{name}_hop_s"], peak * constants[f"{name}_efficiency"])


def _peer_reduce(constants: Constants, peak: float) -> PeerReduce:
    return PeerReduce(_protocol(constants, "one_shot", peak), _protocol(constants, "two_shot", peak), _PEER_LIMIT_BYTES)


def _reducing_switch(fabric: Fabric, constants: Constants, local_size: int, peak: float) -> Protocol | None:
    if not has_reducing_switch(fabric) or local_size <= 4:
        return None
    return Protocol(constants["switch_reduce_s"], 0.0, peak * constants["switch_reduce_efficiency"])


def all_reduce_s(group: Group, message_bytes: FloatArray) -> FloatArray:
    """Sum a 16-bit message of `message_bytes` over the group, every rank receiving the result.

    Within a node the peer kernel takes small messages and the library large ones. Over nodes: reduce-scatter
    inside, all-reduce of each rank's share over its own NIC, all-gather inside.
    """
    message = np.asarray(message_bytes, dtype=float)
    if group.size == 1:
        return np.zeros_like(message)
    if group.num_nodes == 1:
        library = library_all_reduce_s(group, message)
        if group.peer is None:
            return library
        small = message < group.peer.limit_bytes
        return np.where(small, group.peer.seconds(group.local_size, message), library)
    local, nodes = group.local_size, group.num_nodes
    inside = 2 * _ring_s(group, message, 1.0) if local > 1 else np.zeros_like(message)
    steps = 2 * np.ceil(np.log2(nodes))
    return inside + steps * group.nic_latency_s + 2 * (nodes - 1) / nodes * message / local / group.nic_bytes_per_s


def library_all_reduce_s(group: Group, message_bytes: FloatArray, reducing: bool = True) -> FloatArray:
    """NCCL's or RCCL's all-reduce within a node: a ring, or the switch where it adds (`reducing`: 16-bit types)."""
    seconds = _ring_s(group, message_bytes, 2.0)
    if group.switch is None or not reducing:
        return seconds
    sent = 2 * (group.local_size - 1) / group.local_size * message_bytes
    return soft_least([seconds, group.switch.seconds(0.0, sent)])


def all_gather_s(group: Group, gathered_bytes: FloatArray) -> FloatArray:
    """Give every rank the `gathered_bytes` that lie spread over the group (reduce-scatter costs the same)."""
    gathered = np.asarray(gathered_bytes, dtype=float)
    if group.size == 1:
        return np.zeros_like(gathered)
    local, nodes = group.local_size, group.num_nodes
    seconds = _ring_s(group, gathered, 1.0) if local > 1 else np.zeros_like(gathered)
    if nodes > 1:
        crossing = gathered * (nodes - 1) / nodes / local
        seconds = seconds + np.ceil(np.log2(nodes)) * group.nic_latency_s + crossing / group.nic_bytes_per_s
    return seconds


def engine_all_reduce_s(group: Group, constants: Constants, message_bytes: FloatArray) -> FloatArray:
    """`all_reduce_s` inside an engine's captured graph, where a ring takes more than in a benchmark's loop.

    Whatever the message (5.0 +- 0.4 us on two H100, NCCL 2.28, 256 B to 1 MiB: `calibration/data/h100x2/collectives*`).
    """
    seconds = all_reduce_s(group, message_bytes)
    if group.size == 1:
        return seconds
    if group.num_nodes == 1 and group.peer is not None:
        return seconds + constants["ring_graph_s"] * (np.asarray(message_bytes) >= group.peer.limit_bytes)
    return seconds + constants["ring_graph_s"]


def engine_all_gather_s(group: Group, constants: Constants, gathered_bytes: FloatArray) -> FloatArray:
    """`all_gather_s` (and reduce-scatter) inside an engine's captured graph: see `engine_all_reduce_s`."""
    seconds = all_gather_s(group, gathered_bytes)
    return seconds + constants["ring_graph_s"] if group.size > 1 else seconds


def _ring_s(group: Group, message: FloatArray, rounds: float) -> FloatArray:
    """`rounds` passes of a message around a ring: 1 gathers or scatters, 2 reduces and gives everyone the result."""
    size = group.local_size
    return group.ring.seconds(rounds * (size - 1), rounds * (size - 1) / size * message, message / size)


def all_to_all_s(group: Group, local_bytes: FloatArray, remote_bytes: FloatArray) -> FloatArray:
    """Send `local_bytes` to ranks of the same node and `remote_bytes` to other nodes, per rank; legs overlap."""
    local = np.asarray(local_bytes, dtype=float)
    if group.size == 1:
        return np.zeros_like(local)
    inside = group.exchange.seconds(group.local_size - 1, local, local / max(group.local_size - 1, 1))
    if group.num_nodes == 1:
        return inside
    return np.maximum(inside, group.nic_latency_s + remote_bytes / group.nic_bytes_per_s)
