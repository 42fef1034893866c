"""Seconds to move expert weights over the fabric."""

from __future__ import annotations

import numpy as np

from moesim.network.collectives import make_group
from moesim.placement.memory import served_dtypes
from moesim.placement.migration import Migration
from moesim.specs.deployment import Deployment
from moesim.specs.dtypes import get_dtype
from moesim.specs.hardware import Cluster
from moesim.specs.model import Model
from moesim.specs.parameters import ParameterSet


def expert_bytes(model: Model, deployment: Deployment) -> float:
    """Weight bytes of one routed expert of one layer on one rank."""
    if model.moe is None:
        return 0.0
    width = model.moe.intermediate_size / deployment.moe_tensor_parallel_size
    dtype = get_dtype(served_dtypes(model, deployment.quantization).experts)
    return 3 * model.hidden_size * width * dtype.bytes_per_element


def transfer_seconds(migration: Migration, replica_bytes: float, cluster: Cluster, parameters: ParameterSet) -> float:
    """Time until every rank has its new replicas, all moving at once.

    Each rank sends and receives over its fabric port and its network adapter at the rates that exchanges achieve;
    the busiest port decides. Left out: the copy from the receive buffer into place, and the planning itself
    (vLLM reports 0.1 to 1 s for it, on the host).
    """
    group = make_group(cluster, parameters, len(migration.moves))
    inside, across = migration.traffic()
    seconds = np.maximum(
        inside * replica_bytes / group.exchange_bytes_per_s, across * replica_bytes / group.nic_bytes_per_s
    )
    return float(seconds.max()) + (group.exchange_latency_s if migration.replicas_moved else 0.0)
