"""What a machine is: accelerators, the fabric between them, network cards, nodes."""

from __future__ import annotations

from typing import Literal

import msgspec

from moesim.errors import InputError


class Fabric(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The links between accelerators of one node.

    `switch`: any pair may use the whole `bandwidth_bytes_per_s` (NVSwitch). `mesh`: a direct link to every
    peer, so one pair gets `link_bandwidth_bytes_per_s` only (MI300X xGMI). `pcie`: through the host.
    Bandwidths are per accelerator and per direction.
    """

    kind: Literal["switch", "mesh", "pcie"]
    bandwidth_bytes_per_s: float
    link_bandwidth_bytes_per_s: float


class Nic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Network card between nodes; bandwidth per accelerator and per direction."""

    name: str
    bandwidth_bytes_per_s: float


class Accelerator(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One accelerator and the node it ships in, from the data sheet.

    `hbm_bytes_visible` is what the driver shows. `peak_flops_per_s` holds dense rates by compute format
    ("bf16", "fp8", "fp4"); weights in a missing format are expanded to bf16.
    """

    name: str
    vendor: Literal["nvidia", "amd"]
    hbm_bytes_visible: int
    hbm_bandwidth_bytes_per_s: float
    peak_flops_per_s: dict[str, float]
    num_compute_units: int
    l2_cache_bytes: int
    accelerators_per_node: int
    fabric: Fabric
    nic: Nic
    sources: dict[str, str]
    tdp_w: float = 0.0
    aliases: tuple[str, ...] = ()
    published: dict[str, float] = {}


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`num_accelerators` of one kind, spread evenly over `num_nodes`."""

    accelerator: Accelerator
    num_accelerators: int
    num_nodes: int = 1

    @property
    def accelerators_per_node(self) -> int:
        """Accelerators used in each node."""
        return self.num_accelerators // self.num_nodes


def make_cluster(accelerator: Accelerator, num_accelerators: int, num_nodes: int | None = None) -> Cluster:
    """A checked cluster; `num_nodes` defaults to the fewest nodes that hold the accelerators.

    Raises:
        InputError: for zero accelerators, more than 64 nodes, or an uneven spread.
    """
    if num_accelerators < 1:
        raise InputError(f"gpus: {num_accelerators} is not a number of accelerators; give at least 1")
    per_node = accelerator.accelerators_per_node
    nodes = -(-num_accelerators // per_node) if num_nodes is None else num_nodes
    if not 1 <= nodes <= 64:
        raise InputError(f"nodes: {nodes} is out of range; moesim models 1 to 64 nodes")
    if num_accelerators % nodes:
        raise InputError(f"gpus: {num_accelerators} cannot be spread evenly over {nodes} nodes")
    if num_accelerators // nodes > per_node:
        raise InputError(
            f"nodes: {num_accelerators} x {accelerator.name} need at least {-(-num_accelerators // per_node)} nodes "
            f"of {per_node}, not {nodes}"
        )
    return Cluster(accelerator=accelerator, num_accelerators=num_accelerators, num_nodes=nodes)


def check_accelerator(accelerator: Accelerator, where: str) -> Accelerator:
    """Refuse accelerators without memory, bandwidth or a bf16 rate; returns it unchanged."""
    positive = {
        "hbm_bytes_visible": accelerator.hbm_bytes_visible,
        "hbm_bandwidth_bytes_per_s": accelerator.hbm_bandwidth_bytes_per_s,
        "num_compute_units": accelerator.num_compute_units,
        "accelerators_per_node": accelerator.accelerators_per_node,
        "fabric.bandwidth_bytes_per_s": accelerator.fabric.bandwidth_bytes_per_s,
        "fabric.link_bandwidth_bytes_per_s": accelerator.fabric.link_bandwidth_bytes_per_s,
        "nic.bandwidth_bytes_per_s": accelerator.nic.bandwidth_bytes_per_s,
        **{f"peak_flops_per_s.{name}": rate for name, rate in accelerator.peak_flops_per_s.items()},
    }
    for field, value in positive.items():
        if not 0 < value < float("inf"):
            raise InputError(f"{where}: {field} is {value}, must be a positive number")
    if "bf16" not in accelerator.peak_flops_per_s:
        raise InputError(f"{where}: peak_flops_per_s has no bf16 rate")
    return accelerator


def peak_rate(accelerator: Accelerator, compute: str) -> float:
    """Dense FLOP/s for a compute format; formats the chip lacks are expanded to bf16 before the product."""
    return accelerator.peak_flops_per_s.get(compute, accelerator.peak_flops_per_s["bf16"])
